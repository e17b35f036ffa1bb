from dataclasses import fields
from pathlib import Path

import pytest

from diffusion_policy_ros.nodes.bringup import node_parameters
from diffusion_policy_ros.nodes.parameter_table import CONFIGS, page

DOCS = Path(__file__).resolve().parents[2] / 'docs'


def test_the_page_is_what_the_code_prints():
    assert (DOCS / 'parameters.md').read_text() == page()


@pytest.mark.parametrize('name', CONFIGS)
def test_the_yaml_has_a_line_for_each_parameter_and_no_other(name):
    assert set(node_parameters(name)) == {item.name for item in fields(CONFIGS[name])}


@pytest.mark.parametrize('name', CONFIGS)
def test_every_parameter_has_a_sentence(name):
    for item in fields(CONFIGS[name]):
        assert item.metadata['description'].rstrip().endswith('.'), item.name

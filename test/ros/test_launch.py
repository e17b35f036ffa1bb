"""The launch files, read and run by the real launch and launch_ros."""

from __future__ import annotations

from dataclasses import fields
import json
import os
from pathlib import Path
import subprocess
import sys
from typing import Any

from ament_index_python.packages import get_package_prefix, PackageNotFoundError
import pytest

from diffusion_policy_ros.nodes.bringup import metaworld_nodes, NodeSpec, SimSettings
from diffusion_policy_ros.nodes.record_bringup import record_nodes, RecordSettings

try:
    import launch
    from launch.actions import DeclareLaunchArgument
    from launch.launch_description_sources import get_launch_description_from_python_launch_file
    from launch.utilities import perform_substitutions
    from launch_ros.actions import Node
    from launch_ros.utilities import evaluate_parameters
except ImportError:
    pytest.skip('launch and launch_ros are missing: they come with ROS 2, not from PyPI',
                allow_module_level=True)

PACKAGE = 'diffusion_policy_ros'
LAUNCH = Path(__file__).resolve().parents[2] / 'launch'
KINDS = {'metaworld_sim': (SimSettings, metaworld_nodes, {'respawn', 'rviz'}),
         'record_demos': (RecordSettings, record_nodes, set())}

RUN = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

arguments = [tuple(argument.split(':=')) for argument in sys.argv[2:]]
service = LaunchService()
service.include_launch_description(LaunchDescription([IncludeLaunchDescription(
    PythonLaunchDescriptionSource(sys.argv[1]), launch_arguments=arguments)]))
sys.exit(service.run())
"""


def description_of(name: str) -> launch.LaunchDescription:
    """Return what a launch file describes."""
    return get_launch_description_from_python_launch_file(str(LAUNCH / f'{name}.launch.py'))


def launched(name: str = 'metaworld_sim', **arguments: str) -> list[Node]:
    """Return the nodes that a launch with these arguments starts, without starting them."""
    context = launch.LaunchContext()
    context.launch_configurations.update(arguments)
    found: list[Node] = []
    waiting = [description_of(name)]
    while waiting:
        entity = waiting.pop(0)
        if isinstance(entity, Node):
            found.append(entity)
        else:
            waiting[:0] = entity.visit(context) or []
    return found


def as_text(value: Any) -> str | None:
    """Return what launch makes of a string or its substitutions."""
    if value is None or isinstance(value, str):
        return value
    return perform_substitutions(launch.LaunchContext(), list(value))


def what_starts(node: Node) -> tuple[str, str | None, str | None, dict, list]:
    """Return executable, name, namespace, parameters and remappings of a launch_ros node."""
    (parameters,) = evaluate_parameters(launch.LaunchContext(), node._Node__parameters)
    remappings = [(as_text(old), as_text(new)) for old, new in node._Node__remappings]
    return (as_text(node.node_executable), as_text(node._Node__node_name),
            as_text(node._Node__node_namespace), parameters, remappings)


def expected(specs: list[NodeSpec]) -> list[tuple]:
    return [(spec.executable, spec.executable, spec.namespace or None,
             {name: tuple(value) if isinstance(value, (list, tuple)) else value
              for name, value in spec.parameters.items()}, list(spec.remappings))
            for spec in specs]


@pytest.mark.parametrize('name', KINDS)
def test_every_argument_has_a_description(name):
    settings, _, more = KINDS[name]
    arguments = [entity for entity in description_of(name).entities
                 if isinstance(entity, DeclareLaunchArgument)]
    assert {argument.name for argument in arguments} == {
        *(field.name for field in fields(settings)), *more}
    assert [argument.name for argument in arguments
            if len(argument.description) < 10 or argument.description.startswith('no desc')] == []
    assert all(argument.default_value is not None for argument in arguments)


@pytest.mark.parametrize(('arguments', 'settings'), [
    ({}, SimSettings()),
    ({'mode': 'realtime', 'real_time_factor': '0.25', 'episodes': '2', 'seed': '40',
      'video': 'false', 'namespace': 'left'},
     SimSettings(mode='realtime', real_time_factor=0.25, episodes=2, seed=40, video=False,
                 namespace='left')),
    ({'episodes': '0', 'mode': 'realtime', 'task': 'reach-v3'},
     SimSettings(episodes=0, mode='realtime', task='reach-v3')),
], ids=['defaults', 'realtime', 'arm alone'])
def test_the_nodes_are_those_of_bringup(arguments, settings):
    nodes = launched(**arguments)
    assert {node.node_package for node in nodes} == {PACKAGE}
    assert [what_starts(node) for node in nodes] == expected(metaworld_nodes(settings))


@pytest.mark.parametrize(('arguments', 'settings'), [
    ({'out': 'run'}, RecordSettings(out='run')),
    ({'teleoperator': 'joy', 'mode': 'realtime', 'episodes': '0', 'cameras': 'wrist',
      'image_storage': 'jpeg', 'namespace': 'left', 'folder': 'there'},
     RecordSettings(teleoperator='joy', mode='realtime', episodes=0, cameras='wrist',
                    image_storage='jpeg', namespace='left', folder='there')),
], ids=['expert', 'joy'])
def test_the_nodes_that_record_are_those_of_bringup(arguments, settings):
    nodes = launched('record_demos', **arguments)
    assert [what_starts(node) for node in nodes] == expected(record_nodes(settings))
    teleoperator = {'expert': 'expert', 'joy': 'joy_teleop'}[settings.teleoperator]
    assert teleoperator in [as_text(node.node_executable) for node in nodes]


def test_rviz_comes_with_its_configuration():
    rviz = launched(rviz='true')[-1]
    assert (rviz.node_package, as_text(rviz.node_executable)) == ('rviz2', 'rviz2')


@pytest.mark.parametrize(('arguments', 'message'), [
    ({'task': 'open-drawer'}, 'open-drawer'),
    ({'episodes': 'ten'}, 'episodes'),
    ({'episodes': '0'}, 'expected mode:=realtime'),
    ({'checkpoint': 'nowhere'}, 'nowhere'),
])
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        launched(**arguments)


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'more'), [
    ('metaworld_sim', ['video:=false']), ('record_demos', ['folder:=bags'])])
def test_an_episode_runs_and_ends(tmp_path, name, more):
    try:
        get_package_prefix(PACKAGE)
    except PackageNotFoundError:
        pytest.skip(f'{PACKAGE} is not installed: make setup, or colcon build and source it')
    result = subprocess.run(
        [sys.executable, '-c', RUN, LAUNCH / f'{name}.launch.py', 'episodes:=1', *more,
         f'out:={tmp_path / "run"}'],
        cwd=tmp_path, env={**os.environ, 'ROS_LOG_DIR': str(tmp_path / 'log')}, timeout=240,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout
    summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
    assert summary['n_episodes'] == 1
    assert 'process has finished cleanly' in result.stdout
    assert (tmp_path / 'bags/episode_000000/metadata.yaml').exists() == (name == 'record_demos')

"""Dataclass fields as parameters of a real node."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from rcl_interfaces.srv import DescribeParameters
from rclpy.node import Node
from rclpy.parameter import Parameter

from diffusion_policy_ros.nodes.parameters import declare, read, refuse_unknown


@dataclass(frozen=True)
class Example:
    """Fields of every kind."""

    path: str = field(default='a.yaml', metadata={'description': 'A file.'})
    rate_hz: float = field(default=50.0, metadata={
        'description': 'How often.', 'unit': 'Hz', 'min': 1.0, 'max': 1000.0})
    steps: int = field(default=0, metadata={'description': 'Steps; 0 for all.', 'min': 0})
    mode: str = field(default='lockstep', metadata={
        'description': 'Which.', 'choices': ('lockstep', 'realtime')})
    names: tuple[str, ...] = field(default=(), metadata={'description': 'Some names.'})
    lengths: tuple[float, ...] = field(default=(1.0, 2.0), metadata={'description': 'Lengths.'})
    on: bool = field(default=False, metadata={'description': 'Whether.', 'read_only': False})
    seed: int = field(default=1, metadata={'description': 'Seed.', 'read_only': False})

    def __post_init__(self) -> None:
        if self.mode == 'realtime' and self.steps:
            raise ValueError(f'steps is {self.steps}, expected 0 where mode is realtime')
        if self.on and self.seed < 0:
            raise ValueError(f'seed is {self.seed}, expected at least 0 where on is true')


@dataclass(frozen=True)
class Required:
    """A field that has to be set."""

    checkpoint: str = field(metadata={'description': 'Folder of the checkpoint.'})


@pytest.fixture()
def make_node(ros):
    nodes = []

    def make(**overrides):
        nodes.append(Node('example', parameter_overrides=[
            Parameter(name, value=value) for name, value in overrides.items()]))
        return nodes[-1]

    yield make
    for node in nodes:
        node.destroy_node()


def test_defaults_come_from_the_dataclass(make_node):
    node = make_node()
    assert declare(node, Example) == Example() == read(node, Example)


def test_values_come_from_outside(make_node):
    node = make_node(path='b', rate_hz=2, steps=3, names=['x', 'y'], lengths=[1, 2, 3], on=True)
    expected = Example(path='b', rate_hz=2.0, steps=3, names=('x', 'y'), lengths=(1.0, 2.0, 3.0),
                       on=True)
    assert declare(node, Example) == expected == read(node, Example)


@pytest.mark.parametrize('name, value, expected', [
    ('rate_hz', 0.5, 'parameter rate_hz: found 0.5, expected 1.0 to 1000.0 Hz'),
    ('rate_hz', float('nan'), 'parameter rate_hz: found nan, expected float'),
    ('rate_hz', 'fast', "parameter rate_hz: found 'fast', expected float"),
    ('steps', -1, 'parameter steps: found -1, expected 0 to inf'),
    ('steps', 1.0, 'parameter steps: found 1.0, expected int'),
    ('steps', True, 'parameter steps: found True, expected int'),
    ('mode', 'fast', "parameter mode: found 'fast', expected one of lockstep, realtime"),
    ('names', 'x', "parameter names: found 'x', expected a list of str"),
    ('lengths', ['a'], "parameter lengths: found 'a', expected float"),
    ('on', 1, 'parameter on: found 1, expected bool'),
])
def test_a_wrong_value_is_refused_in_one_line(make_node, name, value, expected):
    with pytest.raises(ValueError) as caught:
        declare(make_node(**{name: value}), Example)
    assert str(caught.value) == expected


def test_fields_that_contradict_each_other_are_refused(make_node):
    with pytest.raises(ValueError, match='^parameters: steps is 2, expected 0'):
        declare(make_node(mode='realtime', steps=2), Example)


def test_a_required_parameter_is_asked_for(make_node):
    with pytest.raises(ValueError, match=r'^parameter checkpoint: not set, .*\(Folder of the'):
        declare(make_node(), Required)
    assert declare(make_node(checkpoint='x'), Required) == Required('x')


def test_a_typo_is_refused_with_the_nearest_name(make_node):
    node = make_node(rate_hs=1.0)
    declare(node, Example)
    with pytest.raises(ValueError, match='^parameter rate_hs: example has no such parameter, '
                                         'expected rate_hz$'):
        refuse_unknown(node)


def test_known_parameters_are_no_typo(make_node):
    node = make_node(rate_hz=1.0, use_sim_time=True)
    declare(node, Example)
    refuse_unknown(node)


def test_a_change_at_run_time_is_checked(make_node):
    node = make_node()
    declare(node, Example)

    def set_to(**values):
        return node.set_parameters_atomically(
            [Parameter(name, value=value) for name, value in values.items()])

    assert not set_to(rate_hz=2.0).successful  # read only
    assert set_to(on=True).successful
    result = set_to(seed=-1)
    assert not result.successful and 'seed is -1, expected at least 0' in result.reason
    assert read(node, Example) == Example(on=True)
    assert set_to(on=False, seed=-1).successful
    assert read(node, Example) == Example(seed=-1)


def test_describe_shows_description_unit_and_range(make_node, probe):
    node = probe.add(make_node())
    declare(node, Example)
    request = DescribeParameters.Request(names=['rate_hz', 'steps', 'mode', 'on', 'names'])
    rate, steps, mode, on, names = probe.call(
        DescribeParameters, '/example/describe_parameters', request).descriptors
    assert rate.description == 'How often. [Hz]'
    assert (rate.floating_point_range[0].from_value, rate.floating_point_range[0].to_value) == (
        1.0, 1000.0)
    assert rate.read_only and not on.read_only
    assert steps.integer_range[0].from_value == 0
    assert steps.integer_range[0].to_value == 2**63 - 1
    assert mode.additional_constraints == 'one of: lockstep, realtime'
    assert names.type == Parameter.Type.STRING_ARRAY.value

from dataclasses import dataclass

import pytest

from diffusion_policy_ros.policy.config import CameraSpec, ObservationSpec, PolicyConfig
from diffusion_policy_ros.typed import describe, from_mapping, load_yaml, to_mapping


@dataclass(frozen=True)
class Inner:
    rates: tuple[float, ...]


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    count: int = 3
    rate: float = 1.0


def test_reads_nested_values_and_yaml_numbers():
    outer = from_mapping(Outer, {'name': 'a', 'inner': {'rates': [1, '1e-4']}, 'rate': 2}, 'file')
    assert outer == Outer('a', Inner((1.0, 1e-4)), 3, 2.0)
    assert isinstance(outer.rate, float)


@pytest.mark.parametrize('values, named', [
    ({'name': 'a', 'inner': {'rates': []}, 'cuont': 2}, 'cuont'),
    ({'name': 'a', 'inner': {'rates': [], 'typo': 1}}, 'typo'),
    ({'inner': {'rates': []}}, 'name'),
    ({'name': 'a', 'inner': {'rates': []}, 'count': 'two'}, 'count'),
    ({'name': 'a', 'inner': {'rates': []}, 'count': True}, 'count'),
    ({'name': 'a', 'inner': {'rates': []}, 'rate': True}, 'rate'),
    ({'name': 'a', 'inner': {'rates': 64}}, 'rates'),
    ({'name': 'a', 'inner': {'rates': '12'}}, "rates is '12', expected a list"),
    ({'name': 'a', 'inner': {'rates': {'a': 1}}}, "rates is {'a': 1}, expected a list"),
    ({'name': 'a', 'inner': {'rates': []}, 'rate': 'fast'}, 'rate'),
    (['name'], 'list'),
])
def test_refuses_in_one_line_that_names_file_and_key(values, named):
    with pytest.raises(ValueError) as error:
        from_mapping(Outer, values, 'some.yaml')
    assert str(error.value).startswith('some.yaml: ')
    assert named in str(error.value)
    assert '\n' not in str(error.value)


def test_round_trip_of_a_policy_config():
    config = PolicyConfig(ObservationSpec((CameraSpec('arm', 224, 224, 96, 96),)), dt_s=0.0125)
    assert from_mapping(PolicyConfig, to_mapping(config), 'config') == config


def test_load_yaml_names_the_file(tmp_path):
    with pytest.raises(ValueError, match='absent.yaml: no such file'):
        load_yaml(tmp_path / 'absent.yaml')
    broken = tmp_path / 'broken.yaml'
    broken.write_text('a: [1,\nb: {')
    with pytest.raises(ValueError, match='broken.yaml') as error:
        load_yaml(broken)
    assert '\n' not in str(error.value)


@dataclass(frozen=True)
class Wheel:
    """
    A wheel.

    Attributes:
        radius_m, width_m: its size,
            in metres.
    """

    radius_m: float
    width_m: float = 0.1


@dataclass(frozen=True)
class Cart:
    """
    A cart.

    Attributes:
        name: what it is called.
        wheels: one or more.

    Raises:
        nothing: this is no attribute.
    """

    wheels: tuple[Wheel, ...]
    spare: Wheel
    name: str = 'x'
    gears: tuple[int, ...] = (1, 2)


def test_every_value_is_described_by_its_docstring():
    assert describe(Cart) == [
        ('wheels[].radius_m', 'float', '', 'its size, in metres.'),
        ('wheels[].width_m', 'float', '0.1', 'its size, in metres.'),
        ('spare.radius_m', 'float', '', 'its size, in metres.'),
        ('spare.width_m', 'float', '0.1', 'its size, in metres.'),
        ('name', 'str', 'x', 'what it is called.'),
        ('gears', 'tuple[int, ...]', '[1, 2]', '')]

"""
Dataclass fields to declared ROS parameters, and back to the dataclass.

The field is the only source of a parameter: its default, its type, and in its metadata

    description   one sentence; what the value does at its edge
    unit          's', 'Hz', 'm', ...
    min, max      bounds, both allowed
    choices       tuple of the strings that are allowed
    read_only     True by default; False where a running node takes a new value

all of which `ros2 param describe` shows.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
from typing import Any, get_type_hints, TypeVar

from rcl_interfaces.msg import (
    FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult,
)
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter

T = TypeVar('T')

_TYPES = {
    bool: Parameter.Type.BOOL,
    int: Parameter.Type.INTEGER,
    float: Parameter.Type.DOUBLE,
    str: Parameter.Type.STRING,
    tuple[int, ...]: Parameter.Type.INTEGER_ARRAY,
    tuple[float, ...]: Parameter.Type.DOUBLE_ARRAY,
    tuple[str, ...]: Parameter.Type.STRING_ARRAY,
}
_OPEN_END = {int: (-2**63, 2**63 - 1), float: (-sys.float_info.max, sys.float_info.max)}


def declare(node: Node, cls: type[T]) -> T:
    """
    Declare each field of a dataclass as a parameter of `node` and return what was set.

    An integer is taken where the field is a float; the YAML file that writes `1` means 1.0.

    Raises:
        ValueError: in one line that names the parameter, what was found and what is expected.
    """
    values = {}
    for field, kind in _fields(cls):
        values[field.name] = _declare_field(node, field, kind)
    config = _build(cls, values)
    if any(not field.metadata.get('read_only', True) for field in dataclasses.fields(cls)):
        node.add_on_set_parameters_callback(lambda changed: _check_change(node, cls, changed))
    return config


def read(node: Node, cls: type[T]) -> T:
    """Return the declared parameters of `cls` as they are now."""
    values = {}
    for field, kind in _fields(cls):
        declared = node.get_parameter_or(field.name)
        values[field.name] = _convert(field, kind, declared.value)
    return _build(cls, values)


def refuse_unknown(node: Node) -> None:
    """
    Refuse a parameter that was set from outside and that no field declares: it is a typo.

    Raises:
        ValueError: names it, and the nearest parameter that exists.
    """
    # rclpy has no public list of what was set from outside but not declared.
    for name in getattr(node, '_parameter_overrides', {}):
        if node.has_parameter(name) or name.startswith('qos_overrides.'):
            continue
        known = [key for key in node.get_parameters_by_prefix('') if '.' not in key]
        near = difflib.get_close_matches(name, known, n=1) or sorted(known)
        raise ValueError(f'parameter {name}: {node.get_name()} has no such parameter, expected '
                         f'{", ".join(near)}')


def descriptor(field: dataclasses.Field, kind: Any) -> ParameterDescriptor:
    """Return what `ros2 param describe` shows of a field."""
    meta = field.metadata
    unit = f' [{meta["unit"]}]' if meta.get('unit') else ''
    result = ParameterDescriptor(
        name=field.name, type=_TYPES[kind].value, read_only=meta.get('read_only', True),
        description=f'{meta["description"]}{unit}')
    if 'choices' in meta:
        result.additional_constraints = f'one of: {", ".join(meta["choices"])}'
    if kind in _OPEN_END and ('min' in meta or 'max' in meta):
        low, high = _OPEN_END[kind]
        low, high = kind(meta.get('min', low)), kind(meta.get('max', high))
        if kind is int:
            result.integer_range = [IntegerRange(from_value=low, to_value=high)]
        else:
            result.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    return result


def _fields(cls: type) -> list[tuple[dataclasses.Field, Any]]:
    hints = get_type_hints(cls)
    return [(field, hints[field.name]) for field in dataclasses.fields(cls)]


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    raise ValueError(f'parameter {field.name}: not set, and it has no default '
                     f'({field.metadata["description"]})')


def _declare_field(node: Node, field: dataclasses.Field, kind: Any) -> Any:
    override = getattr(node, '_parameter_overrides', {}).get(field.name)
    value = _convert(field, kind, _default(field) if override is None else override.value)
    # An empty list has no type of its own: such a parameter is declared, and stays unset.
    start = _TYPES[kind] if value == () else list(value) if isinstance(value, tuple) else value
    try:
        node.declare_parameter(field.name, start, descriptor(field, kind), ignore_override=True)
    except ParameterException as error:
        raise ValueError(f'parameter {field.name}: {error}') from None
    return value


def _convert(field: dataclasses.Field, kind: Any, value: Any) -> Any:
    if kind in (bool, int, float, str):
        return _convert_scalar(field, kind, value)
    item = kind.__args__[0]
    if value is not None and (isinstance(value, str) or not hasattr(value, '__iter__')):
        raise ValueError(f'parameter {field.name}: found {value!r}, expected a list of '
                         f'{item.__name__}')
    return tuple(_convert_scalar(field, item, entry) for entry in value or ())


def _convert_scalar(field: dataclasses.Field, kind: type, value: Any) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    meta = field.metadata
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ValueError(f'parameter {field.name}: found {value!r}, expected {kind.__name__}')
    low, high = meta.get('min', -math.inf), meta.get('max', math.inf)
    if kind in (int, float) and not low <= value <= high:
        raise ValueError(f'parameter {field.name}: found {value}, expected {low} to {high} '
                         f'{meta.get("unit", "")}'.rstrip())
    if value not in meta.get('choices', (value,)):
        raise ValueError(f'parameter {field.name}: found {value!r}, expected one of '
                         f'{", ".join(meta["choices"])}')
    return value


def _build(cls: type[T], values: dict[str, Any]) -> T:
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f'parameters: {error}') from None


def _check_change(node: Node, cls: type, changed: list[Parameter]) -> SetParametersResult:
    """Put a change made at run time through the same checks as the values at start."""
    try:
        values = dataclasses.asdict(read(node, cls))
        kinds = {field.name: (field, kind) for field, kind in _fields(cls)}
        for parameter in changed:
            if parameter.name in kinds:
                values[parameter.name] = _convert(*kinds[parameter.name], parameter.value)
        _build(cls, values)
    except ValueError as error:
        return SetParametersResult(successful=False, reason=str(error))
    return SetParametersResult(successful=True)

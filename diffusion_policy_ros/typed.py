"""Plain mappings (YAML, JSON) to frozen dataclasses and back, every field checked at the door."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, MISSING
import inspect
from pathlib import Path
import re
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints, TypeVar, Union

import dacite
import yaml

T = TypeVar('T')


def _as_int(value: Any) -> Any:
    """Let no bool pass for a number; as text it is refused by name."""
    return str(value) if isinstance(value, bool) else value


def _as_float(value: Any) -> Any:
    """Accept integers for floats, and `1e-4`, which YAML 1.1 reads as a string."""
    if isinstance(value, bool):
        return _as_int(value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return float(value) if isinstance(value, int) else value


def from_mapping(cls: type[T], values: Any, where: str) -> T:
    """
    Build `cls` from a mapping.

    Raises:
        ValueError: in one line that names `where` and the key: an unknown or missing key, a wrong
            type, or what the dataclass's own check refuses.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f'{where}: found {type(values).__name__}, expected keys and values')
    try:
        return dacite.from_dict(cls, _tuples(cls, values), dacite.Config(
            strict=True, type_hooks={float: _as_float, int: _as_int}))
    except (dacite.DaciteError, ValueError, TypeError) as error:
        raise ValueError(f'{where}: {error}') from None


def _tuples(kind: Any, value: Any) -> Any:
    """Return a value with tuples instead of lists where a type, or one in it, asks for them."""
    if is_dataclass(kind) and isinstance(value, Mapping):
        hints = get_type_hints(kind)
        for key, inner in value.items():
            if get_origin(hints.get(key)) is tuple and not isinstance(inner, (list, tuple)):
                raise ValueError(f'{key} is {inner!r}, expected a list')
        return {key: _tuples(hints.get(key), inner) for key, inner in value.items()}
    origin, members = get_origin(kind), get_args(kind)
    if origin is tuple and isinstance(value, list):
        return tuple(_tuples(members[0], inner) for inner in value)
    if origin is dict and isinstance(value, Mapping):
        return {key: _tuples(members[1], inner) for key, inner in value.items()}
    if origin in (Union, UnionType):
        return next((found for found in (_tuples(member, value) for member in members)
                     if found is not value), value)
    return value


def to_mapping(value: Any) -> dict[str, Any]:
    """Return a dataclass as plain dictionaries and lists, ready for YAML."""
    return to_plain(asdict(value))


def to_plain(value: Any) -> Any:
    """Return a value with its tuples as lists, ready for YAML."""
    if isinstance(value, dict):
        return {key: to_plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(inner) for inner in value]
    return value


def differences(found: Mapping[str, Any], expected: Mapping[str, Any],
                prefix: str = '') -> list[str]:
    """Return `key.of.value is 1, expected 2` of all values of `expected` that are others."""
    lines = []
    for key, value in expected.items():
        other = found.get(key)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            lines += differences(other, value, f'{prefix}{key}.')
        elif other != value:
            lines.append(f'{prefix}{key} is {other!r}, expected {value!r}')
    return lines


def load_yaml(path: str | Path) -> Any:
    """
    Read one YAML file.

    Raises:
        ValueError: in one line that names the file, when it is missing or no YAML.
    """
    try:
        return yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise ValueError(f'{path}: no such file') from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f'{path}: {" ".join(str(error).split())}') from None


def describe(cls: type, prefix: str = '') -> list[tuple[str, str, str, str]]:
    """
    Return every value that a dataclass and those inside it hold.

    Returns:
        Dotted name, type, default as YAML (empty where there is none), and description, which is
        the entry of the class docstring's `Attributes`.
    """
    notes = _attributes(inspect.getdoc(cls) or '')
    hints, rows = get_type_hints(cls), []
    for field in fields(cls):
        kind, note = hints[field.name], notes.get(field.name, '')
        members = [kind, *get_args(kind)]
        inner = next((member for member in members if is_dataclass(member)), None)
        name = prefix + field.name
        if inner is not None:
            rows += describe(inner, f'{name}.' if inner is kind else f'{name}[].')
            continue
        default = '' if field.default is MISSING else yaml.safe_dump(
            to_plain(field.default), default_flow_style=True, width=999).split('\n')[0]
        rows.append((name, getattr(kind, '__name__', str(kind)) if not get_args(kind)
                     else str(kind).replace('typing.', ''), default, note))
    return rows


def _attributes(text: str) -> dict[str, str]:
    """Return the `Attributes` entries of a docstring; `a, b: text` is one for each."""
    notes: dict[str, str] = {}
    names: list[str] = []
    _, _, section = text.partition('Attributes:\n')
    for line in section.splitlines():
        entry = re.match(r'    (\w[\w, ]*): (.*)', line)
        if entry:
            names = [name.strip() for name in entry[1].split(',')]
            notes |= dict.fromkeys(names, entry[2])
        elif line.startswith('      '):
            notes |= {name: f'{notes[name]} {line.strip()}' for name in names}
        elif line:
            break
    return notes

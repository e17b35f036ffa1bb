"""Plain mappings (YAML, JSON) to frozen dataclasses and back, every field checked at the door."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import dacite
import yaml

T = TypeVar('T')


def _as_float(value: Any) -> Any:
    """Accept integers for floats, and `1e-4`, which YAML 1.1 reads as a string."""
    if isinstance(value, bool):
        return str(value)  # a bool would pass for a number; as text it is refused by name
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
        return dacite.from_dict(cls, dict(values), dacite.Config(
            strict=True, cast=[tuple], type_hooks={float: _as_float}))
    except (dacite.DaciteError, ValueError, TypeError) as error:
        raise ValueError(f'{where}: {error}') from None


def to_mapping(value: Any) -> dict[str, Any]:
    """Return a dataclass as plain dictionaries and lists, ready for YAML."""
    def plain(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: plain(inner) for key, inner in item.items()}
        if isinstance(item, (list, tuple)):
            return [plain(inner) for inner in item]
        return item
    return plain(asdict(value))


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

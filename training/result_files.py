"""JSON files of results, read back; what is wrong with one is one line that names it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
import json
from pathlib import Path
from typing import Any, TypeVar

from diffusion_policy_ros.typed import from_mapping

T = TypeVar('T')


def read_json(path: Path) -> dict[str, Any]:
    """
    Return the object that a JSON file holds.

    Raises:
        ValueError: it holds something else.
    """
    return as_object(path.read_text(errors='replace'), str(path))


def as_object(text: str, where: str) -> dict[str, Any]:
    """
    Return the object that a JSON text is.

    Raises:
        ValueError: in one line that begins with `where`, when it is something else.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f'{where}: {error}, expected a JSON object') from None
    if not isinstance(values, dict):
        raise ValueError(f'{where}: found {type(values).__name__}, expected a JSON object')
    return values


def pick(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """
    Build `cls` from those values of a mapping that it has.

    Raises:
        ValueError: in one line that begins with `where`.
    """
    return from_mapping(cls, {key.name: values[key.name] for key in fields(cls)
                              if key.name in values}, where)


def parse(cls: type[T], text: str, where: str) -> T:
    """Build `cls` from those values of a JSON object that it has; raises as `pick` does."""
    return pick(cls, as_object(text, where), where)


def read(cls: type[T], path: Path) -> T:
    """Build `cls` from those values of a JSON file's object that it has; raises as `pick` does."""
    return pick(cls, read_json(path), str(path))


def seed_range(seeds: Sequence[int]) -> str:
    """Return `0-49` of seeds that follow each other."""
    return f'{min(seeds)}-{max(seeds)}' if seeds else 'none'

"""What a data set's attributes say, refused in one line where they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def whole_number(attributes: Mapping[str, Any], key: str) -> int:
    """
    Return an attribute that is 1 at least.

    Raises:
        ValueError: it is missing or something else.
    """
    found = attributes.get(key, 'missing')
    if type(found) is not int or found < 1:
        raise ValueError(f'attribute {key} is {found!r}, expected a whole number from 1 on')
    return found


def source_size(attributes: Mapping[str, Any], camera: str) -> tuple[int, int]:
    """
    Return the height and width that a camera's pictures came with.

    Raises:
        ValueError: no attribute says so.
    """
    sizes = attributes.get('source_sizes')
    if not sizes:
        return (whole_number(attributes, 'source_size'),) * 2
    size = sizes.get(camera) if isinstance(sizes, Mapping) else None
    if not isinstance(size, Sequence) or [type(side) for side in size] != [int, int]:
        raise ValueError(f'attribute source_sizes is {sizes!r}, expected height and width of '
                         f'{camera}')
    return tuple(size)

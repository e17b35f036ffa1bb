"""Arrays of a replay buffer on disk, refused where a part is lost or they are of another type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import zarr

from diffusion_policy_ros.datatypes import GRIPPER

MAY_BE_ZERO = (f'data/{GRIPPER}', 'data/target_gripper', 'data/is_observation', 'data/is_teleop',
               'meta/episode_seeds')
"""What may be zero all over a chunk; zarr leaves that out where zero is the fill value."""


def stored_array(path: Path, root: zarr.Group, name: str, kind: type[np.generic],
                 rows: int | None = None) -> zarr.Array:
    """
    Return an array of a data set, none of whose chunks is lost: zarr would read it as zeros.

    Args:
        path: folder of the data set.
        root: its group.
        name: of the array, like data/gripper.
        kind: of its values, `np.number` for any.
        rows: whose chunks are looked for, from the first on; None for all.

    Raises:
        ValueError: in one line that names the array: it or a chunk is missing, or it is of another
            kind.
    """
    group, _, key = name.partition('/')
    if key not in root[group]:
        raise ValueError(f'{name} is missing, found {sorted(root[group].array_keys())}')
    array = root[name]
    if not isinstance(array, zarr.Array):
        raise ValueError(f'{name} is a group, expected an array')
    if not array.ndim or not np.issubdtype(array.dtype, kind):
        raise ValueError(f'{name}: it is {array.dtype} {array.shape}, expected {kind.__name__} '
                         'rows')
    lost = _lost_chunks(array, path / name, array.shape[0] if rows is None else rows)
    if lost and not (array.fill_value == 0 and name in MAY_BE_ZERO):
        raise ValueError(f'{name}: its chunk {lost[0]} is missing and {len(lost) - 1} more, '
                         'expected a file of each')
    return array


def read_array(path: Path, root: zarr.Group, name: str, kind: type[np.generic],
               rows: int | None = None) -> np.ndarray:
    """Return the first rows of an array; arguments and errors are `stored_array`'s."""
    array = stored_array(path, root, name, kind, rows)
    with naming(name):
        return np.asarray(array[:rows])


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put a name before what is refused, also by numcodecs, where bytes of a chunk are lost."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise ValueError(f'{name}: {error}') from None


def _lost_chunks(array: zarr.Array, folder: Path, rows: int) -> list[str]:
    """Return the keys of the first rows' chunks that have no file, with dots between numbers."""
    there = {file.relative_to(folder).as_posix().replace('/', '.').removeprefix('c.')
             for file in folder.rglob('*')}
    lengths = (min(rows, array.shape[0]), *array.shape[1:])
    sides = getattr(array, 'shards', None) or array.chunks  # a file holds a whole shard
    grid = [-(-length // side) for length, side in zip(lengths, sides, strict=True)]
    keys = ('.'.join(map(str, place)) for place in np.ndindex(*grid))
    return [key for key in keys if key not in there]

"""
Demonstrations in Diffusion Policy's zarr layout: data/<key> end to end, meta/episode_ends.

Pictures are either raw (N, H, W, 3) or, as `ReplayWriter` writes them, JPEG bytes end to end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from diffusion_policy_ros.data import jpeg
from diffusion_policy_ros.datatypes import EE_POSE, GRIPPER

JPEG_ENDS = '_ends'
ROWS_AT_ONCE = 1024
Make = Callable[[tuple[int, ...], np.dtype], np.ndarray]
LOW_DIMENSIONAL = {EE_POSE: 7, GRIPPER: 1, 'target_position': 3, 'target_gripper': 1}


@dataclass(frozen=True)
class ReplayBuffer:
    """
    All episodes, end to end, in memory.

    Attributes:
        arrays: key to (N, ...) array; cameras (N, H, W, 3) uint8, `EE_POSE` (N, 7), `GRIPPER`
            (N, 1), and the step's target, `target_position` (N, 3), `target_gripper` (N, 1).
        episode_ends: (E,) int64, exclusive.
        attributes: how it was recorded: task, renderer, step_ns, cameras, sizes, versions.
    """

    arrays: Mapping[str, np.ndarray]
    episode_ends: np.ndarray
    attributes: Mapping[str, Any]

    def episodes(self) -> Iterator[slice]:
        """Yield each episode's rows."""
        start = 0
        for end in self.episode_ends.tolist():
            yield slice(start, end)
            start = end

    def split(self, n_episodes: int) -> tuple[ReplayBuffer, ReplayBuffer]:
        """
        Return the first `n_episodes` episodes and the rest.

        Raises:
            ValueError: there are fewer.
        """
        ends = self.episode_ends
        cut = int(_first(ends, n_episodes)[-1])
        return tuple(
            ReplayBuffer({key: value[rows] for key, value in self.arrays.items()}, its_ends,
                         self.attributes)
            for rows, its_ends in ((slice(cut), ends[:n_episodes]),
                                   (slice(cut, None), ends[n_episodes:] - cut)))

    def digest(self) -> str:
        """Return the sha256 of every array, the data set's name in a checkpoint's provenance."""
        sha = hashlib.sha256(self.episode_ends.tobytes())
        for key in sorted(self.arrays):
            sha.update(key.encode())
            sha.update(np.ascontiguousarray(self.arrays[key]).data)
        return sha.hexdigest()


def load_replay_buffer(path: str | Path, cameras: tuple[str, ...], n_episodes: int | None = None,
                       mapped: bool = False) -> ReplayBuffer:
    """
    Read `cameras` and all arm data.

    Args:
        path: folder of the data set.
        cameras: whose pictures are read.
        n_episodes: episodes from the first on; None for all.
        mapped: leave the pictures on disk, memory-mapped, decoded once into `path`/decoded/, for
            data that memory does not hold. Processes of one machine share them.

    Raises:
        ValueError: in one line that names the data set and the key: it is missing, empty, too
            short, of another shape, or not finite.
    """
    path = Path(path)
    try:
        root = zarr.open_group(str(path), mode='r')
    except (FileNotFoundError, ValueError, KeyError, OSError) as error:
        raise ValueError(f'{path}: no zarr group ({error})') from None
    if 'data' not in root or 'meta' not in root:
        raise ValueError(f'{path}: found no data/ and meta/, expected a replay buffer')
    ends = np.asarray(root['meta']['episode_ends'], dtype=np.int64)
    if len(ends) == 0 or np.any(np.diff(ends, prepend=0) < 2):
        raise ValueError(f'{path}: an episode is empty or has one step, expected two at least')
    try:
        ends = ends if n_episodes is None else _first(ends, n_episodes)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None
    rows, arrays = int(ends[-1]), {}
    for key in (*cameras, *LOW_DIMENSIONAL):
        if key not in root['data']:
            found = sorted(root['data'].array_keys())
            raise ValueError(f'{path}: data/{key} is missing, found {found}')
        try:
            if key in LOW_DIMENSIONAL:
                arrays[key] = np.asarray(root['data'][key][:rows])
            elif mapped:
                arrays[key] = _mapped_pictures(path, root, key, rows)
            else:
                arrays[key] = _pictures(root, key, rows, np.empty)
        except ValueError as error:
            raise ValueError(f'{path}: data/{key}: {error}') from None
        _check(path, key, arrays[key], rows)
    return ReplayBuffer(arrays, ends, dict(root.attrs))


def _first(ends: np.ndarray, n_episodes: int) -> np.ndarray:
    if not 0 < n_episodes <= len(ends):
        raise ValueError(f'{n_episodes} episodes are asked for, the data set has {len(ends)}')
    return ends[:n_episodes]


def _pictures(root: zarr.Group, camera: str, rows: int, make: Make) -> np.ndarray:
    """Return (rows, H, W, 3), in the array that `make` gives for a shape and a type."""
    stored = root['data'][camera]
    if camera + JPEG_ENDS not in root['meta']:
        out = make((min(rows, stored.shape[0]), *stored.shape[1:]), stored.dtype)
        for start in range(0, len(out), ROWS_AT_ONCE):
            out[start:start + ROWS_AT_ONCE] = stored[start:min(len(out), start + ROWS_AT_ONCE)]
        return out
    ends = np.asarray(root['meta'][camera + JPEG_ENDS][:rows])
    blob = np.asarray(stored[:ends[-1]] if len(ends) else stored[:0])
    if len(ends) < rows or len(blob) < ends[-1]:
        raise ValueError(f'it has {len(ends)} pictures and {len(blob)} bytes, episode_ends '
                         f'say {rows} pictures')
    out = make((rows, *jpeg.picture_shape(blob, ends)), np.dtype(np.uint8))
    jpeg.decode(blob, ends, out)
    return out


def _mapped_pictures(path: Path, root: zarr.Group, camera: str, rows: int) -> np.ndarray:
    """Return the pictures as a file that processes share, written by the first that asks."""
    file = path / 'decoded' / f'{camera}_{rows}.npy'
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        new = file.with_suffix(f'.{os.getpid()}.new')
        try:
            _pictures(root, camera, rows, lambda shape, dtype: np.lib.format.open_memmap(
                new, mode='w+', dtype=dtype, shape=shape)).flush()
            os.replace(new, file)
        finally:
            new.unlink(missing_ok=True)
    return np.load(file, mmap_mode='r')


def _check(path: Path, key: str, value: np.ndarray, rows: int) -> None:
    if len(value) != rows:
        raise ValueError(f'{path}: data/{key} has {len(value)} rows, episode_ends say {rows}')
    if key in LOW_DIMENSIONAL:
        if value.shape[1:] != (LOW_DIMENSIONAL[key],):
            raise ValueError(f'{path}: data/{key} has shape {value.shape}, '
                             f'expected (N, {LOW_DIMENSIONAL[key]})')
        bad = np.flatnonzero(~np.isfinite(value).all(axis=1))
        if len(bad):
            raise ValueError(f'{path}: data/{key} is not finite in row {bad[0]} '
                             f'and {len(bad) - 1} more')
    elif value.dtype != np.uint8 or value.ndim != 4 or value.shape[3] != 3:
        raise ValueError(f'{path}: data/{key} is {value.dtype} {value.shape}, '
                         'expected uint8 (N, H, W, 3)')

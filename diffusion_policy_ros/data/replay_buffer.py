"""
Demonstrations in Diffusion Policy's zarr layout: data/<key> end to end, meta/episode_ends.

Pictures are either raw (N, H, W, 3) or, as `ReplayWriter` writes them, JPEG or PNG bytes end to
end. Rows are a fixed step apart or, from recordings, as far as data/stamp_ns says: one row for
every stamp of any stream, which a slower camera's picture is then shown in several of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from diffusion_policy_ros.control.rotation import furthest_from_unit, is_unit
from diffusion_policy_ros.data import pictures
from diffusion_policy_ros.data.stored_arrays import naming, read_array, stored_array
from diffusion_policy_ros.datatypes import EE_POSE, GRIPPER

EPISODE_ENDS = 'meta/episode_ends'
PICTURE_ENDS = '_ends'
ROWS_AT_ONCE = 1024
Make = Callable[[tuple[int, ...], np.dtype], np.ndarray]
LOW_DIMENSIONAL = {EE_POSE: 7, GRIPPER: 1, 'target_position': 3, 'target_gripper': 1}
ROTATION = {'target_quaternion': 4}
"""Where the demonstrations say how the hand is turned; recordings do, MetaWorld does not."""
QUATERNIONS = {EE_POSE: slice(3, 7), 'target_quaternion': slice(4)}
STAMPED = {'stamp_ns': np.int64, 'is_observation': np.bool_, 'is_teleop': np.bool_}
"""Of recordings, one value a row; see data/bag_episode.py."""


@dataclass(frozen=True)
class ReplayBuffer:
    """
    All episodes, end to end; pictures in memory, or mapped from a file.

    Attributes:
        arrays: key to (N, ...) array: `EE_POSE` (N, 7), `GRIPPER` (N, 1), the step's target,
            `target_position` (N, 3), `target_gripper` (N, 1) and, where it is known,
            `target_quaternion` (N, 4), and of recordings those of `STAMPED` (N,); cameras
            (P, H, W, 3) uint8.
        episode_ends: (E,) int64, exclusive.
        attributes: how it was recorded: task, renderer, step_ns, cameras, sizes, versions.
        shown: camera to (N,) int64, the picture of each row.
    """

    arrays: Mapping[str, np.ndarray]
    episode_ends: np.ndarray
    attributes: Mapping[str, Any]
    shown: Mapping[str, np.ndarray]

    def images(self, camera: str, rows: np.ndarray) -> np.ndarray:
        """Return the pictures (..., H, W, 3) that some rows show."""
        return self.arrays[camera][self.shown[camera][rows]]

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
        return (self._part(slice(cut), ends[:n_episodes]),
                self._part(slice(cut, None), ends[n_episodes:] - cut))

    def _part(self, rows: slice, ends: np.ndarray) -> ReplayBuffer:
        arrays = {key: value[rows] for key, value in self.arrays.items() if key not in self.shown}
        shown = {}
        for camera, numbers in self.shown.items():
            numbers = numbers[rows]
            first, end = (numbers[0], numbers[-1] + 1) if len(numbers) else (0, 0)
            arrays[camera], shown[camera] = self.arrays[camera][first:end], numbers - first
        return ReplayBuffer(arrays, ends, self.attributes, shown)

    def digest(self) -> str:
        """Return the sha256 of every array, the data set's name in a checkpoint's provenance."""
        sha = hashlib.sha256(self.episode_ends.tobytes())
        for key in sorted(self.arrays):
            sha.update(key.encode())
            sha.update(np.ascontiguousarray(self.arrays[key]).data)
        for camera, numbers in sorted(self.shown.items()):
            if len(self.arrays[camera]) < len(numbers):
                sha.update(numbers.tobytes())
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
            short, damaged, of another shape, not finite, or a rotation is none.
    """
    path = Path(path)
    try:
        root = zarr.open_group(str(path), mode='r')
    except (FileNotFoundError, ValueError, KeyError, OSError) as error:
        raise ValueError(f'{path}: no zarr group ({error})') from None
    if 'data' not in root or 'meta' not in root:
        raise ValueError(f'{path}: found no data/ and meta/, expected a replay buffer')
    try:
        return _read(path, root, cameras, n_episodes, mapped)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None


def _read(path: Path, root: zarr.Group, cameras: tuple[str, ...], n_episodes: int | None,
          mapped: bool) -> ReplayBuffer:
    ends = read_array(path, root, EPISODE_ENDS, np.integer).astype(np.int64)
    with naming(EPISODE_ENDS):
        check_ends(ends)
        if not len(ends):
            raise ValueError('there is no episode, expected one at least')
    ends = ends if n_episodes is None else _first(ends, n_episodes)
    rows, arrays, shown = int(ends[-1]), {}, {}
    optional = [*ROTATION] if 'target_quaternion' in root['data'] else []
    if 'stamp_ns' in root['data']:
        optional += STAMPED
    for key in (*cameras, *LOW_DIMENSIONAL, *optional):
        name = f'data/{key}'
        if key in cameras:
            arrays[key], shown[key] = _pictures(path, root, key, ends, mapped)
        else:
            arrays[key] = read_array(path, root, name, STAMPED.get(key, np.number), rows)
        with naming(name):
            _check(key, arrays[key], shown.get(key, arrays[key]), rows)
            if key == 'stamp_ns':
                _check_stamps(arrays[key], ends)
    return ReplayBuffer(arrays, ends, dict(root.attrs), shown)


def check_ends(ends: np.ndarray) -> None:
    """
    Check where a data set's episodes end.

    Raises:
        ValueError: not each has two rows at least; the first that has not is named.
    """
    if ends.ndim != 1:
        raise ValueError(f'it has shape {ends.shape}, expected (E,)')
    lengths = np.diff(ends, prepend=0)
    for number in np.flatnonzero(lengths < 2)[:1].tolist():
        start, end = int(ends[number] - lengths[number]), int(ends[number])
        found = (f'ends at row {end}, before row {start} where it begins' if end < start else
                 ('is empty', 'has one row')[end - start])
        raise ValueError(f'episode {number} {found}, expected two rows at least')


def _first(ends: np.ndarray, n_episodes: int) -> np.ndarray:
    if not 0 < n_episodes <= len(ends):
        raise ValueError(f'{n_episodes} episodes are asked for, the data set has {len(ends)}')
    return ends[:n_episodes]


def _pictures(path: Path, root: zarr.Group, camera: str, ends: np.ndarray,
              mapped: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return (P, H, W, 3), mapped from a file if that is asked for, and (N,) what is shown."""
    rows, name = int(ends[-1]), f'data/{camera}'
    if camera + PICTURE_ENDS in root['meta']:
        picture_ends, shown = pictures.shown_pictures(
            read_array(path, root, f'meta/{camera}{PICTURE_ENDS}', np.integer, rows))
        for start in (0, *ends[:-1].tolist()):
            if start < len(shown) and shown[start] == (shown[start - 1] if start else -1):
                raise ValueError(f'{name}: row {start} begins an episode and has no picture')
        n_bytes = int(picture_ends[-1]) if len(picture_ends) else 0
        fill = partial(_decode, stored_array(path, root, name, np.uint8, n_bytes), picture_ends)
    else:
        stored = stored_array(path, root, name, np.uint8, rows)
        shown = np.arange(min(rows, stored.shape[0]))
        fill = partial(_copy, stored, len(shown))
    with naming(name):
        return (_mapped(path, f'{camera}_{rows}', fill) if mapped else fill(np.empty)), shown


def _copy(stored: zarr.Array, rows: int, make: Make) -> np.ndarray:
    out = make((rows, *stored.shape[1:]), stored.dtype)
    for start in range(0, rows, ROWS_AT_ONCE):
        out[start:start + ROWS_AT_ONCE] = stored[start:min(rows, start + ROWS_AT_ONCE)]
    return out


def _decode(stored: zarr.Array, ends: np.ndarray, make: Make) -> np.ndarray:
    blob = np.asarray(stored[:ends[-1]] if len(ends) else stored[:0])
    if len(ends) and len(blob) < ends[-1]:
        raise ValueError(f'it has {len(blob)} bytes, its pictures end at {ends[-1]}')
    out = make((len(ends), *pictures.picture_shape(blob, ends)), np.dtype(np.uint8))
    pictures.decode(blob, ends, out)
    return out


def _mapped(path: Path, name: str, fill: Callable[[Make], np.ndarray]) -> np.ndarray:
    """Return pictures as a file that processes share, written by the first that asks."""
    file = path / 'decoded' / f'{name}.npy'
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)  # a camera's name may have a slash
        new = file.with_suffix(f'.{os.getpid()}.new')

        def make(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
            made = np.lib.format.open_memmap(new, mode='w+', dtype=dtype, shape=shape)
            with new.open('rb+') as written:  # else a full disk ends the process by a signal
                os.posix_fallocate(written.fileno(), 0, os.fstat(written.fileno()).st_size)
            return made

        try:
            fill(make).flush()
            os.replace(new, file)
        finally:
            new.unlink(missing_ok=True)
    return np.load(file, mmap_mode='r')


def _check(key: str, value: np.ndarray, by_row: np.ndarray, rows: int) -> None:
    if len(by_row) != rows:
        raise ValueError(f'it has {len(by_row)} rows, episode_ends say {rows}')
    width = (LOW_DIMENSIONAL | ROTATION).get(key)
    if width is not None:
        if value.shape[1:] != (width,):
            raise ValueError(f'it has shape {value.shape}, expected (N, {width})')
        bad = np.flatnonzero(~np.isfinite(value).all(axis=1))
        if len(bad):
            raise ValueError(f'it is not finite in row {bad[0]} and {len(bad) - 1} more')
        part = value[:, QUATERNIONS[key]] if key in QUATERNIONS else None
        if part is not None and not is_unit(part):  # zeros, where a file was lost
            row, length = furthest_from_unit(part)
            raise ValueError(f'the quaternion of row {row} has length {length:.4g}, expected 1')
    elif key in STAMPED:
        if value.shape != (rows,) or value.dtype != STAMPED[key]:
            raise ValueError(f'it is {value.dtype} {value.shape}, expected '
                             f'{np.dtype(STAMPED[key])} ({rows},)')
    elif value.ndim != 4 or value.shape[3] != 3:
        raise ValueError(f'it is {value.dtype} {value.shape}, expected uint8 (N, H, W, 3)')


def _check_stamps(stamps_ns: np.ndarray, ends: np.ndarray) -> None:
    steps = np.diff(stamps_ns)
    steps[ends[:-1] - 1] = 1  # from one episode to the next
    back = np.flatnonzero(steps <= 0)
    if len(back):
        raise ValueError(f'row {back[0] + 1} is {steps[back[0]]} ns after the row before, '
                         'expected increasing stamps in an episode')

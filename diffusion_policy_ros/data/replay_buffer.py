"""Demonstrations in Diffusion Policy's zarr layout: data/<key> end to end, meta/episode_ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from diffusion_policy_ros.datatypes import EE_POSE, GRIPPER

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

    def head(self, n_episodes: int) -> ReplayBuffer:
        """
        Return the first `n_episodes` episodes.

        Raises:
            ValueError: there are fewer.
        """
        return self.split(n_episodes)[0]

    def split(self, n_episodes: int) -> tuple[ReplayBuffer, ReplayBuffer]:
        """Return the first `n_episodes` episodes and the rest; raises as `head` does."""
        if not 0 < n_episodes <= len(self.episode_ends):
            raise ValueError(
                f'{n_episodes} episodes are asked for, the data set has {len(self.episode_ends)}')
        ends, cut = self.episode_ends, int(self.episode_ends[n_episodes - 1])
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


def load_replay_buffer(path: str | Path, cameras: tuple[str, ...]) -> ReplayBuffer:
    """
    Read `cameras` and all arm data into memory.

    Raises:
        ValueError: in one line that names the data set and the key: it is missing, empty, of
            another shape, or not finite.
    """
    path = Path(path)
    try:
        root = zarr.open_group(str(path), mode='r')
    except (FileNotFoundError, ValueError, KeyError, OSError) as error:
        raise ValueError(f'{path}: no zarr group ({error})') from None
    if 'data' not in root or 'meta' not in root:
        raise ValueError(f'{path}: found no data/ and meta/, expected a replay buffer')
    data, ends = root['data'], np.asarray(root['meta']['episode_ends'], dtype=np.int64)
    if len(ends) == 0 or np.any(np.diff(ends, prepend=0) < 2):
        raise ValueError(f'{path}: an episode is empty or has one step, expected two at least')
    arrays = {}
    for key in (*cameras, *LOW_DIMENSIONAL):
        if key not in data:
            raise ValueError(f'{path}: data/{key} is missing, found {sorted(data.array_keys())}')
        arrays[key] = np.asarray(data[key][:ends[-1]])
        _check(path, key, arrays[key], int(ends[-1]))
    return ReplayBuffer(arrays, ends, dict(root.attrs))


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

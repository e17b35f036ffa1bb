"""The pictures of a replay buffer on disk, an episode at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr

from diffusion_policy_ros.data import pictures
from diffusion_policy_ros.data.replay_buffer import PICTURE_ENDS
from diffusion_policy_ros.data.stored_arrays import naming, read_array, stored_array


class StoredPictures:
    """
    One camera's pictures, for data that memory does not hold.

    Args:
        path: folder of the data set.
        camera: whose pictures are read.
        n_rows: rows of the data set.

    Attributes:
        size: height and width.

    Raises:
        ValueError: in one line, as `load_replay_buffer`'s: they are missing, too few, or broken.
    """

    def __init__(self, path: Path, camera: str, n_rows: int) -> None:
        root = zarr.open_group(str(path), mode='r')
        self._name, self._ends, length = f'{path}: data/{camera}', None, n_rows
        with naming(str(path)):
            if camera + PICTURE_ENDS in root['meta']:
                ends = read_array(path, root, f'meta/{camera}{PICTURE_ENDS}', np.integer)
                self._ends, self._shown = pictures.shown_pictures(ends)
                length = int(ends.max(initial=0))
            self._stored = stored_array(path, root, f'data/{camera}', np.uint8, length)
        rows = self._stored.shape[0] if self._ends is None else len(self._shown)
        if rows != n_rows:
            raise ValueError(f'{self._name}: it has {rows} rows, episode_ends say {n_rows}')
        shape = (self._stored if self._ends is None else self.read(np.array([0]))).shape[1:]
        if len(shape) != 3 or shape[2] != 3:
            raise ValueError(f'{self._name}: it is {self._stored.dtype} {self._stored.shape}, '
                             'expected uint8 (N, H, W, 3)')
        self.size = (int(shape[0]), int(shape[1]))

    def read(self, rows: np.ndarray) -> np.ndarray:
        """
        Return what some rows of an episode show, (N, H, W, 3) uint8 RGB.

        Args:
            rows: increasing, from the episode's first on.

        Raises:
            ValueError: a picture is broken, of another size, or missing.
        """
        if self._ends is None:
            return np.asarray(self._stored[rows[0]:rows[-1] + 1])[rows - rows[0]]
        shown = self._shown[rows]
        if shown[0] < 0 or rows[0] and shown[0] == self._shown[rows[0] - 1]:
            raise ValueError(f'{self._name}: row {rows[0]} begins an episode and has no picture')
        wanted, place = np.unique(shown, return_inverse=True)
        ends = self._ends[wanted]
        starts = np.where(wanted > 0, self._ends[wanted - 1], 0)
        blob = np.asarray(self._stored[starts[0]:ends[-1]])
        try:
            if len(blob) < ends[-1] - starts[0]:
                raise ValueError(f'it has {self._stored.shape[0]} bytes, its pictures end at '
                                 f'{ends[-1]}')
            parts = [blob[start - starts[0]:end - starts[0]] for start, end in zip(starts, ends)]
            lengths = np.cumsum(ends - starts)
            shape = pictures.picture_shape(parts[0], lengths[:1])
            out = np.empty((len(wanted), *shape), np.uint8)
            pictures.decode(np.concatenate(parts), lengths, out)
        except ValueError as error:
            raise ValueError(f'{self._name}: {error}') from None
        return out[place]

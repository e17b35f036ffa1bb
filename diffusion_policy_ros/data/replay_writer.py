"""Write demonstrations into a replay buffer on disk, an episode at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
import shutil
from typing import Any

from numcodecs import Blosc
import numpy as np
import zarr

from diffusion_policy_ros.data import pictures
from diffusion_policy_ros.data.only_writer import only_writer
from diffusion_policy_ros.data.replay_buffer import (
    check_ends, EPISODE_ENDS, LOW_DIMENSIONAL, PICTURE_ENDS, ROTATION, STAMPED,
)
from diffusion_policy_ros.data.stored_arrays import naming, stored_array

IS_ZARR_3 = int(zarr.__version__.partition('.')[0]) > 2  # Python 3.10 has none
FORMAT = {'zarr_format': 2} if IS_ZARR_3 else {}
ROWS_PER_CHUNK = 4096
BYTES_PER_CHUNK = 1 << 22


class ReplayWriter:
    """
    A zarr folder (format 2) that `load_replay_buffer` reads.

    data/<camera>         (N,) uint8 JPEG (quality 95, 4:4:4) or PNG bytes, pictures end to end
    data/ee_pose          (T, 7) float64     data/gripper         (T, 1) float64
    data/target_position  (T, 3) float64     data/target_gripper  (T, 1) float64
    meta/episode_ends     (E,) int64         meta/episode_seeds   (E,) int64
    meta/<camera>_ends    (T,) int64, where each row's picture ends in data/<camera>
    where it is known     data/target_quaternion (T, 4) float64
    of recordings also    data/stamp_ns (T,) int64, data/is_observation, data/is_teleop (T,) bool

    An episode counts once its end is written, last: what a kill left of another is cut off when
    the folder is opened again. Until `close` no other process can open it to write.

    Args:
        path: folder; made where it is missing or has no episode of other settings, gone on with
            where it holds the same.
        cameras: whose pictures are kept.
        settings: what the data depend on, plain values; another value than the folder's is
            refused.
        facts: more attributes, written once.
        image_format: 'jpeg' or 'png'.
        stamped: keep the arrays of recordings, too.
        rotation: keep how the targets turn the hand, too.

    Raises:
        ValueError: the folder holds something else, was written with other settings, is being
            written, cannot be, or a chunk of it is lost.
    """

    def __init__(self, path: Path, cameras: Sequence[str], settings: Mapping[str, Any],
                 facts: Mapping[str, Any], image_format: str = 'jpeg',
                 stamped: bool = False, rotation: bool = False) -> None:
        self._path, self._cameras = path, tuple(cameras)
        self._names = (*LOW_DIMENSIONAL, *(ROTATION if rotation else ()),
                       *(STAMPED if stamped else ()))
        settings = {**settings, 'image_format': image_format}
        with ExitStack() as held:
            held.enter_context(only_writer(path))
            if not (path.exists() and any(path.iterdir()) and self._open(settings)):
                self._create({**settings, **facts})
            self._go_on()
            self._held = held.pop_all()

    def __enter__(self) -> ReplayWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes write the data set."""
        self._held.close()

    @property
    def episodes(self) -> int:
        """Complete episodes."""
        return len(self._ends)

    @property
    def steps(self) -> int:
        """Steps of all complete episodes."""
        return self._ends[-1] if self._ends else 0

    @property
    def attributes(self) -> dict[str, Any]:
        """All that is said of the data set."""
        return dict(self._group.attrs)

    def append(self, arrays: Mapping[str, np.ndarray],
               encoded: Mapping[str, tuple[np.ndarray, np.ndarray]], seed: int,
               **attributes: Any) -> None:
        """
        Write one episode.

        Args:
            arrays: each of the arrays above, (T, ...).
            encoded: camera to its pictures, from `pictures.encode`.
            seed: that the episode began from, or another number of its own.
            attributes: of the whole data set, as they are with this episode.
        """
        data, meta = self._group['data'], self._group['meta']
        for camera in self._cameras:
            blob, ends = encoded[camera]
            _extend(meta[camera + PICTURE_ENDS], data[camera].shape[0] + ends)
            _extend(data[camera], blob)
        for name in self._names:
            _extend(data[name], arrays[name])
        self._group.attrs.update(attributes)
        end = self.steps + len(arrays['ee_pose'])
        _extend(meta['episode_seeds'], np.array([seed]))
        _extend(meta['episode_ends'], np.array([end]))
        self.seeds.append(seed)
        self._ends.append(end)

    def describe(self, **attributes: Any) -> None:
        """Say something else of the whole data set."""
        self._group.attrs.update(attributes)

    def holds(self, episode: int, arrays: Mapping[str, np.ndarray]) -> bool:
        """Return whether an episode has just these rows of some arrays."""
        rows = slice(self._ends[episode - 1] if episode else 0, self._ends[episode])
        return all(np.array_equal(self._group['data'][name][rows], values)
                   for name, values in arrays.items())

    def _create(self, attributes: Mapping[str, Any]) -> None:
        new = self._path.with_name(f'.{self._path.name}.new')  # a kill leaves no half of it
        self._group = zarr.open_group(new, mode='w', **FORMAT)
        for name in self._names:
            if name in STAMPED:
                self._add(f'data/{name}', (), np.dtype(STAMPED[name]).str)
            else:
                self._add(f'data/{name}', ((LOW_DIMENSIONAL | ROTATION)[name],), 'f8')
        for camera in self._cameras:
            self._add(f'data/{camera}', (), 'u1', BYTES_PER_CHUNK, compressed=False)
            self._add(f'meta/{camera}{PICTURE_ENDS}', (), 'i8')
        self._add('meta/episode_ends', (), 'i8')
        self._add('meta/episode_seeds', (), 'i8')
        self._group.attrs.update({**attributes, 'jpeg_quality': pictures.QUALITY})
        if self._path.exists():
            shutil.rmtree(self._path)
        new.replace(self._path)
        self._group = zarr.open_group(self._path, mode='r+', **FORMAT)

    def _add(self, name: str, shape: tuple[int, ...], dtype: str, chunk: int = ROWS_PER_CHUNK,
             compressed: bool = True) -> None:
        codec = Blosc('zstd', clevel=3, shuffle=Blosc.NOSHUFFLE) if compressed else None
        create, key = ((self._group.create_array, 'compressors') if IS_ZARR_3 else
                       (self._group.create_dataset, 'compressor'))
        create(name, shape=(0, *shape), chunks=(chunk, *shape), dtype=dtype, fill_value=None,
               **{key: codec})

    def _open(self, settings: Mapping[str, Any]) -> bool:
        """Open the folder; return False where it has other settings and no episode."""
        try:
            self._group = zarr.open_group(self._path, mode='r+', **FORMAT)
        except (FileNotFoundError, ValueError):
            raise ValueError(f'{self._path}: found something else than a zarr group, expected '
                             'no such folder or an unfinished data set') from None
        for key, value in settings.items():
            found = self._group.attrs.get(key)
            if found != value:
                if EPISODE_ENDS in self._group and not self._group[EPISODE_ENDS].shape[0]:
                    return False
                raise ValueError(f'{self._path}: was made with {key} {found!r}, now '
                                 f'{value!r}: expected the same settings or another folder')
        return True

    def _go_on(self) -> None:
        """Find the complete episodes, and cut off what is left of another."""
        meta = self._group['meta']
        ends, seeds = meta['episode_ends'][:].tolist(), meta['episode_seeds'][:].tolist()
        if ends and ends[-1] <= (ends[-2] if len(ends) > 1 else 0):
            ends.pop()  # the array had grown when a kill came, its value was not written
        self._ends, self.seeds = ends[:len(seeds)], seeds[:len(ends)]
        with naming(str(self._path)):
            self._check()
        self._cut()

    def _check(self) -> None:
        """Raise where something is lost: zeros in its place would have the rest cut off."""
        with naming(EPISODE_ENDS):
            check_ends(np.asarray(self._ends, np.int64))
        whole = partial(stored_array, self._path, self._group)
        whole('meta/episode_seeds', np.integer, self.episodes)
        for name in self._names:
            whole(f'data/{name}', np.generic, self.steps)
        for camera in self._cameras:
            ends = whole(f'meta/{camera}{PICTURE_ENDS}', np.integer, self.steps)
            whole(f'data/{camera}', np.uint8, int(ends[self.steps - 1]) if self.steps else 0)

    def _cut(self) -> None:
        data, meta = self._group['data'], self._group['meta']
        for camera in self._cameras:
            ends = meta[camera + PICTURE_ENDS]
            _shorten(ends, self.steps)
            _shorten(data[camera], int(ends[-1]) if self.steps else 0)
        for name in self._names:
            _shorten(data[name], self.steps)
        for name in ('episode_ends', 'episode_seeds'):
            _shorten(meta[name], self.episodes)


def _extend(array: zarr.Array, values: np.ndarray) -> None:
    start = array.shape[0]
    array.resize((start + len(values), *array.shape[1:]))
    if IS_ZARR_3:  # zeros, too, as zarr 2 does: then a chunk without a file is one that was lost
        array = array.with_config({'write_empty_chunks': True})
    array[start:] = values


def _shorten(array: zarr.Array, length: int) -> None:
    if array.shape[0] > length:
        array.resize((length, *array.shape[1:]))

"""Read a LeRobotDataset v3.0, anybody's, without the package lerobot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from diffusion_policy_ros.control.images import decode_image
from diffusion_policy_ros.data import lerobot_format as form
from diffusion_policy_ros.data.lerobot_video import VideoReader

MOST_JITTER = 0.1
"""Of a step, that a row's timestamp may be off."""


class LeRobotReader:
    """
    A data set's description, and its episodes one after the other.

    Args:
        folder: of the data set.

    Attributes:
        fps: rows a second.
        features: as info.json describes them.
        episodes: of each, the row of meta/episodes.

    Raises:
        ValueError: 'file: found, expected'.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise ValueError(f'{folder}: no such folder')
        if not (folder / form.INFO).is_file():
            raise ValueError(f'{folder}: found no {form.INFO}, expected a LeRobotDataset')
        self._info = _read_json(folder / form.INFO)
        version = self._info.get('codebase_version')
        if not str(version).startswith('v3.'):
            raise ValueError(f'{folder / form.INFO}: codebase_version is {version!r}, expected '
                             f"{form.VERSION!r}; lerobot's convert_dataset_v21_to_v30 converts")
        self.fps, self.features = (self._fact(name, kind)
                                   for name, kind in (('fps', int), ('features', dict)))
        if self.fps < 1:
            raise ValueError(f'{folder / form.INFO}: fps is {self.fps}, expected at least 1')
        self.episodes = self._read_episodes()
        self._tables: dict[tuple[str, ...], tuple[Path, pa.Table]] = {}
        self._videos: dict[str, VideoReader] = {}

    @property
    def tasks(self) -> list[str]:
        """What is done in the episodes, each task once."""
        return list(dict.fromkeys(task for episode in self.episodes
                                  for task in episode.get('tasks') or ()))

    @property
    def origin(self) -> dict[str, Any]:
        """What was kept of the replay buffer that it was made of, if of any."""
        path = self.folder / form.ORIGIN
        return _read_json(path) if path.is_file() else {}

    def camera_keys(self) -> list[str]:
        """Return the features that are pictures."""
        return [key for key, feature in self.features.items()
                if feature.get('dtype') in form.IMAGE_KINDS]

    def dim(self, key: str) -> int:
        """
        Return the number of values that a feature has in a row.

        Raises:
            ValueError: it is missing, or no list of values.
        """
        shape = self.feature(key).get('shape')
        if not isinstance(shape, list) or len(shape) != 1 or key in self.camera_keys():
            raise ValueError(f'{self.folder / form.INFO}: {key} has shape {shape}, expected one '
                             'number of dimensions')
        return shape[0]

    def names(self, key: str) -> list[str]:
        """Return the names of a feature's dimensions, as far as it has them."""
        names = self.feature(key).get('names') or []
        if isinstance(names, dict):
            names = [name for part in names.values() if isinstance(part, list) for name in part]
        return [str(name) for name in names]

    def feature(self, key: str) -> dict[str, Any]:
        """
        Return what info.json says of a feature.

        Raises:
            ValueError: it is missing.
        """
        if key not in self.features:
            raise ValueError(f'{self.folder / form.INFO}: the feature {key} is missing, found '
                             f'{[name for name in self.features if name not in form.COLUMNS]}')
        return self.features[key]

    def values(self, number: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """
        Return (N, D) float64 of an episode, of each key.

        Raises:
            ValueError: 'file: found, expected'.
        """
        path, rows = self._rows(number, tuple(keys))
        found = {}
        for key in keys:
            column = rows[key].combine_chunks()
            flat = column.flatten() if pa.types.is_nested(column.type) else column
            if len(flat) != len(rows) * self.dim(key) or flat.null_count or column.null_count:
                raise ValueError(f'{path}: {key} of episode {number} has {len(flat)} values in '
                                 f'{len(rows)} rows, expected {self.dim(key)} a row as in '
                                 f'{form.INFO}')
            found[key] = flat.to_numpy().astype(np.float64).reshape(len(rows), -1)
        return found

    def frames(self, number: int, key: str) -> Iterator[np.ndarray]:
        """
        Yield an episode's pictures, (H, W, 3) uint8 RGB.

        Raises:
            ValueError: 'file: found, expected': missing, too few, or of another size.
        """
        kind, expected = self.feature(key)['dtype'], self.picture_size(key)
        source, frames = (self._video if kind == 'video' else self._stored)(number, key)
        for frame in frames:
            if frame.shape[:2] != expected:
                raise ValueError(f'{source}: pictures of {key} are {frame.shape[0]}x'
                                 f'{frame.shape[1]}, expected {expected[0]}x{expected[1]} as in '
                                 f'{form.INFO}')
            yield frame

    def picture_size(self, key: str) -> tuple[int, int]:
        """
        Return height and width of a camera's pictures.

        Raises:
            ValueError: they are not of three colours.
        """
        feature = self.feature(key)
        shape, names = feature.get('shape'), feature.get('names')
        if not isinstance(shape, list) or len(shape) != 3:
            raise ValueError(f'{self.folder / form.INFO}: {key} has shape {shape}, expected '
                             '[height, width, 3]')
        if names and names[0] in form.CHANNEL_NAMES:
            shape = [*shape[1:], shape[0]]
        if shape[2] != 3:
            raise ValueError(f'{self.folder / form.INFO}: {key} has {shape[2]} channels, expected '
                             '3; --cameras takes others')
        return shape[0], shape[1]

    def close(self) -> None:
        """Stop reading videos."""
        for video in self._videos.values():
            video.close()
        self._videos = {}

    def _fact(self, name: str, kind: type) -> Any:
        value = self._info.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f'{self.folder / form.INFO}: {name} is {value!r}, expected '
                             f'{"a whole number" if kind is int else "an object"}')
        return value

    def _read_episodes(self) -> list[dict[str, Any]]:
        paths = sorted((self.folder / 'meta/episodes').glob('*/*.parquet'))
        found: list[dict[str, Any]] = []
        for path in paths:
            names = [name for name in _parquet(parquet.read_schema, path).names
                     if not name.startswith('stats/')]
            found += _parquet(parquet.read_table, path, columns=names).to_pylist()
        where, expected = self.folder / 'meta/episodes', self._info.get('total_episodes')
        if not found or len(found) != (expected or len(found)):
            raise ValueError(f'{where}: found {len(found)} episodes, expected '
                             f'{expected or "some"} as in {form.INFO}')
        needed = {'episode_index', 'length', 'data/chunk_index', 'data/file_index'}
        if needed - set(found[0]):
            raise ValueError(f'{where}: the column {sorted(needed - set(found[0]))[0]} is missing')
        return sorted(found, key=lambda episode: episode['episode_index'])

    def _path(self, number: int, prefix: str, pattern: str, default: str, **names: str) -> Path:
        episode = self.episodes[number]
        place = {name: episode.get(f'{prefix}{name}') for name in ('chunk_index', 'file_index')}
        if None in place.values():
            raise ValueError(f'{self.folder / "meta/episodes"}: episode {number} has no '
                             f'{prefix}chunk_index and {prefix}file_index')
        try:
            return self.folder / (self._info.get(pattern) or default).format(**place, **names)
        except (KeyError, IndexError) as error:
            raise ValueError(f'{self.folder / form.INFO}: {pattern} has {error} in it, expected '
                             f'{default!r} or the like') from None

    def _rows(self, number: int, keys: tuple[str, ...]) -> tuple[Path, pa.Table]:
        """Return an episode's rows of some columns, and the file that they are in."""
        episode = self.episodes[number]
        path = self._path(number, 'data/', 'data_path', form.DATA_PATH)
        if keys not in self._tables or self._tables[keys][0] != path:
            if not path.is_file():
                raise ValueError(f'{path}: the file is missing')
            missing = [key for key in (*keys, 'episode_index', 'timestamp')
                       if key not in _parquet(parquet.read_schema, path).names]
            if missing:
                raise ValueError(f'{path}: the column {missing[0]} is missing')
            columns = [*keys, 'episode_index', 'timestamp']
            self._tables[keys] = path, _parquet(parquet.read_table, path, columns=columns)
        table = self._tables[keys][1]
        rows = np.flatnonzero(table['episode_index'].to_numpy() == episode['episode_index'])
        if len(rows) != episode['length'] or not len(rows):
            raise ValueError(f'{path}: episode {number} has {len(rows)} rows, expected '
                             f"{episode['length']} as in meta/episodes")
        table = table.slice(rows[0], len(rows))
        off = np.abs(table['timestamp'].to_numpy() * self.fps - np.arange(len(rows)))
        if rows[-1] - rows[0] + 1 != len(rows) or off.max() > MOST_JITTER:
            raise ValueError(f'{path}: episode {number} has rows out of time, expected timestamp '
                             f'i / {self.fps} in its row i')
        return path, table

    def _stored(self, number: int, key: str) -> tuple[Path, Iterator[np.ndarray]]:
        path, rows = self._rows(number, (key,))

        def frames() -> Iterator[np.ndarray]:
            for row, stored in enumerate(rows[key].to_pylist()):
                data = stored.get('bytes') if isinstance(stored, dict) else None
                try:
                    yield decode_image(data or b'')[..., ::-1]
                except ValueError as error:
                    raise ValueError(f'{path}: {key} of episode {number}, row {row}: '
                                     f'{error}') from None
        return path, frames()

    def _video(self, number: int, key: str) -> tuple[Path, Iterator[np.ndarray]]:
        path = self._path(number, f'videos/{key}/', 'video_path', form.VIDEO_PATH, video_key=key)
        episode = self.episodes[number]
        start_s = episode.get(f'videos/{key}/from_timestamp')
        if start_s is None:
            raise ValueError(f'{self.folder / "meta/episodes"}: episode {number} has no '
                             f'videos/{key}/from_timestamp')
        first = round(start_s * self.fps)
        video = self._videos.get(key)
        if video is None or video.path != path or video.position > first:
            if video is not None:
                video.close()
            video = self._videos[key] = VideoReader(path)
        return path, video.read(first, episode['length'])


def _parquet(read: Any, path: Path, **arguments: Any) -> Any:
    try:
        return read(path, **arguments)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f'{path}: found no table that can be read '
                         f'({str(error).splitlines()[0]}), expected Parquet') from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ValueError(f'{path}: found no JSON ({error})') from None
    if not isinstance(found, dict):
        raise ValueError(f'{path}: found {type(found).__name__}, expected an object')
    return found

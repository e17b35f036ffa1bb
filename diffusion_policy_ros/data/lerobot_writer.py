"""Write a LeRobotDataset v3.0, an episode at a time, without the package lerobot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from diffusion_policy_ros.data import lerobot_format as form
from diffusion_policy_ros.data.lerobot_video import VideoWriter
from diffusion_policy_ros.data.pictures import encode_picture

FRAMES_FOR_STATS = 20
"""Of each episode and camera."""
MOST_VIDEO_S = 1000
"""LeRobot looks a frame up by a float32 time, 0.1 ms sharp: beyond 1024 s that is too coarse."""


class LeRobotWriter:
    """
    A folder that is a data set once `close` has written what describes it.

    Args:
        folder: to make.
        fps: rows a second.
        sizes: camera to height and width of its pictures.
        task: what is done in the episodes, in words.
        images: 'video', or 'image' for PNG in the tables, which loses nothing.
        robot_type: of info.json.
        rotation: actions end with `lerobot_format.ROTATION`.
        data_file_mb, video_file_mb: sizes from which on the next episode goes into a new file.

    Raises:
        ValueError: a camera's pictures cannot be a video.
    """

    def __init__(self, folder: Path, fps: int, sizes: Mapping[str, tuple[int, int]], task: str,
                 images: str = 'video', robot_type: str | None = None, rotation: bool = False,
                 data_file_mb: float = form.DATA_FILE_MB,
                 video_file_mb: float = form.VIDEO_FILE_MB) -> None:
        for camera, (height, width) in sizes.items():
            if images == 'video' and (height % 2 or width % 2):
                raise ValueError(f'camera {camera}: its pictures are {height}x{width}, expected '
                                 'even sizes for a video; --images png takes any')
        self._folder, self._fps, self._task, self._images = folder, fps, task, images
        self._robot_type = robot_type
        self._features = form.features(sizes, images, fps, rotation)
        self._episodes: list[dict[str, Any]] = []
        self._values: dict[str, list[np.ndarray]] = {}
        self._shades = {form.IMAGES + camera: np.zeros((3, form.SHADES), int) for camera in sizes}
        self._sampled = 0
        self._table = _TableFile(folder, self._schema(), data_file_mb)
        self._videos = {form.IMAGES + camera: _VideoFile(folder, form.IMAGES + camera, fps, size,
                                                         video_file_mb)
                        for camera, size in sizes.items()} if images == 'video' else {}

    @property
    def rows(self) -> int:
        """Rows of all episodes."""
        return self._episodes[-1]['dataset_to_index'] if self._episodes else 0

    def append(self, values: Mapping[str, np.ndarray],
               pictures: Mapping[str, np.ndarray]) -> None:
        """
        Write one episode.

        Args:
            values: (N, D) each of `lerobot_format.VALUES`.
            pictures: camera to (N, H, W, 3) uint8 RGB.

        Raises:
            OSError: it cannot be written.
        """
        length, number, start = len(values[form.STATE]), len(self._episodes), self.rows
        frame = np.arange(length)
        columns = {**values, 'timestamp': (frame / self._fps).astype(np.float32),
                   'frame_index': frame, 'episode_index': np.full(length, number),
                   'index': start + frame, 'task_index': np.zeros(length, np.int64)}
        about: dict[str, Any] = {
            'episode_index': number, 'tasks': [self._task], 'length': length,
            'dataset_from_index': start, 'dataset_to_index': start + length}
        stats = {key: form.value_stats(column) for key, column in columns.items()}
        for key, column in columns.items():
            self._values.setdefault(key, []).append(column)
        stats |= self._picture_stats(pictures)
        for camera, frames in pictures.items():
            key = form.IMAGES + camera
            if self._images == 'video':
                about |= self._videos[key].append(frames)
            else:
                columns[key] = [{'bytes': encode_picture(one, 'png').tobytes(), 'path': None}
                                for one in frames]
        about |= self._table.append(columns)
        about |= {f'stats/{key}/{name}': value for key, found in stats.items()
                  for name, value in found.items()}
        self._episodes.append({**about, 'meta/episodes/chunk_index': 0,
                               'meta/episodes/file_index': 0})

    def close(self, origin: Mapping[str, Any]) -> None:
        """
        Finish all files.

        Args:
            origin: plain values that LeRobot has no place for, to be kept with the data.

        Raises:
            OSError: they cannot be written.
        """
        self._table.close()
        for video in self._videos.values():
            video.close()
        folder, total = self._folder, len(self._episodes)
        episodes = folder / form.EPISODES_PATH.format(chunk_index=0, file_index=0)
        episodes.parent.mkdir(parents=True)
        parquet.write_table(pa.Table.from_pylist(self._episodes), episodes)
        parquet.write_table(_tasks([self._task]), folder / form.TASKS)
        stats = {key: form.value_stats(np.concatenate(parts))
                 for key, parts in self._values.items()}
        stats |= {key: form.picture_stats(shades, self._sampled)
                  for key, shades in self._shades.items()}
        _write_json(folder / form.STATS, stats)
        _write_json(folder / form.ORIGIN, origin)
        _write_json(folder / form.INFO, {
            'codebase_version': form.VERSION, 'robot_type': self._robot_type,
            'total_episodes': total, 'total_frames': self.rows, 'total_tasks': 1,
            'chunks_size': form.FILES_PER_CHUNK, 'data_files_size_in_mb': form.DATA_FILE_MB,
            'video_files_size_in_mb': form.VIDEO_FILE_MB, 'fps': self._fps,
            'splits': {'train': f'0:{total}'}, 'data_path': form.DATA_PATH,
            'video_path': form.VIDEO_PATH if self._videos else None,
            'features': self._features})

    def abort(self) -> None:
        """Close what is open; the folder is no data set."""
        with suppress(OSError):  # what has led here, for a second time
            self._table.close()
        for video in self._videos.values():
            video.abort()

    def _schema(self) -> pa.Schema:
        fields = []
        for key, feature in self._features.items():
            if feature['dtype'] == 'image':
                fields.append((key, pa.struct([('bytes', pa.binary()), ('path', pa.string())])))
            elif feature['dtype'] != 'video':
                kind, dim = pa.type_for_alias(feature['dtype']), feature['shape'][0]
                fields.append((key, kind if dim == 1 else pa.list_(kind, dim)))
        return pa.schema(fields)

    def _picture_stats(self, pictures: Mapping[str, np.ndarray]) -> dict[str, Any]:
        stats = {}
        for camera, frames in pictures.items():
            n_frames = min(FRAMES_FOR_STATS, len(frames))
            sample = np.linspace(0, len(frames) - 1, n_frames).round().astype(int)
            shades = form.histogram(frames[sample])
            self._shades[form.IMAGES + camera] += shades
            stats[form.IMAGES + camera] = form.picture_stats(shades, n_frames)
        self._sampled += n_frames if pictures else 0
        return stats


class _Files:
    """Numbers the files of one kind."""

    def __init__(self, folder: Path, pattern: str, file_mb: float, **names: str) -> None:
        self._folder, self._pattern, self._names = folder, pattern, names
        self._file_bytes, self._number = file_mb * (1 << 20), -1

    def next_path(self) -> Path:
        """Return the path of a new file, whose folder is there."""
        self._number += 1
        path = self._folder / self._pattern.format(**self.place(''), **self._names)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def place(self, prefix: str) -> dict[str, int]:
        """Return where the present file is."""
        chunk, file = divmod(self._number, form.FILES_PER_CHUNK)
        return {f'{prefix}chunk_index': chunk, f'{prefix}file_index': file}

    def is_full(self, path: Path) -> bool:
        """Return whether a file has its size."""
        return path.exists() and path.stat().st_size >= self._file_bytes


class _TableFile:
    """The rows, one row group an episode, in files of limited size."""

    def __init__(self, folder: Path, schema: pa.Schema, file_mb: float) -> None:
        self._files, self._schema = _Files(folder, form.DATA_PATH, file_mb), schema
        self._path, self._writer = None, None

    def append(self, columns: Mapping[str, Any]) -> dict[str, int]:
        """Write an episode's rows; return where."""
        if self._writer is not None and self._files.is_full(self._path):
            self.close()
        if self._writer is None:
            self._path = self._files.next_path()
            self._writer = parquet.ParquetWriter(self._path, self._schema, compression='snappy')
        table = pa.Table.from_arrays(
            [_array(columns[field.name], field.type) for field in self._schema],
            schema=self._schema)
        try:
            self._writer.write_table(table)
        except OSError as error:
            raise OSError(f'{self._path}: {str(error).splitlines()[0]}') from None
        return self._files.place('data/')

    def close(self) -> None:
        """Write the present file's footer, without which it cannot be read."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            try:
                writer.close()
            except OSError as error:
                raise OSError(f'{self._path}: {str(error).splitlines()[0]}') from None


class _VideoFile:
    """One camera's frames, in files of limited size and length."""

    def __init__(self, folder: Path, key: str, fps: int, size: tuple[int, int],
                 file_mb: float) -> None:
        self._files = _Files(folder, form.VIDEO_PATH, file_mb, video_key=key)
        self._key, self._fps, self._size = key, fps, size
        self._writer: VideoWriter | None = None

    def append(self, frames: np.ndarray) -> dict[str, Any]:
        """Write an episode's frames; return where."""
        if self._writer is not None and (
                self._files.is_full(self._writer.path)
                or self._writer.frames + len(frames) > MOST_VIDEO_S * self._fps):
            self.close()
        if self._writer is None:
            self._writer = VideoWriter(self._files.next_path(), self._fps, self._size)
        start = self._writer.frames
        for frame in frames:
            self._writer.add(frame)
        prefix = f'videos/{self._key}/'
        return {**self._files.place(prefix), f'{prefix}from_timestamp': start / self._fps,
                f'{prefix}to_timestamp': self._writer.frames / self._fps}

    def close(self) -> None:
        """Finish the present file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def abort(self) -> None:
        """Stop writing."""
        if self._writer is not None:
            self._writer.abort()


def _array(column: Any, kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        flat = pa.array(np.ascontiguousarray(column).ravel(), kind.value_type)
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    return pa.array(column, kind)


def _tasks(tasks: Sequence[str]) -> pa.Table:
    """Return what pandas takes for a frame whose index is the tasks."""
    index = '__index_level_0__'
    table = pa.table({'task_index': pa.array(range(len(tasks)), pa.int64()),
                      index: pa.array(tasks, pa.string())})
    about = {'index_columns': [index], 'pandas_version': '2.2.0',
             'column_indexes': [{'name': None, 'field_name': None, 'pandas_type': 'unicode',
                                 'numpy_type': 'object', 'metadata': {'encoding': 'UTF-8'}}],
             'columns': [{'name': name, 'field_name': field, 'pandas_type': kind,
                          'numpy_type': numpy_kind, 'metadata': None}
                         for name, field, kind, numpy_kind in (
                             ('task_index', 'task_index', 'int64', 'int64'),
                             (None, index, 'unicode', 'object'))]}
    return table.replace_schema_metadata({'pandas': json.dumps(about)})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=4, ensure_ascii=False) + '\n')

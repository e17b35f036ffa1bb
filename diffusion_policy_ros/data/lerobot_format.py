"""
The files, names and statistics of a LeRobotDataset v3.0, which is read and written here.

The package lerobot itself is not needed: its format is Parquet, JSON and MP4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffusion_policy_ros.data.attributes import whole_number
from diffusion_policy_ros.data.replay_buffer import ReplayBuffer
from diffusion_policy_ros.datatypes import NS_PER_S

VERSION = 'v3.0'
INFO, STATS, TASKS = 'meta/info.json', 'meta/stats.json', 'meta/tasks.parquet'
ORIGIN = 'meta/replay_buffer.json'
"""What LeRobot has no place for: of our own exports, LeRobot doesn't look at it."""
PLACE = 'chunk-{chunk_index:03d}/file-{file_index:03d}'
DATA_PATH = f'data/{PLACE}.parquet'
EPISODES_PATH = f'meta/episodes/{PLACE}.parquet'
VIDEO_PATH = f'videos/{{video_key}}/{PLACE}.mp4'
FILES_PER_CHUNK = 1000
DATA_FILE_MB, VIDEO_FILE_MB = 100, 200

STATE, ACTION, IMAGES = 'observation.state', 'action', 'observation.images.'
# float64, as recorded. LeRobot makes float32 tensors of every float it loads, whatever was stored.
VALUES = {
    STATE: ('float64', ('ee_x', 'ee_y', 'ee_z', 'ee_qx', 'ee_qy', 'ee_qz', 'ee_qw', 'gripper')),
    ACTION: ('float64', ('target_x', 'target_y', 'target_z', 'target_gripper')),
}
ROTATION = ('target_qx', 'target_qy', 'target_qz', 'target_qw')
"""Names that follow in the action, where the demonstrations say how the hand is turned."""
COLUMNS = {'timestamp': 'float32', 'frame_index': 'int64', 'episode_index': 'int64',
           'index': 'int64', 'task_index': 'int64'}
IMAGE_KINDS = ('image', 'video')
CHANNEL_NAMES = ('channel', 'channels')
QUANTILES = (0.01, 0.10, 0.50, 0.90, 0.99)
SHADES = 256


def step_of(fps: int) -> int:
    """Return the nanoseconds from one row to the next."""
    return round(NS_PER_S / fps)


def fps_of(step_ns: int) -> int:
    """
    Return the rows a second.

    Raises:
        ValueError: they are no whole number, which LeRobot needs.
    """
    fps = round(NS_PER_S / step_ns)
    if fps < 1 or step_of(fps) != step_ns:
        raise ValueError(f'step_ns is {step_ns}, {NS_PER_S / step_ns:.6g} rows a second, expected '
                         'a whole number of them')
    return fps


def grid_rows(buffer: ReplayBuffer, fps: int | None) -> tuple[int, list[np.ndarray]]:
    """
    Return the rows a second and, of each episode, the rows that are taken.

    They are the newest at or before each time of a grid that begins with the episode.

    Args:
        buffer: simulated, with one row a step, or recorded, with rows at any times.
        fps: of the grid; None for a simulation's own.

    Raises:
        ValueError: there is no such grid, or an episode is too short for it.
    """
    recorded = buffer.arrays.get('stamp_ns')
    if recorded is None:
        own = fps_of(whole_number(buffer.attributes, 'step_ns'))
        fps = own if fps is None else fps
        if fps < 1 or own % fps:
            raise ValueError(f'--fps is {fps}, expected a divisor of the {own} rows a second of '
                             'the data')
    elif fps is None or fps < 1:
        raise ValueError(f'--fps is {fps or "missing"}: the data are a recording, whose rows come '
                         'at any times; expected rows a second, like --fps 20')
    chosen = []
    for number, rows in enumerate(buffer.episodes()):
        if recorded is None:
            taken = np.arange(rows.start, rows.stop, own // fps)
        else:
            since_ns = recorded[rows] - recorded[rows.start]
            grid_ns = np.arange(since_ns[-1] * fps // NS_PER_S + 1) * NS_PER_S // fps
            taken = rows.start + np.searchsorted(since_ns, grid_ns, 'right') - 1
        if len(taken) < 2:
            raise ValueError(f'episode {number} has one row at {fps} fps, expected two at least')
        chosen.append(taken)
    return fps, chosen


def value_stats(values: np.ndarray) -> dict[str, Any]:
    """Return the statistics of (N, D) or (N,) values as lists, of each dimension."""
    values = values.reshape(len(values), -1)
    stats = {'min': values.min(axis=0), 'max': values.max(axis=0),
             'mean': values.mean(axis=0, dtype=np.float64),
             'std': values.std(axis=0, dtype=np.float64), 'count': np.array([len(values)]),
             **dict(zip(quantile_names(), np.quantile(values.astype(np.float64), QUANTILES,
                                                      axis=0)))}
    return {name: value.tolist() for name, value in stats.items()}


def histogram(pictures: np.ndarray) -> np.ndarray:
    """Return how often (N, H, W, 3) uint8 have each shade, (3, 256)."""
    return np.stack([np.bincount(pictures[..., channel].ravel(), minlength=SHADES)
                     for channel in range(3)])


def picture_stats(counts: np.ndarray, n_pictures: int) -> dict[str, Any]:
    """Return the statistics of pictures, in [0, 1] and of shape [3, 1, 1], from a histogram."""
    shades = np.arange(SHADES) / (SHADES - 1)
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ shades
    seen = np.cumsum(counts, axis=1)
    stats = {
        'min': shades[(counts > 0).argmax(axis=1)],
        'max': shades[::-1][(counts[:, ::-1] > 0).argmax(axis=1)],
        'mean': mean, 'std': np.sqrt((share * (shades - mean[:, None]) ** 2).sum(axis=1)),
        **{name: shades[(seen >= quantile * seen[:, -1:]).argmax(axis=1)]
           for name, quantile in zip(quantile_names(), QUANTILES)}}
    return {**{name: value.reshape(3, 1, 1).tolist() for name, value in stats.items()},
            'count': [n_pictures]}


def quantile_names() -> list[str]:
    """Return q01 to q99."""
    return [f'q{round(100 * quantile):02d}' for quantile in QUANTILES]


def features(sizes: Mapping[str, Sequence[int]], images: str, fps: int,
             rotation: bool = False) -> dict[str, Any]:
    """
    Return the features of info.json.

    Args:
        sizes: camera to height and width.
        images: 'video' or 'image'.
        fps: rows a second.
        rotation: the action ends with `ROTATION`.
    """
    found: dict[str, Any] = {}
    for camera, (height, width) in sizes.items():
        found[IMAGES + camera] = {'dtype': images, 'shape': [height, width, 3],
                                  'names': ['height', 'width', 'channels']}
        if images == 'video':
            found[IMAGES + camera]['info'] = {
                'video.height': height, 'video.width': width, 'video.codec': 'h264',
                'video.pix_fmt': 'yuv420p', 'video.is_depth_map': False, 'video.fps': fps,
                'video.channels': 3, 'has_audio': False}
    for key, (dtype, names) in VALUES.items():
        names += ROTATION if rotation and key == ACTION else ()
        found[key] = {'dtype': dtype, 'shape': [len(names)], 'names': list(names)}
    for key, dtype in COLUMNS.items():
        found[key] = {'dtype': dtype, 'shape': [1], 'names': None}
    return found

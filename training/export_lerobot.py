#!/usr/bin/env python3
"""
Write a replay buffer as a LeRobotDataset v3.0: `export_lerobot.py DATASET -o FOLDER`.

LeRobot loads it with `LeRobotDataset('any/name', root=FOLDER)` and trains on it with
`lerobot-train --dataset.repo_id=any/name --dataset.root=FOLDER`; it need not be installed here.
Poses, gripper and targets are kept exactly, pictures as `--images` says. Of a recording, whose
rows come at any times, `--fps` says how many a second are taken.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import (
    BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn,
)
from whole_output import write_whole

from diffusion_policy_ros.data.attributes import source_size
from diffusion_policy_ros.data.lerobot_format import ACTION, grid_rows, STATE
from diffusion_policy_ros.data.lerobot_writer import LeRobotWriter
from diffusion_policy_ros.data.replay_buffer import load_replay_buffer, ReplayBuffer
from diffusion_policy_ros.data.stored_arrays import naming
from diffusion_policy_ros.data.stored_pictures import StoredPictures
from diffusion_policy_ros.datatypes import EE_POSE, GRIPPER

KINDS = {'video': 'video', 'png': 'image'}
ORIGIN = ('renderer', 'frame_id', 'seed_start', 'versions')


def camera_names(path: Path, attributes: Mapping[str, Any],
                 wanted: Sequence[str] | None) -> list[str]:
    """
    Return the cameras to export, all of the data set's by default.

    Raises:
        ValueError: one is not in it, or nothing says which there are.
    """
    if wanted is None and 'cameras' not in attributes:
        raise ValueError(f"{path}: the attribute 'cameras' is missing, expected --cameras NAME")
    found = [camera if isinstance(camera, str) else camera['name']
             for camera in attributes.get('cameras', ())]
    missing = [camera for camera in wanted or () if camera not in found]
    if found and missing:
        raise ValueError(f'{path}: camera {missing[0]} is missing, found {found}')
    return list(wanted or found)


def origin(attributes: Mapping[str, Any], sizes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """
    Return what an import gives back to the replay buffer.

    Raises:
        ValueError: the attributes lack the size that a camera's pictures came with.
    """
    said = attributes.get('source_sizes') or 'source_size' in attributes
    return {**{key: attributes[key] for key in ORIGIN if key in attributes},
            'source_sizes': {camera: list(source_size(attributes, camera) if said else size)
                             for camera, size in sizes.items()}}


def episode_values(buffer: ReplayBuffer, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return state and action of some rows."""
    def joined(*keys: str) -> np.ndarray:
        return np.concatenate([buffer.arrays[key][rows] for key in keys], axis=1)

    turned = ('target_quaternion',) if 'target_quaternion' in buffer.arrays else ()
    return {STATE: joined(EE_POSE, GRIPPER),
            ACTION: joined('target_position', 'target_gripper', *turned)}


def export(options: argparse.Namespace, new: Path) -> str:
    """Write the folder `new`; return what is in it, in words."""
    new.mkdir(parents=True)
    buffer = load_replay_buffer(options.dataset, ())
    cameras = camera_names(options.dataset, buffer.attributes, options.cameras)
    task = options.task or str(buffer.attributes.get('task') or '')
    if not task:
        raise ValueError(f"{options.dataset}: the attribute 'task' is empty, expected --task TEXT")
    stored = {camera: StoredPictures(options.dataset, camera, int(buffer.episode_ends[-1]))
              for camera in cameras}
    sizes = {camera: one.size for camera, one in stored.items()}
    with naming(str(options.dataset)):
        fps, chosen = grid_rows(buffer, options.fps)
        about = origin(buffer.attributes, sizes)
    writer = LeRobotWriter(new, fps, sizes, task, KINDS[options.images], options.robot_type,
                           'target_quaternion' in buffer.arrays)
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns) as progress:
            for rows in progress.track(chosen, description='episodes'):
                writer.append(episode_values(buffer, rows),
                              {camera: one.read(rows) for camera, one in stored.items()})
        writer.close(about)
    except BaseException:
        writer.abort()
        raise
    return (f'{len(chosen)} episodes, {writer.rows} rows at {fps} fps, '
            f'cameras {" ".join(cameras) or "none"} as {options.images}, task {task!r}')


def main(arguments: Sequence[str] | None = None) -> None:
    """Export from the command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('dataset', type=Path, help='zarr replay buffer')
    parser.add_argument('-o', '--output', type=Path, required=True, help='folder to make')
    parser.add_argument('--images', choices=KINDS, default='video',
                        help='video: small, with the loss of H.264; png: exact (video)')
    parser.add_argument('--cameras', nargs='+', metavar='NAME', help='of the data set (all)')
    parser.add_argument('--fps', type=int, metavar='N',
                        help="rows a second; needed for recordings, else the simulator's own")
    parser.add_argument('--task', metavar='TEXT',
                        help="what is done, in words (the data set's attribute 'task')")
    parser.add_argument('--robot-type', metavar='TEXT', help='of info.json (none)')
    options = parser.parse_args(arguments)
    write_whole(parser, options.output, lambda new: export(options, new))


if __name__ == '__main__':
    main()

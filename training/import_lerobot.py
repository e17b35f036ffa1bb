#!/usr/bin/env python3
"""
Make a replay buffer of a LeRobotDataset v3.0: `import_lerobot.py FOLDER -o DATASET`.

The defaults fit what export_lerobot.py writes. For other data sets say which dimensions of the
state and of the action are what, by number or by the name that info.json gives them, and which
cameras are taken:

  import_lerobot.py FOLDER -o DATASET --state-position x,y,z --state-quaternion none
      --state-gripper 6 --action-gripper 6 --cameras observation.images.top=arm
      --height 96 --width 96

Values are kept exactly and not converted, but for a gripper whose ends are said to be others
(`--gripper-state`, `--gripper-effort`): metres, the robot's base frame and quaternions x y z w are
the data's own affair. LeRobot need not be installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import (
    BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn,
)
from whole_output import write_whole

from diffusion_policy_ros.control.arm import CLOSED, OPEN, STATE_SLACK
from diffusion_policy_ros.control.images import camera_image
from diffusion_policy_ros.control.rotation import furthest_from_unit, is_unit
from diffusion_policy_ros.data.lerobot_format import ACTION, ROTATION, STATE, step_of
from diffusion_policy_ros.data.lerobot_reader import LeRobotReader
from diffusion_policy_ros.data.pictures import encode, FORMATS
from diffusion_policy_ros.data.replay_buffer import LOW_DIMENSIONAL, QUATERNIONS
from diffusion_policy_ros.data.replay_writer import ReplayWriter
from diffusion_policy_ros.datatypes import EE_POSE, GRIPPER, NS_PER_S

PACKAGES = ('pyarrow', 'imageio-ffmpeg', 'numpy', 'opencv-python-headless', 'zarr')
NONE = 'none'
GRIPPER_ENDS = {GRIPPER: (0.0, 1.0), 'target_gripper': (OPEN, CLOSED)}
"""What a hand says, and is told, when it is open and when it is closed."""


@dataclass(frozen=True)
class Part:
    """
    Where an array of the replay buffer comes from.

    Attributes:
        option: that says so.
        key: of the feature.
        dims: of it; () where the data have no such thing.
        instead: what is written then.
    """

    option: str
    key: str
    dims: tuple[int, ...]
    instead: tuple[float, ...]

    def take(self, values: Mapping[str, np.ndarray], rows: int) -> np.ndarray:
        """Return (N, D) of an episode's values."""
        if not self.dims:
            return np.tile(self.instead, (rows, 1))
        return values[self.key][:, self.dims]


def part(reader: LeRobotReader, options: argparse.Namespace, option: str, key: str, count: int,
         instead: tuple[float, ...] = ()) -> Part:
    """
    Return what an option says.

    Raises:
        ValueError: the feature has no such dimensions, or they are too many or too few.
    """
    text = getattr(options, option)
    name = f'--{option.replace("_", "-")} {text}'
    if text == NONE and instead:
        return Part(option, key, (), instead)
    names, dim = reader.names(key), reader.dim(key)
    dims = [int(word) if word.isdecimal() else names.index(word) if word in names else -1
            for word in text.split(',')]
    if len(dims) != count or not all(0 <= number < dim for number in dims):
        raise ValueError(f'{name}: {key} of {reader.folder} has {dim} dimensions {names}, '
                         f'expected {count} of them' + f", or '{NONE}'" * bool(instead))
    return Part(option, key, tuple(dims), instead)


def parts_of(reader: LeRobotReader, options: argparse.Namespace) -> dict[str, list[Part]]:
    """Return array of the replay buffer to what it is put together of."""
    state, action = options.state, options.action
    turned = options.action_quaternion
    if turned is None and set(ROTATION) <= set(reader.names(action)):
        options.action_quaternion = turned = ','.join(ROTATION)
    return {
        EE_POSE: [part(reader, options, 'state_position', state, 3),
                  part(reader, options, 'state_quaternion', state, 4, (0.0, 0.0, 0.0, 1.0))],
        GRIPPER: [part(reader, options, 'state_gripper', state, 1, (0.0,))],
        'target_position': [part(reader, options, 'action_position', action, 3)],
        'target_gripper': [part(reader, options, 'action_gripper', action, 1, (0.0,))],
        **({} if turned in (None, NONE) else
           {'target_quaternion': [part(reader, options, 'action_quaternion', action, 4)]}),
    }


def cameras_of(reader: LeRobotReader, wanted: Sequence[str] | None) -> dict[str, str]:
    """
    Return camera to the feature of its pictures, all of them by default.

    Raises:
        ValueError: there is no such feature, or two become one camera.
    """
    keys = reader.camera_keys()
    found: dict[str, str] = {}
    for text in keys if wanted is None else wanted:
        word, _, name = text.partition('=')
        key = next((key for key in keys if word in (key, key.rpartition('.')[2])), None)
        if key is None:
            raise ValueError(f'{reader.folder}: no feature {word} has pictures, found {keys}')
        name = name or key.rpartition('.')[2]
        if name in found or name in LOW_DIMENSIONAL or '/' in name:
            raise ValueError(f'--cameras {text}: {name} cannot be the name of this camera, '
                             'expected KEY=NAME with one of its own')
        found[name] = key
    return found


def notes_of(parts: Mapping[str, Sequence[Part]], step_ns: int) -> list[str]:
    """Return what the user must know."""
    notes = [f"--{one.option.replace('_', '-')} {NONE}: {list(one.instead)} is written in every "
             f'row of {name}' for name, found in parts.items() for one in found if not one.dims]
    if NS_PER_S % step_ns:
        notes.append(f'a step is {step_ns} ns: policy.dt_s must be {step_ns / NS_PER_S} or a '
                     'multiple of it')
    return notes


def episode(reader: LeRobotReader, number: int, parts: Mapping[str, Sequence[Part]],
            stride: int, grippers: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
    """
    Return the arrays of an episode, of every `stride`-th row.

    Raises:
        ValueError: they are no numbers, or no unit quaternions, or too few.
    """
    keys = sorted({one.key for found in parts.values() for one in found})
    values = reader.values(number, keys)
    rows = len(values[keys[0]])
    arrays = {name: np.concatenate([one.take(values, rows) for one in found], axis=1)[::stride]
              for name, found in parts.items()}
    where = f'{reader.folder}: episode {number}'
    if len(arrays[EE_POSE]) < 2:
        raise ValueError(f'{where} has one row, expected two at least')
    for name, array in arrays.items():
        bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if len(bad):
            raise ValueError(f'{where}: {name} is not finite in row {bad[0] * stride}')
    for name, ends in grippers.items():
        if all(one.dims for one in parts[name]):
            arrays[name] = rescaled(arrays[name], ends, GRIPPER_ENDS[name], f'{where}: {name}')
    for name, option in ((EE_POSE, 'state'), ('target_quaternion', 'action')):
        turned = arrays[name][:, QUATERNIONS[name]] if name in arrays else None
        if turned is not None and not is_unit(turned):
            row, norm = furthest_from_unit(turned)
            raise ValueError(f'{where}: the quaternion of row {row * stride} has norm {norm:.4g}, '
                             f'expected 1; is --{option}-quaternion right?')
    return arrays


def rescaled(values: np.ndarray, ends: Sequence[float], wanted: Sequence[float],
             where: str) -> np.ndarray:
    """
    Return a gripper's values (N, 1) from the data's ends, open and closed, to ours.

    Raises:
        ValueError: they lie beyond the data's ends, which are then others.
    """
    with np.errstate(divide='ignore', invalid='ignore'):
        closed = (values - ends[0]) / np.float64(ends[1] - ends[0])
    beyond = np.abs(closed[:, 0] - 0.5)
    row = int(beyond.argmax())
    if not beyond[row] <= 0.5 + STATE_SLACK:  # nor where both ends are one
        raise ValueError(f'{where} is {values[row, 0]:g}, expected {ends[0]:g} (open) to '
                         f'{ends[1]:g} (closed); say --gripper-state or --gripper-effort OPEN '
                         'CLOSED')
    if tuple(ends) == tuple(wanted):
        return values
    return wanted[0] + closed * (wanted[1] - wanted[0])


def facts(reader: LeRobotReader, cameras: Mapping[str, str], task: str | None) -> dict[str, Any]:
    """Return the attributes that tell where the data come from."""
    origin = reader.origin
    sizes = {name: list(reader.picture_size(key)) for name, key in cameras.items()}
    sources = origin.get('source_sizes', {})
    return {
        'task': task or '; '.join(reader.tasks), 'renderer': origin.get('renderer', ''),
        'source_sizes': {name: sources.get(name, size) for name, size in sizes.items()},
        **{key: origin[key] for key in ('frame_id', 'seed_start') if key in origin},
        'versions': {**origin.get('versions', {}), **{name: version(name) for name in PACKAGES}}}


def stride_of(reader: LeRobotReader, fps: int | None) -> int:
    """Return how many rows further the next one is that is taken."""
    fps = reader.fps if fps is None else fps
    if fps < 1 or reader.fps % fps:
        raise ValueError(f'--fps is {fps}, expected a divisor of the {reader.fps} rows a second '
                         f'of {reader.folder}')
    return reader.fps // fps


def import_all(options: argparse.Namespace, new: Path) -> str:
    """Write the replay buffer `new`; return what is in it, in words."""
    reader = LeRobotReader(options.folder)
    parts, cameras = parts_of(reader, options), cameras_of(reader, options.cameras)
    stride = stride_of(reader, options.fps)
    step_ns = step_of(reader.fps // stride)
    sizes = {}
    for name, key in cameras.items():
        height, width = reader.picture_size(key)
        sizes[name] = (height if options.height is None else options.height,
                       width if options.width is None else options.width)
    about = facts(reader, cameras, options.task)
    if len(reader.tasks) > 1 and not options.task:
        print(f'note: {len(reader.tasks)} tasks; no row tells which one it is of')
    for note in notes_of(parts, step_ns):
        print(f'note: {note}')
    writer = ReplayWriter(new, tuple(cameras), {'cameras': list(cameras), 'step_ns': step_ns},
                          about, options.images, rotation='target_quaternion' in parts)
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn(), TimeRemainingColumn())
    with writer, closing(reader), Progress(*columns) as progress:
        for number in progress.track(range(len(reader.episodes)), description='episodes'):
            arrays = episode(reader, number, parts, stride, {
                GRIPPER: options.gripper_state, 'target_gripper': options.gripper_effort})
            pictures = {}
            for name, key in cameras.items():
                frames = [camera_image(frame, 'rgb8', *sizes[name])
                          for row, frame in enumerate(reader.frames(number, key))
                          if row % stride == 0]
                pictures[name] = encode(frames, options.images)
            writer.append(arrays, pictures, number)
    return (f'{writer.episodes} episodes, {writer.steps} rows, one each {step_ns} ns, cameras '
            f'{" ".join(cameras) or "none"}, task {about["task"]!r}')


def parser_of() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='of the LeRobotDataset')
    parser.add_argument('-o', '--output', type=Path, required=True, help='zarr folder to make')
    parser.add_argument('--state', default=STATE, metavar='KEY', help=f'feature ({STATE})')
    parser.add_argument('--action', default=ACTION, metavar='KEY', help=f'feature ({ACTION})')
    for option, default, what in (
            ('state-position', '0,1,2', "the hand's position"),
            ('state-quaternion', '3,4,5,6', "the hand's quaternion x y z w; none for no turn"),
            ('state-gripper', '7', "the gripper's state; none for 0"),
            ('action-position', '0,1,2', 'the target position'),
            ('action-gripper', '3', "the gripper's effort; none for 0")):
        parser.add_argument(f'--{option}', default=default, metavar='DIMS',
                            help=f'{what}: dimensions by number or name ({default})')
    parser.add_argument('--action-quaternion', metavar='DIMS',
                        help='the target quaternion x y z w, where the action has one '
                        f"({','.join(ROTATION)}, if the data have these; else none)")
    parser.add_argument('--cameras', nargs='*', metavar='KEY[=NAME]',
                        help='features with pictures, and what the camera is called here (all)')
    for name, key, what in (('state', GRIPPER, 'says'), ('effort', 'target_gripper', 'is told')):
        parser.add_argument(f'--gripper-{name}', nargs=2, type=float, default=GRIPPER_ENDS[key],
                            metavar=('OPEN', 'CLOSED'),
                            help='what the hand {} in the data, open and closed ({:g} {:g})'
                            .format(what, *GRIPPER_ENDS[key]))
    parser.add_argument('--height', type=int, help="that pictures are scaled to (the data's)")
    parser.add_argument('--width', type=int, help="that pictures are scaled to (the data's)")
    parser.add_argument('--images', choices=FORMATS, default='jpeg',
                        help='how pictures are kept; png loses nothing more')
    parser.add_argument('--fps', type=int, metavar='N',
                        help="rows a second that are taken, a divisor of the data's (all)")
    parser.add_argument('--task', metavar='TEXT', help="instead of the data's own")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Import from the command line."""
    parser = parser_of()
    options = parser.parse_args(arguments)
    write_whole(parser, options.output, lambda new: import_all(options, new))


if __name__ == '__main__':
    main()

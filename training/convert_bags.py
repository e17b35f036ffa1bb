#!/usr/bin/env python3
"""
Make a data set of recorded demonstrations: `convert_bags.py BAGS... -o DATASET -c CONFIG`.

CONFIG is the file that will be trained: it says which cameras, sizes and step the policy has. A
bag is one episode; the recorder's and those of `ros2 bag record` will do, MCAP or sqlite3, with
raw or compressed images. A bag that can't be used is named with its reason, the others go on, and
the exit code is 1 in the end. Stopped, the same command goes on where it was. Beside the data set
lies DATASET.html: what is in it, what was left out, and why.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
import os
from pathlib import Path
import sys
from typing import Any

from bag_report import write_report
from rich.progress import (
    BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn,
)
from settings import read_config

from diffusion_policy_ros.control.arm import ArmConfig, load_arm
from diffusion_policy_ros.data.bag_episode import action_source, BagEpisode, make_episode
from diffusion_policy_ros.data.bag_reader import bag_identity, read_bag
from diffusion_policy_ros.data.pictures import FORMATS
from diffusion_policy_ros.data.recording import UNFINISHED
from diffusion_policy_ros.data.replay_writer import ReplayWriter
from diffusion_policy_ros.data.stored_arrays import naming
from diffusion_policy_ros.datatypes import EE_POSE, to_ns
from diffusion_policy_ros.policy.config import PolicyConfig
from diffusion_policy_ros.typed import load_yaml, to_mapping

ROOT = Path(__file__).resolve().parents[1]
OF_ALL = ('task', 'renderer', 'source_sizes', 'frame_id')
"""What is one and the same in a whole data set, and said of it."""
SHOWN_BAGS = 5
PACKAGES = ('rosbags', 'numpy', 'opencv-python-headless', 'zarr')


@dataclass(frozen=True)
class Conversion:
    """
    What one bag becomes.

    Attributes:
        name: of the bag.
        problem: why it was left out; '' for an episode.
        episode: its rows.
        about: facts for the report and the data set: absolute path, identity, task, renderer,
            sizes, frame, what its actions are made of, rates, gaps, and the most by which
            encoding changed a pixel.
    """

    name: str
    problem: str = ''
    episode: BagEpisode | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


def convert(path: Path, name: str, config: PolicyConfig, arm: ArmConfig, topics: Mapping[str, str],
            image_format: str, tolerance_ns: int, keep_failures: bool,
            task: str | None) -> Conversion:
    """Read one bag and align it; what goes wrong is in the result."""
    try:
        if path.name.endswith(UNFINISHED):
            raise ValueError('unfinished: it was neither saved nor discarded')
        bag = read_bag(path, config, arm, topics, image_format, tolerance_ns)
        if bag.custom.get('complete') == 'false':
            raise ValueError('unfinished: its recorder says that it is no whole episode')
        if bag.custom.get('success') == 'false' and not keep_failures:
            raise ValueError('saved as a failure; --keep-failures takes it')
        episode = make_episode(bag, config, tolerance_ns, arm.gripper.type == 'on_off')
    except ValueError as error:
        return Conversion(name, str(error))
    cameras = {camera.name: bag.streams[camera.name] for camera in config.observation.cameras}
    about = {
        'path': str(path), 'identity': list(bag.identity),
        'task': bag.custom.get('task', '') if task is None else task,
        'renderer': bag.custom.get('renderer', ''),
        'source_sizes': {name: list(stream.size) for name, stream in cameras.items()},
        'pixel_error': max((stream.pixel_error for stream in cameras.values()), default=0),
        'frame_id': ' '.join(sorted(bag.streams[EE_POSE].frames)),
        'action_source': action_source(bag, config),
        'streams': {role: stream.stats.summary() for role, stream in bag.streams.items()}}
    return Conversion(name, '', episode, about)


def find_bags(paths: Sequence[Path]) -> list[Path]:
    """
    Return every bag that is named, or lies in a folder that is named, as absolute paths.

    A file of a bag stands for the whole bag, whose metadata and name say whether it may be taken.

    Raises:
        ValueError: there is no such path, or none in it.
    """
    found = []
    for path in paths:
        if not path.exists():
            raise ValueError(f'{path}: no such file or folder')
        folder = path.absolute().parent
        if path.is_file() and (folder.name.endswith(UNFINISHED)
                               or (folder / 'metadata.yaml').exists()):
            inside = [folder]
        elif path.is_file() or (path / 'metadata.yaml').exists() or any(
                file.suffix in ('.mcap', '.db3') for file in path.iterdir()):
            inside = [path]
        else:
            inside = [inner for inner in sorted(path.iterdir()) if inner.is_dir()]
        if not inside:
            raise ValueError(f'{path}: it is empty, expected a bag or a folder of bags')
        found += inside
    return list(dict.fromkeys(path.resolve() for path in found))


def conversions(bags: Mapping[str, Path], work: Any, workers: int) -> Iterator[Conversion]:
    """Yield each bag's conversion in the order given; few are in memory at a time."""
    if workers == 1:
        yield from (work(path, name) for name, path in bags.items())
        return
    waiting = iter(bags.items())
    with ProcessPoolExecutor(workers, mp_context=get_context('spawn')) as pool:
        ahead: list[Future] = []

        def submit() -> None:
            name, path = next(waiting, (None, None))
            if name is not None:
                ahead.append(pool.submit(work, path, name))

        for _ in range(2 * workers):
            submit()
        while ahead:
            result = ahead.pop(0).result()
            submit()
            yield result


class DataSet:
    """The replay buffer, the bags that are in it, and those that were left out."""

    def __init__(self, path: Path, config: PolicyConfig, settings: Mapping[str, Any],
                 image_format: str) -> None:
        cameras = [camera.name for camera in config.observation.cameras]
        self._writer = ReplayWriter(
            path, cameras, settings,
            {'bags': [], 'versions': {name: version(name) for name in PACKAGES}},
            image_format, stamped=True, rotation=True)
        self._bags = self._writer.attributes['bags'][:self._writer.episodes]
        self.problems: dict[str, str] = {}
        self.moved = 0

    def close(self) -> None:
        """Let other processes write the data set."""
        self._writer.close()

    @property
    def bags(self) -> list[dict[str, Any]]:
        """What is known of each bag that is in it."""
        return self._bags

    def add(self, found: Conversion) -> None:
        """Append an episode, or note why not, or that its bag was moved."""
        problem = found.problem or self._differs(found.about)
        same = None if problem else self._same(found)
        if same is not None and not Path(same['path']).exists():
            same['path'] = found.about['path']
            self._writer.describe(bags=self._bags)
            self.moved += 1
            return
        if problem or same is not None:
            self.problems[found.name] = problem or f'the same bag as {same["path"]}'
            return
        about = {**found.about, 'name': found.name, 'notes': list(found.episode.notes)}
        self._bags.append(about)
        self._writer.append(
            found.episode.arrays, found.episode.pictures, len(self._bags) - 1, bags=self._bags,
            **{key: self._bags[0][key] for key in OF_ALL})

    def _same(self, found: Conversion) -> dict[str, Any] | None:
        """Return the bag in it that this one is, at another path."""
        rows = {name: found.episode.arrays[name] for name in ('stamp_ns', EE_POSE)}
        for episode, bag in enumerate(self._bags):
            # Recorded by simulated time, others begin alike, too.
            if bag.get('identity') == found.about['identity'] and self._writer.holds(
                    episode, rows):
                return bag
        return None

    def _differs(self, about: Mapping[str, Any]) -> str:
        """Return in what an episode differs from those before, where it must not."""
        for key in (*OF_ALL, 'action_source'):
            first = next((bag for bag in self._bags if key in bag), None)  # older ones lack a key
            if first is not None and about[key] != first[key]:
                return (f'its {key} is {about[key]!r}, expected {first[key]!r} as in '
                        f'{first["name"]}' + '; --task says one for all' * (key == 'task'))
        return ''


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert from the command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('bags', nargs='+', type=Path, help='bags, or folders of bags')
    parser.add_argument('-o', '--output', type=Path, required=True, help='data set to write')
    parser.add_argument('-c', '--config', type=Path,
                        default=ROOT / 'config/training/cpu_unet.yaml',
                        help='file of config/training/ (cpu_unet.yaml)')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                        dest='overrides', help='override a value, for example policy.dt_s=0.05')
    parser.add_argument('--arm', type=Path, default=ROOT / 'config/arms/metaworld.yaml',
                        help="the arm's YAML (metaworld.yaml)")
    parser.add_argument('--topics', type=Path, metavar='YAML',
                        help='role: topic, where a topic has another name than usual')
    parser.add_argument('--images', choices=FORMATS, default='jpeg',
                        help='how pictures are kept; png loses nothing')
    parser.add_argument('--task', metavar='TEXT',
                        help="instead of the bags' own, which must be one and the same")
    parser.add_argument('--tolerance', type=float, metavar='S',
                        help="longest gap in a stream (1.5 steps, the policy node's)")
    parser.add_argument('--keep-failures', action='store_true',
                        help='take episodes that were saved as failures, too')
    parser.add_argument('--workers', type=int, default=os.cpu_count(),
                        help='bags that are read at the same time')
    options = parser.parse_args(arguments)
    try:
        problems = run(options)
    except (ValueError, OSError) as error:
        parser.exit(2, f'{parser.prog}: {error}\n')
    except BrokenProcessPool:
        parser.exit(1, f'{parser.prog}: a process died (killed, or out of memory?); run the same '
                       'command again to go on\n')
    except KeyboardInterrupt:
        parser.exit(130, f'{parser.prog}: interrupted; run the same command again to go on\n')
    sys.exit(1 if problems else 0)


def run(options: argparse.Namespace) -> Mapping[str, str]:
    """Convert what is not converted yet, report, and return what was left out."""
    config, arm = read_config(options.config, options.overrides).policy, load_arm(options.arm)
    topics = load_yaml(options.topics) if options.topics else {}
    if not isinstance(topics, Mapping):
        raise ValueError(f'{options.topics}: it is {topics!r}, expected lines of role: topic')
    for role, topic in topics.items():
        if not isinstance(role, str) or not isinstance(topic, str) or not topic:
            raise ValueError(f'{options.topics}: {role} is {topic!r}, expected a topic')
    tolerance_ns = to_ns(options.tolerance) if options.tolerance else config.dt_ns * 3 // 2
    paths = find_bags(options.bags)
    common = Path(os.path.commonpath([path.parent for path in paths]))
    bags = {str(path.relative_to(common)): path for path in paths}
    settings = {
        'cameras': [to_mapping(camera) for camera in config.observation.cameras],
        'dt_s': config.dt_s, 'tolerance_ns': tolerance_ns, 'topics': dict(topics),
        'keep_failures': options.keep_failures, 'gripper': to_mapping(arm.gripper)}
    work = partial(convert, config=config, arm=arm, topics=topics, image_format=options.images,
                   tolerance_ns=tolerance_ns, keep_failures=options.keep_failures,
                   task=options.task)
    with closing(DataSet(options.output, config, settings, options.images)) as data:
        add_all(data, bags, work, options.workers)
        if not data.bags:
            raise ValueError('none of the bags can be used')
        report = options.output.with_suffix('.html')
        write_report(report, options.output, config, data.bags, data.problems)
    error = max(bag['pixel_error'] for bag in data.bags)
    print(f'{options.output}: {len(data.bags)} episodes, {len(data.problems)} bags left out, '
          f'pixels changed by {error} of 255 at most; {report}')
    return data.problems


def add_all(data: DataSet, bags: Mapping[str, Path], work: Any, workers: int) -> None:
    """Convert the bags that are not in the data set, and say what is to be known of all."""
    done = {bag['path']: bag for bag in data.bags}  # names depend on what else was named
    left = {name: path for name, path in bags.items() if str(path) not in done}
    for path in bags.values():
        known = done.get(str(path), {}).get('identity')
        with naming(str(path)):
            if known is not None and known != list(bag_identity(path)):
                raise ValueError('another bag of this name is in the data set; expected another '
                                 'name, or another data set')
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(),
               TextColumn('{task.fields[left_out]} left out'), TimeElapsedColumn(),
               TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task('bags', total=len(bags), completed=len(bags) - len(left),
                                left_out=0)
        for found in conversions(left, work, workers):
            data.add(found)
            if found.name in data.problems:
                progress.console.print(f'{bags[found.name]}: {data.problems[found.name]}',
                                       markup=False, highlight=False, soft_wrap=True)
            progress.update(bar, advance=1, left_out=len(data.problems))
    if data.moved:
        print(f'note: {data.moved} of the bags in it were moved')
    gone = sum(not Path(bag['path']).exists() for bag in data.bags)
    if gone:
        print(f'note: {gone} of the bags in it are no longer where they were')
    for note in sorted({note for bag in data.bags for note in bag['notes']}):
        print(f'note: {note} ({_where(note, data.bags)})')


def _where(note: str, bags: Sequence[Mapping[str, Any]]) -> str:
    names = [bag['name'] for bag in bags if note in bag['notes']]
    if len(names) == len(bags):
        return f'in all {len(bags)} bags'
    left = len(names) - SHOWN_BAGS
    return (f'in {len(names)} of {len(bags)} bags: {", ".join(names[:SHOWN_BAGS])}'
            + (f' and {left} more' if left > 0 else ''))


if __name__ == '__main__':
    main()

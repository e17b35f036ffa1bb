#!/usr/bin/env python3
"""
Collect demonstrations of a MetaWorld task into a zarr replay buffer.

The scripted expert names absolute targets in parallel simulations; what is kept is, tick by tick,
the observation and the target that answers it. An episode ends `--ticks-after-success` after the
first success, so that a policy also learns to stay; one that reaches the step limit first is
discarded and counted. Seeds are tried in order and the first successful ones are kept, so the data
depend on the settings alone, not on the number of workers. After an interruption, run the same
command again.

Layout (zarr format 2, as in Diffusion Policy; T steps over all episodes, 80 Hz):

    data/<camera>         (T, H, W, 3) uint8 RGB
    data/ee_pose          (T, 7) float64     data/gripper         (T, 1) float64
    data/target_position  (T, 3) float64     data/target_gripper  (T, 1) float64
    meta/episode_ends     (E,) int64         meta/episode_seeds   (E,) int64
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from numcodecs import Blosc
import numpy as np
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
import zarr

from diffusion_policy_ros.control.images import camera_image
from diffusion_policy_ros.datatypes import EE_POSE, GRIPPER
from diffusion_policy_ros.sim.arm import MetaWorldArm
from diffusion_policy_ros.sim.experts import Expert
from diffusion_policy_ros.sim.rendering import check_camera, check_renderer
from diffusion_policy_ros.sim.tasks import (
    check_collection_seed,
    check_task,
    FIRST_COLLECTION_SEED,
    STEP_NS,
)

FRAMES_PER_CHUNK = 32
Steps = dict[str, list[np.ndarray]]


@dataclass(frozen=True)
class CollectConfig:
    """
    What the data depend on.

    Attributes:
        task: one of MetaWorld's tasks.
        cameras: cameras to keep.
        source_size: pixels a side of the pictures that the simulation draws.
        size: pixels a side that they are scaled to.
        renderer: name of the picture settings.
        seed_start: first seed that is tried.
        ticks_after_success: ticks that an episode goes on after the first success.
    """

    task: str
    cameras: Sequence[str] = ('arm', 'wrist')
    source_size: int = 224
    size: int = 96
    renderer: str = 'plain'
    seed_start: int = FIRST_COLLECTION_SEED
    ticks_after_success: int = 10

    def __post_init__(self) -> None:
        check_task(self.task)
        for camera in self.cameras:
            check_camera(camera)
        check_renderer(self.renderer)
        check_collection_seed(self.seed_start)
        if not 0 < self.size <= self.source_size or self.ticks_after_success < 0:
            raise ValueError(f'size is {self.size}, source_size {self.source_size} and '
                             f'ticks_after_success {self.ticks_after_success}, expected '
                             '0 < size <= source_size and no negative ticks')


class ScaledCameras(gymnasium.ObservationWrapper):
    """Scales every camera's picture, in the process that drew it."""

    def __init__(self, env: gymnasium.Env, cameras: Sequence[str], size: int) -> None:
        super().__init__(env)
        self._cameras, self._size = cameras, size
        self.observation_space = Dict({
            **env.observation_space.spaces,
            **{name: Box(0, 255, (size, size, 3), np.uint8) for name in cameras}})

    def observation(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**observation, **{
            name: camera_image(observation[name], 'rgb8', self._size, self._size)
            for name in self._cameras}}


def make_env(config: CollectConfig) -> gymnasium.Env:
    """Return one simulation that observes what is kept."""
    arm = MetaWorldArm(config.task, config.cameras, config.source_size, config.source_size,
                       config.renderer)
    return ScaledCameras(arm, config.cameras, config.size)


@dataclass
class Episode:
    """One seed's steps, and the ticks left once it has succeeded; None before."""

    seed: int
    steps: Steps = field(default_factory=dict)
    ticks_left: int | None = None

    def append(self, **values: np.ndarray) -> None:
        for name, value in values.items():
            self.steps.setdefault(name, []).append(value)


def run_episodes(config: CollectConfig, workers: int, first_seed: int,
                 on_tick: Callable[[int], None] = lambda frames: None) -> Iterator[Episode]:
    """
    Play seeds from `first_seed` on without end, and yield each episode when it is over.

    They come in the order in which they end; a failed one has `ticks_left` None.

    Args:
        config: what to play.
        workers: simulations in parallel, each in its own process.
        first_seed: seed of the first episode.
        on_tick: is told the number of frames of each tick.
    """
    expert = Expert(config.task)
    envs = AsyncVectorEnv([partial(make_env, config)] * workers, context='spawn',
                          autoreset_mode=AutoresetMode.DISABLED)
    try:
        episodes = [Episode(first_seed + i) for i in range(workers)]
        next_seed = first_seed + workers
        observations, infos = envs.reset(seed=[episode.seed for episode in episodes])
        states = infos['sim_state'].copy()
        while True:
            actions = np.empty((workers, 4))
            for i, episode in enumerate(episodes):
                position, effort = expert.target(states[i])
                actions[i] = *position, effort
                episode.append(target_position=position, target_gripper=np.array([effort]),
                               **{name: values[i] for name, values in observations.items()})
            observations, _, _, truncated, infos = envs.step(actions)
            on_tick(workers)
            states = infos['sim_state'].copy()
            over = np.array([_is_over(*step, config.ticks_after_success) for step
                             in zip(episodes, infos['success'], truncated, strict=True)])
            if over.any():
                for i in np.flatnonzero(over):
                    yield episodes[i]
                    episodes[i] = Episode(next_seed)
                    next_seed += 1
                observations, infos = envs.reset(seed=[episode.seed for episode in episodes],
                                                 options={'reset_mask': over})
                states[over] = infos['sim_state'][over]
    finally:
        envs.close(terminate=True)


def _is_over(episode: Episode, success: bool, truncated: bool, ticks_after_success: int) -> bool:
    if episode.ticks_left is not None:
        episode.ticks_left -= 1
    elif success:
        episode.ticks_left = ticks_after_success
    return truncated or episode.ticks_left == 0


def in_order(episodes: Iterator[Episode], first_seed: int) -> Iterator[Episode]:
    """Yield episodes in the order of their seeds, each as soon as all before it are there."""
    waiting = {}
    for episode in episodes:
        waiting[episode.seed] = episode
        while first_seed in waiting:
            yield waiting.pop(first_seed)
            first_seed += 1


class ReplayBuffer:
    """
    The zarr folder, appended to an episode at a time.

    Args:
        path: folder; made when it is missing, gone on with when it holds the same settings.
        config: settings of the data.

    Raises:
        ValueError: when the folder holds something else, or other settings.
    """

    def __init__(self, path: Path, config: CollectConfig) -> None:
        self._path = path
        self._settings = _settings(config)
        if path.exists() and any(path.iterdir()):
            self._open()
        else:
            self._create(config)
        ends = self._group['meta/episode_ends'][:]
        seeds = self._group['meta/episode_seeds'][:]
        self._ends, self._seeds = ends[:len(seeds)].tolist(), seeds[:len(ends)].tolist()
        self._cut()

    @property
    def episodes(self) -> int:
        """Complete episodes."""
        return len(self._ends)

    @property
    def steps(self) -> int:
        """Steps of all complete episodes."""
        return self._ends[-1] if self._ends else 0

    @property
    def next_seed(self) -> int:
        """The first seed that is still to be tried."""
        return self._seeds[-1] + 1 if self._seeds else self._settings['seed_start']

    @property
    def failed_seeds(self) -> list[int]:
        """Seeds that the expert failed on before the last kept one."""
        return sorted(set(range(self._settings['seed_start'], self.next_seed)) - set(self._seeds))

    def append(self, episode: Episode) -> None:
        """Write one episode; it counts once its end is written, last."""
        start, end = self.steps, self.steps + len(episode.steps[EE_POSE])
        for name, values in episode.steps.items():
            array = self._group['data'][name]
            array.resize((end, *array.shape[1:]))
            array[start:end] = np.stack(values)
        for name, value in (('episode_seeds', episode.seed), ('episode_ends', end)):
            array = self._group['meta'][name]
            array.resize((self.episodes + 1,))
            array[self.episodes] = value
        self._seeds.append(episode.seed)
        self._ends.append(end)
        self._group.attrs['failed_seeds'] = self.failed_seeds
        self._group.attrs['n_failures'] = len(self.failed_seeds)

    def _create(self, config: CollectConfig) -> None:
        self._group = zarr.open_group(self._path, mode='w', zarr_format=2)
        picture = (config.size, config.size, 3)
        self._add('data', EE_POSE, (7,), 'f8')
        self._add('data', GRIPPER, (1,), 'f8')
        self._add('data', 'target_position', (3,), 'f8')
        self._add('data', 'target_gripper', (1,), 'f8')
        for camera in config.cameras:
            self._add('data', camera, picture, 'u1', FRAMES_PER_CHUNK)
        self._add('meta', 'episode_ends', (), 'i8')
        self._add('meta', 'episode_seeds', (), 'i8')
        packages = ('metaworld', 'mujoco', 'gymnasium', 'numpy', 'opencv-python-headless', 'zarr')
        self._group.attrs.update({**self._settings, 'step_ns': STEP_NS, 'failed_seeds': [],
                                  'n_failures': 0,
                                  'versions': {name: version(name) for name in packages}})

    def _add(self, group: str, name: str, shape: tuple[int, ...], dtype: str,
             chunk: int = 4096) -> None:
        self._group.require_group(group).create_array(
            name, shape=(0, *shape), chunks=(chunk, *shape), dtype=dtype,
            compressors=Blosc('zstd', clevel=3, shuffle=Blosc.NOSHUFFLE))

    def _open(self) -> None:
        try:
            self._group = zarr.open_group(self._path, mode='r+', zarr_format=2)
        except (FileNotFoundError, ValueError):
            raise ValueError(f'{self._path}: found something else than a zarr group, '
                             'expected no such folder or an unfinished collection') from None
        for key, value in self._settings.items():
            found = self._group.attrs.get(key)
            if found != value:
                raise ValueError(f'{self._path}: was collected with {key} {found!r}, now '
                                 f'{value!r}: expected the same settings or another folder')

    def _cut(self) -> None:
        """Drop what an interrupted `append` left behind the last complete episode."""
        for group, length in (('data', self.steps), ('meta', self.episodes)):
            for _, array in self._group[group].arrays():
                array.resize((length, *array.shape[1:]))


def _settings(config: CollectConfig) -> dict[str, Any]:
    return {**asdict(config), 'cameras': list(config.cameras)}


def collect(config: CollectConfig, episodes: int, workers: int, path: Path) -> None:
    """
    Bring the data set at `path` to `episodes` successful episodes.

    Raises:
        ValueError: when `path` holds other data.
    """
    if episodes < 1 or workers < 1:
        raise ValueError(f'episodes is {episodes} and workers {workers}, expected at least 1')
    buffer = ReplayBuffer(path, config)
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(),
               TextColumn('{task.fields[rate]}'), TextColumn('{task.fields[failures]} failed'),
               TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task(config.task, total=episodes, completed=buffer.episodes,
                                rate='', failures=len(buffer.failed_seeds))
        frames = 0

        def count(new: int) -> None:
            nonlocal frames
            frames += new
            elapsed = progress.tasks[0].elapsed
            if elapsed:
                progress.update(bar, rate=f'{frames / elapsed:.0f} ticks/s')

        played = iter(())
        if buffer.episodes < episodes:
            played = run_episodes(config, workers, buffer.next_seed, count)
        failures = len(buffer.failed_seeds)
        for episode in in_order(played, buffer.next_seed):
            if episode.ticks_left is None:
                failures += 1
            else:
                buffer.append(episode)
            progress.update(bar, completed=buffer.episodes, failures=failures)
            if buffer.episodes >= episodes:
                played.close()
                break
    print(f'{path}: {buffer.episodes} episodes, {buffer.steps} steps, '
          f'{len(buffer.failed_seeds)} failed seeds')


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and collect."""
    parser = argparse.ArgumentParser(description=__doc__.strip().split('\n')[0])
    parser.add_argument('--task', required=True, help='MetaWorld task, like drawer-open-v3')
    parser.add_argument('--episodes', type=int, default=250, help='successful episodes to keep')
    parser.add_argument('--cameras', nargs='+', default=['arm', 'wrist'])
    parser.add_argument('--source-size', type=int, default=224,
                        help='pixels a side that are drawn')
    parser.add_argument('--size', type=int, default=96, help='pixels a side that are kept')
    parser.add_argument('--renderer', default='plain', help='picture settings')
    parser.add_argument('--seed-start', type=int, default=FIRST_COLLECTION_SEED)
    parser.add_argument('--ticks-after-success', type=int, default=10)
    parser.add_argument('--workers', type=int, default=2, help='simulations in parallel')
    parser.add_argument('-o', '--output', type=Path, required=True, help='zarr folder')
    args = parser.parse_args(arguments)
    try:
        config = CollectConfig(args.task, tuple(args.cameras), args.source_size, args.size,
                               args.renderer, args.seed_start, args.ticks_after_success)
        collect(config, args.episodes, args.workers, args.output)
    except ValueError as error:
        parser.exit(2, f'{parser.prog}: {error}\n')
    except KeyboardInterrupt:
        parser.exit(130, f'{parser.prog}: interrupted; run the same command again to go on\n')


if __name__ == '__main__':
    main()

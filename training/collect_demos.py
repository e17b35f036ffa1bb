#!/usr/bin/env python3
"""
Collect demonstrations of a MetaWorld task into a zarr replay buffer.

The scripted expert names absolute targets in parallel simulations; what is kept is, tick by tick,
the observation and the target that answers it. An episode ends `--ticks-after-success` after the
first success, so that a policy also learns to stay; one that reaches the step limit first is
discarded and counted. Seeds are tried in order and the first successful ones are kept, so the data
depend on the settings alone, not on the number of workers. After an interruption, run the same
command again.

Several tasks go to one data set each, also over the machines of a Ray cluster (`--ray`). The
layout is diffusion_policy_ros/data/replay_writer.py's, one step a tick of the simulator (80 Hz).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from importlib.metadata import version
from pathlib import Path

from collection_options import add_arguments, configs_of
from expert_episodes import CollectConfig, Episode, run_episodes
import numpy as np
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from diffusion_policy_ros.data.pictures import encode
from diffusion_policy_ros.data.replay_buffer import LOW_DIMENSIONAL
from diffusion_policy_ros.data.replay_writer import ReplayWriter
from diffusion_policy_ros.sim.tasks import data_set_name, STEP_NS
from diffusion_policy_ros.typed import to_mapping

Play = Callable[[CollectConfig, int, Callable[[int], None]], Iterator[Episode]]
"""Settings, the first seed, and what is told the frames of each tick, to episodes without end."""


def in_order(episodes: Iterator[Episode], first_seed: int) -> Iterator[Episode]:
    """Yield episodes in the order of their seeds, each as soon as all before it are there."""
    waiting = {}
    for episode in episodes:
        waiting[episode.seed] = episode
        while first_seed in waiting:
            yield waiting.pop(first_seed)
            first_seed += 1


def open_writer(config: CollectConfig, path: Path) -> ReplayWriter:
    """Return the data set of these settings; raises ValueError when `path` holds other data."""
    settings = to_mapping(config)
    if not any(config.goal_offset):
        del settings['goal_offset']  # which older data sets don't know
    packages = ('metaworld', 'mujoco', 'gymnasium', 'numpy', 'opencv-python-headless', 'zarr')
    try:
        return ReplayWriter(
            path, config.cameras, settings,
            {'step_ns': STEP_NS, 'failed_seeds': [], 'n_failures': 0,
             'versions': {name: version(name) for name in packages}})
    except OSError as error:  # nothing is collected yet
        raise ValueError(f'{path}: cannot be written ({error})') from None


def collect(config: CollectConfig, episodes: int, path: Path, play: Play) -> None:
    """
    Bring the data set at `path` to `episodes` successful episodes.

    Raises:
        ValueError: when `path` holds other data, or is being written.
    """
    with open_writer(config, path) as writer:
        failed = collect_into(writer, config, episodes, play)
        print(f'{path}: {writer.episodes} episodes, {writer.steps} steps, {failed} failed seeds')


def collect_into(writer: ReplayWriter, config: CollectConfig, episodes: int, play: Play) -> int:
    """Bring a data set to `episodes` successful episodes; return how many seeds have failed."""
    next_seed = writer.seeds[-1] + 1 if writer.seeds else config.seed_start
    failed = sorted(set(range(config.seed_start, next_seed)) - set(writer.seeds))
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(),
               TextColumn('{task.fields[rate]}'), TextColumn('{task.fields[failures]} failed'),
               TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task(config.task, total=episodes, completed=writer.episodes,
                                rate='', failures=len(failed))
        frames = 0

        def count(new: int) -> None:
            nonlocal frames
            frames += new
            elapsed = progress.tasks[0].elapsed
            if elapsed:
                progress.update(bar, rate=f'{frames / elapsed:.0f} ticks/s')

        with closing(play(config, next_seed, count)) as played:
            ordered = in_order(played, next_seed)
            while writer.episodes < episodes:
                episode = next(ordered)
                if episode.ticks_left is None:
                    failed.append(episode.seed)
                else:
                    steps = episode.steps
                    writer.append({name: np.stack(steps[name]) for name in LOW_DIMENSIONAL},
                                  {name: encode(steps[name]) for name in config.cameras},
                                  episode.seed, failed_seeds=failed, n_failures=len(failed))
                progress.update(bar, completed=writer.episodes, failures=len(failed))
    return len(failed)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and collect."""
    parser = argparse.ArgumentParser(description=__doc__.strip().split('\n')[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_arguments(parser)
    args = parser.parse_args(arguments)
    try:
        configs, one = configs_of(args), args.output.suffix == '.zarr'
        if one and len(configs) > 1:
            raise ValueError(f'--output {args.output}: {len(configs)} tasks need a folder, found '
                             'the name of one data set')
        if args.episodes < 1 or args.workers < 1:
            raise ValueError(f'episodes is {args.episodes} and workers {args.workers}, expected '
                             'at least 1')
        play = partial(run_episodes, workers=args.workers)
        if args.ray is not None:
            import ray_collection
            play = partial(ray_collection.run_episodes, workers=args.workers, address=args.ray)
        for config in configs:
            path = args.output if one else args.output / f'{data_set_name(config.task)}.zarr'
            collect(config, args.episodes, path, play)
    except ValueError as error:
        parser.exit(2, f'{parser.prog}: {error}\n')
    except (EOFError, ConnectionError) as error:
        parser.exit(1, f'{parser.prog}: a simulation process died ({type(error).__name__}); run '
                       'the same command again to go on\n')
    except OSError as error:
        parser.exit(1, f'{parser.prog}: {error}; what was collected is kept, run the same command '
                       'again to go on\n')
    except KeyboardInterrupt:
        parser.exit(130, f'{parser.prog}: interrupted; run the same command again to go on\n')


if __name__ == '__main__':
    main()

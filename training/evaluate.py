#!/usr/bin/env python3
"""
Measure a checkpoint's success in MetaWorld: `evaluate.py CHECKPOINT --episodes 100 -o FILE.json`.

It runs the nodes' own horizon, policy and executor without ROS, in parallel environments with
batched predictions. With `--workers 1` it sends the same targets as the nodes in lockstep do.
Beside FILE.json comes FILE.csv, a row an episode. Several tasks or noise seeds make one pair of
files each, `FILE_<task>_<noise seed>.json`; those that are there already are not run again.
Demonstrations' seeds are refused.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
import csv
from functools import partial
from importlib.metadata import version
from io import StringIO
import os
from pathlib import Path
import platform
import sys
import time
from typing import Any

from code_version import code_version
from evaluation_options import as_asked, DEFAULT_BLEND_S, options_of, settings_of
from gymnasium.vector import AutoresetMode, SyncVectorEnv
import numpy as np
from result_files import read_json
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
import torch
from whole_output import check_writable, write_json, write_text

from diffusion_policy_ros.control.arm import load_arm
from diffusion_policy_ros.data.only_writer import only_writer
from diffusion_policy_ros.datatypes import Chunk, EE_POSE, ObservationWindow
from diffusion_policy_ros.policy.checkpoint import load_checkpoint
from diffusion_policy_ros.policy.checkpoint_config import (
    checkpoint_hash,
    read_checkpoint_config,
)
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy, episode_noise
from diffusion_policy_ros.sim.arm import MetaWorldArm
from diffusion_policy_ros.sim.rollout import (
    ClosedLoop,
    closing_envs,
    Episode,
    executor_config,
    image_every,
    OnTick,
    parallel_envs,
    Predict,
    run_episodes,
    source_size,
    WindowTicks,
)
from diffusion_policy_ros.sim.tasks import (
    check_evaluation_seed,
    check_task,
    data_set_name,
    expand_tasks,
    VIEW_CAMERA,
)
from diffusion_policy_ros.sim.video import Album, Frame
from diffusion_policy_ros.statistics import wilson_interval
from diffusion_policy_ros.typed import to_mapping

ROOT = Path(__file__).resolve().parents[1]
TICKS_PER_PICTURE = 4  # of a video, 20 a second


class TimedPolicy:
    """
    Predictions and their latency.

    The noise follows from the time in the episode and from `noise_seed` plus the episode's seed,
    so that episodes are independent; sim_runner sets the policy node's seed so, too.
    """

    def __init__(self, policy: DiffusionPolicy, noise_seed: int) -> None:
        self.policy, self.noise_seed = policy, noise_seed
        self.seconds: dict[int, list[float]] = defaultdict(list)  # by the number of windows

    def __call__(self, windows: Sequence[ObservationWindow], seeds: Sequence[int],
                 elapsed_ns: Sequence[int]) -> list[Chunk]:
        noise = torch.stack([
            episode_noise(self.noise_seed + seed, elapsed, self.policy.noise_shape)
            for seed, elapsed in zip(seeds, elapsed_ns, strict=True)])
        start = time.perf_counter()
        chunks = self.policy.predict(windows, noise)
        self.seconds[len(windows)].append(time.perf_counter() - start)
        return chunks

    def latency(self) -> dict[str, float | int]:
        """Return median and 99th percentile in ms of the batch size that came most often."""
        batch, seconds = max(self.seconds.items(), key=lambda item: len(item[1]))
        median, p99 = np.percentile(1000.0 * np.array(seconds), (50, 99)).tolist()
        return {'median': median, 'p99': p99, 'batch': batch, 'n': len(seconds)}


def run(policy: DiffusionPolicy, task: str, seeds: Sequence[int], workers: int,
        predict: Predict,
        blend_s: float = DEFAULT_BLEND_S,
        on_episode: Callable[[Episode], None] = lambda episode: None,
        more_cameras: Sequence[str] = (), on_tick: OnTick | None = None) -> list[Episode]:
    """
    Run one episode a seed; return them in the order of seeds.

    Images that no window holds are drawn only where `on_tick` watches.

    Raises:
        ValueError: a seed belongs to the demonstrations, or there is no such task.
        ConnectionError: an environment's process died.
    """
    for seed in seeds:
        check_evaluation_seed(seed)
    check_task(task)
    config, arm = policy.config, load_arm(ROOT / 'config/arms/metaworld.yaml')
    names = dict.fromkeys([*(camera.name for camera in config.observation.cameras), *more_cameras])
    make = partial(MetaWorldArm, task, tuple(names), *source_size(config),
                   renderer=config.renderer, image_every=image_every(config), max_steps=None,
                   image_due=None if on_tick else WindowTicks.of(config))
    if workers == 1:
        envs = SyncVectorEnv([make], autoreset_mode=AutoresetMode.DISABLED)
    else:
        envs = parallel_envs([make] * workers)
    loops = [ClosedLoop(config, executor_config(config, blend_s), arm) for _ in range(workers)]
    episodes: dict[int, Episode] = {}
    try:
        with closing_envs(envs):
            for episode in run_episodes(envs, loops, predict, seeds, on_tick=on_tick):
                episodes[episode.seed] = episode
                on_episode(episode)
    except (EOFError, ConnectionError):
        raise ConnectionError("an environment's process died") from None
    return [episodes[seed] for seed in seeds]


def evaluate(policy: DiffusionPolicy, task: str, seeds: Sequence[int], workers: int = 2,
             noise_seed: int = 0, blend_s: float = DEFAULT_BLEND_S,
             on_episode: Callable[[Episode], None] = lambda episode: None) -> dict[str, Any]:
    """Run one episode a seed; return what a results file holds."""
    settings = settings_of(policy.config, task, seeds, noise_seed, blend_s, workers)
    predict = TimedPolicy(policy, noise_seed)
    start = time.perf_counter()
    episodes = run(policy, task, seeds, settings['workers'], predict, blend_s, on_episode)
    n_success = sum(episode.success for episode in episodes)
    steps = [episode.steps for episode in episodes if episode.success]
    return {
        **settings, 'mode': 'evaluate',
        'success': [episode.success for episode in episodes],
        'steps': [episode.steps for episode in episodes],
        'n_success': n_success, 'n_episodes': len(episodes),
        'wilson95': list(wilson_interval(n_success, len(episodes))),
        'median_steps': float(np.median(steps)) if steps else None,
        'limits_acted': sum(sum(episode.limits_acted.values()) for episode in episodes),
        'chunk_ms': predict.latency(),
        'wall_s': time.perf_counter() - start,
    }


class Take:
    """One episode's pictures and predictions; passes for the predictor."""

    def __init__(self, cameras: Sequence[str], predict: TimedPolicy) -> None:
        self._cameras, self._predict = cameras, predict
        self.frames: list[Frame] = []
        self.chunks: list[Chunk] = []

    def on_tick(self, seed: int, stamp_ns: int, seen: Mapping[str, np.ndarray]) -> None:
        """Keep what the arm observes."""
        pictures = {name: seen[name].copy() for name in self._cameras}
        self.frames.append(Frame(stamp_ns, pictures, seen[EE_POSE].copy(), None, ''))

    def __call__(self, windows: Sequence[ObservationWindow], seeds: Sequence[int],
                 elapsed_ns: Sequence[int]) -> list[Chunk]:
        chunks = self._predict(windows, seeds, elapsed_ns)
        self.chunks += chunks
        return chunks


def film(policy: DiffusionPolicy, task: str, seeds: Sequence[int], noise_seed: int,
         blend_s: float, folder: Path) -> list[Path]:
    """
    Play some seeds again, one at a time, and write them as one video and a contact sheet.

    An episode's outcome is told in its last picture. It may differ from the evaluation's where
    that batched its predictions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    album, predict = Album(folder, task, VIEW_CAMERA), TimedPolicy(policy, noise_seed)
    cameras = tuple(dict.fromkeys([
        *(camera.name for camera in policy.config.observation.cameras), VIEW_CAMERA]))
    every = max(TICKS_PER_PICTURE, image_every(policy.config))
    for number, seed in enumerate(seeds, start=1):
        take = Take(cameras, predict)
        episode, = run(policy, task, [seed], 1, take, blend_s, more_cameras=[VIEW_CAMERA],
                       on_tick=take.on_tick)
        album.add(f'{number}/{len(seeds)}   seed {seed}', episode.success,
                  [*take.frames[:-1:every], take.frames[-1]], take.chunks)
    return album.close()


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    packages = ('torch', 'torchvision', 'numpy', 'mujoco', 'metaworld', 'gymnasium')
    return {'python': platform.python_version(), **{name: version(name) for name in packages}}


@contextmanager
def progress_bar(task: str, total: int) -> Iterator[Callable[[Episode], None]]:
    """Yield what takes each finished episode; show it where a person looks on."""
    counts = [0, 0]
    with Progress(TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(),
                  TimeElapsedColumn(),
                  disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task(task, total=total)

        def on_episode(episode: Episode) -> None:
            counts[0] += episode.success
            counts[1] += 1
            progress.update(bar, advance=1, description=f'{task} {counts[0]}/{counts[1]}')

        yield on_episode


def write(path: Path, result: dict[str, Any]) -> None:
    """Write FILE.json and FILE.csv."""
    text = StringIO()
    rows = csv.writer(text)
    rows.writerow(['task', 'seed', 'noise_seed', 'success', 'steps'])
    rows.writerows([result['task'], seed, result['noise_seed'], int(success), steps]
                   for seed, success, steps in
                   zip(result['seeds'], result['success'], result['steps'], strict=True))
    write_text(path.with_suffix('.csv'), text.getvalue())
    write_json(path, result)  # last: it says that the evaluation is done


def show(result: dict[str, Any]) -> None:
    """Print a result's line."""
    low, high = result['wilson95']
    ticks = ('' if result['median_steps'] is None
             else f"median {result['median_steps']:g} ticks, ")
    print(f"{result['task']}: success {result['n_success']}/{result['n_episodes']} "
          f'(Wilson 95 % {low:.3f}-{high:.3f}), {ticks}chunk '
          f"{result['chunk_ms']['median']:.1f} ms median, {result['chunk_ms']['p99']:.1f} ms p99 "
          f"at batch {result['chunk_ms']['batch']}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate one checkpoint from the command line."""
    try:
        options = options_of(arguments, __doc__.split('\n\n')[0].strip())
        torch.set_num_threads(options.threads)
        policy = load_checkpoint(options.checkpoint, options.device)
        policy.config = as_asked(policy.config, options)
        tasks = expand_tasks(options.task or [policy.config.task])
        trained = read_checkpoint_config(options.checkpoint)
        provenance, data = trained.provenance, trained.provenance.get('data')
        facts = {'checkpoint_sha256': checkpoint_hash(options.checkpoint),
                 'trained_steps': provenance.get('step'),
                 'trained_episodes': data.get('episodes') if isinstance(data, dict) else None,
                 'trained': {'policy': to_mapping(trained.policy),
                             **{key: provenance.get(key)
                                for key in ('training', 'data', 'versions')}},
                 'network': policy.config.network, 'versions': versions(),
                 'code': code_version(),
                 'threads': options.threads, 'cores': os.cpu_count(), 'device': options.device}
        if options.output:
            check_writable(options.output)
        runs = [(task, noise_seed) for task in tasks for noise_seed in options.noise_seed]
        for task, noise_seed in runs:
            path = options.output
            if path and len(runs) > 1:
                path = path.with_name(f'{path.stem}_{data_set_name(task)}_{noise_seed}.json')
            with only_writer(path) if path else nullcontext():
                measure(policy, task, noise_seed, facts, path, options)
    except ConnectionError as error:
        sys.exit(f'evaluate: {error} (killed, or out of memory?)')
    except (ValueError, OSError) as error:
        sys.exit(f'evaluate: {error}')
    except KeyboardInterrupt:
        sys.exit('evaluate: interrupted; the same command goes on after the last that was written')


def there_already(path: Path | None, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a result of these settings, where an earlier run has written it."""
    try:
        found = read_json(path) if path else {}
    except (FileNotFoundError, ValueError):
        return None
    return found if settings.items() <= found.items() else None


def measure(policy: DiffusionPolicy, task: str, noise_seed: int, facts: dict[str, Any],
            path: Path | None, options: argparse.Namespace) -> None:
    """Evaluate on one task, print it, and write it to `path` with its videos."""
    seeds = range(options.seed, options.seed + options.episodes)
    found = result = there_already(path, {
        **settings_of(policy.config, task, seeds, noise_seed, options.blend, options.workers),
        **{key: facts[key] for key in ('checkpoint_sha256', 'versions', 'device', 'threads')}})
    if found:
        print(f"{path} is there already, of version {found.get('code', 'unknown')}:")
    else:
        with progress_bar(task, len(seeds)) as on_episode:
            result = {**evaluate(policy, task, seeds, options.workers, noise_seed, options.blend,
                                 on_episode), **facts}
    show(result)
    if path is None:
        return
    if not found:
        write(path, result)
        print(f'wrote {path}')
    for outcome in (True, False):
        chosen = [seed for seed, success in zip(seeds, result['success'])
                  if success == outcome][:options.video]
        if chosen:
            folder = path.with_suffix('') / ('successes' if outcome else 'failures')
            print('wrote', *film(policy, task, chosen, noise_seed, options.blend, folder))


if __name__ == '__main__':
    main()

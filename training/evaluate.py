#!/usr/bin/env python3
"""
Measure a checkpoint's success in MetaWorld: `evaluate.py CHECKPOINT --episodes 100 -o FILE.json`.

It runs the nodes' own horizon, policy and executor without ROS, in parallel environments with
batched predictions. With `--workers 1` it sends the same targets as the nodes in lockstep do.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
import json
import os
from pathlib import Path
import platform
import sys
import time

from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
import torch

from diffusion_policy_ros.control.arm import load_arm
from diffusion_policy_ros.control.executor import ExecutorConfig
from diffusion_policy_ros.datatypes import Chunk, ObservationWindow
from diffusion_policy_ros.policy.checkpoint import load_checkpoint
from diffusion_policy_ros.policy.checkpoint_config import (
    checkpoint_hash,
    read_checkpoint_config,
)
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy, episode_noise
from diffusion_policy_ros.sim.arm import MetaWorldArm
from diffusion_policy_ros.sim.rollout import (
    close_envs,
    ClosedLoop,
    Episode,
    executor_config,
    image_every,
    run_episodes,
)
from diffusion_policy_ros.sim.tasks import check_evaluation_seed, check_task
from diffusion_policy_ros.statistics import wilson_interval

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_BLEND_S = ExecutorConfig().blend_s


class TimedPolicy:
    """Predictions from noise that follows from (seed, time in the episode), and their latency."""

    def __init__(self, policy: DiffusionPolicy, seed: int) -> None:
        self.policy, self.seed = policy, seed
        self.seconds: list[float] = []

    def __call__(self, windows: Sequence[ObservationWindow],
                 elapsed_ns: Sequence[int]) -> list[Chunk]:
        noise = torch.stack([episode_noise(self.seed, elapsed, self.policy.noise_shape)
                             for elapsed in elapsed_ns])
        start = time.perf_counter()
        chunks = self.policy.predict(windows, noise)
        self.seconds.append(time.perf_counter() - start)
        return chunks


def run(policy: DiffusionPolicy, task: str, seeds: Sequence[int], workers: int,
        predict: TimedPolicy, blend_s: float = DEFAULT_BLEND_S,
        on_episode: Callable[[Episode], None] = lambda episode: None) -> list[Episode]:
    """Run one episode a seed; return them in the order of seeds."""
    for seed in seeds:
        check_evaluation_seed(seed)
    check_task(task)
    config, arm = policy.config, load_arm(ROOT / 'config/arms/metaworld.yaml')
    cameras = config.observation.cameras
    sizes = {(camera.source_height, camera.source_width) for camera in cameras} or {(224, 224)}
    if len(sizes) > 1:
        raise ValueError(f'the cameras have source sizes {sorted(sizes)}, expected one for all')
    make = partial(MetaWorldArm, task, tuple(camera.name for camera in cameras), *sizes.pop(),
                   renderer=config.renderer, image_every=image_every(config), max_steps=None)
    if workers == 1:
        envs = SyncVectorEnv([make], autoreset_mode=AutoresetMode.DISABLED)
    else:
        envs = AsyncVectorEnv([make] * workers, autoreset_mode=AutoresetMode.DISABLED,
                              context='spawn')
    loops = [ClosedLoop(config, executor_config(config, blend_s), arm) for _ in range(workers)]
    episodes: dict[int, Episode] = {}
    try:
        for episode in run_episodes(envs, loops, predict, seeds):
            episodes[episode.seed] = episode
            on_episode(episode)
    finally:
        close_envs(envs)
    return [episodes[seed] for seed in seeds]


def evaluate(policy: DiffusionPolicy, task: str, seeds: Sequence[int], workers: int = 2,
             noise_seed: int = 0, blend_s: float = DEFAULT_BLEND_S,
             on_episode: Callable[[Episode], None] = lambda episode: None) -> dict[str, object]:
    """Run one episode a seed; return what a results file holds."""
    workers = min(workers, len(seeds))
    predict = TimedPolicy(policy, noise_seed)
    start = time.perf_counter()
    episodes = run(policy, task, seeds, workers, predict, blend_s, on_episode)
    n_success = sum(episode.success for episode in episodes)
    milliseconds = 1000.0 * np.array(predict.seconds)
    return {
        'task': task, 'mode': 'evaluate', 'seeds': list(seeds), 'noise_seed': noise_seed,
        'success': [episode.success for episode in episodes],
        'steps': [episode.steps for episode in episodes],
        'n_success': n_success, 'n_episodes': len(episodes),
        'wilson95': list(wilson_interval(n_success, len(episodes))),
        'workers': workers, 'blend_s': blend_s,
        'limits_acted': sum(sum(episode.limits_acted.values()) for episode in episodes),
        'chunk_ms': {'median': float(np.median(milliseconds)),
                     'p99': float(np.percentile(milliseconds, 99)), 'batch': workers},
        'wall_s': time.perf_counter() - start,
    }


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate one checkpoint from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0].strip(),
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('checkpoint', type=Path, help='folder with model.safetensors, config.yaml')
    parser.add_argument('-o', '--output', type=Path, help='JSON file to write')
    parser.add_argument('--task', default='', help="MetaWorld task; empty: the checkpoint's")
    parser.add_argument('--episodes', type=int, default=100, help='episodes, one a seed')
    parser.add_argument('--seed', type=int, default=0, help='first environment seed')
    parser.add_argument('--noise-seed', type=int, default=0, help='seed of the denoising noise')
    parser.add_argument('--workers', type=int, default=2, help='parallel environments')
    parser.add_argument('--threads', type=int, default=1, help='PyTorch threads')
    parser.add_argument('--blend', type=float, metavar='SECONDS', default=DEFAULT_BLEND_S,
                        help='time over which a chunk replaces the one before it')
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        policy = load_checkpoint(options.checkpoint)
        task = check_task(options.task or policy.config.task)
        seeds = range(options.seed, options.seed + options.episodes)
        with progress_bar(task, len(seeds)) as on_episode:
            result = evaluate(policy, task, seeds, options.workers, options.noise_seed,
                              options.blend, on_episode)
    except ValueError as error:
        sys.exit(f'evaluate: {error}')
    provenance = read_checkpoint_config(options.checkpoint).provenance
    result |= {'checkpoint_sha256': checkpoint_hash(options.checkpoint),
               'trained_steps': provenance.get('step'), 'versions': versions(),
               'threads': options.threads, 'cores': os.cpu_count()}
    low, high = result['wilson95']
    print(f"{result['task']}: success {result['n_success']}/{result['n_episodes']} "
          f"(Wilson 95 % {low:.3f}-{high:.3f}), chunk {result['chunk_ms']['median']:.1f} ms "
          f"median, {result['chunk_ms']['p99']:.1f} ms p99 at batch {result['workers']}")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + '\n')
        print(f'wrote {options.output}')


if __name__ == '__main__':
    main()

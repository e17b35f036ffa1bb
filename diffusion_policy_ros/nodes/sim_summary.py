"""What a run in simulation is worth: its lines on the terminal, and its summary.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
import json
import os
from pathlib import Path
import platform

import numpy as np

from diffusion_policy_ros.datatypes import NS_PER_S
from diffusion_policy_ros.sim.tasks import STEP_NS
from diffusion_policy_ros.statistics import wilson_interval

PACKAGES = ('diffusion_policy_ros', 'metaworld', 'mujoco', 'numpy', 'rclpy', 'torch')


@dataclass(frozen=True)
class EpisodeResult:
    """
    How one episode went.

    Attributes:
        seed: of the environment.
        success: whether the task's own measure was reached.
        ticks: of the simulator, until success or the limit.
        wall_s: seconds that it took.
    """

    seed: int
    success: bool
    ticks: int
    wall_s: float

    @property
    def sim_s(self) -> float:
        """Sim time that it took, in seconds."""
        return self.ticks * STEP_NS / NS_PER_S


@dataclass
class Summary:
    """
    A run, as far as it got.

    Attributes:
        task, mode: of the run.
        checkpoint: folder of the policy; empty where the expert acts.
        checkpoint_hash: sha256 of its files.
        n_planned: episodes that were asked for.
        real_time_factor: sim seconds a wall second; None in lockstep.
        episodes: those that ended.
        chunk_ms: from an observation's arrival to its chunk's, both seen by sim_runner.
        problem: why the run ended early, in one line; empty if it did not.
    """

    task: str
    mode: str
    checkpoint: str
    checkpoint_hash: str
    n_planned: int
    real_time_factor: float | None = None
    episodes: list[EpisodeResult] = field(default_factory=list)
    chunk_ms: list[float] = field(default_factory=list)
    problem: str = ''

    @property
    def n_success(self) -> int:
        return sum(episode.success for episode in self.episodes)

    @property
    def wilson95(self) -> tuple[float, float] | None:
        """95 % interval of the success rate; None before the first episode ended."""
        if not self.episodes:
            return None
        return wilson_interval(self.n_success, len(self.episodes))

    def to_json(self) -> dict:
        """Return what summary.json holds."""
        return {
            'task': self.task,
            'mode': self.mode,
            'real_time_factor': self.real_time_factor,
            'seeds': [episode.seed for episode in self.episodes],
            'success': [episode.success for episode in self.episodes],
            'n_success': self.n_success,
            'n_episodes': len(self.episodes),
            'n_planned': self.n_planned,
            'wilson95': self.wilson95,
            'chunk_ms': latency(self.chunk_ms),
            'checkpoint': self.checkpoint,
            'checkpoint_hash': self.checkpoint_hash,
            'problem': self.problem,
            'episodes': [asdict(episode) for episode in self.episodes],
            'versions': versions(),
        }

    def write(self, path: Path) -> None:
        """Write summary.json; whoever reads it meanwhile sees the last one or this one."""
        new = path.with_suffix('.new')
        new.write_text(json.dumps(self.to_json(), indent=2) + '\n')
        os.replace(new, path)


def latency(chunk_ms: Sequence[float]) -> dict[str, float | int | None]:
    """Return median and 99th percentile in milliseconds, None where there was no chunk."""
    if not chunk_ms:
        return {'median': None, 'p99': None, 'n': 0}
    median, p99 = np.percentile(chunk_ms, (50, 99))
    return {'median': round(float(median), 2), 'p99': round(float(p99), 2), 'n': len(chunk_ms)}


def versions() -> dict[str, str]:
    """Return the versions that a result depends on; nothing is imported for it."""
    found = {'python': platform.python_version(), 'platform': platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = 'not installed'
    return found


def progress_line(number: int, summary: Summary, seed: int, ticks: int, max_ticks: int) -> str:
    """Return one line about the episode under way; `number` counts from 1."""
    width = 20
    done = min(width, width * ticks // max(1, max_ticks))
    return (f'{_episode(number, summary, seed)}  [{"#" * done}{"." * (width - done)}] '
            f'{ticks * STEP_NS / NS_PER_S:5.2f} s of sim time')


def episode_line(number: int, summary: Summary, result: EpisodeResult) -> str:
    """Return one line about an episode that ended; `number` counts from 1."""
    outcome = 'success' if result.success else 'failure'
    return (f'{_episode(number, summary, result.seed)}  {outcome} after {result.ticks:3d} ticks, '
            f'{result.sim_s:5.2f} s of sim time, {result.wall_s:5.1f} s')


def result_lines(summary: Summary) -> list[str]:
    """Return the lines that close a run."""
    lines = []
    if summary.episodes:
        low, high = summary.wilson95
        lines.append(f'success {summary.n_success}/{len(summary.episodes)} '
                     f'(Wilson 95 % {100 * low:.0f}-{100 * high:.0f} %)')
    if summary.chunk_ms:
        values = latency(summary.chunk_ms)
        lines.append(f'chunk latency {values["median"]:.1f} ms median, {values["p99"]:.1f} ms p99 '
                     f'over {values["n"]} chunks')
    return lines


def _episode(number: int, summary: Summary, seed: int) -> str:
    width = len(str(summary.n_planned))
    return f'episode {number:{width}d}/{summary.n_planned}  seed {seed}'

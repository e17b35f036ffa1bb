"""Whole runs as a user starts them: side by side, interrupted, and with a process killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import json
import os
from pathlib import Path
import signal
import subprocess
import sys

from conftest import REPOSITORY, wait_until
import psutil
import pytest

CHECKPOINT = REPOSITORY / 'config/checkpoints/drawer_open'
LIMIT_S = 150.0


class Run:
    """One `metaworld_sim` with its children."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        folder.mkdir()
        self._log = (folder / 'printed').open('w+')
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'diffusion_policy_ros.nodes.supervisor', '--no-video',
             '--checkpoint', str(CHECKPOINT), '--domain-id', os.environ['ROS_DOMAIN_ID'],
             '--out', str(folder / 'out'), *arguments],
            cwd=REPOSITORY, stdout=self._log, stderr=subprocess.STDOUT)
        self.children: dict[str, psutil.Process] = {}

    @property
    def printed(self) -> str:
        """All that it printed."""
        return (self.folder / 'printed').read_text()

    @property
    def summary(self) -> dict:
        """What it wrote."""
        return json.loads((self.folder / 'out/summary.json').read_text())

    def wait_for(self, predicate: Callable[[], bool], what: str) -> None:
        """Wait until something is true, noting the children meanwhile."""
        def look() -> None:
            for child in psutil.Process(self.process.pid).children():
                words = ' '.join(child.cmdline())
                for name in ('policy', 'chunk_executor', 'metaworld_bridge', 'sim_runner'):
                    if f'__node:={name}' in words:
                        self.children[name] = child
            try:
                self.process.wait(0.05)
            except subprocess.TimeoutExpired:
                return
            pytest.fail(f'it ended before {what}: {self.printed}')
        wait_until(predicate, look, what, LIMIT_S)

    def ends(self) -> int:
        """Return the exit code; no child may be left."""
        code = self.process.wait(LIMIT_S)
        assert not [name for name, child in self.children.items() if child.is_running()]
        return code


@contextmanager
def run(folder: Path, *arguments: str) -> Iterator[Run]:
    """Start a run, and let nothing of it stay."""
    started = Run(folder, *arguments)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.terminate()
            started.process.wait(30)
        print(started.printed)


def test_two_namespaced_arms_run_side_by_side_without_cross_talk(tmp_path: Path) -> None:
    with (run(tmp_path / 'left', '--namespace', 'left', '--episodes', '1',
              '--seed', '310') as left,
          run(tmp_path / 'right', '--namespace', 'right', '--episodes', '1',
              '--seed', '311', '--task', 'reach-v3') as right):
        assert left.ends() == 0
        right.process.send_signal(signal.SIGINT)
        right.ends()
    # The drawer's policy can only open the drawer from its own arm's pictures.
    assert left.summary['success'] == [True]
    assert left.summary['seeds'] == [310]


def test_ctrl_c_ends_all_processes_and_the_exit_code_tells(tmp_path: Path) -> None:
    with run(tmp_path / 'run', '--episodes', '50') as started:
        started.wait_for(lambda: 'success after' in started.printed, 'the first episode')
        started.process.send_signal(signal.SIGINT)
        assert started.ends() == 130
        assert len(started.children) == 4
    assert started.summary['n_episodes'] >= 1


def test_a_childs_death_ends_the_run_and_is_named(tmp_path: Path) -> None:
    with run(tmp_path / 'run', '--episodes', '50') as started:
        started.wait_for(lambda: 'success after' in started.printed, 'the first episode')
        started.children['chunk_executor'].kill()
        assert started.ends() not in (0, 130)
    assert 'chunk_executor was ended by SIGKILL' in started.printed


def test_a_killed_policy_pauses_lockstep_until_it_is_back(tmp_path: Path) -> None:
    with run(tmp_path / 'run', '--episodes', '3', '--respawn') as started:
        started.wait_for(lambda: 'success after' in started.printed, 'the first episode')
        started.children['policy'].kill()
        assert started.ends() == 0
    assert 'policy was ended by SIGKILL: starting it again' in started.printed
    assert started.summary['success'] == [True, True, True]


def test_a_policy_that_stays_away_ends_the_run_and_the_topic_is_named(tmp_path: Path) -> None:
    with run(tmp_path / 'run', '--episodes', '50') as started:
        started.wait_for(lambda: 'success after' in started.printed, 'the first episode')
        started.children['policy'].kill()
        assert started.ends() == 3
    assert 'ee_trajectory' in started.printed
    assert started.summary['n_episodes'] >= 1

"""Whole runs as `make sim` makes them: the shipped policy, and all that can end a run."""

from __future__ import annotations

from collections.abc import Callable
import json
import os
from pathlib import Path
import re
import signal
import subprocess
import sys

import cv2
import psutil
import pytest
from trajectory_msgs.msg import MultiDOFJointTrajectory

from diffusion_policy_ros.sim.tasks import MAX_STEPS

REPOSITORY = Path(__file__).resolve().parents[2]
SUPERVISOR = 'diffusion_policy_ros.nodes.supervisor'
ENDLESS = ['--task', 'reach-wall-v3']  # a drawer's policy does not reach: 500 ticks an episode
RUN_LIMIT_S = 200.0


class Run:
    """`metaworld_sim` as a process, in the domain of the tests."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self._output = folder.with_suffix('.txt')
        with self._output.open('w') as output:
            self._process = psutil.Popen(
                [sys.executable, '-m', SUPERVISOR, '--out', str(folder),
                 '--domain-id', os.environ['ROS_DOMAIN_ID'], *arguments],
                cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT)

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def lines(self) -> list[str]:
        return self.output.splitlines()

    @property
    def summary(self) -> dict:
        return json.loads((self.folder / 'summary.json').read_text())

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def node(self, name: str) -> psutil.Process:
        (found,) = [child for child in self._process.children()
                    if any(name in argument for argument in child.cmdline())]
        return found

    def left_over(self) -> list[str]:
        """Return the command lines of all processes of this run."""
        return [' '.join(process.info['cmdline'] or ())
                for process in psutil.process_iter(['cmdline'])
                if str(self.folder) in ' '.join(process.info['cmdline'] or ())]

    def end(self) -> None:
        for process in (*self._process.children(recursive=True), self._process
                        ) if self.exit_code is None else ():
            process.kill()
        self._process.wait()


@pytest.fixture()
def run(tmp_path, probe) -> Callable[..., Run]:
    """Return a function that starts a run."""
    runs = []

    def start_run(*arguments: str) -> Run:
        runs.append(Run(tmp_path / f'run{len(runs)}', *arguments))
        return runs[-1]

    yield start_run
    for started in runs:
        started.end()
        print(started.output)


def ended(probe, run: Run) -> int:
    """Return the exit code of a run once it has ended, and see that nothing is left of it."""
    probe.wait(lambda: run.exit_code is not None, f'the end of {run.folder}', RUN_LIMIT_S)
    assert run.left_over() == []
    return run.exit_code


def wait_for_chunks(probe, namespace: str = '') -> list:
    chunks = probe.collect(MultiDOFJointTrajectory, f'{namespace}/ee_trajectory')
    probe.wait(lambda: len(chunks) > 2, 'chunks', RUN_LIMIT_S)
    return chunks


@pytest.fixture(scope='module')
def ticks() -> dict[int, int]:
    """Collect how many ticks each seed took, for runs that must take the same."""
    return {}


def test_a_run_opens_the_drawer_and_says_so(run, probe, ticks):
    sim = run('--episodes', '2', '--seed', '20')
    assert ended(probe, sim) == 0
    lines = [line for line in sim.lines if not line.startswith('chunk_executor: ')]
    assert re.fullmatch(r'metaworld_bridge, chunk_executor, policy, sim_runner in ROS_DOMAIN_ID '
                        r'\d+, logs in .*/run0/log', lines[0])
    for number, line in enumerate(lines[1:3]):
        assert re.fullmatch(
            rf'episode {number + 1}/2  seed {20 + number}  success after +\d+ ticks, +[\d.]+ s of '
            r'sim time, +[\d.]+ s', line)
    assert lines[3] == 'success 2/2 (Wilson 95 % 34-100 %)'
    assert re.fullmatch(r'chunk latency [\d.]+ ms median, [\d.]+ ms p99 over \d+ chunks', lines[4])
    assert lines[5] == ' '.join(['wrote', *(str(sim.folder / name) for name in (
        'summary.json', 'video.mp4', 'contact_sheet.png'))])
    assert len(lines) == 6
    summary = sim.summary
    assert summary['success'] == [True, True] and summary['problem'] == ''
    assert len(summary['checkpoint_hash']) == 64
    # A chunk each 200 ms from the first tick on.
    chunks = sum((episode['ticks'] - 1) // 16 + 1 for episode in summary['episodes'])
    assert 0 < summary['chunk_ms']['n'] <= chunks  # those seen after their observation
    ticks.update((episode['seed'], episode['ticks']) for episode in summary['episodes'])
    capture = cv2.VideoCapture(str(sim.folder / 'video.mp4'))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) >= sum(
        episode['ticks'] // 4 for episode in summary['episodes'])
    assert (capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)) == (
        960, 520)


@pytest.mark.slow
def test_two_arms_side_by_side_do_what_each_does_alone(run, probe, ticks):
    if not ticks:
        pytest.skip('the run of one arm, which this is compared with, was not made')
    arms = [run('--episodes', '1', '--no-video', '--namespace', name, '--seed', str(seed))
            for name, seed in (('left', 20), ('right', 21))]
    for arm, seed in zip(arms, (20, 21)):
        assert ended(probe, arm) == 0
        (episode,) = arm.summary['episodes']
        assert episode['success'] and (seed, episode['ticks']) in ticks.items()


def test_a_killed_policy_is_waited_for_and_the_run_goes_on(run, probe):
    sim = run('--episodes', '1', '--no-video', '--wait-limit-s', '120', *ENDLESS)
    wait_for_chunks(probe)
    sim.node('policy_node').kill()
    said = 'policy was ended by SIGKILL: waiting for it; it starts again with'
    probe.wait(lambda: said in sim.output, said)
    (command,) = [line for line in sim.lines if line.startswith('  ROS_DOMAIN_ID=')]
    again = subprocess.Popen(command, shell=True, cwd=REPOSITORY, start_new_session=True)
    try:
        probe.wait(lambda: sim.exit_code is not None, 'the end of the run', RUN_LIMIT_S)
    finally:
        os.killpg(again.pid, signal.SIGKILL)
        again.wait()
    assert ended(probe, sim) == 0
    # In lockstep each of the ticks has had its target: the episode went on where it stood.
    assert [episode['ticks'] for episode in sim.summary['episodes']] == [MAX_STEPS]
    assert sim.summary['problem'] == ''


@pytest.mark.slow
def test_a_killed_policy_that_stays_away_ends_the_run_by_name(run, probe):
    sim = run('--episodes', '1', '--no-video', '--wait-limit-s', '3', *ENDLESS)
    wait_for_chunks(probe)
    sim.node('policy_node').kill()
    assert ended(probe, sim) == 3
    problem = sim.summary['problem']
    assert re.fullmatch(r'nothing on ee_trajectory for the tick at [\d.]+ s within 3 s: policy '
                        '(does not answer|is gone)', problem)
    assert f'the run ended early: {problem}' in sim.lines


@pytest.mark.slow
def test_in_real_time_the_arm_outlives_the_policy(run, probe):
    sim = run('--episodes', '1', '--mode', 'realtime', '--real-time-factor', '0.05', '--respawn',
              *ENDLESS)
    chunks = wait_for_chunks(probe)
    sim.node('policy_node').kill()
    probe.wait(lambda: 'chunk_executor: No new chunk within command_timeout: holding.'
               in sim.output, 'the executor holds', RUN_LIMIT_S)
    chunks.clear()
    probe.wait(lambda: len(chunks) > 1, 'chunks of the new policy', RUN_LIMIT_S)
    assert 'policy was ended by SIGKILL: starting it again' in sim.output
    assert sim.exit_code is None
    sim.signal(signal.SIGTERM)
    assert ended(probe, sim) == 128 + signal.SIGTERM


def test_ctrl_c_ends_all_and_keeps_what_there_is(run, probe):
    sim = run('--episodes', '3', *ENDLESS)
    wait_for_chunks(probe)
    sim.signal(signal.SIGINT)
    assert ended(probe, sim) == 130
    assert sim.summary['problem'] == 'stopped by a signal'
    assert sim.summary['n_planned'] == 3


@pytest.mark.slow
@pytest.mark.parametrize('name', ['metaworld_bridge', 'chunk_executor', 'sim_runner'])
def test_the_death_of_any_other_node_ends_all(run, probe, name):
    sim = run('--episodes', '3', '--no-video', *ENDLESS)
    wait_for_chunks(probe)
    sim.node(name).kill()
    assert ended(probe, sim) == 3
    if name != 'sim_runner':
        assert f'{name} was ended by SIGKILL; log: ' in sim.output


@pytest.mark.slow
def test_the_death_of_the_supervisor_ends_all(run, probe):
    sim = run('--episodes', '3', '--no-video', *ENDLESS)
    wait_for_chunks(probe)
    sim.signal(signal.SIGKILL)
    probe.wait(lambda: not sim.left_over(), 'the end of its children', 60.0)


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_loaded_ends_all_in_one_line(run, probe, tmp_path):
    folder = tmp_path / 'broken'
    folder.mkdir()
    shipped = REPOSITORY / 'config/checkpoints/drawer_open'
    (folder / 'config.yaml').write_bytes((shipped / 'config.yaml').read_bytes())
    (folder / 'model.safetensors').write_bytes(
        (shipped / 'model.safetensors').read_bytes()[:1000])
    sim = run('--episodes', '1', '--checkpoint', str(folder))
    assert ended(probe, sim) != 0
    said = [line for line in sim.lines if line.startswith('policy ended with exit code 1: ')]
    assert len(said) == 1 and str(folder / 'model.safetensors') in said[0]

"""A run in simulation as one command: starts the nodes as processes, and ends them all cleanly."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
import fcntl
import os
from pathlib import Path
import random
import signal
import sys
import tempfile
import threading
import time
from typing import IO, TypeVar

from diffusion_policy_ros.nodes.bringup import metaworld_nodes, new_folder, NodeSpec, SimSettings
from diffusion_policy_ros.nodes.process import complain, NodeProcess
from diffusion_policy_ros.nodes.record_bringup import record_nodes, RecordSettings
from diffusion_policy_ros.nodes.stop_signals import on_stop_signals

WRONG_SETTING, ENDED_EARLY = 1, 3  # exit codes; 128 + n after signal n
POLL_S = 0.1
T = TypeVar('T', SimSettings, RecordSettings)
# Each kind of end gets its time: the executor sends a hold, sim_runner finishes the video.
ENDINGS = ((signal.SIGINT, 10.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0))
LAST_SAFE_DOMAIN = 101  # above, on Linux, its ports may be taken by outgoing connections


class Supervisor:
    """
    Keeps the processes of one run.

    Args:
        specs: what to start; sim_runner, whose end is the run's, among them.
        folder: of logs and parameter files.
        domain_id: that the nodes talk in.
        respawn: start the policy again when it was killed.
    """

    def __init__(self, specs: Sequence[NodeSpec], folder: Path, domain_id: int,
                 respawn: bool) -> None:
        self._specs, self._folder, self._respawn = specs, folder, respawn
        self._environment = {
            **os.environ, 'ROS_DOMAIN_ID': str(domain_id), 'PYTHONUNBUFFERED': '1',
            'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST', 'ROS_LOG_DIR': str(folder),
            'RCUTILS_COLORIZED_OUTPUT': '0'}
        self._processes: dict[str, NodeProcess] = {}
        self._signal = 0
        self._wake = threading.Event()
        on_stop_signals(self._interrupt)

    def run(self) -> int:
        """Start all, wait for the end, end all; return the exit code."""
        try:
            for spec in self._specs:
                self._start(spec)
            code = self._watch()
        finally:
            self._end()
        return code

    def _start(self, spec: NodeSpec) -> None:
        own_terminal = spec.executable == 'sim_runner'
        self._processes[spec.executable] = NodeProcess(
            spec, self._folder, self._environment, own_terminal)

    def _watch(self) -> int:
        """Return the exit code once sim_runner ended, another died, or a signal came."""
        while not self._signal:
            for process in self._processes.values():
                process.pass_on_warnings()
            for name, process in list(self._processes.items()):
                code = process.exit_code
                if code is None or process.given_up:
                    continue
                if name == 'sim_runner':
                    return code if code >= 0 else ENDED_EARLY
                if not self._may_come_back(name, process):
                    complain(f'{name} {process.ending}; log: {process.log_path}')
                    return WRONG_SETTING if code == WRONG_SETTING else ENDED_EARLY
            self._wake.wait(POLL_S)
        return 128 + self._signal

    def _may_come_back(self, name: str, process: NodeProcess) -> bool:
        """Return whether to go on: sim_runner waits for a policy that was killed, and says so."""
        if name != 'policy' or process.exit_code >= 0:
            return False
        if self._respawn:
            complain(f'{name} {process.ending}: starting it again')
            self._start(process.spec)
        else:
            complain(f'{name} {process.ending}: waiting for it; it starts again with\n  '
                     f'{process.command_line}')
            process.given_up = True
        return True

    def _interrupt(self, number: int, frame: object) -> None:
        self._signal = number
        self._wake.set()

    def _end(self) -> None:
        for number, seconds in ENDINGS:
            deadline = time.monotonic() + seconds
            for process in self._processes.values():
                process.send(number)
            while self._alive() and time.monotonic() < deadline:
                time.sleep(0.02)
            if not self._alive():
                break
        for process in self._processes.values():
            process.pass_on_warnings()
            process.send(signal.SIGKILL)  # what a node may have started itself

    def _alive(self) -> bool:
        return any(process.exit_code is None for process in self._processes.values())


def own_domain() -> tuple[int, IO[str]]:
    """
    Return a ROS_DOMAIN_ID that no other run on this machine has, and the open file that says so.

    Raises:
        ValueError: all are taken.
    """
    for domain_id in random.sample(range(1, LAST_SAFE_DOMAIN + 1), LAST_SAFE_DOMAIN):
        path = Path(tempfile.gettempdir(), f'diffusion_policy_ros-{os.getuid()}-{domain_id}.lock')
        lock = path.open('w')
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        return domain_id, lock
    raise ValueError(f'all of ROS_DOMAIN_ID 1 to {LAST_SAFE_DOMAIN} are taken by other runs')


def parse(prog: str, cls: type[T],
          arguments: Sequence[str] | None) -> tuple[T, argparse.Namespace]:
    """
    Return the settings and the options that are the supervisor's own.

    Raises:
        ValueError: in one line: a setting that cannot be.
    """
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    for item in fields(cls):
        flag, text = f'--{item.name.replace("_", "-")}', item.metadata['description']
        if isinstance(item.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=item.default,
                                help=text)
        else:
            parser.add_argument(flag, type=type(item.default), default=item.default, help=text,
                                choices=item.metadata.get('choices'))
    parser.add_argument('--domain-id', type=int, help='ROS_DOMAIN_ID; one of its own if not given')
    parser.add_argument('--respawn', action='store_true',
                        help='start the policy again when it was killed')
    options = parser.parse_args(arguments)
    if not options.episodes:
        raise ValueError('episodes is 0, expected at least 1: the launch file starts an arm '
                         'without sim_runner')
    return cls(**{item.name: getattr(options, item.name) for item in fields(cls)}), options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run episodes from the command line."""
    return supervise('metaworld_sim', 'sim', SimSettings, metaworld_nodes, arguments)


def record(arguments: Sequence[str] | None = None) -> int:
    """Record demonstrations from the command line."""
    return supervise('record_demos', 'record', RecordSettings, record_nodes, arguments)


def supervise(prog: str, kind: str, cls: type[T], nodes: Callable[[T], list[NodeSpec]],
              arguments: Sequence[str] | None) -> int:
    """
    Run the nodes of some settings to their end; return the exit code.

    Args:
        prog: name of the command.
        kind: folder in out/ for what it writes.
        cls: class of settings.
        nodes: from settings to nodes.
        arguments: of the command line.
    """
    try:
        settings, options = parse(prog, cls, arguments)
        out = Path(settings.out or new_folder(kind)).resolve()
        specs = nodes(replace(settings, out=str(out)))
        given = options.domain_id is not None
        domain_id, lock = (options.domain_id, None) if given else own_domain()
        log = out / 'log'
        log.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        complain(f'{prog}: {error}')
        return WRONG_SETTING
    print(f'{", ".join(spec.executable for spec in specs)} in ROS_DOMAIN_ID {domain_id}, '
          f'logs in {log}', flush=True)
    try:
        return Supervisor(specs, log, domain_id, options.respawn).run()
    finally:
        if lock is not None:
            lock.close()


if __name__ == '__main__':
    sys.exit(main())

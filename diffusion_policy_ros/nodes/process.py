"""One node as a child process: its command, its log, its end."""

from __future__ import annotations

from collections.abc import Mapping
import contextlib
import os
from pathlib import Path
import re
import shlex
import signal
import subprocess
import sys

import yaml

from diffusion_policy_ros.nodes.bringup import NodeSpec

CHILD = 'diffusion_policy_ros.nodes.child'
# '[WARN] [1700000000.123456789] [policy]: ee_pose refused: ...'
WARNING = re.compile(r'^\[(?:WARN|ERROR|FATAL)\] \[[\d.]+\] \[(?P<node>[^\]]+)\]: (?P<text>.*?)'
                     r'(?: \(\d+ times so far\))?$')
TAIL = 4096  # bytes of a log that its last line is looked for in


class NodeProcess:
    """
    Starts at once, in a process group of its own, and dies with its parent.

    Args:
        spec: what to start.
        folder: of its parameter file and log.
        environment: of the process.
        own_terminal: leave its standard output to the terminal.

    Attributes:
        given_up: the parent has taken note of its end.
    """

    def __init__(self, spec: NodeSpec, folder: Path, environment: Mapping[str, str],
                 own_terminal: bool = False) -> None:
        self.spec, self.given_up = spec, False
        self._said: set[str] = set()
        self.log_path = folder / f'{spec.executable}.log'
        parameters = folder / f'{spec.executable}.yaml'
        parameters.write_text(yaml.safe_dump({'/**': {'ros__parameters': spec.parameters}}))
        self._command = [sys.executable, '-m', CHILD, spec.module, *spec.ros_arguments,
                         '--params-file', str(parameters)]
        self._domain_id = environment['ROS_DOMAIN_ID']
        with self.log_path.open('ab') as log:
            self._read = log.tell()
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=None if own_terminal else log,
                stderr=log, env=dict(environment), start_new_session=True)

    @property
    def exit_code(self) -> int | None:
        """None while it runs; -n after signal n."""
        return self._process.poll()

    @property
    def command_line(self) -> str:
        """What a shell takes to start it again."""
        return f'ROS_DOMAIN_ID={self._domain_id} {shlex.join(self._command)}'

    @property
    def ending(self) -> str:
        """How it ended, in words, with the last line that it wrote where it ended by itself."""
        code = self._process.returncode
        if code < 0:
            return f'was ended by {signal.Signals(-code).name}'
        with self.log_path.open('rb') as log:
            log.seek(max(self._read - TAIL, 0))
            lines = log.read().decode(errors='replace').strip().splitlines()
        return f'ended with exit code {code}' + (f': {lines[-1]}' if lines else '')

    def send(self, number: int) -> None:
        """Send a signal to the process; SIGKILL goes to what it started, too."""
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)

    def pass_on_warnings(self) -> None:
        """Print the warnings and errors that are new in its log, each text once."""
        with self.log_path.open('rb') as log:
            log.seek(self._read)
            while (line := log.readline()).endswith(b'\n'):
                self._read = log.tell()
                match = WARNING.match(line.decode(errors='replace').rstrip())
                if match and match['text'] not in self._said:
                    self._said.add(match['text'])
                    complain(f'{match["node"]}: {match["text"]}')


def complain(line: str) -> None:
    """Print to stderr, over the progress line of sim_runner."""
    with contextlib.suppress(OSError):  # the terminal was closed; what is running must still end
        clear = '\r\x1b[K' if sys.stderr.isatty() else ''
        print(f'{clear}{line}', file=sys.stderr, flush=True)

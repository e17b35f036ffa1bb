"""How a run's processes are kept and ended, and what a closed terminal does to that."""

from __future__ import annotations

import signal
import sys

import pytest

from diffusion_policy_ros.nodes.process import complain
from diffusion_policy_ros.nodes.stop_signals import ENDING, on_stop_signals


@pytest.fixture(autouse=True)
def handlers():
    """Restore the signals' handlers."""
    before = {number: signal.getsignal(number) for number in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_closed_terminal_ends_a_process_but_under_nohup():
    caught = []
    on_stop_signals(lambda number, frame: caught.append(number))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.raise_signal(number)
    assert caught == [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    on_stop_signals(lambda number, frame: caught.append(number))
    signal.raise_signal(signal.SIGHUP)
    assert len(caught) == 3


class ClosedTerminal:
    """What a process writes to once its terminal is gone."""

    def isatty(self):
        return True

    def write(self, text):
        raise OSError(5, 'Input/output error')

    def flush(self):
        raise OSError(5, 'Input/output error')


def test_what_nobody_can_read_stops_nothing(monkeypatch):
    monkeypatch.setattr(sys, 'stderr', ClosedTerminal())
    complain('policy was ended by SIGKILL')

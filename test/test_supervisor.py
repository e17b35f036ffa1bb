"""How a run's processes are kept and ended, and what a closed terminal does to that."""

from __future__ import annotations

import signal
import sys

import pytest

from diffusion_policy_ros.nodes.process import complain
from diffusion_policy_ros.nodes.stop_signals import ENDING, on_stop_signals
from diffusion_policy_ros.nodes.supervisor import main, Supervisor


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


class Ended:
    """A process that has ended."""

    given_up, ending, log_path = False, 'ended', 'its log'

    def __init__(self, exit_code):
        self.exit_code = exit_code

    def pass_on_warnings(self):
        pass

    def send(self, number):
        pass


@pytest.mark.parametrize('of_a_node, of_the_run', [(1, 1), (0, 3), (2, 3), (-9, 3)])
def test_a_wrong_setting_is_told_from_an_early_end(tmp_path, of_a_node, of_the_run):
    run = Supervisor((), tmp_path, 1, respawn=False)
    run._processes = {'chunk_executor': Ended(of_a_node)}
    assert run.run() == of_the_run


def test_the_domain_that_is_asked_for_is_taken_even_where_it_is_0(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(Supervisor, 'run', lambda self: 0)
    assert main(['--domain-id', '0', '--out', str(tmp_path)]) == 0
    assert 'in ROS_DOMAIN_ID 0, ' in capsys.readouterr().out


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

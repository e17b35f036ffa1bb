"""What the executor says of itself, by a steady clock that is set by hand."""

from __future__ import annotations

from dataclasses import replace

from diagnostic_msgs.msg import DiagnosticStatus
import pytest

from diffusion_policy_ros.datatypes import NS_PER_S, Status
from diffusion_policy_ros.nodes import chunk_executor_node
from diffusion_policy_ros.nodes.guard import Guard
from diffusion_policy_ros.nodes.parameters import declare


class Said:
    """An executor that is not spun, and what it has said at which second."""

    def __init__(self, lockstep):
        self.now_ns, self.logged, self.published = 0, [], []
        self.node = node = chunk_executor_node.ChunkExecutorNode()
        node._lockstep = lockstep
        node._guard = Guard(lambda line: None, lambda: self.now_ns)
        node._diagnostics.publish = lambda: self.published.append(
            (self.now_ns // NS_PER_S, node._report()[1]))

    def note(self, *statuses):
        """Tick once a second, each time with another status."""
        for status in statuses:
            self.node._note(status)
            self.now_ns += NS_PER_S


@pytest.fixture()
def said(ros, monkeypatch):
    """Return a function that makes such an executor."""
    made = []

    def make(lockstep=False):
        made.append(Said(lockstep))
        return made[-1]

    monkeypatch.setattr(chunk_executor_node, 'declare', lambda node, cls: replace(
        declare(node, cls), arm='arms/example.yaml'))
    monkeypatch.setattr(chunk_executor_node, 'log_outcome', lambda node, is_fine, line: (
        made[-1].logged.append((made[-1].now_ns // NS_PER_S, line))))
    yield make
    for each in made:
        each.node.destroy_node()


def test_the_last_line_is_the_present_status_if_late(said):
    said, held, tracking = said(), Status.HELD, Status.TRACKING
    said.note(held, tracking, *[held] * 10)
    assert said.logged == said.published == [
        (0, held.value), (1, tracking.value), (5, held.value)]


def test_a_status_that_flaps_is_logged_every_five_seconds_at_most(said):
    said, held, tracking = said(), Status.HELD, Status.TRACKING
    said.note(*[held, tracking] * 10)
    for status in (held, tracking):
        seconds = [second for second, line in said.logged if line == status.value]
        assert len(seconds) >= 3
        assert all(later - earlier >= 5 for earlier, later in zip(seconds, seconds[1:]))


def test_a_wait_in_lockstep_is_no_status_but_hides_none(said):
    said, held, tracking = said(lockstep=True), Status.HELD, Status.TRACKING
    said.note(held, tracking, held, *[Status.NO_CHUNK] * 4)
    assert said.logged == said.published == [
        (0, held.value), (1, tracking.value), (5, held.value)]


@pytest.mark.parametrize('by_the_core', [True, False])
def test_a_refusal_is_a_warning_for_ten_seconds(said, by_the_core):
    said = said()
    node = said.node
    assert node._report()[0] == DiagnosticStatus.OK
    if by_the_core:
        node._say_refused('ee_trajectory', node._core.refuse_chunk(NS_PER_S, 'x: 1, expected 2'))
        values = {'refused x': 1}
    else:
        node._guard.refuse('ee_pose', 'stamp: 1, expected 2')
        values = {'refused ee_pose stamp': 1}
    assert node._report()[0] == DiagnosticStatus.WARN
    said.now_ns += 10 * NS_PER_S
    level, _, found = node._report()
    assert level == DiagnosticStatus.OK and values.items() <= found.items()

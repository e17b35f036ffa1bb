"""What is refused is counted each time, and logged at a limited rate."""

from __future__ import annotations

from diffusion_policy_ros.datatypes import NS_PER_S
from diffusion_policy_ros.nodes.guard import Guard


class Clock:
    """A steady clock that is set by hand."""

    now_ns = 7

    def __call__(self):
        return self.now_ns


def test_a_flood_is_one_line_and_a_count():
    lines, clock = [], Clock()
    guard = Guard(lines.append, clock)
    for found in range(100):
        guard.refuse('ee_pose', f'stamp: {found}, expected more')
    assert lines == ['ee_pose refused: stamp: 0, expected more']
    assert guard.refused == {'ee_pose stamp': 100}
    clock.now_ns += 5 * NS_PER_S
    guard.refuse('ee_pose', 'stamp: 100, expected more')
    assert lines[1:] == ['ee_pose refused: stamp: 100, expected more (101 times so far)']


def test_each_topic_and_reason_has_its_own_line():
    lines = []
    guard = Guard(lines.append, Clock())
    for topic in ('a', 'b'):
        for reason in ('x', 'y'):
            guard.refuse(topic, f'{reason}: 1, expected 2')
    assert len(lines) == 4 and len(guard.refused) == 4


def test_a_guarded_callback_refuses_value_errors():
    def callback(message):
        if message < 0:
            raise ValueError(f'sign: {message}, expected more than 0')
        taken.append(message)

    lines, taken = [], []
    guard = Guard(lines.append, Clock())
    guarded = guard('numbers', callback)
    for message in (1, -2, 3):
        guarded(message)
    assert taken == [1, 3]
    assert lines == ['numbers refused: sign: -2, expected more than 0']


def test_a_refusal_is_recent_for_ten_seconds_and_counted_for_ever():
    lines, clock = [], Clock()
    guard = Guard(lines.append, clock)
    assert not guard.recent
    guard.say('not ready', 'no chunk', 1)
    assert not guard.recent
    for _ in range(2):
        guard.refuse('a', 'x: 1, expected 2')
        clock.now_ns += 10 * NS_PER_S - 1
        assert guard.recent
        clock.now_ns += 1
        assert not guard.recent
    assert guard.refused == {'a x': 2}


def test_what_another_counts_is_recent_too_but_not_counted_twice():
    lines = []
    guard = Guard(lines.append, Clock())
    guard.refuse('a', 'x: 1, expected 2', 7)
    assert guard.recent and not guard.refused
    assert lines == ['a refused: x: 1, expected 2 (7 times so far)']

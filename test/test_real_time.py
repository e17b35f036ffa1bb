"""The search for the largest real-time factor, and what counts as late."""

from hypothesis import given
from hypothesis import strategies as st
import pytest

from diffusion_policy_ros.nodes.real_time import (
    FASTEST, keeps_up, largest_factor, RESOLUTION, SLOWEST,
)

MS = 1_000_000


def search(limit):
    """Return the answer for a machine that holds up to `limit`, and what was tried."""
    tried = []

    def holds(factor):
        tried.append((round(factor, 3), factor <= limit))
        return factor <= limit

    return largest_factor(holds), tried


def test_the_row_of_its_docstring():
    factor, tried = search(0.4)
    assert factor == pytest.approx(0.386, abs=1e-3)
    assert tried == [(1.0, False), (0.5, False), (0.25, True), (0.354, True), (0.42, False),
                     (0.386, True)]


@given(st.floats(SLOWEST, FASTEST * 0.99))
def test_the_answer_is_held_and_hardly_too_small(limit):
    factor, tried = search(limit)
    assert limit / RESOLUTION <= factor <= limit
    assert len(tried) <= 12


def test_at_the_ends():
    assert search(SLOWEST / 2)[0] is None
    assert search(1000.0)[0] == FASTEST


def lateness(stamps_ms, ages_ms):
    return keeps_up([ms * MS for ms in stamps_ms], [ms * MS for ms in ages_ms],
                    period_ns=50 * MS, budget_ns=37 * MS, tolerance_ns=12 * MS)


@pytest.mark.parametrize('stamps_ms, ages_ms, expected', [
    ([0, 50, 100], [10, 12, 37], True),
    ([0, 62, 100], [10, 10, 10], True),   # due at the first tick after its time
    ([0, 50, 150], [10, 10, 10], False),  # one chunk was left out
    ([0, 50, 100], [10, 38, 10], False),  # the plan and its reserve were used up
])
def test_a_late_chunk_is_noticed(stamps_ms, ages_ms, expected):
    assert lateness(stamps_ms, ages_ms) is expected

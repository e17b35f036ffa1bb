"""Counts, gaps and losses of a recorded topic."""

from __future__ import annotations

from hypothesis import given, strategies

from diffusion_policy_ros.data.topic_stats import TopicStats
from diffusion_policy_ros.datatypes import NS_PER_S

MS = 1_000_000


def filled(stamps_ms, numbers):
    stats = TopicStats()
    for stamp_ms, number in zip(stamps_ms, numbers, strict=True):
        stats.add(stamp_ms * MS, number)
    return stats


def test_rate_and_largest_gap_come_from_the_stamps():
    stats = filled([1000, 1010, 1020, 1070], [4, 5, 6, 7])
    assert stats.summary() == {'count': 4, 'rate_hz': round(3 / 0.07, 3), 'largest_gap_s': 0.05,
                               'lost': 0, 'dropped': 0, 'backward_stamps': 0}
    assert str(stats) == '4 at 42.9 Hz, largest gap 0.050 s, 0 lost'


def test_more_than_one_publisher_is_said():
    stats = filled([1, 2], [1, 2])
    stats.publishers = 1
    assert str(stats).endswith(', 0 lost') and stats.summary()['publishers'] == 1
    stats.publishers = 2
    assert str(stats).endswith(', 0 lost, 2 publishers') and stats.summary()['publishers'] == 2


def test_one_message_has_no_rate():
    assert filled([5], [1]).rate_hz == TopicStats().rate_hz == 0.0


def test_the_gap_is_returned():
    stats = TopicStats()
    assert [stats.add(stamp * MS, None) for stamp in (7, 9, 8)] == [0, 2 * MS, 0]
    assert stats.backward == 1


def test_numbers_that_are_missing_are_lost():
    assert filled([1, 2, 3], [10, 12, 15]).lost == 3


def test_what_was_dropped_counts_with_what_was_lost_before_it():
    stats = filled([1], [10])
    stats.drop(12)
    assert stats.lost == 2
    stats.add(3 * MS, 13)
    assert (stats.lost, stats.count) == (2, 2)


def test_what_was_dropped_first_is_one():
    stats = TopicStats()
    stats.drop(500)
    stats.add(MS, 501)
    assert stats.lost == 1


def test_without_numbers_or_with_numbers_that_go_back_the_loss_is_unknown():
    for numbers in ([1, None, 3], [5, 6, 1], [5, 5, 6]):
        stats = filled([1, 2, 3], numbers)
        assert stats.lost is None
        assert stats.summary()['lost'] == 'unknown'
        assert str(stats).endswith('loss unknown')
    stats.drop(9)
    assert stats.lost is None


def test_what_was_dropped_counts_whatever_numbers_there_are():
    for numbers, lost in ([1, 2], '2 lost'), ([None, None], 'loss unknown'):
        stats = filled([1, 2], numbers)
        for number in (3, 4):
            stats.drop(number if numbers[0] else None)
        assert stats.dropped == stats.summary()['dropped'] == 2
        assert str(stats).endswith(f', {lost}, 2 dropped by the recorder')
    stats = TopicStats()
    stats.drop(None)
    assert str(stats) == 'no message, 1 dropped by the recorder'


@given(strategies.integers(1, 1000), strategies.lists(
    strategies.sampled_from(['kept', 'dropped', 'lost']), max_size=50))
def test_every_number_is_kept_or_lost(first, fates):
    stats, number = TopicStats(), first
    stats.add(NS_PER_S, number)
    for fate in fates:
        number += 1
        if fate == 'kept':
            stats.add(NS_PER_S + number, number)
        elif fate == 'dropped':
            stats.drop(number)
    number += 1
    stats.add(2 * NS_PER_S, number)
    assert stats.count + stats.lost == number - first + 1

"""Windows follow from stamps alone, by one rule for training, replay and use."""

import time

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from diffusion_policy_ros.control.horizon import (
    ChunkSchedule, Horizon, MAX_LAG_NS, NotReady, SETTLE_NS, window_indices,
)
from diffusion_policy_ros.datatypes import EE_POSE, GRIPPER, Observation

MS = 1_000_000
S = 1000 * MS
DT = 50 * MS


def push(horizon, stream, *stamps_ms):
    for stamp_ms in stamps_ms:
        horizon.push(observation(stream, stamp_ms))


def observation(stream, stamp_ms):
    """Make a sample whose value is its stamp, so that a window shows what it took."""
    value = np.array([stamp_ms], float)
    return Observation(stream, round(stamp_ms * MS), value, f'{stream}_frame')


def slots(window, stream):
    assert not isinstance(window, NotReady), window.reason
    return window.streams[stream].ravel().tolist()


# The pure rule

def indices(stamps_ms, t_ms, dt_ms=20, n=3, tolerance_ms=20, first_ms=100):
    found = window_indices(np.array(stamps_ms, np.int64), t_ms, dt_ms, n, tolerance_ms, first_ms)
    return None if found is None else [stamps_ms[i] for i in found]


@pytest.mark.parametrize('t, expected', [
    (100, [100, 100, 100]),
    (125, [100, 100, 120]),
    (150, [110, 130, 150]),
])
def test_the_row_in_the_docstring(t, expected):
    assert indices([100, 110, 120, 130, 140, 150], t) == expected


def test_the_newest_sample_at_or_before_each_slot_is_taken():
    assert indices([100, 119, 121, 139, 141, 160], 160) == [119, 139, 160]


def test_a_sample_may_be_as_old_as_the_tolerance_and_no_older():
    assert indices([100, 120, 140], 160) == [120, 140, 140]
    assert indices([100, 120, 140], 161) is None


def test_only_slots_before_the_first_complete_sample_are_padded():
    assert indices([100, 110, 160], 160) is None  # a hole at 140
    assert indices([104, 110], 110, first_ms=104) == [104, 104, 110]
    assert indices([110], 110) is None  # nothing at the first time


def test_no_stamp_from_the_future_enters():
    assert indices([100, 120, 140, 160], 140) == [100, 120, 140]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(0, 40),
       st.integers(1, 40), st.integers(1, 5), st.integers(1, 60))
def test_each_slot_is_the_newest_that_is_old_enough(steps, pick, dt, n, tolerance):
    stamps = np.cumsum(steps) + 100
    t = int(stamps[pick % len(stamps)]) + pick
    first = int(stamps[0])
    found = window_indices(stamps, t, dt, n, tolerance, first)
    for slot in range(n):
        slot_time = max(t - (n - 1 - slot) * dt, first)
        newest = max(stamp for stamp in stamps.tolist() if stamp <= slot_time)
        if found is None:
            continue
        assert stamps[found[slot]] == newest and slot_time - newest <= tolerance
    ages = [max(t - i * dt, first) for i in range(n)]
    holes = [age - max(s for s in stamps.tolist() if s <= age) > tolerance for age in ages]
    assert (found is None) == any(holes)


# The live object

def test_t_is_the_minimum_of_the_newest_stamps():
    horizon = Horizon(['wrist', EE_POSE], 1, DT)
    push(horizon, EE_POSE, 1000, 1010, 1020)
    assert horizon.stamp_ns is None
    push(horizon, 'wrist', 1005)
    assert horizon.stamp_ns == 1005 * MS
    assert horizon.episode_start_ns == 1005 * MS
    assert slots(horizon.window(), EE_POSE) == [1000]


def test_a_window_holds_each_stream_oldest_first_and_the_frame_of_the_pose():
    horizon = Horizon(['wrist', EE_POSE, GRIPPER], 2, DT)
    for stamp in (1000, 1025, 1050, 1075):
        push(horizon, EE_POSE, stamp)
        push(horizon, GRIPPER, stamp)
    push(horizon, 'wrist', 1000, 1050)
    window = horizon.window()
    assert window.stamp_ns == 1050 * MS
    assert window.frame_id == f'{EE_POSE}_frame'
    assert list(window.streams) == ['wrist', EE_POSE, GRIPPER]
    assert [slots(window, name) for name in window.streams] == [[1000, 1050]] * 3


def test_the_start_is_padded_with_the_first_complete_sample():
    horizon = Horizon(['wrist', EE_POSE], 3, DT)
    push(horizon, EE_POSE, 960, 980, 1000, 1020)
    push(horizon, 'wrist', 1010)
    assert slots(horizon.window(), EE_POSE) == [1000, 1000, 1000]
    assert slots(horizon.window(), 'wrist') == [1010, 1010, 1010]


def test_a_window_for_an_earlier_time_can_be_had():
    horizon = Horizon(['wrist', EE_POSE], 2, DT)
    for name in ('wrist', EE_POSE):
        push(horizon, name, 1000, 1050, 1100)
    assert slots(horizon.window(1060 * MS), 'wrist') == [1000, 1050]
    assert 'the episode began' in horizon.window(999 * MS).reason


def test_before_anything_arrives_the_reason_names_the_stream():
    horizon = Horizon(['wrist', EE_POSE], 2, DT)
    push(horizon, 'wrist', 1000)
    assert horizon.window() == NotReady('ee_pose: nothing has arrived')


def test_a_repeated_stamp_changes_nothing():
    horizon = Horizon([EE_POSE], 2, DT)
    push(horizon, EE_POSE, 1000, 1050)
    horizon.push(Observation(EE_POSE, 1050 * MS, np.array([-1.0]), 'other'))
    assert slots(horizon.window(), EE_POSE) == [1000, 1050]
    assert horizon.episode_start_ns == 1000 * MS


def test_an_unknown_stream_is_named():
    with pytest.raises(ValueError, match="stream 'left' is not one of"):
        push(Horizon([EE_POSE], 2, DT), 'left', 1000)


@pytest.mark.parametrize('arguments', [
    ([], 2, DT), ([EE_POSE], 0, DT), ([EE_POSE], 2, 0), ([EE_POSE], 2, DT, 0)])
def test_numbers_without_sense_are_refused(arguments):
    with pytest.raises(ValueError, match='expected a stream and numbers above 0'):
        Horizon(*arguments)


# Episodes

def test_a_gap_begins_an_episode_once_every_stream_is_past_it():
    horizon = Horizon(['wrist', EE_POSE], 2, DT)
    for name in ('wrist', EE_POSE):
        push(horizon, name, 1000, 1050)
    push(horizon, EE_POSE, 3050)
    assert horizon.stamp_ns is None and horizon.episode_start_ns is None
    assert horizon.window() == NotReady(
        'wrist: its newest sample is 2.000 s old and from before the episode')
    push(horizon, 'wrist', 1100, 1150)  # late, of the episode before
    assert horizon.window().reason.startswith('wrist')
    push(horizon, 'wrist', 3050)
    assert horizon.episode_start_ns == 3050 * MS
    assert slots(horizon.window(), 'wrist') == [3050, 3050]


def test_a_gap_in_one_stream_alone_begins_an_episode():
    horizon = Horizon(['wrist', EE_POSE], 2, DT)
    push(horizon, EE_POSE, *range(1000, 1300, 10))
    push(horizon, 'wrist', 1000, 1050)
    assert horizon.episode_start_ns == 1000 * MS
    push(horizon, 'wrist', 1200)
    assert horizon.episode_start_ns == 1200 * MS
    assert slots(horizon.window(), EE_POSE) == [1200, 1200]


def test_a_step_of_exactly_the_tolerance_is_no_gap():
    horizon = Horizon([EE_POSE], 2, DT)
    push(horizon, EE_POSE, 1000, 1050, 1100)
    assert horizon.episode_start_ns == 1000 * MS
    push(horizon, EE_POSE, 1150.000001)
    assert horizon.episode_start_ns == 1150 * MS + 1


def test_a_jump_back_begins_an_episode_without_samples_of_the_old_one():
    horizon = Horizon(['wrist', EE_POSE], 2, DT)
    for name in ('wrist', EE_POSE):
        push(horizon, name, *range(1000, 1500, 50))
    push(horizon, EE_POSE, 1200)
    assert horizon.stamp_ns is None
    assert 'jumped back' in horizon.window().reason or 'old' in horizon.window().reason
    push(horizon, 'wrist', 1500)  # late, of the old time
    assert horizon.stamp_ns is None
    push(horizon, 'wrist', 1200)
    assert horizon.episode_start_ns == horizon.stamp_ns == 1200 * MS
    assert slots(horizon.window(), 'wrist') == [1200, 1200]


def test_a_stream_that_jumps_back_alone_is_believed_after_a_while():
    horizon = Horizon(['wrist', EE_POSE], 1, DT)
    push(horizon, EE_POSE, *range(1000, 1500, 10))
    push(horizon, 'wrist', *range(1000, 1500, 50), 1300)
    settled = 1300 + SETTLE_NS // MS
    for stamp in range(1350, settled, 50):
        push(horizon, 'wrist', stamp)
        push(horizon, EE_POSE, *range(stamp + 150, stamp + 200, 10))
        assert horizon.stamp_ns is None
    push(horizon, 'wrist', settled)
    assert horizon.stamp_ns == horizon.episode_start_ns == settled * MS


def test_a_sample_a_little_late_in_its_own_stream_is_dropped():
    horizon = Horizon([EE_POSE], 2, DT)
    push(horizon, EE_POSE, 1000, 1050, 1040, 1100)
    assert horizon.episode_start_ns == 1000 * MS
    assert slots(horizon.window(), EE_POSE) == [1050, 1100]


def test_reset_forgets_all():
    horizon = Horizon([EE_POSE], 2, DT)
    push(horizon, EE_POSE, 1000, 1050)
    horizon.reset()
    assert horizon.stamp_ns is None
    push(horizon, EE_POSE, 1060)
    assert horizon.episode_start_ns == 1060 * MS
    assert slots(horizon.window(), EE_POSE) == [1060, 1060]


def test_a_stream_slower_than_the_policy_is_refused_with_both_rates():
    horizon = Horizon(['wrist', EE_POSE], 2, DT)
    push(horizon, EE_POSE, *range(1000, 1401, 20))
    push(horizon, 'wrist', 1000, 1100)
    assert not isinstance(horizon.window(), NotReady)  # one lost frame looks like this
    push(horizon, 'wrist', 1200)
    assert horizon.window() == NotReady(
        'wrist comes at 10.0 Hz, slower than the 20.0 Hz that the policy needs')
    push(horizon, 'wrist', 1250)
    assert not isinstance(horizon.window(), NotReady)


def test_a_faster_stream_needs_nothing_special():
    horizon = Horizon(['wrist', EE_POSE], 2, DT)
    push(horizon, EE_POSE, *range(1000, 1501))
    push(horizon, 'wrist', *[1000 + 100 / 3 * i for i in range(16)])
    assert slots(horizon.window(), EE_POSE) == [1450, 1500]
    assert slots(horizon.window(), 'wrist')[0] <= 1450


def test_a_stream_too_far_behind_is_named():
    horizon = Horizon(['wrist', EE_POSE], 1, DT)
    push(horizon, 'wrist', 1000, 1040)
    push(horizon, EE_POSE, *range(1000, 2200, 10))
    assert horizon.window() == NotReady('wrist is 1.150 s behind ee_pose, at most 1.000 s is '
                                        'bridged')


def test_memory_is_bounded():
    horizon = Horizon([EE_POSE], 2, DT)
    push(horizon, EE_POSE, *range(1000, 20_000, 10))
    kept = horizon._streams[EE_POSE]
    assert len(kept.values) == len(kept.stamps) == (2 * DT + MAX_LAG_NS) // (10 * MS) + 1


EPISODE = st.lists(st.integers(1, 60), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_order_of_arrival_across_streams_changes_nothing(data):
    """Whatever the interleaving: gaps, jumps back, and streams that lag over an episode's end."""
    names = ['wrist', EE_POSE, GRIPPER]
    starts = data.draw(st.lists(st.sampled_from([300, 1000, 1100, 3000, 5000]), min_size=1,
                                max_size=3))
    sequences = {}
    for name in names:
        stamps = []
        for start in starts:
            stamps += (start + np.cumsum([0, *data.draw(EPISODE)])).tolist()
        sequences[name] = stamps

    def state_after(order):
        horizon = Horizon(names, 2, DT)
        position = dict.fromkeys(names, 0)
        for name in order:
            push(horizon, name, sequences[name][position[name]])
            position[name] += 1
        window = horizon.window()
        seen = window.reason if isinstance(window, NotReady) else {
            each: slots(window, each) for each in names}
        return horizon.stamp_ns, horizon.episode_start_ns, seen

    in_turn = [name for name in names for _ in sequences[name]]
    shuffled = data.draw(st.permutations(in_turn))
    assert state_after(shuffled) == state_after(in_turn)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([2000, -400]))
def test_however_streams_interleave_a_common_jump_is_one_episode(data, jump):
    """No window mixes the two sides, and the episode's first time changes once."""
    names = ['wrist', EE_POSE, GRIPPER]
    old = list(range(1000, 1500, 25))
    new = [stamp + jump for stamp in range(1500, 1800, 25)]
    order = data.draw(st.permutations([name for name in names for _ in old + new]))
    horizon = Horizon(names, 2, DT)
    position = dict.fromkeys(names, 0)
    starts = []
    for name in order:
        stamp = (old + new)[position[name]]
        position[name] += 1
        # The value tells the side, the stamp alone would not where time goes back.
        side = float(position[name] > len(old))
        horizon.push(Observation(name, stamp * MS, np.array([side]), ''))
        start = horizon.episode_start_ns
        if start is not None and (not starts or starts[-1] != start):
            starts.append(start)
        window = horizon.window()
        if not isinstance(window, NotReady):
            assert len({value for each in names for value in slots(window, each)}) == 1
    assert starts[-1] == new[0] * MS
    assert starts in ([old[0] * MS, new[0] * MS], [new[0] * MS])


def test_live_windows_are_those_of_the_pure_rule():
    stamps = {'wrist': np.arange(1000, 2000, 33), EE_POSE: np.arange(990, 2000, 12)}
    horizon = Horizon(list(stamps), 3, DT)
    arrivals = sorted((int(s), each) for each, values in stamps.items() for s in values)
    for stamp, name in arrivals:
        push(horizon, name, stamp)
        if horizon.stamp_ns is None:
            continue
        window = horizon.window()
        for each, values in stamps.items():
            chosen = window_indices(values * MS, window.stamp_ns, DT, 3, DT, 1000 * MS)
            assert slots(window, each) == values[chosen].tolist()


# When a chunk is due

def test_a_chunk_is_due_at_the_first_t_at_or_after_each_multiple():
    schedule = ChunkSchedule(100)
    due = [t for t in range(1000, 1500, 30) if schedule.due(t, 1000)]
    assert due == [1000, 1120, 1210, 1300, 1420]
    assert schedule.missed == 0


def test_a_multiple_is_due_once_and_missed_ones_are_counted():
    schedule = ChunkSchedule(100)
    assert schedule.due(1000, 1000) and not schedule.due(1000, 1000)
    assert schedule.due(1350, 1000) and not schedule.due(1399, 1000)
    assert schedule.missed == 2
    assert schedule.due(1400, 1000)


def test_a_start_within_an_episode_has_missed_nothing():
    schedule = ChunkSchedule(100)
    assert schedule.due(1777, 1000)
    assert schedule.missed == 0
    assert not schedule.due(1799, 1000) and schedule.due(1800, 1000)


@pytest.mark.parametrize('t, first', [(3000, 3000), (500, 500), (1010, 1000)])
def test_a_new_episode_or_an_earlier_t_is_due_at_once(t, first):
    schedule = ChunkSchedule(100)
    for earlier in (1000, 1050, 1100):
        schedule.due(earlier, 1000)
    assert schedule.due(t, first)
    assert schedule.missed == 0


def test_after_reset_the_next_t_is_due():
    schedule = ChunkSchedule(100)
    assert schedule.due(1000, 1000)
    schedule.reset()
    assert schedule.due(1001, 1000)


def test_a_period_of_nothing_is_refused():
    with pytest.raises(ValueError, match='period_ns is 0'):
        ChunkSchedule(0)


def test_a_push_and_a_window_are_cheap():
    """Two cameras, pose and gripper at 20 Hz; bounds of ten times what an idle core takes."""
    names = ['arm', 'wrist', EE_POSE, GRIPPER]
    horizon = Horizon(names, 2, DT)
    image = np.zeros((96, 96, 3), np.uint8)
    push_s, window_s = [], []
    for k in range(200):
        begin = time.perf_counter()
        for name in names:
            value = np.zeros(7) if name in (EE_POSE, GRIPPER) else image
            horizon.push(Observation(name, S + k * DT, value))
        middle = time.perf_counter()
        horizon.window()
        window_s.append(time.perf_counter() - middle)
        push_s.append((middle - begin) / len(names))
    assert min(push_s) < 50e-6
    assert min(window_s) < 500e-6

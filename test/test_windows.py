from demonstrations import STEP_NS, write_demonstrations
from hypothesis import given, strategies
import numpy as np
import pytest

from diffusion_policy_ros.control.horizon import Horizon
from diffusion_policy_ros.data.replay_buffer import load_replay_buffer, ReplayBuffer
from diffusion_policy_ros.data.windows import make_windows, segment_rows, segment_starts
from diffusion_policy_ros.datatypes import Observation


@pytest.fixture
def buffer(tmp_path):
    return load_replay_buffer(write_demonstrations(tmp_path / 'd.zarr', (10, 12), size=8),
                              ('arm',))


def test_worked_rows(buffer):
    windows = make_windows(buffer, n_obs_steps=2, horizon=8, n_action_steps=4, dt_ns=STEP_NS)
    # The second episode is rows 10 to 21: its first row, one in the middle, its last.
    assert windows.observed[10].tolist() == [10, 10]
    assert windows.acted[10].tolist() == [10, 10, 11, 12, 13, 14, 15, 16]
    assert windows.observed[14].tolist() == [13, 14]
    assert windows.acted[14].tolist() == [13, 14, 15, 16, 17, 18, 19, 20]
    assert windows.observed[21].tolist() == [20, 21]
    assert windows.acted[21].tolist() == [20, 21, 21, 21, 21, 21, 21, 21]
    # At most Ta - 1 = 3 targets are repeated at the end.
    assert np.flatnonzero(windows.trained[10:]).tolist() == list(range(9))


def test_strided_rows_repeat_the_first_sample_before_the_episode(buffer):
    windows = make_windows(buffer, n_obs_steps=2, horizon=4, n_action_steps=1, dt_ns=4 * STEP_NS)
    assert windows.observed[:6].tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [0, 4], [1, 5]]
    assert windows.acted[5].tolist() == [1, 5, 9, 9]


@pytest.mark.parametrize('stride', [1, 4])
def test_windows_are_those_of_the_live_horizon(buffer, stride):
    windows = make_windows(buffer, n_obs_steps=3, horizon=4, n_action_steps=1,
                           dt_ns=stride * STEP_NS)
    start = 10**9
    for rows in buffer.episodes():
        horizon = Horizon(('row',), 3, stride * STEP_NS)
        for row in range(rows.start, rows.stop):
            stamp_ns = start + (row - rows.start) * STEP_NS
            horizon.push(Observation('row', stamp_ns, np.array([row])))
            live = horizon.window().streams['row'][:, 0]
            np.testing.assert_array_equal(windows.observed[row], live)


def stamped(stamps_ns, is_observation, ends=None, **attributes):
    """Return a recording of some rows without anything to see."""
    n = len(stamps_ns)
    return ReplayBuffer(
        {'stamp_ns': np.asarray(stamps_ns), 'is_observation': np.asarray(is_observation, bool)},
        np.array(ends or [n]), attributes, {})


def test_a_recording_has_a_window_for_each_observation():
    # A camera every 30 ms and poses every 10, between them the targets.
    rows = np.arange(0, 130, 10)
    buffer = stamped(rows, rows % 30 == 0)
    windows = make_windows(buffer, n_obs_steps=2, horizon=4, n_action_steps=1, dt_ns=50)
    assert rows[windows.observed].tolist() == [[0, 0], [0, 30], [10, 60], [40, 90], [70, 120]]
    assert rows[windows.acted].tolist() == [
        [0, 0, 50, 100], [0, 30, 80, 120], [10, 60, 110, 120], [40, 90, 120, 120],
        [70, 120, 120, 120]]
    assert windows.trained.tolist() == [True, False, False, False, False]
    assert windows.stride == 2


@given(strategies.integers(0, 2**32 - 1))
def test_a_recordings_windows_are_those_of_the_live_horizon(seed):
    rng = np.random.default_rng(seed)
    streams = {name: np.unique(10**9 + np.cumsum(rng.integers(*steps, 40)))
               for name, steps in (('camera', (25, 40)), ('other', (20, 45)), ('pose', (5, 15)))}
    first = max(stamps[0] for stamps in streams.values())
    end = min(stamps[-1] for stamps in streams.values())
    rows = np.unique(np.concatenate([*streams.values(), [first]]))
    rows = rows[(rows >= first) & (rows <= end)]
    newest = {name: np.searchsorted(stamps, rows, 'right') - 1
              for name, stamps in streams.items()}
    windows = make_windows(stamped(rows, np.isin(rows, streams['camera']), tolerance_ns=60),
                           n_obs_steps=3, horizon=4, n_action_steps=1, dt_ns=45)
    horizon = Horizon(tuple(streams), 3, 45, 60)
    for stamp, name, number in sorted((stamp, name, number) for name, stamps in streams.items()
                                      for number, stamp in enumerate(stamps.tolist())):
        horizon.push(Observation(name, stamp, np.array([number])))
    for observed in windows.observed[-8:]:
        live = horizon.window(int(rows[observed[-1]]))
        for name, numbers in newest.items():
            assert live.streams[name][:, 0].tolist() == numbers[observed].tolist()


def test_refuses_a_camera_that_is_slower_than_the_policy():
    with pytest.raises(ValueError, match='dt is 25 ns, expected at least the 30 ns'):
        make_windows(stamped(range(0, 130, 10), [i % 3 == 0 for i in range(13)]), 2, 8, 4, 25)


def test_refuses_a_recording_with_a_gap():
    rows = [0, 10, 20, 30, 140, 150]
    with pytest.raises(ValueError, match='data/stamp_ns has a gap of 110 ns after 30, expected at '
                                         'most 60 ns'):
        make_windows(stamped(rows, np.ones(6), tolerance_ns=60), 2, 8, 4, 50)


def test_refuses_a_dt_between_the_steps(buffer):
    with pytest.raises(ValueError, match='20000000 ns, expected a multiple .* 12500000 ns'):
        make_windows(buffer, 2, 8, 4, dt_ns=20_000_000)


@pytest.mark.parametrize('stride', [1, 3])
def test_every_trained_window_is_in_equally_many_segments(buffer, stride):
    windows = make_windows(buffer, 2, 4, 2, dt_ns=stride * STEP_NS)
    starts = segment_starts(windows, n_windows=4, stride=stride)
    counts = np.zeros(len(windows.episode), int)
    for start in starts:
        rows = segment_rows(windows, start[None], 4, stride)
        assert len(set(windows.episode[rows])) <= 1
        assert set(np.diff(rows)) <= {stride}
        counts[rows] += 1
    assert set(counts[windows.trained]) == {4}
    assert set(counts[~windows.trained]) == {0}


def test_segments_skip_an_episode_without_observations():
    rows = np.tile(np.arange(0, 100, 10), 3)
    buffer = stamped(rows, (np.arange(30) < 10) | (np.arange(30) >= 20), ends=[10, 20, 30])
    windows = make_windows(buffer, n_obs_steps=2, horizon=4, n_action_steps=1, dt_ns=10)
    starts = segment_starts(windows, n_windows=4, stride=windows.stride)
    found = segment_rows(windows, starts, 4, windows.stride)
    assert set(found) == set(np.flatnonzero(windows.trained)) and len(starts) > 14

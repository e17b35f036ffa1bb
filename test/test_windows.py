from demonstrations import STEP_NS, write_demonstrations
import numpy as np
import pytest

from diffusion_policy_ros.control.horizon import Horizon
from diffusion_policy_ros.data.replay_buffer import load_replay_buffer
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

from demonstrations import write_demonstrations
import numpy as np
import pytest
import zarr

from diffusion_policy_ros.data.replay_buffer import load_replay_buffer


@pytest.fixture
def path(tmp_path):
    return write_demonstrations(tmp_path / 'demos.zarr', lengths=(4, 6, 5), size=8)


def test_reads_every_episode(path):
    buffer = load_replay_buffer(path, ('arm',))
    assert [rows.stop - rows.start for rows in buffer.episodes()] == [4, 6, 5]
    assert buffer.arrays['arm'].shape == (15, 8, 8, 3)
    assert buffer.attributes['task'] == 'drawer-open-v3'


def test_split_keeps_all_rows_in_order(path):
    buffer = load_replay_buffer(path, ('arm',))
    first, rest = buffer.split(1)
    assert first.episode_ends.tolist() == [4]
    assert rest.episode_ends.tolist() == [6, 11]
    np.testing.assert_array_equal(
        np.concatenate([first.arrays['ee_pose'], rest.arrays['ee_pose']]),
        buffer.arrays['ee_pose'])
    with pytest.raises(ValueError, match='4 episodes are asked for, the data set has 3'):
        buffer.head(4)


def test_digest_changes_with_one_pixel(path):
    before = load_replay_buffer(path, ('arm',)).digest()
    assert load_replay_buffer(path, ('arm',)).digest() == before
    zarr.open_group(str(path), mode='r+')['data/arm'][3, 0, 0, 0] = 200
    assert load_replay_buffer(path, ('arm',)).digest() != before


def set_nan(root):
    root['data/ee_pose'][7, 2] = np.nan


def cut_camera(root):
    root['data/arm'].resize((9, 8, 8, 3))


def empty_episode(root):
    root['meta/episode_ends'][:] = [4, 4, 15]


def one_step_episode(root):
    root['meta/episode_ends'][:] = [4, 5, 15]


def grey_camera(root):
    del root['data/arm']
    root.create_array('data/arm', data=np.zeros((15, 8, 8), np.uint8))


def no_gripper(root):
    del root['data/gripper']


@pytest.mark.parametrize('spoil, words', [
    (set_nan, ('data/ee_pose', 'not finite', 'row 7')),
    (cut_camera, ('data/arm', '9 rows', '15')),
    (empty_episode, ('an episode is empty or has one step',)),
    (one_step_episode, ('an episode is empty or has one step',)),
    (grey_camera, ('data/arm', '(15, 8, 8)', '(N, H, W, 3)')),
    (no_gripper, ('data/gripper is missing',)),
])
def test_refuses_bad_data_in_one_line(path, spoil, words):
    spoil(zarr.open_group(str(path), mode='r+'))
    with pytest.raises(ValueError) as error:
        load_replay_buffer(path, ('arm',))
    for word in (str(path), *words):
        assert word in str(error.value)
    assert '\n' not in str(error.value)


def test_refuses_a_folder_that_is_no_replay_buffer(tmp_path):
    with pytest.raises(ValueError, match='absent.zarr'):
        load_replay_buffer(tmp_path / 'absent.zarr', ())
    zarr.open_group(str(tmp_path / 'other.zarr'), mode='w', zarr_format=2)
    with pytest.raises(ValueError, match='expected a replay buffer'):
        load_replay_buffer(tmp_path / 'other.zarr', ())

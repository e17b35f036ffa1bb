import errno
import os
from pathlib import Path

from demonstrations import write_demonstrations
from numcodecs import Blosc, Zstd
import numpy as np
import pytest
import zarr

from diffusion_policy_ros.data.pictures import encode
from diffusion_policy_ros.data.replay_buffer import load_replay_buffer, LOW_DIMENSIONAL
from diffusion_policy_ros.data.replay_writer import ReplayWriter
from diffusion_policy_ros.data.stored_arrays import MAY_BE_ZERO
from diffusion_policy_ros.data.stored_pictures import StoredPictures


@pytest.fixture
def path(tmp_path):
    return write_demonstrations(tmp_path / 'demos.zarr', lengths=(4, 6, 5), size=8)


def test_reads_every_episode(path):
    buffer = load_replay_buffer(path, ('arm',))
    assert [rows.stop - rows.start for rows in buffer.episodes()] == [4, 6, 5]
    assert buffer.arrays['arm'].shape == (15, 8, 8, 3)
    assert buffer.attributes['task'] == 'drawer-open-v3'


def numbers(length):
    """Return an episode's arm data."""
    arrays = {name: np.full((length, dim), 0.1) for name, dim in LOW_DIMENSIONAL.items()}
    arrays['ee_pose'][:, 3:] = [0, 0, 0.6, 0.8]
    return arrays


@pytest.fixture
def written(tmp_path):
    """Return a data set of ReplayWriter, two cameras of different sizes, and its pictures."""
    rng = np.random.default_rng(0)
    writer = ReplayWriter(tmp_path / 'written.zarr', ('arm', 'cell/front'), {'task': 'x'}, {})
    pictures = {'arm': [], 'cell/front': []}
    for seed, length in enumerate((4, 6, 5)):
        arrays = numbers(length)
        steps = {camera: [np.full((size, size, 3), rng.integers(256), np.uint8)
                          for _ in range(length)]
                 for camera, size in (('arm', 24), ('cell/front', 32))}
        for camera in pictures:
            pictures[camera] += steps[camera]
        writer.append(arrays, {camera: encode(steps[camera]) for camera in steps}, seed)
    return tmp_path / 'written.zarr', pictures


@pytest.mark.parametrize('writes', (2, 9, 17, 18, 19, 20))
def test_a_full_disk_at_any_write_leaves_the_episodes_before(written, writes, monkeypatch):
    path, _ = written
    before = load_replay_buffer(path, ('arm', 'cell/front')).digest()
    episode = numbers(5)
    picture = encode([np.zeros((8, 8, 3), np.uint8)] * 5)
    writer, left = ReplayWriter(path, ('arm', 'cell/front'), {'task': 'x'}, {}), [writes]

    def full_after(function):
        def write(*arguments):
            left[0] -= 1
            if not left[0]:
                raise OSError(28, 'No space left on device')
            return function(*arguments)
        return write

    for name in ('resize', '__setitem__'):
        monkeypatch.setattr(zarr.Array, name, full_after(getattr(zarr.Array, name)))
    with pytest.raises(OSError, match='No space left'):
        writer.append(episode, {'arm': picture, 'cell/front': picture}, 3)
    monkeypatch.undo()
    writer.close()
    again = ReplayWriter(path, ('arm', 'cell/front'), {'task': 'x'}, {})
    assert again.episodes == 3 and again.seeds == [0, 1, 2]
    assert load_replay_buffer(path, ('arm', 'cell/front')).digest() == before
    again.append(episode, {'arm': picture, 'cell/front': picture}, 3)
    assert load_replay_buffer(path, ()).episode_ends.tolist() == [4, 10, 15, 20]


def test_a_second_writer_is_refused_and_cuts_nothing_off(written):
    path, _ = written
    with ReplayWriter(path, ('arm', 'cell/front'), {'task': 'x'}, {}):
        zarr.open_group(path, mode='r+')['data/gripper'].resize((20, 1))  # in its next episode
        with pytest.raises(ValueError, match=f'{path}: is being written by another process'):
            ReplayWriter(path, ('arm', 'cell/front'), {'task': 'x'}, {})
        assert zarr.open_group(path, mode='r')['data/gripper'].shape == (20, 1)
    with ReplayWriter(path, ('arm', 'cell/front'), {'task': 'x'}, {}) as writer:
        assert writer.episodes == 3
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize('mapped', [False, True])
def test_what_was_written_as_jpeg_is_read_as_pictures(written, mapped):
    path, pictures = written
    for _ in range(2):  # the second time from the file that the first has decoded
        buffer = load_replay_buffer(path, ('arm', 'cell/front'), mapped=mapped)
        for camera in pictures:
            assert np.abs(buffer.arrays[camera].astype(int) - pictures[camera]).max() < 4
            assert isinstance(buffer.arrays[camera], np.memmap) == mapped


def test_the_first_episodes_alone(written):
    path, pictures = written
    buffer = load_replay_buffer(path, ('arm',), n_episodes=2)
    assert buffer.episode_ends.tolist() == [4, 10]
    assert {len(value) for value in buffer.arrays.values()} == {10}
    assert buffer.digest() == load_replay_buffer(path, ('arm',)).split(2)[0].digest()
    with pytest.raises(ValueError, match='4 episodes are asked for, the data set has 3'):
        load_replay_buffer(path, ('arm',), n_episodes=4)


def test_raw_pictures_can_be_mapped_too(path):
    mapped = load_replay_buffer(path, ('arm',), mapped=True)
    assert isinstance(mapped.arrays['arm'], np.memmap)
    assert mapped.digest() == load_replay_buffer(path, ('arm',)).digest()


def test_a_disk_that_cannot_hold_the_decoded_pictures_is_an_error_and_keeps_nothing(
        path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'posix_fallocate', full)
    with pytest.raises(OSError, match='No space left'):
        load_replay_buffer(path, ('arm',), mapped=True)
    assert not [*(path / 'decoded').iterdir()]


@pytest.mark.parametrize('spoil, message', [
    (lambda root: root['meta/arm_ends'].resize((9,)), '9 rows'),
    (lambda root: root['data/arm'].resize((100,)), '100 bytes'),
    (lambda root: root['data/arm'].__setitem__(slice(0, 300), 0), 'picture 0 is no JPEG'),
])
def test_broken_jpeg_data_are_refused_in_one_line(written, spoil, message):
    path, _ = written
    spoil(zarr.open_group(str(path), mode='r+'))
    with pytest.raises(ValueError, match=message) as error:
        load_replay_buffer(path, ('arm',))
    assert 'data/arm' in str(error.value) and '\n' not in str(error.value)


@pytest.fixture
def recorded(tmp_path):
    """Return a data set of two recordings, whose camera is slower than its rows, and its rows."""
    writer = ReplayWriter(tmp_path / 'recorded.zarr', ('arm',), {}, {}, 'png', stamped=True)
    rows = []
    for number, shows in enumerate(([0, 0, 1, 1, 1, 2], [3, 4, 4])):
        frames = [np.full((8, 8, 3), 10 * i, np.uint8) for i in range(5)]
        rows += [10 * i for i in shows]
        n = len(shows)
        writer.append(
            {**numbers(n), 'stamp_ns': np.arange(n) + 1, 'is_observation': np.ones(n, bool),
             'is_teleop': np.arange(n) == 1},
            {'arm': encode([frames[i] for i in shows], 'png')}, number)
    return tmp_path / 'recorded.zarr', rows


def without_fill_value(path):
    """Make a data set one of before, when zarr left out chunks of zeros."""
    for file in path.glob('*/*/.zarray'):
        file.write_text(file.read_text().replace('"fill_value": null', '"fill_value": 0'))


def lose(path, name):
    """Delete an array's first chunk."""
    file, = (path / name).glob('0*')
    file.unlink()


@pytest.mark.parametrize('before', [False, True])
@pytest.mark.parametrize('name', [
    'data/arm', 'meta/arm_ends', 'meta/episode_ends', 'data/ee_pose', 'data/target_position',
    'data/gripper', 'data/is_observation', 'data/stamp_ns'])
def test_a_data_set_with_a_lost_chunk_is_refused(recorded, name, before):
    path, _ = recorded
    if before:
        without_fill_value(path)
    lose(path, name)
    if before and name in MAY_BE_ZERO:  # there it may be zeros that were left out
        assert not load_replay_buffer(path, ('arm',)).arrays[name.partition('/')[2]].any()
        return
    with pytest.raises(ValueError, match=rf'{path}: {name}: its chunk 0[.0]* is missing and 0'):
        load_replay_buffer(path, ('arm',))
    if name in ('data/arm', 'meta/arm_ends'):
        with pytest.raises(ValueError, match=f'{path}: {name}: its chunk 0 is missing'):
            StoredPictures(path, 'arm', 9)


@pytest.mark.parametrize('name, message', [
    ('meta/episode_ends', 'meta/episode_ends: episode 0 is empty'),
    ('meta/episode_seeds', 'meta/episode_seeds: its chunk 0 is missing'),
    ('meta/arm_ends', 'meta/arm_ends: its chunk 0 is missing'),
    ('data/arm', 'data/arm: its chunk 0 is missing'),
    ('data/ee_pose', 'data/ee_pose: its chunk 0.0 is missing')])
def test_a_data_set_with_a_lost_chunk_is_not_gone_on_with(recorded, name, message):
    path, _ = recorded
    lose(path, name)
    before = {file: file.read_bytes() for file in path.rglob('*') if file.is_file()}
    with pytest.raises(ValueError, match=f'{path}: {message}'):
        ReplayWriter(path, ('arm',), {}, {}, 'png', stamped=True)
    assert {file: file.read_bytes() for file in path.rglob('*') if file.is_file()} == before


@pytest.mark.parametrize('chunk', ['2.0.0.0', '2/0/0/0'])
def test_a_lost_chunk_of_raw_pictures_is_refused_where_it_is_asked_for(path, chunk):
    root = zarr.open_group(str(path), mode='r+')
    shape = {'.': (4, 4, 8, 3), '/': (4, 8, 8, 3)}[chunk[1]]
    root.create_array('data/arm', shape=(15, 8, 8, 3), chunks=shape, dtype='u1', overwrite=True,
                      chunk_key_encoding={'name': 'v2', 'separator': chunk[1]})[:] = 7
    load_replay_buffer(path, ('arm',))
    (path / 'data/arm' / chunk).unlink()
    for n_episodes in (2, None):  # of 10 rows and 15
        with pytest.raises(ValueError, match='data/arm: its chunk 2.0.0.0 is missing and 0 more'):
            load_replay_buffer(path, ('arm',), n_episodes)
    load_replay_buffer(path, ('arm',), 1)


def test_zeros_are_stored_and_read(tmp_path):
    writer = ReplayWriter(tmp_path / 'zeros.zarr', (), {}, {}, stamped=True)
    stamps = {'stamp_ns': np.arange(5), 'is_observation': np.ones(5, bool),
              'is_teleop': np.zeros(5, bool)}
    writer.append({**numbers(5), **stamps, 'gripper': np.zeros((5, 1))}, {}, 0)
    assert not load_replay_buffer(tmp_path / 'zeros.zarr', ()).arrays['gripper'].any()


@pytest.mark.parametrize('mapped', [False, True])
def test_each_picture_of_a_slow_camera_is_kept_once(recorded, mapped):
    path, rows = recorded
    buffer = load_replay_buffer(path, ('arm',), mapped=mapped)
    assert buffer.arrays['arm'].shape == (5, 8, 8, 3)
    assert buffer.images('arm', np.arange(9))[:, 0, 0, 0].tolist() == rows
    assert buffer.arrays['stamp_ns'].tolist() == [1, 2, 3, 4, 5, 6, 1, 2, 3]
    assert np.flatnonzero(buffer.arrays['is_teleop']).tolist() == [1, 7]
    first, rest = buffer.split(1)
    assert first.images('arm', np.arange(6))[:, 0, 0, 0].tolist() == rows[:6]
    assert rest.images('arm', np.arange(3))[:, 0, 0, 0].tolist() == rows[6:]
    assert len(rest.arrays['arm']) == 2


def test_a_digest_tells_which_rows_show_a_picture(recorded):
    path, _ = recorded
    before = load_replay_buffer(path, ('arm',)).digest()
    ends = zarr.open_group(str(path), mode='r+')['meta/arm_ends']
    ends[1] = ends[2]
    assert load_replay_buffer(path, ('arm',)).digest() != before


@pytest.mark.parametrize('row, stamp, step', [(3, 3, 0), (8, -5, -7)])
def test_stamps_that_go_back_within_an_episode_are_refused(recorded, row, stamp, step):
    path, _ = recorded
    zarr.open_group(str(path), mode='r+')['data/stamp_ns'][row] = stamp
    with pytest.raises(ValueError, match=f'data/stamp_ns: row {row} is {step} ns after'):
        load_replay_buffer(path, ('arm',))


@pytest.mark.parametrize('name', ['is_observation', 'is_teleop'])
def test_a_recording_without_an_array_of_recordings_is_refused(recorded, name):
    path, _ = recorded
    del zarr.open_group(str(path), mode='r+')[f'data/{name}']
    with pytest.raises(ValueError, match=f'{path}: data/{name} is missing, found'):
        load_replay_buffer(path, ('arm',))


def test_an_episode_that_begins_without_a_picture_is_refused(recorded):
    path, _ = recorded
    ends = zarr.open_group(str(path), mode='r+')['meta/arm_ends']
    ends[6] = ends[5]
    with pytest.raises(ValueError, match='data/arm: row 6 begins an episode and has no picture'):
        load_replay_buffer(path, ('arm',))


def test_an_unfinished_data_set_of_other_settings_is_refused(recorded):
    path, _ = recorded
    with pytest.raises(ValueError, match="made with image_format 'png', now 'jpeg'"):
        ReplayWriter(path, ('arm',), {}, {}, stamped=True)


def test_a_data_set_without_an_episode_is_made_anew_for_other_settings(tmp_path):
    path = tmp_path / 'empty.zarr'
    for cameras in (('arm', 'wrist'), ('front',)):
        settings = {'cameras': list(cameras)}
        with ReplayWriter(path, cameras, settings, {'x': len(cameras)}) as writer:
            assert (writer.episodes, writer.attributes['x']) == (0, len(cameras))
    group = zarr.open_group(path, mode='r')
    assert sorted(name for name in group['data'] if 'ee' not in name and '_' not in name) == [
        'front', 'gripper']


def test_split_keeps_all_rows_in_order(path):
    buffer = load_replay_buffer(path, ('arm',))
    first, rest = buffer.split(1)
    assert first.episode_ends.tolist() == [4]
    assert rest.episode_ends.tolist() == [6, 11]
    np.testing.assert_array_equal(
        np.concatenate([first.arrays['ee_pose'], rest.arrays['ee_pose']]),
        buffer.arrays['ee_pose'])
    with pytest.raises(ValueError, match='4 episodes are asked for, the data set has 3'):
        buffer.split(4)


def test_digest_changes_with_one_pixel(path):
    before = load_replay_buffer(path, ('arm',)).digest()
    assert load_replay_buffer(path, ('arm',)).digest() == before
    zarr.open_group(str(path), mode='r+')['data/arm'][3, 0, 0, 0] = 200
    assert load_replay_buffer(path, ('arm',)).digest() != before


def set_nan(root):
    root['data/ee_pose'][7, 2] = np.nan


def zero_pose(root):
    root['data/ee_pose'][3] = 0


def cut_off_file(root):
    root.create_array('data/gripper', data=np.ones((15, 1)), overwrite=True,
                      compressors=Blosc('zstd'))
    file, = (Path(root.store.root) / 'data/gripper').glob('[0-9]*')
    file.write_bytes(file.read_bytes()[:20])


def cut_camera(root):
    root['data/arm'].resize((9, 8, 8, 3))


def cut_off_ends(root):
    root.create_array('meta/episode_ends', data=np.array([4, 10, 15]), overwrite=True,
                      compressors=Zstd())
    file, = (Path(root.store.root) / 'meta/episode_ends').glob('[0-9]*')
    file.write_bytes(file.read_bytes()[:20])


def ends(values):
    """Return what gives a data set other ends."""
    def spoil(root):
        root.create_array('meta/episode_ends', data=np.asarray(values), overwrite=True)
    return spoil


def grey_camera(root):
    del root['data/arm']
    root.create_array('data/arm', data=np.ones((15, 8, 8), np.uint8))


def no_gripper(root):
    del root['data/gripper']


def text(name, dtype):
    """Return what gives a data set words instead of numbers."""
    def spoil(root):
        root.create_array(name, shape=(15,), dtype=dtype, overwrite=True)[:] = '0.5'
    return spoil


def group_of_gripper(root):
    del root['data/gripper']
    root.create_group('data/gripper')


def one_gripper(root):
    root.create_array('data/gripper', data=np.float64(1), overwrite=True)


@pytest.mark.parametrize('spoil, words', [
    (set_nan, ('data/ee_pose', 'not finite', 'row 7')),
    (zero_pose, ('data/ee_pose', 'quaternion of row 3 has length 0, expected 1')),
    (cut_off_file, ('data/gripper',)),
    (cut_camera, ('data/arm', '9 rows', '15')),
    (cut_off_ends, ('meta/episode_ends: Zstd decompression error',)),
    (ends([4, 4, 15]), ('meta/episode_ends: episode 1 is empty, expected two rows at least',)),
    (ends([4, 5, 15]), ('meta/episode_ends: episode 1 has one row',)),
    (ends([0, 5, 15]), ('meta/episode_ends: episode 0 is empty',)),
    (ends([10, 15, 12]),
     ('meta/episode_ends: episode 2 ends at row 12, before row 15 where it begins',)),
    (ends(np.zeros(0, np.int64)),
     ('meta/episode_ends: there is no episode, expected one at least',)),
    (ends([[4], [15]]), ('meta/episode_ends: it has shape (2, 1), expected (E,)',)),
    (ends([4.0, 15.0]), ('meta/episode_ends: it is float64 (2,), expected integer rows',)),
    (ends(['4', '15']), ('meta/episode_ends: it is <U2 (2,), expected integer rows',)),
    (grey_camera, ('data/arm', '(15, 8, 8)', '(N, H, W, 3)')),
    (no_gripper, ('data/gripper is missing',)),
    (text('data/gripper', '<U3'), ('data/gripper: it is <U3 (15,), expected number rows',)),
    (text('data/gripper', str), ('data/gripper: it is StringDType', 'expected number rows')),
    (text('data/arm', '<U3'), ('data/arm: it is <U3 (15,), expected uint8 rows',)),
    (text('meta/arm_ends', '<U3'), ('meta/arm_ends: it is <U3 (15,), expected integer rows',)),
    (group_of_gripper, ('data/gripper is a group, expected an array',)),
    (one_gripper, ('data/gripper: it is float64 (), expected number rows',)),
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

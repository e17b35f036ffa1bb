"""Imported data sets, ours and others', and what is refused."""

import json
import shutil
import subprocess

import imageio_ffmpeg
from lerobot_data import (
    CAMERAS, export, FPS, import_back, LENGTHS, picture, refusal, STEP_NS, values,
    write_simulated,
)
import numpy as np
import pyarrow as pa
from pyarrow import parquet
import pytest
from settings import Config, TrainingConfig
from test_window_data import config
from train import read_data

from diffusion_policy_ros.control.images import camera_image
from diffusion_policy_ros.data.replay_buffer import load_replay_buffer
from diffusion_policy_ros.policy.config import CameraSpec, ObservationSpec

DATA = 'data/chunk-000/file-000.parquet'
EPISODES = 'meta/episodes/chunk-000/file-000.parquet'
VIDEO = 'videos/observation.images.arm/chunk-000/file-000.mp4'


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp('import')
    return export(write_simulated(folder / 'demos.zarr'), folder / 'exported')


@pytest.fixture(scope='module')
def exported_png(tmp_path_factory):
    folder = tmp_path_factory.mktemp('import_png')
    return export(write_simulated(folder / 'demos.zarr'), folder / 'exported', '--images', 'png')


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / 'folder')


@pytest.fixture
def folder_png(exported_png, tmp_path):
    return shutil.copytree(exported_png, tmp_path / 'folder')


def change(path, **values):
    """Put other values into a JSON file; None takes one away."""
    found = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def reencode(path, *settings):
    """Write a video anew with other settings of ffmpeg."""
    new = path.with_suffix('.new.mp4')
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), '-v', 'error', '-i', str(path), *settings,
                    str(new)], check=True)
    new.replace(path)


def edit_table(path, **columns):
    """Replace columns of a table; None takes one away."""
    table = parquet.read_table(path)
    for name, column in columns.items():
        index = table.schema.get_field_index(name)
        table = table.remove_column(index)
        if column is not None:
            table = table.add_column(index, name, [column])
    parquet.write_table(table, path)


def test_it_can_be_trained_on_as_the_data_that_it_came_from(exported, tmp_path):
    path = import_back(exported, tmp_path / 'back.zarr')
    buffer = load_replay_buffer(path, tuple(CAMERAS))
    found = buffer.attributes
    assert (found['renderer'], found['task']) == ('plain', 'open the drawer')
    assert (found['step_ns'], found['seed_start']) == (STEP_NS, 7)
    assert found['source_sizes'] == {'arm': [64, 64], 'wrist': [64, 64]}
    assert found['versions']['mujoco'] == '3.3.0' and 'pyarrow' in found['versions']
    policy = config(observation=ObservationSpec((CameraSpec('arm', 64, 64, 32, 32),)))
    chosen = Config(policy, TrainingConfig(episodes=2, steps=1, validation_episodes=1))
    used, held_out, provenance = read_data(path, chosen)
    assert (len(used.action), len(held_out.action)) == (sum(LENGTHS[:2]), LENGTHS[2])
    assert provenance['data']['seed_start'] == 7


def test_dimensions_are_found_by_number_and_by_name(exported, tmp_path, capfd):
    path = import_back(
        exported, tmp_path / 'mapped.zarr', '--state-position', 'ee_z,ee_y,0',
        '--state-quaternion', 'none', '--state-gripper', 'ee_x', '--action', 'observation.state',
        '--action-position', '5,6,gripper', '--action-gripper', 'none', '--gripper-state', '5',
        '-5')
    said = capfd.readouterr().out
    assert 'note: --state-quaternion none: [0.0, 0.0, 0.0, 1.0] is written in every row of ee_p' \
        in said
    assert 'note: --action-gripper none: [0.0] is written in every row of target_gripper' in said
    buffer = load_replay_buffer(path, ())
    source = values(LENGTHS[0], 0)
    rows = slice(LENGTHS[0])
    pose = source['ee_pose']
    np.testing.assert_array_equal(buffer.arrays['ee_pose'][rows, :3], pose[:, [2, 1, 0]])
    assert (buffer.arrays['ee_pose'][:, 3:] == [0, 0, 0, 1]).all()
    np.testing.assert_allclose(buffer.arrays['gripper'][rows, 0], (5 - pose[:, 0]) / 10)
    np.testing.assert_array_equal(buffer.arrays['target_position'][rows],
                                  np.column_stack([pose[:, 5:], source['gripper']]))
    assert (buffer.arrays['target_gripper'] == 0).all()


@pytest.mark.parametrize('options, words', [
    (('--gripper-state', '0', '0.5'), ('gripper is 0.', 'expected 0 (open) to 0.5 (closed)')),
    (('--gripper-effort', '1', '1'), ('target_gripper is ', 'expected 1 (open) to 1 (closed)')),
])
def test_a_gripper_beyond_its_ends_is_one_line(exported, tmp_path, capfd, options, words):
    with pytest.raises(SystemExit, match='2'):
        import_back(exported, tmp_path / 'back.zarr', *options)
    line = capfd.readouterr().err.splitlines()[-1]
    assert all(word in line for word in (*words, 'say --gripper-state or --gripper-effort OPEN'))
    assert not (tmp_path / 'back.zarr').exists()


def test_nothing_is_noted_where_nothing_is_made_up(exported, tmp_path, capfd):
    import_back(exported, tmp_path / 'back.zarr')
    assert 'note: ' not in capfd.readouterr().out


def test_cameras_are_chosen_named_and_scaled(exported_png, tmp_path):
    path = import_back(exported_png, tmp_path / 'one.zarr', '--cameras', 'wrist=front',
                       '--height', '12', '--width', '20', '--images', 'png')
    buffer = load_replay_buffer(path, ('front',))
    assert buffer.attributes['cameras'] == ['front']
    assert buffer.attributes['source_sizes'] == {'front': [24, 40]}
    np.testing.assert_array_equal(
        buffer.images('front', np.array([3]))[0],
        camera_image(picture(CAMERAS['wrist'], 15), 'rgb8', 12, 20))


def test_every_so_many_rows_can_be_taken(exported_png, tmp_path):
    path = import_back(exported_png, tmp_path / 'thin.zarr', '--fps', '20', '--images', 'png')
    buffer = load_replay_buffer(path, ('arm',))
    assert buffer.attributes['step_ns'] == 50_000_000
    assert np.diff(buffer.episode_ends, prepend=0).tolist() == [3, 3, 4]
    np.testing.assert_array_equal(buffer.arrays['ee_pose'][-4:], values(15, 2)['ee_pose'][::4])
    shades = buffer.images('arm', np.arange(10))[:, 0, 0, 0] - 40
    assert shades.tolist() == [0, 20, 40, 0, 20, 40, 0, 20, 40, 60]


def test_a_step_that_is_no_whole_number_is_said(folder, tmp_path, capfd):
    change(folder / 'meta/info.json', fps=30)
    edit_table(folder / DATA, timestamp=pa.array(
        np.concatenate([np.arange(n) / 30 for n in LENGTHS]).astype(np.float32)))
    starts = np.cumsum([0, *LENGTHS[:-1]]) / 30
    edit_table(folder / EPISODES, **{
        f'videos/observation.images.{camera}/from_timestamp': pa.array(starts)
        for camera in CAMERAS})
    path = import_back(folder, tmp_path / 'thirty.zarr', '--task', 'other words')
    assert 'note: a step is 33333333 ns: policy.dt_s must be 0.033333333' in \
        capfd.readouterr().out
    buffer = load_replay_buffer(path, ('arm',))
    assert (buffer.attributes['step_ns'], buffer.attributes['task']) == (33_333_333, 'other words')
    shades = buffer.images('arm', np.arange(sum(LENGTHS)))[:, 0, 0, 0] - 40.0
    expected = np.concatenate([5 * np.arange(length) for length in LENGTHS])
    assert np.abs(shades - expected).max() <= 2
    again = export(path, tmp_path / 'again')
    assert json.loads((again / 'meta/info.json').read_text())['fps'] == 30


def test_av1_and_long_gaps_between_key_frames_are_read(folder, tmp_path):
    reencode(folder / VIDEO, '-c:v', 'libsvtav1', '-crf', '20', '-g', '12')
    path = import_back(folder, tmp_path / 'av1.zarr', '--cameras', 'arm')
    buffer = load_replay_buffer(path, ('arm',))
    shades = buffer.images('arm', np.arange(sum(LENGTHS)))[:, 0, 0, 0] - 40.0
    expected = np.concatenate([5 * np.arange(length) for length in LENGTHS])
    assert np.abs(shades - expected).max() <= 2


def test_episodes_may_lie_in_a_video_in_any_order(folder, tmp_path):
    table = parquet.read_table(folder / EPISODES).to_pylist()
    key = 'videos/observation.images.arm/from_timestamp'
    starts = [episode[key] for episode in table]
    edit_table(folder / EPISODES, **{key: pa.array([starts[2], starts[0], starts[0]])})
    path = import_back(folder, tmp_path / 'back.zarr', '--cameras', 'arm')
    buffer = load_replay_buffer(path, ('arm',))
    shades = buffer.images('arm', np.arange(sum(LENGTHS)))[:, 0, 0, 0] - 40.0
    frames = np.concatenate([np.arange(21, 33), np.arange(9), np.arange(15)])
    shown = np.concatenate([5 * np.arange(length) for length in LENGTHS])
    assert np.abs(shades - shown[frames]).max() <= 2


def test_several_tasks_are_named_together(folder, tmp_path, capfd):
    edit_table(folder / EPISODES, tasks=pa.array([['pull'], ['push'], ['pull']]))
    path = import_back(folder, tmp_path / 'tasks.zarr', '--cameras')
    assert 'note: 2 tasks; no row tells which one it is of' in capfd.readouterr().out
    assert load_replay_buffer(path, ()).attributes['task'] == 'pull; push'


def rows_of(folder, key):
    return np.array(parquet.read_table(folder / DATA)[key].to_pylist())


def set_feature(folder, key, **changes):
    features = json.loads((folder / 'meta/info.json').read_text())['features']
    features[key] |= changes
    change(folder / 'meta/info.json', features=features)


def drop_feature(folder, key):
    features = json.loads((folder / 'meta/info.json').read_text())['features']
    del features[key]
    change(folder / 'meta/info.json', features=features)


def cut_video(folder):
    reencode(folder / VIDEO, '-frames:v', '20', '-c:v', 'libx264')


def shrink_video(folder):
    reencode(folder / VIDEO, '-vf', 'scale=16:16', '-c:v', 'libx264')


def no_numbers(folder):
    state = rows_of(folder, 'observation.state')
    state[14, 2] = np.nan
    edit_table(folder / DATA, **{'observation.state': pa.array(state.tolist())})


def ragged(folder):
    state = rows_of(folder, 'observation.state').tolist()
    state[3].pop()
    edit_table(folder / DATA, **{'observation.state': pa.array(state)})


def late_rows(folder):
    edit_table(folder / DATA, timestamp=pa.array(rows_of(folder, 'timestamp') * 1.1))


def lose_rows(folder):
    parquet.write_table(parquet.read_table(folder / DATA).slice(0, 30), folder / DATA)


def lose_episode(folder):
    parquet.write_table(parquet.read_table(folder / EPISODES).slice(0, 2), folder / EPISODES)


INFO = 'meta/info.json'
BAD = {
    'no folder': (shutil.rmtree, (), ('folder: no such folder',)),
    'no info': (lambda f: (f / INFO).unlink(), (), ('no meta/info.json',)),
    'no JSON': (lambda f: (f / INFO).write_text('{'), (), (INFO, 'no JSON')),
    'v2.1': (lambda f: change(f / INFO, codebase_version='v2.1'), (),
             (INFO, "codebase_version is 'v2.1', expected 'v3.0'", 'convert_dataset_v21_to_v30')),
    'no version': (lambda f: change(f / INFO, codebase_version=None), (), ('is None',)),
    'fps': (lambda f: change(f / INFO, fps=29.97), (), (INFO, 'fps is 29.97', 'whole number')),
    'no fps': (lambda f: change(f / INFO, fps=0), (), ('fps is 0, expected at least 1',)),
    'other fps': (None, ('--fps', '30'), ('--fps is 30', 'divisor of the 80')),
    'no state': (lambda f: drop_feature(f, 'observation.state'), (),
                 (INFO, 'observation.state is missing', "'action'")),
    'unknown key': (None, ('--action', 'command'), (INFO, 'the feature command is missing')),
    'no column': (lambda f: edit_table(f / DATA, action=None), (),
                  (DATA, 'column action is missing')),
    'state shape': (lambda f: set_feature(f, 'observation.state', shape=[2, 4]), (),
                    (INFO, 'observation.state has shape [2, 4]')),
    'few dims': (lambda f: set_feature(f, 'observation.state', shape=[7]), (),
                 ('--state-gripper 7', 'has 7 dimensions', "or 'none'")),
    'other dims': (lambda f: set_feature(f, 'action', shape=[5]), (),
                   (DATA, 'action of episode 0 has 48 values in 12 rows, expected 5 a row')),
    'ragged': (ragged, (), (DATA, 'observation.state of episode 0 has 95 values')),
    'wrong count': (None, ('--state-position', '0,1'),
                    ('--state-position 0,1', 'expected 3 of them')),
    'wrong name': (None, ('--action-position', 'target_x,target_y,height'),
                   ('--action-position', "'target_z'", 'expected 3 of them')),
    'no position': (None, ('--state-position', 'none'), ('expected 3 of them',)),
    'no quaternion': (None, ('--state-quaternion', '0,1,2,3'),
                      ('quaternion of row', 'expected 1', '--state-quaternion right?')),
    'not finite': (no_numbers, (), ('episode 1: ee_pose is not finite in row 2',)),
    'no video': (lambda f: (f / VIDEO).unlink(), (), (VIDEO, 'the video is missing')),
    'no film': (lambda f: (f / VIDEO).write_bytes(bytes(1000)), (), (VIDEO, 'found no video')),
    'short video': (cut_video, (), (VIDEO, 'has 20 frames, expected 21 for its rows')),
    'small video': (shrink_video, (), (VIDEO, '16x16, expected 32x32')),
    'no table': (lambda f: (f / DATA).unlink(), (), (DATA, 'the file is missing')),
    'half a table': (lambda f: (f / DATA).write_bytes((f / DATA).read_bytes()[:900]), (),
                     (DATA, 'expected Parquet')),
    'few rows': (lose_rows, (), (DATA, 'episode 2 has 9 rows, expected 15')),
    'few episodes': (lose_episode, (), ('found 2 episodes, expected 3',)),
    'no length': (lambda f: edit_table(f / EPISODES, length=None), (), ('column length',)),
    'no place': (lambda f: edit_table(f / EPISODES, **{
        'videos/observation.images.arm/file_index': None}), (), ('episode 0 has no videos/obs',)),
    'no start': (lambda f: edit_table(f / EPISODES, **{
        'videos/observation.images.arm/from_timestamp': None}), (), ('no videos/', 'timestamp')),
    'other path': (lambda f: change(f / INFO, data_path='data/{episode_chunk}.parquet'), (),
                   (INFO, "data_path has 'episode_chunk' in it")),
    'depth': (lambda f: set_feature(f, 'observation.images.arm', shape=[32, 32, 1]), (),
              (INFO, 'observation.images.arm has 1 channels, expected 3')),
    'no height': (None, ('--height', '0'), ('size asked for is 0x32',)),
    'late rows': (late_rows, (), (DATA, 'rows out of time', 'timestamp i / 80')),
    'no camera': (None, ('--cameras', 'front'), ('no feature front has pictures',)),
    'one name': (None, ('--cameras', 'arm=a', 'wrist=a'), ('wrist=a', 'expected KEY=NAME')),
    'one row': (None, ('--fps', '1'), ('episode 0 has one row',)),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_data_are_refused_in_one_line(folder, tmp_path, capfd, name):
    spoil, options, words = BAD[name]
    if spoil:
        spoil(folder)
    said = refusal(capfd, import_back, folder, tmp_path / 'out.zarr', *options)
    for word in words:
        assert word in said


def break_picture(data):
    return b'\x89PNG' + bytes(40)


def no_bytes(data):
    return None


@pytest.mark.parametrize('spoil, words', [
    (break_picture, ('episode 1, row 3', 'no image, expected jpeg or png')),
    (no_bytes, ('episode 1, row 3', '0 bytes')),
])
def test_a_broken_picture_is_named(folder_png, tmp_path, capfd, spoil, words):
    key = 'observation.images.wrist'
    table = parquet.read_table(folder_png / DATA)
    cells = table[key].to_pylist()
    cells[LENGTHS[0] + 3]['bytes'] = spoil(cells[LENGTHS[0] + 3]['bytes'])
    edit_table(folder_png / DATA, **{key: pa.array(cells, table.schema.field(key).type)})
    said = refusal(capfd, import_back, folder_png, tmp_path / 'out.zarr')
    for word in (DATA, key, *words):
        assert word in said


def test_what_is_there_is_left_alone_and_what_a_kill_left_is_not(exported, tmp_path, capfd):
    (tmp_path / 'out.zarr').mkdir()
    said = refusal(capfd, import_back, exported, tmp_path / 'out.zarr')
    assert 'out.zarr: exists, expected no such folder' in said
    (tmp_path / 'out.zarr').rmdir()
    (tmp_path / '.out.zarr.new').mkdir()
    (tmp_path / '.out.zarr.new/old').touch()
    path = import_back(exported, tmp_path / 'out.zarr')
    assert not (path / 'old').exists() and not (tmp_path / '.out.zarr.new').exists()
    assert load_replay_buffer(path, ('arm',)).attributes['step_ns'] * FPS == 10**9

"""Exported data sets, looked at file by file, and what is refused."""

import json
import os
from pathlib import Path
import subprocess
import sys

from demonstrations import write_demonstrations
import imageio_ffmpeg
from lerobot_data import (
    CAMERAS, export, FPS, LENGTHS, picture, refusal, values, write_recorded, write_simulated,
)
import numpy as np
from pyarrow import parquet
import pytest
import zarr

from diffusion_policy_ros.data import lerobot_writer
from diffusion_policy_ros.data.lerobot_format import DATA_PATH, EPISODES_PATH, TASKS
from diffusion_policy_ros.data.lerobot_reader import LeRobotReader
from diffusion_policy_ros.data.lerobot_video import VideoWriter
from diffusion_policy_ros.data.lerobot_writer import LeRobotWriter

REPOSITORY = Path(__file__).resolve().parents[1]
FIRST = {'chunk_index': 0, 'file_index': 0}
ROWS = sum(LENGTHS)


@pytest.fixture(scope='module')
def simulated(tmp_path_factory):
    return write_simulated(tmp_path_factory.mktemp('simulated') / 'demos.zarr')


@pytest.fixture(scope='module')
def folder(simulated, tmp_path_factory):
    return export(simulated, tmp_path_factory.mktemp('exported') / 'demos')


def video(folder, camera):
    return folder / f'videos/observation.images.{camera}/chunk-000/file-000.mp4'


def read(folder, number, *keys):
    """Return an episode's values and shades, as the reader gives them."""
    reader = LeRobotReader(folder)
    shades = [frame[0, 0, 0] - 40 for frame in reader.frames(number, 'observation.images.arm')]
    reader.close()
    return reader.values(number, keys), np.asarray(shades, int)


def test_info_names_every_feature_and_file(folder):
    info = json.loads((folder / 'meta/info.json').read_text())
    assert (info['codebase_version'], info['fps'], info['robot_type']) == ('v3.0', FPS, None)
    assert (info['total_episodes'], info['total_frames'], info['total_tasks']) == (3, ROWS, 1)
    assert info['splits'] == {'train': '0:3'}
    found = info['features']
    assert found['observation.images.wrist']['shape'] == [24, 40, 3]
    assert found['observation.images.wrist']['names'] == ['height', 'width', 'channels']
    assert found['observation.state']['shape'] == [8]
    assert found['action']['names'][-1] == 'target_gripper'
    for path in (info['data_path'].format(**FIRST),
                 info['video_path'].format(video_key='observation.images.arm', **FIRST)):
        assert (folder / path).is_file()


def test_the_table_has_a_row_each_step_and_no_other_column(folder):
    table = parquet.read_table(folder / DATA_PATH.format(**FIRST))
    frame = np.concatenate([np.arange(length) for length in LENGTHS])
    assert set(table.column_names) == {'observation.state', 'action', 'timestamp', 'frame_index',
                                       'episode_index', 'index', 'task_index'}
    assert table['index'].to_pylist() == list(range(ROWS))
    assert table['frame_index'].to_pylist() == frame.tolist()
    assert table['episode_index'].to_pylist() == np.repeat([0, 1, 2], LENGTHS).tolist()
    np.testing.assert_array_equal(table['timestamp'].to_numpy(), (frame / FPS).astype(np.float32))
    assert str(table.schema.field('action').type) == 'fixed_size_list<element: double>[4]'


def test_episodes_say_where_their_rows_and_frames_are(folder):
    episodes = parquet.read_table(folder / EPISODES_PATH.format(**FIRST)).to_pylist()
    starts = np.cumsum([0, *LENGTHS])
    for number, episode in enumerate(episodes):
        assert (episode['episode_index'], episode['length']) == (number, LENGTHS[number])
        assert episode['tasks'] == ['open the drawer']
        assert (episode['dataset_from_index'], episode['dataset_to_index']) == tuple(
            starts[number:number + 2])
        assert episode['videos/observation.images.wrist/from_timestamp'] == starts[number] / FPS
        assert episode['videos/observation.images.wrist/to_timestamp'] == starts[number + 1] / FPS
        assert episode['stats/index/min'] == [starts[number]]


def test_tasks_are_the_index_of_a_pandas_frame(folder):
    table = parquet.read_table(folder / TASKS)
    about = json.loads(table.schema.metadata[b'pandas'])
    assert about['index_columns'] == ['__index_level_0__']
    assert table.to_pydict() == {'task_index': [0], '__index_level_0__': ['open the drawer']}


def test_statistics_are_of_all_rows(folder):
    stats = json.loads((folder / 'meta/stats.json').read_text())
    actions = np.concatenate([
        np.concatenate([values(length, seed)[name] for name in
                        ('target_position', 'target_gripper')], axis=1)
        for seed, length in enumerate(LENGTHS)])
    for name, expected in (('min', actions.min(axis=0)), ('max', actions.max(axis=0)),
                           ('mean', actions.mean(axis=0)), ('std', actions.std(axis=0)),
                           ('q01', np.quantile(actions, 0.01, axis=0)),
                           ('q90', np.quantile(actions, 0.9, axis=0)), ('count', [ROWS])):
        np.testing.assert_allclose(stats['action'][name], expected, atol=1e-12)
    pixels = np.stack([picture(CAMERAS['wrist'], 5 * i) for length in LENGTHS
                       for i in range(length)]) / 255
    found = stats['observation.images.wrist']
    assert np.shape(found['mean']) == (3, 1, 1) and found['count'] == [ROWS]
    for name, expected in (('min', pixels.min(axis=(0, 1, 2))),
                           ('max', pixels.max(axis=(0, 1, 2))),
                           ('mean', pixels.mean(axis=(0, 1, 2))),
                           ('std', pixels.std(axis=(0, 1, 2))),
                           ('q50', np.quantile(pixels, 0.5, axis=(0, 1, 2)))):
        np.testing.assert_allclose(np.ravel(found[name]), expected, atol=0.5 / 255)
    assert set(stats) == set(json.loads((folder / 'meta/info.json').read_text())['features'])


@pytest.mark.parametrize('camera, size', [('arm', '32x32'), ('wrist', '40x24')])
def test_a_video_has_one_frame_a_row_and_every_second_is_a_key_frame(folder, camera, size):
    ffmpeg, path = imageio_ffmpeg.get_ffmpeg_exe(), video(folder, camera)
    assert imageio_ffmpeg.count_frames_and_secs(str(path)) == (ROWS, ROWS / FPS)
    said = subprocess.run([ffmpeg, '-i', str(path)], capture_output=True, text=True).stderr
    assert 'h264' in said and 'yuv420p' in said and f'{size}' in said and f'{FPS} fps' in said
    keys = subprocess.run(
        [ffmpeg, '-v', 'error', '-skip_frame', 'nokey', '-i', str(path), '-fps_mode',
         'passthrough', '-f', 'framecrc', '-'], capture_output=True, text=True).stdout
    times = [int(line.split(',')[2]) for line in keys.splitlines() if line[0] != '#']
    ticks = int(next(line.rpartition('/')[2] for line in keys.splitlines()
                     if line.startswith('#tb')))
    frames = np.array(times) * FPS / ticks
    assert frames[0] == 0 and np.diff(frames, append=ROWS).max() <= 2


def test_png_pictures_are_in_the_table(simulated, tmp_path):
    folder = export(simulated, tmp_path / 'png', '--images', 'png', '--cameras', 'arm')
    assert not (folder / 'videos').exists()
    info = json.loads((folder / 'meta/info.json').read_text())
    assert info['video_path'] is None
    assert info['features']['observation.images.arm']['dtype'] == 'image'
    cell = parquet.read_table(folder / DATA_PATH.format(**FIRST))['observation.images.arm'][3]
    assert cell.as_py()['bytes'].startswith(b'\x89PNG')
    assert 'observation.images.wrist' not in info['features']


def test_the_row_of_a_grid_time_is_the_newest_before_it(tmp_path):
    random = np.random.default_rng(3)
    stamps = tuple(10**18 + np.cumsum(random.integers(1, 90_000_000, length))
                   for length in (60, 45))
    dataset = write_recorded(tmp_path / 'recorded.zarr', stamps)
    folder = export(dataset, tmp_path / 'grid', '--fps', '30', '--images', 'png')
    for number, times in enumerate(stamps):
        grid = [int(times[0]) + k * 10**9 // 30 for k in range(1000)]
        rows = [max(i for i, time in enumerate(times) if time <= at)
                for at in grid if at <= times[-1]]
        assert len(rows) != len(times)
        found, shades = read(folder, number, 'action')
        np.testing.assert_array_equal(found['action'][:, :3],
                                      values(len(times), number)['target_position'][rows])
        assert shades.tolist() == [3 * (row // 2) for row in rows]


def test_a_simulation_can_be_thinned_out(simulated, tmp_path):
    folder = export(simulated, tmp_path / 'thin', '--fps', '20', '--images', 'png')
    found, shades = read(folder, 2, 'observation.state')
    np.testing.assert_array_equal(found['observation.state'][:, :7],
                                  values(LENGTHS[2], 2)['ee_pose'][::4])
    assert shades.tolist() == [0, 20, 40, 60]
    assert json.loads((folder / 'meta/info.json').read_text())['fps'] == 20


def test_raw_pictures_are_exported_too(tmp_path):
    dataset = write_demonstrations(tmp_path / 'raw.zarr', lengths=(5, 4), size=16)
    zarr.open_group(str(dataset), mode='r+').attrs['cameras'] = ['arm']
    folder = export(dataset, tmp_path / 'raw', '--images', 'png', '--task', 'push')
    reader = LeRobotReader(folder)
    frames = list(reader.frames(1, 'observation.images.arm'))
    assert [frame.tolist() for frame in frames] == [
        np.full((16, 16, 3), i).tolist() for i in range(4)]
    assert reader.tasks == ['push']
    assert reader.origin['source_sizes'] == {'arm': [64, 64]}


def append(writer, frames, offset=0.0):
    """Write an episode whose action tells the row."""
    rows = np.arange(len(frames))[:, None] + offset
    writer.append({'observation.state': rows.repeat(8, 1), 'action': rows.repeat(4, 1)},
                  {'arm': frames})


def test_full_files_are_followed_by_others(tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot_writer, 'MOST_VIDEO_S', 0.25)  # 20 frames
    writer = LeRobotWriter(tmp_path / 'many', FPS, {'arm': (32, 32)}, 'x', data_file_mb=1e-4)
    for offset, length in enumerate(LENGTHS):
        append(writer, np.stack([picture((32, 32), 5 * i) for i in range(length)]), offset / 3)
    writer.close({})
    assert len(list((tmp_path / 'many/data').rglob('*.parquet'))) == 3
    assert len(list((tmp_path / 'many/videos').rglob('*.mp4'))) == 3
    for number, length in enumerate(LENGTHS):
        found, shades = read(tmp_path / 'many', number, 'action')
        assert found['action'][:, 3].tolist() == (np.arange(length) + number / 3).tolist()
        assert np.abs(shades - 5 * np.arange(length)).max() <= 2


def test_a_large_video_is_followed_by_another(tmp_path):
    writer = LeRobotWriter(tmp_path / 'large', FPS, {'arm': (96, 96)}, 'x', video_file_mb=0.25)
    random = np.random.default_rng(0)
    for length in LENGTHS * 4:
        append(writer, random.integers(0, 256, (2 * length, 96, 96, 3), np.uint8))
    writer.close({})
    files = sorted((tmp_path / 'large/videos').rglob('*.mp4'))
    assert len(files) > 1 and min(path.stat().st_size for path in files[:-1]) > 1 << 18


def test_a_video_that_cannot_be_written_is_an_error(tmp_path):
    writer = VideoWriter(tmp_path / 'absent' / 'video.mp4', 10, (32, 32))
    with pytest.raises(OSError, match='absent/video.mp4'):
        for _ in range(5):
            writer.add(np.zeros((32, 32, 3), np.uint8))
        writer.close()


@pytest.mark.parametrize('images', ['video', 'png'])
def test_a_full_disk_leaves_one_line_and_no_folder(simulated, tmp_path, images):
    script = REPOSITORY / 'training/export_lerobot.py'
    ended = subprocess.run(
        ['bash', '-c', f'ulimit -f 4; exec "{sys.executable}" "$@"', '-', script, simulated,
         '-o', tmp_path / 'out', '--images', images], capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': str(REPOSITORY)})
    assert ended.returncode == 2
    assert ended.stderr.startswith(f'export_lerobot.py: {tmp_path}/.out.new/'), ended.stderr
    assert ended.stderr.count('\n') == 1
    assert list(tmp_path.iterdir()) == []


def break_last_picture(path):
    root = zarr.open_group(str(path), mode='r+')
    root['data/wrist'][int(root['meta/wrist_ends'][-2]):] = 0


def shorten_camera(path):
    zarr.open_group(str(path), mode='r+')['meta/arm_ends'].resize((20,))


def no_gripper(path):
    del zarr.open_group(str(path), mode='r+')['data/gripper']


def odd_step(path):
    zarr.open_group(str(path), mode='r+').attrs['step_ns'] = 30_000_000


def no_step(path):
    del zarr.open_group(str(path), mode='r+').attrs['step_ns']


def no_source_size(path):
    zarr.open_group(str(path), mode='r+').attrs['source_sizes'] = {'arm': [64, 64]}


def no_task(path):
    zarr.open_group(str(path), mode='r+').attrs['task'] = ''


@pytest.mark.parametrize('spoil, options, words', [
    (break_last_picture, (), ('data/wrist', 'no JPEG or PNG')),
    (shorten_camera, (), ('data/arm', '20 rows', 'say 36')),
    (no_gripper, (), ('data/gripper is missing',)),
    (odd_step, (), ('step_ns is 30000000', '33.3333 rows a second', 'whole number')),
    (no_step, (), ("demos.zarr: attribute step_ns is 'missing', expected a whole number",)),
    (no_source_size, (), ('attribute source_sizes is {', 'expected height and width of wrist')),
    (no_task, (), ("'task' is empty", 'expected --task TEXT')),
    (None, ('--fps', '30'), ('--fps is 30', 'divisor of the 80')),
    (None, ('--fps', '0'), ('--fps is 0',)),
    (None, ('--fps', '1'), ('episode 0 has one row at 1 fps',)),
    (None, ('--cameras', 'front'), ('camera front is missing', "['arm', 'wrist']")),
])
def test_bad_data_are_refused_in_one_line(tmp_path, capfd, spoil, options, words):
    dataset = write_simulated(tmp_path / 'demos.zarr')
    if spoil:
        spoil(dataset)
    said = refusal(capfd, export, dataset, tmp_path / 'out', *options)
    for word in words:
        assert word in said


def grey(path):
    root = zarr.open_group(str(path), mode='r+')
    del root['data/arm']
    root.create_array('data/arm', data=np.ones((9, 16, 16), np.uint8))


def floats(path):
    root = zarr.open_group(str(path), mode='r+')
    del root['data/arm']
    root.create_array('data/arm', data=np.zeros((9, 16, 16, 3), np.float32))


@pytest.mark.parametrize('spoil, options, words', [
    (None, (), ("attribute 'cameras' is missing", 'expected --cameras NAME')),
    (grey, ('--cameras', 'arm'), ('data/arm: it is uint8 (9, 16, 16), expected',)),
    (floats, ('--cameras', 'arm'), ('data/arm: it is float32 (9, 16, 16, 3)',)),
    (None, ('--cameras', 'front'), ('data/front is missing', "'arm'")),
])
def test_bad_raw_pictures_are_refused_in_one_line(tmp_path, capfd, spoil, options, words):
    dataset = write_demonstrations(tmp_path / 'raw.zarr', lengths=(5, 4), size=16)
    if spoil:
        spoil(dataset)
    said = refusal(capfd, export, dataset, tmp_path / 'out', *options)
    for word in words:
        assert word in said


def test_a_recording_needs_a_rate(tmp_path, capfd):
    dataset = write_recorded(tmp_path / 'recorded.zarr', (10_000_000 * np.arange(1, 9),))
    said = refusal(capfd, export, dataset, tmp_path / 'out')
    assert str(dataset) in said and '--fps is missing' in said and 'like --fps 20' in said


def test_an_odd_size_is_no_video(tmp_path, capfd):
    dataset = write_demonstrations(tmp_path / 'raw.zarr', lengths=(5, 4), size=15)
    said = refusal(capfd, export, dataset, tmp_path / 'out',
                   '--cameras', 'arm')
    assert 'camera arm: its pictures are 15x15' in said and '--images png' in said
    export(dataset, tmp_path / 'out', '--cameras', 'arm', '--images', 'png')


def test_what_is_there_is_left_alone_and_what_a_kill_left_is_not(simulated, tmp_path, capfd):
    (tmp_path / 'out').mkdir()
    said = refusal(capfd, export, simulated, tmp_path / 'out')
    assert 'out: exists, expected no such folder' in said
    (tmp_path / 'out').rmdir()
    (tmp_path / '.out.new/data').mkdir(parents=True)
    (tmp_path / '.out.new/data/old').touch()
    export(simulated, tmp_path / 'out')
    assert not (tmp_path / 'out/data/old').exists() and not (tmp_path / '.out.new').exists()


def test_no_such_data_set(tmp_path, capfd):
    said = refusal(capfd, export, tmp_path / 'absent.zarr', tmp_path / 'out')
    assert 'absent.zarr: no zarr group' in said

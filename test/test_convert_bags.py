"""Bags to a data set, as the command line does it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time

from bags import image, joint, pose, write_bag
import convert_bags
import numpy as np
import pytest
import torch
import train
import yaml

from diffusion_policy_ros.data.only_writer import only_writer
from diffusion_policy_ros.data.replay_buffer import load_replay_buffer
from diffusion_policy_ros.datatypes import ObservationWindow
from diffusion_policy_ros.policy.checkpoint import load_checkpoint

MS = 1_000_000
STEP_NS = 50 * MS
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture()
def config(tmp_path):
    """Return a configuration of one small camera at 20 Hz."""
    values = yaml.safe_load((ROOT / 'config/training/cpu_unet.yaml').read_text())
    values['policy'] |= {
        'renderer': '', 'dt_s': 0.05, 'task': 'drawer-open-v3',
        'vision': {'base_width': 16, 'crop_height': 28, 'crop_width': 28, 'pooling': 'average'},
        'unet': {'down_dims': [16, 32], 'n_groups': 4}}
    values['policy']['observation']['cameras'] = [
        {'name': 'arm', 'source_height': 48, 'source_width': 48, 'height': 32, 'width': 32}]
    values['training'] |= {'episodes': 2, 'validation_episodes': 1, 'steps': 2, 'segments': 2,
                           'segment_windows': 2, 'save_every': 1}
    path = tmp_path / 'config.yaml'
    path.write_text(yaml.safe_dump(values))
    return path


def demo(folder, n=20, seed=0, size=48, custom=None, gap=0, pictures=None,
         turn=lambda i: (1.0, 0.0, 0.0, 0.0), without=()):
    """Write a bag of a straight move at 20 Hz, whose camera dies after so many pictures."""
    rng = np.random.default_rng(seed)
    stamps = [10**9 + STEP_NS * (i + gap * (i > n // 2)) for i in range(n)]
    at = [((0.01 * i, 0.1 * seed, 0.2), 'world', turn(i)) for i in range(n + 1)]
    streams = {
        '/arm/image_raw': ('sensor_msgs/msg/Image', [
            image(stamp, rng.integers(0, 256, (size, size, 3), np.uint8))
            for stamp in stamps[:pictures]]),
        '/ee_pose': ('geometry_msgs/msg/PoseStamped',
                     [pose(stamp, *now) for stamp, now in zip(stamps, at)]),
        '/gripper_state': ('sensor_msgs/msg/JointState', [joint(s, 0.5) for s in stamps]),
        '/target_pose': ('geometry_msgs/msg/PoseStamped',
                         [pose(stamp, *then) for stamp, then in zip(stamps, at[1:])]),
        '/target_gripper': ('sensor_msgs/msg/JointState', [joint(s, effort=1.0) for s in stamps])}
    return write_bag(folder, {name: stream for name, stream in streams.items()
                              if name not in without},
                     {'task': 'push', 'complete': 'true', 'success': 'true', **(custom or {})})


@pytest.fixture()
def bags(tmp_path):
    """Return a folder of three demonstrations."""
    for i in range(3):
        demo(tmp_path / 'bags' / f'episode_{i:06d}', seed=i, n=20 + i)
    return tmp_path / 'bags'


def convert(*arguments, workers=1):
    """Run the command and return its exit code."""
    with pytest.raises(SystemExit) as end:
        convert_bags.main([*map(str, arguments), '--workers', str(workers)])
    return end.value.code


def test_three_bags_are_three_episodes(bags, config, tmp_path, capsys):
    dataset = tmp_path / 'push.zarr'
    assert convert(bags, '-o', dataset, '-c', config, workers=2) == 0
    out = capsys.readouterr().out
    assert f'{dataset}: 3 episodes, 0 bags left out, pixels changed by ' in out
    assert f'{tmp_path / "push.html"}\n' in out
    buffer = load_replay_buffer(dataset, ('arm',))
    assert [rows.stop - rows.start for rows in buffer.episodes()] == [20, 21, 22]
    assert buffer.arrays['arm'].shape == (63, 32, 32, 3)
    np.testing.assert_allclose(buffer.arrays['target_position'][:3],
                               [[0.01, 0, 0.2], [0.02, 0, 0.2], [0.03, 0, 0.2]])
    assert (buffer.attributes['task'], buffer.attributes['source_sizes']) == (
        'push', {'arm': [48, 48]})


@pytest.mark.slow
def test_what_was_recorded_can_be_trained(bags, config, tmp_path):
    assert convert(bags, '-o', tmp_path / 'push.zarr', '-c', config) == 0
    train.main([str(config), '-d', str(tmp_path / 'push.zarr'), '-o', str(tmp_path / 'out'),
                '--cpu', '--set', 'policy.task=push'])
    assert (tmp_path / 'out/checkpoint/model.safetensors').is_file()


def test_the_report_shows_what_is_in_it_and_what_is_not(bags, config, tmp_path):
    demo(bags / 'episode_000003', custom={'success': 'false'})
    assert convert(bags, '-o', tmp_path / 'push.zarr', '-c', config) == 1
    page = (tmp_path / 'push.html').read_text()
    assert '3 episodes, 1 bags left out' in page
    assert 'episode_000003</td><td class="text">saved as a failure' in page
    assert page.count('data:image/png;base64,') == 2
    assert 'follows the targets best 0.05 s later, 0.0 mm' in page


def test_pictures_can_be_kept_without_loss_and_what_a_loss_is_is_said(
        bags, config, tmp_path, capsys):
    said = {}
    for kind in ('png', 'jpeg'):
        assert convert(bags, '-o', tmp_path / f'{kind}.zarr', '-c', config, '--images', kind) == 0
        said[kind] = capsys.readouterr().out
    png, jpeg = (load_replay_buffer(tmp_path / f'{kind}.zarr', ('arm',)).arrays['arm'].astype(int)
                 for kind in ('png', 'jpeg'))
    error = np.abs(png - jpeg).max()
    assert 0 < error < 120
    assert 'pixels changed by 0 of 255 at most' in said['png']
    assert f'pixels changed by {error} of 255 at most' in said['jpeg']
    assert f'by {error} of 255 at most' in (tmp_path / 'jpeg.html').read_text()


def cut(path):
    file, = path.glob('*.mcap')
    os.truncate(file, file.stat().st_size // 2)


def test_a_bag_that_cannot_be_used_is_named_and_the_others_go_on(bags, config, tmp_path, capsys):
    left_out = {
        'unfinished': ({'custom': {'complete': 'false'}}, 'unfinished: its recorder says'),
        'failed': ({'custom': {'success': 'false'}}, 'saved as a failure'),
        'later_small': ({'size': 40}, "its source_sizes is {'arm': [40, 40]}, expected {'arm'"),
        'later_drawn': ({'custom': {'renderer': 'plain'}}, "its renderer is 'plain', expected ''"),
        'gap': ({'gap': 3}, '/arm/image_raw has a gap of 0.200 s after 0.5 s'),
        'blind': ({'pictures': 12}, '/arm/image_raw ends 0.400 s before the last /target_pose, '
                                    'expected at most 0.075 s'),
        'short': ({'n': 1}, '1 observations have all streams and a target'),
        'cut': ({}, 'cannot be read: '),
        'x.unfinished': ({}, 'unfinished: it was neither saved nor discarded')}
    for name, (settings, _) in left_out.items():
        demo(bags / name, **settings)
    cut(bags / 'cut')
    assert convert(bags, '-o', tmp_path / 'push.zarr', '-c', config) == 1
    assert len(load_replay_buffer(tmp_path / 'push.zarr', ('arm',)).episode_ends) == 3
    said = capsys.readouterr().out.splitlines()
    page = (tmp_path / 'push.html').read_text().replace('&#x27;', "'")
    for name, (_, expected) in left_out.items():
        line, = [line for line in said if line.startswith(f'{bags}/{name}: ')]
        assert expected in line
        assert f'{name}</td><td class="text">{expected}' in page


@pytest.mark.parametrize('arguments, expected', [
    (['missing'], 'missing: no such file or folder'),
    (['empty'], 'empty: it is empty, expected a bag or a folder of bags'),
    (['bags', '--topics', 'map.yaml'], 'none of the bags can be used'),
])
def test_what_cannot_be_begun_is_one_line(
        bags, config, tmp_path, monkeypatch, capsys, arguments, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'map.yaml').write_text('front: /x\n')
    assert convert(*arguments, '-o', 'push.zarr', '-c', config) == 2
    assert capsys.readouterr().err.rstrip().endswith(expected)


def test_the_same_command_adds_what_is_new(bags, config, tmp_path, capsys):
    dataset = tmp_path / 'push.zarr'
    convert(bags, '-o', dataset, '-c', config)
    before = load_replay_buffer(dataset, ('arm',)).digest()
    demo(bags / 'episode_000003', seed=3)
    assert convert(bags, '-o', dataset, '-c', config) == 0
    buffer = load_replay_buffer(dataset, ('arm',))
    assert len(buffer.episode_ends) == 4
    assert buffer.split(3)[0].digest() == before
    assert convert(bags, '-o', dataset, '-c', config, '--set', 'policy.dt_s=0.1') == 2
    assert 'was made with dt_s 0.05, now 0.1' in capsys.readouterr().err


def test_a_second_conversion_into_a_data_set_is_one_line(bags, config, tmp_path, capsys):
    dataset = tmp_path / 'push.zarr'
    with only_writer(dataset):
        assert convert(bags, '-o', dataset, '-c', config) == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.endswith(f': {dataset}: is being written by another process')


def seeds(dataset):
    """Return the y of each episode's first pose, in tenths of a metre."""
    buffer = load_replay_buffer(dataset, ())
    return [round(10 * buffer.arrays['ee_pose'][part.start, 1]) for part in buffer.episodes()]


def test_a_bag_is_known_by_its_path_whatever_is_named_with_it(config, tmp_path, monkeypatch):
    monday, tuesday, dataset = tmp_path / 'bags/mon', tmp_path / 'bags/tue', tmp_path / 'push.zarr'
    demo(monday / 'episode_000000', seed=1)
    demo(tuesday / 'episode_000000', seed=2)
    options = ('-o', dataset, '-c', config)
    assert convert(monday, *options) == 0
    assert convert(tuesday, *options) == 0
    assert seeds(dataset) == [1, 2]
    monkeypatch.chdir(monday)
    assert convert(monday, tuesday, *options) == convert('episode_000000', *options) == 0
    assert seeds(dataset) == [1, 2]
    about = json.loads((dataset / '.zattrs').read_text())['bags']
    assert [bag['name'] for bag in about] == 2 * ['episode_000000']
    assert [bag['path'] for bag in about] == [f'{monday}/episode_000000',
                                              f'{tuesday}/episode_000000']


def test_a_bags_file_stands_for_the_bag(bags, config, tmp_path, capsys):
    said = {
        'failed': 'saved as a failure', 'part': 'unfinished: its recorder says',
        'y.unfinished': 'unfinished: it was neither saved nor discarded'}
    demo(bags / 'failed', custom={'success': 'false'})
    demo(bags / 'part', custom={'complete': 'false'})
    (demo(bags / 'y.unfinished') / 'metadata.yaml').unlink()
    options = ('-o', tmp_path / 'push.zarr', '-c', config)
    files = sorted(bags.glob('*/*.mcap'))
    assert len(files) == 6 and convert(*files, *options) == 1
    out = capsys.readouterr().out.splitlines()
    for name, expected in said.items():
        assert any(line.startswith(f'{bags}/{name}: {expected}') for line in out)
    assert json.loads((tmp_path / 'push.zarr/.zattrs').read_text())['bags'][0]['task'] == 'push'
    # The folder's are the same bags.
    assert convert(bags, *options) == 1
    assert len(load_replay_buffer(tmp_path / 'push.zarr', ()).episode_ends) == 3


def test_a_file_without_a_bag_around_it_is_taken_as_it_is(config, tmp_path):
    file, = demo(tmp_path / 'bag').glob('*.mcap')
    (tmp_path / 'bag/metadata.yaml').unlink()
    assert convert(file, '-o', tmp_path / 'push.zarr', '-c', config) == 0


def test_another_hand_is_another_data_set(bags, config, tmp_path, capsys):
    options = ('-o', tmp_path / 'push.zarr', '-c', config)
    assert convert(bags, *options) == 0
    values = yaml.safe_load((ROOT / 'config/arms/metaworld.yaml').read_text())
    values['gripper']['state_open'] = 0.08
    (tmp_path / 'arm.yaml').write_text(yaml.safe_dump(values))
    demo(bags / 'episode_000003')
    assert convert(bags, *options, '--arm', tmp_path / 'arm.yaml') == 2
    assert "push.zarr: was made with gripper {'type': 'continuous', " in capsys.readouterr().err


def test_a_bag_in_the_place_of_another_is_refused_and_one_that_is_gone_is_said(
        bags, config, tmp_path, capsys):
    options = ('-o', tmp_path / 'push.zarr', '-c', config)
    assert convert(bags, *options) == 0
    shutil.rmtree(bags / 'episode_000002')
    assert convert(bags, *options) == 0
    assert 'note: 1 of the bags in it are no longer where they were' in capsys.readouterr().out
    demo(bags / 'episode_000002', n=30, seed=7)
    assert convert(bags, *options) == 2
    assert f'{bags}/episode_000002: another bag of this name is in the data set' in (
        capsys.readouterr().err)
    assert seeds(tmp_path / 'push.zarr') == [0, 1, 2]


def test_a_bag_that_was_moved_is_the_same_and_a_copy_is_left_out(bags, config, tmp_path, capsys):
    options = ('-o', tmp_path / 'push.zarr', '-c', config)
    assert convert(bags, *options) == 0
    moved = tmp_path / 'disk/bags'
    moved.parent.mkdir()
    bags.rename(moved)
    demo(moved / 'episode_000003', seed=3)  # as long as the first, from the same time on
    assert convert(moved, *options) == 0
    assert seeds(tmp_path / 'push.zarr') == [0, 1, 2, 3]
    said = capsys.readouterr().out
    assert 'note: 3 of the bags in it were moved\n' in said and 'no longer' not in said
    about = json.loads((tmp_path / 'push.zarr/.zattrs').read_text())['bags']
    assert [bag['path'] for bag in about] == [f'{moved}/episode_{i:06d}' for i in range(4)]
    shutil.copytree(moved / 'episode_000001', moved / 'copy')
    assert convert(moved, *options) == 1
    assert f'{moved}/copy: the same bag as {moved}/episode_000001\n' in capsys.readouterr().out
    assert seeds(tmp_path / 'push.zarr') == [0, 1, 2, 3]


def test_settings_can_be_mended_as_long_as_no_bag_was_taken(bags, config, tmp_path, capsys):
    options = ('-o', tmp_path / 'push.zarr', '-c', config)
    assert convert(bags, *options, '--set', 'policy.dt_s=0.01') == 2
    assert capsys.readouterr().err.endswith('none of the bags can be used\n')
    assert convert(bags, *options) == 0
    assert seeds(tmp_path / 'push.zarr') == [0, 1, 2]


def test_a_data_set_is_of_one_task(bags, config, tmp_path, capsys):
    demo(bags / 'episode_000003', seed=3, custom={'task': 'pull'})
    options = ('-c', config, '-o')
    assert convert(bags, *options, tmp_path / 'mixed.zarr') == 1
    assert "its task is 'pull', expected 'push' as in episode_000000; --task" in (
        capsys.readouterr().out)
    assert convert(bags, *options, tmp_path / 'one.zarr', '--task', 'move') == 0
    attributes = json.loads((tmp_path / 'one.zarr/.zattrs').read_text())
    assert attributes['task'] == 'move' and len(attributes['bags']) == 4


def test_a_data_set_is_of_one_kind_of_actions(bags, config, tmp_path, capsys):
    demo(bags / 'episode_000003', without=['/target_pose'])
    dataset = tmp_path / 'push.zarr'
    assert convert(bags, '-o', dataset, '-c', config) == 1
    assert (f"{bags}/episode_000003: its action_source is 'ee_pose and target_gripper', expected "
            "'target_pose and target_gripper' as in episode_000000\n") in capsys.readouterr().out
    attributes = json.loads((dataset / '.zattrs').read_text())
    for bag in attributes['bags']:  # as an older version has left it
        del bag['action_source']
    (dataset / '.zattrs').write_text(json.dumps(attributes))
    shutil.rmtree(bags / 'episode_000003')
    demo(bags / 'episode_000004', seed=4)
    assert convert(bags, '-o', dataset, '-c', config) == 0
    assert seeds(dataset) == [0, 1, 2, 4]


def test_a_note_names_the_bags_that_it_is_of(bags, config, tmp_path, capsys):
    note = ('note: the targets turn the hand, but action.parts has no ee_rotation: a policy will '
            'not')
    for number in range(3, 10):
        demo(bags / f'episode_{number:06d}', seed=number, turn=lambda i: (
            0.0, 0.0, math.sin(0.02 * i), math.cos(0.02 * i)))
    options = ('-o', tmp_path / 'push.zarr', '-c', config)
    assert convert(*sorted(bags.iterdir())[:4], *options) == 0
    assert f'{note} (in 1 of 4 bags: episode_000003)\n' in capsys.readouterr().out
    assert convert(bags, *options) == 0
    assert (f'{note} (in 7 of 10 bags: episode_000003, episode_000004, episode_000005, '
            'episode_000006, episode_000007 and 2 more)\n') in capsys.readouterr().out
    assert convert(bags / 'episode_000003', '-o', tmp_path / 'one.zarr', '-c', config) == 0
    assert f'{note} (in all 1 bags)\n' in capsys.readouterr().out


@pytest.mark.parametrize('text, said', [
    ('ee_pose:', 'ee_pose is None'), ('arm: 3', 'arm is 3'), ("arm: ''", "arm is ''"),
    ('{ee_pose: /x, arm: [/y]}', "arm is ['/y']"), ('no: /x', "False is '/x'")])
def test_topics_without_a_name_are_one_line(bags, config, tmp_path, capsys, text, said):
    (tmp_path / 'topics.yaml').write_text(text)
    assert convert(bags, '-o', tmp_path / 'push.zarr', '-c', config,
                   '--topics', tmp_path / 'topics.yaml') == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.endswith(f'{tmp_path}/topics.yaml: {said}, expected a topic')


@pytest.mark.parametrize('text', ['', '- ee_pose', 'ee_pose'])
def test_topics_that_are_no_lines_of_names_are_one_line(bags, config, tmp_path, capsys, text):
    (tmp_path / 'topics.yaml').write_text(text)
    assert convert(bags, '-o', tmp_path / 'push.zarr', '-c', config,
                   '--topics', tmp_path / 'topics.yaml') == 2
    line, = capsys.readouterr().err.splitlines()
    assert f'{tmp_path}/topics.yaml: it is ' in line and line.endswith('lines of role: topic')


def test_a_database_without_metadata_is_named_as_a_broken_bag(bags, config, tmp_path, capsys):
    (bags / 'broken').mkdir()
    (bags / 'broken/broken_0.db3').write_bytes(b'SQLite format 3')
    assert convert(bags / 'broken', bags, '-o', tmp_path / 'push.zarr', '-c', config) == 1
    assert f'{bags}/broken: no metadata.yaml' in capsys.readouterr().out


def test_the_hands_rotation_can_be_trained(config, tmp_path):
    def turn(i):
        return 0.0, 0.0, math.sin(0.02 * i), math.cos(0.02 * i)  # of 0.04 rad about z

    for i in range(3):
        demo(tmp_path / f'bags/episode_{i:06d}', seed=i, turn=turn)
    parts = '[ee_position, ee_rotation, gripper]'
    words = ('--set', f'policy.action.parts={parts}', '--set', f'policy.observation.state={parts}')
    assert convert(tmp_path / 'bags', '-o', tmp_path / 'turn.zarr', '-c', config, *words) == 0
    train.main([str(config), '-d', str(tmp_path / 'turn.zarr'), '-o', str(tmp_path / 'run'),
                '--cpu', '--set', 'policy.task=push', *words])
    buffer = load_replay_buffer(tmp_path / 'turn.zarr', ())
    np.testing.assert_allclose(buffer.arrays['target_quaternion'][:20],
                               [turn(i + 1) for i in range(20)])
    policy = load_checkpoint(tmp_path / 'run/checkpoint')
    pose_now = np.array([0.0, 0.0, 0.2, *turn(10)])
    chunk, = policy.predict([ObservationWindow(0, {
        'arm': np.zeros((2, 32, 32, 3), np.uint8), 'gripper': np.zeros((2, 1)),
        'ee_pose': np.tile(pose_now, (2, 1))}, 'world')],
        torch.zeros((1, *policy.noise_shape)))
    # Relative targets lie within those of the demonstrations, from 0 to 0.28 rad, by a clipped
    # prediction: without the measured rotation they would be 0.4 rad off.
    angles = 2 * np.arctan2(chunk.quaternion[:, 2], chunk.quaternion[:, 3])
    assert ((angles > 0.3) & (angles < 0.8)).all(), angles


@pytest.mark.slow
def test_a_killed_conversion_goes_on_where_it_was(bags, config, tmp_path):
    whole, dataset = tmp_path / 'whole.zarr', tmp_path / 'push.zarr'
    for i in range(3, 12):
        demo(bags / f'episode_{i:06d}', seed=i)
    convert(bags, '-o', whole, '-c', config)
    process = subprocess.Popen(
        [sys.executable, ROOT / 'training/convert_bags.py', bags, '-o', dataset, '-c', config,
         '--workers', '1'], env={**os.environ, 'PYTHONPATH': str(ROOT)},
        stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not _begun(dataset):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert convert(bags, '-o', dataset, '-c', config) == 0
    assert (load_replay_buffer(dataset, ('arm',)).digest()
            == load_replay_buffer(whole, ('arm',)).digest())


def _begun(dataset):
    try:
        return bool(json.loads((dataset / '.zattrs').read_text())['bags'])
    except (OSError, ValueError, KeyError):
        return False


def test_the_sample_bag_is_a_demonstration(tmp_path, capsys):
    dataset = tmp_path / 'sample.zarr'
    assert convert(ROOT / 'test/data/drawer_open_demo', '-o', dataset) == 0
    buffer = load_replay_buffer(dataset, ('arm', 'wrist'))
    assert buffer.episode_ends.tolist() == [98]
    assert buffer.attributes['task'] == 'open the drawer'
    assert buffer.arrays['is_observation'].all() and buffer.arrays['is_teleop'].all()
    assert (np.diff(buffer.arrays['stamp_ns']) == 12_500_000).all()
    # The hand goes to the drawer's handle and pulls it out, towards the arm.
    pulled = buffer.arrays['ee_pose'][[50, 97], 1]
    assert pulled[0] - pulled[1] > 0.1
    size = sum(path.stat().st_size for path in (ROOT / 'test/data').rglob('*') if path.is_file())
    assert size < 3_000_000

"""Demonstrations: the same data from any number of workers, also after an interruption."""

from functools import partial
import multiprocessing
from pathlib import Path
import sys

import numpy as np
import pytest
import zarr

from diffusion_policy_ros.control.images import camera_image
from diffusion_policy_ros.data.pictures import encode_picture
from diffusion_policy_ros.sim.arm import MetaWorldArm
from diffusion_policy_ros.sim.experts import Expert

sys.path.insert(0, str(Path(__file__).parent.parent / 'training'))
import collect_demos  # noqa: E402, I100, I201
from expert_episodes import StartElsewhere  # noqa: E402

SEED = 1_000_000


def _collect(path, episodes, workers=1, task='reach-v3', cameras=('arm',), **settings):
    config = collect_demos.CollectConfig(task, cameras, source_size=48, size=24, **settings)
    collect_demos.collect(config, episodes, path, _play(workers))
    return _read(path)


def _play(workers=1):
    return partial(collect_demos.run_episodes, workers=workers)


def _read(path):
    group = zarr.open_group(path, mode='r')
    arrays = {f'{part}/{name}': array[:] for part in ('data', 'meta')
              for name, array in group[part].arrays()}
    return arrays, dict(group.attrs)


def _assert_same(one, other):
    assert one[0].keys() == other[0].keys()
    for name, values in one[0].items():
        np.testing.assert_array_equal(values, other[0][name], err_msg=name)
    assert one[1] == other[1]


@pytest.fixture(scope='module')
def three(tmp_path_factory):
    return _collect(tmp_path_factory.mktemp('demos') / 'three.zarr', 3)


@pytest.fixture(scope='module')
def elsewhere(tmp_path_factory):
    return _collect(tmp_path_factory.mktemp('demos') / 'elsewhere.zarr', 2, 2, start_offset=0.03)


@pytest.mark.parametrize('data, start_offset', [('three', 0.0), ('elsewhere', 0.03)])
def test_it_records_what_the_expert_saw_and_answered(data, start_offset, request):
    arrays, attributes = request.getfixturevalue(data)
    assert attributes['start_offset'] == start_offset
    pictures = np.split(arrays['data/arm'], arrays['meta/arm_ends'][:-1])
    arm, expert = MetaWorldArm('reach-v3', ('arm',), 48, 48), Expert('reach-v3')
    usual, _ = arm.reset(seed=SEED)
    moved = np.abs(arrays['data/ee_pose'][0] - usual['ee_pose']).max()
    assert moved > 0.01 if start_offset else moved == 0
    if start_offset:
        arm = StartElsewhere(arm, start_offset)
    observation, info = arm.reset(seed=SEED)
    after_success = 0
    for t in range(arrays['meta/episode_ends'][0]):
        position, effort = expert.target(info['sim_state'])
        np.testing.assert_array_equal(arrays['data/ee_pose'][t], observation['ee_pose'])
        np.testing.assert_array_equal(arrays['data/gripper'][t], observation['gripper'])
        drawn = camera_image(observation['arm'], 'rgb8', 24, 24)
        np.testing.assert_array_equal(pictures[t], encode_picture(drawn))
        np.testing.assert_array_equal(arrays['data/target_position'][t], position)
        assert arrays['data/target_gripper'][t] == effort
        after_success += info['success'] or after_success > 0
        observation, _, _, _, info = arm.step(np.array([*position, effort]))
    assert after_success == 10
    assert attributes['step_ns'] == 12_500_000 and attributes['renderer'] == 'plain'
    assert attributes['cameras'] == ['arm'] and attributes['source_size'] == 48
    arm.close()


def test_the_hand_begins_as_far_away_as_is_asked_at_rest_and_open():
    arm = MetaWorldArm('reach-v3')
    env, begun = StartElsewhere(arm, 0.03), []
    usual = arm.reset(seed=SEED)[0]
    for seed in range(SEED, SEED + 40):
        observation, _ = env.reset(seed=seed)
        begun.append(observation['ee_pose'][:3])
        after = env.step([*arm.mocap_position, -1.0])[0]
        assert np.abs(after['ee_pose'][:3] - begun[-1]).max() < 1e-3
        np.testing.assert_allclose(observation['gripper'], usual['gripper'], atol=1e-3)
    again, _ = env.reset(seed=SEED)
    np.testing.assert_array_equal(again['ee_pose'][:3], begun[0])
    apart = np.array(begun) - usual['ee_pose'][:3]
    assert np.abs(apart.mean(axis=0)).max() < 0.015
    np.testing.assert_allclose(apart.std(axis=0), 0.03, rtol=0.35)
    arm.close()


def test_an_expert_that_is_told_another_goal_goes_there(tmp_path):
    arrays, attributes = _collect(tmp_path / 'aimed.zarr', 1, goal_offset=(0.0, 0.0, 0.045),
                                  ticks_after_success=60)
    assert attributes['goal_offset'] == [0.0, 0.0, 0.045]
    arm = MetaWorldArm('reach-v3')
    _, info = arm.reset(seed=SEED)
    hand = arrays['data/ee_pose'][arrays['meta/episode_ends'][0] - 1, :3]
    above = hand - info['sim_state'][36:39]
    np.testing.assert_allclose(above, [0.0, 0.0, 0.045], atol=0.01)
    arm.close()


def test_the_layout_is_the_writers(three):
    arrays, _ = three
    steps = arrays['meta/episode_ends'][-1]
    assert {name: (values.shape, values.dtype.str[1:]) for name, values in arrays.items()} == {
        'data/arm': ((arrays['meta/arm_ends'][-1],), 'u1'), 'meta/arm_ends': ((steps,), 'i8'),
        'data/ee_pose': ((steps, 7), 'f8'), 'data/gripper': ((steps, 1), 'f8'),
        'data/target_position': ((steps, 3), 'f8'), 'data/target_gripper': ((steps, 1), 'f8'),
        'meta/episode_ends': ((3,), 'i8'), 'meta/episode_seeds': ((3,), 'i8')}
    assert arrays['meta/episode_seeds'].tolist() == [SEED, SEED + 1, SEED + 2]


@pytest.mark.slow
def test_the_number_of_workers_does_not_change_the_data(three, tmp_path):
    _assert_same(_collect(tmp_path / 'demos.zarr', 3, workers=2), three)


@pytest.mark.slow
def test_an_interrupted_run_goes_on(three, tmp_path):
    path = tmp_path / 'demos.zarr'
    _collect(path, 1)
    group = zarr.open_group(path, mode='r+')
    for name in ('data/arm', 'meta/arm_ends', 'data/ee_pose'):  # killed in the second episode
        array = group[name]
        array.resize((array.shape[0] + 7, *array.shape[1:]))
        array[-7:] = 99
    seeds = group['meta/episode_seeds']
    seeds.resize((2,))
    seeds[1] = 123
    _assert_same(_collect(path, 3), three)
    _assert_same(_collect(path, 2), three)  # nothing left to do


@pytest.mark.slow
def test_failures_are_counted_and_left_out(tmp_path):
    # soccer's expert misses on this seed, and scores on the next.
    arrays, attributes = _collect(tmp_path / 'demos.zarr', 1, 2, 'soccer-v3', (),
                                  seed_start=SEED + 1)
    assert arrays['meta/episode_seeds'].tolist() == [SEED + 2]
    assert attributes['failed_seeds'] == [SEED + 1] and attributes['n_failures'] == 1
    assert arrays['meta/episode_ends'][0] < 150


def test_episodes_come_in_the_order_of_their_seeds():
    ended = [collect_demos.Episode(seed, np.zeros((1, 3))) for seed in (7, 5, 8, 6)]
    assert [episode.seed for episode in collect_demos.in_order(iter(ended), 5)] == [5, 6, 7, 8]


@pytest.mark.parametrize('arguments, message', [
    (['--task', 'reach'], "task 'reach' is none of the 50"),
    (['--task', 'reach-v3', '--cameras', 'front'], "camera 'front' is unknown"),
    (['--task', 'reach-v3', '--cameras', 'arm', 'arm'], 'cameras are arm arm, expected each once'),
    (['--task', 'reach-v3', '--renderer', 'x'], "renderer 'x' is unknown"),
    (['--task', 'reach-v3', '--seed-start', '7'], 'seed 7 belongs to the evaluation'),
    (['--task', 'reach-v3', '--size', '300'], 'size is 300'),
    (['--task', 'reach-v3', '--workers', '0'], 'workers 0'),
])
def test_a_wrong_argument_is_one_line(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        collect_demos.main([*arguments, '-o', str(tmp_path / 'demos.zarr')])
    line, = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and message in line
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_several_tasks_go_to_a_folder_each_and_task_sets_are_spelled_out(tmp_path, capsys):
    arguments = ['--task', 'reach-v3', 'drawer-close-v3', '--episodes', '1', '--cameras',
                 '--workers', '1', '-o']
    collect_demos.main([*arguments, str(tmp_path / 'demos')])
    assert sorted(path.name for path in (tmp_path / 'demos').iterdir()) == [
        'drawer_close.zarr', 'reach.zarr']
    assert _read(tmp_path / 'demos/drawer_close.zarr')[1]['task'] == 'drawer-close-v3'
    with pytest.raises(SystemExit):
        collect_demos.main([*arguments, str(tmp_path / 'one.zarr')])
    assert '2 tasks need a folder' in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_simulation_is_one_line_and_the_run_goes_on(three, tmp_path, monkeypatch, capsys):
    path = tmp_path / 'demos.zarr'
    arguments = ['--task', 'reach-v3', '--episodes', '3', '--cameras', 'arm', '--source-size',
                 '48', '--size', '24', '--workers', '2', '-o', str(path)]
    append = collect_demos.ReplayWriter.append

    def and_kill(writer, *args, **kwargs):
        append(writer, *args, **kwargs)
        multiprocessing.active_children()[0].kill()

    monkeypatch.setattr(collect_demos.ReplayWriter, 'append', and_kill)
    with pytest.raises(SystemExit) as caught:
        collect_demos.main(arguments)
    line = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 1 and 'a simulation process died' in line
    monkeypatch.setattr(collect_demos.ReplayWriter, 'append', append)
    assert 0 < len(_read(path)[0]['meta/episode_ends']) < 3
    collect_demos.main(arguments)
    _assert_same(_read(path), three)


def test_a_ray_cluster_makes_the_same_data(three, tmp_path):
    ray = pytest.importorskip('ray', reason='needs the extra `ray`')
    path = tmp_path / 'demos.zarr'
    collect_demos.main(['--task', 'reach-v3', '--episodes', '3', '--cameras', 'arm',
                        '--source-size', '48', '--size', '24', '--workers', '2', '--ray', 'local',
                        '-o', str(path)])
    ray.shutdown()
    _assert_same(_read(path), three)


def test_a_second_run_on_a_data_set_is_one_line(tmp_path, capsys):
    path = tmp_path / 'demos.zarr'
    with collect_demos.open_writer(collect_demos.CollectConfig('reach-v3'), path):
        with pytest.raises(SystemExit) as caught:
            collect_demos.main(['--task', 'reach-v3', '-o', str(path)])
    line, = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert line.endswith(f': {path}: is being written by another process')


@pytest.mark.parametrize('output', ['/proc/demos.zarr', '/proc/demos', '/dev/null/demos.zarr'])
def test_a_place_where_nothing_can_be_written_is_one_line(output, capsys):
    with pytest.raises(SystemExit) as caught:
        collect_demos.main(['--task', 'reach-v3', '-o', output])
    line, = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert f': {output}' in line and 'cannot be written' in line and 'is kept' not in line


def test_a_disk_that_is_full_at_once_keeps_nothing(tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(zarr, 'open_group', full)
    with pytest.raises(SystemExit) as caught:
        collect_demos.main(['--task', 'reach-v3', '-o', str(tmp_path / 'demos.zarr')])
    line, = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and 'No space left' in line and 'is kept' not in line


def test_other_data_in_the_folder_are_left_alone(tmp_path):
    path = tmp_path / 'demos.zarr'
    _collect(path, 1)
    with pytest.raises(ValueError, match="was made with task 'reach-v3', now 'push-v3'"):
        _collect(path, 1, task='push-v3')
    assert zarr.open_group(path, mode='r').attrs['task'] == 'reach-v3'
    (tmp_path / 'notes').mkdir()
    (tmp_path / 'notes' / 'list.txt').write_text('x')
    with pytest.raises(ValueError, match='found something else than a zarr group'):
        collect_demos.collect(collect_demos.CollectConfig('reach-v3'), 1, tmp_path / 'notes',
                              _play())
    assert (tmp_path / 'notes' / 'list.txt').read_text() == 'x'

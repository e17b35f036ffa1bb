"""Demonstrations through the topics and a bag are those that come straight from the simulator."""

from __future__ import annotations

import json
from pathlib import Path

import collect_demos
import convert_bags
import numpy as np
import pytest
import train
import yaml

from diffusion_policy_ros.data.replay_buffer import load_replay_buffer, LOW_DIMENSIONAL
from diffusion_policy_ros.nodes.record_bringup import record_nodes, RecordSettings
from diffusion_policy_ros.nodes.supervisor import record

ROOT = Path(__file__).resolve().parents[2]
TASK, SIZE, CAMERAS = 'button-press-topdown-v3', 48, ('arm', 'wrist')


@pytest.fixture()
def config(tmp_path):
    """Return a configuration of two small cameras."""
    values = yaml.safe_load((ROOT / 'config/training/cpu_unet.yaml').read_text())
    values['policy']['task'] = TASK
    values['policy']['observation']['cameras'] = [
        {'name': name, 'source_height': SIZE, 'source_width': SIZE, 'height': SIZE, 'width': SIZE}
        for name in CAMERAS]
    values['policy']['vision'] |= {'crop_height': 40, 'crop_width': 40}
    (tmp_path / 'config.yaml').write_text(yaml.safe_dump(values))
    return tmp_path / 'config.yaml'


def losses(config, tmp_path, name):
    """Return the losses of a short training."""
    settings = ('policy.vision.base_width=16', 'policy.unet.down_dims=[16, 32]',
                'policy.unet.n_groups=4', 'training.episodes=1', 'training.validation_episodes=1',
                'training.steps=4', 'training.save_every=1')
    out = tmp_path / f'{name}_out'
    train.main([str(config), '-d', str(tmp_path / f'{name}.zarr'), '-o', str(out), '--cpu',
                *(word for setting in settings for word in ('--set', setting))])
    lines = (out / 'metrics.jsonl').read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [(row['step'], row['loss'], row['validation_loss']) for row in found]


@pytest.mark.slow
def test_two_demonstrations_are_recorded_bit_by_bit(start, probe, tmp_path, config):
    settings = RecordSettings(
        TASK, folder=str(tmp_path / 'bags'), episodes=2, image_size=SIZE, note='a test',
        out=str(tmp_path / 'run'))
    processes = {spec.executable: start(spec.module, spec.executable, spec.parameters)
                 for spec in record_nodes(settings)}
    runner = processes['sim_runner']
    probe.wait(lambda: runner.exit_code is not None, "the run's end", 180)
    assert runner.exit_code == 0
    assert json.loads((tmp_path / 'run/summary.json').read_text())['n_success'] == 2

    with pytest.raises(SystemExit) as end:
        convert_bags.main([str(tmp_path / 'bags'), '-o', str(tmp_path / 'bags.zarr'),
                           '-c', str(config), '--workers', '1'])
    assert end.value.code == 0
    collect_demos.main(['--task', TASK, '--episodes', '2', '--cameras', *CAMERAS, '--source-size',
                        str(SIZE), '--size', str(SIZE), '--workers', '1',
                        '-o', str(tmp_path / 'straight.zarr')])
    bags, straight = (load_replay_buffer(tmp_path / f'{name}.zarr', CAMERAS)
                      for name in ('bags', 'straight'))
    assert bags.episode_ends.tolist() == straight.episode_ends.tolist()
    for name in (*LOW_DIMENSIONAL, *CAMERAS):
        np.testing.assert_array_equal(bags.arrays[name], straight.arrays[name], name)
    assert bags.arrays['is_observation'].all() and bags.arrays['is_teleop'].all()
    assert losses(config, tmp_path, 'bags') == losses(config, tmp_path, 'straight')
    about = yaml.safe_load((tmp_path / 'bags/episode_000001/metadata.yaml').read_text())
    custom = about['rosbag2_bagfile_information']['custom_data']
    assert (custom['task'], custom['note'], custom['seed'], custom['renderer']) == (
        TASK, 'a test', '1000001', 'plain')


@pytest.mark.slow
def test_what_is_recorded_in_real_time_holds_one_episode_a_bag(start, probe, tmp_path, config):
    settings = RecordSettings(
        TASK, folder=str(tmp_path / 'bags'), episodes=2, image_size=SIZE, mode='realtime',
        real_time_factor=0.2, out=str(tmp_path / 'run'))
    processes = {spec.executable: start(spec.module, spec.executable, spec.parameters)
                 for spec in record_nodes(settings)}
    runner = processes['sim_runner']
    probe.wait(lambda: runner.exit_code is not None, "the run's end", 180)
    assert runner.exit_code == 0
    with pytest.raises(SystemExit) as end:
        convert_bags.main([str(tmp_path / 'bags'), '-o', str(tmp_path / 'bags.zarr'),
                           '-c', str(config), '--workers', '1'])
    assert end.value.code == 0
    assert len(load_replay_buffer(tmp_path / 'bags.zarr', CAMERAS).episode_ends) == 2


@pytest.mark.parametrize('arguments, expected', [
    (['--task', 'drawer-opn-v3'], 'drawer-opn-v3'),
    (['--seed', '3'], '3'),
    (['--teleoperator', 'joy'], 'mode is lockstep and episodes 10, expected realtime and 0'),
    (['--image-size', '0'], 'image_size 0'),
])
def test_wrong_settings_are_one_line(capsys, arguments, expected):
    assert record(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith('record_demos: ') and expected in error
    assert error.count('\n') == 1

"""Which nodes make a run, and with which parameters; and the command that starts them."""

from dataclasses import fields, replace
import re
import subprocess
import sys

import pytest
import yaml

from diffusion_policy_ros.data.bag_writer import BagWriter
from diffusion_policy_ros.nodes.bringup import (
    metaworld_nodes, node_parameters, settings_from, SimSettings,
)
from diffusion_policy_ros.nodes.record_bringup import record_nodes, RecordSettings
from diffusion_policy_ros.nodes.supervisor import main, own_domain, parse
from diffusion_policy_ros.policy.checkpoint_config import CheckpointConfig
from diffusion_policy_ros.policy.config import CameraSpec, ObservationSpec, PolicyConfig
from diffusion_policy_ros.typed import to_mapping

CONFIG = PolicyConfig(
    ObservationSpec((CameraSpec('arm', 120, 160, 96, 96), CameraSpec('wrist', 120, 160, 96, 96))),
    dt_s=0.05, n_action_steps=3, renderer='plain', task='reach-v3')


@pytest.fixture()
def checkpoint(tmp_path):
    """Return a function that writes a checkpoint's config.yaml and returns its folder."""
    def write(config=CONFIG) -> str:
        (tmp_path / 'config.yaml').write_text(yaml.safe_dump(
            to_mapping(CheckpointConfig(1, config))))
        return str(tmp_path)
    return write


def parameters(settings: SimSettings) -> dict[str, dict]:
    return {spec.executable: spec.parameters for spec in metaworld_nodes(settings)}


def test_the_checkpoint_says_what_the_nodes_need_to_know(checkpoint):
    folder = checkpoint()
    nodes = parameters(SimSettings(checkpoint=folder, episodes=4, seed=7))
    assert list(nodes) == ['metaworld_bridge', 'chunk_executor', 'policy', 'sim_runner']
    bridge, executor = nodes['metaworld_bridge'], nodes['chunk_executor']
    assert (bridge['task'], bridge['seed'], bridge['mode']) == ('reach-v3', 7, 'lockstep')
    assert bridge['cameras'] == ['arm', 'wrist']
    assert (bridge['image_height'], bridge['image_width']) == (120, 160)
    assert bridge['image_every'] == 4
    assert (executor['n_action_steps'], executor['dt_s']) == (3, 0.05)
    assert executor['lockstep'] and executor['enable_on_start']
    assert {nodes[name]['arm'] for name in ('metaworld_bridge', 'chunk_executor', 'policy')} == {
        'arms/metaworld.yaml'}
    assert nodes['policy']['checkpoint'] == folder
    assert nodes['policy']['lockstep']
    runner = nodes['sim_runner']
    assert runner['wait_limit_s'] == bridge['wait_limit_s'] == 30.0
    assert (runner['task'], runner['episodes'], runner['seed']) == ('reach-v3', 4, 7)


def test_what_is_asked_for_goes_before_the_checkpoint(checkpoint):
    nodes = parameters(SimSettings(
        checkpoint=checkpoint(), task='drawer-open-v3', mode='realtime', real_time_factor=0.5,
        video=False))
    assert nodes['metaworld_bridge']['task'] == nodes['sim_runner']['task'] == 'drawer-open-v3'
    assert nodes['metaworld_bridge']['mode'] == nodes['sim_runner']['mode'] == 'realtime'
    assert nodes['metaworld_bridge']['real_time_factor'] == 0.5
    assert nodes['metaworld_bridge']['view_camera'] == ''
    assert not nodes['policy']['lockstep'] and not nodes['chunk_executor']['lockstep']
    assert not nodes['sim_runner']['video']


def test_an_arm_without_a_runner_starts_by_itself(checkpoint):
    nodes = parameters(SimSettings(checkpoint=checkpoint(), episodes=0, mode='realtime'))
    assert 'sim_runner' not in nodes
    assert nodes['metaworld_bridge']['autostart']
    assert nodes['metaworld_bridge']['real_time_factor'] == 1.0


def test_what_nobody_asks_for_comes_from_the_yaml_of_the_node(checkpoint):
    nodes = parameters(SimSettings(checkpoint=checkpoint()))
    for name, given in nodes.items():
        assert node_parameters(name).keys() <= given.keys(), name
    assert nodes['metaworld_bridge']['view_size'] == 360
    assert nodes['chunk_executor']['blend_s'] == node_parameters('chunk_executor')['blend_s']


def test_a_namespace_has_its_own_time_and_frames(checkpoint):
    for spec in metaworld_nodes(SimSettings(checkpoint=checkpoint(), namespace='left')):
        assert spec.namespace == 'left'
        rules = [rule for flag, rule in zip(spec.ros_arguments, spec.ros_arguments[1:])
                 if flag == '-r']
        assert rules == [f'__node:={spec.executable}', '/clock:=clock', '/tf:=tf', '__ns:=/left']
    for spec in metaworld_nodes(SimSettings(checkpoint=checkpoint())):
        assert spec.ros_arguments == ['--ros-args', '-r', f'__node:={spec.executable}']


@pytest.mark.parametrize('change, said', [
    ({'task': 'drawer-opne-v3'}, 'did you mean drawer-open-v3'),
    ({'mode': 'fast'}, "mode is 'fast', expected lockstep or realtime"),
    ({'seed': -1}, 'seed -1 is no evaluation seed'),
    ({'seed': 999_999}, 'seed 1000008 is no evaluation seed'),
    ({'episodes': -1}, 'episodes is -1'),
    ({'episodes': 0}, 'episodes is 0 and mode lockstep, expected mode:=realtime'),
    ({'wait_limit_s': 0.0}, 'wait_limit_s is 0.0, expected more than 0'),
    ({'real_time_factor': -0.5}, 'real_time_factor -0.5'),
    ({'checkpoint': '/no/such/folder'}, '/no/such/folder'),
])
def test_a_wrong_setting_is_one_line(change, said):
    with pytest.raises(ValueError, match=said.replace('/', '.')) as caught:
        metaworld_nodes(SimSettings(**change))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('config, said', [
    (replace(CONFIG, dt_s=0.03), 'dt_s is 0.03, expected a multiple'),
    (replace(CONFIG, observation=ObservationSpec(
        (CameraSpec('arm', 120, 160, 96, 96), CameraSpec('wrist', 96, 96, 96, 96)))),
     'source sizes'),
    (replace(CONFIG, task='lift-the-cup'), "'lift-the-cup' is none of the 50"),
])
def test_a_checkpoint_that_the_simulator_cannot_serve_is_refused(checkpoint, config, said):
    with pytest.raises(ValueError, match=said):
        metaworld_nodes(SimSettings(checkpoint=checkpoint(config)))


def test_settings_as_text():
    values = {'mode': 'realtime', 'real_time_factor': '0.5', 'episodes': '3', 'video': 'false'}
    assert settings_from(SimSettings, values) == SimSettings(
        mode='realtime', real_time_factor=0.5, episodes=3, video=False)
    for name, text in (('episodes', 'ten'), ('video', 'maybe'), ('real_time_factor', '1x')):
        with pytest.raises(ValueError, match=f"{name} is '{text}', expected"):
            settings_from(SimSettings, {name: text})


def test_each_setting_has_an_option_and_a_description():
    arguments = ['--task', 'reach-v3', '--checkpoint', 'here', '--mode', 'realtime',
                 '--real-time-factor', '0.5', '--episodes', '3', '--seed', '5',
                 '--namespace', 'left', '--no-video', '--wait-limit-s', '3', '--out', 'there',
                 '--domain-id', '42']
    settings, options = parse('metaworld_sim', SimSettings, arguments)
    assert settings == SimSettings('reach-v3', 'here', 'realtime', 0.5, 3, 5, 'left', False, 3.0,
                                   'there')
    assert options.domain_id == 42 and not options.respawn
    assert all(len(field.metadata['description']) > 10 for field in fields(SimSettings))


@pytest.mark.parametrize('arguments, said', [
    (['--task', 'reach-v2'], "task 'reach-v2' is none of the 50 MetaWorld tasks: did you mean"),
    (['--checkpoint', '/no/such'], '/no/such'),
    (['--episodes', '0'], 'episodes is 0, expected at least 1'),
])
def test_the_command_refuses_in_one_line(arguments, said, capfd):
    assert main(arguments) == 1
    output = capfd.readouterr()
    assert said in output.err
    assert output.err.startswith('metaworld_sim: ') and output.err.count('\n') == 1
    assert output.out == ''


def test_two_runs_have_two_domains():
    taken = [own_domain() for _ in range(20)]
    assert len({domain_id for domain_id, _ in taken}) == 20
    assert all(1 <= domain_id <= 101 for domain_id, _ in taken)
    for _, lock in taken:
        lock.close()


def test_neither_ros_nor_torch_nor_the_simulator_is_imported():
    code = ('import sys; import diffusion_policy_ros.nodes.supervisor; '
            'print([name for name in ("rclpy", "torch", "mujoco", "launch") '
            'if name in sys.modules])')
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.stdout == '[]\n', result.stderr


def test_a_recording_without_a_runner_is_in_real_time():
    with pytest.raises(ValueError, match='episodes is 0 and mode lockstep, expected mode:=real'):
        RecordSettings(episodes=0)
    names = [spec.executable for spec in record_nodes(RecordSettings(episodes=0, mode='realtime'))]
    assert 'sim_runner' not in names


@pytest.mark.parametrize('cameras', ['', ' '])
def test_a_recording_without_a_camera_is_refused(cameras):
    with pytest.raises(ValueError, match=f"^cameras is '{cameras}', expected at least one$"):
        RecordSettings(cameras=cameras)


@pytest.mark.parametrize('mode, episodes, ends', [
    ('lockstep', 2, True), ('realtime', 2, True), ('realtime', 0, False)])
def test_an_arm_whose_episodes_are_recorded_ends_them(mode, episodes, ends):
    bridge, *_ = record_nodes(RecordSettings(mode=mode, episodes=episodes))
    assert bridge.parameters['end_episodes'] is ends


def test_the_arm_that_is_recorded_is_metaworlds():
    nodes = {spec.executable: spec.parameters for spec in record_nodes(RecordSettings())}
    assert nodes['chunk_executor']['arm'] == nodes['metaworld_bridge']['arm']


def test_a_recording_has_a_folder_of_its_own_kind():
    for out, expected in (('', r'out/record/\d{4}-\d\d-\d\d_[\d-]+'), ('here', 'here')):
        runner = record_nodes(RecordSettings(out=out))[-1]
        assert runner.executable == 'sim_runner'
        assert re.fullmatch(expected, runner.parameters['out'])


def test_a_gamepad_is_heard_from_within_a_namespace():
    joy = {'teleoperator': 'joy', 'mode': 'realtime', 'episodes': 0}
    for namespace, rules in (('left', (('/clock', 'clock'), ('/tf', 'tf'), ('joy', '/joy'))),
                             ('', ())):
        specs = record_nodes(RecordSettings(namespace=namespace, **joy))
        assert {spec.executable: spec.remappings for spec in specs} == {
            'metaworld_bridge': rules[:2], 'chunk_executor': rules[:2],
            'demo_recorder': rules[:2], 'joy_teleop': rules}


def test_recording_goes_on_after_the_last_seed_of_the_folder(tmp_path):
    def seeds(**settings):
        found = {spec.executable: spec.parameters for spec in record_nodes(
            RecordSettings(folder=str(tmp_path), **settings))}
        return found['metaworld_bridge']['seed'], found['sim_runner']['seed']

    assert seeds() == (1_000_000, 1_000_000)
    for i, seed in enumerate((1_000_007, 1_000_002)):
        BagWriter(tmp_path / f'episode_{i}', 'episode').close({'seed': str(seed)})
    assert seeds() == (1_000_008, 1_000_008)
    assert seeds(seed=1_000_003) == (1_000_003, 1_000_003)

from dataclasses import replace

from demonstrations import write_demonstrations
import numpy as np
import pytest

from diffusion_policy_ros.data.replay_buffer import load_replay_buffer
from diffusion_policy_ros.data.window_data import WindowData
from diffusion_policy_ros.policy.config import (
    ActionSpec,
    CameraSpec,
    ObservationSpec,
    PolicyConfig,
    VisionConfig,
)


def config(size=32, source=64, **changes):
    camera = CameraSpec('arm', source, source, size, size)
    values = {'observation': ObservationSpec((camera,)), 'dt_s': 0.0125, 'renderer': 'plain',
              'vision': VisionConfig(16, size - 4, size - 4, 'average')}
    return PolicyConfig(**{**values, **changes})


TURNING = ActionSpec(('ee_position', 'ee_rotation', 'gripper'))


@pytest.fixture
def buffer(tmp_path):
    return load_replay_buffer(write_demonstrations(tmp_path / 'd.zarr'), ('arm',))


def test_a_batch_holds_each_frame_once_and_windows_find_theirs(buffer):
    data = WindowData(buffer, config())
    shown, frames = data.frames(np.array([41, 42, 60]))
    images = data.images(shown)['arm']
    assert len(images) == 5                       # frames 40, 41, 42 and 59, 60
    shades = images[frames][..., 0, 0, 0]         # (B, To), frame number in episode
    assert shades.tolist() == [[0, 1], [1, 2], [19, 20]]


def test_actions_are_targets_relative_to_the_pose_of_the_windows_own_time(buffer):
    data = WindowData(buffer, config())
    row = 45
    expected = (buffer.arrays['target_position'][44:52] - buffer.arrays['ee_pose'][row, :3])
    np.testing.assert_allclose(data.action[row, :, :3], expected, atol=1e-7)
    np.testing.assert_array_equal(data.action[row, :, 3],
                                  buffer.arrays['target_gripper'][44:52, 0])


def test_state_is_position_and_gripper_of_the_observed_rows(buffer):
    data = WindowData(buffer, config())
    np.testing.assert_allclose(data.state[45, 1, :3], buffer.arrays['ee_pose'][45, :3], atol=1e-7)
    np.testing.assert_allclose(data.state[45, 0, 3], buffer.arrays['gripper'][44, 0], atol=1e-7)


def test_an_action_holds_the_parts_that_are_asked_for(buffer):
    whole = WindowData(buffer, config())
    np.testing.assert_array_equal(
        WindowData(buffer, config(action=ActionSpec(('ee_position',)))).action,
        whole.action[..., :3])
    angle = np.linspace(0, 1, len(buffer.arrays['ee_pose']))
    quaternions = np.stack([0 * angle, 0 * angle, np.sin(angle / 2), np.cos(angle / 2)], axis=1)
    turned = replace(buffer, arrays={**buffer.arrays, 'target_quaternion': quaternions})
    action = WindowData(turned, config(action=TURNING)).action
    np.testing.assert_array_equal(action[..., [0, 1, 2, 9]], whole.action)
    # The measured hand is not turned, so that relative is absolute: a turn about z.
    np.testing.assert_allclose(action[45, :, 3:9], np.stack(
        [np.cos(angle), np.sin(angle), 0 * angle, -np.sin(angle), np.cos(angle), 0 * angle],
        axis=1)[44:52], atol=1e-6)


def test_a_recording_is_of_one_step(buffer):
    recorded = replace(buffer, attributes={**buffer.attributes, 'dt_s': 0.025})
    with pytest.raises(ValueError, match="the recording's dt_s is 0.025, expected 0.0125: conver"):
        WindowData(recorded, config())


def test_names_all_differences_in_one_line(buffer):
    with pytest.raises(ValueError) as error:
        WindowData(buffer, config(size=48, source=96, renderer='shadows',
                                  action=TURNING, task='push-v3'))
    for word in ("task is 'drawer-open-v3', expected policy.task 'push-v3'",
                 '32x32, expected 48x48', '64x64, expected 96x96', "'plain', expected 'shadows'",
                 'the data have no target_quaternion'):
        assert word in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('lacking', ['source_size', 'step_ns'])
def test_data_that_do_not_say_how_they_came_about_are_refused(buffer, lacking):
    attributes = {key: value for key, value in buffer.attributes.items() if key != lacking}
    with pytest.raises(ValueError, match=f'attributes lack {lacking}, found renderer'):
        WindowData(replace(buffer, attributes=attributes), config())


@pytest.mark.parametrize('wrong, message', [
    ({'step_ns': 0}, 'attribute step_ns is 0, expected a whole number from 1 on'),
    ({'step_ns': None}, 'attribute step_ns is None'),
    ({'step_ns': 'x'}, "attribute step_ns is 'x'"),
    ({'source_size': None}, 'attribute source_size is None'),
    ({'source_sizes': {'wrist': [64, 64]}},
     "attribute source_sizes is {'wrist': [64, 64]}, expected height and width of arm"),
    ({'source_sizes': {'arm': 64}}, 'expected height and width of arm'),
    ({'source_sizes': 64}, 'attribute source_sizes is 64'),
    ({'tolerance_ns': None}, 'attribute tolerance_ns is None'),
])
def test_wrong_attributes_are_named(buffer, wrong, message):
    with pytest.raises(ValueError) as error:
        WindowData(replace(buffer, attributes={**buffer.attributes, **wrong}), config())
    assert message in str(error.value) and '\n' not in str(error.value)


def test_episodes_that_are_all_shorter_than_a_window_are_refused(buffer):
    with pytest.raises(ValueError, match='every episode is shorter than a window of horizon 64'):
        WindowData(buffer, config(horizon=64))

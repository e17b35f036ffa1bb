import numpy as np
import pytest

from diffusion_policy_ros.datatypes import EE_POSE, GRIPPER
from diffusion_policy_ros.policy.actions import (
    decode_action,
    encode_action,
    encode_state,
    matrix,
    matrix_from_rot6d,
    quaternion,
    rot6d,
    split_targets,
)
from diffusion_policy_ros.policy.config import ActionSpec, ObservationSpec, PolicyConfig

ALL_PARTS = ('gripper', 'ee_position', 'ee_rotation')
HALF = np.sqrt(0.5)
QUARTER_TURN_Z = np.array([0.0, 0.0, HALF, HALF])


def config(target, parts=ALL_PARTS, n_obs_steps=2, state=()):
    return PolicyConfig(ObservationSpec((), state or ('gripper',)), ActionSpec(parts, target),
                        n_obs_steps=n_obs_steps)


def random_quaternions(rng, *shape):
    value = rng.normal(size=(*shape, 4))
    value *= np.where(value[..., 3:] < 0, -1, 1)
    return value / np.linalg.norm(value, axis=-1, keepdims=True)


@pytest.mark.parametrize('target, expected', [
    ('absolute', [10, 11, 13, 16]),
    ('relative', [1, 2, 4, 7]),
    ('delta', [0, 2, 2, 3]),
])
def test_the_row_of_the_docstring(target, expected):
    targets = np.zeros((4, 4))
    targets[:, 0] = [10, 11, 13, 16]
    targets[:, 3] = [1, 1, -1, -1]
    pose = np.array([9.0, 0, 0, 0, 0, 0, 1])
    spec = PolicyConfig(ObservationSpec((), ('gripper',)), ActionSpec(target=target), horizon=4,
                        n_action_steps=3)
    encoded = encode_action(targets, pose, spec)
    np.testing.assert_array_equal(encoded[:, 0], expected)
    np.testing.assert_array_equal(encoded[:, 3], [1, 1, -1, -1])
    np.testing.assert_array_equal(decode_action(encoded, pose, spec), targets[1:])


@pytest.mark.parametrize('target', ['absolute', 'relative', 'delta'])
@pytest.mark.parametrize('n_obs_steps', [1, 2, 3, 4])
@pytest.mark.parametrize('parts', [ALL_PARTS, ('ee_position',), ('ee_rotation', 'ee_position')])
def test_decode_undoes_encode(target, n_obs_steps, parts):
    spec, rng = config(target, parts, n_obs_steps), np.random.default_rng(0)
    pose = np.concatenate([rng.normal(size=(5, 3)), random_quaternions(rng, 5)], axis=-1)
    values = {'gripper': rng.uniform(-1, 1, (5, 8, 1)), 'ee_position': rng.normal(size=(5, 8, 3)),
              'ee_rotation': random_quaternions(rng, 5, 8)}
    targets = np.concatenate([values[part] for part in parts], axis=-1)
    encoded = encode_action(targets, pose, spec)
    assert encoded.shape == (5, 8, spec.action.dim)
    np.testing.assert_allclose(decode_action(encoded, pose, spec), targets[:, n_obs_steps - 1:],
                               atol=1e-12)


def test_relative_rotation_is_along_the_base_axes():
    """The arm is turned about z; a further turn about the base's x axis reads as just that."""
    turn_x = np.array([HALF, 0, 0, HALF])
    target = quaternion(matrix(turn_x) @ matrix(QUARTER_TURN_Z))
    spec = config('relative', ('ee_position', 'ee_rotation'))
    encoded = encode_action(np.tile([0.0, 0, 0, *target], (8, 1)),
                            np.array([0.0, 0, 0, *QUARTER_TURN_Z]), spec)
    np.testing.assert_allclose(encoded[0, 3:], rot6d(matrix(turn_x)), atol=1e-12)


def test_relative_target_of_the_current_pose_is_no_motion():
    pose = np.array([0.1, 0.2, 0.3, *QUARTER_TURN_Z])
    spec = config('relative', ('ee_position', 'ee_rotation'))
    np.testing.assert_allclose(encode_action(np.tile(pose, (8, 1)), pose, spec)[3],
                               [0, 0, 0, 1, 0, 0, 0, 1, 0], atol=1e-12)


def test_targets_of_another_length_are_refused():
    with pytest.raises(ValueError, match='found 3 numbers, expected 4 for ee_position, gripper'):
        encode_action(np.zeros((8, 3)), np.zeros(7), config('delta', ('ee_position', 'gripper')))


def test_state_in_the_order_of_the_configuration():
    streams = {EE_POSE: np.array([[1.0, 2, 3, *QUARTER_TURN_Z]]), GRIPPER: np.array([[0.5]])}
    state = encode_state(streams, config('absolute', state=('gripper', 'ee_rotation',
                                                            'ee_position')))
    np.testing.assert_allclose(state, [[0.5, 0, 1, 0, -1, 0, 0, 1, 2, 3]], atol=1e-12)


def test_split_targets():
    parts = split_targets(np.arange(8.0), config('absolute'))
    np.testing.assert_array_equal(parts['gripper'], [0])
    np.testing.assert_array_equal(parts['ee_position'], [1, 2, 3])
    np.testing.assert_array_equal(parts['ee_rotation'], [4, 5, 6, 7])


def test_matrix_of_a_quarter_turn():
    np.testing.assert_allclose(matrix(QUARTER_TURN_Z), [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
                               atol=1e-12)


def test_quaternion_undoes_matrix_also_at_half_turns():
    values = np.concatenate([random_quaternions(np.random.default_rng(1), 200), np.eye(4)])
    found = quaternion(matrix(values))
    np.testing.assert_allclose(np.abs(np.sum(found * values, axis=-1)), 1, atol=1e-12)
    assert np.all(found[:, 3] >= 0)


def test_rot6d_of_a_prediction_becomes_a_rotation():
    rotations = matrix_from_rot6d(np.random.default_rng(2).normal(size=(50, 6)))
    np.testing.assert_allclose(rotations @ np.swapaxes(rotations, -1, -2),
                               np.broadcast_to(np.eye(3), rotations.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotations), 1)
    np.testing.assert_allclose(matrix_from_rot6d(rot6d(rotations)), rotations, atol=1e-12)

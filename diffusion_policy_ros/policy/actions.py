"""
Poses and grippers to the vectors that the network sees, and back, in float64 NumPy.

Rotations are 6 numbers, the first two columns of the matrix (Zhou et al. 2019, section 4). In the
action's `relative` and `delta` form every part is expressed along the axes of the base frame:
positions as differences, rotations as R_target R_reference^T. The gripper is always absolute.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from diffusion_policy_ros.datatypes import EE_POSE, GRIPPER
from diffusion_policy_ros.policy.config import ACTION_PARTS, PolicyConfig

TARGET_PARTS = {'ee_position': 3, 'ee_rotation': 4, 'gripper': 1}
STEPS_AXIS = {'ee_position': -2, 'ee_rotation': -3}     # of (..., T, 3) and (..., T, 3, 3)


def encode_state(streams: Mapping[str, np.ndarray], config: PolicyConfig) -> np.ndarray:
    """
    Return the state's parts in the configuration's order, (..., state_dim) float64.

    Args:
        streams: `EE_POSE` (..., 7) and `GRIPPER` (..., 1), as far as the state needs them.
        config: the policy's.
    """
    parts = {'ee_position': lambda: streams[EE_POSE][..., :3],
             'ee_rotation': lambda: rot6d(matrix(streams[EE_POSE][..., 3:])),
             'gripper': lambda: streams[GRIPPER]}
    return np.concatenate([np.asarray(parts[part](), dtype=np.float64)
                           for part in config.observation.state], axis=-1)


def encode_action(targets: np.ndarray, ee_pose: np.ndarray, config: PolicyConfig) -> np.ndarray:
    """
    Turn absolute targets into what the network predicts.

    With To = 2, base-frame positions p0 p1 p2 p3 and the measured position e:

        absolute   p0      p1      p2        p3
        relative   p0-e    p1-e    p2-e      p3-e
        delta      0       p1-e    p2-p1     p3-p2

    Args:
        targets: (..., Tp, n) the action's parts in order: position 3, rotation as quaternion 4,
            gripper 1; index To-1 is the target at the observation's time.
        ee_pose: (..., 7) the pose measured at the observation's time.
        config: the policy's.

    Returns:
        (..., Tp, Da) float64.
    """
    parts = _split(np.asarray(targets, dtype=np.float64), config, TARGET_PARTS)
    if 'ee_rotation' in parts:
        parts['ee_rotation'] = matrix(parts['ee_rotation'])
    for name, pose in _references(ee_pose, parts).items():
        axis = STEPS_AXIS[name]
        reference = np.expand_dims(pose, axis)
        if config.action.target == 'delta':
            steps = np.moveaxis(parts[name], axis, 0)
            before = np.concatenate([steps[:1], steps[:-1]])
            before[config.n_obs_steps - 1] = pose
            reference = np.moveaxis(before, 0, axis)
        if config.action.target != 'absolute':
            parts[name] = _difference(name, parts[name], reference)
    if 'ee_rotation' in parts:
        parts['ee_rotation'] = rot6d(parts['ee_rotation'])
    return np.concatenate([parts[name] for name in config.action.parts], axis=-1)


def decode_action(actions: np.ndarray, ee_pose: np.ndarray, config: PolicyConfig) -> np.ndarray:
    """
    Turn a prediction into absolute targets, from the observation's own step on.

    Args:
        actions: (..., Tp, Da) in robot units.
        ee_pose: (..., 7) the pose measured at the observation's time.
        config: the policy's.

    Returns:
        (..., Tp - To + 1, n) float64 with the parts as in `encode_action`'s targets.
    """
    published = np.asarray(actions, dtype=np.float64)[..., config.n_obs_steps - 1:, :]
    parts = _split(published, config, ACTION_PARTS)
    if 'ee_rotation' in parts:
        parts['ee_rotation'] = matrix_from_rot6d(parts['ee_rotation'])
    for name, pose in _references(ee_pose, parts).items():
        value = parts[name]
        if config.action.target == 'delta':
            value = _accumulate(name, value)
        if config.action.target != 'absolute':
            parts[name] = _compose(name, value, np.expand_dims(pose, STEPS_AXIS[name]))
    if 'ee_rotation' in parts:
        parts['ee_rotation'] = quaternion(parts['ee_rotation'])
    return np.concatenate([parts[name] for name in config.action.parts], axis=-1)


def split_targets(targets: np.ndarray, config: PolicyConfig) -> dict[str, np.ndarray]:
    """Return absolute targets (..., n) by part: position 3, quaternion 4, gripper 1."""
    return _split(targets, config, TARGET_PARTS)


def _split(values: np.ndarray, config: PolicyConfig, lengths: dict[str, int]) -> dict:
    ends = np.cumsum([lengths[part] for part in config.action.parts])
    if values.shape[-1] != ends[-1]:
        raise ValueError(f'action: found {values.shape[-1]} numbers, expected {ends[-1]} for '
                         f'{", ".join(config.action.parts)}')
    return dict(zip(config.action.parts, np.split(values, ends[:-1], axis=-1), strict=True))


def _references(ee_pose: np.ndarray, parts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    pose = np.asarray(ee_pose, dtype=np.float64)
    references = {'ee_position': pose[..., :3]}
    if 'ee_rotation' in parts:
        references['ee_rotation'] = matrix(pose[..., 3:])
    return references


def _difference(name: str, value: np.ndarray, reference: np.ndarray) -> np.ndarray:
    if name == 'ee_rotation':
        return value @ np.swapaxes(reference, -1, -2)
    return value - reference


def _compose(name: str, difference: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return difference @ reference if name == 'ee_rotation' else difference + reference


def _accumulate(name: str, differences: np.ndarray) -> np.ndarray:
    if name == 'ee_position':
        return np.cumsum(differences, axis=-2)
    total = differences.copy()
    for step in range(1, total.shape[-3]):
        total[..., step, :, :] = differences[..., step, :, :] @ total[..., step - 1, :, :]
    return total


def matrix(quaternions: np.ndarray) -> np.ndarray:
    """Map unit quaternions (..., 4) to rotation matrices (..., 3, 3)."""
    x, y, z, w = np.moveaxis(np.asarray(quaternions, dtype=np.float64), -1, 0)
    rows = [[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def quaternion(matrices: np.ndarray) -> np.ndarray:
    """
    Map rotation matrices (..., 3, 3) to unit quaternions (..., 4), w >= 0.

    The quaternion is the dominant eigenvector of a symmetric 4x4 matrix (Bar-Itzhack 2000), which
    has no special case at half turns.
    """
    m = np.asarray(matrices, dtype=np.float64)
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = np.moveaxis(m, (-2, -1), (0, 1))
    rows = [[xx - yy - zz, xy + yx, xz + zx, zy - yz],
            [xy + yx, yy - xx - zz, yz + zy, xz - zx],
            [xz + zx, yz + zy, zz - xx - yy, yx - xy],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz]]
    symmetric = np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)
    dominant = np.linalg.eigh(symmetric).eigenvectors[..., -1]
    return np.where(dominant[..., 3:] < 0, -dominant, dominant)


def rot6d(matrices: np.ndarray) -> np.ndarray:
    """Map rotation matrices (..., 3, 3) to their first two columns, end to end (..., 6)."""
    return np.concatenate([matrices[..., :, 0], matrices[..., :, 1]], axis=-1)


def matrix_from_rot6d(numbers: np.ndarray) -> np.ndarray:
    """Map any (..., 6) to rotation matrices, by Gram-Schmidt on the two columns."""
    first, second = numbers[..., :3], numbers[..., 3:]
    x = first / np.linalg.norm(first, axis=-1, keepdims=True)
    second = second - np.sum(x * second, axis=-1, keepdims=True) * x
    y = second / np.linalg.norm(second, axis=-1, keepdims=True)
    return np.stack([x, y, np.cross(x, y)], axis=-1)

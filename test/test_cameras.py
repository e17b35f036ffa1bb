"""Cameras' geometry against rendered pictures."""

import mujoco
import numpy as np
import pytest

from diffusion_policy_ros.datatypes import EE_POSE
from diffusion_policy_ros.sim.arm import MetaWorldArm
from diffusion_policy_ros.sim.cameras import camera_geometry, model_camera_geometry
from diffusion_policy_ros.sim.rendering import CAMERAS

TASK = 'reach-v3'
HEIGHT, WIDTH = 240, 320

# Points by the hand that nothing covers, apart in columns and rows, so that a mirrored or rolled
# picture would not pass.
VISIBLE = {
    'arm': np.array([[0.08, 0.15, -0.06], [-0.08, 0.12, -0.02]]),
    'wrist': np.array([[-0.02, 0.05, -0.1], [0.06, 0.02, -0.1]]),
    'corner': np.array([[-0.08, 0.12, -0.02], [-0.12, -0.05, 0.05]]),
    'corner2': np.array([[0.08, 0.15, -0.06], [0.15, -0.02, 0.03]]),
    'corner3': np.array([[0.08, 0.15, -0.06], [0.15, -0.02, 0.03]]),
    'corner4': np.array([[0.08, 0.15, -0.06], [0.15, -0.02, 0.03]]),
}


@pytest.fixture(scope='module')
def arm():
    arm = MetaWorldArm(TASK)
    yield arm
    arm.close()


def _seen_at(arm, camera, point):
    """Return the (column, row) where a small ball at a world position appears: what it changes."""
    arm.model.site('goal').size[:] = 0.01
    arm._env._target_pos = np.array([0.0, 0.0, -10.0])
    without = arm.image(camera, HEIGHT, WIDTH).astype(int)
    arm._env._target_pos = np.asarray(point, np.float64)
    changed = np.abs(arm.image(camera, HEIGHT, WIDTH) - without).sum(axis=2) > 30
    assert changed.any(), f'{camera} does not show {point}'
    rows, columns = np.nonzero(changed)
    return np.array([columns.mean(), rows.mean()])


@pytest.mark.parametrize('camera', CAMERAS)
def test_a_point_appears_where_it_is_projected(arm, camera):
    observation, _ = arm.reset(seed=4)
    for _ in range(30):  # the hand is elsewhere than at reset, and it lags and tilts
        observation, *_ = arm.step([0.1, 0.68, 0.12, -1.0])
    geometry = camera_geometry(TASK, camera)
    hand = observation[EE_POSE][:3]
    points = hand + VISIBLE.get(camera, VISIBLE['corner'])
    pixels = geometry.project(points, observation[EE_POSE], HEIGHT, WIDTH)
    for point, pixel in zip(points, pixels, strict=True):
        np.testing.assert_allclose(_seen_at(arm, camera, point), pixel, atol=0.8)


@pytest.mark.parametrize('camera', CAMERAS)
def test_pose_is_mujocos_own(arm, camera):
    observation, _ = arm.reset(seed=5)
    for _ in range(10):
        observation, *_ = arm.step([-0.2, 0.5, 0.3, 1.0])
    mujoco.mj_forward(arm.model, arm.data)
    pose = model_camera_geometry(arm.model, camera).pose(observation[EE_POSE])
    view = arm.data.camera(CAMERAS[camera])
    np.testing.assert_allclose(pose[:3], view.xpos, atol=1e-9)
    optical = np.empty(9)
    mujoco.mju_quat2Mat(optical, np.roll(pose[3:], 1))
    forward = -view.xmat.reshape(3, 3)[:, 2]
    np.testing.assert_allclose(optical.reshape(3, 3)[:, 2], forward, atol=1e-9)


@pytest.mark.parametrize('camera', ['arm', 'corner', 'corner2', 'corner3', 'corner4'])
def test_pictures_are_upright(camera):
    # Together with the projection's test: rows grow downwards.
    assert camera_geometry(TASK, camera).rotation[2, 1] < -0.5


def test_intrinsics_have_the_centre_between_pixels():
    matrix = camera_geometry(TASK, 'wrist').intrinsics(96, 128)  # 90 degrees
    np.testing.assert_allclose(matrix, [[48, 0, 63.5], [0, 48, 47.5], [0, 0, 1]])


def test_a_point_behind_the_camera_is_nowhere():
    geometry = camera_geometry(TASK, 'topview')
    above = geometry.position + [0.0, 0.0, 1.0]
    assert np.isnan(geometry.project(above[None], np.zeros(7), 96, 96)).all()


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="camera 'front' is unknown, expected one of arm, wrist"):
        camera_geometry(TASK, 'front')
    with pytest.raises(ValueError, match="task 'reach' is none of the 50"):
        camera_geometry('reach', 'arm')

"""
Where MetaWorld's cameras are and how they project: what camera_info and /tf say about them.

An optical frame is REP 103's: x right, y down, z forward, of the upright picture. Pixel (0, 0) is
the centre of the top left pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from diffusion_policy_ros.sim.rendering import CAMERAS, check_camera, HAND_CAMERAS, ROLLED_CAMERAS
from diffusion_policy_ros.sim.tasks import check_task

import mujoco  # noqa: I100  after rendering, see there

# MuJoCo's camera looks along -z with y up; turned by 180 degrees about x it is an optical frame.
_OPTICAL = np.diag([1.0, -1.0, -1.0])
_ROLL = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class CameraGeometry:
    """
    One camera's place and lens.

    The cameras on the hand follow its position, yet keep their orientation in the world (MuJoCo's
    mode `track`), however the hand tilts under load.

    Attributes:
        camera: its name.
        fovy_rad: vertical field of view.
        on_hand: whether it follows the hand's position.
        position: (3,) metres, the optical frame's origin in the world, on the hand relative to the
            hand's position along the world's axes.
        rotation: (3, 3), its columns are the optical axes in the world.
    """

    camera: str
    fovy_rad: float
    on_hand: bool
    position: np.ndarray
    rotation: np.ndarray

    def pose(self, ee_pose: np.ndarray) -> np.ndarray:
        """
        Return the optical frame in the world, (7,) position in metres and quaternion (x, y, z, w).

        Args:
            ee_pose: (7,) the hand's pose; cameras that stand still do not depend on it.
        """
        quaternion = np.empty(4)
        mujoco.mju_mat2Quat(quaternion, self.rotation.ravel())
        return np.concatenate([self._origin(ee_pose), np.roll(quaternion, -1)])

    def intrinsics(self, height: int, width: int) -> np.ndarray:
        """Return K (3, 3) of an undistorted picture of height x width pixels."""
        focal = height / 2 / np.tan(self.fovy_rad / 2)
        return np.array([[focal, 0.0, (width - 1) / 2],
                         [0.0, focal, (height - 1) / 2],
                         [0.0, 0.0, 1.0]])

    def project(self, points_world: np.ndarray, ee_pose: np.ndarray, height: int,
                width: int) -> np.ndarray:
        """
        Return where points appear in the picture, inside or outside its borders.

        Args:
            points_world: (N, 3) metres in the world frame.
            ee_pose: (7,) the hand's pose; cameras that stand still do not depend on it.
            height, width: pixels of the picture.

        Returns:
            (N, 2) column and row; NaN for a point that is not in front of the camera.
        """
        points = (np.asarray(points_world, np.float64) - self._origin(ee_pose)) @ self.rotation
        pixels = points @ self.intrinsics(height, width).T
        with np.errstate(divide='ignore', invalid='ignore'):
            return np.where(points[:, 2:] > 0, pixels[:, :2] / pixels[:, 2:], np.nan)

    def _origin(self, ee_pose: np.ndarray) -> np.ndarray:
        return self.position + np.asarray(ee_pose)[:3] if self.on_hand else self.position


@lru_cache
def camera_geometry(task: str, camera: str) -> CameraGeometry:
    """
    Read a camera from a task's MuJoCo model; nothing is drawn.

    Raises:
        ValueError: for an unknown task or camera.
    """
    return model_camera_geometry(_model(check_task(task)), camera)


def model_camera_geometry(model: mujoco.MjModel, camera: str) -> CameraGeometry:
    """
    Read a camera from a model that is already at hand, as `MetaWorldArm.model`.

    Raises:
        ValueError: for an unknown camera.
    """
    view = model.camera(CAMERAS[check_camera(camera)])
    on_hand = camera in HAND_CAMERAS
    modes = mujoco.mjtCamLight
    expected = modes.mjCAMLIGHT_TRACK if on_hand else modes.mjCAMLIGHT_FIXED
    if view.mode[0] != expected:
        raise RuntimeError(f'camera {camera} has mode {view.mode[0]}, expected {int(expected)}')
    rotation = view.mat0.reshape(3, 3) @ _OPTICAL
    if camera in ROLLED_CAMERAS:
        rotation = rotation @ _ROLL
    position = view.pos0 if on_hand else view.pos
    fovy_rad = float(np.deg2rad(view.fovy[0]))
    return CameraGeometry(camera, fovy_rad, on_hand, position.copy(), rotation)


@lru_cache(maxsize=1)
def _model(task: str) -> mujoco.MjModel:
    from metaworld.env_dict import ENV_CLS_MAP  # slow, and the bridge does without
    return ENV_CLS_MAP[task]().model

"""MetaWorld as an arm in SI units: absolute targets in; pose, gripper and pictures out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
from gymnasium.spaces import Box, Dict
import numpy as np

from diffusion_policy_ros.datatypes import EE_POSE, GRIPPER
from diffusion_policy_ros.sim import rendering  # before mujoco, see there
from diffusion_policy_ros.sim.tasks import ACTION_SCALE, check_task, MAX_STEPS, STEP_NS

import mujoco  # noqa: I100

__all__ = ['MetaWorldArm', 'STEP_NS']


class MetaWorldArm(gymnasium.Env):
    """
    One MetaWorld task behind an arm's interface.

    Observation (a dictionary): `ee_pose` (7,) float64, the hand's position in metres and
    quaternion (x, y, z, w) in the world frame; `gripper` (1,) float64 from 0 (open) to 1 (closed);
    and each camera's (height, width, 3) uint8 RGB, upright.

    Action (4,) float64: the hand's absolute target position in metres, and the gripper's closing
    effort from -1 (open) to 1 (closed). MetaWorld moves a mocap body by `ACTION_SCALE` times its
    own action, and the hand follows; so the target is taken against the mocap body, which the hand
    lags behind, and moves it 1 cm an axis and tick at most.

    `info` holds `success` (bool), `image_fresh` (bool, whether the pictures are this tick's) and
    `sim_state` (42,) float64: MetaWorld's own observation (39) and the mocap body's position (3),
    for the scripted expert. An episode never terminates; success is the caller's to judge.

    Args:
        task: one of `tasks.TASKS`.
        cameras: cameras in the observation, of `rendering.CAMERAS`.
        height, width: pixels of their pictures.
        renderer: name of the picture settings, of `rendering.RENDERERS`.
        image_every: ticks from one fresh picture to the next; the last one is repeated until then.
        image_due: says of each of an episode's ticks, from 0, whether its pictures are drawn anew,
            in place of `image_every`.
        max_steps: steps after which `truncated` is True; None for no limit.

    Raises:
        ValueError: for an unknown task, camera or renderer.
    """

    metadata = {'render_modes': ['rgb_array'], 'render_fps': 80}
    render_mode = 'rgb_array'

    def __init__(self, task: str, cameras: Sequence[str] = (), height: int = 224, width: int = 224,
                 renderer: str = 'plain', image_every: int = 1,
                 max_steps: int | None = MAX_STEPS,
                 image_due: Callable[[int], bool] | None = None) -> None:
        self.task = check_task(task)
        self.cameras = tuple(rendering.check_camera(name) for name in cameras)
        rendering.check_renderer(renderer)
        if image_every < 1 or (max_steps is not None and max_steps < 1):
            raise ValueError(f'image_every is {image_every} and max_steps {max_steps}, '
                             'expected at least 1')
        self._height, self._width = height, width
        self._image_due = image_due or (lambda tick: tick % image_every == 0)
        self._max_steps = max_steps
        self._env = _make_env(task)
        self._pictures = rendering.Pictures(self._env.model, renderer)
        self._images: dict[str, np.ndarray] = {}
        self._tick = 0
        self.observation_space = Dict({
            EE_POSE: Box(-np.inf, np.inf, (7,), np.float64),
            GRIPPER: Box(0.0, 1.0, (1,), np.float64),
            **{name: Box(0, 255, (height, width, 3), np.uint8) for name in self.cameras}})
        self.action_space = Box(np.append(self._env.mocap_low - ACTION_SCALE, -1.0),
                                np.append(self._env.mocap_high + ACTION_SCALE, 1.0),
                                dtype=np.float64)

    @property
    def mocap_position(self) -> np.ndarray:
        """Position (3,) in metres of the body that the hand follows."""
        return self._env.data.mocap_pos[0].copy()

    @property
    def model(self) -> mujoco.MjModel:
        """The task's MuJoCo model."""
        return self._env.model

    @property
    def data(self) -> mujoco.MjData:
        """The simulation's state."""
        return self._env.data

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Begin an episode; the same seed gives the same episode, whatever came before.

        Args:
            seed: places objects and goal; None draws the next ones.
            options: unused.
        """
        super().reset(seed=seed)
        if seed is not None:
            self._env.seed(seed)
        self._env.reset()
        self._tick = 0
        return self._observe(self._settle()), self._info(False)

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """
        Move towards a target for one tick of 12.5 ms.

        Raises:
            ValueError: when the action has another shape, or is not finite.
        """
        action = np.asarray(action, np.float64)
        if action.shape != (4,) or not np.all(np.isfinite(action)):
            raise ValueError(f'action is {action.tolist()}, expected 4 finite numbers: '
                             'x, y, z in metres and closing effort')
        move = (action[:3] - self._env.data.mocap_pos[0]) / ACTION_SCALE
        self._env.curr_path_length = 0  # the limit is counted here: max_steps
        state, reward, _, _, outcome = self._env.step(
            np.clip(np.append(move, action[3]), -1.0, 1.0))
        self._state = state
        self._tick += 1
        truncated = self._max_steps is not None and self._tick >= self._max_steps
        return (self._observe(state), float(reward), False, truncated,
                self._info(bool(outcome['success'])))

    def image(self, camera: str, height: int | None = None,
              width: int | None = None) -> np.ndarray:
        """
        Return a picture of now, of any camera and size.

        Returns:
            (height, width, 3) uint8 RGB, upright.
        """
        # mj_forward puts goal markers back to where the model has them, which in some tasks is not
        # where MetaWorld says that the goal is.
        for name, position in self._env._target_site_config:
            self._env.data.site(name).xpos = position[:3]
        return self._pictures.draw(self._env.data, camera, height or self._height,
                                   width or self._width)

    def render(self) -> np.ndarray:
        """Return the first camera's picture, or one from the corner."""
        return self.image(self.cameras[0] if self.cameras else 'corner2')

    def close(self) -> None:
        """Free the OpenGL contexts."""
        self._pictures.close()

    def _settle(self) -> np.ndarray:
        """
        Bring what is derived from the state up to date after a reset.

        MetaWorld moves bodies (the drawer, the window) in its model after its last MuJoCo step, so
        until the first step its observation and pictures show them elsewhere, by up to 20 cm.
        """
        env = self._env
        mujoco.mj_kinematics(env.model, env.data)
        mujoco.mj_comPos(env.model, env.data)
        mujoco.mj_camlight(env.model, env.data)
        env._prev_obs = env._get_curr_obs_combined_no_goal()
        self._state = env._get_obs()
        return self._state

    def _observe(self, state: np.ndarray) -> dict[str, np.ndarray]:
        hand = self._env.data.body('hand')
        if self._image_due(self._tick):
            self._images = {name: self.image(name) for name in self.cameras}
        return {EE_POSE: np.concatenate([hand.xpos, np.roll(hand.xquat, -1)]),
                GRIPPER: np.array([1.0 - np.clip(state[3], 0.0, 1.0)]),
                **self._images}

    def _info(self, success: bool) -> dict[str, Any]:
        return {'success': success,
                'image_fresh': self._image_due(self._tick),
                'sim_state': np.concatenate([self._state, self._env.data.mocap_pos[0]])}


def _make_env(task: str) -> Any:
    """Return MetaWorld's environment with the goal observable and random, yet seeded, episodes."""
    from metaworld.env_dict import ENV_CLS_MAP  # takes 0.7 s, in which the bridge can answer
    env = ENV_CLS_MAP[task]()
    env._partially_observable = False
    del env.sawyer_observation_space  # a cached property that depends on the line above
    env._freeze_rand_vec = False
    env.seeded_rand_vec = True
    env._set_task_called = True
    if env.action_scale != ACTION_SCALE:
        raise RuntimeError(f'{task}: action_scale is {env.action_scale}, expected {ACTION_SCALE}')
    return env

"""MetaWorld's scripted experts, as people who name absolute targets."""

from __future__ import annotations

from collections.abc import Sequence
import warnings

import numpy as np

from diffusion_policy_ros.sim import rendering  # noqa: F401  before mujoco, see there
from diffusion_policy_ros.sim.tasks import ACTION_SCALE, check_task

from metaworld.policies import ENV_POLICY_MAP  # noqa: I100

# Experts name moves beyond [-1, 1] all the time; they are clipped below.
warnings.filterwarnings('ignore', message=r'Constant\(s\) may be too high')

GOAL = slice(36, 39)  # in MetaWorld's observation


class Expert:
    """
    The scripted expert of one task.

    Args:
        task: one of `tasks.TASKS`.
        goal_offset: (3,) metres, from the goal to where the expert believes it to be.

    Raises:
        ValueError: for an unknown task.
    """

    def __init__(self, task: str, goal_offset: Sequence[float] = (0.0, 0.0, 0.0)) -> None:
        self._policy = ENV_POLICY_MAP[check_task(task)]()
        self._goal_offset = goal_offset

    def target(self, sim_state: np.ndarray) -> tuple[np.ndarray, float]:
        """
        Name the next target.

        Args:
            sim_state: (42,) MetaWorld's observation and the mocap body's position, as in
                `MetaWorldArm`'s info.

        Returns:
            Absolute position (3,) in metres and closing effort from -1 (open) to 1 (closed).

        Raises:
            ValueError: when the state has another size.
        """
        sim_state = np.asarray(sim_state, np.float64)
        if sim_state.shape != (42,):
            raise ValueError(f'sim_state has shape {sim_state.shape}, expected (42,)')
        believed = sim_state[:39].copy()
        believed[GOAL] += self._goal_offset
        action = np.asarray(self._policy.get_action(believed), np.float64).clip(-1.0, 1.0)
        return sim_state[39:] + action[:3] * ACTION_SCALE, float(action[3])

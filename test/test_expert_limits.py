"""MetaWorld's experts, played through the executor as a teleoperator, are never limited."""

from pathlib import Path

import numpy as np
import pytest

from diffusion_policy_ros.control.arm import load_arm
from diffusion_policy_ros.control.executor import ChunkExecutor
from diffusion_policy_ros.control.executor_config import ExecutorConfig
from diffusion_policy_ros.datatypes import Command, EE_POSE, NS_PER_S, Observation
from diffusion_policy_ros.sim.arm import MetaWorldArm, STEP_NS
from diffusion_policy_ros.sim.experts import Expert
from diffusion_policy_ros.sim.tasks import FIRST_COLLECTION_SEED, TASKS

ARM = load_arm(Path(__file__).parents[1] / 'config' / 'arms' / 'metaworld.yaml')
# They turn round at the edge of MetaWorld's box: the greatest speeds and accelerations of all 50.
HARDEST = ('handle-pull-side-v3', 'box-close-v3', 'door-lock-v3')


def play(task, seed, max_steps=500):
    """Return the targets that the expert named, those that were sent, and what limits did."""
    arm, expert = MetaWorldArm(task), Expert(task)
    executor = ChunkExecutor(ExecutorConfig(lockstep=True, enable_on_start=True), ARM)
    observation, info = arm.reset(seed=seed)
    named, sent = [], []
    t = NS_PER_S
    for _ in range(max_steps):
        pose = observation['ee_pose']
        position, effort = expert.target(info['sim_state'])
        executor.push_pose(Observation(EE_POSE, t, pose, ARM.base_frame))
        target = Command(t, position, pose[3:], effort, ARM.base_frame)
        assert executor.push_teleop(target, t, t) is None
        command, status = executor.step(t, t)
        assert command is not None, status
        named.append([*position, effort])
        sent.append([*command.position, command.gripper])
        observation, _, _, _, info = arm.step(np.array(sent[-1]))
        t += STEP_NS
        if info['success']:
            break
    arm.close()
    return named, sent, dict(executor.limits_acted)


@pytest.mark.parametrize('task', HARDEST)
def test_the_hardest_experts_are_not_limited(task):
    named, sent, acted = play(task, FIRST_COLLECTION_SEED)
    np.testing.assert_array_equal(sent, named)
    assert acted == {}


@pytest.mark.slow
@pytest.mark.parametrize('task', TASKS)
def test_no_expert_is_limited(task):
    for seed in range(FIRST_COLLECTION_SEED, FIRST_COLLECTION_SEED + 3):
        named, sent, acted = play(task, seed)
        np.testing.assert_array_equal(sent, named)
        assert acted == {}

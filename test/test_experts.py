"""The scripted experts."""

import numpy as np
import pytest

from diffusion_policy_ros.sim.arm import MetaWorldArm
from diffusion_policy_ros.sim.experts import Expert
from diffusion_policy_ros.sim.tasks import TASKS


def _succeeds(task, seed):
    arm, expert = MetaWorldArm(task), Expert(task)
    _, info = arm.reset(seed=seed)
    truncated = False
    while not (info['success'] or truncated):
        position, effort = expert.target(info['sim_state'])
        assert -1.0 <= effort <= 1.0
        assert np.abs(position - info['sim_state'][39:]).max() <= 0.01 + 1e-12
        _, _, _, truncated, info = arm.step([*position, effort])
    return info['success']


@pytest.mark.parametrize('task', ['drawer-open-v3', 'button-press-topdown-v3', 'pick-place-v3'])
def test_it_does_its_task(task):
    assert all(_succeeds(task, seed) for seed in (0, 1))


@pytest.mark.slow
def test_every_expert_does_its_task_within_three_seeds():
    assert [task for task in TASKS if not any(_succeeds(task, seed) for seed in range(3))] == []


def test_it_is_a_function_of_the_state_alone():
    arm = MetaWorldArm('pick-place-v3')
    state = arm.reset(seed=0)[1]['sim_state']
    expert = Expert('pick-place-v3')
    first = expert.target(state)
    expert.target(state + 0.01)
    again = expert.target(state)
    np.testing.assert_array_equal(first[0], again[0])
    assert first[1] == again[1]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="task 'drawer' is none of the 50"):
        Expert('drawer')
    with pytest.raises(ValueError, match=r'sim_state has shape \(39,\), expected \(42,\)'):
        Expert('drawer-open-v3').target(np.zeros(39))

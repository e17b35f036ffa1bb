"""MetaWorld behind the arm's interface."""

import gymnasium.utils.env_checker
import numpy as np
import pytest

from diffusion_policy_ros.datatypes import EE_POSE, GRIPPER
from diffusion_policy_ros.sim.arm import _make_env, MetaWorldArm
from diffusion_policy_ros.sim.experts import Expert
from diffusion_policy_ros.sim.tasks import STEP_NS

# Bodies that MetaWorld moves after its last MuJoCo step of a reset (drawer, window, mug, faucet),
# an object to grasp, and markers that it forgets.
TASKS = ('drawer-open-v3', 'window-close-v3', 'coffee-push-v3', 'faucet-open-v3', 'pick-place-v3',
         'door-lock-v3')


def _hold(arm, observation_info, effort=-1.0):
    _, info = observation_info
    return arm.step([*info['sim_state'][39:], effort])


@pytest.mark.filterwarnings('ignore:.*(Box|render).*')
def test_it_is_a_gymnasium_environment():
    arm = MetaWorldArm('reach-v3', ('wrist',), height=24, width=32)
    gymnasium.utils.env_checker.check_env(arm)
    arm.close()


def test_the_observation_is_in_si_units():
    arm = MetaWorldArm('pick-place-v3', ('arm', 'wrist'), height=24, width=32)
    observation, info = arm.reset(seed=1)
    assert observation[EE_POSE].dtype == np.float64 and observation[EE_POSE].shape == (7,)
    np.testing.assert_array_equal(observation[EE_POSE][:3], arm.data.body('hand').xpos)
    # A turn by 90 degrees about the world's y axis, as the mocap body's (1, 0, 1, 0) asks.
    np.testing.assert_allclose(observation[EE_POSE][3:], np.sqrt([0, 0.5, 0, 0.5]), atol=0.03)
    assert observation['arm'].shape == observation['wrist'].shape == (24, 32, 3)
    np.testing.assert_array_equal(info['sim_state'][39:], arm.mocap_position)
    assert info['success'] is False and info['sim_state'].shape == (42,)
    arm.close()


def test_the_gripper_closes():
    arm = MetaWorldArm('reach-v3')
    _, info = arm.reset(seed=1)
    openness = []
    for effort in (-1.0, 1.0):
        for _ in range(30):
            observation, _, _, _, info = arm.step([*info['sim_state'][39:], effort])
        openness.append(observation[GRIPPER][0])
    assert openness[0] == 0.0 and openness[1] > 0.4


def test_the_hand_reaches_an_absolute_target():
    arm = MetaWorldArm('reach-v3')
    arm.reset(seed=1)
    target = np.array([0.1, 0.65, 0.25])
    for _ in range(80):
        observation, *_ = arm.step([*target, 0.0])
    np.testing.assert_allclose(observation[EE_POSE][:3], target, atol=5e-3)
    np.testing.assert_allclose(arm.mocap_position, target, atol=1e-12)


def test_a_target_moves_the_mocap_body_a_centimetre_a_tick_at_most():
    arm = MetaWorldArm('reach-v3')
    arm.reset(seed=1)
    before = arm.mocap_position
    arm.step([*(before + [1.0, -1.0, 0.004]), 0.0])
    np.testing.assert_allclose(arm.mocap_position - before, [0.01, -0.01, 0.004], atol=1e-12)


@pytest.mark.parametrize('task', [*TASKS, 'assembly-v3', 'hammer-v3'])
def test_the_experts_targets_move_it_as_its_actions_move_metaworld(task):
    arm, expert, raw = MetaWorldArm(task), Expert(task), _make_env(task)
    _, info = arm.reset(seed=11)
    raw.seed(11)
    raw.reset()
    for _ in range(120):
        position, effort = expert.target(info['sim_state'])
        action = np.clip(expert._policy.get_action(info['sim_state'][:39]), -1, 1)
        _, _, _, _, info = arm.step([*position, effort])
        state, *_ = raw.step(action.astype(np.float64))
        np.testing.assert_allclose(info['sim_state'][:18], state[:18], rtol=0, atol=1e-9)
        np.testing.assert_allclose(arm.data.qpos, raw.data.qpos, rtol=0, atol=1e-9)


@pytest.mark.parametrize('task', [*TASKS, 'push-back-v3', 'peg-insert-side-v3'])
def test_a_seed_is_one_episode_whatever_came_before(task):
    def play(arm, seed, steps):
        _, info = arm.reset(seed=seed)
        states = [info['sim_state']]
        for _ in range(steps):
            position, effort = expert.target(states[-1])
            states.append(arm.step([*position, effort])[-1]['sim_state'])
        return np.array(states)

    expert, arm = Expert(task), MetaWorldArm(task)
    first = play(arm, 3, 60)
    other = play(arm, 4, 45)
    np.testing.assert_array_equal(play(arm, 3, 60), first)
    assert np.abs(other[0, :39] - first[0, :39]).max() > 1e-3
    np.testing.assert_array_equal(play(MetaWorldArm(task), 4, 45), other)


@pytest.mark.parametrize('task', TASKS[:4])
def test_the_first_picture_is_of_the_new_episode(task):
    arm = MetaWorldArm(task, ('corner2', 'topview'), height=64, width=64)
    arm.reset(seed=5)
    first = arm.reset(seed=6)
    observation = _hold(arm, first)[0]
    # The hand settles a little; bodies left where they were change twice these shares of pixels.
    for camera, share in (('corner2', 0.0025), ('topview', 0.012)):
        changed = np.abs(first[0][camera].astype(int) - observation[camera]).max(axis=2) > 40
        assert changed.mean() < share, camera
    arm.close()


@pytest.mark.parametrize('task', TASKS)
def test_the_first_state_is_of_the_new_episode(task):
    arm = MetaWorldArm(task)
    arm.reset(seed=5)
    first = arm.reset(seed=6)
    state = _hold(arm, first)[-1]['sim_state']
    np.testing.assert_allclose(first[1]['sim_state'][4:7], state[4:7], atol=2e-3)


@pytest.mark.parametrize('task', ['pick-out-of-hole-v3', 'coffee-button-v3', 'reach-v3'])
def test_the_goal_is_drawn_where_metaworld_says_it_is(task):
    arm = MetaWorldArm(task)
    first = arm.reset(seed=5)
    (name, position), = arm._env._target_site_config
    for _ in range(2):
        arm.image('topview', 24, 24)
        np.testing.assert_array_equal(arm.data.site(name).xpos, position[:3])
        first = None, _hold(arm, first)[-1]
    arm.close()


def test_pictures_are_repeated_between_fresh_ones():
    arm = MetaWorldArm('reach-v3', ('arm',), height=32, width=32, image_every=3)
    observation, info = arm.reset(seed=1)
    pictures, fresh = [observation['arm']], [info['image_fresh']]
    for _ in range(6):
        observation, _, _, _, info = arm.step([0.2, 0.7, 0.1, 1.0])
        pictures.append(observation['arm'])
        fresh.append(info['image_fresh'])
    assert fresh == [True, False, False, True, False, False, True]
    same = [np.array_equal(a, b) for a, b in zip(pictures[:-1], pictures[1:], strict=True)]
    assert same == [True, True, False, True, True, False]
    assert np.array_equal(arm.image('arm'), pictures[-1])
    arm.close()


def test_pictures_are_drawn_at_the_ticks_asked_for():
    arm = MetaWorldArm('reach-v3', ('arm',), height=16, width=16,
                       image_due=[True, False, True].__getitem__)
    observation, _ = arm.reset(seed=1)
    fresh, same = [], []
    for _ in range(2):
        last = observation['arm']
        observation, _, _, _, info = arm.step([0.2, 0.7, 0.1, 1.0])
        fresh.append(info['image_fresh'])
        same.append(np.array_equal(observation['arm'], last))
    assert fresh == [False, True]
    assert same == [True, False]
    arm.close()


def test_an_episode_is_truncated_at_its_limit_and_goes_on_without_one():
    arm = MetaWorldArm('reach-v3', max_steps=4)
    arm.reset(seed=1)
    ends = [arm.step([0.0, 0.6, 0.2, 0.0])[2:4] for _ in range(4)]
    assert ends == [(False, False)] * 3 + [(False, True)]
    arm.reset(seed=1)
    assert not arm.step([0.0, 0.6, 0.2, 0.0])[3]

    arm = MetaWorldArm('reach-v3', max_steps=None)
    arm.reset(seed=1)
    assert not any(arm.step([0.0, 0.6, 0.2, 0.0])[3] for _ in range(520))


def test_a_tick_lasts_as_long_as_metaworlds():
    assert round(_make_env('reach-v3').dt * 1e9) == STEP_NS


@pytest.mark.parametrize('action', [
    [0.0, 0.6, np.nan, 0.0], [0.0, 0.6, 0.2], [np.inf, 0.6, 0.2, 0.0]])
def test_a_bad_action_is_refused(action):
    arm = MetaWorldArm('reach-v3')
    arm.reset(seed=1)
    with pytest.raises(ValueError, match='expected 4 finite numbers'):
        arm.step(action)


@pytest.mark.parametrize('arguments, message', [
    ({'task': 'reach'}, "task 'reach' is none of the 50"),
    ({'task': 'reach-v3', 'cameras': ['front']}, "camera 'front' is unknown"),
    ({'task': 'reach-v3', 'renderer': 'x'}, "renderer 'x' is unknown"),
    ({'task': 'reach-v3', 'image_every': 0}, 'image_every is 0'),
])
def test_unknown_names_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MetaWorldArm(**arguments)

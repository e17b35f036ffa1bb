"""The loop without ROS, closed with MetaWorld and the shipped checkpoint."""

from functools import partial
from pathlib import Path

import evaluate
from gymnasium.vector import AutoresetMode, SyncVectorEnv
import numpy as np
import pytest
import torch

from diffusion_policy_ros.control.arm import load_arm
from diffusion_policy_ros.datatypes import Chunk, NS_PER_S
from diffusion_policy_ros.policy.checkpoint import load_checkpoint
from diffusion_policy_ros.policy.config import (
    ActionSpec,
    ObservationSpec,
    PolicyConfig,
)
from diffusion_policy_ros.sim.arm import MetaWorldArm, STEP_NS
from diffusion_policy_ros.sim.rollout import (
    ClosedLoop,
    executor_config,
    image_every,
    run_episodes,
)

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / 'config/checkpoints/drawer_open'
BLIND = PolicyConfig(ObservationSpec((), ('ee_position',)), ActionSpec(target='absolute'),
                     dt_s=0.025)


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Recorded:
    """Stands still, and remembers when it was asked."""

    def __init__(self):
        self.elapsed = []

    def __call__(self, windows, elapsed_ns):
        self.elapsed.append(list(elapsed_ns))
        return [Chunk(window.stamp_ns, np.arange(7) * BLIND.dt_ns,
                      np.tile(window.streams['ee_pose'][-1, :3], (7, 1)), None, np.zeros(7),
                      window.frame_id) for window in windows]


def blind_episodes(n_arms, seeds, max_steps):
    envs = SyncVectorEnv([partial(MetaWorldArm, 'reach-v3', max_steps=None)] * n_arms,
                         autoreset_mode=AutoresetMode.DISABLED)
    arm = load_arm(ROOT / 'config/arms/metaworld.yaml')
    loops = [ClosedLoop(BLIND, executor_config(BLIND, 0.0), arm) for _ in range(n_arms)]
    predict = Recorded()
    try:
        episodes = list(run_episodes(envs, loops, predict, seeds, max_steps))
    finally:
        envs.close()
    return episodes, predict, loops


def test_a_chunk_is_due_every_ta_dt_since_the_episodes_first_time():
    episodes, predict, _ = blind_episodes(1, [3, 4], max_steps=20)
    period_ns = BLIND.n_action_steps * BLIND.dt_ns
    assert predict.elapsed == 2 * [[0], [period_ns], [2 * period_ns]]
    assert [episode.seed for episode in episodes] == [3, 4]
    assert [episode.steps for episode in episodes] == [20, 20]
    assert not any(episode.success for episode in episodes)


def test_an_episode_starts_two_seconds_after_the_last():
    _, _, (loop,) = blind_episodes(1, [3, 4, 5], max_steps=4)
    assert loop.stamp_ns == NS_PER_S + 2 * (4 * STEP_NS + 2 * NS_PER_S) + 4 * STEP_NS


def test_more_seeds_than_arms_all_run_and_an_idle_arm_is_left_alone():
    episodes, predict, _ = blind_episodes(2, [3, 4, 5], max_steps=9)
    assert sorted(episode.seed for episode in episodes) == [3, 4, 5]
    assert [len(batch) for batch in predict.elapsed] == [2, 2, 1, 1]


def test_parallel_arms_send_what_one_arm_alone_sends():
    alone, _, _ = blind_episodes(1, [3, 4], max_steps=9)
    together, _, _ = blind_episodes(2, [3, 4], max_steps=9)
    for one, other in zip(alone, sorted(together, key=lambda episode: episode.seed), strict=True):
        np.testing.assert_array_equal(one.targets, other.targets)


def test_image_every_is_the_policys_step_in_ticks():
    assert image_every(BLIND) == 2
    with pytest.raises(ValueError, match='dt_s is 0.03, expected a multiple .* 0.0125 s'):
        image_every(PolicyConfig(BLIND.observation, BLIND.action, dt_s=0.03))


def test_the_shipped_checkpoint_opens_the_drawer():
    result = evaluate.evaluate(load_checkpoint(CHECKPOINT), 'drawer-open-v3', [200], workers=1)
    assert result['success'] == [True]
    assert (result['n_success'], result['n_episodes']) == (1, 1)
    assert 50 < result['steps'][0] < 300
    assert result['chunk_ms']['median'] > 0


def test_batched_first_chunks_agree_with_single_ones():
    policy = load_checkpoint(CHECKPOINT)
    predict = evaluate.TimedPolicy(policy, seed=0)
    runs = [evaluate.run(policy, 'drawer-open-v3', [200, 201], workers, predict)
            for workers in (1, 2)]
    for single, batched in zip(*runs, strict=True):
        assert single.success and batched.success
        np.testing.assert_allclose(batched.first_chunk.position, single.first_chunk.position,
                                   atol=1e-4)
        np.testing.assert_allclose(batched.first_chunk.gripper, single.first_chunk.gripper,
                                   atol=1e-4)


def test_evaluation_refuses_a_demonstrations_seed():
    with pytest.raises(ValueError, match='1000000'):
        evaluate.evaluate(load_checkpoint(CHECKPOINT), 'drawer-open-v3', [1_000_000])


@pytest.mark.parametrize('arguments, words', [
    (['absent'], ('absent', 'no such folder')),
    ([str(CHECKPOINT), '--task', 'drawer-opn-v3'], ("'drawer-opn-v3'", 'drawer-open-v3')),
    ([str(CHECKPOINT), '--seed', '999999', '--episodes', '2'], ('1000000',)),
])
def test_main_ends_with_one_line(arguments, words):
    with pytest.raises(SystemExit) as end:
        evaluate.main([*arguments, '--threads', '1'])
    message = str(end.value)
    assert message.startswith('evaluate: ')
    assert '\n' not in message
    for word in words:
        assert word in message

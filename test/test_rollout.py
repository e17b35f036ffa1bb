"""The loop without ROS, closed with MetaWorld."""

from dataclasses import replace
from functools import partial
import os
from pathlib import Path
import signal

from gymnasium.vector import AutoresetMode, SyncVectorEnv
import numpy as np
import pytest

from diffusion_policy_ros.control.arm import load_arm
from diffusion_policy_ros.datatypes import Chunk, EE_POSE, NS_PER_S
from diffusion_policy_ros.policy.config import (
    ActionSpec,
    ObservationSpec,
    PolicyConfig,
)
from diffusion_policy_ros.sim.arm import MetaWorldArm, STEP_NS
from diffusion_policy_ros.sim.rollout import (
    ClosedLoop,
    closing_envs,
    executor_config,
    image_every,
    parallel_envs,
    run_episodes,
    WindowTicks,
)

ROOT = Path(__file__).parents[1]
BLIND = PolicyConfig(ObservationSpec((), ('ee_position',)), ActionSpec(target='absolute'),
                     dt_s=0.025)


class Recorded:
    """Stands still, and remembers when it was asked."""

    def __init__(self):
        self.elapsed, self.seeds = [], []

    def __call__(self, windows, seeds, elapsed_ns):
        self.seeds.append(list(seeds))
        self.elapsed.append(list(elapsed_ns))
        return [Chunk(window.stamp_ns, np.arange(7) * BLIND.dt_ns,
                      np.tile(window.streams['ee_pose'][-1, :3], (7, 1)), None, np.zeros(7),
                      window.frame_id) for window in windows]


def blind_episodes(n_arms, seeds, max_steps, predict=None):
    envs = SyncVectorEnv([partial(MetaWorldArm, 'reach-v3', max_steps=None)] * n_arms,
                         autoreset_mode=AutoresetMode.DISABLED)
    arm = load_arm(ROOT / 'config/arms/metaworld.yaml')
    loops = [ClosedLoop(BLIND, executor_config(BLIND, 0.0), arm) for _ in range(n_arms)]
    predict = predict or Recorded()
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
    assert predict.seeds == [[3, 4], [3, 4], [5], [5]]
    assert [len(batch) for batch in predict.elapsed] == [2, 2, 1, 1]


def test_parallel_arms_send_what_one_arm_alone_sends():
    alone, _, _ = blind_episodes(1, [3, 4], max_steps=9)
    together, _, _ = blind_episodes(2, [3, 4], max_steps=9)
    for one, other in zip(alone, sorted(together, key=lambda episode: episode.seed), strict=True):
        np.testing.assert_array_equal(one.targets, other.targets)


@pytest.mark.parametrize('x', [np.nan, 2000.0])
def test_the_arm_holds_where_a_prediction_is_unusable(x):
    class Wild(Recorded):

        def __call__(self, *asked):
            return [replace(chunk, position=chunk.position + [x, 0, 0])
                    for chunk in super().__call__(*asked)]

    episodes, predict, _ = blind_episodes(1, [0], max_steps=9, predict=Wild())
    assert [episode.steps for episode in episodes] == [9] and len(predict.elapsed) > 1


def test_image_every_is_the_policys_step_in_ticks():
    assert image_every(BLIND) == 2
    with pytest.raises(ValueError, match='dt_s is 0.03, expected a multiple .* 0.0125 s'):
        image_every(PolicyConfig(BLIND.observation, BLIND.action, dt_s=0.03))


@pytest.mark.parametrize('image_every, n_obs_steps, n_action_steps, ticks', [
    (1, 2, 4, [0, 3, 4, 7, 8]),
    (2, 2, 4, [0, 6, 8]),
    (1, 1, 3, [0, 3, 6, 9]),
    (4, 3, 1, [0, 4, 8]),
    (1, 3, 2, list(range(10))),
])
def test_the_policy_looks_only_at_images_that_a_window_holds(image_every, n_obs_steps,
                                                             n_action_steps, ticks):
    due = WindowTicks(image_every, n_obs_steps, n_action_steps)
    assert [tick for tick in range(10) if due(tick)] == ticks


def test_every_tick_can_be_watched():
    seen = []
    envs = SyncVectorEnv([partial(MetaWorldArm, 'reach-v3', max_steps=None)],
                         autoreset_mode=AutoresetMode.DISABLED)
    loop = ClosedLoop(BLIND, executor_config(BLIND, 0.0),
                      load_arm(ROOT / 'config/arms/metaworld.yaml'))
    list(run_episodes(envs, [loop], Recorded(), [3], 5,
                      lambda *tick: seen.append((*tick[:2], tick[2]['ee_pose'].shape))))
    envs.close()
    assert seen == [(3, NS_PER_S + i * STEP_NS, (7,)) for i in range(5)]


def test_environments_are_closed_where_one_died_while_the_other_answered():
    envs = parallel_envs([partial(MetaWorldArm, 'reach-v3', max_steps=None)] * 2)
    with pytest.raises((EOFError, ConnectionError)), closing_envs(envs):
        envs.processes[1].kill()
        envs.reset(seed=[1, 2])
    assert envs.closed and not any(process.is_alive() for process in envs.processes)


def test_an_interrupted_terminal_does_not_end_environments():
    handler = signal.getsignal(signal.SIGINT)
    envs = parallel_envs([partial(MetaWorldArm, 'reach-v3', max_steps=None)] * 2)
    with closing_envs(envs):
        envs.reset(seed=[0, 1])
        for process in envs.processes:
            os.kill(process.pid, signal.SIGINT)
        observations, *_ = envs.step(np.tile([0.0, 0.6, 0.2, 0.0], (2, 1)))
        assert observations[EE_POSE].shape == (2, 7)
    assert signal.getsignal(signal.SIGINT) is handler

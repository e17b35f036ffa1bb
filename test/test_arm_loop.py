"""Lockstep and real time of the simulated arm, without ROS, on the real simulator."""

from collections.abc import Callable
from functools import partial
import threading
import time

import numpy as np
import pytest

from diffusion_policy_ros.datatypes import EE_POSE, NS_PER_S
from diffusion_policy_ros.sim.arm import MetaWorldArm
from diffusion_policy_ros.sim.arm_loop import ArmLoop
from diffusion_policy_ros.sim.experts import Expert
from diffusion_policy_ros.sim.tasks import STEP_NS

TASK = 'reach-v3'
LIMIT_S = 30.0


class Listener:
    """Collects what the loop publishes, and waits for it."""

    def __init__(self, max_steps: int | None = 20, **settings) -> None:
        settings = {'lockstep': True, 'real_time_factor': 1.0, 'wait_limit_s': LIMIT_S} | settings
        self.ticks, self.problems = [], []
        self.answer = lambda tick: None
        self._changed = threading.Condition()
        make_arm = partial(MetaWorldArm, max_steps=max_steps)
        self.loop = ArmLoop(make_arm, self._publish, self.problems.append, **settings)
        self.loop.start()

    def _publish(self, tick, arm) -> None:
        with self._changed:
            self.ticks.append(tick)
            self._changed.notify_all()
        self.answer(tick)

    def wait(self, predicate: Callable[[], bool]) -> None:
        """Wait until what was published fulfils a predicate."""
        with self._changed:
            assert self._changed.wait_for(predicate, LIMIT_S)

    def push(self, stamp_ns: int, position=(0.0, 0.6, 0.2), effort=-1.0) -> None:
        """Hand over a target."""
        self.loop.push_target(stamp_ns, np.array(position), effort)


@pytest.fixture()
def listen():
    """Return a function that starts a loop; all are ended after the test."""
    listeners = []

    def start(**settings) -> Listener:
        listeners.append(Listener(**settings))
        return listeners[-1]

    yield start
    for listener in listeners:
        listener.loop.stop()


def test_sim_time_begins_at_1_s_and_never_goes_back(listen):
    arm = listen()
    arm.loop.reset(TASK, 0)
    arm.push(NS_PER_S)
    arm.wait(lambda: len(arm.ticks) == 2)
    arm.loop.reset(TASK, 1)
    stamps = [tick.stamp_ns for tick in arm.ticks]
    assert stamps == [NS_PER_S, NS_PER_S + STEP_NS, 3 * NS_PER_S + STEP_NS]
    assert [tick.number for tick in arm.ticks] == [0, 1, 0]


def test_lockstep_steps_for_the_target_of_its_tick_alone(listen):
    arm = listen()
    arm.loop.reset(TASK, 0)
    for stamp_ns in (NS_PER_S - STEP_NS, NS_PER_S + STEP_NS, NS_PER_S):
        arm.push(stamp_ns)
    arm.wait(lambda: len(arm.ticks) == 2)
    assert arm.loop.report().stale_targets == 2
    assert arm.ticks[1].stamp_ns == NS_PER_S + STEP_NS


def test_lockstep_is_the_environment(listen):
    arm, plain = listen(), MetaWorldArm(TASK, max_steps=20)
    observation, info = plain.reset(seed=3)
    expert = Expert(TASK)

    def answer(tick):
        if not tick.last:
            arm.push(tick.stamp_ns, *expert.target(tick.sim_state))

    arm.answer = answer
    arm.loop.reset(TASK, 3)
    arm.wait(lambda: arm.ticks[-1].last)
    for tick in arm.ticks:
        np.testing.assert_array_equal(tick.observation[EE_POSE], observation[EE_POSE])
        position, effort = expert.target(info['sim_state'])
        observation, _, _, _, info = plain.step(np.append(position, effort))
    plain.close()
    assert len(arm.ticks) == 21
    assert arm.ticks[-1].truncated and not arm.loop.report().running


def test_an_episode_ends_with_its_success(listen):
    arm, expert = listen(max_steps=500), Expert('drawer-close-v3')
    arm.answer = lambda tick: tick.last or arm.push(tick.stamp_ns, *expert.target(tick.sim_state))
    arm.loop.reset('drawer-close-v3', 0)
    arm.wait(lambda: arm.ticks[-1].last)
    assert arm.ticks[-1].success and not arm.ticks[-1].truncated
    assert not any(tick.success for tick in arm.ticks[:-1])


def test_a_first_tick_that_cannot_be_published_is_the_callers_matter(listen):
    arm = listen()

    def fail(tick):
        raise OSError('no display')

    arm.answer = fail
    with pytest.raises(OSError, match='no display'):
        arm.loop.reset(TASK, 0)
    assert not arm.loop.report().running
    arm.answer = lambda tick: None
    assert arm.loop.reset(TASK, 0) == arm.ticks[-1].stamp_ns


def test_a_tick_that_is_waited_for_is_shown_again(listen):
    arm = listen()
    arm.loop.reset(TASK, 0)
    arm.wait(lambda: len(arm.ticks) == 2)
    assert arm.ticks[1] is arm.ticks[0]
    arm.push(NS_PER_S)
    arm.wait(lambda: arm.ticks[-1].stamp_ns == NS_PER_S + STEP_NS)
    assert arm.problems == []


def test_the_wall_clock_ends_a_wait(listen):
    arm = listen(wait_limit_s=0.2)
    arm.loop.reset(TASK, 0)
    arm.wait(lambda: arm.ticks[-1].last)
    assert arm.ticks[-1].truncated and not arm.ticks[-1].failed
    assert arm.problems == ['no target stamped 1.0 s within 0.2 s']
    arm.loop.reset(TASK, 1)
    assert arm.ticks[-1].first and arm.loop.report().running


def test_a_reset_that_fails_says_so_and_the_next_one_works(listen):
    arm = listen()
    with pytest.raises(ValueError, match="'reach-v2' is none of the 50"):
        arm.loop.reset('reach-v2', 0)
    arm.loop.reset(TASK, 0)
    assert arm.ticks[-1].first


def test_a_reset_that_takes_too_long_says_so(listen):
    with pytest.raises(TimeoutError, match='the arm is not ready after 0.001 s'):
        listen().loop.reset(TASK, 0, timeout_s=0.001)


def test_a_failing_step_ends_the_episode_but_not_the_thread(listen):
    arm = listen()
    arm.loop.reset(TASK, 0)
    arm.push(NS_PER_S, position=(np.nan, 0.6, 0.2))
    arm.wait(lambda: arm.ticks[-1].last)
    assert 'finite' in arm.problems[0] and arm.ticks[-1].failed
    arm.loop.reset(TASK, 0)
    assert arm.ticks[-1].first


def test_real_time_goes_on_by_itself_past_the_step_limit_of_lockstep(listen):
    arm = listen(max_steps=None, lockstep=False, real_time_factor=1000.0)
    arm.loop.reset(TASK, 0)
    arm.wait(lambda: len(arm.ticks) > 510)
    assert np.all(np.diff([tick.stamp_ns for tick in arm.ticks]) == STEP_NS)
    # Nobody commands: it stays where it is, to what its own weight makes of it.
    assert np.linalg.norm(arm.ticks[-1].observation[EE_POSE][:3]
                          - arm.ticks[0].observation[EE_POSE][:3]) < 0.03


def test_real_time_takes_the_newest_target_and_none_from_before_the_episode(listen):
    arm = listen(lockstep=False, real_time_factor=0.2)
    arm.loop.reset(TASK, 0)
    start = arm.ticks[0].observation[EE_POSE][:3]
    arm.push(NS_PER_S - 1, position=start + (0.2, 0.0, 0.0))
    arm.push(NS_PER_S + 1, position=start - (0.05, 0.0, 0.0))
    arm.wait(lambda: abs(arm.ticks[-1].observation[EE_POSE][0] - start[0]) > 0.03)
    moved = np.array([tick.observation[EE_POSE][0] for tick in arm.ticks]) - start[0]
    assert moved.min() < -0.03 and moved.max() < 0.01
    assert arm.loop.report().stale_targets == 1


def test_an_episode_in_real_time_ends_where_it_is_asked_to(listen):
    settings = {'lockstep': False, 'real_time_factor': 1000.0, 'ends': True}
    arm, expert = listen(max_steps=500, ticks_after_success=3, **settings), None

    def answer(tick):
        if not tick.last:
            arm.push(tick.stamp_ns, *expert.target(tick.sim_state))

    for seed in (0, 1):
        expert, arm.answer = Expert('drawer-close-v3'), answer
        arm.loop.reset('drawer-close-v3', seed)
        arm.wait(lambda: arm.ticks[-1].last)
        assert not arm.loop.report().running
    ends = [i for i, tick in enumerate(arm.ticks) if tick.last]
    assert len(ends) == 2 and arm.ticks[ends[0] + 1].first  # nothing came in between
    succeeded = [i for i, tick in enumerate(arm.ticks) if tick.success and i > ends[0]]
    assert ends[1] - succeeded[0] == 3
    short = listen(max_steps=5, **settings)
    short.loop.reset(TASK, 0)
    short.wait(lambda: short.ticks[-1].last)
    assert short.ticks[-1].truncated and len(short.ticks) == 6


@pytest.mark.parametrize('factor', [0.1, 0.25])
def test_real_time_keeps_its_rate_on_the_steady_clock(listen, factor):
    arm = listen(lockstep=False, real_time_factor=factor)
    arm.loop.reset(TASK, 0)
    arm.loop.report()
    start_s, first = time.monotonic(), len(arm.ticks)
    arm.wait(lambda: len(arm.ticks) >= first + 20)
    seconds = time.monotonic() - start_s
    assert seconds >= 19 * STEP_NS / NS_PER_S / factor
    assert arm.loop.report().achieved_factor <= 1.1 * factor


def test_time_that_is_lost_is_given_up(listen):
    arm = listen(lockstep=False, real_time_factor=1000.0)
    arm.loop.reset(TASK, 0)
    arm.wait(lambda: arm.loop.report().slips > 0)
    arm.loop.real_time_factor = 0.5
    arm.wait(lambda: len(arm.ticks) > 5)
    assert arm.problems == []


def test_a_reset_begins_anew_in_the_middle_of_an_episode(listen):
    arm = listen(lockstep=False, real_time_factor=1.0)
    arm.loop.reset(TASK, 0)
    arm.wait(lambda: len(arm.ticks) > 3)
    arm.loop.reset('button-press-topdown-v3', 0)
    firsts = [tick for tick in arm.ticks if tick.first]
    assert len(firsts) == 2
    before = arm.ticks[arm.ticks.index(firsts[1]) - 1]
    assert firsts[1].stamp_ns - before.stamp_ns == 2 * NS_PER_S

"""The simulated arm in a thread of its own, which owns MuJoCo, the OpenGL context and sim time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent import futures
from dataclasses import dataclass, replace
from functools import partial
import queue
import threading
import time
from typing import Any

import numpy as np

from diffusion_policy_ros.datatypes import NS_PER_S
from diffusion_policy_ros.sim.arm import MetaWorldArm
from diffusion_policy_ros.sim.rollout import EPISODE_GAP_NS, FIRST_STAMP_NS
from diffusion_policy_ros.sim.tasks import STEP_NS, ticks_left

REPEAT_NS = NS_PER_S  # a node that came back in mid-episode sees the tick that is waited for
FIRST_REPEAT_NS = NS_PER_S // 4  # at a run's start one that was not yet found by DDS
CATCH_UP_NS = NS_PER_S // 10  # further behind than this, lost time is given up
OPEN = -1.0  # effort before the first target: MetaWorld's reset leaves the fingers open


@dataclass(frozen=True)
class Tick:
    """
    One moment of the arm.

    Attributes:
        stamp_ns: sim time.
        number: ticks since the episode's start.
        observation: as MetaWorldArm gives it.
        sim_state: (42,) what the scripted expert sees.
        image_fresh: whether pictures are due.
        success: the task's own measure, now.
        truncated: whether the step limit is reached.
        last: whether the episode ends with this; no target is expected for it.
        failed: whether the simulator failed after it.
    """

    stamp_ns: int
    number: int
    observation: Mapping[str, np.ndarray]
    sim_state: np.ndarray
    image_fresh: bool
    success: bool = False
    truncated: bool = False
    last: bool = False
    failed: bool = False

    @property
    def first(self) -> bool:
        """Whether this begins an episode."""
        return self.number == 0


@dataclass(frozen=True)
class Report:
    """
    How the loop did since the last report.

    Attributes:
        running: whether an episode is under way.
        ticks: of the episode.
        achieved_factor: sim time per wall time; 0 where nothing ran.
        slips: times that it gave up catching up with real time, since the start.
        stale_targets: targets stamped with another time than the tick's, since the start.
        waiting_s: how long lockstep has waited for the target of this tick.
    """

    running: bool
    ticks: int
    achieved_factor: float
    slips: int
    stale_targets: int
    waiting_s: float


class ArmLoop(threading.Thread):
    """
    Runs episodes.

    In lockstep each tick waits for the target stamped with it; in real time ticks come at a rate
    on the steady clock and take the newest target.

    Args:
        make_arm: builds a task's arm; called in the thread.
        publish: takes each tick, in the thread; in lockstep the same one again after 0.25 s of
            waiting, and each second from then on.
        gave_up: takes the reason, in one line, when an episode ends early; in the thread.
        lockstep: the mode.
        real_time_factor: sim seconds a wall second, outside lockstep.
        wait_limit_s: wall-clock limit of a lockstep wait, after which the episode is given up.
        ticks_after_success: that an episode goes on which ends.
        ends: whether an episode in real time ends, too, as each in lockstep does; else it goes on
            until the next one.
    """

    def __init__(self, make_arm: Callable[[str], MetaWorldArm],
                 publish: Callable[[Tick, MetaWorldArm], None],
                 gave_up: Callable[[str], None], *, lockstep: bool, real_time_factor: float,
                 wait_limit_s: float, ticks_after_success: int = 0, ends: bool = False) -> None:
        super().__init__(name='arm', daemon=True)
        self._make_arm, self._publish, self._gave_up = make_arm, publish, gave_up
        self._lockstep, self._ends = lockstep, lockstep or ends
        self.real_time_factor = real_time_factor
        self._wait_limit_ns = round(wait_limit_s * NS_PER_S)
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._arm: MetaWorldArm | None = None
        self._stamp_ns = FIRST_STAMP_NS - EPISODE_GAP_NS
        self._tick: Tick | None = None  # None between episodes
        self._first_ns = self._stamp_ns
        self._ticks_after_success = ticks_after_success
        self._ticks_left: int | None = None  # once it has succeeded
        self._target: np.ndarray | None = None
        self._due_ns = self._waiting_ns = 0
        self._slips = self._stale = 0
        self._reported = (time.monotonic_ns(), self._stamp_ns)

    def reset(self, task: str, seed: int, timeout_s: float = 60.0) -> int:
        """
        Begin an episode, 2 s of sim time after the last.

        Returns:
            The stamp of its first tick, in ns, once that is published.

        Raises:
            ValueError, RuntimeError: what the arm says: no such task, no display library.
            TimeoutError: the arm did not get ready in time.
        """
        done: futures.Future[int] = futures.Future()
        self._inbox.put(partial(self._begin, task, seed, done))
        try:
            return done.result(timeout_s)
        except futures.TimeoutError:  # TimeoutError from Python 3.11 on
            raise TimeoutError(f'the arm is not ready after {timeout_s:g} s') from None

    @property
    def stamp_ns(self) -> int:
        """Sim time of the last tick."""
        return self._stamp_ns

    def push_target(self, stamp_ns: int, position: np.ndarray, effort: float) -> None:
        """Hand over a target: (3,) metres and the closing effort."""
        self._inbox.put(partial(self._take, stamp_ns, np.append(position, effort)))

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the thread."""
        self._inbox.put(None)
        self.join(timeout_s)

    def report(self) -> Report:
        """Return how the loop did since this was last called."""
        now_ns, stamp_ns, tick = time.monotonic_ns(), self._stamp_ns, self._tick
        (then_ns, then_stamp_ns), self._reported = self._reported, (now_ns, stamp_ns)
        gone_ns = max(0, stamp_ns - max(then_stamp_ns, self._first_ns))
        waiting_ns = now_ns - self._waiting_ns if tick is not None and self._lockstep else 0
        return Report(tick is not None, (stamp_ns - self._first_ns) // STEP_NS,
                      gone_ns / max(1, now_ns - then_ns), self._slips, self._stale,
                      waiting_ns / NS_PER_S)

    def run(self) -> None:
        """Do what is asked for until `stop`."""
        while True:
            try:
                job = self._inbox.get(timeout=self._patience_s())
            except queue.Empty:
                job = self._waited if self._lockstep else self._step
            if job is None:
                break
            try:
                job()
            except Exception as error:  # noqa: BLE001  whatever MuJoCo raises, the thread lives
                self._give_up(f'the simulator failed: {error!r}', failed=True)
        if self._arm is not None:
            self._arm.close()

    def _patience_s(self) -> float | None:
        if self._tick is None:
            return None
        return max(0, self._due_ns - time.monotonic_ns()) / NS_PER_S

    def _begin(self, task: str, seed: int, done: futures.Future[int]) -> None:
        self._tick, self._target, self._ticks_left = None, None, None
        try:
            if self._arm is None or self._arm.task != task:
                if self._arm is not None:
                    self._arm.close()
                    self._arm = None
                self._arm = self._make_arm(task)
            observation, info = self._arm.reset(seed=seed)
            self._stamp_ns += EPISODE_GAP_NS
            self._first_ns = self._stamp_ns
            self._due_ns = time.monotonic_ns()
            self._show(observation, info)
        except Exception as error:  # noqa: BLE001  it goes to the caller
            self._tick = None
            done.set_exception(error)
            return
        done.set_result(self._first_ns)

    def _take(self, stamp_ns: int, target: np.ndarray) -> None:
        if self._tick is None or (stamp_ns != self._stamp_ns if self._lockstep
                                  else stamp_ns < self._first_ns):
            self._stale += self._tick is not None
            return
        self._target = target
        if self._lockstep:
            self._step()

    def _step(self) -> None:
        arm, target = self._arm, self._target
        if target is None:
            target = np.append(arm.mocap_position, OPEN)
        observation, _, _, truncated, info = arm.step(target)
        self._stamp_ns += STEP_NS
        self._show(observation, info, truncated=truncated)

    def _show(self, observation: Mapping[str, np.ndarray], info: Mapping[str, Any],
              truncated: bool = False) -> None:
        success = info['success']
        self._ticks_left = ticks_left(self._ticks_left, success, self._ticks_after_success)
        tick = Tick(self._stamp_ns, (self._stamp_ns - self._first_ns) // STEP_NS, observation,
                    info['sim_state'], info['image_fresh'], success, truncated,
                    last=self._ends and (self._ticks_left == 0 or truncated))
        self._tick = None if tick.last else tick
        self._publish(tick, self._arm)
        self._waiting_ns = now_ns = time.monotonic_ns()
        if self._lockstep:
            self._due_ns = now_ns + min(FIRST_REPEAT_NS, self._wait_limit_ns)
            return
        self._due_ns += round(STEP_NS / self.real_time_factor)
        if now_ns - self._due_ns > CATCH_UP_NS:
            self._due_ns = now_ns
            self._slips += 1

    def _waited(self) -> None:
        """Lockstep got no target for a while: show the tick again, or give the episode up."""
        waited_ns = time.monotonic_ns() - self._waiting_ns
        if waited_ns < self._wait_limit_ns:
            self._due_ns = min(self._due_ns + REPEAT_NS, self._waiting_ns + self._wait_limit_ns)
            self._publish(self._tick, self._arm)
            return
        self._give_up(f'no target stamped {self._stamp_ns / NS_PER_S} s within '
                      f'{self._wait_limit_ns / NS_PER_S:g} s')

    def _give_up(self, problem: str, failed: bool = False) -> None:
        tick, self._tick = self._tick, None
        self._gave_up(problem)
        if tick is not None:
            self._publish(replace(tick, truncated=True, last=True, failed=failed), self._arm)

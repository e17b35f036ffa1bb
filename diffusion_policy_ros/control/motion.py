"""Targets to commands: from the measured pose, slowly at first, within limits; and the hold."""

from __future__ import annotations

from collections import Counter

import numpy as np

from diffusion_policy_ros.control import rotation
from diffusion_policy_ros.control.arm import ArmConfig, CLOSED, OPEN
from diffusion_policy_ros.control.limits import Limiter
from diffusion_policy_ros.datatypes import Command, NS_PER_S, Observation

NEUTRAL_EFFORT = 0.0
"""Neither opens nor closes; only where an answer is due before any effort was ever commanded."""
ELSEWHERE_NS = NS_PER_S // 10
"""So long must measured poses agree that the arm is elsewhere before the command goes there."""


class Motion:
    """
    The commanded pose, its speed, and the last closing effort.

    Attributes:
        started: whether there is a commanded pose.
        passed_ns: time on the steady clock for which the next step may move, however far ROS time
            has gone on; None for any.
        approaching: whether the first target is still approached, at `start_speed`.
        gripper: closing effort that was last commanded, None before the first.
        limits_acted: how often each limit changed a target, the slow approach aside.
    """

    def __init__(self, arm: ArmConfig, period_ns: int, longest_step_ns: int | None) -> None:
        """
        Prepare for an arm that has limits.

        Args:
            arm: its limits are used.
            period_ns: the first step's length.
            longest_step_ns: steps that take longer count as this long, so that a pause is not made
                good in one move; None for no such limit.
        """
        self._limits = arm.limits
        self._limiter = Limiter(arm.limits, period_ns / 2 / NS_PER_S)
        self._fixed_orientation = (None if arm.fixed_orientation is None
                                   else rotation.normalise(arm.fixed_orientation))
        self._has_gripper = arm.gripper.type != 'none'
        self._told_once = arm.gripper.send_on_change
        self._period_ns = period_ns
        self._longest_step_ns = longest_step_ns
        self._orientation: np.ndarray | None = None
        self.limits_acted: Counter[str] = Counter()
        self.gripper: float | None = None
        self.passed_ns: int | None = None
        self._followed = False
        self._sent: np.ndarray | None = None
        self.drop()

    def drop(self) -> None:
        """Forget the commanded pose: the next motion begins at the measured one."""
        self.started = False
        self.approaching = False
        self._approach_ns = 0
        self._last_ns: int | None = None
        self._frame_id = ''
        self._elsewhere: np.ndarray | None = None
        self._elsewhere_since_ns = 0

    def rest(self) -> None:
        """Go on from the commanded pose, at rest: the arm had time to arrive there."""
        if self.started:
            self._limiter.reset(self._limiter.position, self._limiter.quaternion)
        self.approaching = False
        self.forget_time()

    def forget_time(self) -> None:
        """Count the next step as one period long."""
        self._last_ns = None

    def forget_orientation(self) -> None:
        """Hold the orientation measured at the next beginning where no rotation is predicted."""
        self._orientation = None

    def keep_orientation(self) -> None:
        """Hold the commanded orientation from now on where no rotation is predicted."""
        self._orientation = self._limiter.quaternion

    def begin(self, pose: Observation) -> None:
        """Start at rest at the measured pose."""
        self.drop()
        self._limiter.reset(pose.value[:3], pose.value[3:])
        if self._orientation is None:
            self._orientation = self._limiter.quaternion
        self._frame_id = pose.frame_id
        self.started = True

    @property
    def at_rest(self) -> bool:
        """Whether the commanded pose stands still."""
        return self._limiter.at_rest

    def elapsed_ns(self, now_ns: int) -> int | None:
        """Return the time since the last command; None before the first."""
        return None if self._last_ns is None else now_ns - self._last_ns

    def check_astray(self, pose: Observation, steady_ns: int) -> bool:
        """
        Return whether a measured pose is too far from the commanded one.

        Motion begins anew, at rest, where the arm is, once poses have agreed on that for a while:
        one wrong pose moves nothing. It does so once until `forgive`. An arm that leaves that
        command, too, would leave each one, as under a load too heavy for it or where its pose is
        another frame's. Then, and where the arm is further outside the workspace than a start may
        be, nothing is commanded any more.
        """
        found, last = pose.value, self._elsewhere
        if not self._apart(np.append(self._limiter.position, self._limiter.quaternion), found):
            self._elsewhere = None
            return False
        if last is None or self._apart(last, found):
            self._elsewhere_since_ns = steady_ns
        self._elsewhere = found
        outside = np.linalg.norm(found[:3] - self._limiter.within_workspace(found[:3]))
        if steady_ns - self._elsewhere_since_ns >= ELSEWHERE_NS:
            if self._followed or outside > self._limits.max_start_jump:
                self.drop()
                self.gripper = None  # who guides the arm may have moved the hand
            else:
                self.begin(pose)
                self._followed = True
        return True

    def forgive(self) -> None:
        """Let the command go once more to an arm that is elsewhere."""
        self._followed = False

    def forget_hand(self) -> None:
        """Take the hand as moved by somebody, unless it is told all the time what to do."""
        if self._told_once:
            self.gripper = None

    def _apart(self, one: np.ndarray, other: np.ndarray) -> bool:
        """Return whether an arm can't be at both of two poses (7,) at a time."""
        limits = self._limits
        return (np.linalg.norm(one[:3] - other[:3]) > limits.max_tracking_error
                or rotation.angle(one[3:], other[3:]) > limits.max_tracking_turn)

    def is_far(self, pose: np.ndarray, position: np.ndarray,
               quaternion: np.ndarray | None) -> bool:
        """Return whether a first target is too far from the measured pose (7,)."""
        position = self._limiter.within_workspace(position)
        orientation = self._orientation_for(quaternion)
        turn = 0.0 if orientation is None else rotation.angle(orientation, pose[3:])
        return not (np.linalg.norm(position - pose[:3]) <= self._limits.max_start_jump
                    and turn <= self._limits.max_start_turn)

    def approach(self, position: np.ndarray, quaternion: np.ndarray | None) -> None:
        """
        Go slowly until the target is met, or for as long as the way to it takes.

        The second end is for a target that keeps moving away faster than that.
        """
        limits = self._limits
        position = self._limiter.within_workspace(position)
        way = float(np.max(np.abs(position - self._limiter.position)))
        turn = rotation.angle(self._orientation_for(quaternion), self._limiter.quaternion)
        seconds = max(way / limits.start_speed + limits.start_speed / limits.max_acceleration,
                      turn / limits.start_angular_speed
                      + limits.start_angular_speed / limits.max_angular_acceleration)
        self.approaching = True
        self._approach_ns = round(seconds * NS_PER_S)

    def toward(self, position: np.ndarray, quaternion: np.ndarray | None, gripper: float | None,
               now_ns: int) -> Command:
        """Return the command for now on the way to a target."""
        step_ns = self._step_ns(now_ns)
        slow = self._limits.start_speed, self._limits.start_angular_speed
        _, _, acted = self._limiter.step(position, self._orientation_for(quaternion),
                                         step_ns / NS_PER_S, *(slow if self.approaching else ()))
        if self.approaching and self._limiter.is_faster(*slow):  # still braking: begin then
            self.approach(position, quaternion)
        elif self.approaching:
            self._approach_ns -= step_ns
            self.approaching = bool(acted) and self._approach_ns > 0
        else:
            self.limits_acted.update(acted)
        if gripper is not None:
            self.gripper = min(max(float(gripper), OPEN), CLOSED)
        return self._command(now_ns)

    def hold(self, now_ns: int) -> Command:
        """Return the command for now on the way to a stop, the gripper as it is."""
        self.approaching = False
        self._limiter.brake(self._step_ns(now_ns) / NS_PER_S)
        return self._command(now_ns)

    def _orientation_for(self, quaternion: np.ndarray | None) -> np.ndarray | None:
        """Return the orientation to send; None before the first, where none is asked for."""
        if self._fixed_orientation is not None:
            return self._fixed_orientation
        return self._orientation if quaternion is None else quaternion

    def _step_ns(self, now_ns: int) -> int:
        step_ns = self._period_ns if self._last_ns is None else now_ns - self._last_ns
        for longest_ns in (self._longest_step_ns, self.passed_ns):
            if longest_ns is not None:
                step_ns = min(step_ns, longest_ns)
        return step_ns

    def _command(self, now_ns: int) -> Command:
        self._last_ns = now_ns
        quaternion = self._limiter.quaternion
        if self._sent is not None and quaternion @ self._sent < 0.0:
            quaternion = -quaternion  # the same; but who interpolates components would swing round
        self._sent = quaternion
        return Command(now_ns, self._limiter.position, quaternion,
                       self.gripper if self._has_gripper else None, self._frame_id)

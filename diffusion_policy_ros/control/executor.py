"""Chunks to a safe stream of commands: the class that a robot's safety hangs on, read it whole."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from diffusion_policy_ros.control.arm import ArmConfig
from diffusion_policy_ros.control.motion import Motion, NEUTRAL_EFFORT
from diffusion_policy_ros.control.plan import Plan, pose_problem
from diffusion_policy_ros.control.teleop import Teleop
from diffusion_policy_ros.datatypes import (
    Chunk, Command, NS_PER_S, Observation, Status, to_ns,
)

LONGEST_STEP_PERIODS = 5
"""A pause of more periods than this counts as this many: it is not made good in one move."""

MOVING = (Status.TRACKING, Status.STARVED, Status.TELEOP)
BRAKING = (Status.HALTED, Status.HELD, Status.NO_POSE, Status.NO_CHUNK, Status.REFUSED)


@dataclass(frozen=True)
class ExecutorConfig:
    """Parameters of the executor; each field's metadata says what it does."""

    command_rate_hz: float = field(default=50.0, metadata={
        'description': 'Commands per second; in lockstep the simulator sets the pace, and this is '
                       'only the length of the first step.',
        'unit': 'Hz', 'min': 1.0, 'max': 1000.0})
    blend_s: float = field(default=0.1, metadata={
        'description': 'Time over which a new chunk replaces the one before it; 0 replaces at '
                       'once.',
        'unit': 's', 'min': 0.0, 'max': 2.0})
    command_timeout_s: float = field(default=0.5, metadata={
        'description': 'Time without a live chunk, on the steady clock, after which the arm is '
                       'braked and held; also a pause in ROS time after which motion begins anew '
                       'from the measured pose.',
        'unit': 's', 'min': 0.02, 'max': 10.0})
    pose_timeout_s: float = field(default=0.5, metadata={
        'description': 'Time without a new ee_pose after which the arm is braked and held.',
        'unit': 's', 'min': 0.02, 'max': 10.0})
    teleop_timeout_s: float = field(default=0.25, metadata={
        'description': 'Silence of the teleoperator, on the steady clock, that counts as letting '
                       'go.',
        'unit': 's', 'min': 0.02, 'max': 10.0})
    lockstep: bool = field(default=False, metadata={
        'description': 'Answer each ee_pose exactly once, waiting for the chunk or the teleop '
                       'target that is due; for simulators that wait for the answer.'})
    n_action_steps: int = field(default=0, metadata={
        'description': "The policy's Ta, needed in lockstep: a chunk answers for Ta * dt. 0 is "
                       'for runs without a policy.',
        'min': 0, 'max': 1000})
    dt_s: float = field(default=0.0, metadata={
        'description': "The policy's dt, needed in lockstep; 0 is for runs without a policy.",
        'unit': 's', 'min': 0.0, 'max': 10.0})
    enable_on_start: bool = field(default=False, metadata={
        'description': 'Move without ~/enable; for simulators only, so that a replayed bag moves '
                       'nothing.'})


class ChunkExecutor:
    """
    Follow the newest chunk, or the teleoperator, within the arm's limits.

    Give it every `ee_pose`, chunk and teleop target as they arrive, and call `step` at the command
    rate (in lockstep: when `ee_pose` of a tick arrives, and after each later arrival until the
    tick is answered). Nothing is sent before `enable`, nor for an arm without limits. Neither a
    chunk nor a teleoperator can lift a halt.

    Attributes:
        refused: how often chunks and teleop targets were refused, by reason.
        status: what the last step returned.
    """

    def __init__(self, config: ExecutorConfig, arm: ArmConfig) -> None:
        self._lockstep = config.lockstep
        self._has_gripper = arm.gripper.type != 'none'
        period_ns = round(NS_PER_S / config.command_rate_hz)
        self._min_step_ns = period_ns // 2
        self._command_timeout_ns = to_ns(config.command_timeout_s)
        self._pose_timeout_ns = to_ns(config.pose_timeout_s)
        self._motion = None if arm.limits is None else Motion(
            arm, period_ns, None if config.lockstep else LONGEST_STEP_PERIODS * period_ns)
        self._max_start_jump = 0.0 if arm.limits is None else arm.limits.max_start_jump
        self._answer_ns = config.n_action_steps * to_ns(config.dt_s) if config.lockstep else 0
        self._plan = Plan(to_ns(config.blend_s), self._answer_ns,
                          None if config.lockstep else self._command_timeout_ns)
        self._teleop = Teleop(to_ns(config.teleop_timeout_s), config.lockstep)
        self._enabled = config.enable_on_start
        self._halted = False
        self.refused: Counter[str] = Counter()
        self.status = Status.NO_POSE if config.enable_on_start else Status.DISABLED
        self._drop()

    def enable(self) -> None:
        """Allow motion, which begins at the measured pose, with the orientation measured there."""
        if not self._enabled and self._motion is not None:
            self._motion.forget_orientation()
        self._enabled = True

    def disable(self) -> None:
        """Send nothing from now on."""
        self._enabled = False
        self._stop_following()

    def halt(self) -> None:
        """Brake and hold, until `clear_halt`."""
        self._halted = True

    def clear_halt(self) -> None:
        """Move again, beginning at the measured pose."""
        self._halted = False

    def reset(self) -> None:
        """Begin an episode: drop chunk, pose and motion, and refuse older observations' chunks."""
        self._drop(self._reset_ns if self._now_ns is None else self._now_ns)
        self.limits_acted.clear()

    @property
    def enabled(self) -> bool:
        """Whether motion is allowed."""
        return self._enabled

    @property
    def limits_acted(self) -> Counter[str]:
        """How often each limit changed a target since `reset`, the slow approach aside."""
        return Counter() if self._motion is None else self._motion.limits_acted

    def push_pose(self, observation: Observation) -> None:
        """Take the measured pose; one that is not finite or no pose is refused and counted."""
        problem = pose_problem(observation.value)
        if problem is not None:
            self._count(problem)
            return
        if self._lockstep:
            self._notice_jump_back(observation.stamp_ns)
        self._pose = observation
        self._pose_is_new = True

    def push_chunk(self, chunk: Chunk, now_ns: int, steady_ns: int) -> str | None:
        """
        Take a chunk.

        Args:
            chunk: from the policy.
            now_ns: ROS time; in lockstep the chunk's own stamp counts instead.
            steady_ns: steady clock.

        Returns:
            None, or why it was refused, as 'reason: found, expected'.
        """
        if self._lockstep:
            if not self._answer_ns:
                return self._count('lockstep: n_action_steps or dt_s is 0, expected those of '
                                   'the policy')
            now_ns = chunk.stamp_ns
        else:
            self._notice_jump_back(now_ns)
        frame_id = None if self._pose is None else self._pose.frame_id
        problem = self._plan.take(chunk, now_ns, frame_id, self._following == Status.TRACKING)
        return None if problem is None else self._count(problem)

    def refuse_chunk(self, stamp_ns: int, problem: str) -> str:
        """Count a chunk that was no chunk, so that lockstep answers its times with a hold."""
        self._plan.refuse(stamp_ns)
        return self._count(problem)

    def push_teleop(self, command: Command, now_ns: int, steady_ns: int) -> str | None:
        """Take a teleoperator's target; return None, or why it was refused."""
        if not self._lockstep:
            self._notice_jump_back(now_ns)
        frame_id = None if self._pose is None else self._pose.frame_id
        problem = self._teleop.take(command, now_ns, steady_ns, frame_id)
        return None if problem is None else self._count(f'teleop {problem}')

    def step(self, now_ns: int, steady_ns: int) -> tuple[Command | None, Status]:
        """
        Return the command for now, if one is to be sent, and what is going on.

        Args:
            now_ns: ROS time; in lockstep the tick's.
            steady_ns: steady clock.
        """
        self._notice_jump_back(now_ns)
        advanced = self._now_ns is None or now_ns > self._now_ns
        self._now_ns = now_ns
        self._watch(now_ns, steady_ns, advanced)
        if self._lockstep:
            command, self.status = self._answer(now_ns, steady_ns)
        else:
            command, self.status = self._stream(now_ns, steady_ns, advanced)
        return command, self.status

    # What to do

    def _watch(self, now_ns: int, steady_ns: int, advanced: bool) -> None:
        """Note on the steady clock what is alive: the pose, and ROS time along the chunk."""
        if self._pose_is_new:
            self._pose_is_new, self._pose_steady_ns = False, steady_ns
        if advanced:
            self._tick_steady_ns = steady_ns
            if self._plan.ahead(now_ns):
                self._live_steady_ns = steady_ns

    def _wanted(self, now_ns: int, steady_ns: int) -> Status:
        blocked = self._blocked()
        if blocked is not None:
            return blocked
        pose_is_fresh = (
            self._pose is not None
            and steady_ns - self._pose_steady_ns <= self._pose_timeout_ns
            and abs(now_ns - self._pose.stamp_ns) <= self._pose_timeout_ns)
        if self._teleop.fresh(steady_ns):
            return Status.TELEOP if pose_is_fresh else Status.NO_POSE
        if self._plan.chunk is None:
            return Status.NO_CHUNK if pose_is_fresh else Status.NO_POSE
        if steady_ns - self._live_steady_ns > self._command_timeout_ns:
            return Status.HELD
        if not pose_is_fresh:
            return Status.NO_POSE
        return Status.TRACKING if self._plan.ahead(now_ns) else Status.STARVED

    def _stream(self, now_ns: int, steady_ns: int,
                advanced: bool) -> tuple[Command | None, Status]:
        """Send at the command rate, as long as ROS time goes on."""
        status = self._wanted(now_ns, steady_ns)
        if self._motion is not None:
            elapsed_ns = self._motion.elapsed_ns(now_ns)
            if not advanced or elapsed_ns is not None and elapsed_ns < self._min_step_ns:
                beginning = self.status in (Status.STARTING, Status.START_REFUSED)
                return None, self.status if beginning and status in MOVING else status
        return self._act(status, now_ns)

    def _answer(self, t_ns: int, steady_ns: int) -> tuple[Command | None, Status]:
        """Answer tick t once, as soon as what it waits for is here."""
        if t_ns == self._answered_ns:
            return None, self.status
        status = self._wanted_in_lockstep(t_ns, steady_ns)
        if status in (Status.HELD, Status.NO_CHUNK, Status.NO_POSE):
            return None, status
        if status == Status.TELEOP and self._teleop.command.stamp_ns != t_ns:
            return None, status
        command, status = self._act(status, t_ns)
        if command is None and status not in (Status.DISABLED, Status.NO_LIMITS):
            self._begin()
            command = self._motion.hold(t_ns)
        if command is not None:
            self._answered_ns = t_ns
            if command.gripper is None and self._has_gripper:
                command = _with_gripper(command, NEUTRAL_EFFORT)
        return command, status

    def _wanted_in_lockstep(self, t_ns: int, steady_ns: int) -> Status:
        blocked = self._blocked()
        if self._pose is None or self._pose.stamp_ns != t_ns:
            return blocked if blocked in (Status.DISABLED, Status.NO_LIMITS) else Status.NO_POSE
        if blocked is not None:
            return blocked
        teleop = self._teleop.command
        if teleop is not None and (
                teleop.stamp_ns == t_ns
                or self._following == Status.TELEOP and self._teleop.fresh(steady_ns)):
            return Status.TELEOP
        if self._plan.answers(t_ns):
            return Status.TRACKING if self._plan.ahead(t_ns) else Status.STARVED
        if self._plan.refused(t_ns):
            return Status.REFUSED
        waited_ns = steady_ns - self._tick_steady_ns
        return Status.HELD if waited_ns > self._command_timeout_ns else Status.NO_CHUNK

    def _blocked(self) -> Status | None:
        if self._motion is None:
            return Status.NO_LIMITS
        if not self._enabled:
            return Status.DISABLED
        if self._halted:
            return Status.HALTED
        chunk = self._plan.chunk
        if chunk is not None and self._pose is not None and chunk.frame_id != self._pose.frame_id:
            # It came before the first pose, so nothing could be said about its frame.
            self._count(f'frame: targets are in {chunk.frame_id!r}, expected '
                        f'{self._pose.frame_id!r} as in ee_pose')
            self._plan.chunk = None
            self._plan.refuse(chunk.stamp_ns)
        return None

    # Doing it

    def _act(self, status: Status, now_ns: int) -> tuple[Command | None, Status]:
        motion = self._motion
        if status in (Status.DISABLED, Status.NO_LIMITS):
            return None, status
        if (motion.elapsed_ns(now_ns) or 0) > self._command_timeout_ns:
            self._stop_following()
        if status in BRAKING:
            return self._hold(status, now_ns)
        position, quaternion, gripper = self._target(status, now_ns)
        source = Status.TELEOP if status == Status.TELEOP else Status.TRACKING
        if self._following != source:
            if np.linalg.norm(position - self._pose.value[:3]) > self._max_start_jump:
                return self._hold(Status.START_REFUSED, now_ns)
            self._from_measured |= self._following == Status.TELEOP
            if self._from_measured and motion.started and not motion.at_rest:
                return motion.hold(now_ns), Status.STARTING
            self._begin()
            motion.approach(position)
            self._following = source
        starting = motion.approaching
        command = motion.toward(position, quaternion, gripper, now_ns)
        return command, Status.STARTING if starting else status

    def _target(self, status: Status,
                now_ns: int) -> tuple[np.ndarray, np.ndarray | None, float | None]:
        if status == Status.TELEOP:
            command = self._teleop.command
            return command.position, command.quaternion, command.gripper
        return self._plan.at(now_ns)

    def _begin(self) -> None:
        if self._from_measured or not self._motion.started:
            self._motion.begin(self._pose)
            self._from_measured = False

    def _hold(self, status: Status, now_ns: int) -> tuple[Command | None, Status]:
        """Brake; the next target is approached like a first one, and after most from the pose."""
        if status not in (Status.HELD, Status.NO_CHUNK, Status.REFUSED):
            self._from_measured = True
        self._following = None
        return (self._motion.hold(now_ns) if self._motion.started else None), status

    # Beginning anew

    def _stop_following(self) -> None:
        self._following: Status | None = None
        self._from_measured = True
        if self._motion is not None:
            self._motion.drop()

    def _drop(self, before_ns: int | None = None) -> None:
        self._plan.forget(before_ns)
        self._teleop.forget()
        self._pose: Observation | None = None
        self._pose_is_new = False
        self._pose_steady_ns = self._live_steady_ns = self._tick_steady_ns = 0
        self._now_ns: int | None = None
        self._reset_ns = before_ns
        self._answered_ns: int | None = None
        if self._motion is not None:
            self._motion.gripper = None
        self._stop_following()

    def _notice_jump_back(self, now_ns: int) -> None:
        latest_ns = self._reset_ns if self._now_ns is None else self._now_ns
        if latest_ns is not None and now_ns < latest_ns:
            self._drop()

    def _count(self, problem: str) -> str:
        self.refused[problem.partition(':')[0]] += 1
        return problem


def _with_gripper(command: Command, gripper: float) -> Command:
    return Command(command.stamp_ns, command.position, command.quaternion, gripper,
                   command.frame_id)

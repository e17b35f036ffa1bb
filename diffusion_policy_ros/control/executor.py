"""Chunks to a safe stream of commands: the class that a robot's safety hangs on, read it whole."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from diffusion_policy_ros.control.arm import ArmConfig
from diffusion_policy_ros.control.executor_config import ExecutorConfig, LONGEST_STEP_PERIODS
from diffusion_policy_ros.control.motion import Motion, NEUTRAL_EFFORT
from diffusion_policy_ros.control.plan import frame_problem, Plan, pose_problem
from diffusion_policy_ros.control.teleop import Teleop
from diffusion_policy_ros.datatypes import (
    Chunk, Command, NS_PER_S, Observation, Status, to_ns,
)

MOVING = (Status.TRACKING, Status.STARVED, Status.TELEOP)
SILENT = (Status.DISABLED, Status.NO_LIMITS)


class ChunkExecutor:
    """
    Follow the newest chunk, or the teleoperator, within the arm's limits.

    Give it every `ee_pose`, chunk and teleop target as they arrive, and call `step` at the command
    rate (in lockstep: when `ee_pose` of a tick arrives, and after each later arrival until the
    tick is answered). Nothing is sent before `enable`, nor for an arm without limits. Neither a
    chunk nor a teleoperator can lift a halt. Commands begin at the measured pose and go on without
    a step from there; an arm that leaves them is held where it is, as if halted.

    Attributes:
        refused: how often chunks and teleop targets were refused, by reason.
        status: what the last step returned.
    """

    def __init__(self, config: ExecutorConfig, arm: ArmConfig, sim_time: bool = False) -> None:
        """
        Prepare.

        Args:
            config: times and switches.
            arm: its frame, limits and gripper.
            sim_time: ROS time is a simulator's and runs at any rate; else a step of the clock
                moves nothing.
        """
        self._lockstep = config.lockstep
        self._has_gripper = arm.gripper.type != 'none'
        period_ns = round(NS_PER_S / config.command_rate_hz)
        self._min_step_ns = period_ns // 2
        self._jitter_ns = 0 if config.lockstep else period_ns  # a clock's small step back
        self._command_timeout_ns = to_ns(config.command_timeout_s)
        self._pose_timeout_ns = to_ns(config.pose_timeout_s)
        self._motion = None if arm.limits is None else Motion(
            arm, period_ns, None if config.lockstep else LONGEST_STEP_PERIODS * period_ns)
        self._wall_time = not (sim_time or config.lockstep)
        self._frame_id = arm.base_frame
        self._answer_ns = config.n_action_steps * to_ns(config.dt_s) if config.lockstep else 0
        self._plan = Plan(to_ns(config.blend_s), self._answer_ns,
                          None if config.lockstep else self._command_timeout_ns)
        self._teleop = Teleop(to_ns(config.teleop_timeout_s), config.lockstep)
        self._enabled = config.enable_on_start
        self._halted = self._astray = False
        self._conflict: Status | None = None
        self._stopping = self._forgets = False
        self._acted_steady_ns = 0
        self.refused: Counter[str] = Counter()
        self.status = Status.NO_POSE if config.enable_on_start else Status.DISABLED
        self._drop()

    def enable(self) -> None:
        """Allow motion, which begins at the measured pose, with the orientation measured there."""
        if not self._enabled and self._motion is not None:
            self._motion.forget_orientation()
            self._motion.gripper = None  # somebody may have moved the hand
        self._enabled = True

    def disable(self) -> None:
        """Brake, and send nothing once the arm stands."""
        self._enabled = False
        self._stop(forget=True)

    def halt(self) -> None:
        """Brake and hold, until `clear_halt`."""
        self._halted = True

    def clear_halt(self) -> None:
        """Move again, the first target slowly; after an arm that went astray, too."""
        self._halted = self._astray = False
        if self._motion is not None:
            self._motion.forgive()
            self._motion.forget_hand()

    def conflict(self, status: Status | None) -> None:
        """
        Note who else is at work.

        Args:
            status: `CONFLICT` while another node commands the arm, and nothing is sent but in
                lockstep; `TWO_POLICIES` while more than one leads it, and it is held, what they
                sent forgotten in the end; or None.
        """
        if self._conflict == Status.TWO_POLICIES != status and not self._lockstep:
            self._plan.forget(self._now_ns)
            self._teleop.forget()
        self._conflict = status

    def reset(self) -> None:
        """Begin an episode: brake, drop chunk and pose, and refuse older observations' chunks."""
        self._drop(self._reset_ns if self._now_ns is None else self._now_ns)
        self._astray &= not self._lockstep
        self.limits_acted.clear()
        if self._motion is not None:
            self._motion.forget_hand()  # it may hold the next part by now

    @property
    def enabled(self) -> bool:
        """Whether motion is allowed."""
        return self._enabled

    @property
    def blocked(self) -> Status | None:
        """What keeps the arm from being moved, whatever targets there are; None for nothing."""
        if self._motion is None:
            return Status.NO_LIMITS
        if not self._enabled:
            return Status.DISABLED
        if self._conflict is not None:
            return self._conflict
        if self._halted:
            return Status.HALTED
        return Status.ASTRAY if self._astray else None

    @property
    def limits_acted(self) -> Counter[str]:
        """How often each limit changed a target since `reset`, the slow approach aside."""
        return Counter() if self._motion is None else self._motion.limits_acted

    def push_pose(self, observation: Observation) -> str | None:
        """Take the measured pose; return None, or why it was refused."""
        problem = pose_problem(observation.value) or frame_problem(
            'ee_pose is', observation.frame_id, self._frame_id)
        if problem is not None:
            return self._count(problem)
        if self._lockstep:
            self._notice_jump_back(observation.stamp_ns)
        self._pose = observation
        self._pose_is_new = True
        return None

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
        problem = self._plan.take(chunk, now_ns, self._frame_id,
                                  self._following == Status.TRACKING)
        if problem is not None:
            return self._count(problem)
        if self._plan.ahead(now_ns):  # though ROS time may not have gone on yet
            self._live_steady_ns = steady_ns
        return None

    def refuse_chunk(self, stamp_ns: int, problem: str) -> str:
        """Count a chunk that was no chunk, so that lockstep answers its times with a hold."""
        self._plan.refuse(stamp_ns)
        return self._count(problem)

    def push_teleop(self, command: Command, now_ns: int, steady_ns: int) -> str | None:
        """Take a teleoperator's target; return None, or why it was refused."""
        if not self._lockstep:
            self._notice_jump_back(now_ns)
        problem = self._teleop.take(command, now_ns, steady_ns, self._frame_id)
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
        if advanced:
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
            if self._pose_is_fresh(now_ns, steady_ns):
                self._notice_an_arm_astray(steady_ns)
        if advanced:
            self._tick_steady_ns = steady_ns
            if self._paused(now_ns):
                self._plan.forget_past(now_ns - self._command_timeout_ns)
            if self._plan.ahead(now_ns):
                self._live_steady_ns = steady_ns

    def _pose_is_fresh(self, now_ns: int, steady_ns: int) -> bool:
        if self._lockstep or self._pose is None:
            return self._pose is not None and self._pose.stamp_ns == now_ns
        return (steady_ns - self._pose_steady_ns <= self._pose_timeout_ns
                and abs(now_ns - self._pose.stamp_ns) <= self._pose_timeout_ns)

    def _notice_an_arm_astray(self, steady_ns: int) -> None:
        """Hold an arm that was moved, or stopped, by something else."""
        motion = self._motion
        if (motion is not None and motion.started and not self._stopping
                and motion.check_astray(self._pose, steady_ns)):
            self._astray, self._following = True, None

    def _paused(self, now_ns: int) -> bool:
        """Return whether the last command is long past in ROS time."""
        return (self._motion is not None
                and (self._motion.elapsed_ns(now_ns) or 0) > self._command_timeout_ns)

    def _wanted(self, now_ns: int, steady_ns: int) -> Status:
        blocked = self.blocked
        if blocked is not None:
            return blocked
        pose_is_fresh = self._pose_is_fresh(now_ns, steady_ns)
        if self._teleop.fresh(now_ns, steady_ns):
            return Status.TELEOP if pose_is_fresh else Status.NO_POSE
        if self._teleop.held(steady_ns) or not self._plan.begun(now_ns):
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
            if not advanced or self._too_soon(now_ns, steady_ns):
                beginning = self.status in (Status.STARTING, Status.START_REFUSED)
                return None, self.status if beginning and status in MOVING else status
        return self._act(status, now_ns, steady_ns)

    def _too_soon(self, now_ns: int, steady_ns: int) -> bool:
        """Return whether less than half a period has passed, on one clock, since the last step."""
        elapsed_ns = self._motion.elapsed_ns(now_ns)
        return (elapsed_ns is not None and elapsed_ns < self._min_step_ns
                or self._wall_time and steady_ns - self._acted_steady_ns < self._min_step_ns)

    def _answer(self, t_ns: int, steady_ns: int) -> tuple[Command | None, Status]:
        """Answer tick t once, as soon as what it waits for is here."""
        if t_ns == self._answered_ns:
            return None, self.status
        status = self._wanted_in_lockstep(t_ns, steady_ns)
        if status in (Status.HELD, Status.NO_CHUNK, Status.NO_POSE):
            return None, status
        if status == Status.TELEOP and self._teleop.command.stamp_ns != t_ns:
            return None, status
        command, status = self._act(status, t_ns, steady_ns)
        if command is None and status not in SILENT:
            self._begin()
            command = self._motion.hold(t_ns)
        if command is not None:
            self._answered_ns = t_ns
            if command.gripper is None and self._has_gripper:
                command = replace(command, gripper=NEUTRAL_EFFORT)
        return command, status

    def _wanted_in_lockstep(self, t_ns: int, steady_ns: int) -> Status:
        blocked = self.blocked
        if not self._pose_is_fresh(t_ns, steady_ns):
            return blocked if blocked in SILENT else Status.NO_POSE
        if blocked is not None:
            return blocked
        teleop = self._teleop.command
        if teleop is not None and (
                teleop.stamp_ns == t_ns
                or self._following == Status.TELEOP and self._teleop.fresh(t_ns, steady_ns)):
            return Status.TELEOP
        if self._plan.answers(t_ns):
            return Status.TRACKING if self._plan.ahead(t_ns) else Status.STARVED
        if self._plan.refused(t_ns):
            return Status.REFUSED
        waited_ns = steady_ns - self._tick_steady_ns
        return Status.HELD if waited_ns > self._command_timeout_ns else Status.NO_CHUNK

    # Doing it

    def _act(self, status: Status, now_ns: int,
             steady_ns: int) -> tuple[Command | None, Status]:
        motion = self._motion
        if motion is None:
            return None, status
        self._notice_pause(now_ns, steady_ns)
        if self._conflict == Status.CONFLICT and not self._lockstep:
            self._forget_motion()
            motion.gripper = None
            self._pose = None  # it may be old when the other node lets go
            return None, status
        if self._stopping and motion.started and not motion.at_rest:
            return motion.hold(now_ns), Status.STOPPING if status in MOVING else status
        if self._stopping:
            self._end_stop()
        if status in SILENT:
            return None, status
        if status not in MOVING:
            return self._hold(status, now_ns)
        position, quaternion, gripper = self._target(status, now_ns)
        source = Status.TELEOP if status == Status.TELEOP else Status.TRACKING
        if self._following != source:
            if motion.is_far(self._pose.value, position, quaternion):
                return self._hold(Status.START_REFUSED, now_ns)
            self._begin()
            motion.approach(position, quaternion)
            self._following = source
        starting = motion.approaching
        command = motion.toward(position, quaternion, gripper, now_ns)
        if source == Status.TELEOP:
            motion.keep_orientation()
        return command, Status.STARTING if starting else status

    def _target(self, status: Status,
                now_ns: int) -> tuple[np.ndarray, np.ndarray | None, float | None]:
        if status == Status.TELEOP:
            command = self._teleop.command
            return command.position, command.quaternion, self._teleop.effort(self._motion.gripper)
        return self._plan.at(now_ns)

    def _begin(self) -> None:
        if not self._motion.started:
            self._motion.begin(self._pose)

    def _hold(self, status: Status, now_ns: int) -> tuple[Command | None, Status]:
        """Brake; the next target is approached like a first one."""
        self._following = None
        return (self._motion.hold(now_ns) if self._motion.started else None), status

    # Beginning anew

    def _stop(self, forget: bool) -> None:
        """Brake, then begin anew at the measured pose, or go on; in lockstep stop at once."""
        self._following: Status | None = None
        self._stopping, self._forgets = True, forget or self._forgets
        if self._lockstep:
            self._end_stop()

    def _end_stop(self) -> None:
        if self._forgets:
            self._forget_motion()
        self._stopping = False

    def _forget_motion(self) -> None:
        self._following, self._stopping, self._forgets = None, False, False
        if self._motion is not None:
            self._motion.drop()

    def _notice_pause(self, now_ns: int, steady_ns: int) -> None:
        """
        Begin anew, or go on slowly, where nothing was sent for long.

        A simulator's time leaps where an episode ends, and its arm is elsewhere then; a clock that
        is set moves no arm, and one that heard nothing for long has come to where it was sent.
        """
        passed_ns = steady_ns - self._acted_steady_ns
        self._acted_steady_ns = steady_ns
        paused = self._paused(now_ns)
        if self._wall_time:
            self._motion.passed_ns = max(passed_ns, self._min_step_ns)
            if passed_ns > self._command_timeout_ns:
                self._motion.rest()
        if paused:
            self._following = None
            if not self._wall_time:
                self._forget_motion()

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
            self._motion.forget_time()
            if not self._wall_time:
                self._motion.gripper = None
        self._stop(forget=not self._wall_time)

    def _notice_jump_back(self, now_ns: int) -> None:
        latest_ns = self._reset_ns if self._now_ns is None else self._now_ns
        if latest_ns is not None and now_ns < latest_ns - self._jitter_ns:
            self._drop()

    def _count(self, problem: str) -> str:
        self.refused[problem.partition(':')[0]] += 1
        return problem

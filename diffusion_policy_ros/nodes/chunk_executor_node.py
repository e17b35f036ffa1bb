"""Chunks and teleop in, targets out; the rules are in control/executor.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
import math
import time
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory, MultiDOFJointTrajectory

from diffusion_policy_ros.control import readings
from diffusion_policy_ros.control.arm import load_arm
from diffusion_policy_ros.control.executor import ChunkExecutor
from diffusion_policy_ros.control.executor_config import ExecutorConfig
from diffusion_policy_ros.control.pairing import GRIPPER_HALF, MOTION, StampPairing
from diffusion_policy_ros.datatypes import Chunk, Command, NS_PER_S, Status, to_ns
from diffusion_policy_ros.nodes.diagnostics import Diagnostics, OK, Report, WARN
from diffusion_policy_ros.nodes.guard import Guard
from diffusion_policy_ros.nodes.messages import diagnostics_message
from diffusion_policy_ros.nodes.parameters import declare
from diffusion_policy_ros.nodes.qos import (
    input_qos, INPUT_RELIABILITY, LATCHED, READINGS, RELIABLE,
)
from diffusion_policy_ros.nodes.resources import find
from diffusion_policy_ros.nodes.services import add_trigger, log_outcome
from diffusion_policy_ros.nodes.spin import run
from diffusion_policy_ros.nodes.target_output import other_publishers, TargetOutput

FINE = (Status.DISABLED, Status.NO_CHUNK, Status.STARTING, Status.STOPPING, Status.TRACKING,
        Status.TELEOP)
WAITING = (Status.NO_CHUNK, Status.NO_POSE)
SILENCE_S = 0.2
"""A node that ends, and has sent nothing at the ticks of so long, has nothing to send."""
PATIENCE_NS = 2 * NS_PER_S
"""How long there may be no /clock at the start."""
RIVALS_EVERY_NS = NS_PER_S // 20
"""How often the graph is asked for a second publisher."""
UNKNOWN = '_NODE_NAME_UNKNOWN_'
RIVALS = ((Status.CONFLICT, ('target_pose', 'target_gripper'), 0, 'nobody but this node'),
          (Status.TWO_POLICIES, ('ee_trajectory', 'teleop_pose'), 1, 'one node'))
"""What it is called when more other nodes than allowed publish a topic."""


@dataclass(frozen=True)
class ChunkExecutorNodeConfig(ExecutorConfig):
    """The core's parameters, and what the node itself needs."""

    arm: str = field(default='', metadata={
        'description': "The arm's YAML: a path, or one inside the package's config folder. It "
                       'must be given. Without limits in it nothing is moved.'})
    frame_prefix: str = field(default='', metadata={
        'description': "Put in front of the arm's base_frame, for the second of two arms."})
    input_reliability: str = field(default='best_effort', metadata={
        'description': 'QoS of the subscription to ee_pose; best_effort reads every publisher. '
                       'In lockstep it is reliable.', 'choices': INPUT_RELIABILITY})


class ChunkExecutorNode(Node):
    """Turns chunks into a safe stream of targets; it alone publishes target_*."""

    def __init__(self) -> None:
        super().__init__('chunk_executor')
        config = declare(self, ChunkExecutorNodeConfig)
        arm = load_arm(find(_given(config.arm)))
        self._arm = replace(arm, base_frame=config.frame_prefix + arm.base_frame)
        self.longest_stop_s = 0.0 if arm.limits is None else arm.limits.longest_stop_s
        self._has_gripper = self._arm.gripper.type != 'none'
        self._core = ChunkExecutor(config, self._arm, self.get_parameter('use_sim_time').value)
        self._chunk_halves, self._teleop_halves = StampPairing(), StampPairing()
        self._output = TargetOutput(self, self._arm.gripper)
        self._guard = Guard(self.get_logger().warning)
        self._lockstep, self._tick_ns = config.lockstep, 0
        self._pose_timeout_ns = to_ns(config.pose_timeout_s)
        self._status = self._logged = self._core.status
        self._rivals: list[str] = []
        self._conflict: Status | None = None
        self._started_ns, self._looked_ns = time.monotonic_ns(), 0  # steady clock
        self._last: Command | None = None
        self._ending = self._at_rest = False
        self._ticks_of_silence = math.ceil(SILENCE_S * config.command_rate_hz)
        self._silent_ticks = 0
        self._subscribe(config)
        for name in ('enable', 'disable', 'reset', 'halt', 'clear_halt'):
            add_trigger(self, f'~/{name}', getattr(self, f'_{name}'))
        self._diagnostics = Diagnostics(self, self._report)
        self._said = self.create_publisher(DiagnosticArray, '~/status', LATCHED)
        self._said_status: Status | None = None
        self.create_timer(1.0 / config.command_rate_hz, self._tick,
                          clock=Clock(clock_type=ClockType.STEADY_TIME))

    def finish(self) -> bool:
        """Brake; return whether the arm was told to stand still, or nothing is to be told."""
        if not self._ending:
            self._ending, self._at_rest = True, False
            self._silent_ticks = 0
            self._core.halt()
            self._tick()
        # Counted by ticks: time goes on while a busy machine stops this process.
        silent = self._silent_ticks > self._ticks_of_silence
        finished = self._lockstep or self._at_rest or silent
        if finished:
            self._output.flush()
        return finished

    # Inputs

    def _subscribe(self, config: ChunkExecutorNodeConfig) -> None:
        def listen(kind: type, topic: str, callback: Callable[[Any], None],
                   qos: QoSProfile = RELIABLE) -> None:
            self.create_subscription(kind, topic, self._guard(topic, callback), qos)

        listen(PoseStamped, 'ee_pose', self._on_pose,
               READINGS if config.lockstep else input_qos(config.input_reliability))
        listen(MultiDOFJointTrajectory, 'ee_trajectory',
               partial(self._on_chunk_half, 'ee_trajectory', MOTION, readings.motion_half))
        listen(PoseStamped, 'teleop_pose', partial(self._on_teleop_half, MOTION))
        if self._has_gripper:
            listen(JointTrajectory, 'gripper_trajectory', partial(
                self._on_chunk_half, 'gripper_trajectory', GRIPPER_HALF, readings.gripper_half))
            listen(JointState, 'teleop_gripper', partial(self._on_teleop_half, GRIPPER_HALF))

    def _on_pose(self, msg: PoseStamped) -> None:
        observation = readings.pose_observation(msg)
        answered = self._last is not None and self._last.stamp_ns == observation.stamp_ns
        self._say_refused('ee_pose', self._core.push_pose(observation))
        self._refuse_skewed(observation.stamp_ns)
        self._tick_ns = observation.stamp_ns
        self._tick_in_lockstep()
        if self._lockstep and answered and self._core.enabled:
            # The tick is shown again: its answer was sent before its readers were found.
            self._output.send(self._last)

    def _refuse_skewed(self, stamp_ns: int) -> None:
        """Count and name a clock that isn't ours: such a pose is never fresh."""
        now_ns = self._now_ns()
        late_ns = now_ns - stamp_ns
        if now_ns and not self._lockstep and abs(late_ns) > self._pose_timeout_ns:
            self._guard.refuse('ee_pose', f'stamp: {late_ns / NS_PER_S:.3f} s before now, '
                               'expected within pose_timeout_s')

    def _on_chunk_half(self, topic: str, half: str, convert: Callable[[Any], Any],
                       msg: MultiDOFJointTrajectory | JointTrajectory) -> None:
        stamp_ns = readings.stamp_ns(msg.header)
        try:
            chunk = self._chunk(half, stamp_ns, convert(msg))
        except ValueError as error:
            self._say_refused(topic, self._core.refuse_chunk(stamp_ns, str(error)))
        else:
            if chunk is None:
                return
            problem = self._core.push_chunk(chunk, self._now_ns(), time.monotonic_ns())
            self._say_refused('ee_trajectory', problem)
        self._tick_in_lockstep()

    def _chunk(self, half: str, stamp_ns: int,
               value: Chunk | readings.GripperHalf) -> Chunk | None:
        if not self._has_gripper:
            return value
        pair = self._chunk_halves.push(half, stamp_ns, value)
        return None if pair is None else readings.join_chunk(*pair)

    def _on_teleop_half(self, half: str, msg: PoseStamped | JointState) -> None:
        pair = (msg, None)
        if self._has_gripper:
            pair = self._teleop_halves.push(half, readings.stamp_ns(msg.header), msg)
        if pair is not None:
            problem = self._core.push_teleop(readings.command_from(*pair), self._now_ns(),
                                             time.monotonic_ns())
            self._say_refused('teleop_pose', problem)
            self._tick_in_lockstep()

    # From chunks to a command

    def _now_ns(self) -> int:
        return self._tick_ns if self._lockstep else self.get_clock().now().nanoseconds

    def _tick_in_lockstep(self) -> None:
        if self._lockstep:
            self._tick()

    def _tick(self) -> None:
        self._silent_ticks += 1
        now_ns = self._now_ns()
        if not now_ns:
            if not self._lockstep and time.monotonic_ns() - self._started_ns > PATIENCE_NS:
                self._note(Status.NO_TIME)
            return
        self._look_for_rivals()
        command, status = self._core.step(now_ns, time.monotonic_ns())
        if command is not None:
            self._send(command)
        self._say(status, now_ns)
        self._note(status)

    def _say(self, status: Status, now_ns: int) -> None:
        """Publish a status when it begins, for recordings: who led the arm, and when."""
        waits = self._lockstep and status in WAITING
        if status != self._said_status and not waits:
            self._said_status = status
            self._said.publish(diagnostics_message(
                self.get_fully_qualified_name(), OK if status in FINE else WARN, status.value,
                {'status': status.name}, now_ns))

    def _look_for_rivals(self) -> None:
        steady_ns = time.monotonic_ns()
        if steady_ns - self._looked_ns < RIVALS_EVERY_NS:
            return
        self._looked_ns = steady_ns
        conflict, rivals = None, set()
        for status, topics, n_allowed, expected in RIVALS:
            for topic in topics:
                names = other_publishers(self, topic)
                if n_allowed:  # of a killed node the graph keeps publishers for a while
                    names = [name for name in names if not name.endswith(UNKNOWN)]
                if len(names) > n_allowed:
                    conflict = conflict or status
                    rivals.update(names)
                    self._guard.refuse(topic, f'second publisher: {", ".join(names)}, expected '
                                       f'{expected}')
        self._core.conflict(conflict)
        if self._conflict == Status.CONFLICT != conflict:
            self._output.forget()  # the rival may have moved the hand
        self._conflict, self._rivals = conflict, sorted(rivals)

    def _send(self, command: Command) -> None:
        last, self._last = self._last, command
        self._at_rest = last is not None and bool(
            np.array_equal(last.position, command.position)
            and np.array_equal(last.quaternion, command.quaternion))
        self._output.send(command)
        self._silent_ticks = 0

    # Services and reports

    def _enable(self) -> str:
        if self._arm.limits is None:
            raise ValueError(Status.NO_LIMITS.value)
        if not self._core.enabled:
            self._output.forget()
        self._core.enable()
        blocked = self._core.blocked
        return 'enabled' if blocked is None else f'enabled, but not yet moved: {blocked.value}'

    def _disable(self) -> str:
        self._core.disable()
        return 'disabled: nothing is sent once the arm stands'

    def _reset(self) -> str:
        self._core.reset()
        self._chunk_halves.reset()
        self._teleop_halves.reset()
        self._output.forget()
        self._tick_ns = 0
        return 'a new episode begins'

    def _halt(self) -> str:
        self._core.halt()
        return 'halted until ~/clear_halt'

    def _clear_halt(self) -> str:
        self._core.clear_halt()
        self._output.forget()  # somebody may have moved the hand meanwhile
        if self._rivals:
            return f'no longer halted by ~/halt, but by {", ".join(self._rivals)}'
        return 'no longer halted'

    def _say_refused(self, topic: str, problem: str | None) -> None:
        """Log what the core has refused and counted."""
        if problem is not None:
            self._guard.refuse(topic, problem, self._core.refused[problem.partition(':')[0]])

    def _note(self, status: Status) -> None:
        """Log a status when it begins, each at most every 5 s; the present one late, not never."""
        # In lockstep a chunk is waited for at every other tick; HELD comes if that takes long.
        waits = self._lockstep and status in WAITING
        if self._ending:
            return
        if not waits:
            self._status = status
        if self._status != self._logged and self._guard.due(self._status.name):
            self._logged = self._status
            log_outcome(self, self._status in FINE, self._status.value)
            self._diagnostics.publish()

    def _report(self) -> Report:
        refused = self._core.refused + self._guard.refused
        values = {
            'status': self._status.name,
            'commands': self._output.n_sent,
            'chunk_halves_dropped': self._chunk_halves.dropped,
            'other_publishers': ', '.join(self._rivals),
            **{f'limited {name}': count for name, count in self._core.limits_acted.items()},
            **{f'refused {reason}': count for reason, count in refused.items()}}
        level = OK if self._status in FINE and not self._guard.recent else WARN
        return level, self._status.value, values


def _given(arm: str) -> str:
    """Return the parameter; raises where it is empty: nobody's limits are right for every arm."""
    if not arm:
        raise ValueError("arm: not set, expected the path of the arm's YAML, such as "
                         'config/arms/example.yaml')
    return arm


def main() -> int:
    """Run the node."""
    return run(ChunkExecutorNode)

"""A gamepad or SpaceMouse to teleop targets, through the executor and its limits."""

from __future__ import annotations

from dataclasses import dataclass, field
import sys
import time

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from sensor_msgs.msg import JointState, Joy
from std_srvs.srv import SetBool, Trigger

from diffusion_policy_ros.control.jog import Jog, JogConfig
from diffusion_policy_ros.control.readings import executor_status, gripper_target, pose_observation
from diffusion_policy_ros.datatypes import NS_PER_S, Observation, Status, to_ns
from diffusion_policy_ros.nodes import spin
from diffusion_policy_ros.nodes.diagnostics import Diagnostics, OK, Report, WARN
from diffusion_policy_ros.nodes.guard import Guard
from diffusion_policy_ros.nodes.messages import gripper_target_message, pose_message
from diffusion_policy_ros.nodes.parameters import declare
from diffusion_policy_ros.nodes.qos import input_qos, LATCHED, RELIABLE
from diffusion_policy_ros.nodes.services import log_outcome

RECORDER = 'demo_recorder'
AWAY = {status.name for status in (
    Status.DISABLED, Status.HALTED, Status.ASTRAY, Status.CONFLICT)}
"""What the executor says where somebody else may move the hand."""
UNTOLD = ('The gripper was told nothing yet, so an arm that has one waits: gripper_button closes '
          'it and begins.')


@dataclass(frozen=True)
class JoyTeleopConfig(JogConfig):
    """The core's parameters, and what the node itself needs."""

    rate_hz: float = field(default=50.0, metadata={
        'description': 'Targets a second while the dead-man is held.', 'unit': 'Hz', 'min': 1.0,
        'max': 1000.0})
    joy_timeout_s: float = field(default=0.5, metadata={
        'description': 'Silence of the device, on the steady clock, that counts as letting go; '
                       'its driver must repeat a state that does not change.',
        'unit': 's', 'min': 0.02, 'max': 10.0})
    pose_timeout_s: float = field(default=0.5, metadata={
        'description': 'Silence of ee_pose, on the steady clock, that counts as letting go; of '
                       'target_pose, after which a press begins at the measured pose.',
        'unit': 's', 'min': 0.02, 'max': 10.0})
    start_button: int = field(default=7, metadata={
        'description': "Calls demo_recorder's ~/start; -1 for none.", 'min': -1})
    save_button: int = field(default=3, metadata={
        'description': "Calls demo_recorder's ~/save as a success; -1 for none.", 'min': -1})
    failure_button: int = field(default=2, metadata={
        'description': "Calls demo_recorder's ~/save as a failure; -1 for none.", 'min': -1})
    discard_button: int = field(default=6, metadata={
        'description': "Calls demo_recorder's ~/discard; -1 for none.", 'min': -1})


class JoyTeleop(Node):
    """
    Sends targets while the dead-man is held, and the recorder's orders when asked to.

    The gripper goes on as target_gripper last told it. Before anything was told only poses are
    sent, which the executor of an arm with a gripper does not follow: gripper_state says nothing
    without the arm's YAML, and a guess could open a hand that holds something. The first press of
    gripper_button then closes the hand and lets the arm follow. What was told before somebody
    else may have moved the hand counts as nothing, unless the executor tells it still.
    """

    def __init__(self) -> None:
        super().__init__('joy_teleop')
        self._config = config = declare(self, JoyTeleopConfig)
        self._jog = Jog(config)
        self._pose: Observation | None = None
        self._commanded: np.ndarray | None = None
        self._pose_ns = self._commanded_ns = self._joy_ns = self._step_ns = 0  # steady clock
        self._n_targets = 0
        self._away = False
        self._guard = Guard(self.get_logger().warning)
        self._motion = self.create_publisher(PoseStamped, 'teleop_pose', RELIABLE)
        self._gripper = self.create_publisher(JointState, 'teleop_gripper', RELIABLE)
        self.create_subscription(Joy, 'joy', self._guard('joy', self._on_joy), 10)
        self.create_subscription(PoseStamped, 'ee_pose', self._guard('ee_pose', self._on_pose),
                                 input_qos('best_effort'))
        self.create_subscription(PoseStamped, 'target_pose',
                                 self._guard('target_pose', self._on_commanded), RELIABLE)
        self.create_subscription(JointState, 'target_gripper',
                                 self._guard('target_gripper', self._on_gripper), RELIABLE)
        # A hand that is told on a change alone may have been told before this node was there.
        self.create_subscription(
            JointState, 'target_gripper', self._guard('target_gripper', self._on_latched), LATCHED,
            event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False))
        self.create_subscription(DiagnosticArray, 'chunk_executor/status', self._guard(
            'chunk_executor/status', self._on_status), LATCHED)
        trigger = {name: self.create_client(Trigger, f'{RECORDER}/{name}')
                   for name in ('start', 'discard')}
        save = self.create_client(SetBool, f'{RECORDER}/save')
        self._orders = {
            config.start_button: ('start', trigger['start'], Trigger.Request()),
            config.save_button: ('save', save, SetBool.Request(data=True)),
            config.failure_button: ('save as a failure', save, SetBool.Request(data=False)),
            config.discard_button: ('discard', trigger['discard'], Trigger.Request())}
        self._diagnostics = Diagnostics(self, self._report)
        self.create_timer(1.0 / config.rate_hz, self._tick,
                          clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _on_joy(self, msg: Joy) -> None:
        anew = self._jog.read(msg.axes, msg.buttons)
        self._joy_ns = time.monotonic_ns()
        for button in anew:
            if button in self._orders:
                self._order(*self._orders[button])

    def _on_pose(self, msg: PoseStamped) -> None:
        self._pose, self._pose_ns = pose_observation(msg), time.monotonic_ns()

    def _on_commanded(self, msg: PoseStamped) -> None:
        self._commanded, self._commanded_ns = pose_observation(msg).value, time.monotonic_ns()

    def _on_gripper(self, msg: JointState) -> None:
        effort = gripper_target(msg)
        if not self._away:  # the arm may still brake
            self._jog.told(effort)

    def _on_latched(self, msg: JointState) -> None:
        """Take over what the hand was told last; what it is told from then on is heard twice."""
        if self._jog.effort is None:
            self._on_gripper(msg)

    def _on_status(self, msg: DiagnosticArray) -> None:
        self._away = executor_status(msg) in AWAY
        if self._away:
            self._jog.forget()

    def _tick(self) -> None:
        now_ns, config = time.monotonic_ns(), self._config
        elapsed_s = min((now_ns - self._step_ns) / NS_PER_S, 2.0 / config.rate_hz)
        self._step_ns = now_ns
        silent = self._silent(now_ns)
        if silent is not None:
            self._release(silent)
            return
        is_led = now_ns - self._commanded_ns <= to_ns(config.pose_timeout_s)
        target = self._jog.step(self._pose.value, elapsed_s, self._commanded if is_led else None)
        if target is None:
            return
        stamp_ns = self.get_clock().now().nanoseconds
        if self._jog.effort is not None:
            self._gripper.publish(gripper_target_message(self._jog.effort, stamp_ns))
        else:
            self.get_logger().warning(UNTOLD, once=True)
        self._motion.publish(pose_message(*target, stamp_ns, self._pose.frame_id))
        self._n_targets += 1

    def _silent(self, now_ns: int) -> str | None:
        """Return the topic that has been silent for too long."""
        if now_ns - self._joy_ns > to_ns(self._config.joy_timeout_s):
            return 'joy'
        return 'ee_pose' if now_ns - self._pose_ns > to_ns(self._config.pose_timeout_s) else None

    def _release(self, silent: str) -> None:
        if self._jog.held:
            self._guard.say(f'{silent} silent', f'{silent} is silent: let go of the dead-man and '
                            'press it anew', 1)
        self._jog.release()

    def _order(self, name: str, client: object, request: object) -> None:
        """Call the recorder, and log what it says when it answers."""
        if not client.service_is_ready():
            self._guard.refuse(RECORDER, f'{name}: there is no recorder')
            return

        def say(future: object) -> None:
            answer = future.result()
            log_outcome(self, answer.success, f'{name}: {answer.message}')

        client.call_async(request).add_done_callback(say)

    def _report(self) -> Report:
        effort = self._jog.effort
        gripper = 'unknown' if effort is None else 'closed' if effort > 0 else 'open'
        values = {'held': self._jog.held, 'targets': self._n_targets, 'gripper': gripper,
                  **{f'refused {key}': count for key, count in self._guard.refused.items()}}
        if not self._joy_ns:
            return WARN, 'Waiting for joy.', values
        if self._pose is None:
            return WARN, 'Waiting for the measured ee_pose.', values
        if not self._jog.held:
            return OK, 'Ready: press the dead-man and hold it.', values
        return OK, UNTOLD if effort is None else 'Leading.', values


def main() -> int:
    """Run the node."""
    return spin.run(JoyTeleop)


if __name__ == '__main__':
    sys.exit(main())

"""A gamepad leads the simulated arm through the executor, and calls the recorder."""

from __future__ import annotations

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
import numpy as np
import pytest
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState, Joy
from std_srvs.srv import Trigger

from diffusion_policy_ros.control import readings
from diffusion_policy_ros.nodes import messages
from diffusion_policy_ros.nodes.bringup import ARM
from diffusion_policy_ros.nodes.qos import LATCHED

HELD, FREE = [0, 0, 0, 0, 0, 1, 0, 0], [0] * 8
REST = [0.0] * 6
FORWARD = [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
# A busy machine's pause is no silence.
PATIENT = {'joy_timeout_s': 3.0, 'pose_timeout_s': 3.0}
TINY = {'image_height': 8, 'image_width': 8, 'image_every': 10_000}


@pytest.fixture(scope='module')
def processes(start_once):
    """Start arm, executor, teleoperator and recorder as four processes, in real time."""
    sim = {'use_sim_time': True}
    return {
        'metaworld_bridge': start_once('metaworld_bridge_node', 'metaworld_bridge', {
            'task': 'reach-v3', 'mode': 'realtime', 'real_time_factor': 1.0, **TINY}),
        'chunk_executor': start_once('chunk_executor_node', 'chunk_executor', {
            **sim, 'arm': ARM, 'enable_on_start': True}),
        'joy_teleop': start_once('joy_teleop_node', 'joy_teleop', {
            **sim, **PATIENT, 'linear_scale': [0.2, 0.2, 0.2]}),
        'demo_recorder': start_once('demo_recorder_node', 'demo_recorder', {
            **sim, 'cameras': ['nowhere']})}


class Pad:
    """A gamepad whose state is repeated 50 times a second."""

    def __init__(self, probe):
        self.probe, self.state, self.n_sent = probe, (REST, FREE), 0
        self.poses = probe.collect(PoseStamped, 'ee_pose', 10)
        self.targets = probe.collect(PoseStamped, 'teleop_pose', 1000)
        self.grippers = probe.collect(JointState, 'target_gripper', 1000)
        self.said = probe.collect(DiagnosticArray, 'chunk_executor/status', LATCHED)
        self._joy = probe.publisher(Joy, 'joy')
        self.timer = probe.node.create_timer(0.02, self._send)

    def _send(self):
        self._joy.publish(Joy(axes=self.state[0], buttons=self.state[1]))
        self.n_sent += 1

    @property
    def x(self):
        return self.poses[-1].pose.position.x

    @property
    def leads(self):
        return bool(self.said) and readings.executor_status(self.said[-1]) == 'TELEOP'

    def press(self, *buttons):
        """Return the state of the buttons with the dead-man and some others down."""
        return [int(i == 5 or i in buttons) for i in range(8)]

    def lead(self):
        """Take the lead, with the gripper's button: the gripper may have been told nothing yet."""
        def leads():
            # Anew every 2 s: a press before it is found, or while poses stall, is lost.
            self.state = REST, FREE if self.n_sent % 100 < 5 else self.press(0)
            return self.leads

        self.probe.wait(leads, 'the lead')


@pytest.fixture()
def pad(processes, probe):
    """Return the gamepad, at an episode's start."""
    pad = Pad(probe)
    probe.collect(Clock, '/clock', 10)
    for node in ('chunk_executor', 'metaworld_bridge'):
        assert probe.call(Trigger, f'{node}/reset').success
    probe.wait(lambda: pad.poses, 'the arm')
    yield pad
    assert all(process.exit_code is None for process in processes.values())


def test_the_arm_goes_where_the_stick_goes_while_the_dead_man_is_held(pad):
    probe, start = pad.probe, pad.x
    pad.state = FORWARD, FREE
    probe.wait(lambda: len(pad.poses) > 40, 'half a second')
    assert not pad.targets and abs(pad.x - start) < 5e-3  # it settles
    pad.lead()
    pad.state = FORWARD, HELD
    probe.wait(lambda: pad.x > start + 0.05, 'the arm on its way')
    assert pad.leads
    frames = {target.header.frame_id for target in pad.targets}
    assert frames == {pad.poses[-1].header.frame_id}
    pad.state = FORWARD, FREE
    probe.wait(lambda: not pad.leads, 'the end of the lead')
    sent = len(pad.targets)
    probe.wait(lambda: len(pad.poses) > 400, 'some seconds')
    assert len(pad.targets) == sent


def test_a_device_that_falls_silent_lets_go(pad):
    pad.lead()
    pad.timer.cancel()
    pad.probe.wait(lambda: not pad.leads, 'the end of the lead')


@pytest.mark.slow
def test_a_press_closes_the_gripper_or_opens_it(pad):
    pad.lead()
    pad.probe.wait(lambda: pad.grippers, 'a target')
    effort = readings.gripper_target(pad.grippers[-1])
    assert abs(effort) == 1.0
    pad.state = REST, HELD
    sent = len(pad.grippers)
    pad.probe.wait(lambda: len(pad.grippers) > sent + 5, 'more targets')
    pad.state = REST, pad.press(0)
    pad.probe.wait(lambda: readings.gripper_target(pad.grippers[-1]) == -effort, 'the other end')
    pad.state = REST, HELD
    sent = len(pad.grippers)
    pad.probe.wait(lambda: len(pad.grippers) > sent + 5, 'more targets')
    assert readings.gripper_target(pad.grippers[-1]) == -effort


@pytest.mark.slow
def test_buttons_call_the_recorder_and_its_answer_is_logged(pad, processes):
    log = processes['joy_teleop']
    pad.state = REST, [0, 0, 0, 0, 0, 0, 0, 1]
    pad.probe.wait(lambda: 'start: /nowhere/image_raw: nobody publishes that' in log.log,
                   'the answer')
    pad.state = REST, [0, 0, 0, 1, 0, 0, 0, 0]
    pad.probe.wait(lambda: 'save: nothing is recorded' in log.log, 'the answer')


@pytest.mark.slow
def test_a_device_without_the_buttons_is_named_and_the_node_lives(pad, processes):
    pad.state = REST, [1, 0]
    pad.probe.wait(lambda: 'joy refused: buttons: 2 of them, expected more than 5'
                   in processes['joy_teleop'].log, 'the warning')


class Desk:
    """The teleoperator alone: the test plays gamepad, arm and executor, in a namespace."""

    def __init__(self, probe):
        self.probe, self.state, self.told, self.n_sent = probe, (REST, FREE), None, 0
        self.targets = probe.collect(PoseStamped, 'desk/teleop_pose', 1000)
        self.grippers = probe.collect(JointState, 'desk/teleop_gripper', 1000)
        self._joy = probe.publisher(Joy, 'desk/joy')
        self._pose = probe.publisher(PoseStamped, 'desk/ee_pose')
        self._gripper = probe.publisher(JointState, 'desk/target_gripper')
        self._status = probe.publisher(DiagnosticArray, 'desk/chunk_executor/status', LATCHED)
        probe.node.create_timer(0.02, self._send)

    def _send(self):
        stamp_ns = self.probe.node.get_clock().now().nanoseconds
        self._pose.publish(messages.pose_message(np.zeros(3), np.array([0, 0, 0, 1.0]), stamp_ns,
                                                 'base'))
        if self.told is not None:
            self._gripper.publish(messages.gripper_target_message(self.told, stamp_ns))
        if self.state is not None:
            self._joy.publish(Joy(axes=self.state[0], buttons=self.state[1]))
            self.n_sent += 1

    def says(self, key, value):
        """Wait until the teleoperator reports this."""
        self.probe.report('/desk/desk_teleop', lambda values: values[key] == value)

    def is_now(self, status):
        """Say as the executor how the arm stands."""
        self._status.publish(messages.diagnostics_message(
            '/desk/chunk_executor', b'\0', 'so it is', {'status': status}, 1))

    def wait(self, more=10):
        """Wait until so many more messages of the gamepad were sent."""
        before = self.n_sent
        self.probe.wait(lambda: self.n_sent >= before + more, 'messages')

    def press_anew(self):
        """Let go of the dead-man, press it again, wait for targets and hold it."""
        self.state = REST, FREE
        self.says('held', 'False')
        del self.targets[:], self.grippers[:]

        def leads():
            # Anew every 2 s: what is down in the first message that a node hears is no press.
            self.state = REST, FREE if self.n_sent % 100 < 5 else HELD
            return len(self.targets) > 5

        self.probe.wait(leads, 'targets')
        self.state = REST, HELD
        self.wait()  # or a refused state that follows comes between letting go and a press


@pytest.fixture()
def desk(start, probe):
    """Return the teleoperator, to whom nobody has said anything yet."""
    process = start('joy_teleop_node', 'desk_teleop', PATIENT, ('-r', '__ns:=/desk'))
    yield Desk(probe)
    assert process.exit_code is None


def test_a_takeover_sends_what_the_gripper_was_last_told_and_nothing_before(desk):
    desk.press_anew()
    assert not desk.grippers
    desk.says('gripper', 'unknown')
    desk.state, desk.told = (REST, FREE), 0.8
    desk.says('gripper', 'closed')
    desk.press_anew()
    desk.wait()
    assert {readings.gripper_target(msg) for msg in desk.grippers} == {0.8}
    desk.told = -0.8  # by the policy, just before the takeover
    desk.probe.wait(lambda: readings.gripper_target(desk.grippers[-1]) == -0.8, 'that, too')
    desk.state = REST, FREE
    desk.says('gripper', 'open')


def test_a_hand_that_somebody_may_have_moved_is_not_told_its_old_effort(desk):
    desk.told = -0.8
    desk.says('gripper', 'open')
    desk.is_now('DISABLED')
    desk.says('gripper', 'unknown')  # though the arm that brakes is told it still
    desk.told = None
    desk.wait(50)
    desk.is_now('NO_CHUNK')
    desk.press_anew()
    assert not desk.grippers
    desk.told = -0.8
    desk.says('gripper', 'open')
    for status in ('HALTED', 'ASTRAY', 'CONFLICT'):
        desk.is_now(status)
        desk.says('gripper', 'unknown')
        desk.is_now('TRACKING')
        desk.says('gripper', 'open')  # it is told so still


def test_who_starts_late_hears_what_the_hand_was_told_once(start, probe):
    hand = probe.node.create_publisher(JointState, 'desk/target_gripper', LATCHED)
    hand.publish(messages.gripper_target_message(0.8, 1))
    start('joy_teleop_node', 'desk_teleop', PATIENT, ('-r', '__ns:=/desk'))
    desk = Desk(probe)
    desk.says('gripper', 'closed')
    desk.press_anew()
    assert {readings.gripper_target(msg) for msg in desk.grippers} == {0.8}


def test_neither_refused_messages_nor_an_end_of_silence_keep_up_the_lead(desk):
    for state in ((REST, [1, 0]), None):
        desk.press_anew()
        desk.state = state
        desk.says('held', 'False')
        desk.state = REST, HELD
        del desk.targets[:]
        desk.wait()
        desk.says('held', 'False')
        assert not desk.targets
    desk.press_anew()

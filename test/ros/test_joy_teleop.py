"""A gamepad leads the simulated arm through the executor, and calls the recorder."""

from __future__ import annotations

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
import pytest
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState, Joy
from std_srvs.srv import Trigger

from diffusion_policy_ros.control import readings
from diffusion_policy_ros.nodes.qos import LATCHED

HELD, FREE = [0, 0, 0, 0, 0, 1, 0, 0], [0] * 8
REST = [0.0] * 6
FORWARD = [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
TINY = {'image_height': 8, 'image_width': 8, 'image_every': 10_000}


@pytest.fixture(scope='module')
def processes(start_once):
    """Start arm, executor, teleoperator and recorder as four processes, in real time."""
    sim = {'use_sim_time': True}
    return {
        'metaworld_bridge': start_once('metaworld_bridge_node', 'metaworld_bridge', {
            'task': 'reach-v3', 'mode': 'realtime', 'real_time_factor': 1.0, **TINY}),
        'chunk_executor': start_once('chunk_executor_node', 'chunk_executor', {
            **sim, 'enable_on_start': True}),
        'joy_teleop': start_once('joy_teleop_node', 'joy_teleop', {
            **sim, 'linear_scale': [0.2, 0.2, 0.2]}),
        'demo_recorder': start_once('demo_recorder_node', 'demo_recorder', {
            **sim, 'cameras': ['nowhere']})}


class Pad:
    """A gamepad whose state is repeated 50 times a second."""

    def __init__(self, probe):
        self.probe, self.state = probe, (REST, FREE)
        self.poses = probe.collect(PoseStamped, 'ee_pose', 10)
        self.targets = probe.collect(PoseStamped, 'teleop_pose', 1000)
        self.grippers = probe.collect(JointState, 'target_gripper', 1000)
        self.said = probe.collect(DiagnosticArray, 'chunk_executor/status', LATCHED)
        self._joy = probe.publisher(Joy, 'joy')
        self.timer = probe.node.create_timer(0.02, self._send)

    def _send(self):
        self._joy.publish(Joy(axes=self.state[0], buttons=self.state[1]))

    @property
    def x(self):
        return self.poses[-1].pose.position.x

    @property
    def leads(self):
        return bool(self.said) and self.said[-1].status[0].values[0].value == 'TELEOP'

    def press(self, *buttons):
        """Return the state of the buttons with the dead-man and some others down."""
        return [int(i == 5 or i in buttons) for i in range(8)]


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
    pad.state = REST, HELD
    pad.probe.wait(lambda: pad.leads, 'the lead')
    pad.timer.cancel()
    pad.probe.wait(lambda: not pad.leads, 'the end of the lead')


@pytest.mark.slow
def test_a_press_closes_the_gripper(pad):
    pad.state = REST, HELD
    pad.probe.wait(lambda: pad.grippers, 'a target')
    pad.state = REST, pad.press(0)
    pad.probe.wait(lambda: readings.gripper_target(pad.grippers[-1]) == 1.0, 'a closed gripper')
    pad.state = REST, HELD
    sent = len(pad.grippers)
    pad.probe.wait(lambda: len(pad.grippers) > sent + 5, 'more targets')
    assert readings.gripper_target(pad.grippers[-1]) == 1.0


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

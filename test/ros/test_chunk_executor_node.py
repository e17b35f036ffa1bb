"""The executor as a process of its own, over DDS; the test plays arm, policy and teleoperator."""

from __future__ import annotations

from dataclasses import fields
import math
import re
import signal
import time

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped
import numpy as np
import pytest
from rcl_interfaces.srv import DescribeParameters
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, MultiDOFJointTrajectory
import yaml

from diffusion_policy_ros.control import readings
from diffusion_policy_ros.control.arm import GripperConfig
from diffusion_policy_ros.datatypes import Chunk, Command, NS_PER_S, Status
from diffusion_policy_ros.nodes import messages
from diffusion_policy_ros.nodes.chunk_executor_node import ChunkExecutorNodeConfig
from diffusion_policy_ros.nodes.qos import LATCHED
from diffusion_policy_ros.nodes.resources import config_folder
from diffusion_policy_ros.nodes.target_output import TargetOutput

DT_NS = 50_000_000
N_ACTION_STEPS = 4
HOME = np.array([0.0, 0.5, 0.2])
UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0])
LIMITS = {
    'workspace_min': [-1.0, -1.0, -1.0], 'workspace_max': [1.0, 1.0, 1.0], 'max_speed': 0.5,
    'max_acceleration': 2.0, 'max_angular_speed': 1.0, 'max_angular_acceleration': 10.0,
    'max_start_jump': 0.3, 'max_start_turn': 0.5, 'start_speed': 0.2, 'start_angular_speed': 0.2,
    'max_tracking_error': 0.1, 'max_tracking_turn': 0.5}
ARM = {'base_frame': 'base', 'ee_frame': 'hand', 'limits': LIMITS,
       'gripper': {'command_open': 0.08, 'command_closed': 0.0}}
TOLD_ONCE = {**ARM, 'gripper': {**ARM['gripper'], 'send_on_change': True}}
LOCKSTEP = {'lockstep': True, 'n_action_steps': N_ACTION_STEPS, 'dt_s': DT_NS / NS_PER_S,
            'enable_on_start': True}


class World:
    """An arm that goes where it is told, and those who tell the executor something."""

    def __init__(self, probe, has_gripper):
        self.probe, self.name = probe, '/chunk_executor'
        self.targets, self.sent = [], []
        self.pose_now = HOME.copy()
        for kind, topic in ((PoseStamped, 'target_pose'), (JointState, 'target_gripper')):
            probe.node.create_subscription(
                kind, topic, lambda msg, info: self._on_target(msg, info), 100)
        topics = {'ee_pose': PoseStamped, 'ee_trajectory': MultiDOFJointTrajectory,
                  'teleop_pose': PoseStamped}
        if has_gripper:
            topics |= {'gripper_trajectory': JointTrajectory, 'teleop_gripper': JointState}
        self._publishers = {
            topic: probe.publisher(kind, topic) for topic, kind in topics.items()}
        probe.meet(self.name)

    def _on_target(self, msg, info):
        self.sent.append((info['source_timestamp'], type(msg)))
        if isinstance(msg, PoseStamped):
            self.targets.append(readings.command_from(msg, None))
            self.pose_now = self.targets[-1].position

    @property
    def order(self):
        """Types of the targets' messages in the order in which they were sent."""
        return [kind for _, kind in sorted(self.sent, key=lambda item: item[0])]

    @property
    def told(self):
        """How often the gripper was told something."""
        return self.order.count(JointState)

    @property
    def now_ns(self):
        return self.probe.node.get_clock().now().nanoseconds

    def publish(self, topic, msg):
        self._publishers[topic].publish(msg)

    def measure(self, stamp_ns, position=None):
        """Publish the measured pose."""
        position = self.pose_now if position is None else position
        self.publish('ee_pose', messages.pose_message(position, UPRIGHT, stamp_ns, 'base'))
        return stamp_ns

    def predict(self, stamp_ns, position, gripper=0.5, frame_id='base', spoil=None):
        """Publish a chunk that stays at one position; `spoil` may change its motion half."""
        n_points = 7
        chunk = Chunk(stamp_ns, np.arange(n_points) * DT_NS, np.tile(position, (n_points, 1)),
                      None, np.full(n_points, gripper), frame_id)
        motion, effort = messages.chunk_messages(chunk)
        if spoil is not None:
            spoil(motion)
        self.publish('gripper_trajectory', effort)
        self.publish('ee_trajectory', motion)

    def teleoperate(self, stamp_ns, position):
        self.publish('teleop_gripper', messages.gripper_target_message(-1.0, stamp_ns))
        self.publish('teleop_pose', messages.pose_message(position, UPRIGHT, stamp_ns, 'base'))

    def move(self):
        """Let the arm publish where it is, at 50 Hz."""
        return self.probe.node.create_timer(0.02, lambda: self.measure(self.now_ns))

    def keep_predicting(self, position):
        """Let a policy say every Ta*dt that the arm should be at a position."""
        return self.probe.node.create_timer(
            N_ACTION_STEPS * DT_NS / NS_PER_S, lambda: self.predict(self.now_ns, position))

    def call(self, service):
        response = self.probe.call(Trigger, f'{self.name}/{service}')
        return response.success, response.message

    def wait(self, predicate, what):
        return self.probe.wait(predicate, what)

    def wait_for_target(self, stamp_ns):
        """Return the target of a tick."""
        self.wait(lambda: self.targets and self.targets[-1].stamp_ns == stamp_ns,
                  f'a target stamped {stamp_ns}')
        return self.targets[-1]

    def wait_for_status(self, *wanted):
        """Return the values of the newest report once its status is one of those wanted."""
        names = [status.name for status in wanted]
        return self.report(lambda values: values['status'] in names)

    def report(self, predicate):
        """Return the values of a report from now on that satisfies `predicate`."""
        return self.probe.report(self.name, predicate).values


@pytest.fixture()
def world(start, probe, tmp_path):
    """Return a function that starts an executor and returns its world."""
    def make(arm=ARM, **parameters):
        path = tmp_path / 'arm.yaml'
        path.write_text(yaml.safe_dump(arm))
        process = start('chunk_executor_node', 'chunk_executor', {
            'arm': str(path), **parameters})
        result = World(probe, has_gripper=arm['gripper'].get('type') != 'none')
        result.process = process
        return result
    return make


# In lockstep

def test_lockstep_answers_each_tick_once(world):
    world = world(**LOCKSTEP)
    t_ns = world.measure(NS_PER_S)
    world.probe.spin()
    assert not world.targets
    goal = HOME + [0.001, 0, 0]
    world.predict(t_ns, goal, gripper=0.25)
    world.wait_for_target(t_ns)
    for tick in range(1, N_ACTION_STEPS):
        t_ns = world.measure(NS_PER_S + tick * DT_NS)
        target = world.wait_for_target(t_ns)
    np.testing.assert_allclose(target.position, goal, atol=1e-12)
    assert [target.stamp_ns for target in world.targets] == [
        NS_PER_S + tick * DT_NS for tick in range(N_ACTION_STEPS)]
    world.wait(lambda: len(world.sent) == 2 * N_ACTION_STEPS, 'both halves')
    assert world.order == [JointState, PoseStamped] * N_ACTION_STEPS

    # The chunk answers no longer: the next tick waits for the next chunk, and says so if it must.
    t_ns = world.measure(NS_PER_S + N_ACTION_STEPS * DT_NS)
    world.wait_for_status(Status.HELD)
    assert len(world.targets) == N_ACTION_STEPS
    world.predict(t_ns, goal)
    world.wait_for_target(t_ns)
    assert world.wait_for_status(Status.TRACKING)['commands'] == '5'


def test_lockstep_answers_a_tick_again_that_is_shown_again(world):
    world = world(**LOCKSTEP)
    t_ns = world.measure(NS_PER_S)
    world.predict(t_ns, HOME)
    world.wait_for_target(t_ns)
    world.measure(NS_PER_S)
    world.wait(lambda: len(world.targets) == 2, 'the answer once more')
    first, again = world.targets
    assert first.stamp_ns == again.stamp_ns == t_ns
    np.testing.assert_array_equal(first.position, again.position)
    assert world.call('disable')[0]
    world.measure(NS_PER_S)
    world.measure(NS_PER_S + DT_NS)
    world.wait_for_status(Status.DISABLED)
    assert len(world.targets) == 2


def test_lockstep_answers_what_it_refuses_with_a_hold(world):
    world = world(**LOCKSTEP)

    def refuse_tick(tick, reason, **changes):
        t_ns = world.measure(NS_PER_S + tick * N_ACTION_STEPS * DT_NS)
        world.predict(t_ns, HOME, **changes)
        target = world.wait_for_target(t_ns)
        np.testing.assert_allclose(target.position, HOME, atol=1e-12)
        assert world.report(lambda values: values.get(f'refused {reason}') == '1')
        return t_ns

    def nan(motion):
        motion.points[2].transforms[0].translation.x = math.nan

    refuse_tick(0, 'position', spoil=nan)
    refuse_tick(1, 'frame', frame_id='camera')
    assert len(re.findall('ee_trajectory refused: position: .* has NaN', world.process.log)) == 1
    assert len(re.findall("ee_trajectory refused: frame: .*'camera'", world.process.log)) == 1

    assert world.call('halt') == (True, 'halted until ~/clear_halt')
    t_ns = world.measure(NS_PER_S + 3 * N_ACTION_STEPS * DT_NS)
    np.testing.assert_allclose(world.wait_for_target(t_ns).position, HOME, atol=1e-12)
    world.wait_for_status(Status.HALTED)
    assert world.call('clear_halt')[0]
    t_ns = world.measure(NS_PER_S + 4 * N_ACTION_STEPS * DT_NS)
    world.predict(t_ns, HOME)
    world.wait_for_target(t_ns)
    world.wait_for_status(Status.TRACKING, Status.STARTING)


def test_lockstep_follows_a_teleoperator_tick_by_tick(world):
    world = world(**LOCKSTEP)
    for tick in range(3):
        t_ns = world.measure(NS_PER_S + tick * DT_NS)
        world.teleoperate(t_ns, HOME + [0.001 * tick, 0, 0])
        world.wait_for_target(t_ns)
    np.testing.assert_allclose(world.pose_now, HOME + [0.002, 0, 0], atol=1e-12)
    world.wait_for_status(Status.TELEOP)


def test_a_reset_begins_at_the_measured_pose_and_refuses_older_chunks(world):
    world = world(**LOCKSTEP)
    t_ns = world.measure(NS_PER_S)
    world.predict(t_ns, HOME)
    world.wait_for_target(t_ns)
    assert world.call('reset') == (True, 'a new episode begins')
    t_ns = world.measure(3 * NS_PER_S, HOME + [0.1, 0, 0])
    world.predict(NS_PER_S, HOME)
    world.predict(t_ns, HOME + [0.1, 0, 0])
    np.testing.assert_allclose(world.wait_for_target(t_ns).position, HOME + [0.1, 0, 0],
                               atol=1e-12)
    assert world.report(lambda values: values.get('refused before reset') == '1')


def test_time_set_back_begins_anew_whatever_is_left_of_later_chunks(world):
    world = world(**LOCKSTEP)
    later = messages.chunk_messages(
        Chunk(1, np.array([0]), HOME[None], None, np.zeros(1), 'base'))[1]
    for second in range(91, 95):
        later.header = messages.to_header(second * NS_PER_S)
        world.publish('gripper_trajectory', later)
    t_ns = world.measure(90 * NS_PER_S)
    world.report(lambda values: True)
    t_ns = world.measure(NS_PER_S)
    world.predict(t_ns, HOME)
    world.wait_for_target(t_ns)


def test_an_arm_without_a_gripper_needs_one_topic(world):
    world = world(arm={**ARM, 'gripper': {'type': 'none'}}, **LOCKSTEP)
    t_ns = world.measure(NS_PER_S)
    chunk = Chunk(t_ns, np.array([0]), HOME[None], None, None, 'base')
    world.publish('ee_trajectory', messages.chunk_messages(chunk)[0])
    world.wait_for_target(t_ns)
    assert world.order == [PoseStamped]
    world.wait(lambda: world.probe.node.count_subscribers('gripper_trajectory') == 0,
               'an end of what earlier executors have announced')


# In realtime

def test_nothing_moves_before_enable(world):
    world = world()
    arm, policy = world.move(), world.keep_predicting(HOME + [0.05, 0, 0])
    world.wait_for_status(Status.DISABLED)
    assert not world.sent
    assert world.call('enable') == (True, 'enabled')
    world.wait(lambda: world.targets and world.pose_now[0] > 0.0499, 'the arm at its target')
    assert world.order[:2] == [JointState, PoseStamped]
    values = world.wait_for_status(Status.TRACKING)
    refused = {name for name in values if name.startswith('refused')}
    # A machine that stalls for a chunk's length.
    assert refused <= {'refused past', 'refused ee_pose stamp'}
    steps = np.diff([HOME, *(target.position for target in world.targets)], axis=0)
    stamps = np.diff([target.stamp_ns for target in world.targets]) / NS_PER_S
    speeds = steps[1:, 0] / stamps
    assert speeds.max() <= LIMITS['start_speed'] + 1e-6
    assert world.call('disable')[0]
    world.wait_for_status(Status.DISABLED)
    arm.cancel()
    policy.cancel()


def test_the_arm_is_held_when_the_policy_is_silent_and_goes_on_with_it(world):
    # Longer than a busy machine stalls, after which all would begin anew.
    world = world(enable_on_start=True, command_timeout_s=3.0, pose_timeout_s=3.0)
    world.move()
    policy = world.keep_predicting(HOME + [0.02, 0, 0])
    world.wait_for_status(Status.TRACKING)
    policy.cancel()
    world.wait_for_status(Status.STARVED, Status.HELD)
    values = world.wait_for_status(Status.HELD)
    n_commands = int(values['commands'])
    held = world.report(lambda values: int(values['commands']) > n_commands + 20)
    assert held['status'] == 'HELD'  # the hold is sent again and again, with fresh stamps
    assert world.targets[-1].stamp_ns > world.targets[-5].stamp_ns
    np.testing.assert_array_equal(world.targets[-1].position, world.targets[-5].position)
    world.keep_predicting(HOME + [0.04, 0, 0])
    world.wait(lambda: world.pose_now[0] > 0.0399, 'the arm at the next target')
    world.wait_for_status(Status.TRACKING)


def test_bad_messages_are_counted_and_named_once(world):
    world = world(enable_on_start=True)
    world.move()
    world.keep_predicting(HOME)
    world.wait_for_status(Status.TRACKING)
    nan = messages.pose_message(HOME, UPRIGHT, 1, 'base')
    nan.pose.position.z = math.nan
    for _ in range(5):
        world.publish('ee_pose', nan)
        world.predict(world.now_ns - 10 * NS_PER_S, HOME)
        world.predict(world.now_ns, HOME, frame_id='camera')
    values = world.report(lambda values: {'refused ee_pose position', 'refused out of order',
                                          'refused frame'} <= values.keys())
    assert values['status'] in ('STARTING', 'TRACKING', 'STARVED')
    for pattern in ('ee_pose refused: position', 'ee_trajectory refused: out of order',
                    'ee_trajectory refused: frame'):
        assert len(re.findall(pattern, world.process.log)) == 1, world.process.log
    assert world.process.exit_code is None


def test_a_second_publisher_stops_the_arm_until_it_is_gone(world):
    world = world(enable_on_start=True)
    world.move()
    world.keep_predicting(HOME)
    world.wait_for_status(Status.TRACKING)
    intruder = world.probe.node.create_publisher(PoseStamped, 'target_pose', 10)
    n_commands = world.wait_for_status(Status.CONFLICT)['commands']
    later = world.report(
        lambda values: int(values['refused target_pose second publisher']) > 20)
    assert later['commands'] == n_commands
    assert later['other_publishers'] == '/probe'
    # DDS may make a publisher known before its node's name.
    assert len(re.findall(r'target_pose refused: second publisher: \S+, expected nobody but',
                          world.process.log)) == 1
    assert world.call('halt')[0]
    world.pose_now = HOME + [0.0, 0.2, 0.0]      # the other node moves the arm
    time.sleep(0.3)
    assert world.report(lambda values: True)['commands'] == n_commands
    n_targets = len(world.targets)
    world.probe.node.destroy_publisher(intruder)
    assert world.call('clear_halt')[0]
    world.wait(lambda: len(world.targets) > n_targets, 'targets')
    np.testing.assert_allclose(world.targets[n_targets].position, HOME + [0.0, 0.2, 0.0],
                               atol=LIMITS['start_speed'] * 0.1)
    assert int(world.wait_for_status(Status.TRACKING)['commands']) > int(n_commands)


@pytest.mark.parametrize('kind, topic, status', [
    (JointState, 'target_gripper', Status.CONFLICT),
    (MultiDOFJointTrajectory, 'ee_trajectory', Status.TWO_POLICIES)])
def test_a_second_node_on_another_topic_is_noticed(world, kind, topic, status):
    world = world(enable_on_start=True)
    world.move()
    world.keep_predicting(HOME)
    world.wait_for_status(Status.TRACKING)
    other = Node('old_policy', context=world.probe.node.context)
    try:
        other.create_publisher(kind, topic, 10)
        assert '/old_policy' in world.wait_for_status(status)['other_publishers']
    finally:
        other.destroy_node()
    world.wait_for_status(Status.TRACKING)


def test_a_pose_in_another_frame_moves_nothing(world):
    world = world(enable_on_start=True, frame_prefix='left_')
    world.move()
    world.keep_predicting(HOME)
    world.report(lambda values: int(values.get('refused frame', 0)) > 10)
    assert "ee_pose refused: frame: ee_pose is in 'base', expected 'left_base'" in (
        world.process.log)
    assert world.targets == []


def test_halt_lasts_until_it_is_cleared(world):
    world = world(enable_on_start=True)
    world.move()
    world.keep_predicting(HOME)
    world.wait_for_status(Status.TRACKING)
    assert world.call('halt')[0]
    world.wait_for_status(Status.HALTED)
    assert world.call('enable')[0]
    world.wait_for_status(Status.HALTED)
    assert world.call('clear_halt') == (True, 'no longer halted')
    world.wait_for_status(Status.TRACKING)


def test_a_teleoperator_wins_over_the_policy(world):
    world = world(enable_on_start=True)
    said = world.probe.collect(DiagnosticArray, 'chunk_executor/status', LATCHED)
    world.move()
    world.keep_predicting(HOME)
    world.wait_for_status(Status.TRACKING)
    goal = HOME + [0, 0.03, 0]
    hand = world.probe.node.create_timer(0.03, lambda: world.teleoperate(world.now_ns, goal))
    world.wait(lambda: world.pose_now[1] > goal[1] - 1e-4, 'the arm where the person wants it')
    world.wait_for_status(Status.TELEOP)
    hand.cancel()
    world.wait(lambda: world.pose_now[1] < HOME[1] + 1e-4, 'the arm back with the policy')
    world.wait(lambda: readings.executor_status(said[-1]) == 'TRACKING', 'its lead')
    led = [readings.executor_status(msg) for msg in said]
    assert led.index('TRACKING') < led.index('TELEOP') < len(led) - 1 - led[::-1].index('TRACKING')
    stamps = [readings.stamp_ns(msg.header) for msg in said]
    assert stamps == sorted(stamps)


@pytest.mark.parametrize('number, stopped_s', [
    (signal.SIGINT, 0.0), (signal.SIGTERM, 0.3), (signal.SIGHUP, 0.0)])
def test_a_signal_brakes_first_and_a_hold_comes_last(world, number, stopped_s):
    world = world(enable_on_start=True)
    world.move()
    rest = world.keep_predicting(HOME)
    world.wait_for_status(Status.TRACKING)
    rest.cancel()
    ahead = [0.8 * LIMITS['max_start_jump'], 0, 0]  # of the arm, so that it may start anew
    world.probe.node.create_timer(
        0.1, lambda: world.predict(world.now_ns, world.pose_now + ahead))
    world.wait(lambda: world.pose_now[0] > 0.1, 'the arm on its way')
    world.process.signal(number)
    time.sleep(0.05)
    if stopped_s:  # as a busy machine does
        world.process.signal(signal.SIGSTOP)
        time.sleep(stopped_s)
        world.process.signal(signal.SIGCONT)
    world.process.signal(number)  # as newer `ros2 run` forwards what the terminal sent, too
    world.wait(lambda: world.process.exit_code is not None, 'the end')
    assert world.process.exit_code == 0
    end = time.monotonic() + 0.2
    world.wait(lambda: time.monotonic() > end, 'what is still on its way')
    position = np.array([target.position[0] for target in world.targets])
    stamps = np.array([target.stamp_ns for target in world.targets]) / NS_PER_S
    assert position[-1] == position[-2] < 0.8
    assert (np.diff(position) > -1e-9).all()
    speed = np.diff(position) / np.diff(stamps)
    slowing = np.diff(speed) / np.diff(stamps)[1:]
    assert slowing.min() > -2.0 * LIMITS['max_acceleration']
    assert 'Traceback' not in world.process.log


def test_without_a_clock_nothing_is_sent_and_the_reason_is_said(world):
    world = world(use_sim_time=True)
    world.move()
    world.keep_predicting(HOME)
    assert world.call('enable')[0]
    world.wait_for_status(Status.NO_TIME)
    assert Status.NO_TIME.value in world.process.log
    assert not world.sent


@pytest.mark.parametrize('enabled', [True, False])
def test_a_pose_of_another_clock_is_counted_and_named(world, enabled):
    world = world(enable_on_start=enabled)
    for _ in range(3):
        world.measure(world.now_ns - 10 * NS_PER_S)
    report = world.probe.report(
        world.name, lambda values: values.get('refused ee_pose stamp') == '3')
    assert report.level == DiagnosticStatus.WARN
    assert len(re.findall(r'ee_pose refused: stamp: 10\.\d+ s before now', world.process.log)) == 1
    assert not world.sent


def test_a_hand_is_told_again_after_a_halt(world):
    """Somebody may have opened it: the arm must not go on without what it held."""
    world = world(arm=TOLD_ONCE, enable_on_start=True)
    world.move()
    world.keep_predicting(HOME)
    world.wait_for_status(Status.TRACKING)
    world.wait(lambda: world.told, 'a gripper target')
    assert world.call('halt')[0]
    world.wait_for_status(Status.HALTED)
    before = world.told
    assert world.call('enable') == (
        True, f'enabled, but not yet moved: {Status.HALTED.value}')
    assert world.call('clear_halt')[0]
    world.wait_for_status(Status.TRACKING)
    world.wait(lambda: world.told > before, 'the gripper target again')


def test_a_hand_that_was_told_once_is_told_nothing_by_a_hold(world):
    world = world(arm=TOLD_ONCE, enable_on_start=True)
    world.move()
    policy = world.keep_predicting(HOME)
    world.wait_for_status(Status.TRACKING)
    policy.cancel()
    world.wait_for_status(Status.HELD)
    other = Node('other_policy', context=world.probe.node.context)
    other.create_publisher(MultiDOFJointTrajectory, 'ee_trajectory', 10)
    world.wait_for_status(Status.TWO_POLICIES)
    other.destroy_node()
    world.wait_for_status(Status.NO_CHUNK)
    for service in ('enable', 'reset'):
        assert world.call(service)[0]
        commands = len(world.targets)
        world.wait(lambda sent=commands: len(world.targets) > sent + 20, 'the hold')
    assert world.told == 1
    world.predict(world.now_ns, HOME)
    world.wait(lambda: world.told == 2, 'the order')


def test_an_arm_without_limits_is_not_moved(world):
    arm = {key: value for key, value in ARM.items() if key != 'limits'}
    world = world(arm=arm, enable_on_start=True)
    world.move()
    world.keep_predicting(HOME)
    world.wait_for_status(Status.NO_LIMITS)
    assert world.call('enable') == (False, Status.NO_LIMITS.value)
    assert world.call('halt')[0]
    assert not world.sent


# Settings and the gripper's unit

@pytest.mark.parametrize('parameters, expected', [
    ({}, "arm: not set, expected the path of the arm's YAML, such as config/arms/example.yaml\n"),
    ({'arm': 'no/such.yaml'}, "'no/such.yaml': no such file or folder, nor in "),
    ({'command_rate_hz': 0.0}, 'parameter command_rate_hz: found 0.0, expected 1.0 to 1000.0 Hz'),
    ({'arm': 'arms/example.yaml', 'blend': 0.1},
     'parameter blend: chunk_executor has no such parameter, expected blend_s'),
])
def test_a_wrong_setting_ends_with_one_line(start, parameters, expected):
    process = start('chunk_executor_node', 'chunk_executor', parameters)
    assert process.wait() == 1
    assert expected in process.log
    assert process.log.count('\n') == 1


def test_parameters_are_described_and_the_yaml_holds_their_defaults(world):
    world = world()
    own = fields(ChunkExecutorNodeConfig)
    request = DescribeParameters.Request(names=[field.name for field in own])
    found = world.probe.call(
        DescribeParameters, f'{world.name}/describe_parameters', request).descriptors
    for field, descriptor in zip(own, found, strict=True):
        unit = f' [{field.metadata["unit"]}]' if 'unit' in field.metadata else ''
        assert descriptor.description == field.metadata['description'] + unit
    (values,) = yaml.safe_load((config_folder() / 'chunk_executor.yaml').read_text()).values()
    assert values['ros__parameters'] == {field.name: field.default for field in own}


def test_an_on_off_hand_gets_its_own_unit_once(probe):
    targets = probe.collect(JointState, 'target_gripper')
    output = TargetOutput(probe.node, GripperConfig(
        type='on_off', command_open=0.08, command_closed=0.0, hysteresis=0.2, send_on_change=True))
    probe.wait(lambda: probe.node.count_publishers('target_gripper')
               and probe.node.count_subscribers('target_gripper'), 'the topic')
    for i, effort in enumerate((-0.5, -0.9, 0.1, 0.3, 0.1, -0.1, -0.3, 0.1)):
        if i == 7:
            output.forget()  # does not switch it
        output.send(Command(i + 1, HOME, UPRIGHT, effort, 'base'))
        n_changes = (1, 1, 1, 2, 2, 2, 3, 4)[i]
        probe.wait(lambda n=n_changes: len(targets) == n, 'each change')
    found = [(msg.effort[0], msg.position[0], readings.stamp_ns(msg.header)) for msg in targets]
    assert found == [
        (-1.0, 0.08, 1), (1.0, 0.0, 4), (-1.0, 0.08, 7), (-1.0, 0.08, 8)]
    late = probe.collect(JointState, 'target_gripper', LATCHED)  # its driver was started again
    probe.wait(lambda: late, 'the last order')
    assert [readings.stamp_ns(msg.header) for msg in late] == [8]

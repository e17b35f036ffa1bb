"""What the executor does when all goes well, and above all when it does not."""

from dataclasses import replace
import time

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from diffusion_policy_ros.control.arm import ArmConfig, GripperConfig
from diffusion_policy_ros.control.executor import ChunkExecutor
from diffusion_policy_ros.control.executor_config import ExecutorConfig
from diffusion_policy_ros.control.limits import Limits
from diffusion_policy_ros.datatypes import Chunk, Command, EE_POSE, Observation, Status

MS = 1_000_000
S = 1000 * MS
PERIOD = 20 * MS
DT = 50 * MS
UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0])
TILTED = np.array([np.sqrt(0.5), 0.0, 0.0, np.sqrt(0.5)])
LIMITS = Limits((-1.0, -1.0, 0.0), (1.0, 1.0, 1.0), max_speed=0.5, max_acceleration=4.0,
                max_angular_speed=1.0, max_angular_acceleration=8.0, max_start_jump=0.2,
                max_start_turn=1.7, start_speed=0.1, start_angular_speed=0.3,
                max_tracking_error=0.1, max_tracking_turn=1.7)
ARM = ArmConfig('base', 'hand', LIMITS)
HOME = np.array([0.1, 0.2, 0.3])


def chunk(stamp_ns, start=HOME, velocity=(0.0, 0.0, 0.0), points=7, gripper=-1.0, **fields):
    """Targets that move in a straight line from `start`, DT apart."""
    offsets = np.arange(points) * DT
    position = np.asarray(start) + np.outer(offsets / S, velocity)
    values = {'quaternion': None, 'gripper': np.full(points, gripper), 'frame_id': 'base',
              **fields}
    return Chunk(stamp_ns, offsets, position, **values)


class Robot:
    """An executor, its clocks, and an arm that goes wherever it is told, one tick later."""

    def __init__(self, arm=ARM, enable=True, sim_time=False, **config):
        self.executor = ChunkExecutor(ExecutorConfig(**{'blend_s': 0.0, **config}), arm, sim_time)
        if enable:
            self.executor.enable()
        self.now = 100 * S
        self.steady = 7 * S
        self.position = HOME.copy()
        self.quaternion = UPRIGHT
        self.sent = []
        self.statuses = []

    def pose(self, stamp=None):
        value = np.concatenate([self.position, self.quaternion])
        self.executor.push_pose(Observation(EE_POSE, stamp or self.now, value, 'base'))

    def push(self, new):
        return self.executor.push_chunk(new, self.now, self.steady)

    def teleop(self, position, gripper=0.0, stamp=None, quaternion=UPRIGHT, frame_id='base'):
        return self.executor.push_teleop(
            Command(stamp or self.now, np.asarray(position, float), quaternion, gripper, frame_id),
            self.now, self.steady)

    def step(self):
        command, status = self.executor.step(self.now, self.steady)
        self.statuses.append(status)
        if command is not None:
            self.sent.append(command)
            self.position, self.quaternion = command.position, command.quaternion
        return command, status

    def run(self, steps, period=PERIOD, each=lambda: None, pose=True, ros_time=True):
        """Go on for some periods, with a fresh pose before each step."""
        for _ in range(steps):
            self.now += period if ros_time else 0
            self.steady += period
            if pose:
                self.pose()
            each()
            command, status = self.step()
        return command, status

    def track(self, velocity=(0.0, 0.0, 0.0), steps=10):
        """Follow a fresh chunk of 300 ms for some steps."""
        self.pose()
        assert self.push(chunk(self.now, self.position, velocity)) is None
        return self.run(steps)


def speeds(sent, start=None):
    """Speed of each command, in m/s; of the first from where the arm stood, if it is told."""
    positions = np.array([command.position for command in sent])
    stamps = [command.stamp_ns for command in sent]
    if start is not None:
        positions = np.vstack([start, positions])
        stamps = [stamps[0] - PERIOD, *stamps]
    # Where nothing was sent for a while the arm stood, and moves in the period before a command.
    return np.diff(positions, axis=0) / (np.minimum(np.diff(stamps), PERIOD) / S)[:, None]


def assert_within_limits(sent, limits=LIMITS, start=HOME):
    """Speed, acceleration and workspace of commands that were sent one period apart."""
    velocity = speeds(sent, start)
    assert np.abs(velocity).max(initial=0) <= limits.max_speed * (1 + 1e-6)
    if start is not None:
        velocity = np.vstack([np.zeros(3), velocity])
    change = np.diff(velocity, axis=0)
    assert np.abs(change).max(initial=0) <= limits.max_acceleration * PERIOD / S * (1 + 1e-6)
    for command in sent:
        assert np.all(command.position >= np.array(limits.workspace_min) - 1e-12)
        assert np.all(command.position <= np.array(limits.workspace_max) + 1e-12)


def moving(robot):
    """Bring a robot to 0.4 m/s along x."""
    robot.pose()
    for _ in range(3):
        robot.push(chunk(robot.now, robot.position + [0.02, 0, 0], (0.4, 0.0, 0.0)))
        robot.run(10)
    assert speeds(robot.sent)[-1][0] > 0.3


def assert_comes_to_rest(sent):
    """Braked all the way, and no further."""
    assert np.all(np.diff(speeds(sent)[-10:, 0]) <= 1e-9)
    np.testing.assert_allclose(speeds(sent)[-1], 0.0, atol=1e-9)


def assert_begins_at(robot, start):
    """Check that the next command lies where the arm is measured."""
    robot.push(chunk(robot.now, start))
    command, _ = robot.run(1)
    np.testing.assert_allclose(command.position, start, atol=1e-12)


# Nothing moves that must not move

def test_disabled_by_default_and_moves_nothing():
    robot = Robot(enable=False)
    robot.pose()
    assert robot.push(chunk(robot.now)) is None
    assert robot.teleop(HOME) is None
    assert robot.run(10) == (None, Status.DISABLED)
    assert robot.sent == []


def test_an_arm_without_limits_is_not_moved():
    robot = Robot(arm=replace(ARM, limits=None))
    robot.pose()
    assert robot.push(chunk(robot.now)) is None
    assert robot.run(5) == (None, Status.NO_LIMITS)
    assert robot.executor.limits_acted == {}
    assert robot.sent == []


def test_enable_on_start_is_for_who_asks_for_it():
    robot = Robot(enable=False, enable_on_start=True)
    command, status = robot.track(steps=3)
    assert command is not None and status == Status.TRACKING


def test_disable_brakes_and_enable_begins_anew_from_the_measured_pose():
    robot = Robot()
    moving(robot)
    robot.executor.disable()
    assert robot.run(30) == (None, Status.DISABLED)
    assert_within_limits(robot.sent)
    assert_comes_to_rest(robot.sent)
    sent = len(robot.sent)
    robot.position = robot.position + 0.05  # moved by hand
    robot.executor.enable()
    robot.pose()
    start = robot.position
    assert robot.push(chunk(robot.now, start + 0.05)) is None
    command, status = robot.run(1)
    assert status == Status.STARTING and len(robot.sent) == sent + 1
    assert np.abs(command.position - start).max() <= LIMITS.start_speed * PERIOD / S


def test_a_chunk_is_alive_when_it_comes_though_time_has_not_gone_on_yet():
    robot = Robot(sim_time=True)
    robot.run(1)
    robot.steady += S
    assert robot.push(chunk(robot.now)) is None
    assert robot.run(1, ros_time=False) == (None, Status.TRACKING)


def test_without_a_pose_or_a_chunk_nothing_is_sent():
    robot = Robot()
    assert robot.run(2, pose=False) == (None, Status.NO_POSE)
    assert robot.push(chunk(robot.now)) is None
    assert robot.run(2, pose=False) == (None, Status.NO_POSE)
    robot = Robot()
    assert robot.run(2) == (None, Status.NO_CHUNK)
    assert robot.sent == []


# Following

def test_a_feasible_chunk_is_followed_to_the_bit():
    robot = Robot(arm=replace(ARM, limits=replace(LIMITS, start_speed=0.5)))
    robot.pose()
    new = chunk(robot.now, velocity=(0.05, 0.0, 0.0), gripper=0.5)
    assert robot.push(new) is None
    robot.run(15)
    at_points = {command.stamp_ns: command for command in robot.sent}
    for i in (2, 4, 6):
        np.testing.assert_array_equal(at_points[new.stamp_ns + i * DT].position, new.position[i])
    for command in robot.sent:
        when = (command.stamp_ns - new.stamp_ns) / S
        np.testing.assert_allclose(command.position, HOME + [0.05 * when, 0, 0], atol=1e-12)
        assert command.gripper == 0.5 and command.frame_id == 'base'
    assert [command.stamp_ns for command in robot.sent] == [
        100 * S + PERIOD * (i + 1) for i in range(15)]
    assert robot.executor.limits_acted == {}
    assert robot.statuses[1:] == [Status.TRACKING] * 14


def test_a_new_chunk_is_blended_in():
    robot = Robot(arm=replace(ARM, limits=replace(LIMITS, max_acceleration=400.0)), blend_s=0.1)
    robot.track()
    assert robot.push(chunk(robot.now, HOME + [0.01, 0, 0])) is None
    begin = robot.now
    robot.run(12)
    for command in robot.sent:
        weight = np.clip((command.stamp_ns - begin) / (100 * MS), 0, 1)
        np.testing.assert_allclose(command.position, HOME + [0.01 * weight, 0, 0], atol=1e-12)


def test_only_a_chunk_that_is_followed_is_blended():
    robot = Robot(blend_s=0.2)
    robot.pose()
    robot.push(chunk(robot.now, HOME + [0.1, 0, 0]))
    assert robot.push(chunk(robot.now + 1, HOME)) is None
    robot.run(10)
    for command in robot.sent:
        np.testing.assert_allclose(command.position, HOME, atol=1e-12)


def test_the_arms_orientation_is_held_where_none_is_predicted():
    robot = Robot()
    robot.quaternion = TILTED
    robot.track()
    robot.quaternion = UPRIGHT  # knocked: the orientation measured at enable still counts
    command, _ = robot.run(3)
    np.testing.assert_allclose(command.quaternion, TILTED)
    robot.executor.reset()
    for _ in range(12):
        robot.run(10)
        robot.push(chunk(robot.now, robot.position))
    np.testing.assert_allclose(robot.sent[-1].quaternion, TILTED)
    robot.executor.disable()
    robot.executor.enable()
    robot.quaternion = UPRIGHT
    robot.push(chunk(robot.now + 1, robot.position))
    np.testing.assert_allclose(robot.run(2)[0].quaternion, UPRIGHT)


def turns(sent):
    """Angle between each command and the next, rad."""
    halves = np.array([command.quaternion for command in sent])
    return 2 * np.arccos(np.clip(np.abs(np.sum(halves[1:] * halves[:-1], axis=1)), 0, 1))


def test_a_fixed_orientation_is_reached_slowly_as_a_first_target():
    robot = Robot(arm=replace(ARM, fixed_orientation=tuple(TILTED)))
    robot.pose()
    for _ in range(30):
        robot.push(chunk(robot.now, robot.position))
        robot.run(10)
    np.testing.assert_allclose(robot.sent[-1].quaternion, TILTED, atol=1e-9)
    assert robot.statuses[100] == Status.STARTING and robot.statuses[-1] == Status.TRACKING
    fastest = LIMITS.start_angular_speed * PERIOD / S
    assert 0.99 * fastest < turns(robot.sent).max() <= fastest + 1e-7


@pytest.mark.parametrize('predicted', [True, False])
def test_a_first_target_turned_beyond_max_start_turn_is_refused(predicted):
    """As from a driver that takes (w, x, y, z) for (x, y, z, w)."""
    turned = np.array([1.0, 0.0, 0.0, 0.0])
    robot = Robot(arm=ARM if predicted else replace(ARM, fixed_orientation=tuple(turned)))
    robot.pose()
    robot.push(chunk(robot.now, quaternion=np.tile(turned, (7, 1)) if predicted else None))
    assert robot.run(5) == (None, Status.START_REFUSED)


def test_what_a_teleoperator_has_turned_stays_turned():
    robot = Robot()
    robot.track(steps=5)
    robot.run(400, each=lambda: robot.teleop(HOME, quaternion=TILTED))
    np.testing.assert_allclose(robot.quaternion, TILTED, atol=1e-9)
    robot.run(100, each=lambda: robot.push(chunk(robot.now, HOME)))
    assert robot.statuses[-1] == Status.TRACKING
    np.testing.assert_allclose(robot.quaternion, TILTED, atol=1e-9)


def test_a_predicted_rotation_is_followed_within_the_angular_limits():
    robot = Robot()
    robot.pose()
    for goal, seconds in ((UPRIGHT, 1), (TILTED, 4)):
        for _ in range(5 * seconds):
            robot.push(chunk(robot.now, robot.position, quaternion=np.tile(goal, (7, 1))))
            robot.run(10)
    np.testing.assert_allclose(robot.sent[-1].quaternion, TILTED, atol=1e-9)
    fastest = LIMITS.max_angular_speed * PERIOD / S
    assert 0.5 * fastest < turns(robot.sent).max() <= fastest + 1e-7


def test_an_arm_without_a_gripper_gets_no_effort():
    robot = Robot(arm=replace(ARM, gripper=GripperConfig(type='none')))
    command, _ = robot.track()
    assert command.gripper is None


def test_efforts_beyond_the_ends_are_cut():
    robot = Robot()
    robot.pose()
    robot.push(chunk(robot.now, gripper=1.02))
    assert robot.run(2)[0].gripper == 1.0


# Refused chunks

def assert_refused(robot, new, reason):
    before = robot.executor.refused[reason]
    problem = robot.push(new)
    assert problem is not None and problem.startswith(f'{reason}: ') and 'expected' in problem
    assert '\n' not in problem
    assert robot.executor.refused[reason] == before + 1


def with_nan(new, name):
    values = np.array(getattr(new, name))
    values.flat[-1] = np.nan
    return replace(new, **{name: values})


@pytest.mark.parametrize('spoil, reason', [
    (lambda new: with_nan(new, 'position'), 'not finite'),
    (lambda new: with_nan(new, 'gripper'), 'not finite'),
    (lambda new: with_nan(replace(new, quaternion=np.tile(UPRIGHT, (7, 1))), 'quaternion'),
     'not finite'),
    (lambda new: replace(new, position=np.full((7, 3), np.inf)), 'not finite'),
    (lambda new: replace(new, quaternion=np.tile(2 * UPRIGHT, (7, 1))), 'quaternion'),
    (lambda new: replace(new, quaternion=np.zeros((7, 4))), 'quaternion'),
    (lambda new: replace(new, frame_id='camera'), 'frame'),
    (lambda new: replace(new, stamp_ns=new.stamp_ns - 20 * S), 'out of order'),
    (lambda new: replace(new, stamp_ns=100 * S), 'out of order'),
    (lambda new: replace(new, stamp_ns=new.stamp_ns + 20 * S), 'future'),
])
def test_a_bad_chunk_is_refused_and_the_good_one_goes_on(spoil, reason):
    robot, other = Robot(), Robot()
    for each in (robot, other):
        each.track((0.1, 0.0, 0.0), steps=5)
    assert_refused(robot, spoil(chunk(robot.now, HOME - 0.1)), reason)
    robot.run(8)
    other.run(8)
    for ours, theirs in zip(robot.sent, other.sent, strict=True):
        np.testing.assert_array_equal(ours.position, theirs.position)


def test_a_chunk_that_is_past_altogether_is_refused():
    robot = Robot()
    robot.pose()
    assert_refused(robot, chunk(robot.now - 6 * DT - 1), 'past')
    assert robot.push(chunk(robot.now - 6 * DT)) is None


def test_a_chunk_that_lies_ahead_is_followed_when_it_is_due():
    robot = Robot(blend_s=0.1)
    robot.pose()
    robot.push(chunk(robot.now + 100 * MS, gripper=1.0))
    assert robot.run(4) == (None, Status.NO_CHUNK)
    assert robot.run(1)[0].gripper == 1.0
    robot.push(chunk(robot.now + 200 * MS, HOME + [0.01, 0.0, 0.0], gripper=-1.0))
    command, status = robot.run(9)
    assert status == Status.TRACKING and command.gripper == 1.0
    np.testing.assert_allclose(command.position, HOME, atol=1e-12)
    command, _ = robot.run(6)
    assert command.gripper == -1.0
    np.testing.assert_allclose(command.position, HOME + [0.01, 0.0, 0.0], atol=1e-12)


def test_the_quaternion_that_is_sent_keeps_its_sign():
    robot = Robot()
    down = np.array([1.0, 0.0, 0.0, 0.0])
    robot.quaternion = down
    robot.pose()
    robot.run(40, each=lambda: robot.push(
        chunk(robot.now, quaternion=np.tile(down * (-1) ** len(robot.sent), (7, 1)))))
    assert [command.quaternion.tolist() for command in robot.sent] == [down.tolist()] * 40


def test_a_chunk_in_another_frame_is_refused_before_the_first_pose_too():
    robot = Robot()
    assert_refused(robot, chunk(robot.now, frame_id='camera'), 'frame')
    assert robot.run(2) == (None, Status.NO_CHUNK)


def test_a_pose_that_is_no_pose_is_not_taken():
    robot = Robot()
    robot.position = np.array([np.nan, 0, 0])
    robot.pose()
    robot.position, robot.quaternion = HOME, np.zeros(4)
    robot.pose()
    assert robot.executor.refused == {'not finite': 1, 'quaternion': 1}
    assert robot.step() == (None, Status.NO_POSE)


def test_a_chunk_that_never_was_one_can_be_counted():
    robot = Robot()
    problem = 'points: there are none, expected one'
    assert robot.executor.refuse_chunk(5, problem) == problem
    assert robot.executor.refused == {'points': 1}


def test_a_late_chunk_is_followed_from_now_on_without_a_jerk():
    robot = Robot()
    robot.track((0.1, 0.0, 0.0), steps=10)
    assert robot.push(chunk(robot.now - 4 * DT + 1, HOME, (0.1, 0.0, 0.0), points=20)) is None
    robot.run(10)
    assert_within_limits(robot.sent)
    for command in robot.sent[1:]:
        assert command.position[0] >= HOME[0] - 1e-12
    assert robot.sent[-1].position[0] - HOME[0] == pytest.approx(
        0.1 * (robot.now - (100 * S + 0 * MS)) / S, abs=0.003)


# The beginning

def test_the_first_target_is_approached_slowly_from_the_measured_pose():
    robot = Robot()
    robot.pose()
    goal = HOME + [0.08, -0.04, 0.0]
    for _ in range(10):
        robot.push(chunk(robot.now, goal))
        robot.run(10)
    assert Status.STARTING in robot.statuses and robot.statuses[-1] == Status.TRACKING
    starting = [c for c, s in zip(robot.sent, robot.statuses, strict=True)
                if s == Status.STARTING]
    np.testing.assert_allclose(starting[0].position, HOME, atol=0.1 * PERIOD / S)
    assert np.abs(speeds(starting)).max() <= LIMITS.start_speed * (1 + 1e-6)
    assert_within_limits(robot.sent)
    np.testing.assert_array_equal(robot.sent[-1].position, goal)
    assert robot.executor.limits_acted == {}


def test_a_first_target_beyond_max_start_jump_is_refused_until_one_is_near():
    robot = Robot()
    robot.pose()
    robot.push(chunk(robot.now, HOME + [0.0, 0.21, 0.0]))
    assert robot.run(5) == (None, Status.START_REFUSED)
    assert robot.sent == []
    robot.push(chunk(robot.now, HOME + [0.0, 0.19, 0.0]))
    command, status = robot.run(1)
    assert command is not None and status == Status.STARTING


def test_a_target_that_runs_away_is_not_approached_for_ever():
    robot = Robot()
    robot.pose()
    start = robot.now
    for _ in range(10):
        robot.push(chunk(robot.now, HOME + [0.05 + 0.2 * (robot.now - start) / S, 0, 0],
                         (0.2, 0.0, 0.0)))
        robot.run(10)
    assert robot.statuses[-1] == Status.TRACKING
    assert robot.sent[-1].position[0] == pytest.approx(HOME[0] + 0.05 + 0.2 * 2.0, abs=1e-6)
    assert_within_limits(robot.sent)


# The policy dies, and comes back

def test_past_the_last_point_it_holds_and_after_the_timeout_it_says_held():
    robot = Robot()
    robot.track((0.2, 0.0, 0.0), steps=15)
    assert robot.statuses[-1] == Status.TRACKING
    end = robot.now
    robot.run(60)
    starved = robot.statuses.index(Status.STARVED)
    held = robot.statuses.index(Status.HELD)
    assert starved == 15
    assert 24 <= held - starved <= 26  # command_timeout of 0.5 s at 50 Hz
    assert robot.statuses[held:] == [Status.HELD] * (len(robot.statuses) - held)
    last = robot.sent[-1]
    assert last.position[0] == pytest.approx(HOME[0] + 0.06)  # the last point, nothing beyond
    assert last.stamp_ns == robot.now and len(robot.sent) == 75  # a fresh stamp each time
    assert [c.stamp_ns for c in robot.sent[-60:]] == [end + PERIOD * (i + 1) for i in range(60)]
    assert_within_limits(robot.sent)


def test_the_timeout_counts_on_the_steady_clock():
    robot = Robot()
    robot.track(steps=15)
    for _ in range(30):  # ROS time runs at a tenth, past the chunk's end and on
        robot.now += PERIOD
        robot.steady += 2 * MS
        robot.pose()
        assert robot.step()[1] == Status.STARVED
    robot.run(26)
    assert robot.statuses[-1] == Status.HELD


def test_a_hold_keeps_the_gripper_as_it_was():
    robot = Robot()
    robot.pose()
    robot.push(chunk(robot.now, gripper=1.0))
    robot.run(80)
    assert {command.gripper for command in robot.sent} == {1.0}
    robot.executor.halt()
    assert robot.run(5)[0].gripper == 1.0
    assert {Status.STARVED, Status.HELD, Status.HALTED} <= set(robot.statuses)


def test_a_hold_before_any_effort_sends_none():
    robot = Robot()
    robot.pose()
    robot.push(replace(chunk(robot.now), gripper=None))
    robot.run(3)
    robot.executor.halt()
    assert robot.run(3)[0].gripper is None


def test_when_the_policy_comes_back_it_goes_on_smoothly():
    robot = Robot()
    robot.track((0.2, 0.0, 0.0), steps=15)
    robot.run(60)
    assert robot.statuses[-1] == Status.HELD
    at = robot.position[0]
    robot.push(chunk(robot.now, robot.position + [0.03, 0, 0], (0.05, 0, 0), points=40))
    robot.run(80)
    assert robot.statuses[75] == Status.STARTING and robot.statuses[-1] == Status.TRACKING
    assert robot.sent[-1].position[0] == pytest.approx(at + 0.03 + 0.05 * 80 * 0.02, abs=1e-6)
    assert_within_limits(robot.sent)


def test_after_a_hold_a_target_too_far_is_refused_like_a_first_one():
    robot = Robot()
    robot.track(steps=80)
    assert robot.statuses[-1] == Status.HELD
    robot.push(chunk(robot.now, HOME + [0.0, 0.0, 0.25]))
    command, status = robot.run(5)
    assert status == Status.START_REFUSED
    np.testing.assert_allclose(command.position, HOME)


# Clocks

def test_frozen_ros_time_ends_in_held_and_sends_nothing_meanwhile():
    robot = Robot()
    robot.track((0.1, 0.0, 0.0), steps=5)
    sent = len(robot.sent)
    robot.run(25, ros_time=False)
    assert robot.statuses[-1] == Status.TRACKING
    robot.run(2, ros_time=False)
    assert robot.statuses[-1] == Status.HELD
    assert len(robot.sent) == sent
    robot.run(5)  # ROS time goes on, and the chunk still has points
    assert robot.statuses[-5:] == [Status.TRACKING] * 5
    assert_within_limits(robot.sent)


def test_a_first_command_too_waits_for_ros_time_to_go_on():
    robot = Robot()
    robot.run(1)
    robot.push(chunk(robot.now))
    robot.teleop(HOME)
    robot.run(3, ros_time=False)
    assert robot.sent == []
    assert robot.run(1)[0] is not None


def test_each_ros_time_is_commanded_once():
    robot = Robot()
    robot.track(steps=5)
    assert robot.step()[0] is None
    robot.now += 1  # a timer that fires twice
    assert robot.step()[0] is None


def test_ros_time_set_back_brakes_drops_all_and_goes_on_with_what_is_new():
    robot = Robot()
    moving(robot)
    robot.now = 50 * S
    robot.steady += PERIOD
    before, first = len(robot.sent), robot.sent[-1].position
    assert robot.step()[1] == Status.NO_POSE
    robot.run(30)
    assert robot.step() == (None, Status.NO_CHUNK)
    braking = robot.sent[before:]
    assert_within_limits(braking[1:], start=None)
    assert_comes_to_rest(braking)
    assert 0 < braking[0].position[0] - first[0] < LIMITS.max_speed * PERIOD / S
    assert robot.push(chunk(robot.now, robot.position, (0.1, 0.0, 0.0))) is None
    command, status = robot.run(5)
    assert command is not None and status == Status.TRACKING
    assert command.stamp_ns == robot.now < 51 * S


def test_a_step_right_after_the_clock_is_set_back_is_no_longer_than_its_time():
    robot = Robot()
    moving(robot)
    before, robot.now = robot.position, robot.now - S
    assert robot.run(1, period=3 * MS)[0] is None
    command, _ = robot.run(1, period=PERIOD - 3 * MS)
    assert command.position[0] - before[0] <= LIMITS.max_speed * PERIOD / S


def test_a_clock_that_is_corrected_by_little_disturbs_nothing():
    robot = Robot()
    moving(robot)
    robot.push(chunk(robot.now, robot.position, (0.4, 0.0, 0.0), points=20))
    robot.run(5)
    robot.now -= 25 * MS
    for _ in range(10):
        robot.run(1)
    assert set(robot.statuses[-10:]) == {Status.TRACKING}
    stamps = [command.stamp_ns for command in robot.sent]
    assert stamps == sorted(set(stamps)) and stamps[-1] == robot.now


def test_a_chunk_of_the_new_time_may_come_before_the_next_step():
    robot = Robot()
    robot.track(steps=5)
    robot.now = 50 * S
    assert robot.push(chunk(robot.now)) is None
    robot.pose()
    command, _ = robot.run(1)
    assert command is not None


@pytest.mark.parametrize('leap', [90 * MS, 300 * MS, 2 * S])
def test_a_leap_of_ros_time_goes_on_without_a_jerk(leap):
    robot = Robot()
    moving(robot)
    robot.now += leap
    robot.pose()
    assert robot.push(chunk(robot.now, robot.position, points=40)) is None
    before = len(robot.sent)
    command, status = robot.run(60)
    assert status == Status.TRACKING
    assert robot.statuses[before] == (Status.STARTING if leap > S else Status.TRACKING)
    assert_within_limits(robot.sent)


def test_a_leap_of_a_simulators_time_begins_anew_at_the_measured_pose():
    robot = Robot()
    robot.executor = ChunkExecutor(ExecutorConfig(blend_s=0.0), ARM, sim_time=True)
    robot.executor.enable()
    robot.track((0.1, 0.0, 0.0), steps=5)
    robot.now += 2 * S
    robot.position = start = HOME - 0.05  # where the next episode begins
    robot.run(3)
    assert len(robot.sent) == 5
    assert_begins_at(robot, start)


def test_a_leap_of_ros_time_without_a_new_pose_brakes():
    robot = Robot()
    moving(robot)
    robot.now += 2 * S
    before = len(robot.sent)
    robot.run(20, pose=False)
    assert len(robot.sent) == before + 20 and robot.statuses[-1] == Status.NO_POSE
    assert_comes_to_rest(robot.sent)


def test_after_a_long_pause_of_the_process_motion_goes_on_slowly_from_rest():
    robot = Robot()
    moving(robot)
    commanded = robot.position
    robot.now += 2 * S
    robot.steady += 2 * S
    robot.pose()
    assert robot.push(chunk(robot.now, commanded + [0.1, 0.0, 0.0])) is None
    robot.sent.clear()
    assert robot.run(1)[1] == Status.STARTING
    robot.run(10)
    assert_within_limits(robot.sent, start=commanded)
    assert speeds(robot.sent).max() <= LIMITS.start_speed * (1 + 1e-9)


@pytest.mark.parametrize('ros_s', [5.0, 0.1, -3.0])
@pytest.mark.parametrize('event', ['reset', 'halt', None])
def test_after_a_pause_an_arm_that_stands_is_not_moved_at_the_old_speed(event, ros_s):
    """The arm has come to where it was sent, whatever ROS time did meanwhile."""
    robot = Robot()
    moving(robot)
    commanded = robot.position
    robot.steady += 5 * S
    robot.now += round(ros_s * S)
    if event:
        getattr(robot.executor, event)()
    robot.sent.clear()
    robot.run(5)
    assert_within_limits(robot.sent, start=commanded)


def test_a_pause_of_the_process_is_not_made_good_in_one_move():
    robot = Robot()
    robot.track((0.4, 0.0, 0.0), steps=10)
    robot.push(chunk(robot.now, robot.position, (0.4, 0.0, 0.0), points=20))
    robot.run(5)
    before = robot.position[0]
    command, status = robot.run(1, period=400 * MS)
    assert status == Status.TRACKING
    assert command.position[0] - before <= LIMITS.max_speed * 0.1 + 1e-9


def test_the_measured_pose_stops():
    robot = Robot()
    robot.track((0.2, 0.0, 0.0), steps=5)
    robot.push(chunk(robot.now, robot.position, (0.2, 0.0, 0.0), points=100))
    robot.run(24, pose=False)
    assert robot.statuses[-1] == Status.TRACKING
    command, status = robot.run(60, pose=False)
    assert status == Status.NO_POSE
    np.testing.assert_array_equal(command.position, robot.sent[-2].position)
    assert_within_limits(robot.sent)
    assert robot.run(1, pose=True)[1] == Status.START_REFUSED  # the chunk went on without the arm
    robot.push(chunk(robot.now, robot.position))
    assert robot.run(3)[1] == Status.TRACKING


def test_the_measured_pose_stops_while_ros_time_runs_slowly():
    robot = Robot()
    robot.track(steps=5)
    robot.push(chunk(robot.now, points=100))
    for _ in range(14):
        robot.now += 12 * MS
        robot.steady += 40 * MS
        robot.step()
    assert robot.statuses[-3:] == [Status.TRACKING, Status.NO_POSE, Status.NO_POSE]


def test_a_pose_that_repeats_an_old_stamp_is_no_sign_of_life():
    robot = Robot()
    robot.track(steps=5)
    robot.push(chunk(robot.now, points=100))
    stamp = robot.now
    robot.run(30, pose=False, each=lambda: robot.pose(stamp))
    assert robot.statuses[-1] == Status.NO_POSE


# Halt

def test_a_halt_brakes_within_limits_and_latches():
    robot = Robot()
    moving(robot)
    robot.executor.halt()
    robot.push(chunk(robot.now, robot.position, (0.4, 0.0, 0.0)))
    robot.teleop(robot.position)
    command, status = robot.run(10)
    assert status == Status.HALTED and command is not None
    assert_within_limits(robot.sent)
    braking = speeds(robot.sent)[-10:, 0]
    assert np.all(np.diff(braking) <= 1e-9) and np.all(braking >= -1e-9)
    assert braking[-1] == 0.0
    robot.run(100)
    assert robot.statuses[-1] == Status.HALTED
    assert robot.sent[-1].stamp_ns == robot.now


def test_nothing_but_clear_halt_lifts_a_halt():
    robot = Robot()
    robot.track()
    robot.executor.halt()
    for lift in (robot.executor.enable, robot.executor.reset, lambda: robot.teleop(HOME),
                 lambda: robot.push(chunk(robot.now, HOME)),
                 lambda: (robot.executor.disable(), robot.executor.enable())):
        lift()
        assert robot.run(2)[1] == Status.HALTED
    robot.executor.clear_halt()
    robot.position = robot.position + 0.03
    robot.pose()
    robot.push(chunk(robot.now, robot.position + [0.05, 0.0, 0.0]))
    start = robot.position
    command, status = robot.run(1)
    assert status == Status.STARTING
    assert np.abs(command.position - start).max() <= LIMITS.start_speed * PERIOD / S


def test_a_halt_that_is_soon_cleared_goes_on_slowly():
    robot = Robot()
    moving(robot)
    robot.executor.halt()
    robot.run(1)
    robot.executor.clear_halt()
    robot.push(chunk(robot.now, robot.position, (0.4, 0.0, 0.0)))
    robot.run(12)
    assert robot.statuses[31] == Status.STARTING and robot.statuses[-1] == Status.TRACKING
    assert_within_limits(robot.sent)


@pytest.mark.parametrize('interrupt', ['halt', 'no pose', 'clock set back', 'reset', 'pause'])
def test_after_an_interruption_the_command_goes_on_without_a_step(interrupt):
    """An arm that sags behind its command is not lowered by that at every beginning."""
    robot = Robot()
    robot.track()
    if interrupt == 'halt':
        robot.executor.halt()
        robot.run(5)
        robot.executor.clear_halt()
    elif interrupt == 'no pose':
        robot.push(chunk(robot.now, points=100))
        robot.run(40, pose=False)
        assert robot.statuses[-1] == Status.NO_POSE
    elif interrupt == 'clock set back':
        robot.now -= S
        robot.run(5)
    elif interrupt == 'reset':
        robot.executor.reset()
        robot.run(5)
    else:
        robot.now += 600 * MS
        robot.steady += 600 * MS
    commanded = robot.position
    robot.position = robot.position - [0.0, 0.0, 0.03]
    robot.pose()
    robot.push(chunk(robot.now, HOME))
    command, status = robot.run(1)
    assert status == Status.STARTING
    assert np.abs(command.position - commanded).max() <= LIMITS.start_speed * PERIOD / S


# Something else moves the arm

def elsewhere(robot, position, quaternion=UPRIGHT, steps=8):
    """Go on for some periods with an arm that stays where it is, whatever it is told."""
    for _ in range(steps):
        robot.position, robot.quaternion = position, quaternion
        command, status = robot.run(1)
    return command, status


@pytest.mark.parametrize('status', [Status.TRACKING, Status.HELD, Status.HALTED])
def test_an_arm_that_is_moved_away_is_held_where_it_is_until_clear_halt(status):
    robot = Robot()
    robot.track(steps=5)
    if status == Status.HELD:
        robot.run(80)
    elif status == Status.HALTED:
        robot.executor.halt()
        robot.run(5)
    assert robot.statuses[-1] == status
    held = robot.position + [0.0, 0.48, 0.0]
    for k in range(16):  # guided by hand, half a metre in all, and let go
        robot.position = held - [0.0, 0.12 * max(3 - k, 0), 0.0]
        robot.run(1)
    robot.push(chunk(robot.now, held))
    command, now = robot.run(10)
    assert now == (Status.HALTED if status == Status.HALTED else Status.ASTRAY)
    np.testing.assert_array_equal(command.position, held)
    robot.executor.clear_halt()
    robot.push(chunk(robot.now, held))
    assert robot.run(3)[1] in (Status.STARTING, Status.TRACKING)


def test_the_command_is_never_further_from_an_arm_that_stands_still_than_allowed():
    """As after a protective stop: chunks go on with absolute targets, the arm does not."""
    robot = Robot()
    robot.track(steps=2)
    furthest = 0.0
    for k in range(60):
        robot.now += PERIOD
        robot.steady += PERIOD
        robot.position = HOME
        robot.pose()
        if k % 10 == 0:
            robot.push(chunk(robot.now, HOME + [0.008 * k, 0.0, 0.0], (0.4, 0.0, 0.0)))
        command, _ = robot.step()
        furthest = max(furthest, abs(command.position[0] - HOME[0]))
    assert robot.statuses[-1] == Status.ASTRAY
    braking = LIMITS.max_speed ** 2 / (2 * LIMITS.max_acceleration)
    assert furthest <= LIMITS.max_tracking_error + braking + LIMITS.max_speed * PERIOD / S
    np.testing.assert_array_equal(robot.sent[-1].position, HOME)


def test_an_arm_that_leaves_every_command_is_not_led_through_the_workspace():
    """Under a load too heavy for it; or its pose is the flange's, and commands are the tool's."""
    offset = np.array([0.0, 0.0, -0.12])
    robot = Robot()
    robot.track(steps=5)
    robot.executor.halt()
    for _ in range(100):
        robot.position = robot.sent[-1].position + offset
        robot.run(1)
    assert robot.sent[-1].position[2] >= HOME[2] + offset[2] - 1e-9
    assert robot.step() == (None, Status.HALTED)
    robot.executor.clear_halt()
    there = robot.position
    robot.push(chunk(robot.now, there))
    command, _ = robot.run(1)
    np.testing.assert_allclose(command.position, there)


def test_only_clear_halt_lets_an_arm_move_that_was_moved():
    robot = Robot()
    robot.track(steps=2)
    assert elsewhere(robot, HOME + 0.2)[1] == Status.ASTRAY
    for lift in (robot.executor.reset, robot.executor.disable, robot.executor.enable):
        lift()
        robot.run(2)
        robot.push(chunk(robot.now, robot.position))
    assert robot.run(3)[1] == Status.ASTRAY
    robot.executor.clear_halt()
    robot.push(chunk(robot.now, robot.position))
    assert robot.run(3)[1] == Status.TRACKING


def test_a_hand_that_is_turned_by_something_else_is_held_where_it_is():
    robot = Robot()
    robot.track(steps=5)
    turned = np.array([1.0, 0.0, 0.0, 0.0])
    command, status = elsewhere(robot, HOME, turned)
    assert status == Status.ASTRAY
    np.testing.assert_allclose(command.quaternion, turned)


@pytest.mark.parametrize('wrong', [[0.0, 0.0, 0.0], [0.2, 0.3, 0.4]])
@pytest.mark.parametrize('every', [0, 2])
def test_one_wrong_pose_moves_nothing(wrong, every):
    """A driver's first zeros; or every other pose, where a second arm publishes on the topic."""
    robot = Robot()
    robot.track((0.3, 0.0, 0.0))
    for k in range(30):
        there = robot.position
        if k == 0 or every and k % every == 0:
            robot.position = np.array(wrong)
        robot.now += PERIOD
        robot.steady += PERIOD
        robot.pose()
        robot.position = there
        robot.step()
    assert robot.statuses[-1] == Status.ASTRAY
    assert_within_limits(robot.sent)
    np.testing.assert_array_equal(robot.sent[-1].position, robot.sent[-2].position)


@pytest.mark.parametrize('there', [np.zeros(3), HOME + [0.0, 0.0, -0.16]])
def test_an_arm_further_outside_the_workspace_than_a_start_may_be_is_told_nothing(there):
    """A driver that has lost its arm and says zeros; or an arm that a person has pushed there."""
    robot = Robot(replace(ARM, limits=replace(LIMITS, workspace_min=(-1.0, -1.0, 0.25),
                                              max_start_jump=0.1)))
    robot.track(steps=5)
    assert elsewhere(robot, there) == (None, Status.ASTRAY)
    n_sent = len(robot.sent)
    for _ in range(2):
        robot.executor.clear_halt()
        robot.push(chunk(robot.now, HOME))
        assert elsewhere(robot, there)[0] is None
    assert len(robot.sent) == n_sent
    robot.position = HOME
    assert_begins_at(robot, HOME)


@pytest.mark.parametrize('behind', [0.0, 0.03, 0.1])
def test_a_first_target_is_approached_slowly_after_the_arm_has_braked(behind):
    robot = Robot()
    moving(robot)
    robot.executor.halt()
    robot.run(1)
    robot.executor.clear_halt()
    goal = robot.position - [behind, 0.0, 0.0]
    robot.push(chunk(robot.now, goal, points=60))
    robot.run(100)
    np.testing.assert_allclose(robot.position, goal, atol=1e-9)
    assert_within_limits(robot.sent)
    assert speeds(robot.sent)[31:, 0].min() >= -LIMITS.start_speed * (1 + 1e-6)


@pytest.mark.parametrize('way', ['disable', 'go on'])
def test_what_is_told_to_brake_is_silent_too_while_another_node_commands(way):
    robot = Robot()
    moving(robot)
    if way == 'disable':
        robot.executor.disable()
    robot.executor.conflict(Status.CONFLICT)
    assert robot.run(4)[0] is None and len(robot.sent) == 30


def test_after_a_conflict_an_old_pose_is_no_beginning():
    robot = Robot()
    moving(robot)
    robot.executor.conflict(Status.CONFLICT)
    robot.run(5)
    robot.executor.conflict(None)
    robot.push(chunk(robot.now, robot.position))
    assert robot.run(2, pose=False) == (None, Status.NO_POSE)


@pytest.mark.parametrize('halt', [False, True])
def test_nothing_is_sent_while_another_node_commands_the_arm(halt):
    robot = Robot()
    moving(robot)
    robot.executor.conflict(Status.CONFLICT)
    if halt:
        robot.executor.halt()
    sent = len(robot.sent)
    assert robot.run(5) == (None, Status.CONFLICT)
    robot.position = start = HOME + 0.4
    robot.run(5)
    robot.executor.conflict(None)
    robot.executor.clear_halt()
    assert len(robot.sent) == sent
    assert_begins_at(robot, start)


def test_while_two_policies_lead_the_arm_it_is_held():
    robot = Robot()
    moving(robot)
    robot.executor.conflict(Status.TWO_POLICIES)
    robot.push(chunk(robot.now, robot.position, (0.4, 0.0, 0.0)))
    assert robot.run(20)[1] == Status.TWO_POLICIES
    assert_within_limits(robot.sent)
    assert_comes_to_rest(robot.sent)
    robot.executor.conflict(None)
    robot.run(1)
    robot.push(chunk(robot.now, robot.position))
    assert robot.run(10)[1] == Status.TRACKING


def test_what_two_policies_sent_is_not_followed_when_one_of_them_is_gone():
    robot = Robot(blend_s=0.1)
    robot.pose()
    robot.push(chunk(robot.now, gripper=1.0))
    robot.run(5)
    robot.executor.conflict(Status.TWO_POLICIES)
    for start, gripper in ((HOME, 1.0), (HOME + [0.1, 0.0, 0.0], -1.0)):
        robot.push(chunk(robot.now, start, gripper=gripper, points=20))
        robot.run(3)
    robot.teleop(HOME + [0.0, 0.1, 0.0], gripper=-1.0)
    robot.executor.conflict(None)
    robot.sent.clear()
    assert robot.run(5)[1] == Status.NO_CHUNK
    assert all(command.gripper == 1.0 and np.array_equal(command.position, HOME)
               for command in robot.sent)
    robot.push(chunk(robot.now, gripper=1.0))
    assert robot.run(5)[1] == Status.TRACKING


@pytest.mark.parametrize('event', ['disable', 'conflict', 'halt', 'reset'])
def test_a_hand_that_somebody_may_have_moved_is_not_told_the_old_effort(event):
    robot = Robot(replace(ARM, gripper=replace(ARM.gripper, send_on_change=True)))
    robot.track()
    assert robot.sent[-1].gripper == -1.0
    executor = robot.executor
    begin, end = {
        'disable': (executor.disable, executor.enable),
        'halt': (executor.halt, executor.clear_halt),
        'reset': (lambda: None, executor.reset),
        'conflict': (lambda: executor.conflict(Status.CONFLICT),
                     lambda: executor.conflict(None))}[event]
    begin()
    robot.run(50)
    robot.sent.clear()
    end()
    robot.run(5)
    assert all(command.gripper is None for command in robot.sent)
    robot.run(5, each=lambda: robot.teleop(HOME, gripper=1.0))
    assert robot.sent[-1].gripper == 1.0


def test_the_hand_of_an_arm_that_was_guided_away_is_not_told_the_old_effort():
    robot = Robot()
    robot.track()
    assert robot.sent[-1].gripper == -1.0
    assert elsewhere(robot, np.array([0.0, 0.0, 1.6])) == (None, Status.ASTRAY)
    robot.position = HOME
    robot.sent.clear()
    robot.executor.clear_halt()
    robot.run(5, each=lambda: robot.teleop(HOME, gripper=1.0))
    assert {command.gripper for command in robot.sent} == {1.0}


def test_a_hand_that_is_told_all_the_time_goes_on_being_told_after_a_halt():
    robot = Robot()
    robot.track()
    robot.executor.halt()
    robot.run(5)
    robot.executor.clear_halt()
    robot.run(5)
    assert {command.gripper for command in robot.sent} == {-1.0}


def test_a_pose_outside_the_workspace_is_left_slowly_or_not_at_all():
    robot = Robot()
    robot.position = np.array([0.0, 0.0, 1.6])
    robot.pose()
    robot.push(chunk(robot.now, robot.position, points=40))
    assert robot.run(5) == (None, Status.START_REFUSED)
    robot.position = np.array([0.0, 0.0, 1.1])
    robot.pose()
    robot.push(chunk(robot.now, robot.position, points=40))
    assert robot.run(40)[1] == Status.STARTING
    assert 0 < np.abs(speeds(robot.sent)).max() <= LIMITS.start_speed * (1 + 1e-6)


def test_a_pose_in_another_frame_is_refused():
    robot = Robot()
    value = np.concatenate([HOME, UPRIGHT])
    problem = robot.executor.push_pose(Observation(EE_POSE, robot.now, value, 'panda_link0'))
    assert problem == "frame: ee_pose is in 'panda_link0', expected 'base', the arm's base_frame"
    robot.push(chunk(robot.now))
    assert robot.run(3, pose=False) == (None, Status.NO_POSE)


def test_huge_numbers_are_refused():
    robot = Robot()
    robot.track(steps=3)
    huge = np.tile([1e308, 0.0, -1e308], (7, 1))
    assert_refused(robot, replace(chunk(robot.now), position=huge), 'too far')
    assert robot.executor.push_pose(
        Observation(EE_POSE, robot.now, np.array([1e308, 0, 0, 0, 0, 0, 1.0]), 'base'))
    assert robot.teleop([0.0, 1e200, 0.0]).startswith('teleop too far')
    assert robot.run(3)[1] == Status.TRACKING


def test_a_halt_of_an_arm_that_never_moved_sends_nothing():
    robot = Robot()
    robot.executor.halt()
    assert robot.run(3) == (None, Status.HALTED)


# Teleoperation

def test_a_teleoperator_takes_over_and_lets_go():
    robot = Robot()
    robot.track((0.1, 0.0, 0.0), steps=5)
    hand = robot.position + [0.0, 0.02, 0.0]

    def both():
        robot.teleop(hand, gripper=1.0 if len(robot.sent) > 30 else -1.0)
        robot.push(chunk(robot.now, HOME))
    robot.run(40, each=both)
    assert robot.statuses[5] == Status.STARTING and robot.statuses[44] == Status.TELEOP
    np.testing.assert_allclose(robot.sent[-1].position, hand)
    assert robot.sent[-1].gripper == 1.0
    let_go = robot.now
    robot.run(60, each=lambda: robot.push(chunk(robot.now, HOME)))
    after = [(c.stamp_ns, s) for c, s in zip(robot.sent, robot.statuses, strict=True)
             if c.stamp_ns > let_go]
    assert [s for t, s in after if t <= let_go + 250 * MS] == [Status.TELEOP] * 12
    assert after[12][1] == Status.STARTING
    assert robot.statuses[-1] == Status.TRACKING
    np.testing.assert_allclose(robot.sent[-1].position, HOME)
    assert_within_limits(robot.sent)


def test_a_takeover_leaves_the_hand_as_it_is_until_another_effort_is_asked_for():
    """The policy closed the hand in the moment in which the person, who saw it open, took over."""
    robot = Robot()
    robot.pose()
    robot.push(chunk(robot.now, gripper=1.0))
    robot.run(2)
    robot.run(3, each=lambda: robot.teleop(HOME, gripper=-1.0))
    assert robot.statuses[-1] == Status.TELEOP and robot.sent[-1].gripper == 1.0
    for effort in (0.5, -1.0):
        robot.run(1, each=lambda effort=effort: robot.teleop(HOME, gripper=effort))
        assert robot.sent[-1].gripper == effort


def test_a_triggers_noise_opens_no_hand():
    robot = Robot()
    robot.pose()
    robot.push(chunk(robot.now, gripper=1.0))
    robot.run(2)
    for effort, sent in ((-0.98, 1.0), (-0.9765, 1.0), (-0.9, 1.0), (-0.5, -0.5), (-0.98, -0.98)):
        robot.run(1, each=lambda effort=effort: robot.teleop(HOME, gripper=effort))
        assert robot.sent[-1].gripper == sent


def test_the_first_effort_of_all_may_be_a_teleoperators():
    robot = Robot()
    robot.run(3, each=lambda: robot.teleop(HOME, gripper=0.5))
    assert robot.sent[-1].gripper == 0.5


def test_a_leap_of_the_clock_does_not_hand_a_led_arm_to_the_policy():
    robot = Robot()

    def both():
        robot.push(chunk(robot.now, HOME, gripper=-1.0, points=20))
        if len(robot.statuses) != 20:
            robot.teleop(HOME, gripper=1.0)
    robot.run(20, each=both)
    robot.now += 300 * MS
    robot.run(20, each=both)
    assert {Status.STARTING, Status.TELEOP, Status.NO_CHUNK} == set(robot.statuses)
    assert {command.gripper for command in robot.sent} == {1.0}


def test_after_release_the_command_goes_on_without_a_step():
    robot = Robot()
    robot.pose()
    start, goal = robot.now, HOME + [0.0, 0.02, 0.0]

    def drag():
        robot.teleop(goal + [0.2 * (robot.now - start) / S, 0.0, 0.0])
    robot.run(50, each=drag)
    lag = np.array([0.03, 0.0, 0.0])
    moving = robot.sent[-1]
    for _ in range(30):
        robot.now += PERIOD
        robot.steady += PERIOD
        robot.position = robot.sent[-1].position - lag  # the arm hangs behind its command
        robot.pose()
        robot.push(chunk(robot.now, robot.position))
        robot.step()
    assert_within_limits(robot.sent)
    assert robot.sent[-1].position[0] < moving.position[0] + 0.2
    assert Status.TRACKING in robot.statuses[51:]


def test_a_target_of_the_last_episode_moves_nothing_after_a_leap_of_time():
    robot = Robot(sim_time=True)
    hand = HOME + [0.0, 0.05, 0.0]
    robot.run(3, each=lambda: robot.teleop(hand))
    robot.executor.reset()
    robot.run(3, each=lambda: robot.teleop(hand))  # the episode has not ended for the teleoperator
    robot.sent.clear()
    robot.now += 2 * S
    robot.position = HOME
    assert robot.run(20) == (None, Status.NO_CHUNK)
    assert robot.sent == []


def test_a_teleoperator_too_far_away_is_refused_like_a_first_target():
    robot = Robot()
    robot.run(3, each=lambda: robot.teleop(HOME + [0.3, 0.0, 0.0]))
    assert robot.statuses[-1] == Status.START_REFUSED and robot.sent == []


@pytest.mark.parametrize('target, reason', [
    ({'position': [np.nan, 0, 0]}, 'teleop not finite'),
    ({'position': HOME, 'gripper': np.nan}, 'teleop not finite'),
    ({'position': HOME, 'frame_id': 'camera'}, 'teleop frame'),
    ({'position': HOME, 'quaternion': np.zeros(4)}, 'teleop quaternion'),
    ({'position': HOME, 'stamp': 99 * S}, 'teleop past'),
    ({'position': HOME, 'stamp': 101 * S}, 'teleop future'),
])
def test_a_bad_teleop_target_is_refused(target, reason):
    robot = Robot()
    robot.pose()
    assert 'expected' in robot.teleop(**target)
    assert robot.executor.refused == {reason: 1}
    assert robot.run(1) == (None, Status.NO_CHUNK)


def test_a_teleop_target_out_of_order_is_refused():
    robot = Robot()
    robot.pose()
    assert robot.teleop(HOME) is None
    assert robot.teleop(HOME).startswith('teleop out of order')


def test_lockstep_takes_no_notice_of_a_teleop_target_that_is_sent_again():
    robot = Lockstep()
    robot.tick()
    assert robot.teleop(HOME) is None and robot.teleop(HOME + 0.1) is None
    command, status = robot.wait()
    np.testing.assert_array_equal(command.position, HOME)
    assert status in (Status.TELEOP, Status.STARTING) and not robot.executor.refused


# An episode

def test_reset_brakes_and_drops_all_and_chunks_of_older_observations():
    robot = Robot()
    moving(robot)
    robot.teleop(robot.position)
    robot.executor.reset()
    robot.executor.reset()
    robot.pose()
    assert_refused(robot, chunk(robot.now - DT, HOME), 'before reset')
    command, status = robot.run(30)
    assert status == Status.NO_CHUNK and command.gripper == -1.0
    assert_within_limits(robot.sent)
    assert_comes_to_rest(robot.sent)
    assert robot.push(chunk(robot.now, robot.position)) is None
    command, status = robot.run(1)
    assert status == Status.STARTING and command is not None


def test_a_simulated_arm_that_went_astray_begins_the_next_episode_afresh():
    robot = Lockstep()
    robot.tick()
    robot.push(lockstep_chunk(robot.now))
    robot.wait()
    robot.position = HOME + 0.2
    for _ in range(10):
        robot.tick()
        robot.position = HOME + 0.2
    assert robot.statuses[-1] == Status.ASTRAY
    robot.executor.reset()
    robot.position = HOME.copy()
    robot.tick()
    robot.push(lockstep_chunk(robot.now))
    assert robot.wait()[1] == Status.STARTING


def test_limits_that_acted_are_counted_by_episode():
    robot = Robot()
    robot.track(steps=5)
    robot.push(chunk(robot.now, HOME + 0.1))
    robot.run(5)
    assert set(robot.executor.limits_acted) == {'speed'}
    robot.executor.reset()
    assert robot.executor.limits_acted == {}


def test_time_may_be_set_back_after_a_reset():
    robot = Robot()
    robot.track(steps=5)
    robot.executor.reset()
    robot.now = 50 * S
    robot.run(1)
    assert robot.push(chunk(robot.now, robot.position)) is None
    assert robot.run(1)[0] is not None


# Lockstep: the simulator waits for exactly one answer a tick

TICK = 12_500_000


class Lockstep(Robot):
    """The same, with the simulator's ticks of 12.5 ms, dt of two ticks and Ta of 2."""

    def __init__(self, **config):
        super().__init__(**{'lockstep': True, 'n_action_steps': 2, 'dt_s': 0.025, **config})

    def tick(self, wait=MS):
        """Receive the simulator's next observation."""
        self.now += TICK
        self.steady += wait
        self.pose()
        return self.step()

    def wait(self, duration=MS):
        self.steady += duration
        return self.step()

    def answer(self, new):
        """Receive a chunk."""
        problem = self.push(new)
        return (*self.wait(), problem)


def lockstep_chunk(stamp, start=HOME, points=4, **fields):
    offsets = np.arange(points) * 2 * TICK
    values = {'gripper': np.full(points, -1.0), 'frame_id': 'base', **fields}
    return Chunk(stamp, offsets, np.tile(np.asarray(start, float), (points, 1)), **values)


def test_lockstep_waits_for_the_chunk_and_answers_each_tick_once():
    robot = Lockstep()
    for _ in range(3):
        assert robot.tick() == (None, Status.NO_CHUNK)
        assert robot.wait() == (None, Status.NO_CHUNK)
        command, _, problem = robot.answer(lockstep_chunk(robot.now))
        assert problem is None and command.stamp_ns == robot.now
        assert robot.wait()[0] is None
        for _ in range(3):  # Ta*dt is four ticks: the same chunk answers three more
            command, status = robot.tick()
            assert command.stamp_ns == robot.now and status == Status.TRACKING
            assert robot.wait()[0] is None
    assert [c.stamp_ns for c in robot.sent] == [100 * S + TICK * (i + 1) for i in range(12)]


def test_lockstep_takes_no_notice_of_a_chunk_that_is_sent_again():
    robot = Lockstep()
    robot.tick()
    robot.answer(lockstep_chunk(robot.now))
    again, _, problem = robot.answer(lockstep_chunk(robot.now, HOME + 0.1))
    assert again is None and problem is None
    command, _ = robot.tick()
    np.testing.assert_array_equal(command.position, HOME)
    assert not robot.executor.refused


def test_lockstep_answers_nothing_from_a_chunk_that_is_used_up():
    robot = Lockstep()
    robot.tick()
    robot.answer(lockstep_chunk(robot.now, points=40))
    for _ in range(3):
        assert robot.tick()[0] is not None
    assert robot.tick() == (None, Status.NO_CHUNK)


def test_lockstep_answers_nothing_from_a_chunk_of_a_later_tick():
    robot = Lockstep()
    robot.tick()
    assert robot.answer(lockstep_chunk(robot.now + TICK)) == (None, Status.NO_CHUNK, None)


def test_lockstep_takes_a_chunk_that_comes_before_the_pose_and_gives_the_same_answer():
    early, late = Lockstep(blend_s=0.1), Lockstep(blend_s=0.1)
    for robot in (early, late):
        robot.tick()
        robot.answer(lockstep_chunk(robot.now))
        for _ in range(3):
            robot.tick()
    new = lockstep_chunk(early.now + TICK, HOME + 0.005)
    assert early.push(new) is None
    assert early.tick()[0] is not None
    assert late.tick()[0] is None
    assert late.answer(new)[0] is not None
    for _ in range(3):
        early.tick()
        late.tick()
    for ours, theirs in zip(early.sent, late.sent, strict=True):
        np.testing.assert_array_equal(ours.position, theirs.position)


def test_lockstep_counts_on_no_clock_but_the_chunks_own_stamp():
    robot, other = Lockstep(blend_s=0.1), Lockstep(blend_s=0.1)
    for each, lead in ((robot, 0), (other, 30 * MS)):
        for start in (HOME, HOME + 0.005):
            each.tick()
            new = lockstep_chunk(each.now, start)
            assert each.executor.push_chunk(new, each.now + lead, each.steady) is None
            each.wait()
            for _ in range(3):
                each.tick()
    for ours, theirs in zip(robot.sent, other.sent, strict=True):
        np.testing.assert_array_equal(ours.position, theirs.position)


def test_lockstep_does_not_answer_before_the_ticks_own_pose():
    robot = Lockstep()
    robot.tick()
    robot.answer(lockstep_chunk(robot.now))
    robot.now += TICK
    assert robot.step() == (None, Status.NO_POSE)
    robot.pose()
    assert robot.step()[0] is not None


def test_lockstep_announces_held_and_sends_nothing():
    robot = Lockstep()
    robot.tick()
    assert robot.wait(400 * MS) == (None, Status.NO_CHUNK)
    assert robot.wait(200 * MS) == (None, Status.HELD)
    command, _, _ = robot.answer(lockstep_chunk(robot.now))
    assert command is not None


def test_lockstep_sees_no_timeout_while_ticks_are_answered():
    robot = Lockstep()
    for _ in range(20):
        robot.tick(wait=2 * S)
        robot.answer(lockstep_chunk(robot.now))
        for _ in range(3):
            assert robot.tick(wait=2 * S)[0] is not None
    assert set(robot.statuses) <= {Status.NO_CHUNK, Status.STARTING, Status.TRACKING}


@pytest.mark.parametrize('spoil, reason', [
    (lambda new: with_nan(new, 'position'), 'not finite'),
    (lambda new: replace(new, frame_id='camera'), 'frame'),
    (lambda new: replace(new, quaternion=np.zeros((4, 4))), 'quaternion'),
])
def test_lockstep_answers_a_refused_chunks_ticks_with_a_hold_and_names_why(spoil, reason):
    robot = Lockstep()
    robot.tick()
    robot.answer(lockstep_chunk(robot.now, gripper=np.full(4, 1.0)))
    for _ in range(3):
        robot.tick()
    assert robot.tick() == (None, Status.NO_CHUNK)
    command, status, problem = robot.answer(spoil(lockstep_chunk(robot.now, HOME + 0.1)))
    assert problem.startswith(reason) and status == Status.REFUSED
    assert command.stamp_ns == robot.now and command.gripper == 1.0
    np.testing.assert_allclose(command.position, HOME)
    for _ in range(3):
        command, status = robot.tick()
        assert command is not None and status == Status.REFUSED
    assert robot.tick() == (None, Status.NO_CHUNK)
    assert robot.answer(lockstep_chunk(robot.now))[0] is not None


def test_lockstep_holds_where_a_chunk_before_the_first_pose_was_in_another_frame():
    robot = Lockstep()
    assert_refused(robot, lockstep_chunk(robot.now + TICK, frame_id='camera'), 'frame')
    command, status = robot.tick()
    assert command is not None and status == Status.REFUSED


def test_lockstep_holds_the_measured_pose_where_the_first_chunk_is_refused():
    robot = Lockstep()
    robot.tick()
    robot.executor.refuse_chunk(robot.now, 'points: there are none, expected at least one')
    command, status = robot.wait()
    assert status == Status.REFUSED
    np.testing.assert_allclose(command.position, HOME)
    assert command.gripper == 0.0  # neither opens nor closes


def test_lockstep_halt_answers_with_a_hold():
    robot = Lockstep()
    robot.tick()
    robot.executor.halt()
    command, status = robot.wait()
    assert status == Status.HALTED and command.stamp_ns == robot.now
    np.testing.assert_allclose(command.position, HOME)
    assert robot.tick()[1] == Status.HALTED and len(robot.sent) == 2
    robot.executor.clear_halt()
    assert robot.tick() == (None, Status.NO_CHUNK)


def test_lockstep_refuses_a_far_first_target_with_a_hold():
    robot = Lockstep()
    robot.tick()
    command, status, _ = robot.answer(lockstep_chunk(robot.now, HOME + 0.3))
    assert status == Status.START_REFUSED
    np.testing.assert_allclose(command.position, HOME)


def test_lockstep_disabled_answers_nothing():
    robot = Lockstep(enable_on_start=False)
    robot.executor.disable()
    assert robot.tick() == (None, Status.DISABLED)
    assert robot.answer(lockstep_chunk(robot.now))[:2] == (None, Status.DISABLED)


def test_lockstep_follows_a_teleoperator_stamp_by_stamp():
    robot = Lockstep(n_action_steps=0, dt_s=0.0)
    for i in range(5):
        assert robot.tick()[0] is None
        assert robot.teleop(HOME + [0.001 * i, 0, 0], gripper=0.3) is None
        command, _ = robot.wait()
        assert command.stamp_ns == robot.now and command.gripper == 0.3
    assert robot.statuses[-1] == Status.TELEOP


def test_lockstep_asks_no_clock_about_a_teleop_target():
    robot = Lockstep()
    robot.tick()
    target = Command(robot.now, HOME, UPRIGHT, 0.0, 'base')
    assert robot.executor.push_teleop(target, robot.now - 10 * S, robot.steady) is None
    assert robot.wait()[0] is not None


def test_lockstep_waits_for_the_teleoperator_of_the_tick_before_and_then_for_the_policy():
    robot = Lockstep()
    robot.tick()
    robot.teleop(HOME)
    assert robot.wait()[0] is not None
    assert robot.tick() == (None, Status.TELEOP)
    assert robot.answer(lockstep_chunk(robot.now, HOME))[:2] == (None, Status.TELEOP)
    assert robot.wait(240 * MS) == (None, Status.TELEOP)
    command, status = robot.wait(20 * MS)  # silent for teleop_timeout: let go
    assert command is not None and status == Status.STARTING


def test_lockstep_without_the_policys_step_names_the_parameters():
    robot = Lockstep(n_action_steps=0)
    robot.tick()
    assert_refused(robot, lockstep_chunk(robot.now), 'lockstep')


def test_lockstep_goes_on_after_time_is_set_back():
    robot = Lockstep()
    robot.tick()
    robot.answer(lockstep_chunk(robot.now))
    robot.now = S
    assert robot.tick() == (None, Status.NO_CHUNK)
    command, _, problem = robot.answer(lockstep_chunk(robot.now))
    assert problem is None and command.stamp_ns == S + TICK


def test_lockstep_reset_begins_the_next_episode_at_the_measured_pose():
    robot = Lockstep()
    robot.tick()
    robot.answer(lockstep_chunk(robot.now, gripper=np.full(4, 1.0)))
    robot.executor.reset()
    robot.now += 2 * S
    robot.position = HOME + 0.5
    assert robot.tick() == (None, Status.NO_CHUNK)
    command, _, _ = robot.answer(replace(lockstep_chunk(robot.now, HOME + 0.5), gripper=None))
    np.testing.assert_allclose(command.position, HOME + 0.5)
    assert command.gripper == 0.0  # the last episode's effort is forgotten


# Whatever comes

EVENT = st.one_of(
    st.tuples(st.just('run'), st.integers(1, 30)),
    st.tuples(st.just('blind'), st.integers(1, 40)),
    st.tuples(st.just('chunk'), st.floats(-0.5, 0.5), st.floats(-1.5, 1.5), st.integers(-8, 2)),
    st.tuples(st.just('nan')), st.tuples(st.sampled_from(
        ['halt', 'clear_halt', 'reset', 'disable', 'enable'])))


@settings(max_examples=80, deadline=None)
@given(st.lists(EVENT, max_size=25), st.sampled_from([0.0, 0.1]))
def test_no_stream_of_events_makes_a_command_that_breaks_the_limits(events, blend_s):
    """The arm does as it is told, so that a beginning at the measured pose is no step either."""
    robot = Robot(blend_s=blend_s)
    robot.track(steps=2)
    for event in events:
        if event[0] in ('run', 'blind'):
            robot.run(event[1], pose=event[0] == 'run')
        elif event[0] == 'chunk':
            robot.push(chunk(robot.now + event[3] * DT, robot.position + event[1],
                             (event[2], 0.0, -event[2])))
        elif event[0] == 'nan':
            robot.push(with_nan(chunk(robot.now), 'position'))
        else:
            getattr(robot.executor, event[0])()
    robot.run(5)
    assert_within_limits(robot.sent)
    assert {command.gripper for command in robot.sent} <= {None, -1.0}  # None after a reset
    assert [c.stamp_ns for c in robot.sent] == sorted({c.stamp_ns for c in robot.sent})


def test_a_step_is_cheap():
    """Bound of several times what an idle core takes."""
    robot = Robot(blend_s=0.1)
    durations = []
    for k in range(300):
        robot.now += PERIOD
        robot.steady += PERIOD
        robot.pose()
        if k % 10 == 0:
            robot.push(chunk(robot.now, robot.position, (0.1, -0.05, 0.0)))
        begin = time.perf_counter()
        robot.step()
        durations.append(time.perf_counter() - begin)
    assert min(durations[10:]) < 150e-6
    assert np.median(durations) < 600e-6


@pytest.mark.parametrize('rate, shortest', [(50.0, 0.1), (20.0, 0.25), (1.0, 5.0)])
def test_a_timeout_of_a_few_periods_is_refused(rate, shortest):
    """Else each command that is a little late would count as a pause."""
    ExecutorConfig(command_rate_hz=rate, command_timeout_s=shortest)
    ExecutorConfig(command_rate_hz=rate, command_timeout_s=0.02, lockstep=True)
    with pytest.raises(ValueError, match='command_timeout_s is .*, expected at least .*'
                                         f'{shortest:g}, 5 periods of command_rate_hz {rate:g}'):
        ExecutorConfig(command_rate_hz=rate, command_timeout_s=0.9 * shortest)


def test_every_parameter_is_described():
    for name, field in ExecutorConfig.__dataclass_fields__.items():
        assert field.metadata['description'].endswith('.'), name
        assert not name.endswith('_s') or field.metadata['unit'] == 's'

"""The policy node as a process of its own, over DDS, with a tiny random checkpoint."""

from __future__ import annotations

import array
from dataclasses import fields
import math
import re
import signal

from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
import numpy as np
import pytest
from rcl_interfaces.srv import DescribeParameters
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64
from std_srvs.srv import Trigger
from tiny_policy import DT_NS, make_policy, SIZE, SOURCE
import torch
from trajectory_msgs.msg import JointTrajectory, MultiDOFJointTrajectory
from visualization_msgs.msg import MarkerArray
import yaml

from diffusion_policy_ros.control import readings
from diffusion_policy_ros.control.images import camera_image
from diffusion_policy_ros.datatypes import EE_POSE, GRIPPER, NS_PER_S, ObservationWindow
from diffusion_policy_ros.nodes import messages
from diffusion_policy_ros.nodes.policy_node import PolicyNodeConfig
from diffusion_policy_ros.nodes.resources import config_folder
from diffusion_policy_ros.policy.checkpoint import save_checkpoint
from diffusion_policy_ros.policy.diffusion_policy import episode_noise

FRAME = 'base'
ARM = {'base_frame': FRAME, 'ee_frame': 'hand'}


@pytest.fixture(scope='module')
def arm_yaml(tmp_path_factory):
    path = tmp_path_factory.mktemp('arm') / 'arm.yaml'
    path.write_text(yaml.safe_dump(ARM))
    return str(path)


@pytest.fixture(scope='module')
def policy():
    return make_policy()


@pytest.fixture(scope='module')
def checkpoint(policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp('checkpoint')
    save_checkpoint(folder, policy, {}, torch.float32)
    return str(folder)


@pytest.fixture(scope='module')
def hasty_checkpoint(tmp_path_factory):
    """Return one whose chunks have no reserve for a late successor."""
    folder = tmp_path_factory.mktemp('hasty')
    save_checkpoint(folder, make_policy(n_action_steps=7), {}, torch.float32)
    return str(folder)


def picture(tick):
    """Return a picture that is another one at each tick."""
    return np.random.default_rng(tick).integers(0, 256, (SOURCE, SOURCE, 3), np.uint8)


def pose(tick):
    return np.array([0.01 * tick, 0.5, 0.2, 0, 0, 0, 1.0])


class Arm:
    """What the policy node sees of the world, and what it says to that."""

    stamps = iter(range(10 * NS_PER_S, 10**15, 1000 * NS_PER_S))

    def __init__(self, probe):
        self.probe, self.name = probe, '/policy'
        self.chunks = probe.collect(MultiDOFJointTrajectory, 'ee_trajectory')
        self.grippers = probe.collect(JointTrajectory, 'gripper_trajectory')
        self.inference_ms = probe.collect(Float64, f'{self.name}/inference_ms')
        self.image = probe.publisher(Image, 'wrist/image_raw')
        self.pose = probe.publisher(PoseStamped, 'ee_pose')
        self.gripper = probe.publisher(JointState, 'gripper_state')
        probe.meet(self.name)
        self.first_ns = next(self.stamps)

    def observe(self, tick, **changes):
        """Publish what is seen at a tick (dt apart); `changes` replaces messages."""
        stamp_ns = self.first_ns + tick * DT_NS
        values = {
            'image': messages.image_message(picture(tick), stamp_ns, 'optical'),
            'gripper': messages.gripper_state_message(0.25, stamp_ns),
            'pose': messages.pose_message(pose(tick)[:3], pose(tick)[3:], stamp_ns, FRAME)}
        for name, msg in {**values, **changes}.items():
            if msg is not None:
                getattr(self, name).publish(msg)
        return stamp_ns

    def chunk(self, stamp_ns):
        """Return the chunk of an observation, both halves joined, once it is there."""
        def find_chunk():
            halves = [[msg for msg in half if readings.stamp_ns(msg.header) == stamp_ns]
                      for half in (self.chunks, self.grippers)]
            return halves if all(halves) else None

        motion, gripper = self.probe.wait(find_chunk, f'a chunk stamped {stamp_ns}')
        return readings.join_chunk(readings.motion_half(motion[0]),
                                   readings.gripper_half(gripper[0]))

    def call(self, service):
        response = self.probe.call(Trigger, f'{self.name}/{service}')
        return response.success, response.message

    def report(self, predicate):
        """Return the values of the first report that satisfies `predicate`."""
        return self.probe.report(self.name, predicate).values


def expected_chunk(policy, ticks, first_ns, elapsed_ns, seed=3):
    """Return what the policy predicts from the pictures and poses of two ticks."""
    images = [camera_image(picture(tick), 'rgb8', SIZE, SIZE) for tick in ticks]
    window = ObservationWindow(first_ns + elapsed_ns, {
        'wrist': np.stack(images), EE_POSE: np.stack([pose(tick) for tick in ticks]),
        GRIPPER: np.full((2, 1), 0.25)}, FRAME)
    noise = episode_noise(seed, elapsed_ns, policy.noise_shape)[None]
    return policy.predict([window], noise)[0]


def assert_same_chunk(found, expected):
    assert (found.stamp_ns, found.frame_id) == (expected.stamp_ns, expected.frame_id)
    np.testing.assert_array_equal(found.offsets_ns, expected.offsets_ns)
    np.testing.assert_allclose(found.position, expected.position, atol=1e-7)
    np.testing.assert_allclose(found.gripper, expected.gripper, atol=1e-6)
    assert found.quaternion is None


@pytest.fixture(scope='module')
def shared(start_once, checkpoint, arm_yaml):
    return start_once('policy_node', 'policy', {
        'checkpoint': checkpoint, 'arm': arm_yaml, 'seed': 3, 'lockstep': True, 'n_threads': 1})


@pytest.fixture()
def arm(shared, probe):
    arm = Arm(probe)
    assert arm.call('reset')[0]
    return arm


def test_chunks_are_those_of_the_policy(arm, policy):
    first_ns = arm.observe(0)
    assert_same_chunk(arm.chunk(first_ns), expected_chunk(policy, (0, 0), first_ns, 0))
    for tick in (1, 2, 3):
        arm.observe(tick)
    second_ns = arm.observe(4)
    assert_same_chunk(arm.chunk(second_ns), expected_chunk(policy, (3, 4), first_ns, 4 * DT_NS))
    assert [readings.stamp_ns(msg.header) for msg in arm.chunks] == [first_ns, second_ns]
    arm.probe.wait(lambda: len(arm.inference_ms) == 2, 'the times of both')
    assert all(msg.data > 0 for msg in arm.inference_ms)


def test_a_jump_back_begins_an_episode(arm, policy):
    arm.chunk(arm.observe(0))
    arm.observe(1)
    arm.first_ns -= 3 * NS_PER_S
    stamp_ns = arm.observe(0)
    assert_same_chunk(arm.chunk(stamp_ns), expected_chunk(policy, (0, 0), stamp_ns, 0))


def test_reset_begins_an_episode(arm, policy):
    arm.chunk(arm.observe(0))
    assert arm.call('reset') == (True, 'a new episode begins')
    stamp_ns = arm.observe(1)
    assert_same_chunk(arm.chunk(stamp_ns), expected_chunk(policy, (1, 1), stamp_ns, 0))


def test_stop_and_start(arm):
    assert arm.call('stop') == (True, 'inactive')
    state = arm.probe.call(GetState, '/policy/get_state').current_state.label
    assert state == 'inactive'
    stopped_ns = arm.observe(0)
    assert arm.call('start')[0]
    arm.first_ns += 2 * NS_PER_S
    stamp_ns = arm.observe(0)
    arm.chunk(stamp_ns)
    assert [readings.stamp_ns(msg.header) for msg in arm.chunks] == [stamp_ns] != [stopped_ns]


@pytest.mark.parametrize('encoding, turn', [
    ('bgr8', lambda rgb: rgb[..., ::-1]),
    ('rgba8', lambda rgb: np.dstack([rgb, rgb[..., :1]])),
])
def test_other_encodings_make_no_difference(arm, policy, encoding, turn):
    stamp_ns = arm.first_ns
    arm.observe(0, image=messages.image_message(turn(picture(0)), stamp_ns, 'optical', encoding))
    assert_same_chunk(arm.chunk(stamp_ns), expected_chunk(policy, (0, 0), stamp_ns, 0))


def bad_messages(stamp_ns):
    """Return topic, message and the reason that it is refused for."""
    good = messages.image_message(picture(0), stamp_ns, 'optical')
    image_16 = Image(header=good.header, height=SOURCE, width=SOURCE, encoding='16UC1',
                     step=2 * SOURCE, data=array.array('B', bytes(2 * SOURCE * SOURCE)))
    cut = messages.image_message(picture(0), stamp_ns, 'optical')
    cut.data = cut.data[:-1]
    nan = messages.pose_message(pose(0)[:3], pose(0)[3:], stamp_ns, FRAME)
    nan.pose.position.y = math.nan
    no_frame = messages.pose_message(pose(0)[:3], pose(0)[3:], stamp_ns, '')
    return {'image': [(image_16, '/wrist/image_raw encoding'), (cut, '/wrist/image_raw data')],
            'pose': [(nan, '/ee_pose position'), (no_frame, '/ee_pose header.frame_id')],
            'gripper': [(JointState(header=good.header), '/gripper_state position')]}


def test_bad_messages_are_counted_and_named_once(arm, shared, policy):
    reasons = []
    for name, bad in bad_messages(arm.first_ns).items():
        for msg, reason in bad:
            reasons.append(f'refused {reason}')
            for _ in range(5):
                getattr(arm, name).publish(msg)
    values = arm.report(lambda values: all(values.get(reason) == '5' for reason in reasons))
    assert values['chunks_missed'] == '0'
    for reason in reasons:
        topic = reason.split()[1]
        field = reason.split()[2]
        assert len(re.findall(f'{topic} refused: {field}', shared.log)) == 1, shared.log
    stamp_ns = arm.observe(0)
    assert_same_chunk(arm.chunk(stamp_ns), expected_chunk(policy, (0, 0), stamp_ns, 0))


def test_markers_only_for_one_who_looks(arm):
    arm.chunk(arm.observe(0))
    markers = arm.probe.collect(MarkerArray, '/policy/markers')
    arm.probe.meet('/policy')
    arm.call('reset')
    arm.first_ns += 2 * NS_PER_S
    arm.chunk(arm.observe(0))
    arm.probe.wait(lambda: markers, 'markers')
    assert len(markers[0].markers[0].points) == 7


def test_every_parameter_is_described(arm):
    names = [field.name for field in fields(PolicyNodeConfig)]
    request = DescribeParameters.Request(names=names)
    found = arm.probe.call(DescribeParameters, '/policy/describe_parameters', request).descriptors
    for descriptor, field in zip(found, fields(PolicyNodeConfig), strict=True):
        unit = field.metadata.get('unit')
        assert descriptor.description == field.metadata['description'] + (
            f' [{unit}]' if unit else '')


def test_yaml_holds_the_parameters_and_their_defaults():
    (values,) = yaml.safe_load((config_folder() / 'policy.yaml').read_text()).values()
    assert values['ros__parameters'] == {
        field.name: field.default for field in fields(PolicyNodeConfig)}


@pytest.mark.slow
def test_a_lifecycle_manager_starts_it_and_all_differences_come_in_one_report(
        start, probe, hasty_checkpoint, arm_yaml):
    process = start('policy_node', 'managed', {
        'checkpoint': hasty_checkpoint, 'arm': arm_yaml, 'autostart': False}, ('-r', '__ns:=/b'))

    def change(transition):
        request = ChangeState.Request(transition=Transition(id=transition))
        return probe.call(ChangeState, '/b/managed/change_state', request).success

    assert probe.call(GetState, '/b/managed/get_state').current_state.label == 'unconfigured'
    response = probe.call(Trigger, '/b/managed/start')
    assert (response.success, response.message) == (
        False, 'the policy is unconfigured, expected inactive or active')
    assert not probe.call(Trigger, '/b/managed/reset').success
    assert not change(Transition.TRANSITION_ACTIVATE)
    assert process.log.count('change_state refused: ') == 1
    for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE,
                       Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP,
                       Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
        assert change(transition)
    assert probe.call(GetState, '/b/managed/get_state').current_state.label == 'active'
    assert len(re.findall(r'a chunk takes [0-9.]+ ms \(median\), latency_budget_s leaves 0.0 ms: '
                          'at full speed the arm will hold between chunks', process.log)) == 2

    image = probe.publisher(Image, '/b/wrist/image_raw')
    ee_pose = probe.publisher(PoseStamped, '/b/ee_pose')
    pixels = np.zeros((30, 20, 3), np.uint8)
    stamps = iter(range(10 * NS_PER_S, 10**15, 2 * DT_NS))

    def publish():
        stamp_ns = next(stamps)
        image.publish(messages.image_message(pixels, stamp_ns, ''))
        ee_pose.publish(messages.pose_message([0, 0, 0], [0, 0, 0, 1], stamp_ns, 'world_b'))

    probe.node.create_timer(0.02, publish)
    expected = [
        '/b/gripper_state: no message that can be used, expected one',
        '/b/wrist/image_raw: 30x20 pixels (height x width), expected 40x40 as in training',
        '/b/wrist/image_raw: 10.0 Hz, expected at least 20.0 Hz, the rate of the policy',
        '/b/ee_pose: 10.0 Hz, expected at least 20.0 Hz, the rate of the policy',
        f"/b/ee_pose: frame_id world_b, expected {FRAME}, the arm's base_frame"]
    values = probe.report('/b/managed', lambda values: values.get('inputs_differ')).values
    assert sorted(values['inputs_differ'].split('; ')) == sorted(expected)
    for line in expected:
        assert process.log.count(line) == 1
    process.signal(signal.SIGINT)
    assert process.wait() == 0


def test_a_camera_of_another_clock_is_named(start, probe, hasty_checkpoint, arm_yaml):
    process = start('policy_node', 'skewed', {
        'checkpoint': hasty_checkpoint, 'arm': arm_yaml}, ('-r', '__ns:=/s'))
    image = probe.publisher(Image, '/s/wrist/image_raw')
    ee_pose = probe.publisher(PoseStamped, '/s/ee_pose')
    gripper = probe.publisher(JointState, '/s/gripper_state')
    pixels = np.zeros((40, 40, 3), np.uint8)

    def publish():
        now_ns = probe.node.get_clock().now().nanoseconds
        image.publish(messages.image_message(pixels, now_ns - 10 * NS_PER_S, ''))
        ee_pose.publish(messages.pose_message([0, 0, 0], [0, 0, 0, 1], now_ns, FRAME))
        gripper.publish(messages.gripper_state_message(0.5, now_ns))

    probe.node.create_timer(DT_NS / NS_PER_S, publish)
    probe.wait(lambda: re.search(r'no chunk: wrist.* (9|10)\.\d+ s', process.log), 'the reason')


def test_inputs_are_named_as_they_are_remapped_and_said_to_be_right(
        start, probe, checkpoint, arm_yaml):
    process = start('policy_node', 'policy', {
        'checkpoint': checkpoint, 'arm': arm_yaml, 'autostart': False},
        ('-r', '__ns:=/r', '-r', 'wrist/image_raw:=/camera/color/image_raw'))
    response = probe.call(Trigger, '/r/policy/stop')
    assert (response.success, response.message) == (
        False, 'the policy is unconfigured, expected inactive or active')
    request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
    assert probe.call(ChangeState, '/r/policy/change_state', request).success
    assert ('needs /camera/color/image_raw 40x40 (height x width), /r/ee_pose, /r/gripper_state; '
            'each at 20.0 Hz or more') in process.log
    assert probe.call(Trigger, '/r/policy/start').success
    image = probe.publisher(Image, '/camera/color/image_raw')
    ee_pose = probe.publisher(PoseStamped, '/r/ee_pose')
    gripper = probe.publisher(JointState, '/r/gripper_state')
    encoding = ['bayer_rggb8']

    def publish():
        now_ns = probe.node.get_clock().now().nanoseconds
        pixels = messages.image_message(picture(0), now_ns, '')
        pixels.encoding = encoding[-1]
        image.publish(pixels)
        ee_pose.publish(messages.pose_message([0, 0, 0], [0, 0, 0, 1], now_ns, FRAME))
        gripper.publish(messages.gripper_state_message(0.5, now_ns))

    timer = probe.node.create_timer(DT_NS / NS_PER_S, publish)
    wrong = '/camera/color/image_raw: no message that can be used (refused: encoding), expected'
    probe.wait(lambda: wrong in process.log, 'what is wrong')
    assert '/camera/color/image_raw refused: encoding: ' in process.log
    assert 'the inputs are what' not in process.log
    encoding.append('rgb8')
    probe.wait(lambda: 'the inputs are what the checkpoint needs' in process.log, 'all is right')
    probe.node.destroy_timer(timer)


def test_a_wrong_setting_ends_with_one_line(start, arm_yaml):
    process = start('policy_node', 'wrong', {'checkpoint': 'no/such', 'arm': arm_yaml})
    assert process.wait() == 1
    assert process.log.startswith("'no/such': no such file or folder, nor in ")
    assert process.log.count('\n') == 1

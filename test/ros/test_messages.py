"""Conversions there and back, and every message that has to be refused."""

from __future__ import annotations

import array
import math

import cv2
from geometry_msgs.msg import Point, Quaternion
import numpy as np
import pytest
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import Float64MultiArray, Header
from trajectory_msgs.msg import JointTrajectory, MultiDOFJointTrajectory

from diffusion_policy_ros.control import readings
from diffusion_policy_ros.datatypes import Chunk, Command, EE_POSE, GRIPPER
from diffusion_policy_ros.nodes import messages

STAMP_NS = 12_345_678_901
RGB = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
HALF = math.sqrt(0.5)


def over_the_wire(msg):
    """Return a message as the middleware hands it on."""
    return deserialize_message(serialize_message(msg), type(msg))


def refused(expected, function, *arguments):
    """Assert that a call is refused in one line that starts with `expected`."""
    with pytest.raises(ValueError) as caught:
        function(*arguments)
    assert str(caught.value).startswith(expected), str(caught.value)
    assert '\n' not in str(caught.value)


def pose(**changes):
    msg = messages.pose_message([1, 2, 3], [0, 0, HALF, HALF], STAMP_NS, 'base')
    for name, value in changes.items():
        setattr(msg.pose if name in ('position', 'orientation') else msg, name, value)
    return msg


def chunk(**changes):
    values = {
        'stamp_ns': STAMP_NS, 'offsets_ns': np.array([0, 50_000_000, 1_100_000_000]),
        'position': np.arange(9.0).reshape(3, 3), 'quaternion': None,
        'gripper': np.array([-1.0, 0.25, 1.0]), 'frame_id': 'base'}
    return Chunk(**{**values, **changes})


def assert_same(left, right):
    """Assert that two chunks are the same to the last bit."""
    assert (left.stamp_ns, left.frame_id) == (right.stamp_ns, right.frame_id)
    for name in ('offsets_ns', 'position', 'quaternion', 'gripper'):
        ours, theirs = getattr(left, name), getattr(right, name)
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            np.testing.assert_array_equal(ours, theirs, name)


# Images

@pytest.mark.parametrize('encoding, pixels', [
    ('rgb8', RGB),
    ('bgr8', RGB[..., ::-1]),
    ('rgba8', np.dstack([RGB, np.full((6, 5), 7, np.uint8)])),
    ('bgra8', np.dstack([RGB[..., ::-1], np.full((6, 5), 7, np.uint8)])),
])
def test_colour_images_become_rgb(encoding, pixels):
    msg = over_the_wire(messages.image_message(pixels, STAMP_NS, 'optical', encoding))
    observation, size = readings.image_observation(msg, 'wrist', 6, 5)
    assert size == (6, 5)
    assert (observation.stream, observation.stamp_ns) == ('wrist', STAMP_NS)
    assert observation.frame_id == 'optical'
    np.testing.assert_array_equal(observation.value, RGB)


def test_a_grey_image_becomes_three_equal_channels():
    grey = np.ascontiguousarray(RGB[..., 0])
    msg = over_the_wire(messages.image_message(grey, STAMP_NS, '', 'mono8'))
    value = readings.image_observation(msg, 'wrist', 6, 5)[0].value
    np.testing.assert_array_equal(value, np.repeat(grey[..., None], 3, axis=2))


def test_padding_of_rows_is_left_out():
    msg = messages.image_message(RGB, STAMP_NS, '')
    padded = np.full((6, 19), 255, np.uint8)
    padded[:, :15] = RGB.reshape(6, 15)
    msg.step, msg.data = 19, array.array('B', padded.tobytes())
    pixels, encoding = readings.image_pixels(over_the_wire(msg))
    assert encoding == 'rgb8'
    np.testing.assert_array_equal(pixels, RGB)


def test_an_image_is_scaled_to_the_size_asked_for():
    flat = np.full((224, 224, 3), (10, 20, 30), np.uint8)
    observation, size = readings.image_observation(
        messages.image_message(flat, STAMP_NS, ''), 'wrist', 96, 90)
    assert size == (224, 224)
    assert observation.value.shape == (96, 90, 3)
    assert (observation.value == (10, 20, 30)).all()


def test_cv_bridge_agrees_where_it_is_right():
    bridge = pytest.importorskip('cv_bridge').CvBridge()
    for encoding in ('rgb8', 'bgr8'):
        msg = bridge.cv2_to_imgmsg(RGB, encoding)
        ours = messages.image_message(RGB, STAMP_NS, '', encoding)
        assert bytes(msg.data) == bytes(ours.data)
        assert (msg.step, msg.encoding, msg.height) == (ours.step, ours.encoding, ours.height)
        np.testing.assert_array_equal(
            readings.image_observation(ours, 'wrist', 6, 5)[0].value,
            bridge.imgmsg_to_cv2(msg, 'rgb8'))


@pytest.mark.parametrize('encoding', ['16UC1', '32FC1', 'yuv422', 'bayer_rggb8', '8UC3', ''])
def test_other_encodings_are_refused_by_name(encoding):
    msg = messages.image_message(RGB, STAMP_NS, '')
    msg.encoding = encoding
    refused(f'encoding: {encoding!r}, expected one of rgb8, bgr8', readings.image_pixels, msg)


@pytest.mark.parametrize('changes, expected', [
    ({'data': array.array('B', RGB.tobytes()[:-1])}, 'data: 89 bytes, expected 90 for 6 rows'),
    ({'data': array.array('B', RGB.tobytes() + b'x')}, 'data: 91 bytes, expected 90'),
    ({'data': array.array('B')}, 'data: 0 bytes, expected 90'),
    ({'step': 14}, 'step: 14 bytes a row, expected at least 15 for 5 rgb8 pixels'),
    ({'height': 0}, 'size: 0x5 pixels'),
    ({'width': 0}, 'size: 6x0 pixels'),
])
def test_an_image_that_does_not_fit_its_size_is_refused(changes, expected):
    msg = messages.image_message(RGB, STAMP_NS, '')
    for name, value in changes.items():
        setattr(msg, name, value)
    refused(expected, readings.image_pixels, msg)


def test_an_image_without_a_stamp_is_refused():
    msg = messages.image_message(RGB, 0, '')
    refused('header.stamp: 0 ns', readings.image_observation, msg, 'wrist', 6, 5)


def test_only_uint8_pixels_are_sent():
    refused('pixels: float64', messages.image_message, RGB / 255.0, STAMP_NS, '')
    refused('pixels: uint8 with 1 channels', messages.image_message, RGB[..., 0], STAMP_NS, '')


def compressed(extension='.png', cut=None):
    _, data = cv2.imencode(extension, np.ascontiguousarray(
        np.kron(RGB, np.ones((16, 16, 1), np.uint8))[..., ::-1]))
    msg = CompressedImage(header=messages.to_header(STAMP_NS), format=f'rgb8; {extension[1:]}')
    msg.data = array.array('B', data.tobytes()[:cut])
    return msg


def test_a_png_is_decoded_to_rgb():
    observation, size = readings.image_observation(over_the_wire(compressed()), 'wrist', 6, 5)
    assert size == (96, 80)
    assert observation.stamp_ns == STAMP_NS
    np.testing.assert_array_equal(observation.value, RGB)


def test_a_jpeg_is_decoded_to_rgb():
    value = readings.image_observation(compressed('.jpg'), 'wrist', 6, 5)[0].value
    assert np.abs(value.astype(int) - RGB).mean() < 6


@pytest.mark.parametrize('extension, cut', [('.jpg', -2), ('.jpg', 300), ('.jpg', 0), ('.png', 9)])
def test_a_compressed_image_cut_short_is_refused(extension, cut):
    refused('data: ', readings.image_pixels, compressed(extension, cut))


@pytest.mark.parametrize('kind', ['16UC1; png compressed ', '32FC1; compressedDepth png'])
def test_compressed_depth_is_refused(kind):
    msg = compressed()
    msg.format = kind
    refused(f'format: {kind!r}', readings.image_pixels, msg)


def test_camera_info_holds_the_intrinsics():
    k = np.array([[100.0, 0, 48], [0, 101, 47], [0, 0, 1]])
    msg = over_the_wire(messages.camera_info_message(k, 96, 95, STAMP_NS, 'optical'))
    np.testing.assert_array_equal(msg.k.reshape(3, 3), k)
    np.testing.assert_array_equal(msg.p.reshape(3, 4), np.hstack([k, np.zeros((3, 1))]))
    assert (msg.height, msg.width, msg.header.frame_id) == (96, 95, 'optical')


# Poses, grippers, commands

def test_a_pose_comes_back_as_it_left():
    observation = readings.pose_observation(over_the_wire(pose()))
    assert (observation.stream, observation.stamp_ns) == (EE_POSE, STAMP_NS)
    assert observation.frame_id == 'base'
    np.testing.assert_array_equal(observation.value, [1, 2, 3, 0, 0, HALF, HALF])


@pytest.mark.parametrize('changes, expected', [
    ({'position': Point(x=math.nan)}, 'position: [nan, 0.0, 0.0] has NaN'),
    ({'position': Point(y=-math.inf)}, 'position: [0.0, -inf, 0.0] has NaN or infinity'),
    ({'orientation': Quaternion(w=math.nan)}, 'quaternion: '),
    ({'orientation': Quaternion(w=0.0)}, 'quaternion: [0.0, 0.0, 0.0, 0.0] has length 0.0'),
    ({'orientation': Quaternion(w=1.1)}, 'quaternion: [0.0, 0.0, 0.0, 1.1] has length 1.1'),
    ({'header': Header(frame_id='base')}, 'header.stamp: 0 ns'),
    ({'header': messages.to_header(STAMP_NS)}, 'header.frame_id: it is empty'),
])
def test_a_bad_pose_is_refused(changes, expected):
    refused(expected, readings.pose_observation, pose(**changes))
    refused(expected, readings.command_from, pose(**changes), None)


def test_no_bad_pose_is_sent():
    refused('position: ', messages.pose_message, [0, math.nan, 0], [0, 0, 0, 1], STAMP_NS, 'base')
    refused('quaternion: ', messages.pose_message, [0, 0, 0], [0, 0, 0, 0], STAMP_NS, 'base')


def test_a_gripper_state_comes_back_as_it_left():
    msg = over_the_wire(messages.gripper_state_message(0.25, STAMP_NS))
    observation = readings.gripper_observation(msg)
    assert (observation.stream, observation.stamp_ns) == (GRIPPER, STAMP_NS)
    np.testing.assert_array_equal(observation.value, [0.25])


def test_a_bad_gripper_state_is_refused():
    header = messages.to_header(STAMP_NS)
    refused('position: it is empty', readings.gripper_observation, JointState(header=header))
    refused('position: [nan]', readings.gripper_observation,
            JointState(header=header, position=[math.nan]))
    refused('header.stamp', readings.gripper_observation, JointState(position=[0.5]))


@pytest.mark.parametrize('gripper', [None, -1.0, 0.5])
def test_a_command_comes_back_as_it_left(gripper):
    command = Command(STAMP_NS, np.array([1.0, 2, 3]), np.array([0, 0, HALF, HALF]), gripper,
                      'base')
    motion = messages.pose_message(command.position, command.quaternion, STAMP_NS, 'base')
    effort = None if gripper is None else messages.gripper_target_message(gripper, STAMP_NS)
    back = readings.command_from(over_the_wire(motion), effort and over_the_wire(effort))
    assert (back.stamp_ns, back.gripper, back.frame_id) == (STAMP_NS, gripper, 'base')
    np.testing.assert_array_equal(back.position, command.position)
    np.testing.assert_array_equal(back.quaternion, command.quaternion)


@pytest.mark.parametrize('efforts, expected', [
    ([], 'effort: it is empty'), ([math.nan], 'effort: [nan]'), ([1.5], 'effort: 1.5, expected')])
def test_a_bad_gripper_target_is_refused(efforts, expected):
    refused(expected, readings.gripper_target,
            JointState(header=messages.to_header(STAMP_NS), effort=efforts))


# Chunks

@pytest.mark.parametrize('quaternion', [None, np.tile([0, 0, HALF, HALF], (3, 1))])
def test_a_chunk_comes_back_as_it_left(quaternion):
    sent = chunk(quaternion=quaternion)
    motion, gripper = (over_the_wire(msg) for msg in messages.chunk_messages(sent))
    assert readings.stamp_ns(motion.header) == readings.stamp_ns(gripper.header) == STAMP_NS
    assert_same(readings.join_chunk(readings.motion_half(motion), readings.gripper_half(gripper)),
                sent)


def test_a_chunk_without_a_gripper_is_one_message():
    motion, gripper = messages.chunk_messages(chunk(gripper=None))
    assert gripper is None
    assert_same(readings.motion_half(motion), chunk(gripper=None))


def spoil(**changes):
    """Return the two messages of a chunk, one point of the motion changed."""
    motion, gripper = messages.chunk_messages(chunk())
    for name, value in changes.items():
        setattr(motion.points[1].transforms[0], name, value)
    return motion, gripper


def test_a_bad_chunk_is_refused():
    vector = type(spoil()[0].points[0].transforms[0].translation)
    refused('position: ', readings.motion_half, spoil(translation=vector(x=math.nan))[0])
    refused('quaternion: ', readings.motion_half, spoil(rotation=Quaternion(w=1.0))[0])
    motion, gripper = spoil()
    motion.points[2].time_from_start.sec = 0
    motion.points[2].time_from_start.nanosec = 0
    refused('chunk: time_from_start does not increase', readings.motion_half, motion)
    refused('time_from_start: 3 points', readings.join_chunk,
            readings.motion_half(messages.chunk_messages(
                chunk(offsets_ns=np.array([0, 1, 2])))[0]), readings.gripper_half(gripper))
    motion.points[2].transforms = []
    refused('points: a point has not exactly one', readings.motion_half, motion)
    header = messages.to_header(STAMP_NS, 'base')
    refused('points: there are none', readings.motion_half, MultiDOFJointTrajectory(header=header))
    refused('points: there are none', readings.gripper_half, JointTrajectory(header=header))
    gripper.points[1].effort = []
    refused('effort: it is empty', readings.gripper_half, gripper)
    gripper.points[1].effort = [-1.5]
    refused('effort: ', readings.gripper_half, gripper)
    motion = spoil()[0]
    motion.header.frame_id = ''
    refused('header.frame_id: ', readings.motion_half, motion)


def test_no_bad_chunk_is_sent():
    position = np.zeros((3, 3))
    position[1, 1] = math.nan
    refused('position: ', messages.chunk_messages, chunk(position=position))
    refused('effort: ', messages.chunk_messages, chunk(gripper=np.array([0, math.nan, 0])))
    refused('quaternion: ', messages.chunk_messages, chunk(quaternion=np.zeros((3, 4))))


def test_markers_show_every_point():
    line, balls = messages.chunk_markers(chunk()).markers
    assert [point.y for point in line.points] == [1.0, 4.0, 7.0]
    assert [colour.r for colour in balls.colors] == [0.0, 0.625, 1.0]
    assert line.header.frame_id == 'base' and line.id != balls.id
    over_the_wire(messages.chunk_markers(chunk(gripper=None)))


# The rest

def test_numbers_come_back_as_they_left():
    msg = over_the_wire(messages.floats_message(np.arange(42.0)))
    np.testing.assert_array_equal(readings.floats(msg, 42), np.arange(42.0))
    refused('data: 42 numbers, expected 39', readings.floats, msg, 39)
    refused('data: ', readings.floats, Float64MultiArray(data=[math.nan]), 1)


def test_diagnostics_hold_their_values():
    msg = over_the_wire(messages.diagnostics_message(
        '/a/policy', b'\x01', 'late', {'chunk_ms': 3.5, 'missed': 2}, STAMP_NS))
    assert msg.status[0].level == b'\x01' and msg.status[0].message == 'late'
    assert readings.diagnostics_values(msg, '/a/policy') == {'chunk_ms': '3.5', 'missed': '2'}
    assert readings.diagnostics_values(msg, '/a') is None


@pytest.mark.parametrize('stamp', [1, STAMP_NS, 2**31 * 10**9 - 1])
def test_stamps_are_exact(stamp):
    assert readings.stamp_ns(messages.to_header(stamp)) == stamp

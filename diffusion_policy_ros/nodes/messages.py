"""
Every conversion between ROS messages and the values of datatypes.py, and nothing else.

A message that can't be used raises a ValueError of one line, `field: found, expected`; the field
before the colon is what nodes/guard.py counts refusals by.
"""

from __future__ import annotations

import array
from collections.abc import Mapping
from dataclasses import dataclass, replace
import math

from builtin_interfaces.msg import Duration, Time
import cv2
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import Point, PoseStamped, Quaternion, Transform, Vector3
import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import ColorRGBA, Float64MultiArray, Header
from trajectory_msgs.msg import (
    JointTrajectory, JointTrajectoryPoint, MultiDOFJointTrajectory, MultiDOFJointTrajectoryPoint,
)
from visualization_msgs.msg import Marker, MarkerArray

from diffusion_policy_ros.control.images import camera_image
from diffusion_policy_ros.datatypes import (
    Chunk, Command, EE_POSE, GRIPPER, NS_PER_S, Observation, to_ns,
)

CHANNELS = {'rgb8': 3, 'bgr8': 3, 'rgba8': 4, 'bgra8': 4, 'mono8': 1}
EE_JOINT = 'end_effector'
GRIPPER_JOINT = 'gripper'
QUATERNION_TOLERANCE = 1e-3
MARKER_LIFETIME_S = 2.0


# Time and headers

def to_stamp(stamp_ns: int) -> Time:
    """Return nanoseconds of ROS time as a message's time."""
    sec, nanosec = divmod(int(stamp_ns), NS_PER_S)
    return Time(sec=sec, nanosec=nanosec)


def stamp_ns(header: Header) -> int:
    """Return header.stamp in nanoseconds; 0 means that nobody set it, and is refused."""
    stamp = header.stamp.sec * NS_PER_S + header.stamp.nanosec
    if stamp <= 0:
        raise ValueError(f'header.stamp: {stamp} ns, expected the time of the measurement')
    return stamp


def to_header(stamp_ns: int, frame_id: str = '') -> Header:
    """Return a header of this stamp and frame."""
    return Header(stamp=to_stamp(stamp_ns), frame_id=frame_id)


def _to_duration(nanoseconds: int) -> Duration:
    sec, nanosec = divmod(int(nanoseconds), NS_PER_S)
    return Duration(sec=sec, nanosec=nanosec)


def _duration_ns(duration: Duration) -> int:
    return duration.sec * NS_PER_S + duration.nanosec


def _framed(header: Header) -> str:
    if not header.frame_id:
        raise ValueError('header.frame_id: it is empty, expected the frame of the pose')
    return header.frame_id


# Images

def image_pixels(msg: Image) -> np.ndarray:
    """
    Return the pixels of an uncompressed image as they are, without the padding of its rows.

    Returns:
        (H, W, C) uint8, or (H, W) for mono8; a view on the message where rows have no padding.

    Raises:
        ValueError: an encoding outside `CHANNELS`, or a size that does not fit the data.
    """
    channels = CHANNELS.get(msg.encoding)
    if channels is None:
        raise ValueError(f'encoding: {msg.encoding!r}, expected one of {", ".join(CHANNELS)}')
    if not msg.height or not msg.width:
        raise ValueError(f'size: {msg.height}x{msg.width} pixels, expected more than none')
    row = msg.width * channels
    if msg.step < row:
        raise ValueError(f'step: {msg.step} bytes a row, expected at least {row} for '
                         f'{msg.width} {msg.encoding} pixels')
    if len(msg.data) != msg.height * msg.step:
        raise ValueError(f'data: {len(msg.data)} bytes, expected {msg.height * msg.step} for '
                         f'{msg.height} rows of {msg.step}')
    rows = np.frombuffer(msg.data, np.uint8).reshape(msg.height, msg.step)[:, :row]
    shape = (msg.height, msg.width) if channels == 1 else (msg.height, msg.width, channels)
    return rows.reshape(shape)


def image_observation(msg: Image, stream: str, height: int, width: int) -> Observation:
    """Return an image as (height, width, 3) uint8 RGB; see `image_pixels` for what is refused."""
    value = camera_image(image_pixels(msg), msg.encoding, height, width)
    return Observation(stream, stamp_ns(msg.header), value, msg.header.frame_id)


def decompress(msg: CompressedImage) -> Image:
    """
    Return a JPEG or PNG image of 8 bits as an uncompressed bgr8 message.

    Raises:
        ValueError: depth or 16 bits, data cut short, or no image at all.
    """
    if '16' in msg.format or 'Depth' in msg.format:
        raise ValueError(f'format: {msg.format!r}, expected jpeg or png of 8 bits')
    data = bytes(msg.data)
    # OpenCV fills what is missing of a JPEG with grey, and says nothing.
    if data.startswith(b'\xff\xd8') and b'\xff\xd9' not in data:
        raise ValueError(f'data: {len(data)} bytes of a JPEG without its end, expected all of it')
    pixels = None
    if data:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8),
                              cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise ValueError(f'data: {len(data)} bytes that are no image, expected jpeg or png')
    return image_message(pixels, stamp_ns(msg.header), msg.header.frame_id, 'bgr8')


def image_message(
    pixels: np.ndarray, stamp_ns: int, frame_id: str, encoding: str = 'rgb8',
) -> Image:
    """Return (H, W, C) or (H, W) uint8 pixels as an Image."""
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if pixels.dtype != np.uint8 or CHANNELS.get(encoding) != channels:
        raise ValueError(f'pixels: {pixels.dtype} with {channels} channels, expected uint8 '
                         f'{encoding}')
    msg = Image(header=to_header(stamp_ns, frame_id), height=height, width=width,
                encoding=encoding, step=width * channels)
    # A setter that takes bytes in one go; assigning the ndarray takes 12 ms at 224x224.
    data = array.array('B')
    data.frombytes(memoryview(np.ascontiguousarray(pixels)).cast('B'))
    msg.data = data
    return msg


def camera_info_message(
    intrinsics: np.ndarray, height: int, width: int, stamp_ns: int, frame_id: str,
) -> CameraInfo:
    """Return the CameraInfo of a pinhole camera without distortion; `intrinsics` is K, (3, 3)."""
    k = np.asarray(intrinsics, float)
    return CameraInfo(
        header=to_header(stamp_ns, frame_id), height=height, width=width,
        distortion_model='plumb_bob', d=[0.0] * 5, k=k.ravel().tolist(),
        r=np.eye(3).ravel().tolist(), p=np.hstack([k, np.zeros((3, 1))]).ravel().tolist())


# Poses and grippers

def _finite(name: str, values: np.ndarray) -> np.ndarray:
    # A few numbers, a hundred times a second: a tenth of np.isfinite's time.
    if not all(map(math.isfinite, values.ravel().tolist())):
        raise ValueError(f'{name}: {values.tolist()} has NaN or infinity, expected numbers')
    return values


def _unit(quaternion: np.ndarray) -> np.ndarray:
    norm = np.sqrt(np.einsum('...i,...i', *2 * [_finite('quaternion', quaternion)]))
    if np.max(abs(norm - 1.0)) > QUATERNION_TOLERANCE:
        raise ValueError(f'quaternion: {quaternion.tolist()} has length {np.round(norm, 4)}, '
                         'expected 1')
    return quaternion


def _xyz(vector: Point | Vector3) -> tuple[float, float, float]:
    return vector.x, vector.y, vector.z


def _xyzw(quaternion: Quaternion) -> tuple[float, float, float, float]:
    return quaternion.x, quaternion.y, quaternion.z, quaternion.w


def _position(msg: PoseStamped) -> np.ndarray:
    return _finite('position', np.array(_xyz(msg.pose.position)))


def _quaternion(msg: PoseStamped) -> np.ndarray:
    return _unit(np.array(_xyzw(msg.pose.orientation)))


def pose_observation(msg: PoseStamped) -> Observation:
    """Return the measured pose; refuses NaN, no frame_id and a quaternion not of length 1."""
    value = np.concatenate([_position(msg), _quaternion(msg)])
    return Observation(EE_POSE, stamp_ns(msg.header), value, _framed(msg.header))


def pose_message(
    position: np.ndarray, quaternion: np.ndarray, stamp_ns: int, frame_id: str,
) -> PoseStamped:
    """Return a pose; refuses NaN and a quaternion not of length 1, so that none is ever sent."""
    x, y, z = _finite('position', np.asarray(position, float)).tolist()
    qx, qy, qz, qw = _unit(np.asarray(quaternion, float)).tolist()
    msg = PoseStamped(header=to_header(stamp_ns, frame_id))
    at, turned = msg.pose.position, msg.pose.orientation
    at.x, at.y, at.z = x, y, z
    turned.x, turned.y, turned.z, turned.w = qx, qy, qz, qw
    return msg


def _first(name: str, values: array.array) -> float:
    if not len(values):
        raise ValueError(f'{name}: it is empty, expected {name}[0] of the gripper')
    return float(_finite(name, np.array(values[:1]))[0])


def gripper_observation(msg: JointState) -> Observation:
    """Return position[0] of the gripper's state, in the unit of the message, as a (1,) value."""
    return Observation(GRIPPER, stamp_ns(msg.header), np.array([_first('position', msg.position)]),
                       msg.header.frame_id)


def gripper_state_message(position: float, stamp_ns: int) -> JointState:
    """Return the gripper's state, position[0]."""
    return JointState(header=to_header(stamp_ns), name=[GRIPPER_JOINT],
                      position=[float(_finite('position', np.asarray(position, float)))])


def gripper_target(msg: JointState) -> float:
    """Return the closing effort of a gripper's target, effort[0] from -1 (open) to 1 (closed)."""
    effort = _first('effort', msg.effort)
    if abs(effort) > 1.0:
        raise ValueError(f'effort: {effort}, expected -1 (open) to 1 (closed)')
    return effort


def gripper_target_message(
    effort: float, stamp_ns: int, command: float | None = None,
) -> JointState:
    """
    Return a gripper's target.

    Args:
        effort: closing effort, effort[0], from -1 (open) to 1 (closed).
        stamp_ns: that it is for.
        command: the same in the hand's own unit, position[0]; None to leave it out.
    """
    msg = JointState(header=to_header(stamp_ns), name=[GRIPPER_JOINT],
                     effort=[float(_finite('effort', np.asarray(effort, float)))])
    if command is not None:
        msg.position = [float(_finite('position', np.asarray(command, float)))]
    return msg


def command_from(pose: PoseStamped, gripper: JointState | None) -> Command:
    """Return the target that a teleoperator or the executor sent as two messages of one stamp."""
    return Command(stamp_ns(pose.header), _position(pose), _quaternion(pose),
                   None if gripper is None else gripper_target(gripper), _framed(pose.header))


def command_messages(command: Command) -> tuple[PoseStamped, JointState | None]:
    """Return the two messages of a command; the gripper's is to be published first."""
    pose = pose_message(command.position, command.quaternion, command.stamp_ns, command.frame_id)
    if command.gripper is None:
        return pose, None
    return pose, gripper_target_message(command.gripper, command.stamp_ns)


# Chunks

@dataclass(frozen=True)
class GripperHalf:
    """A chunk's gripper, as `gripper_trajectory` carries it: (T,) offsets and closing efforts."""

    stamp_ns: int
    offsets_ns: np.ndarray
    effort: np.ndarray


def chunk_messages(chunk: Chunk) -> tuple[MultiDOFJointTrajectory, JointTrajectory | None]:
    """
    Return a chunk as two trajectories of one stamp; the gripper's is to be published first.

    Without a predicted rotation the quaternions are all zero: absent, and no rotation to anybody.
    """
    position = _finite('position', np.asarray(chunk.position, float)).tolist()
    quaternion = np.zeros((len(position), 4)).tolist()
    if chunk.quaternion is not None:
        quaternion = _unit(np.asarray(chunk.quaternion, float)).tolist()
    times = [_to_duration(offset) for offset in chunk.offsets_ns]
    motion = MultiDOFJointTrajectory(
        header=to_header(chunk.stamp_ns, chunk.frame_id), joint_names=[EE_JOINT])
    for (x, y, z), (qx, qy, qz, qw), time in zip(position, quaternion, times):
        transform = Transform(translation=Vector3(x=x, y=y, z=z),
                              rotation=Quaternion(x=qx, y=qy, z=qz, w=qw))
        motion.points.append(
            MultiDOFJointTrajectoryPoint(transforms=[transform], time_from_start=time))
    if chunk.gripper is None:
        return motion, None
    efforts = _finite('effort', np.asarray(chunk.gripper, float)).tolist()
    gripper = JointTrajectory(
        header=to_header(chunk.stamp_ns, chunk.frame_id), joint_names=[GRIPPER_JOINT],
        points=[JointTrajectoryPoint(effort=[effort], time_from_start=time)
                for effort, time in zip(efforts, times)])
    return motion, gripper


def _offsets(points: list) -> np.ndarray:
    if not points:
        raise ValueError('points: there are none, expected at least one')
    return np.array([_duration_ns(point.time_from_start) for point in points], np.int64)


def motion_half(msg: MultiDOFJointTrajectory) -> Chunk:
    """Return a chunk without its gripper; quaternions that are all zero mean no rotation."""
    offsets = _offsets(msg.points)
    if any(len(point.transforms) != 1 for point in msg.points):
        raise ValueError('points: a point has not exactly one transform, expected the '
                         "end-effector's")
    transforms = [point.transforms[0] for point in msg.points]
    position = np.array([_xyz(transform.translation) for transform in transforms])
    quaternion = np.array([_xyzw(transform.rotation) for transform in transforms])
    return Chunk(stamp_ns(msg.header), offsets, _finite('position', position),
                 _unit(quaternion) if quaternion.any() else None, None, _framed(msg.header))


def gripper_half(msg: JointTrajectory) -> GripperHalf:
    """Return a chunk's gripper, effort[0] of each point from -1 (open) to 1 (closed)."""
    effort = np.array([_first('effort', point.effort) for point in msg.points])
    if np.any(np.abs(effort) > 1.0):
        raise ValueError(f'effort: {effort.tolist()}, expected -1 (open) to 1 (closed)')
    return GripperHalf(stamp_ns(msg.header), _offsets(msg.points), effort)


def join_chunk(motion: Chunk, gripper: GripperHalf) -> Chunk:
    """Return the chunk of two halves of one stamp; refuses halves with other times."""
    if not np.array_equal(motion.offsets_ns, gripper.offsets_ns):
        raise ValueError(f'time_from_start: {len(motion.offsets_ns)} points of ee_trajectory and '
                         f'{len(gripper.offsets_ns)} of gripper_trajectory are due at other '
                         'times, expected the same')
    return replace(motion, gripper=gripper.effort)


# Numbers, pictures and reports

def floats(msg: Float64MultiArray, n: int) -> np.ndarray:
    """Return (n,) float64."""
    if len(msg.data) != n:
        raise ValueError(f'data: {len(msg.data)} numbers, expected {n}')
    return _finite('data', np.array(msg.data))


def floats_message(values: np.ndarray) -> Float64MultiArray:
    """Return a flat list of numbers."""
    return Float64MultiArray(data=np.asarray(values, float).ravel().tolist())


def chunk_markers(chunk: Chunk) -> MarkerArray:
    """Draw a chunk for RViz: a line through its points, a ball at each, red where it closes."""
    points = [Point(x=x, y=y, z=z) for x, y, z in np.asarray(chunk.position, float).tolist()]
    closing = np.zeros(len(points)) if chunk.gripper is None else (chunk.gripper + 1.0) / 2.0
    line = _marker(chunk, Marker.LINE_STRIP, 0.004)
    line.color = ColorRGBA(r=0.1, g=0.5, b=0.9, a=0.8)
    balls = _marker(chunk, Marker.SPHERE_LIST, 0.012)
    balls.colors = [ColorRGBA(r=float(c), g=float(1.0 - c), b=0.1, a=0.9) for c in closing]
    line.points = balls.points = points
    return MarkerArray(markers=[line, balls])


def _marker(chunk: Chunk, kind: int, size_m: float) -> Marker:
    return Marker(header=to_header(chunk.stamp_ns, chunk.frame_id), ns='chunk', id=kind, type=kind,
                  action=Marker.ADD, scale=Vector3(x=size_m, y=size_m, z=size_m),
                  lifetime=_to_duration(to_ns(MARKER_LIFETIME_S)))


def diagnostics_message(
    name: str, level: bytes, message: str, values: Mapping[str, object], stamp_ns: int,
) -> DiagnosticArray:
    """Return one status with its values as text; level is one of DiagnosticStatus's constants."""
    status = DiagnosticStatus(name=name, level=level, message=message, values=[
        KeyValue(key=key, value=str(value)) for key, value in values.items()])
    return DiagnosticArray(header=to_header(stamp_ns), status=[status])


def diagnostics_values(msg: DiagnosticArray, name: str) -> dict[str, str] | None:
    """Return the values of the status called `name`, or None where the message holds none."""
    for status in msg.status:
        if status.name == name:
            return {value.key: value.value for value in status.values}
    return None

"""
Every conversion from values of datatypes.py to ROS messages; the way back: control/readings.py.

A value that can't be sent raises a ValueError of one line, `field: found, expected`; the field
before the colon is what nodes/guard.py counts refusals by.
"""

from __future__ import annotations

import array
from collections.abc import Mapping

from builtin_interfaces.msg import Duration, Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import Point, PoseStamped, Quaternion, Transform, Vector3
import numpy as np
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import ColorRGBA, Float64MultiArray, Header
from trajectory_msgs.msg import (
    JointTrajectory, JointTrajectoryPoint, MultiDOFJointTrajectory, MultiDOFJointTrajectoryPoint,
)
from visualization_msgs.msg import Marker, MarkerArray

from diffusion_policy_ros.control.images import CHANNEL_COUNT
from diffusion_policy_ros.control.readings import finite, unit
from diffusion_policy_ros.datatypes import Chunk, NS_PER_S, to_ns

EE_JOINT = 'end_effector'
GRIPPER_JOINT = 'gripper'
MARKER_LIFETIME_S = 2.0


# Time and headers

def to_stamp(stamp_ns: int) -> Time:
    """Return nanoseconds of ROS time as a message's time."""
    sec, nanosec = divmod(int(stamp_ns), NS_PER_S)
    return Time(sec=sec, nanosec=nanosec)


def to_header(stamp_ns: int, frame_id: str = '') -> Header:
    """Return a header of this stamp and frame."""
    return Header(stamp=to_stamp(stamp_ns), frame_id=frame_id)


def _to_duration(nanoseconds: int) -> Duration:
    sec, nanosec = divmod(int(nanoseconds), NS_PER_S)
    return Duration(sec=sec, nanosec=nanosec)


# Images

def image_message(
    pixels: np.ndarray, stamp_ns: int, frame_id: str, encoding: str = 'rgb8',
) -> Image:
    """Return (H, W, C) or (H, W) uint8 pixels as an Image."""
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if pixels.dtype != np.uint8 or CHANNEL_COUNT.get(encoding) != channels:
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

def pose_message(
    position: np.ndarray, quaternion: np.ndarray, stamp_ns: int, frame_id: str,
) -> PoseStamped:
    """Return a pose; refuses NaN and a quaternion not of length 1, so that none is ever sent."""
    x, y, z = finite('position', np.asarray(position, float)).tolist()
    qx, qy, qz, qw = unit(np.asarray(quaternion, float)).tolist()
    msg = PoseStamped(header=to_header(stamp_ns, frame_id))
    at, turned = msg.pose.position, msg.pose.orientation
    at.x, at.y, at.z = x, y, z
    turned.x, turned.y, turned.z, turned.w = qx, qy, qz, qw
    return msg


def gripper_state_message(position: float, stamp_ns: int) -> JointState:
    """Return the gripper's state, position[0]."""
    return JointState(header=to_header(stamp_ns), name=[GRIPPER_JOINT],
                      position=[float(finite('position', np.asarray(position, float)))])


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
                     effort=[float(finite('effort', np.asarray(effort, float)))])
    if command is not None:
        msg.position = [float(finite('position', np.asarray(command, float)))]
    return msg


# Chunks

def chunk_messages(chunk: Chunk) -> tuple[MultiDOFJointTrajectory, JointTrajectory | None]:
    """
    Return a chunk as two trajectories of one stamp; the gripper's is to be published first.

    Without a predicted rotation the quaternions are all zero: absent, and no rotation to anybody.
    """
    position = finite('position', np.asarray(chunk.position, float)).tolist()
    quaternion = np.zeros((len(position), 4)).tolist()
    if chunk.quaternion is not None:
        quaternion = unit(np.asarray(chunk.quaternion, float)).tolist()
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
    efforts = finite('effort', np.asarray(chunk.gripper, float)).tolist()
    gripper = JointTrajectory(
        header=to_header(chunk.stamp_ns, chunk.frame_id), joint_names=[GRIPPER_JOINT],
        points=[JointTrajectoryPoint(effort=[effort], time_from_start=time)
                for effort, time in zip(efforts, times)])
    return motion, gripper


# Numbers, pictures and reports

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

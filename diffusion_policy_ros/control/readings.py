"""
What ROS messages hold, as the values of datatypes.py: the same calls live and from a bag.

Any object with a message's fields will do, rclpy's and rosbags' alike; nothing of ROS is imported.
A message that can't be used raises a ValueError of one line, `field: found, expected`; the field
before the colon is what nodes/guard.py counts refusals by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
import math
from typing import Any

import numpy as np

from diffusion_policy_ros.control.images import camera_image, CHANNEL_COUNT, decode_image
from diffusion_policy_ros.control.rotation import UNIT_TOLERANCE
from diffusion_policy_ros.datatypes import (
    Chunk, Command, EE_POSE, GRIPPER, NS_PER_S, Observation,
)


# Time and headers

def stamp_ns(header: Any) -> int:
    """Return header.stamp in nanoseconds; 0 means that nobody set it, and is refused."""
    stamp = header.stamp.sec * NS_PER_S + header.stamp.nanosec
    if stamp <= 0:
        raise ValueError(f'header.stamp: {stamp} ns, expected the time of the measurement')
    return stamp


def _duration_ns(duration: Any) -> int:
    return duration.sec * NS_PER_S + duration.nanosec


def _framed(header: Any) -> str:
    if not header.frame_id:
        raise ValueError('header.frame_id: it is empty, expected the frame of the pose')
    return header.frame_id


# Images

def image_pixels(msg: Any) -> tuple[np.ndarray, str]:
    """
    Return the pixels of an Image as they are, or those of a CompressedImage, and their encoding.

    Returns:
        (H, W, C) uint8, or (H, W) for mono8; of an Image without padded rows a view.

    Raises:
        ValueError: an encoding outside `CHANNEL_COUNT`, a size that does not fit the data; of a
            CompressedImage depth or 16 bits, data cut short, or no image at all.
    """
    if hasattr(msg, 'format'):
        if '16' in msg.format or 'Depth' in msg.format:
            raise ValueError(f'format: {msg.format!r}, expected jpeg or png of 8 bits')
        return decode_image(bytes(msg.data)), 'bgr8'
    channels = CHANNEL_COUNT.get(msg.encoding)
    if channels is None:
        raise ValueError(f'encoding: {msg.encoding!r}, expected one of {", ".join(CHANNEL_COUNT)}')
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
    return rows.reshape(shape), msg.encoding


def image_observation(msg: Any, stream: str, height: int,
                      width: int) -> tuple[Observation, tuple[int, int]]:
    """
    Return an Image or CompressedImage as (height, width, 3) uint8 RGB, and its own size.

    `image_pixels` says what is refused.
    """
    pixels, encoding = image_pixels(msg)
    value = camera_image(pixels, encoding, height, width)
    return (Observation(stream, stamp_ns(msg.header), value, msg.header.frame_id),
            pixels.shape[:2])


# Poses and grippers

def finite(name: str, values: np.ndarray) -> np.ndarray:
    """Return the values; raises where one is NaN or infinite."""
    # A few numbers, a hundred times a second: a tenth of np.isfinite's time.
    if not all(map(math.isfinite, values.ravel().tolist())):
        raise ValueError(f'{name}: {values.tolist()} has NaN or infinity, expected numbers')
    return values


def unit(quaternion: np.ndarray) -> np.ndarray:
    """Return quaternions (..., 4); raises where one is not of length 1."""
    norm = np.sqrt(np.einsum('...i,...i', *2 * [finite('quaternion', quaternion)]))
    if np.max(abs(norm - 1.0)) > UNIT_TOLERANCE:
        raise ValueError(f'quaternion: {quaternion.tolist()} has length {np.round(norm, 4)}, '
                         'expected 1')
    return quaternion


def _xyz(vector: Any) -> tuple[float, float, float]:
    return vector.x, vector.y, vector.z


def _xyzw(quaternion: Any) -> tuple[float, float, float, float]:
    return quaternion.x, quaternion.y, quaternion.z, quaternion.w


def _position(msg: Any) -> np.ndarray:
    return finite('position', np.array(_xyz(msg.pose.position)))


def _quaternion(msg: Any) -> np.ndarray:
    return unit(np.array(_xyzw(msg.pose.orientation)))


def pose_observation(msg: Any) -> Observation:
    """Return the measured pose; refuses NaN, no frame_id and a quaternion not of length 1."""
    value = np.concatenate([_position(msg), _quaternion(msg)])
    return Observation(EE_POSE, stamp_ns(msg.header), value, _framed(msg.header))


def _first(name: str, values: Sequence[float]) -> float:
    if not len(values):
        raise ValueError(f'{name}: it is empty, expected {name}[0] of the gripper')
    return float(finite(name, np.array(values[:1]))[0])


def gripper_observation(msg: Any) -> Observation:
    """Return position[0] of the gripper's state, in the unit of the message, as a (1,) value."""
    return Observation(GRIPPER, stamp_ns(msg.header), np.array([_first('position', msg.position)]),
                       msg.header.frame_id)


def gripper_target(msg: Any) -> float:
    """Return the closing effort of a gripper's target, effort[0] from -1 (open) to 1 (closed)."""
    effort = _first('effort', msg.effort)
    if abs(effort) > 1.0:
        raise ValueError(f'effort: {effort}, expected -1 (open) to 1 (closed)')
    return effort


def command_from(pose: Any, gripper: Any) -> Command:
    """Return the target that a teleoperator or the executor sent as two messages of one stamp."""
    return Command(stamp_ns(pose.header), _position(pose), _quaternion(pose),
                   None if gripper is None else gripper_target(gripper), _framed(pose.header))


# Chunks

@dataclass(frozen=True)
class GripperHalf:
    """A chunk's gripper, as `gripper_trajectory` carries it: (T,) offsets and closing efforts."""

    stamp_ns: int
    offsets_ns: np.ndarray
    effort: np.ndarray


def _offsets(points: Sequence[Any]) -> np.ndarray:
    if not points:
        raise ValueError('points: there are none, expected at least one')
    return np.array([_duration_ns(point.time_from_start) for point in points], np.int64)


def motion_half(msg: Any) -> Chunk:
    """Return a chunk without its gripper; quaternions that are all zero mean no rotation."""
    offsets = _offsets(msg.points)
    if any(len(point.transforms) != 1 for point in msg.points):
        raise ValueError('points: a point has not exactly one transform, expected the '
                         "end-effector's")
    transforms = [point.transforms[0] for point in msg.points]
    position = np.array([_xyz(transform.translation) for transform in transforms])
    quaternion = np.array([_xyzw(transform.rotation) for transform in transforms])
    return Chunk(stamp_ns(msg.header), offsets, finite('position', position),
                 unit(quaternion) if quaternion.any() else None, None, _framed(msg.header))


def gripper_half(msg: Any) -> GripperHalf:
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


# Numbers and reports

def floats(msg: Any, n: int) -> np.ndarray:
    """Return (n,) float64."""
    if len(msg.data) != n:
        raise ValueError(f'data: {len(msg.data)} numbers, expected {n}')
    return finite('data', np.array(msg.data))


def executor_status(msg: Any) -> str:
    """Return the `Status` name in a message of chunk_executor/status."""
    if not msg.status or not msg.status[0].values:
        raise ValueError("status: it is empty, expected the executor's")
    return msg.status[0].values[0].value


def diagnostics_values(msg: Any, name: str) -> dict[str, str] | None:
    """Return the values of the status called `name`, or None where the message holds none."""
    for status in msg.status:
        if status.name == name:
            return {value.key: value.value for value in status.values}
    return None

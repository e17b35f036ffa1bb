"""
Every value that travels between the stages, as frozen dataclasses.

One legend of letters serves the whole package:

    B   batch                     To  observed steps (`n_obs_steps`)
    H W image height, width       Tp  predicted steps (`horizon`)
    C   channels                  Ta  executed steps (`n_action_steps`)
    Da  action dimension          T   points of a chunk

Units are SI. `stamp_ns` is ROS time (a message's header.stamp), `now_ns` is the node's ROS time
and `steady_ns` the steady clock, all as integer nanoseconds. Quaternions are (x, y, z, w) and of
unit length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np

NS_PER_S = 1_000_000_000

EE_POSE = 'ee_pose'
GRIPPER = 'gripper'


def to_ns(seconds: float) -> int:
    """Return seconds as integer nanoseconds, rounded to the nearest."""
    return round(seconds * NS_PER_S)


@dataclass(frozen=True)
class Observation:
    """
    One sample of one stream, as it left its message.

    Attributes:
        stream: a camera's name, `EE_POSE` or `GRIPPER`.
        stamp_ns: header.stamp, ROS time.
        value: camera (H, W, 3) uint8 RGB; `EE_POSE` (7,) float64 position in metres and
            quaternion; `GRIPPER` (1,) float64 from 0 (open) to 1 (closed).
        frame_id: frame that a pose is given in; a camera's optical frame.
    """

    stream: str
    stamp_ns: int
    value: np.ndarray
    frame_id: str = ''


@dataclass(frozen=True)
class ObservationWindow:
    """
    To aligned samples of every stream, oldest first.

    Attributes:
        stamp_ns: the observation's time t, ROS time; the last slot is at or just before it.
        streams: stream name to (To, ...) array; cameras (To, H, W, 3) uint8 RGB,
            `EE_POSE` (To, 7) float64, `GRIPPER` (To, 1) float64.
        frame_id: frame of `EE_POSE`.
    """

    stamp_ns: int
    streams: Mapping[str, np.ndarray]
    frame_id: str = ''


@dataclass(frozen=True)
class Chunk:
    """
    A stretch of future targets; point i is due at `stamp_ns + offsets_ns[i]`.

    Attributes:
        stamp_ns: the time t of the observation that it was predicted from, ROS time.
        offsets_ns: (T,) int64, strictly increasing, the first 0 for a policy's chunk.
        position: (T, 3) float64, absolute end-effector targets in metres in `frame_id`.
        quaternion: (T, 4) float64, or None where no rotation is predicted.
        gripper: (T,) float64 closing effort from -1 (open) to 1 (closed), None without a gripper.
        frame_id: frame of the targets.
    """

    stamp_ns: int
    offsets_ns: np.ndarray
    position: np.ndarray
    quaternion: np.ndarray | None = None
    gripper: np.ndarray | None = None
    frame_id: str = ''

    def __post_init__(self) -> None:
        points = len(self.offsets_ns)
        expected = {'position': (points, 3), 'quaternion': (points, 4), 'gripper': (points,)}
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is not None and np.shape(value) != shape:
                raise ValueError(f'chunk: {name} has shape {np.shape(value)}, expected {shape} '
                                 f'for {points} points')
        if points == 0:
            raise ValueError('chunk: it has no points, expected at least one')
        if np.any(np.diff(self.offsets_ns) <= 0):
            raise ValueError('chunk: time_from_start does not increase from point to point')

    @property
    def first_ns(self) -> int:
        """ROS time at which the first point is due."""
        return self.stamp_ns + int(self.offsets_ns[0])

    @property
    def end_ns(self) -> int:
        """ROS time at which the last point is due."""
        return self.stamp_ns + int(self.offsets_ns[-1])


@dataclass(frozen=True)
class Command:
    """
    One target for the arm, safe to send.

    Attributes:
        stamp_ns: ROS time that it is for.
        position: (3,) float64 metres in `frame_id`.
        quaternion: (4,) float64.
        gripper: closing effort from -1 (open) to 1 (closed), or None without a gripper.
        frame_id: frame of the target.
    """

    stamp_ns: int
    position: np.ndarray
    quaternion: np.ndarray
    gripper: float | None = None
    frame_id: str = ''


class Status(Enum):
    """What the executor does now; each value is the sentence that logs and diagnostics show."""

    DISABLED = 'Disabled: nothing is sent until ~/enable is called.'
    NO_LIMITS = "The arm's YAML states no limits: nothing is sent."
    NO_TIME = 'Waiting for /clock, since use_sim_time is true: nothing is sent.'
    NO_POSE = 'Waiting for the measured ee_pose.'
    NO_CHUNK = 'Waiting for a chunk.'
    STARTING = 'Approaching the first target slowly.'
    START_REFUSED = ('The first target is further from the measured pose than max_start_jump or '
                     'max_start_turn.')
    STOPPING = 'Braking before motion begins anew.'
    TRACKING = 'Following the chunk.'
    STARVED = 'Past the last point of the chunk: holding its last target.'
    HELD = 'No new chunk within command_timeout: holding.'
    TELEOP = 'Following the teleoperator.'
    REFUSED = 'The chunk for this time was refused: holding.'
    CONFLICT = 'Another node publishes target_pose, too: refusing to move the arm.'
    TWO_POLICIES = 'More than one node leads the arm: holding until only one is left.'
    HALTED = 'Halted: holding until ~/clear_halt is called.'
    ASTRAY = ('The arm was moved or stopped, further than max_tracking_error or max_tracking_turn '
              'from its command: holding where it is, or silent where that is outside the '
              'workspace or it leaves that, too, until ~/clear_halt is called.')

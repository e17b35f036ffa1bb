"""Which chunks are followed, and which are refused and why."""

from __future__ import annotations

from dataclasses import replace
import math

import numpy as np

from diffusion_policy_ros.control import rotation
from diffusion_policy_ros.control.blending import blend, sample
from diffusion_policy_ros.datatypes import Chunk, NS_PER_S


FURTHEST_M = 1e3
"""No arm reaches further from its base: such a number is no position, and may overflow."""


def target_problem(position: np.ndarray, quaternion: np.ndarray | None,
                   gripper: np.ndarray | float | None, frame_id: str,
                   frame_expected: str) -> str | None:
    """
    Return what is wrong with targets, as 'reason: found, expected', or None.

    Args:
        position: (..., 3).
        quaternion: (..., 4) or None.
        gripper: (...) or None.
        frame_id: frame that they are given in.
        frame_expected: the arm's base frame.
    """
    for name, value in (('position', position), ('quaternion', quaternion), ('gripper', gripper)):
        if value is not None and not np.all(np.isfinite(value)):
            return f'not finite: {name} has NaN or infinity, expected numbers'
    if np.max(np.abs(position)) > FURTHEST_M:
        return f'too far: {np.max(np.abs(position)):g} m, expected at most {FURTHEST_M:g} m'
    if quaternion is not None and not rotation.is_unit(quaternion):
        lengths = np.linalg.norm(quaternion, axis=-1).round(4).tolist()
        return f'quaternion: length {lengths}, expected 1'
    return frame_problem('targets are', frame_id, frame_expected)


def frame_problem(what: str, frame_id: str, frame_expected: str) -> str | None:
    """Return what is wrong with the frame that something is given in, 'ee_pose is' say."""
    if frame_id == frame_expected:
        return None
    return f"frame: {what} in {frame_id!r}, expected {frame_expected!r}, the arm's base_frame"


def pose_problem(pose: np.ndarray) -> str | None:
    """Return what is wrong with a measured pose (7,), which may come a thousand times a second."""
    numbers = pose.tolist()
    if not all(map(math.isfinite, numbers)):
        return 'not finite: ee_pose has NaN or infinity, expected numbers'
    if max(map(abs, numbers[:3])) > FURTHEST_M:
        return f'too far: ee_pose is {numbers[:3]} m, expected at most {FURTHEST_M:g} m'
    length = math.sqrt(sum(part * part for part in numbers[3:]))
    if abs(length - 1.0) > rotation.UNIT_TOLERANCE:
        return f'quaternion: length {length:.4f} in ee_pose, expected 1'
    return None


def normalised(quaternion: np.ndarray | None) -> np.ndarray | None:
    """Return quaternions (..., 4) at exactly length 1."""
    if quaternion is None:
        return None
    quaternion = np.asarray(quaternion, np.float64)
    return quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True)


class Plan:
    """
    The chunk that is followed.

    Attributes:
        chunk: the last one taken, blended with the one before it; None before the first.
    """

    def __init__(self, blend_ns: int, period_ns: int, max_lead_ns: int | None) -> None:
        """
        Prepare.

        Args:
            blend_ns: length of the passage from one chunk to the next.
            period_ns: Ta*dt, for how long a chunk answers in lockstep; 0 outside of it.
            max_lead_ns: how far ahead of now a chunk's stamp may be; None for any lead.
        """
        self._blend_ns = blend_ns
        self._period_ns = period_ns
        self._max_lead_ns = max_lead_ns
        self.forget()

    def forget(self, before_ns: int | None = None) -> None:
        """Drop the chunk; refuse later ones whose observation is no younger than `before_ns`."""
        self.chunk: Chunk | None = None
        self._before_ns = before_ns
        self._newest_ns: int | None = None
        self._refused_ns: int | None = None

    def forget_past(self, before_ns: int) -> None:
        """Drop the chunk where its last point was due before a moment."""
        if self.chunk is not None and self.chunk.end_ns < before_ns:
            self.chunk = None

    def take(self, chunk: Chunk, now_ns: int, frame_id: str, follow: bool) -> str | None:
        """
        Take a chunk, or return why not as 'reason: found, expected'.

        Args:
            chunk: from the policy.
            now_ns: ROS time.
            frame_id: the arm's base frame.
            follow: whether the present chunk is being followed, so that the new one is blended in.
        """
        if self._period_ns and chunk.stamp_ns == self._newest_ns:
            return None  # in lockstep a chunk is sent again until it is answered
        problem = self._problem(chunk, now_ns, frame_id)
        if problem is not None:
            self.refuse(chunk.stamp_ns)
            return problem
        self._newest_ns = chunk.stamp_ns
        clean = replace(chunk, position=np.asarray(chunk.position, np.float64),
                        quaternion=normalised(chunk.quaternion))
        self.chunk = blend(self.chunk if follow else None, clean, now_ns, self._blend_ns)
        return None

    def refuse(self, stamp_ns: int) -> None:
        """Note that the chunk of this stamp will not come."""
        self._refused_ns = stamp_ns

    def answers(self, t_ns: int) -> bool:
        """Return whether the chunk is the one that answers t in lockstep."""
        return self.chunk is not None and self._within(self.chunk.stamp_ns, t_ns)

    def refused(self, t_ns: int) -> bool:
        """Return whether the chunk that would have answered t in lockstep was refused."""
        return self._refused_ns is not None and self._within(self._refused_ns, t_ns)

    def at(self, now_ns: int) -> tuple[np.ndarray, np.ndarray | None, float | None]:
        """Return the target at a moment; past the last point it is that point's."""
        return sample(self.chunk, now_ns)

    def ahead(self, now_ns: int) -> bool:
        """Return whether the chunk still has a point now or later."""
        return self.chunk is not None and now_ns <= self.chunk.end_ns

    def begun(self, now_ns: int) -> bool:
        """Return whether there is a chunk and its first point is due now or earlier."""
        return self.chunk is not None and now_ns >= self.chunk.first_ns

    def _within(self, stamp_ns: int, t_ns: int) -> bool:
        return 0 <= t_ns - stamp_ns < self._period_ns

    def _problem(self, chunk: Chunk, now_ns: int, frame_id: str) -> str | None:
        problem = target_problem(chunk.position, chunk.quaternion, chunk.gripper, chunk.frame_id,
                                 frame_id)
        if problem is not None:
            return problem
        if self._newest_ns is not None and chunk.stamp_ns <= self._newest_ns:
            return (f'out of order: stamped {_seconds(self._newest_ns - chunk.stamp_ns)} before '
                    'the last chunk, expected a later stamp')
        if self._before_ns is not None and chunk.stamp_ns <= self._before_ns:
            return (f'before reset: observed {_seconds(self._before_ns - chunk.stamp_ns)} before '
                    '~/reset, or a second policy left, expected an observation after it')
        if chunk.end_ns < now_ns:
            return (f'past: its last point was due {_seconds(now_ns - chunk.end_ns)} ago, '
                    'expected points ahead')
        if self._max_lead_ns is not None and chunk.stamp_ns - now_ns > self._max_lead_ns:
            return (f'future: stamped {_seconds(chunk.stamp_ns - now_ns)} ahead of now, expected '
                    'one clock (use_sim_time) in all nodes')
        return None


def _seconds(duration_ns: int) -> str:
    return f'{duration_ns / NS_PER_S:.3f} s'

"""Unit quaternions (x, y, z, w) and rotation vectors in radians."""

from __future__ import annotations

import math

import numpy as np

UNIT_TOLERANCE = 1e-3
"""How far from 1 the length of a quaternion in a message may be; beyond it is no rotation."""


def normalise(quaternion: np.ndarray) -> np.ndarray:
    """
    Return the quaternion (4,) at length 1.

    Raises:
        ValueError: it has no length, or is not finite.
    """
    x, y, z, w = np.asarray(quaternion, np.float64).tolist()
    length = math.sqrt(x * x + y * y + z * z + w * w)
    if not 1e-9 < length < math.inf:
        raise ValueError(f'quaternion {[x, y, z, w]} has length {length}, expected 1')
    return np.array([x / length, y / length, z / length, w / length])


def is_unit(quaternion: np.ndarray) -> bool:
    """Return whether all quaternions (..., 4) have length 1 within `UNIT_TOLERANCE`."""
    squares = np.einsum('...i,...i->...', quaternion, quaternion)
    return bool(np.all(np.abs(squares - 1.0) <= 2 * UNIT_TOLERANCE))


def furthest_from_unit(quaternions: np.ndarray) -> tuple[int, float]:
    """Return the row of quaternions (N, 4) whose length is furthest from 1, and that length."""
    length = np.linalg.norm(quaternions, axis=1)
    row = int(np.abs(length - 1.0).argmax())
    return row, float(length[row])


def multiply(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the rotation `right` followed by `left`, (4,)."""
    ax, ay, az, aw = left.tolist()
    bx, by, bz, bw = right.tolist()
    return np.array([
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz])


def conjugate(quaternion: np.ndarray) -> np.ndarray:
    """Return the inverse rotation (4,)."""
    x, y, z, w = quaternion.tolist()
    return np.array([-x, -y, -z, w])


def log(quaternion: np.ndarray) -> np.ndarray:
    """Return the rotation vector (3,) of the shorter way, at most pi long."""
    x, y, z, w = quaternion.tolist()
    if w < 0.0:
        x, y, z, w = -x, -y, -z, -w
    sine = math.sqrt(x * x + y * y + z * z)
    # Near 0 the angle is 2 * sine to better than a double can show.
    scale = 2.0 * math.atan2(sine, w) / sine if sine > 1e-9 else 2.0
    return np.array([x * scale, y * scale, z * scale])


def exp(vector: np.ndarray) -> np.ndarray:
    """Return the quaternion (4,) of a rotation vector (3,)."""
    x, y, z = vector.tolist()
    angle = math.sqrt(x * x + y * y + z * z)
    scale = math.sin(angle / 2) / angle if angle > 1e-9 else 0.5
    return np.array([x * scale, y * scale, z * scale, math.cos(angle / 2)])


def difference(end: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return the rotation vector (3,), in the base frame, that turns `start` into `end`."""
    return log(multiply(end, conjugate(start)))


def angle(end: np.ndarray, start: np.ndarray) -> float:
    """Return the angle between two unit quaternions (4,), from 0 to pi rad."""
    return float(np.linalg.norm(difference(end, start)))


def slerp(start: np.ndarray, end: np.ndarray, fraction: float) -> np.ndarray:
    """Return the rotation (4,) at a fraction of the shorter way; the ends at 0 and 1."""
    if fraction <= 0.0:
        return start
    if fraction >= 1.0:
        return end
    return normalise(multiply(exp(difference(end, start) * fraction), start))

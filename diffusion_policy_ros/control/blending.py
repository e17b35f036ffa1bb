"""Chunks on the time axis: the target at a moment, and the passage from one chunk to the next."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from diffusion_policy_ros.control import rotation
from diffusion_policy_ros.datatypes import Chunk


def sample(chunk: Chunk, now_ns: int) -> tuple[np.ndarray, np.ndarray | None, float | None]:
    """
    Return a chunk's position (3,), quaternion (4,) and closing effort at a moment.

    Position is linear and rotation spherical between two points, the gripper keeps the earlier
    point's effort. Before the first point it is the first, past the last point the last: nothing
    is extrapolated. At a point's own time it is that point, to the bit.
    """
    after = bisect_right(chunk.offsets_ns, now_ns - chunk.stamp_ns)
    before = max(after - 1, 0)
    position = chunk.position[before]
    quaternion = None if chunk.quaternion is None else chunk.quaternion[before]
    gripper = None if chunk.gripper is None else float(chunk.gripper[before])
    if 0 < after < len(chunk.offsets_ns):
        start_ns, end_ns = int(chunk.offsets_ns[before]), int(chunk.offsets_ns[after])
        fraction = (now_ns - chunk.stamp_ns - start_ns) / (end_ns - start_ns)
        if fraction > 0:
            position = position + fraction * (chunk.position[after] - position)
            if quaternion is not None:
                quaternion = rotation.slerp(quaternion, chunk.quaternion[after], fraction)
    return position, quaternion, gripper


def blend(previous: Chunk | None, new: Chunk, now_ns: int, blend_ns: int) -> Chunk:
    """
    Return one chunk that leads from the previous one to the new one, from now on.

    The weight of the previous chunk falls in a straight line from 1 now to 0 at the end of the
    blend; the gripper is the new chunk's at once. Where the new chunk lies ahead altogether, the
    previous one goes on until its first point is due, and the passage begins then. Points that are
    past are dropped: the result begins now, or with the new chunk where there is no previous one,
    and keeps `new.stamp_ns`. Corners of either chunk within the blend, and the blend's end, become
    points. With now 100, a blend of 40, one axis
    drawn, and the previous chunk's points at 80, 120, 160, the new one's at 80, 100, .., 180:

        time (ms)          80   100   110   120   130   140   160   180
        previous            0    10    15    20    25    30    40
        new                50    60    65    70    75    80    90   100
        weight of previous        1   .75    .5   .25     0     0     0
        blended                  10          45          80    90   100

    Between its points the blend is straight, as any chunk is: at 110 it is 27.5.

    Args:
        previous: the chunk that is being followed, or None.
        new: the chunk to follow.
        now_ns: ROS time.
        blend_ns: length of the passage, which ends with the new chunk's last point at the latest;
            0 for the new chunk at once.
    """
    if previous is not None and now_ns < new.first_ns:
        return _joined(previous, now_ns, blend(previous, new, new.first_ns, blend_ns))
    if previous is None or blend_ns <= 0 or now_ns >= new.end_ns:
        return _from_now(new, now_ns, ())
    end_ns = min(now_ns + blend_ns, new.end_ns)
    corners = [previous.stamp_ns + int(offset) for offset in previous.offsets_ns] + [end_ns]
    merged = _from_now(new, now_ns, [corner for corner in corners if now_ns < corner <= end_ns])
    position = merged.position.copy()
    quaternion = None if merged.quaternion is None else merged.quaternion.copy()
    for i, offset_ns in enumerate(merged.offsets_ns):
        time_ns = merged.stamp_ns + int(offset_ns)
        if time_ns >= end_ns:
            break
        weight = (end_ns - time_ns) / (end_ns - now_ns)
        old_position, old_quaternion, _ = sample(previous, time_ns)
        position[i] += weight * (old_position - position[i])
        if quaternion is not None and old_quaternion is not None:
            quaternion[i] = rotation.slerp(quaternion[i], old_quaternion, weight)
    return Chunk(merged.stamp_ns, merged.offsets_ns, position, quaternion, merged.gripper,
                 merged.frame_id)


def _joined(previous: Chunk, now_ns: int, new: Chunk) -> Chunk:
    """Return a chunk that goes on from now with the previous one until the new one is due."""
    if (previous.quaternion is None, previous.gripper is None) != (
            new.quaternion is None, new.gripper is None):
        return new
    corners = (previous.stamp_ns + previous.offsets_ns).tolist()
    times = [now_ns, *(corner for corner in corners if now_ns < corner < new.first_ns - 1)]
    if now_ns < new.first_ns - 1:
        times.append(new.first_ns - 1)  # the way to the new chunk begins no earlier
    values = [list(value) for value in zip(*(sample(previous, time_ns) for time_ns in times))]
    position, quaternion, gripper = (
        None if after is None else np.concatenate([before, after]) for before, after in
        zip(values, (new.position, new.quaternion, new.gripper), strict=True))
    offsets_ns = np.append(np.array(times, np.int64) - new.stamp_ns, new.offsets_ns)
    return Chunk(new.stamp_ns, offsets_ns, position, quaternion, gripper, new.frame_id)


def _from_now(chunk: Chunk, now_ns: int, extra_ns: Sequence[int]) -> Chunk:
    """Return the chunk from now on, with points added at the times given."""
    ahead = chunk.offsets_ns >= now_ns - chunk.stamp_ns
    if ahead.all() and not extra_ns:
        return chunk
    times = set((chunk.offsets_ns[ahead] + chunk.stamp_ns).tolist())
    times.update(time for time in extra_ns if chunk.stamp_ns < time < chunk.end_ns)
    times.add(min(max(now_ns, chunk.stamp_ns + int(chunk.offsets_ns[0])), chunk.end_ns))
    times = sorted(times)
    points = [sample(chunk, time_ns) for time_ns in times]
    return Chunk(
        chunk.stamp_ns, np.array(times, np.int64) - chunk.stamp_ns,
        np.array([point[0] for point in points]),
        None if chunk.quaternion is None else np.array([point[1] for point in points]),
        None if chunk.gripper is None else np.array([point[2] for point in points]),
        chunk.frame_id)

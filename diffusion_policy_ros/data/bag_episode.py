"""Recorded streams to the rows of a replay buffer: one row for every stamp that was observed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diffusion_policy_ros.control.arm import CLOSED, OPEN
from diffusion_policy_ros.data.bag_reader import (
    Bag, STATUS, Stream, TARGET_GRIPPER, TARGET_POSE, TELEOP_POSE,
)
from diffusion_policy_ros.datatypes import EE_POSE, GRIPPER, NS_PER_S, Status
from diffusion_policy_ros.policy.config import PolicyConfig

TARGET_ALIVE_NS = NS_PER_S // 2
"""A target that nothing follows for longer is no action any more."""
TELEOP_ALIVE_NS = NS_PER_S // 4
LATE_NS = NS_PER_S
"""What is observed so much later than targets come is worth a note."""
TURN_RAD = 0.05
MOVED = 0.05
"""So much of its range must a hand close, or open, to have been told so."""
NEARLY_OPEN = 0.1


@dataclass(frozen=True)
class BagEpisode:
    """
    One episode's rows, as `ReplayWriter.append` takes them.

    Attributes:
        arrays: `stamp_ns` (T,); `is_observation` (T,), it is the time t of an observation as
            `Horizon` has them, and has an action; `is_teleop` (T,), a person led; `EE_POSE`
            (T, 7), `GRIPPER` (T, 1), newest at each row; `target_position` (T, 3),
            `target_quaternion` (T, 4), `target_gripper` (T, 1).
        pictures: camera to its bytes end to end and each row's end, as `pictures.encode` returns.
        notes: what was made of other data than usual, one sentence each.
    """

    arrays: Mapping[str, np.ndarray]
    pictures: Mapping[str, tuple[np.ndarray, np.ndarray]]
    notes: tuple[str, ...]


def make_episode(bag: Bag, config: PolicyConfig, tolerance_ns: int,
                 on_off: bool = False) -> BagEpisode:
    """
    Return the rows between the first and the last time at which all is there and a target moves.

    A row holds the newest sample of each stream at its time. Its action is the first target that
    is stamped in [t, t + dt), else the last one before t while target poses still come.

    Args:
        bag: what was recorded.
        config: of the policy.
        tolerance_ns: longest gap in a stream.
        on_off: whether the hand's targets, where they are missing, follow from its motion.

    Raises:
        ValueError: in one line: a gap, a stream that ends before the targets, mixed frames or
            targets in another, or too little that overlaps.
    """
    observed = {name: bag.streams[name] for name in config.streams}
    for stream in observed.values():
        _check_gaps(stream, config, tolerance_ns)
    latest = max(observed.values(), key=lambda stream: stream.stamps_ns[0])
    shortest = min(observed.values(), key=lambda stream: stream.stamps_ns[-1])
    first_ns, last_ns = latest.stamps_ns[0], shortest.stamps_ns[-1]
    if first_ns > last_ns:
        raise ValueError(f'{shortest.topic} ends {(first_ns - last_ns) / NS_PER_S:.3f} s before '
                         f'{latest.topic} begins')
    _check_ends(list(observed.values()), _recorded(bag, TARGET_POSE), tolerance_ns)
    stamps = np.unique(np.concatenate(
        [np.array([first_ns]), *(stream.stamps_ns for stream in observed.values())]))
    stamps = stamps[(stamps >= first_ns) & (stamps <= last_ns)]
    targets, alive, notes = _targets(bag, stamps, config, on_off)
    moved = _recorded(bag, TARGET_POSE)
    if moved is not None and moved.stamps_ns[0] < first_ns - LATE_NS:
        notes.append(f'{moved.topic} was there over {LATE_NS / NS_PER_S:g} s before '
                     f'{latest.topic}: what was done by then is left out')
    part = _acting_part(stamps, alive, (config.n_obs_steps - 1) * config.dt_ns)
    stamps, alive = stamps[part], alive[part]
    is_observation = alive & np.isin(stamps, _live_times(list(observed.values())))
    if is_observation.sum() < 2:
        raise ValueError(f'{is_observation.sum()} observations have all streams and a target, '
                         'expected two at least')
    arrays = {'stamp_ns': stamps, 'is_observation': is_observation,
              'is_teleop': _teleop(bag, stamps, config),
              **{name: value[part] for name, value in targets.items()}}
    for name in (EE_POSE, GRIPPER):
        stream = _recorded(bag, name)
        if stream is not None:
            arrays[name] = np.stack(stream.values)[_newest(stream, stamps)]
    if GRIPPER not in arrays:
        arrays[GRIPPER] = np.zeros((len(stamps), 1))
        notes.append(f'{GRIPPER} is 0 in all rows: its state was not recorded')
    if 'ee_rotation' not in config.action.parts and _turns(arrays['target_quaternion']):
        notes.append('the targets turn the hand, but action.parts has no ee_rotation: a policy '
                     'will not')
    return BagEpisode(arrays, {camera.name: _pictures(observed[camera.name], stamps)
                               for camera in config.observation.cameras}, tuple(notes))


def action_source(bag: Bag, config: PolicyConfig) -> str:
    """Return the streams that the actions are made of; those of two kinds are no one data set."""
    pairs = [(TARGET_POSE, EE_POSE)]
    if 'gripper' in config.action.parts:
        pairs.append((TARGET_GRIPPER, GRIPPER))
    return ' and '.join(state if _recorded(bag, target) is None else target
                        for target, state in pairs)


def _check_gaps(stream: Stream, config: PolicyConfig, tolerance_ns: int) -> None:
    """Refuse what begins a new episode for a live policy."""
    steps = np.diff(stream.stamps_ns)
    if len(steps) and np.median(steps) > tolerance_ns:
        raise ValueError(f'{stream.topic} comes at {NS_PER_S / np.median(steps):.1f} Hz, slower '
                         f'than the {NS_PER_S / config.dt_ns:.1f} Hz of the policy')
    if len(steps) and steps.max() > tolerance_ns:
        at_ns = stream.stamps_ns[int(steps.argmax())] - stream.stamps_ns[0]
        raise ValueError(f'{stream.topic} has a gap of {steps.max() / NS_PER_S:.3f} s after '
                         f'{at_ns / NS_PER_S:.1f} s, expected at most '
                         f'{tolerance_ns / NS_PER_S:.3f} s')


def _check_ends(streams: Sequence[Stream], moved: Stream | None, tolerance_ns: int) -> None:
    """Refuse an episode whose observations stopped while targets still moved the arm."""
    if moved is None:
        return
    early_ns = [_early_ns(stream, moved) for stream in streams]
    worst = int(np.argmax(early_ns))
    if early_ns[worst] > tolerance_ns:
        raise ValueError(f'{streams[worst].topic} ends {early_ns[worst] / NS_PER_S:.3f} s before '
                         f'the last {moved.topic}, expected at most '
                         f'{tolerance_ns / NS_PER_S:.3f} s')


def _early_ns(stream: Stream, moved: Stream) -> int:
    """Return how long before the last target a stream ended, by its stamps and its arrivals."""
    early_ns = moved.stamps_ns[-1] - stream.stamps_ns[-1]
    if stream.arrived_ns is None or moved.arrived_ns is None:
        return early_ns
    # A camera's pictures arrive late: the last were on their way when the recording ended.
    return min(early_ns, moved.arrived_ns - stream.arrived_ns)


def _recorded(bag: Bag, role: str) -> Stream | None:
    """Return the stream if it has a message."""
    stream = bag.streams.get(role)
    return stream if stream is not None and stream.stamps_ns else None


def _live_times(streams: Sequence[Stream]) -> np.ndarray:
    """
    Return every value that the minimum of the streams' newest stamps takes on its way.

    A sample's stamp is that minimum once each other stream has one from then on, and as long as
    its own stream has no next one.
    """
    found = []
    for stream in streams:
        times = np.asarray(stream.stamps_ns)
        end = np.append(times[1:], np.iinfo(np.int64).max)
        for other in streams:
            following = np.append(other.stamps_ns, end[-1])
            keep = following[np.searchsorted(other.stamps_ns, times)] < end
            times, end = times[keep], end[keep]
        found.append(times)
    return np.unique(np.concatenate(found))


def _newest(stream: Stream, stamps: np.ndarray) -> np.ndarray:
    """Return each row's newest sample; the first where there is none yet."""
    return np.maximum(np.searchsorted(stream.stamps_ns, stamps, 'right') - 1, 0)


def _targets(bag: Bag, stamps: np.ndarray, config: PolicyConfig,
             on_off: bool) -> tuple[dict[str, np.ndarray], np.ndarray, list[str]]:
    """Return each row's targets, whether it has them, and what they were made of."""
    pose, moved, notes = bag.streams[EE_POSE], _recorded(bag, TARGET_POSE), []
    if len(pose.frames) > 1:
        raise ValueError(f'{pose.topic} is in {sorted(pose.frames)}, expected one frame')
    if moved is None:
        notes.append(f'{TARGET_POSE} was not recorded: the action is {EE_POSE} one step later')
        numbers, alive = _later(pose, stamps, config.dt_ns)
        target = np.stack(pose.values)[numbers]
    else:
        if moved.frames != pose.frames:
            raise ValueError(f'{moved.topic} is in {sorted(moved.frames)}, expected '
                             f'{sorted(pose.frames)} as {pose.topic}')
        numbers, alive = _first_from(moved, stamps, config.dt_ns)
        target = np.stack(moved.values)[numbers]
    effort, alive, made_of = _efforts(bag, stamps, alive, config, on_off)
    return {'target_position': target[:, :3], 'target_quaternion': target[:, 3:],
            'target_gripper': effort}, alive, notes + made_of


def _turns(quaternions: np.ndarray) -> bool:
    """Return whether rotations (T, 4) leave the first one by more than measured noise would."""
    cosines = np.clip(np.abs(quaternions @ quaternions[0]), 0.0, 1.0)
    return bool(2.0 * np.arccos(cosines.min()) > TURN_RAD)


def _efforts(bag: Bag, stamps: np.ndarray, alive: np.ndarray, config: PolicyConfig,
             on_off: bool) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return each row's closing effort, which `alive` rows have one, and what it was made of."""
    closed, state = _recorded(bag, TARGET_GRIPPER), _recorded(bag, GRIPPER)
    if closed is None and state is None:
        if 'gripper' in config.action.parts:
            raise ValueError(f'{TARGET_GRIPPER} and the state of the gripper are missing')
        return np.zeros((len(stamps), 1)), alive, []
    if closed is None:
        numbers, there = _later(state, stamps, config.dt_ns)
        return _told(state, on_off)[numbers], alive & there, [
            f'{TARGET_GRIPPER} was not recorded: ' + (
                'the action is to open or to close, whichever the hand did last, one step later'
                if on_off else
                'the action is the state of the gripper one step later. A hand that closed on '
                'something is told to stay there, not to squeeze: record '
                f'{TARGET_GRIPPER} where it must hold')]
    # The executor sends some hands a target only when it changes: the last one holds until then.
    effort = np.stack(closed.values)[_first_from(closed, stamps, config.dt_ns)[0]]
    early = stamps + config.dt_ns <= closed.stamps_ns[0]
    if not (alive & early).any():
        return effort, alive, []
    if state is None:
        return effort, alive, [f'before the first {TARGET_GRIPPER} the action is that one: the '
                               'state of the gripper was not recorded']
    effort[early] = _told(state, on_off)[_newest(state, stamps[early])]
    return effort, alive, [f'before the first {TARGET_GRIPPER} the action is ' + (
        'to open or to close, whichever the hand did last' if on_off else
        'the state of the gripper')]


def _told(state: Stream, on_off: bool) -> np.ndarray:
    """Return the effort (N, 1) that each state of a hand shows."""
    states = np.stack(state.values)
    if not on_off:
        return 2.0 * states - 1.0
    # One that closed on something wide stalls half open: its motion says what it was told.
    order = OPEN if states[0, 0] <= NEARLY_OPEN else CLOSED
    orders, furthest = [], states[0, 0]
    for closed in states[:, 0].tolist():
        further = min if order == OPEN else max
        furthest = further(furthest, closed)
        if abs(closed - furthest) > MOVED:
            order, furthest = (CLOSED if order == OPEN else OPEN), closed
        orders.append(order)
    return np.array(orders)[:, None]


def _first_from(stream: Stream, stamps: np.ndarray, dt_ns: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first sample in [t, t + dt), else the last before t, and whether it is alive."""
    times = np.asarray(stream.stamps_ns)
    after = np.searchsorted(times, stamps)
    soon = times[np.minimum(after, len(times) - 1)]
    is_soon = (after < len(times)) & (soon < stamps + dt_ns)
    before = np.maximum(after - 1, 0)
    alive = is_soon | (after > 0) & (stamps - times[before] <= TARGET_ALIVE_NS)
    return np.where(is_soon, after, before), alive


def _later(stream: Stream, stamps: np.ndarray, dt_ns: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first sample at or after t + dt, and whether there is one."""
    numbers = np.searchsorted(stream.stamps_ns, stamps + dt_ns)
    there = numbers < len(stream.stamps_ns)
    return np.minimum(numbers, len(stream.stamps_ns) - 1), there


def _acting_part(stamps: np.ndarray, alive: np.ndarray, lead_ns: int) -> slice:
    """Return the rows from the first target's, and what is observed before it, to the last's."""
    rows = np.flatnonzero(alive)
    if not len(rows):
        raise ValueError('no target falls into the time that was observed')
    if not alive[rows[0]:rows[-1]].all():
        hole_ns = stamps[rows[0] + np.flatnonzero(~alive[rows[0]:])[0]] - stamps[0]
        raise ValueError(f'targets stop after {hole_ns / NS_PER_S:.1f} s and come again, expected '
                         f'them at least every {TARGET_ALIVE_NS / NS_PER_S} s')
    lead = np.searchsorted(stamps, stamps[rows[0]] - lead_ns, 'right') - 1
    return slice(max(lead, 0), rows[-1] + 1)


def _teleop(bag: Bag, stamps: np.ndarray, config: PolicyConfig) -> np.ndarray:
    """Return whether a person led: by the executor's status, else by the targets of theirs."""
    led = np.zeros(len(stamps), bool)
    teleop, status = bag.streams.get(TELEOP_POSE), bag.streams.get(STATUS)
    if teleop is not None and teleop.stamps_ns:
        times = np.asarray(teleop.stamps_ns)
        next_ns = times[np.minimum(np.searchsorted(times, stamps), len(times) - 1)]
        last_ns = times[_newest(teleop, stamps)]
        led = (((next_ns >= stamps) & (next_ns < stamps + config.dt_ns))
               | ((last_ns <= stamps) & (stamps - last_ns <= TELEOP_ALIVE_NS)))
    if status is not None and status.stamps_ns:
        said = np.array(status.values)[_newest(status, stamps)]
        # A start is everybody's; what was said later than a row says nothing of it.
        known = (said != Status.STARTING.name) & (stamps >= status.stamps_ns[0])
        led = np.where(known, said == Status.TELEOP.name, led)
    return led


def _pictures(stream: Stream, stamps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    newest = _newest(stream, stamps)
    fresh = np.diff(newest, prepend=-1) > 0
    blobs = [stream.values[i] for i in newest[fresh]]
    sizes = np.zeros(len(stamps), np.int64)
    sizes[fresh] = [len(blob) for blob in blobs]
    return np.concatenate(blobs), np.cumsum(sizes)

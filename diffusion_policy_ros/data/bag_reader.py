"""A recorded episode's streams, read with the conversions that run live."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, ExitStack
from dataclasses import dataclass, field
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader
from rosbags.typesys import get_typestore, Stores

from diffusion_policy_ros.control import readings
from diffusion_policy_ros.control.arm import ArmConfig, GripperConfig
from diffusion_policy_ros.data.pictures import encode_picture, pixel_error
from diffusion_policy_ros.data.topic_stats import TopicStats
from diffusion_policy_ros.datatypes import EE_POSE, GRIPPER, NS_PER_S
from diffusion_policy_ros.policy.config import CameraSpec, PolicyConfig

TARGET_POSE, TARGET_GRIPPER, TELEOP_POSE = 'target_pose', 'target_gripper', 'teleop_pose'
STATUS = 'chunk_executor/status'
TOPICS = {EE_POSE: 'ee_pose', GRIPPER: 'gripper_state', TARGET_POSE: 'target_pose',
          TARGET_GRIPPER: 'target_gripper', TELEOP_POSE: 'teleop_pose', STATUS: STATUS}
"""Role to the topic's usual name; a camera's is <camera>/image_raw."""
TYPES = {
    EE_POSE: ('geometry_msgs/msg/PoseStamped',), GRIPPER: ('sensor_msgs/msg/JointState',),
    TARGET_POSE: ('geometry_msgs/msg/PoseStamped',),
    TARGET_GRIPPER: ('sensor_msgs/msg/JointState',),
    TELEOP_POSE: ('geometry_msgs/msg/PoseStamped',),
    STATUS: ('diagnostic_msgs/msg/DiagnosticArray',)}
IMAGES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')


@dataclass
class Stream:
    """
    One stream's samples in the order of their stamps.

    Attributes:
        topic: that it was recorded from.
        stamps_ns: header stamps, increasing.
        values: one a stamp; of a camera its picture's bytes, scaled and encoded.
        frames: every frame_id that occurred.
        size: of a camera's pictures as they were sent, (height, width).
        pixel_error: the most by which their encoding has changed one of their values.
        stats: of all messages, those that were left out as late among them.
        arrived_ns: system time at which the last message was received; None where not known.
    """

    topic: str
    stamps_ns: list[int] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    frames: set[str] = field(default_factory=set)
    size: tuple[int, int] | None = None
    pixel_error: int = 0
    stats: TopicStats = field(default_factory=TopicStats)
    arrived_ns: int | None = None


@dataclass(frozen=True)
class Bag:
    """
    What a bag holds of an episode.

    Attributes:
        streams: by role: cameras, `EE_POSE`, `GRIPPER` and, where recorded, the targets'.
        custom: the metadata's entries of the user, the recorder's among them.
        identity: as `bag_identity` returns.
    """

    streams: Mapping[str, Stream]
    custom: Mapping[str, str]
    identity: tuple[int, int] = (0, 0)


def bag_identity(path: Path) -> tuple[int, int]:
    """
    Return what tells a bag from another of the same name: when it begins, and its messages.

    Raises:
        ValueError: it cannot be read.
    """
    with _reading(), Reader(path) as reader:
        return reader.start_time, reader.message_count


def read_bag(path: Path, config: PolicyConfig, arm: ArmConfig,
             names: Mapping[str, str] | None = None, image_format: str = 'jpeg',
             tolerance_ns: int = 0) -> Bag:
    """
    Read what a policy observes, and the targets that were sent.

    Args:
        path: folder of the bag, or its .mcap or .db3 file.
        config: of the policy; says which streams are needed, and the pictures' sizes.
        arm: says what the gripper's numbers mean.
        names: role to topic, where that has another name than usual.
        image_format: that pictures are kept in.
        tolerance_ns: a sample that is late by no more than this is left out, as it is live.

    Raises:
        ValueError: in one line without the bag's name: what is missing, of another type, broken,
            mixed, out of order or not the arm's.
    """
    with ExitStack() as stack:
        with _reading():
            reader = stack.enter_context(Reader(path))
            custom = dict(reader.storage.metadata.custom or {})
            identity = reader.start_time, reader.message_count
        roles = _roles(reader.connections, config, names or {}, _publishers(custom))
        streams = {role: Stream(connection.topic) for role, connection in roles.items()}
        convert = {connection.topic: (role, _conversion(role, config, arm, image_format))
                   for role, connection in roles.items()}
        for topic, log_ns, message in _messages(reader, list(roles.values())):
            role, read = convert[topic]
            stream = streams[role]
            stream.arrived_ns, number = log_ns, stream.stats.count + 1
            try:
                if role == STATUS:
                    _forget_later(stream, message)
                _take(stream, message, read, tolerance_ns)
            except ValueError as error:
                raise ValueError(f'{topic}: message {number}: {error}') from None
    for role, stream in streams.items():
        if not stream.stamps_ns and role in config.streams:
            raise ValueError(f'{stream.topic} has no messages')
    pose = streams[EE_POSE]
    for frame in sorted(pose.frames):
        if not frame.endswith(arm.base_frame):  # a second arm's has a prefix
            raise ValueError(f'{pose.topic} is in {frame!r}, expected {arm.base_frame!r}, the '
                             "base_frame of the arm's YAML (--arm)")
    return Bag(streams, custom, identity)


@contextmanager
def _reading() -> Iterator[None]:
    """Say in one line what rosbags, or whatever it reads with, could not do."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError('no metadata.yaml, expected a whole rosbag2 bag (recover_bag saves what '
                         'can be read of one that was cut off)') from None
    except Exception as error:  # zstd, lz4, sqlite and struct each have their own
        text = ' '.join(str(error).split()) or type(error).__name__
        raise ValueError(f'cannot be read: {text}') from None


def _messages(reader: Reader, connections: Sequence[Connection]) -> Iterator[tuple[str, int, Any]]:
    """Yield each message's topic, the system time at which it was received, and itself."""
    store, raw = get_typestore(Stores.ROS2_JAZZY), reader.messages(connections)
    while True:
        with _reading():
            found = next(raw, None)
            if found is None:
                return
            connection, log_ns, data = found
            message = store.deserialize_cdr(data, connection.msgtype)
        yield connection.topic, log_ns, message


def _publishers(custom: Mapping[str, str]) -> dict[str, int]:
    """Return how many publishers of each topic the recorder has seen, where it says so."""
    try:
        return {topic: int(said['publishers'])
                for topic, said in json.loads(custom['topics']).items() if 'publishers' in said}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}  # another recorder's


def _roles(connections: Sequence[Connection], config: PolicyConfig, names: Mapping[str, str],
           seen: Mapping[str, int]) -> dict[str, Connection]:
    """Return the topic of each role; those of the targets may be missing."""
    cameras = [camera.name for camera in config.observation.cameras]
    unknown = sorted(set(names) - {*cameras, *TOPICS})
    if unknown:
        raise ValueError(f'topics: {unknown[0]!r} is no role, expected one of '
                         f'{", ".join([*cameras, *TOPICS])}')
    found = {}
    for role in (*cameras, *TOPICS):
        wanted = [names[role]] if role in names else [TOPICS[role]] if role in TOPICS else [
            f'{role}/image_raw', f'{role}/image_raw/compressed']
        matching = [connection for connection in connections if any(
            connection.topic.strip('/') == name.strip('/')
            or role not in names and connection.topic.endswith(f'/{name}') for name in wanted)]
        if not matching:
            if role in config.streams or role in names:
                raise ValueError(f'{" or ".join(wanted)} is missing, found '
                                 f'{", ".join(sorted({c.topic for c in connections})) or "none"}')
            continue
        topics = sorted({connection.topic for connection in matching})
        if len(topics) > 1:
            raise ValueError(f'{role}: found {" and ".join(topics)}, expected one; name it in '
                             '--topics')
        publishers = max(len(matching), seen.get(topics[0], 0), *(
            len(connection.ext.offered_qos_profiles) for connection in matching))
        if publishers > 1:
            raise ValueError(f'{topics[0]}: {publishers} publishers are mixed in it, expected one')
        kinds = TYPES.get(role, IMAGES)
        if matching[0].msgtype not in kinds:
            raise ValueError(f'{topics[0]} is {matching[0].msgtype}, expected '
                             f'{" or ".join(kinds)}')
        found[role] = matching[0]
    return found


class _Sample(NamedTuple):
    """What a message says; size and pixel_error as `Stream` has them."""

    value: Any
    frame_id: str = ''
    size: tuple[int, int] | None = None
    pixel_error: int = 0


Read = Callable[[Any], _Sample]


def _conversion(role: str, config: PolicyConfig, arm: ArmConfig, image_format: str) -> Read:
    cameras = {camera.name: camera for camera in config.observation.cameras}
    if role in cameras:
        return _camera(cameras[role], image_format)
    if role == GRIPPER:
        return lambda message: _Sample(_closed(message, arm.gripper))
    if role == TARGET_GRIPPER:
        return lambda message: _Sample(np.array([readings.gripper_target(message)]))
    if role == STATUS:
        return lambda message: _Sample(readings.executor_status(message))

    def pose(message: Any) -> _Sample:
        observation = readings.pose_observation(message)
        return _Sample(observation.value, observation.frame_id)
    return pose


def _closed(message: Any, gripper: GripperConfig) -> np.ndarray:
    state = readings.gripper_observation(message).value[0]
    problem = gripper.state_problem(state)
    if problem is not None:  # clipped, a wrong unit would look like a hand that never moves
        raise ValueError(f'position: {problem} (--arm)')
    return np.array([gripper.state_to_closed(state)])


def _forget_later(stream: Stream, message: Any) -> None:
    """Drop what the executor said before its clock was set back, and what was latched then."""
    if stream.stamps_ns and readings.stamp_ns(message.header) < stream.stamps_ns[-1]:
        stream.stamps_ns.clear()
        stream.values.clear()


def _camera(camera: CameraSpec, image_format: str) -> Read:
    def picture(message: Any) -> _Sample:
        observation, size = readings.image_observation(message, camera.name, camera.height,
                                                       camera.width)
        blob = encode_picture(observation.value, image_format)
        return _Sample(blob, observation.frame_id, size, pixel_error(blob, observation.value))
    return picture


def _take(stream: Stream, message: Any, read: Read, tolerance_ns: int) -> None:
    stamp_ns = readings.stamp_ns(message.header)
    stream.stats.add(stamp_ns, None)
    if stream.stamps_ns and stamp_ns <= stream.stamps_ns[-1]:
        back_ns = stream.stamps_ns[-1] - stamp_ns
        if back_ns > tolerance_ns:
            raise ValueError(f'header.stamp: {back_ns / NS_PER_S:.3f} s before the last, expected '
                             'stamps that increase (two publishers, or a clock that was set back)')
        return
    sample = read(message)
    if stream.size is not None and sample.size != stream.size:
        raise ValueError(f'size: {sample.size[0]}x{sample.size[1]} pixels, expected '
                         f'{stream.size[0]}x{stream.size[1]} as before')
    stream.size = sample.size
    stream.pixel_error = max(stream.pixel_error, sample.pixel_error)
    stream.frames.add(sample.frame_id)
    stream.stamps_ns.append(stamp_ns)
    stream.values.append(sample.value)

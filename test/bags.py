"""Bags for the tests, made without ROS from rosbags' own types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
import struct
from typing import Any

import numpy as np
from rosbags.typesys import get_typestore, Stores

from diffusion_policy_ros.data.bag_writer import BagTopic, BagWriter

STORE = get_typestore(Stores.ROS2_JAZZY)
FINITE_QOS = {'sec': 0, 'nsec': 0}
QOS = {'history': 'keep_last', 'depth': 10, 'reliability': 'reliable', 'durability': 'volatile',
       'deadline': FINITE_QOS, 'lifespan': FINITE_QOS, 'liveliness': 'automatic',
       'liveliness_lease_duration': FINITE_QOS, 'avoid_ros_namespace_conventions': False}


def topic(name: str, kind: str) -> BagTopic:
    """Return a topic whose type is one of rosbags'."""
    definition, _ = STORE.generate_msgdef(kind, ros_version=2)
    return BagTopic(name, kind, definition, STORE.hash_rihs01(kind), (QOS,))


def header(stamp_ns: int, frame_id: str = 'base') -> Any:
    """Return a std_msgs/Header."""
    types = STORE.types
    sec, nanosec = divmod(stamp_ns, 1_000_000_000)
    stamp = types['builtin_interfaces/msg/Time'](sec=sec, nanosec=nanosec)
    return types['std_msgs/msg/Header'](stamp=stamp, frame_id=frame_id)


def pose(stamp_ns: int, position: tuple[float, float, float] = (0.0, 0.5, 0.25),
         frame_id: str = 'base',
         quaternion: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)) -> bytes:
    """Return a PoseStamped in CDR."""
    types = STORE.types
    x, y, z = position
    qx, qy, qz, qw = quaternion
    value = types['geometry_msgs/msg/Pose'](
        position=types['geometry_msgs/msg/Point'](x=x, y=y, z=z),
        orientation=types['geometry_msgs/msg/Quaternion'](x=qx, y=qy, z=qz, w=qw))
    return cdr('geometry_msgs/msg/PoseStamped', header=header(stamp_ns, frame_id), pose=value)


def joint(stamp_ns: int, position: float | None = None, effort: float | None = None) -> bytes:
    """Return a JointState in CDR."""
    values = {'position': position, 'velocity': None, 'effort': effort}
    return cdr('sensor_msgs/msg/JointState', header=header(stamp_ns, ''), name=['gripper'], **{
        key: np.array([] if value is None else [value], float) for key, value in values.items()})


def image(stamp_ns: int, pixels: np.ndarray, encoding: str = 'rgb8') -> bytes:
    """Return an Image in CDR."""
    height, width = pixels.shape[:2]
    data = np.ascontiguousarray(pixels).reshape(-1)
    return cdr('sensor_msgs/msg/Image', header=header(stamp_ns, 'optical'), height=height,
               width=width, encoding=encoding, is_bigendian=0, step=len(data) // height, data=data)


def cdr(kind: str, **fields: Any) -> bytes:
    """Return a message in CDR."""
    return bytes(STORE.serialize_cdr(STORE.types[kind](**fields), kind))


def write_bag(folder: Path, streams: Mapping[str, tuple[str, Sequence[bytes]]],
              custom: Mapping[str, str] | None = None,
              topics: Mapping[str, BagTopic] | None = None) -> Path:
    """
    Write a bag whose messages arrive as they are stamped; return its folder.

    Args:
        folder: of the bag.
        streams: topic to its type and its messages, which are written in turn.
        custom: entries of the metadata.
        topics: what the bag says of some topics, where that is not as usual.
    """
    writer = BagWriter(folder, folder.name)
    said = {name: topic(name, kind) for name, (kind, _) in streams.items()} | dict(topics or {})
    for described in said.values():
        writer.announce(described)
    arrived = dict.fromkeys(streams, 0)
    for i in range(max(len(messages) for _, messages in streams.values())):
        for name, (_, messages) in streams.items():
            if i < len(messages):
                sec, nanosec = struct.unpack_from('<iI', messages[i], 4)
                arrived[name] = max(arrived[name] + 1, sec * 10**9 + nanosec)
                writer.write(said[name], messages[i], arrived[name], arrived[name])
    writer.close(custom or {})
    return folder

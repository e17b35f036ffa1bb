"""What a bag says about a ROS topic: its type's definition and hash, its publishers' QoS."""

from __future__ import annotations

from collections.abc import Sequence
import functools
import importlib
from pathlib import Path
from typing import Any

from ament_index_python.packages import get_package_share_directory
from rclpy.duration import Duration
from rclpy.qos import QoSProfile
from rosbags.typesys import get_types_from_msg, get_typestore, Stores

from diffusion_policy_ros.data.bag_writer import BagTopic
from diffusion_policy_ros.datatypes import NS_PER_S


def bag_topic(name: str, type_name: str, offered: Sequence[QoSProfile]) -> BagTopic:
    """
    Return a topic as a bag describes it.

    Raises:
        LookupError: the type's definition is not installed.
    """
    definition, type_hash = _definition(type_name)
    return BagTopic(name, type_name, definition, type_hash, [_qos_entry(qos) for qos in offered])


def message_class(type_name: str) -> Any:
    """
    Return a message's class, `sensor_msgs/msg/Image` for example.

    Raises:
        LookupError: it is not installed.
    """
    package, _, name = type_name.split('/')
    try:
        return getattr(importlib.import_module(f'{package}.msg'), name)
    except (ImportError, AttributeError):
        raise LookupError(f'{type_name} is not installed') from None


@functools.cache
def _definition(type_name: str) -> tuple[str, str]:
    """Return the joined definitions, from rosbags or else the installed package, and the hash."""
    store = _store()
    missing = [type_name]
    while missing:
        if missing[-1] not in store.fielddefs:
            package, _, name = missing.pop().split('/')
            path = Path(get_package_share_directory(package), 'msg', f'{name}.msg')
            types = get_types_from_msg(path.read_text(), f'{package}/msg/{name}')
            store.register(types)
            missing += [part for _, fields in types.values() for part in _parts(fields)]
        else:
            missing.pop()
    definition, _ = store.generate_msgdef(type_name, ros_version=2)
    return definition, store.hash_rihs01(type_name)


@functools.cache
def _store() -> Any:
    return get_typestore(Stores.ROS2_JAZZY)


def _parts(fields: Sequence[Any]) -> list[str]:
    """Return the names of the messages that some fields contain."""
    found = []
    for _, description in fields:
        while isinstance(description, tuple):
            if isinstance(description[1], str) and '/' in description[1]:
                found.append(description[1])
            description = description[1][0] if isinstance(description[1], tuple) else None
    return found


def _qos_entry(qos: QoSProfile) -> dict[str, Any]:
    """Return a profile as rosbag2 writes it."""
    return {
        'history': qos.history.name.lower(), 'depth': qos.depth,
        'reliability': qos.reliability.name.lower(), 'durability': qos.durability.name.lower(),
        'deadline': _duration_entry(qos.deadline), 'lifespan': _duration_entry(qos.lifespan),
        'liveliness': qos.liveliness.name.lower(),
        'liveliness_lease_duration': _duration_entry(qos.liveliness_lease_duration),
        'avoid_ros_namespace_conventions': qos.avoid_ros_namespace_conventions}


def _duration_entry(duration: Duration) -> dict[str, int]:
    sec, nsec = divmod(duration.nanoseconds, NS_PER_S)
    return {'sec': sec, 'nsec': nsec}

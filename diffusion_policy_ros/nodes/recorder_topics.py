"""The topics of a recording: found in the graph, and subscribed as their publishers offer them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
import struct
import time
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription

from diffusion_policy_ros.data.bag_writer import BagTopic
from diffusion_policy_ros.data.recording import Arrival
from diffusion_policy_ros.datatypes import NS_PER_S
from diffusion_policy_ros.nodes.bag_topics import bag_topic, message_class

MOST_LATCHED = 20
"""Of topics that several may latch, without a header (/tf_static); of others the newest counts."""

Written = tuple[str, str, Callable[[bytes], bytes] | None]
"""Name and type of a topic in the bag, and the way to get its messages there."""


@dataclass
class WatchedTopic:
    """
    A topic that exists.

    Attributes:
        topic: as the bag says it.
        subscription: to it.
        has_header: whether its messages begin with a std_msgs/Header.
        publishers: how many there are.
        convert: from a message to the one that is written; None for the same.
        latched: what a late subscriber would get, for bags that begin later.
    """

    topic: BagTopic
    subscription: Subscription
    has_header: bool
    publishers: int
    convert: Callable[[bytes], bytes] | None
    latched: deque[Arrival]


class RecorderTopics:
    """
    Watches for topics, and hands their messages over as the middleware has them.

    Args:
        node: that subscribes; its executor must hand message info over.
        wanted: fully qualified names.
        depth: of the queue of each.
        written_as: from a topic's name and type to how it is written.
        take: is given the name, the topic and each message.

    Attributes:
        watched: by name.
    """

    def __init__(self, node: Node, wanted: Sequence[str], depth: int,
                 written_as: Callable[[str, str], Written],
                 take: Callable[[str, WatchedTopic, Arrival], None]) -> None:
        self._node, self._wanted, self._depth = node, list(dict.fromkeys(wanted)), depth
        self._written_as, self._take = written_as, take
        self.watched: dict[str, WatchedTopic] = {}

    def look(self, may_change: bool) -> dict[str, str]:
        """
        Subscribe to what is there now; return what can't be, by name, and why.

        Args:
            may_change: subscribe again where the QoS that is offered has changed.
        """
        problems = {}
        for name in self._wanted:
            infos = self._node.get_publishers_info_by_topic(name)
            watched = self.watched.get(name)
            if watched is not None:
                watched.publishers = len(infos)
                if may_change and len(infos) != len(watched.topic.qos):
                    watched.topic = bag_topic(watched.topic.name, watched.topic.type,
                                              [info.qos_profile for info in infos])
            if not infos or watched is not None and not (
                    may_change and _differs(watched.subscription.qos_profile, infos)):
                continue
            try:
                self._watch(name, infos)
            except (LookupError, OSError) as error:
                problems[name] = str(error)
        return problems

    def drain(self) -> None:
        """Take what has arrived and waits in the middleware."""
        for name, watched in self.watched.items():
            handle, kind = watched.subscription.handle, watched.subscription.msg_type
            with handle:
                while (taken := handle.take_message(kind, True)) is not None:
                    self._on_message(name, *taken)

    def _watch(self, name: str, infos: Sequence[Any]) -> None:
        kinds = sorted({info.topic_type for info in infos})
        if len(kinds) > 1:
            raise LookupError(f'it has the types {" and ".join(kinds)}, expected one')
        message = message_class(kinds[0])
        written, kind, convert = self._written_as(name, kinds[0])
        topic = bag_topic(written, kind, [info.qos_profile for info in infos])
        old = self.watched.pop(name, None)
        if old is not None:
            self._node.destroy_subscription(old.subscription)
        subscription = self._node.create_subscription(
            message, name, partial(self._on_message, name), _readable(infos, self._depth),
            raw=True)
        fields = message.get_fields_and_field_types()
        has_header = next(iter(fields.values()), '') == 'std_msgs/Header'
        kept = 0 if not _is_latched(infos) else 1 if has_header else MOST_LATCHED
        self.watched[name] = WatchedTopic(topic, subscription, has_header, len(infos), convert,
                                          deque(maxlen=kept))

    def _on_message(self, name: str, data: bytes, info: dict[str, Any]) -> None:
        watched = self.watched[name]
        log_ns = info['received_timestamp'] or time.time_ns()
        stamp_ns = _header_stamp_ns(data) if watched.has_header else log_ns
        number = info.get('publication_sequence_number')
        arrival = Arrival(data, stamp_ns, log_ns, info['source_timestamp'] or log_ns,
                          number if watched.publishers == 1 else None)
        watched.latched.append(arrival)
        self._take(name, watched, arrival)


def _readable(infos: Sequence[Any], depth: int) -> QoSProfile:
    """Return what reads all these publishers: reliable, or latched, only where all are."""
    reliable = all(info.qos_profile.reliability == ReliabilityPolicy.RELIABLE for info in infos)
    return QoSProfile(
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if _is_latched(infos)
        else DurabilityPolicy.VOLATILE)


def _is_latched(infos: Sequence[Any]) -> bool:
    return all(info.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for info in infos)


def _differs(qos: QoSProfile, infos: Sequence[Any]) -> bool:
    wanted = _readable(infos, qos.depth)
    return (qos.reliability, qos.durability) != (wanted.reliability, wanted.durability)


def _header_stamp_ns(data: bytes) -> int:
    """Return header.stamp of a message in CDR whose first field is its header."""
    sec, nanosec = struct.unpack_from('<iI' if data[1] & 1 else '>iI', data, 4)
    return sec * NS_PER_S + nanosec

"""Write one rosbag2 bag: an MCAP file, and metadata.yaml at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import contextlib
from dataclasses import dataclass, field
import fcntl
from pathlib import Path
import time
from typing import Any

from mcap.writer import CompressionType, Writer
import yaml

from diffusion_policy_ros.datatypes import NS_PER_S

METADATA_VERSION = 9
CHUNK_BYTES = 1 << 20
FLUSH_NS = NS_PER_S


@dataclass(frozen=True)
class BagTopic:
    """
    What a bag says about a topic.

    Attributes:
        name: fully qualified.
        type: `sensor_msgs/msg/Image`.
        definition: of the type and all that it contains, as rosbag2 joins them ('ros2msg').
        type_hash: RIHS01_...
        qos: offered by its publishers, each as rosbag2 writes it (metadata version 9).
    """

    name: str
    type: str
    definition: str
    type_hash: str
    qos: Sequence[Mapping[str, Any]] = ()


def is_being_written(path: Path) -> bool:
    """Return whether a `BagWriter` has this file open, in whatever process."""
    with path.open('rb') as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@dataclass
class _Span:
    """Messages and the times of the first and the last."""

    count: int = 0
    first_ns: int = 0
    last_ns: int = 0

    def add(self, log_ns: int) -> None:
        self.first_ns = min(self.first_ns, log_ns) if self.count else log_ns
        self.last_ns = max(self.last_ns, log_ns)
        self.count += 1

    def as_yaml(self) -> dict[str, Any]:
        return {'starting_time': {'nanoseconds_since_epoch': self.first_ns},
                'duration': {'nanoseconds': self.last_ns - self.first_ns},
                'message_count': self.count}


@dataclass
class _Channel:
    topic: BagTopic
    id: int
    count: int = field(default=0)


class BagWriter:
    """
    A bag that `ros2 bag`, rosbags and mcap read; uncompressed, in chunks with checksums.

    What is written reaches the file within about a second, so that a process that is killed loses
    no more than that (`recover_bag`).

    Args:
        folder: made; must not exist.
        name: of the bag: its file is `<name>_0.mcap`.

    Raises:
        FileExistsError: there is such a folder.
    """

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True)
        self._folder, self._file = folder, f'{name}_0.mcap'
        self._stream = (folder / self._file).open('wb')
        fcntl.flock(self._stream, fcntl.LOCK_EX)
        self._writer = Writer(self._stream, CHUNK_BYTES, CompressionType.NONE)
        self._writer.start('ros2', 'diffusion_policy_ros')
        self._schemas: dict[str, int] = {}
        self._channels: dict[str, _Channel] = {}
        self._span, self._flushed_ns = _Span(), time.monotonic_ns()

    def announce(self, topic: BagTopic) -> None:
        """List a topic, whether messages come or not."""
        if topic.name not in self._channels:
            self._add(topic)

    def write(self, topic: BagTopic, data: bytes, log_ns: int, publish_ns: int,
              sequence: int = 0) -> None:
        """
        Write one message.

        Args:
            topic: that it came on.
            data: CDR, as it came.
            log_ns: system time at which it was received.
            publish_ns: system time at which it was sent.
            sequence: its number among those of its publisher, 0 where nobody knows.
        """
        channel = self._channels.get(topic.name) or self._add(topic)
        self._writer.add_message(channel.id, log_ns, data, publish_ns, sequence)
        channel.count += 1
        self._span.add(log_ns)
        now_ns = time.monotonic_ns()
        if now_ns - self._flushed_ns > FLUSH_NS:
            self._writer.flush()
            self._flushed_ns = now_ns

    def close(self, custom_data: Mapping[str, str]) -> None:
        """End the file and write metadata.yaml, with these entries of the user's."""
        about = self._metadata(custom_data)
        text = yaml.safe_dump(about, sort_keys=False, allow_unicode=True)
        self._writer.add_metadata('rosbag2', {'serialized_metadata': text})
        self._writer.finish()
        self._stream.close()
        path = self._folder / 'metadata.yaml'
        new = path.with_suffix('.yaml.new')
        new.write_text(yaml.safe_dump({'rosbag2_bagfile_information': about}, sort_keys=False,
                                      allow_unicode=True))
        new.replace(path)

    def abort(self) -> None:
        """Leave the file as it is, without an end: `recover_bag` reads it."""
        with contextlib.suppress(OSError):  # what is buffered finds no room either
            self._stream.close()

    def _add(self, topic: BagTopic) -> _Channel:
        if topic.type not in self._schemas:
            self._schemas[topic.type] = self._writer.register_schema(
                topic.type, 'ros2msg', topic.definition.encode())
        channel = _Channel(topic, self._writer.register_channel(
            topic.name, 'cdr', self._schemas[topic.type], {
                'offered_qos_profiles': yaml.safe_dump([dict(qos) for qos in topic.qos]),
                'topic_type_hash': topic.type_hash}))
        self._channels[topic.name] = channel
        return channel

    def _metadata(self, custom_data: Mapping[str, str]) -> dict[str, Any]:
        return {
            'version': METADATA_VERSION,
            'storage_identifier': 'mcap',
            **self._span.as_yaml(),
            'topics_with_message_count': [{
                'topic_metadata': {
                    'name': channel.topic.name, 'type': channel.topic.type,
                    'serialization_format': 'cdr',
                    'offered_qos_profiles': [dict(qos) for qos in channel.topic.qos],
                    'type_description_hash': channel.topic.type_hash},
                'message_count': channel.count} for channel in self._channels.values()],
            'compression_format': '',
            'compression_mode': '',
            'relative_file_paths': [self._file],
            'files': [{'path': self._file, **self._span.as_yaml()}],
            'custom_data': dict(custom_data) or None,
            'ros_distro': 'jazzy'}

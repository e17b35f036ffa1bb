"""Save what can be read of a bag whose recorder was killed or whose disk was full."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
import shutil
import struct
import sys
from typing import IO, NamedTuple

from mcap.exceptions import McapError
from mcap.records import Channel, Message, Schema
from mcap.stream_reader import CRCValidationError, StreamReader
import yaml

from diffusion_policy_ros.data.bag_writer import BagTopic, BagWriter, is_being_written
from diffusion_policy_ros.data.recording import UNFINISHED

RECOVERED = '.recovered'


class Recovered(NamedTuple):
    """
    What was saved of a bag.

    Attributes:
        folder: of the new bag, `<name>.recovered`.
        messages: in it.
        unread_bytes: after the last whole chunk of the old one, which is kept where there are any:
            a chunk that was cut off can't be told from a broken length with whole chunks behind.
    """

    folder: Path
    messages: int
    unread_bytes: int


def recover_bag(folder: Path) -> Recovered:
    """
    Copy a cut-off bag's messages as far as it is whole, and delete it if that is all of it.

    Args:
        folder: of the unfinished bag.

    Raises:
        ValueError: there is nothing to recover: no MCAP file, a bag that is whole or still being
            recorded, no message.
        FileExistsError: it was recovered before.
    """
    files = sorted(folder.glob('*.mcap'))
    if len(files) != 1:
        raise ValueError(f'{folder}: {len(files)} MCAP files, expected one')
    if (folder / 'metadata.yaml').exists():
        raise ValueError(f'{folder}: the bag is whole, it has its metadata.yaml')
    if is_being_written(files[0]):
        raise ValueError(f'{folder}: it is being recorded')
    name = folder.name.removesuffix(UNFINISHED)
    target = folder.with_name(name + RECOVERED)
    size = unread = files[0].stat().st_size
    writer, count = BagWriter(target, name), 0
    try:
        with files[0].open('rb') as stream:
            for found in _whole_records(stream):
                if found is not None:
                    topic, message = found
                    writer.write(topic, message.data, message.log_time, message.publish_time,
                                 message.sequence)
                    count += 1
                unread = size - stream.tell()
        if not count:
            raise ValueError(f'{folder}: not one message can be read')
        writer.close({'complete': 'false', 'recovered': 'true'})
    except BaseException:
        writer.abort()
        shutil.rmtree(target)
        raise
    if not unread:
        shutil.rmtree(folder)
    return Recovered(target, count, unread)


def _whole_records(stream: IO[bytes]) -> Iterator[tuple[BagTopic, Message] | None]:
    """Yield each message with its topic, and None for any other record."""
    schemas: dict[int, Schema] = {}
    topics: dict[int, BagTopic] = {}
    try:
        for record in StreamReader(stream, validate_crcs=True).records:
            if isinstance(record, Schema):
                schemas[record.id] = record
            elif isinstance(record, Channel):
                topics[record.id] = _topic(record, schemas[record.schema_id])
            yield ((topics[record.channel_id], record) if isinstance(record, Message) else None)
        yield None  # the footer has an end mark behind it
    except (McapError, CRCValidationError, struct.error, EOFError):
        return


def _topic(channel: Channel, schema: Schema) -> BagTopic:
    qos = yaml.safe_load(channel.metadata.get('offered_qos_profiles', '')) or ()
    return BagTopic(channel.topic, schema.name, schema.data.decode(),
                    channel.metadata.get('topic_type_hash', ''), qos)


def main(arguments: Sequence[str] | None = None) -> int:
    """Recover bags from the command line."""
    parser = argparse.ArgumentParser(prog='recover_bag', description=__doc__)
    parser.add_argument('bags', nargs='+', type=Path, help='folders that end in .unfinished')
    code = 0
    for folder in parser.parse_args(arguments).bags:
        try:
            found = recover_bag(folder)
            print(f'{found.folder}: {found.messages} messages')
            if found.unread_bytes:
                raise ValueError(f'{folder}: it is kept, {found.unread_bytes} bytes follow '
                                 'its last whole chunk')
        except (OSError, ValueError) as error:
            print(f'recover_bag: {error}', file=sys.stderr)
            code = 1
    return code


if __name__ == '__main__':
    sys.exit(main())

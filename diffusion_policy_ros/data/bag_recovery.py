"""Save what can be read of a bag whose recorder was killed or whose disk was full."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
import shutil
import struct
import sys

from mcap.exceptions import McapError
from mcap.records import Channel, Message, Schema
from mcap.stream_reader import CRCValidationError, StreamReader
import yaml

from diffusion_policy_ros.data.bag_writer import BagTopic, BagWriter
from diffusion_policy_ros.data.recording import UNFINISHED

RECOVERED = '.recovered'


def recover_bag(folder: Path) -> tuple[Path, int]:
    """
    Copy every whole message of a cut-off bag into a new one, and delete the old one.

    Args:
        folder: of the unfinished bag.

    Returns:
        The new folder, `<name>.recovered`, and the number of its messages.

    Raises:
        ValueError: there is nothing to recover: no MCAP file, a bag that is whole, no message.
        FileExistsError: it was recovered before.
    """
    files = sorted(folder.glob('*.mcap'))
    if len(files) != 1:
        raise ValueError(f'{folder}: {len(files)} MCAP files, expected one')
    if (folder / 'metadata.yaml').exists():
        raise ValueError(f'{folder}: the bag is whole, it has its metadata.yaml')
    name = folder.name.removesuffix(UNFINISHED)
    target = folder.with_name(name + RECOVERED)
    writer, count = BagWriter(target, name), 0
    try:
        for topic, message in _whole_messages(files[0]):
            writer.write(topic, message.data, message.log_time, message.publish_time,
                         message.sequence)
            count += 1
        if not count:
            raise ValueError(f'{folder}: not one message can be read')
        writer.close({'complete': 'false', 'recovered': 'true'})
    except BaseException:
        writer.abort()
        shutil.rmtree(target)
        raise
    shutil.rmtree(folder)
    return target, count


def _whole_messages(path: Path) -> Iterator[tuple[BagTopic, Message]]:
    schemas: dict[int, Schema] = {}
    topics: dict[int, BagTopic] = {}
    with path.open('rb') as stream:
        try:
            for record in StreamReader(stream, validate_crcs=True).records:
                if isinstance(record, Schema):
                    schemas[record.id] = record
                elif isinstance(record, Channel):
                    topics[record.id] = _topic(record, schemas[record.schema_id])
                elif isinstance(record, Message):
                    yield topics[record.channel_id], record
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
            target, count = recover_bag(folder)
            print(f'{target}: {count} messages')
        except (OSError, ValueError) as error:
            print(f'recover_bag: {error}', file=sys.stderr)
            code = 1
    return code


if __name__ == '__main__':
    sys.exit(main())

"""Bags that the public readers read, to the last byte."""

from __future__ import annotations

import json
from pathlib import Path

from bags import joint, pose, QOS, STORE, topic
from mcap.reader import make_reader
import pytest
from rosbags.rosbag2 import Reader
import yaml

from diffusion_policy_ros.data.bag_writer import BagWriter

POSE = topic('/ee_pose', 'geometry_msgs/msg/PoseStamped')
GRIPPER = topic('/gripper_state', 'sensor_msgs/msg/JointState')
SECOND = 1_000_000_000


@pytest.fixture()
def bag(tmp_path):
    """Return a bag of five poses and two gripper states."""
    writer = BagWriter(tmp_path / 'episode', 'episode')
    for i in range(5):
        writer.write(POSE, pose(SECOND + i), 10 * SECOND + i, 9 * SECOND + i, i + 1)
    for i in range(2):
        writer.write(GRIPPER, joint(SECOND + i, 0.5), 10 * SECOND + i, 9 * SECOND + i)
    writer.close({'task': 'open the drawer', 'success': 'true'})
    return tmp_path / 'episode'


def test_rosbags_reads_it(bag):
    with Reader(bag) as reader:
        assert reader.duration == 5 and reader.message_count == 7
        assert reader.storage.metadata.custom == {'task': 'open the drawer', 'success': 'true'}
        topics = {connection.topic: connection for connection in reader.connections}
        assert topics['/ee_pose'].msgcount == 5
        assert topics['/ee_pose'].digest == POSE.type_hash
        assert topics['/ee_pose'].ext.offered_qos_profiles[0].depth == QOS['depth']
        found = [(connection.topic, time, STORE.deserialize_cdr(data, connection.msgtype))
                 for connection, time, data in reader.messages()]
    assert [message.header.stamp.nanosec for name, _, message in found
            if name == '/ee_pose'] == list(range(5))
    assert [time - 10 * SECOND for name, time, _ in found if name == '/ee_pose'] == list(range(5))


def test_mcap_reads_it_without_rosbag2(bag):
    with (bag / 'episode_0.mcap').open('rb') as stream:
        reader = make_reader(stream, validate_crcs=True)
        assert reader.get_header().profile == 'ros2'
        found = list(reader.iter_messages(topics=['/ee_pose']))
        metadata = {record.name: record.metadata for record in reader.iter_metadata()}
    assert [message.sequence for _, _, message in found] == [1, 2, 3, 4, 5]
    assert [message.publish_time for _, _, message in found] == [9 * SECOND + i for i in range(5)]
    schema, channel, _ = found[0]
    assert (schema.name, schema.encoding) == ('geometry_msgs/msg/PoseStamped', 'ros2msg')
    assert schema.data.decode() == POSE.definition
    assert channel.metadata['topic_type_hash'] == POSE.type_hash
    assert yaml.safe_load(channel.metadata['offered_qos_profiles']) == [QOS]
    about = yaml.safe_load(metadata['rosbag2']['serialized_metadata'])
    assert about == yaml.safe_load((bag / 'metadata.yaml').read_text())[
        'rosbag2_bagfile_information']


def test_metadata_are_those_of_version_9(bag):
    about = yaml.safe_load((bag / 'metadata.yaml').read_text())['rosbag2_bagfile_information']
    assert {key: about[key] for key in ('version', 'storage_identifier', 'message_count')} == {
        'version': 9, 'storage_identifier': 'mcap', 'message_count': 7}
    assert about['relative_file_paths'] == [file['path'] for file in about['files']] == [
        'episode_0.mcap']
    assert {item['topic_metadata']['name']: item['message_count']
            for item in about['topics_with_message_count']} == {'/ee_pose': 5, '/gripper_state': 2}


def test_a_bag_without_messages_is_a_bag(tmp_path):
    BagWriter(tmp_path / 'empty', 'empty').close({})
    with Reader(tmp_path / 'empty') as reader:
        assert reader.message_count == 0


def test_a_bag_is_not_overwritten(bag):
    before = (bag / 'metadata.yaml').read_text()
    with pytest.raises(FileExistsError):
        BagWriter(bag, 'episode')
    assert (bag / 'metadata.yaml').read_text() == before


def test_custom_data_keep_their_text(tmp_path):
    notes = {'note': 'zwölf: "quoted"\nand a second line', 'topics': json.dumps({'/a': {'n': 1}})}
    BagWriter(tmp_path / 'notes', 'notes').close(notes)
    with Reader(Path(tmp_path / 'notes')) as reader:
        assert reader.storage.metadata.custom == notes

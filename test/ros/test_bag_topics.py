"""A bag's types are those that are installed."""

from __future__ import annotations

import json
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
import pytest
from rclpy.duration import Duration
from rclpy.qos import QoSProfile
from rosbags.typesys import get_types_from_msg

from diffusion_policy_ros.nodes.bag_topics import bag_topic, message_class

QOS = QoSProfile(depth=7, deadline=Duration(seconds=1.5))


@pytest.mark.parametrize('name', [
    'sensor_msgs/msg/Image', 'trajectory_msgs/msg/MultiDOFJointTrajectory',
    'lifecycle_msgs/msg/TransitionEvent', 'rcl_interfaces/msg/ParameterEvent'])
def test_hash_and_definition_are_those_of_the_installed_type(name):
    topic = bag_topic('/x', name, [])
    package, _, short = name.split('/')
    path = Path(get_package_share_directory(package), 'msg', f'{short}.json')
    hashes = json.loads(path.read_text())['type_hashes']
    assert topic.type_hash == next(
        item['hash_string'] for item in hashes if item['type_name'] == name)
    assert name in get_types_from_msg(topic.definition, name)


def test_qos_is_written_as_rosbag2_writes_it():
    entry, = bag_topic('/x', 'std_msgs/msg/Bool', [QOS]).qos
    assert {key: entry[key] for key in ('history', 'depth', 'reliability', 'durability')} == {
        'history': 'keep_last', 'depth': 7, 'reliability': 'reliable', 'durability': 'volatile'}
    assert entry['deadline'] == {'sec': 1, 'nsec': 500_000_000}


def test_a_type_that_is_not_installed_is_named():
    for name in ('nowhere_msgs/msg/Thing', 'std_msgs/msg/Nothing'):
        with pytest.raises(LookupError, match=f'{name} is not installed'):
            message_class(name)


def test_a_type_of_the_users_own_is_read_from_its_package(tmp_path, monkeypatch):
    (tmp_path / 'share/ament_index/resource_index/packages').mkdir(parents=True)
    (tmp_path / 'share/ament_index/resource_index/packages/own_msgs').touch()
    (tmp_path / 'share/own_msgs/msg').mkdir(parents=True)
    (tmp_path / 'share/own_msgs/msg/Touch.msg').write_text('std_msgs/Header header\nPad[2] pads\n')
    (tmp_path / 'share/own_msgs/msg/Pad.msg').write_text('float32[] force\n')
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path), prepend=':')
    topic = bag_topic('/touch', 'own_msgs/msg/Touch', [])
    assert set(get_types_from_msg(topic.definition, 'own_msgs/msg/Touch')) == {
        'own_msgs/msg/Touch', 'own_msgs/msg/Pad', 'std_msgs/msg/Header',
        'builtin_interfaces/msg/Time'}
    assert topic.type_hash.startswith('RIHS01_')

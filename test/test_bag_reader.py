"""What is read of a bag, and every bag that can't be used."""

from __future__ import annotations

import sqlite3

from bags import cdr, header, image, joint, pose, QOS, STORE, topic, write_bag
import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
import yaml

from diffusion_policy_ros.control.arm import ArmConfig, GripperConfig
from diffusion_policy_ros.data.bag_reader import bag_identity, read_bag
from diffusion_policy_ros.data.bag_writer import BagTopic
from diffusion_policy_ros.datatypes import EE_POSE, GRIPPER
from diffusion_policy_ros.policy.config import (
    CameraSpec, ObservationSpec, PolicyConfig, VisionConfig,
)

CONFIG = PolicyConfig(ObservationSpec((CameraSpec('wrist', 48, 64, 24, 32),)),
                      vision=VisionConfig(crop_height=24, crop_width=24, pooling='average'),
                      dt_s=0.05)
ARM = ArmConfig('base', 'hand', gripper=GripperConfig(state_open=0.08, state_closed=0.0))
MS = 1_000_000
SECOND = 1_000 * MS
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), np.uint8)


def jpeg(stamp_ns, pixels):
    data = cv2.imencode('.jpg', pixels[..., ::-1])[1]
    return cdr('sensor_msgs/msg/CompressedImage', header=header(stamp_ns), format='rgb8; jpeg',
               data=data.reshape(-1))


def streams(**changes):
    """Return the messages of a whole episode by topic, with some of them changed."""
    stamps = [SECOND + 40 * MS * i for i in range(3)]
    found = {
        '/wrist/image_raw': ('sensor_msgs/msg/Image',
                             [image(*pair) for pair in zip(stamps, PICTURES)]),
        '/ee_pose': ('geometry_msgs/msg/PoseStamped',
                     [pose(stamp, (i, 0.0, 0.0)) for i, stamp in enumerate(stamps)]),
        '/gripper_state': ('sensor_msgs/msg/JointState', [joint(stamp, 0.02) for stamp in stamps]),
        '/target_pose': ('geometry_msgs/msg/PoseStamped', [pose(stamp) for stamp in stamps]),
        '/target_gripper': ('sensor_msgs/msg/JointState',
                            [joint(stamp, effort=0.5) for stamp in stamps])}
    found |= {f'/{name}': value for name, value in changes.items()}
    return {name: value for name, value in found.items() if value is not None}


def read(path, found, custom=None, **settings):
    return read_bag(write_bag(path, found, custom), CONFIG, ARM, image_format='png', **settings)


def decoded(blob):
    return cv2.imdecode(blob, cv2.IMREAD_COLOR)[..., ::-1]


def test_every_stream_is_read_as_it_is_live(tmp_path):
    bag = read(tmp_path / 'bag', streams(), {'task': 'x'})
    assert bag.custom['task'] == 'x'
    stamps = [SECOND + 40 * MS * i for i in range(3)]
    assert {name: stream.stamps_ns for name, stream in bag.streams.items()} == dict.fromkeys(
        ('wrist', EE_POSE, GRIPPER, 'target_pose', 'target_gripper'), stamps)
    wrist = bag.streams['wrist']
    assert wrist.size == (48, 64)
    assert decoded(wrist.values[2]).shape == (24, 32, 3)
    np.testing.assert_array_equal(
        decoded(wrist.values[2]), cv2.resize(PICTURES[2], (32, 24), interpolation=cv2.INTER_AREA))
    assert bag.streams[EE_POSE].values[2].tolist() == [2, 0, 0, 1, 0, 0, 0]
    assert bag.streams[EE_POSE].frames == {'base'}
    assert bag.streams[GRIPPER].values[0].tolist() == [0.75]  # of 0.08 m open
    assert bag.streams['target_gripper'].values[0].tolist() == [0.5]
    assert wrist.stats.rate_hz == pytest.approx(25.0)
    assert wrist.arrived_ns == stamps[-1]


@pytest.mark.parametrize('state', [0.097, -0.017, 80.0])
def test_a_hand_that_says_what_it_cannot_is_refused(tmp_path, state):
    found = streams(gripper_state=('sensor_msgs/msg/JointState', [
        joint(SECOND, 0.095), joint(SECOND + 40 * MS, state)]))
    with pytest.raises(ValueError, match=f'^/gripper_state: message 2: position: {state:g}, '
                       r'expected 0.08 \(open\) to 0 \(closed\)'):
        read(tmp_path / 'bag', found)


def test_a_pose_in_another_frame_than_the_arms_is_refused(tmp_path):
    def framed(frame):
        return streams(ee_pose=('geometry_msgs/msg/PoseStamped',
                                [pose(SECOND, frame_id=frame), pose(SECOND + MS, frame_id=frame)]))

    assert read(tmp_path / 'second', framed('left/base')).streams[EE_POSE].frames == {'left/base'}
    with pytest.raises(ValueError, match="^/ee_pose is in 'world', expected 'base'"):
        read(tmp_path / 'other', framed('world'))


def test_what_the_executor_said_before_its_clock_was_set_back_is_dropped(tmp_path):
    said = [(SECOND * 500, 'HELD'), (SECOND, 'STARTING'), (SECOND + MS, 'TELEOP')]
    found = streams(**{'chunk_executor/status': (
        STATUS, [status(*one) for one in said])})
    stream = read(tmp_path / 'bag', found).streams['chunk_executor/status']
    assert stream.values == ['STARTING', 'TELEOP']
    assert stream.stamps_ns == [SECOND, SECOND + MS]


def test_a_bag_is_told_from_another_by_its_begin_and_its_messages(tmp_path):
    found = read(tmp_path / 'one', streams())
    assert found.identity == bag_identity(tmp_path / 'one') == (SECOND, 15)
    longer = streams(ee_pose=('geometry_msgs/msg/PoseStamped', [
        pose(SECOND + i * MS) for i in range(4)]))
    write_bag(tmp_path / 'two', longer)
    assert bag_identity(tmp_path / 'two') == (SECOND, 16)


@pytest.mark.parametrize('plugin', StoragePlugin)
@pytest.mark.parametrize('version', [8, 9])
def test_bags_of_others_are_read(tmp_path, plugin, version):
    with Writer(tmp_path / 'bag', version=version, storage_plugin=plugin) as writer:
        for name, (kind, messages) in streams().items():
            connection = writer.add_connection(name, kind, typestore=STORE)
            for i, data in enumerate(messages):
                writer.write(connection, SECOND + i, data)
    bag = read_bag(tmp_path / 'bag', CONFIG, ARM)
    assert {len(stream.values) for stream in bag.streams.values()} == {3}


def test_compressed_images_and_namespaces_are_found(tmp_path):
    plain = streams()
    found = {f'/left{name}': value for name, value in plain.items() if 'image' not in name}
    found['/left/wrist/image_raw/compressed'] = (
        'sensor_msgs/msg/CompressedImage',
        [jpeg(SECOND + 40 * MS * i, PICTURES[i]) for i in range(3)])
    bag = read(tmp_path / 'bag', found)
    assert bag.streams['wrist'].topic == '/left/wrist/image_raw/compressed'
    assert bag.streams['wrist'].size == (48, 64)


def test_other_names_come_from_a_map(tmp_path):
    found = streams(ee_pose=None, tcp=streams()['/ee_pose'])
    bag = read(tmp_path / 'bag', found, names={EE_POSE: 'tcp'})
    assert bag.streams[EE_POSE].topic == '/tcp'


def test_a_late_sample_is_left_out_as_it_is_live(tmp_path):
    stamps = [SECOND, SECOND + 30 * MS, SECOND + 20 * MS, SECOND + 30 * MS, SECOND + 60 * MS]
    found = streams(ee_pose=('geometry_msgs/msg/PoseStamped', [pose(stamp) for stamp in stamps]))
    bag = read(tmp_path / 'bag', found, tolerance_ns=20 * MS)
    assert bag.streams[EE_POSE].stamps_ns == [SECOND, SECOND + 30 * MS, SECOND + 60 * MS]
    assert bag.streams[EE_POSE].stats.backward == 1


def images(*pictures, encoding='rgb8'):
    return ('sensor_msgs/msg/Image',
            [image(SECOND + 40 * MS * i, pixels, encoding) for i, pixels in enumerate(pictures)])


STATUS = 'diagnostic_msgs/msg/DiagnosticArray'


def status(stamp_ns, word):
    key_value, one = (STORE.types[f'diagnostic_msgs/msg/{name}'] for name in (
        'KeyValue', 'DiagnosticStatus'))
    return cdr(STATUS, header=header(stamp_ns, ''), status=[one(
        level=0, name='', message='', hardware_id='', values=[key_value('status', word)])])


def poses(*stamps, **settings):
    return 'geometry_msgs/msg/PoseStamped', [pose(stamp, **settings) for stamp in stamps]


@pytest.mark.parametrize('changes, expected', [
    ({'ee_pose': None}, 'ee_pose is missing, found /gripper_state, '),
    ({'wrist/image_raw': None}, 'wrist/image_raw or wrist/image_raw/compressed is missing'),
    ({'ee_pose': streams()['/gripper_state']},
     '/ee_pose is sensor_msgs/msg/JointState, expected geometry_msgs/msg/PoseStamped'),
    ({'left/ee_pose': poses(SECOND)},
     'ee_pose: found /ee_pose and /left/ee_pose, expected one; name it in --topics'),
    ({'ee_pose': poses(SECOND, 0)}, '/ee_pose: message 2: header.stamp: 0 ns, expected the time'),
    ({'ee_pose': poses(3 * SECOND, SECOND)},
     '/ee_pose: message 2: header.stamp: 2.000 s before the last, expected stamps that increase'),
    ({'ee_pose': poses(SECOND, position=(float('nan'), 0.0, 0.0))},
     '/ee_pose: message 1: position: [nan, 0.0, 0.0] has NaN'),
    ({'ee_pose': poses(SECOND, frame_id='')}, '/ee_pose: message 1: header.frame_id: it is empty'),
    ({'wrist/image_raw': images(PICTURES[0], PICTURES[1][:20])},
     '/wrist/image_raw: message 2: size: 20x64 pixels, expected 48x64 as before'),
    ({'wrist/image_raw': images(PICTURES[0], encoding='16UC1')},
     "/wrist/image_raw: message 1: encoding: '16UC1', expected one of rgb8"),
    ({'gripper_state': ('sensor_msgs/msg/JointState', [joint(SECOND)])},
     '/gripper_state: message 1: position: it is empty'),
    ({'wrist/image_raw': ('sensor_msgs/msg/Image', [images(PICTURES[0])[1][0][:200]])},
     'cannot be read: '),
    ({'ee_pose': poses()}, '/ee_pose has no messages'),
    ({'chunk_executor/status': (STATUS, [cdr(STATUS, header=header(SECOND), status=[])])},
     "/chunk_executor/status: message 1: status: it is empty, expected the executor's"),
])
def test_what_is_wrong_is_one_line(tmp_path, changes, expected):
    with pytest.raises(ValueError) as error:
        read(tmp_path / 'bag', streams(**changes))
    assert str(error.value).startswith(expected), str(error.value)
    assert '\n' not in str(error.value)


def test_two_publishers_are_not_mixed(tmp_path):
    kind, _ = streams()['/ee_pose']
    usual = topic('/ee_pose', kind)
    two = BagTopic('/ee_pose', kind, usual.definition, usual.type_hash, (QOS, QOS))
    with pytest.raises(ValueError, match='/ee_pose: 2 publishers are mixed in it, expected one'):
        read_bag(write_bag(tmp_path / 'bag', streams(), topics={'/ee_pose': two}), CONFIG, ARM)


@pytest.mark.parametrize('topics, mixed', [
    ('{"/ee_pose": {"publishers": 2}}', True), ('{"/ee_pose": {"publishers": 1}}', False),
    ('{"/ee_pose": {"count": 3}}', False), ('arm', False), ('[2]', False),
    ('{"/ee_pose": 2}', False)])
def test_a_publisher_that_joined_later_is_mixed_in_it_too(tmp_path, topics, mixed):
    bag = write_bag(tmp_path / 'bag', streams(), {'topics': topics})
    if not mixed:
        assert read_bag(bag, CONFIG, ARM).streams[EE_POSE].stamps_ns
        return
    with pytest.raises(ValueError, match='/ee_pose: 2 publishers are mixed in it, expected one'):
        read_bag(bag, CONFIG, ARM)


def test_an_unknown_role_in_the_map_is_named(tmp_path):
    with pytest.raises(ValueError, match="topics: 'front' is no role, expected one of wrist, ee_"):
        read(tmp_path / 'bag', streams(), names={'front': '/x'})


def test_a_topic_of_the_map_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match='/x is missing, found /ee_pose, '):
        read(tmp_path / 'bag', streams(), names={'target_pose': '/x'})


def cut(path):
    file, = path.glob('*.mcap')
    file.write_bytes(file.read_bytes()[:-1000])


def future(path):
    text = (path / 'metadata.yaml').read_text()
    (path / 'metadata.yaml').write_text(text.replace('version: 9', 'version: 12'))


def spoil_metadata(path):
    (path / 'metadata.yaml').write_text(yaml.safe_dump({'rosbag2_bagfile_information': 3}))


@pytest.mark.parametrize('spoil, expected', [
    (cut, 'cannot be read: '),
    (future, 'cannot be read: Rosbag2 version 12 not supported'),
    (spoil_metadata, 'cannot be read: '),
    (lambda path: (path / 'metadata.yaml').unlink(), 'no metadata.yaml, expected a whole rosbag2'),
    (lambda path: next(path.glob('*.mcap')).unlink(), 'cannot be read: Some database files are'),
])
def test_a_broken_bag_is_one_line(tmp_path, spoil, expected):
    path = write_bag(tmp_path / 'bag', streams())
    spoil(path)
    with pytest.raises(ValueError) as error:
        read_bag(path, CONFIG, ARM)
    assert str(error.value).startswith(expected), str(error.value)
    assert '\n' not in str(error.value)


def test_a_broken_database_is_one_line(tmp_path):
    with Writer(tmp_path / 'bag', version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        writer.write(writer.add_connection('/ee_pose', streams()['/ee_pose'][0],
                                           typestore=STORE), 1, pose(SECOND))
    path, = (tmp_path / 'bag').glob('*.db3')
    with sqlite3.connect(path) as database:
        database.execute('drop table messages')
    with pytest.raises(ValueError) as error:
        read_bag(tmp_path / 'bag', CONFIG, ARM)
    assert '\n' not in str(error.value)


def write_sqlite3(folder, compressed=False):
    """Write a whole episode, its messages one by one through zstd if asked to; return the file."""
    writer = Writer(folder, version=9, storage_plugin=StoragePlugin.SQLITE3)
    if compressed:
        writer.set_compression(CompressionMode.MESSAGE, CompressionFormat.ZSTD)
    with writer:
        for name, (kind, messages) in streams().items():
            connection = writer.add_connection(name, kind, typestore=STORE)
            for i, data in enumerate(messages):
                writer.write(connection, SECOND + i, data)
    return folder / f'{folder.name}.db3'


def zero_pages(path):
    data, page = bytearray(path.read_bytes()), 4096
    first = len(data) // page // 2 * page
    data[first:first + page] = bytes(page)
    path.write_bytes(data)


def spoil_frames(path):
    with sqlite3.connect(path) as database:
        database.execute("update messages set data = substr(data, 1, 4) || x'ffffffffffff'")


@pytest.mark.parametrize('spoil, compressed', [(zero_pages, False), (spoil_frames, True)])
def test_what_is_spoiled_in_the_middle_is_one_line(tmp_path, spoil, compressed):
    path = write_sqlite3(tmp_path / 'bag', compressed)
    read_bag(tmp_path / 'bag', CONFIG, ARM)
    spoil(path)
    with pytest.raises(ValueError, match=r'^cannot be read: [^\n]+$'):
        read_bag(tmp_path / 'bag', CONFIG, ARM)


def test_a_mistake_of_the_conversion_is_no_broken_bag(tmp_path, monkeypatch):
    path = write_bag(tmp_path / 'bag', streams())
    monkeypatch.setattr('diffusion_policy_ros.control.readings.pose_observation', lambda _: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        read_bag(path, CONFIG, ARM)

"""The recorder as a process: what is published between ~/start and ~/save is in the bag."""

from __future__ import annotations

import json
from pathlib import Path
import resource
import shutil
import signal

import benchmark_recording
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
import numpy as np
import pytest
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import Reader
from rosbags.typesys import get_typestore, Stores
from sensor_msgs.msg import Image, JointState
from std_srvs.srv import SetBool, Trigger

from diffusion_policy_ros.control.readings import executor_status, image_pixels
from diffusion_policy_ros.data.bag_recovery import recover_bag
from diffusion_policy_ros.datatypes import NS_PER_S
from diffusion_policy_ros.nodes import messages
from diffusion_policy_ros.nodes.qos import LATCHED, RELIABLE

BEST_EFFORT = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
STEP_NS = 20_000_000
PICTURE = np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)
STORE = get_typestore(Stores.ROS2_JAZZY)


class Arm:
    """Publishes a camera, best effort, and the arm's state, and keeps what it has sent."""

    others = 0  # recorders of other tests that listen, too

    def __init__(self, probe, start, folder, name='demo_recorder', **parameters):
        self.probe, self.folder, self.name = probe, folder / 'bags', name
        self.process = start('demo_recorder_node', name, {
            'folder': str(self.folder), 'task': 'open the drawer', 'cameras': ['arm'],
            **parameters})
        self.sent = {}
        self.tick = 0
        readers = 1 if name == 'shared_recorder' else 1 + self.others
        self.publishers = {
            topic: probe.publisher(kind, topic, qos, readers) for topic, kind, qos in (
                ('arm/image_raw', Image, BEST_EFFORT), ('ee_pose', PoseStamped, RELIABLE),
                ('gripper_state', JointState, RELIABLE))}

    def publish(self, ticks=1, skip=()):
        for _ in range(ticks):
            self.probe.spin()  # best effort gives no burst on
            self.tick += 1
            stamp_ns = NS_PER_S + self.tick * STEP_NS
            values = {
                'arm/image_raw': messages.image_message(PICTURE, stamp_ns, 'optical'),
                'ee_pose': messages.pose_message([self.tick, 0, 0], [0, 0, 0, 1], stamp_ns, 'b'),
                'gripper_state': messages.gripper_state_message(0.5, stamp_ns)}
            for name, message in values.items():
                if name not in skip:
                    # Bytes: the padding of a message differs from one serialisation to another.
                    data = serialize_message(message)
                    self.publishers[name].publish(data)
                    self.sent.setdefault(f'/{name}', []).append(data)

    def call(self, name, success=True):
        if name == 'save':
            return self.probe.call(SetBool, f'{self.name}/save', SetBool.Request(data=success))
        return self.probe.call(Trigger, f'{self.name}/{name}')

    def begin(self):
        self.sent.clear()
        self.probe.wait(lambda: self.call('start').success, 'all topics')

    def save(self, success=True):
        """Save the episode; return its folder and what the recorder says."""
        answer = self.call('save', success)
        assert answer.success, answer.message
        return Path(answer.message.partition(':')[0]), answer.message

    def wait_until_kept(self, count):
        """Wait until as many messages of each topic have come: a signal may overtake them."""
        names = {f'/{topic}' for topic in self.publishers}

        self.probe.report(f'/{self.name}', lambda values: names <= {
            name for name, said in values.items() if said.startswith(f'{count} ')})

    def names(self):
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture()
def arm(probe, start, tmp_path):
    """Return an arm with a recorder of its own."""
    return Arm(probe, start, tmp_path)


@pytest.fixture(scope='module')
def shared(start_once, tmp_path_factory):
    """Return what starts the one recorder that some tests share, and its folder."""
    processes = []

    def start(*arguments):
        processes[:] = processes or [start_once(*arguments)]
        Arm.others = 1
        return processes[0]

    yield start, tmp_path_factory.mktemp('shared')
    Arm.others = 0


@pytest.fixture()
def first_arm(probe, shared):
    """Return an arm with the recorder that is shared."""
    return Arm(probe, *shared, name='shared_recorder')


def read(folder):
    """Return the messages by topic, as bytes, and the metadata of the user."""
    found = {}
    with Reader(folder) as reader:
        for connection, _, data in reader.messages():
            found.setdefault(connection.topic, []).append(data)
        return found, reader.storage.metadata.custom


def test_what_was_sent_while_recording_is_in_the_bag(first_arm):
    arm = first_arm
    arm.publish(3)  # before ~/start
    arm.begin()
    arm.publish(20)
    folder, said = arm.save()
    assert '/ee_pose 20 at 50.0 Hz, largest gap 0.020 s, 0 lost' in said
    found, custom = read(folder)
    assert found == arm.sent
    assert {key: custom[key] for key in ('task', 'success', 'complete', 'cameras')} == {
        'task': 'open the drawer', 'success': 'true', 'complete': 'true', 'cameras': 'arm'}
    assert json.loads(custom['topics'])['/arm/image_raw'] == {
        'count': 20, 'rate_hz': 50.0, 'largest_gap_s': 0.02, 'lost': 0, 'dropped': 0,
        'backward_stamps': 0, 'publishers': 1}


def test_episodes_are_numbered_and_discarded_ones_are_gone(first_arm):
    arm = first_arm
    before = arm.names() if arm.folder.exists() else []
    for action, success in (('save', True), ('discard', None), ('save', False)):
        arm.begin()
        arm.publish(2)
        assert arm.call(action, success).success
    numbers = [len(before), len(before) + 1]
    assert arm.names() == before + [f'episode_{number:06d}' for number in numbers]
    assert read(arm.folder / arm.names()[-1])[1]['success'] == 'false'


def test_calls_out_of_order_are_refused_with_a_reason(first_arm):
    arm = first_arm
    assert arm.call('save').message == 'nothing is recorded, expected ~/start'
    assert arm.call('discard').message == 'nothing is recorded, expected ~/start'
    arm.begin()
    answer = arm.call('start')
    assert not answer.success and ' is being recorded, expected ~/save or ' in answer.message
    assert arm.call('discard').success


def test_a_camera_that_stops_is_named_while_it_does_and_when_the_episode_is_saved(first_arm):
    arm = first_arm
    arm.begin()

    def warned():
        arm.publish(skip=('arm/image_raw',))
        return '/arm/image_raw refused: silent: ' in arm.process.log

    arm.probe.wait(warned, 'a warning')
    assert '/ee_pose refused: silent' not in arm.process.log
    _, said = arm.save()
    assert '/arm/image_raw no message' in said


def test_a_publisher_that_comes_later_is_in_the_next_bag(first_arm):
    arm = first_arm
    second = arm.probe.publisher(PoseStamped, 'ee_pose', RELIABLE)

    def publishers():
        arm.begin()
        arm.publish()
        with Reader(arm.save()[0]) as reader:
            pose, = (one for one in reader.connections if one.topic == '/ee_pose')
            return len(pose.ext.offered_qos_profiles)

    arm.probe.wait(lambda: publishers() == 2, 'both publishers')
    arm.probe.node.destroy_publisher(second)
    arm.probe.wait(lambda: publishers() == 1, 'one publisher')


def test_a_publisher_that_joins_while_recording_is_said_and_in_the_bag(first_arm):
    arm = first_arm
    arm.begin()
    arm.publish()
    second = arm.probe.publisher(JointState, 'gripper_state', RELIABLE)

    def warned():
        arm.publish()
        return '/gripper_state refused: publishers: 2 are mixed in it' in arm.process.log

    arm.probe.wait(warned, 'a warning')
    arm.probe.node.destroy_publisher(second)
    folder, said = arm.save()
    assert ', 2 publishers; ' in said
    topics = json.loads(read(folder)[1]['topics'])
    assert {name: topics[f'/{name}']['publishers'] for name in arm.publishers} == {
        'arm/image_raw': 1, 'ee_pose': 1, 'gripper_state': 2}


def test_targets_that_nobody_sends_are_named_when_it_begins_and_when_it_is_saved(first_arm):
    arm = first_arm
    arm.begin()
    arm.call('discard')
    said = arm.call('start').message
    assert said.endswith(
        '; /target_pose: nobody publishes that; /target_gripper: nobody publishes that')
    target = arm.probe.publisher(PoseStamped, 'target_pose', RELIABLE)
    target.publish(messages.pose_message([0, 0, 0], [0, 0, 0, 1], NS_PER_S, 'b'))
    arm.publish()
    arm.wait_until_kept(1)
    _, said = arm.save()
    assert '/target_pose 1 at' in said
    assert said.endswith('; /target_gripper: nobody published that')
    assert '/target_pose: ' not in said


def test_a_folder_that_is_gone_is_one_line_and_the_recorder_goes_on(first_arm):
    arm = first_arm
    arm.begin()
    shutil.rmtree(arm.folder)
    answer = arm.call('discard')
    assert not answer.success and '.unfinished: ' in answer.message
    arm.begin()
    arm.publish(2)
    arm.save()


def test_what_finds_no_room_is_warned_of_and_counted(probe, start, tmp_path):
    arm = Arm(probe, start, tmp_path, buffer_mb=1)
    arm.begin()
    large = messages.image_message(np.zeros((640, 640, 3), np.uint8), NS_PER_S, 'optical')

    def warned():
        arm.publish(skip=('arm/image_raw',))
        arm.publishers['arm/image_raw'].publish(large)
        return '/arm/image_raw refused: dropped: 1 MB wait for the disk' in arm.process.log

    probe.wait(warned, 'the warning')
    folder, said = arm.save()
    assert '/arm/image_raw no message, ' in said and ' dropped by the recorder; ' in said
    assert json.loads(read(folder)[1]['topics'])['/arm/image_raw']['dropped'] >= 1


@pytest.mark.slow
def test_a_missing_camera_is_named_before_the_episode(probe, start, tmp_path):
    arm = Arm(probe, start, tmp_path, cameras=['arm', 'wrist'])
    answer = arm.call('start')
    assert not answer.success
    assert answer.message == '/wrist/image_raw: nobody publishes that'
    assert not arm.folder.exists()


@pytest.mark.slow
def test_jpeg_keeps_header_size_and_nearly_the_pixels(probe, start, tmp_path):
    arm = Arm(probe, start, tmp_path, image_storage='jpeg', jpeg_quality=100,
              note='a note', tags=['operator=ada'])
    arm.begin()
    arm.publish(3)
    assert arm.call('save').success
    found, custom = read(arm.folder / 'episode_000000')
    assert (custom['note'], custom['operator']) == ('a note', 'ada')
    assert '/arm/image_raw' not in found
    assert len(found['/arm/image_raw/compressed']) == 3
    message = STORE.deserialize_cdr(found['/arm/image_raw/compressed'][0],
                                    'sensor_msgs/msg/CompressedImage')
    # As image_transport's publisher says; without "bgr8" its subscriber swaps red and blue.
    assert message.format == 'rgb8; jpeg compressed bgr8'
    assert message.header.frame_id == 'optical'
    pixels, encoding = image_pixels(message)
    assert encoding == 'bgr8'
    assert np.abs(pixels[..., ::-1].astype(int) - PICTURE).mean() < 30


@pytest.mark.slow
def test_a_gap_is_warned_about_and_a_second_publisher_makes_the_loss_unknown(
        probe, start, tmp_path):
    arm = Arm(probe, start, tmp_path, step_s=0.03)
    arm.begin()
    arm.publish(2)
    arm.publish(1, skip=('ee_pose',))
    arm.publish(1)
    probe.wait(lambda: '/ee_pose refused: gap: 0.040 s without a message' in arm.process.log,
               'the warning')
    second = probe.publisher(PoseStamped, 'ee_pose', RELIABLE)
    second.publish(messages.pose_message([0, 0, 0], [0, 0, 0, 1], 2 * NS_PER_S, 'b'))
    answer = arm.call('save')
    assert '/ee_pose 4 at' in answer.message or '/ee_pose 3 at' in answer.message
    assert 'loss unknown' in answer.message


def test_what_was_latched_before_is_at_the_start_of_each_bag(first_arm):
    arm = first_arm
    status = arm.probe.publisher(DiagnosticArray, 'chunk_executor/status', LATCHED)
    for stamp_ns, word in ((9, 'HELD'), (7, 'TELEOP')):  # the newest counts
        values = {'status': word}
        status.publish(messages.diagnostics_message('x', b'\0', 'Fine.', values, stamp_ns))
    arm.publish(3)
    for _ in range(2):
        arm.begin()
        arm.publish(2)
        found, _ = read(arm.save()[0])
        said, = found['/chunk_executor/status']
        message = STORE.deserialize_cdr(said, 'diagnostic_msgs/msg/DiagnosticArray')
        assert executor_status(message) == 'TELEOP'


@pytest.mark.parametrize('number', [
    signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_closes_the_bag_but_makes_no_whole_episode_of_it(arm, number):
    arm.begin()
    arm.publish(5)
    arm.wait_until_kept(5)
    arm.process.signal(number)
    assert arm.process.wait() == 0
    assert arm.names() == ['episode_000000.unfinished']
    found, custom = read(arm.folder / 'episode_000000.unfinished')
    assert found == arm.sent
    assert custom['complete'] == 'false'


def test_after_a_kill_all_but_the_last_second_is_recovered(arm, start, tmp_path):
    arm.begin()
    arm.publish(5)
    path, = arm.folder.glob('*/*.mcap')
    arm.probe.wait(lambda: arm.publish() or path.stat().st_size > 10_000, 'a chunk on the disk')
    arm.process.signal(signal.SIGKILL)
    arm.process.wait()
    again = start('demo_recorder_node', 'demo_recorder', {'folder': str(arm.folder)})
    cut_off = arm.folder / 'episode_000000.unfinished'
    arm.probe.wait(lambda: f'{cut_off} was cut off: recover_bag {cut_off}' in again.log,
                   'the hint')
    target, count, _ = recover_bag(cut_off)
    found, _ = read(target)
    assert sum(map(len, found.values())) == count >= 15
    for name, sent in arm.sent.items():
        assert found[name] == sent[:len(found[name])]


@pytest.mark.slow
def test_a_full_disk_is_said_at_once_and_nothing_that_is_there_is_lost(probe, start, tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, limit[1]))  # of any file
    try:
        arm = Arm(probe, start, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    arm.begin()
    probe.wait(lambda: arm.publish() or 'bag refused: cut off: ' in arm.process.log, 'the warning')
    answer = arm.call('save')
    cut_off = arm.folder / 'episode_000000.unfinished'
    assert not answer.success
    assert f'{cut_off} is cut off: ' in answer.message and 'File too large' in answer.message
    all_sent = dict(arm.sent)
    arm.begin()  # the next one has room, here
    assert arm.call('discard').success
    target, count, _ = recover_bag(cut_off)
    found, _ = read(target)
    assert sum(map(len, found.values())) == count > 100
    for name, sent in all_sent.items():
        kept = set(found[name])
        assert found[name] == [data for data in sent if data in kept]


def test_a_load_is_recorded_without_a_loss(ros, tmp_path):
    _, facts = benchmark_recording.record(
        benchmark_recording.Load(seconds=3.0, height=240, width=320), tmp_path)
    assert (facts['missing'], facts['in_order']) == (0, True)
    assert facts['sent'] > 1000 and facts['sent'] + facts['left_out'] == 1380


@pytest.mark.slow
def test_two_raw_vga_cameras_are_recorded_for_a_minute_without_a_loss(ros, tmp_path):
    _, facts = benchmark_recording.record(benchmark_recording.Load(), tmp_path)
    assert (facts['missing'], facts['in_order']) == (0, True)
    assert facts['sent'] > 25000
    assert facts['peak_memory_mb'] < 400

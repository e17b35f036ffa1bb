"""An episode on its way to the disk."""

from __future__ import annotations

import resource
import threading

from bags import pose, topic
import pytest
from rosbags.rosbag2 import Reader

from diffusion_policy_ros.data.bag_recovery import recover_bag
from diffusion_policy_ros.data.bag_writer import BagWriter
from diffusion_policy_ros.data.recording import Arrival, Recording

POSE = topic('/ee_pose', 'geometry_msgs/msg/PoseStamped')
STEP_NS = 10_000_000
LIMIT = 1 << 20


def arrival(number, data=None):
    stamp_ns = number * STEP_NS
    return Arrival(pose(stamp_ns) if data is None else data, stamp_ns, stamp_ns, stamp_ns, number)


def messages(folder):
    with Reader(folder) as reader:
        return [data for _, _, data in reader.messages()], reader.storage.metadata.custom


def test_all_that_was_put_is_in_the_bag(tmp_path):
    recording = Recording(tmp_path / 'episode_000000', [], LIMIT)
    gaps = [recording.put(POSE, arrival(number)) for number in (1, 2, 4)]
    assert gaps == [0, STEP_NS, 2 * STEP_NS]
    assert [path.name for path in tmp_path.iterdir()] == ['episode_000000.unfinished']
    folder = recording.finish({'success': 'true'})
    assert [path.name for path in tmp_path.iterdir()] == ['episode_000000'] == [folder.name]
    found, custom = messages(folder)
    assert found == [arrival(number).data for number in (1, 2, 4)]
    assert custom['success'] == 'true' and '"lost": 1' in custom['topics']


def test_the_most_publishers_that_a_topic_had_are_kept(tmp_path):
    recording = Recording(tmp_path / 'episode', [POSE], LIMIT)
    for count in (1, 2, 1):
        recording.see_publishers('/ee_pose', count)
    recording.see_publishers('/tf', 3)
    assert '"/ee_pose": {' in (said := messages(recording.finish({}))[1]['topics'])
    assert '"publishers": 2' in said and '/tf' not in said


def test_an_episode_that_nobody_saved_keeps_the_name_that_says_so(tmp_path):
    recording = Recording(tmp_path / 'episode', [], LIMIT)
    recording.put(POSE, arrival(1))
    folder = recording.finish({'complete': 'false'}, keep_name=True)
    assert folder.name == 'episode.unfinished'
    assert len(messages(folder)[0]) == 1


def test_a_discarded_episode_leaves_nothing(tmp_path):
    recording = Recording(tmp_path / 'episode', [], LIMIT)
    recording.put(POSE, arrival(1))
    recording.discard()
    assert list(tmp_path.iterdir()) == []


def test_messages_are_converted_beside_the_callbacks(tmp_path):
    recording, threads = Recording(tmp_path / 'episode', [], LIMIT), []

    def double(data):
        threads.append(threading.current_thread())
        return data + data

    recording.put(POSE, arrival(1), double)
    assert messages(recording.finish({}))[0] == [2 * arrival(1).data]
    assert threads[0] is not threading.current_thread()


def test_what_does_not_fit_into_memory_is_counted(tmp_path, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    write = BagWriter.write

    def slow(self, *arguments):
        begun.set()
        go_on.wait(10)
        write(self, *arguments)

    monkeypatch.setattr(BagWriter, 'write', slow)
    recording = Recording(tmp_path / 'episode', [], 1000)
    recording.put(POSE, arrival(1, b'x' * 600))
    assert begun.wait(10)
    assert recording.put(POSE, arrival(2, b'x' * 600)) is None
    assert recording.stats['/ee_pose'].lost == recording.stats['/ee_pose'].dropped == 1
    recording.put(POSE, arrival(3, b'x' * 400))
    go_on.set()
    found, _ = messages(recording.finish({}))
    assert [len(data) for data in found] == [600, 400]


def test_a_full_disk_is_said_and_what_is_there_can_be_recovered(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, limit[1]))  # of any file
    try:
        recording = Recording(tmp_path / 'episode', [], 100 * LIMIT)
        for number in range(1, 101):
            recording.put(POSE, arrival(number, arrival(number).data + bytes(100_000)))
        with pytest.raises(OSError, match='/ee_pose: .*File too large'):
            recording.finish({})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [path.name for path in tmp_path.iterdir()] == ['episode.unfinished']
    target, count, _ = recover_bag(recording.unfinished)
    assert 30 <= count < 40
    assert [data[:100] for data in messages(target)[0]] == [
        (arrival(number).data + bytes(100))[:100] for number in range(1, count + 1)]

"""An episode on its way to the disk."""

from __future__ import annotations

import errno
import threading

from bags import pose, topic
import pytest
from rosbags.rosbag2 import Reader

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
    recording.put(POSE, arrival(2, b'x' * 600))
    assert recording.stats['/ee_pose'].lost == 1
    recording.put(POSE, arrival(3, b'x' * 400))
    go_on.set()
    found, _ = messages(recording.finish({}))
    assert [len(data) for data in found] == [600, 400]


def test_a_full_disk_is_said_and_leaves_what_is_there(tmp_path, monkeypatch):
    recording = Recording(tmp_path / 'episode', [], LIMIT)
    recording.put(POSE, arrival(1))

    def full(self, *arguments):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(BagWriter, 'write', full)
    for number in (2, 3):
        recording.put(POSE, arrival(number))
    with pytest.raises(OSError, match='/ee_pose: .*No space left'):
        recording.finish({})
    assert [path.name for path in tmp_path.iterdir()] == ['episode.unfinished']

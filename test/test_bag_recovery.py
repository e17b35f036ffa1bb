"""What is saved of a bag that was cut off."""

from __future__ import annotations

import os
from pathlib import Path
import signal
import subprocess
import sys

from bags import pose, topic
from mcap.records import Chunk, Header, MessageIndex
from mcap.stream_reader import StreamReader
import pytest
from rosbags.rosbag2 import Reader

from diffusion_policy_ros.data.bag_recovery import main, recover_bag
from diffusion_policy_ros.data.bag_writer import BagWriter

POSE = topic('/ee_pose', 'geometry_msgs/msg/PoseStamped')
WRITE_AND_DIE = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from bags import pose, topic
from diffusion_policy_ros.data import bag_writer
bag_writer.FLUSH_NS = 0
writer = bag_writer.BagWriter(__import__('pathlib').Path(sys.argv[1]), 'episode')
for i in range(50):
    writer.write(topic('/ee_pose', 'geometry_msgs/msg/PoseStamped'), pose(i + 1), i, i, i + 1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def cut_off(tmp_path, n_messages=300, size=8192):
    """Return an unfinished bag of several chunks that has no end."""
    folder = tmp_path / 'episode.unfinished'
    writer = BagWriter(folder, 'episode')
    for i in range(n_messages):
        writer.write(POSE, pose(i + 1) + bytes(size), i + 1, i + 1, i + 1)
    writer.abort()
    return folder


def stamps(folder):
    with Reader(folder) as reader:
        return [time for _, time, _ in reader.messages()]


def test_every_chunk_that_reached_the_disk_is_saved(tmp_path):
    folder = cut_off(tmp_path)
    target, count, _ = recover_bag(folder)
    assert target.name == 'episode.recovered' and not folder.exists()
    assert stamps(target) == list(range(1, count + 1))
    assert 200 < count < 300
    with Reader(target) as reader:
        assert reader.storage.metadata.custom == {'complete': 'false', 'recovered': 'true'}


@pytest.mark.parametrize('missing, chunks', [(0, 2), (10_000, 1), (1_000_000, 1)])
def test_a_chunk_that_is_cut_is_left_out(tmp_path, missing, chunks):
    folder = cut_off(tmp_path)
    path, = folder.glob('*.mcap')
    os.truncate(path, path.stat().st_size - missing)
    _, count, unread = recover_bag(folder)
    assert 126 * chunks <= count <= 128 * chunks  # of 8.3 kB, in a chunk of a megabyte
    assert folder.exists() == bool(unread) == bool(missing)


def test_whole_chunks_behind_a_broken_length_are_kept(tmp_path):
    folder = cut_off(tmp_path)
    path, = folder.glob('*.mcap')
    with path.open('rb') as stream:
        records = StreamReader(stream, emit_chunks=True).records
        kinds = [type(next(records)) for _ in range(3)]
        second = stream.tell()
    assert kinds == [Header, Chunk, MessageIndex]
    content = bytearray(path.read_bytes())
    content[second + 5] ^= 0x08  # of the eight bytes of length: a megabyte becomes 34 GB
    path.write_bytes(content)
    _, count, unread = recover_bag(folder)
    assert 126 <= count <= 128 and unread == len(content) - second
    assert path.exists()


def test_a_changed_byte_ends_what_is_believed_and_the_rest_is_kept(tmp_path, capsys):
    folder = cut_off(tmp_path)
    path, = folder.glob('*.mcap')
    with path.open('r+b') as stream:
        stream.seek(1_500_000)
        stream.write(b'\xff\xff\xff')
    assert main([str(folder)]) == 1
    said = capsys.readouterr()
    count = int(said.out.split()[-2])
    assert 0 < count < 200
    assert f'{folder}: it is kept, ' in said.err
    assert 'bytes follow its last whole chunk' in said.err
    assert path.exists() and len(stamps(folder.with_name('episode.recovered'))) == count


@pytest.mark.parametrize('changed', [False, True])
def test_a_bag_that_lacks_its_metadata_alone_is_recovered_whole(tmp_path, changed):
    folder = tmp_path / 'episode.unfinished'
    writer = BagWriter(folder, 'episode')
    for i in range(10):
        writer.write(POSE, pose(i + 1), i + 1, i + 1, i + 1)
    writer.close({})
    (folder / 'metadata.yaml').unlink()
    path, = folder.glob('*.mcap')
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b'x' if changed else content)
    target, count, unread = recover_bag(folder)
    assert (count, unread) == (10, 8 if changed else 0)
    assert stamps(target) == list(range(1, 11)) and folder.exists() == changed


def test_a_killed_writer_loses_no_chunk(tmp_path):
    folder = tmp_path / 'episode.unfinished'
    result = subprocess.run([sys.executable, '-c', WRITE_AND_DIE, folder,
                             Path(__file__).parent], cwd=Path(__file__).parents[1], timeout=60)
    assert result.returncode == -signal.SIGKILL
    assert recover_bag(folder)[1] == 50


def test_what_cannot_be_recovered_is_one_line_and_stays(tmp_path, capsys):
    (tmp_path / 'empty.unfinished').mkdir()
    nothing = cut_off(tmp_path, n_messages=1)
    whole = tmp_path / 'whole.unfinished'
    BagWriter(whole, 'whole').close({})
    assert main([str(tmp_path / 'empty.unfinished'), str(nothing), str(whole)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0].endswith('empty.unfinished: 0 MCAP files, expected one')
    assert lines[1].endswith('episode.unfinished: not one message can be read')
    assert lines[2].endswith('the bag is whole, it has its metadata.yaml')
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'empty.unfinished', 'episode.unfinished', 'whole.unfinished']


def test_what_is_being_recorded_is_left_alone(tmp_path, capsys):
    folder = tmp_path / 'episode.unfinished'
    writer = BagWriter(folder, 'episode')
    for i in range(10):
        writer.write(POSE, pose(i + 1), i + 1, i + 1, i + 1)
    assert main([str(folder)]) == 1
    assert capsys.readouterr().err == f'recover_bag: {folder}: it is being recorded\n'
    writer.close({})
    assert stamps(folder) == list(range(1, 11))
    assert [path.name for path in tmp_path.iterdir()] == ['episode.unfinished']


def test_the_others_go_on(tmp_path, capsys):
    good = cut_off(tmp_path)
    assert main([str(tmp_path / 'missing'), str(good)]) == 1
    assert 'episode.recovered: ' in capsys.readouterr().out

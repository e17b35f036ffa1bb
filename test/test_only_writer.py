"""One process at a time writes an output, and a kill frees it."""

import subprocess
import sys

import pytest

from diffusion_policy_ros.data.only_writer import only_writer

HOLD = """
import sys, time
from pathlib import Path
from diffusion_policy_ros.data.only_writer import only_writer
with only_writer(Path(sys.argv[1])):
    print('held', flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    path = tmp_path / 'new' / 'demos.zarr'
    other = subprocess.Popen([sys.executable, '-c', HOLD, str(path)], stdout=subprocess.PIPE)
    assert other.stdout.readline() == b'held\n'
    link = tmp_path / 'link.zarr'
    link.symlink_to(path)
    for name in (path, link):
        with pytest.raises(ValueError, match=f'^{name}: is being written by another process$'):
            with only_writer(name):
                pass
    other.kill()
    other.wait()
    with only_writer(path):
        pass
    assert not list(path.parent.iterdir())


def test_a_lock_that_is_removed_while_it_is_taken_keeps_nobody_out(tmp_path, monkeypatch):
    path, lock = tmp_path / 'demos.zarr', tmp_path / '.demos.zarr.lock'
    flock, removed = sys.modules['fcntl'].flock, []

    def after_its_owner_has_left(file, operation):
        if not removed:
            removed.append(lock.unlink())
        flock(file, operation)

    monkeypatch.setattr('fcntl.flock', after_its_owner_has_left)
    with only_writer(path):
        assert removed
        with pytest.raises(ValueError, match='by another process'), only_writer(path):
            pass


def test_a_place_where_nothing_can_be_written_is_one_line(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(ValueError, match=r'file/demos.zarr: cannot be written \(') as error:
        with only_writer(tmp_path / 'file' / 'demos.zarr'):
            pass
    assert '\n' not in str(error.value)

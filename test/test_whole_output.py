"""A result is written as a whole or not at all, and what can't be written is refused early."""

import argparse
import json
from pathlib import Path

import benchmark_nodes
import benchmark_recording
import pytest
from whole_output import check_writable, write_json, write_whole

from diffusion_policy_ros.data.only_writer import only_writer

PARSER = argparse.ArgumentParser(prog='make')


def test_a_failed_write_leaves_the_older_result(tmp_path, monkeypatch):
    path = tmp_path / 'results' / 'a.json'
    write_json(path, {'success': 1})

    def full(self, text, **_):
        with self.open('w') as file:
            file.write(text[:3])
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Path, 'write_text', full)
    with pytest.raises(OSError):
        write_json(path, {'success': 2})
    assert json.loads(path.read_text()) == {'success': 1}


def test_a_place_that_can_be_written_to_is_made_and_left_empty(tmp_path):
    path = tmp_path / 'new/folder/a.json'
    check_writable(path)
    assert [*path.parent.iterdir()] == []
    path.write_text('{}')
    check_writable(path)
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize('name, found', [
    ('/proc/x.json', 'No such file'), ('file/x.json', 'File exists'), ('folder', 'a folder'),
])
def test_a_place_that_cannot_be_written_to_is_refused_by_its_name(tmp_path, name, found):
    (tmp_path / 'file').touch()
    (tmp_path / 'folder').mkdir()
    with pytest.raises(ValueError, match=f'^{tmp_path / name}: .*{found}.*, expected a ') as error:
        check_writable(tmp_path / name)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('script', [benchmark_nodes, benchmark_recording])
def test_a_benchmark_refuses_such_a_place_before_it_measures(script, monkeypatch):
    for name in ('record', 'own_domain', 'compare', 'watch_memory', 'time_start_up'):
        monkeypatch.delattr(script, name, raising=False)
    with pytest.raises(SystemExit, match=f'^{script.__name__}: /proc/x.json: '):
        script.main(['-o', '/proc/x.json'])


@pytest.mark.parametrize('content', ['', '[]', '{'])
def test_the_nodes_benchmark_refuses_a_damaged_file_before_it_measures(tmp_path, monkeypatch,
                                                                       content):
    monkeypatch.delattr(benchmark_nodes, 'compare')
    path = tmp_path / 'benchmark.json'
    path.write_text(content)
    with pytest.raises(SystemExit, match=f'^benchmark_nodes: {path}: .*expected a JSON object$'):
        benchmark_nodes.main(['-o', str(path)])


def make(folder):
    """Write what write_whole is asked for."""
    folder.mkdir()
    (folder / 'file').write_text('x')
    return 'a file'


def test_a_folder_is_there_as_a_whole_and_its_neighbours_stay(tmp_path, capsys):
    output = tmp_path / 'demos'
    (tmp_path / 'demos.new').mkdir()  # the user's own
    (tmp_path / '.demos.new/left').mkdir(parents=True)  # by a kill
    write_whole(PARSER, output, make)
    assert capsys.readouterr().out == f'{output}: a file\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['demos', 'demos.new']
    assert [path.name for path in output.iterdir()] == ['file']


def refused(output, write, capsys):
    with pytest.raises(SystemExit) as end:
        write_whole(PARSER, output, write)
    assert end.value.code == 2
    line, = capsys.readouterr().err.splitlines()
    return line


def test_a_folder_that_fails_leaves_nothing(tmp_path, capsys):
    def fail(folder):
        make(folder)
        raise OSError(28, 'No space left on device')

    assert refused(tmp_path / 'demos', fail, capsys) == (
        'make: [Errno 28] No space left on device')
    assert not list(tmp_path.iterdir())


def test_a_second_process_leaves_what_the_first_is_writing(tmp_path, capsys):
    output = tmp_path / 'demos'
    with only_writer(output):
        (tmp_path / '.demos.new').mkdir()
        assert refused(output, make, capsys) == (
            f'make: {output}: is being written by another process')
        assert (tmp_path / '.demos.new').is_dir()

"""Which code made a result."""

from importlib.metadata import version
import subprocess

from code_version import code_version, PACKAGE


def test_a_clone_says_its_commit_and_whether_files_are_changed(tmp_path):
    def git(*words):
        return subprocess.run(
            ['git', '-C', tmp_path, '-c', 'user.name=a', '-c', 'user.email=a@b', *words],
            check=True, capture_output=True, text=True).stdout.strip()

    assert code_version(tmp_path) == version(PACKAGE)
    git('init')
    (tmp_path / 'file').write_text('one')
    git('add', 'file')
    git('commit', '-m', 'one')
    git('tag', '-a', '1.0.0', '-m', 'one')
    commit = git('rev-parse', '--short=12', 'HEAD')
    assert code_version(tmp_path) == f'{version(PACKAGE)} {commit}'
    (tmp_path / 'file').write_text('two')
    assert code_version(tmp_path) == f'{version(PACKAGE)} {commit}-dirty'

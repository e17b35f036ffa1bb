"""A result is written as a whole or not at all."""

import json
from pathlib import Path

import pytest
from whole_output import write_json


def test_a_failed_write_leaves_the_older_result(tmp_path, monkeypatch):
    path = tmp_path / 'results' / 'a.json'
    write_json(path, {'success': 1})

    def full(self, text):
        with self.open('w') as file:
            file.write(text[:3])
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Path, 'write_text', full)
    with pytest.raises(OSError):
        write_json(path, {'success': 2})
    assert json.loads(path.read_text()) == {'success': 1}

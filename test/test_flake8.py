from pathlib import Path

import pytest

ament_flake8 = pytest.importorskip('ament_flake8.main', reason='ament_flake8 is missing')
REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = ('diffusion_policy_ros', 'launch', 'lock', 'setup.py', 'test', 'training')


@pytest.mark.flake8
@pytest.mark.linter
def test_flake8(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    # setup.cfg holds ament's own settings less the docstring rules that Google style cannot meet.
    code, errors = ament_flake8.main_with_errors(argv=['--config', 'setup.cfg', *FOLDERS])
    assert code == 0, '\n'.join(errors)

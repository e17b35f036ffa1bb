from pathlib import Path

import pytest

parser = pytest.importorskip('ament_copyright.parser', reason='ament_copyright is missing')
REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.copyright
@pytest.mark.linter
def test_licence_is_recognised():
    assert parser.parse_file(str(REPOSITORY / 'LICENSE')).license_identifier == 'apache2'

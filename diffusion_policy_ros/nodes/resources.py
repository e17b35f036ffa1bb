"""Where the files lie that come with the package."""

from __future__ import annotations

from pathlib import Path
import sys

from ament_index_python.packages import get_package_share_directory, PackageNotFoundError

PACKAGE = 'diffusion_policy_ros'


def config_folder() -> Path:
    """Return the folder of YAML files and checkpoints: of the source tree, else as installed."""
    source = Path(__file__).resolve().parents[2] / 'config'
    if (source.parent / 'setup.py').is_file():
        return source
    try:
        return Path(get_package_share_directory(PACKAGE), 'config')
    except (PackageNotFoundError, LookupError):
        return Path(sys.prefix, 'share', PACKAGE, 'config')


def find(path: str) -> Path:
    """
    Return a path that a parameter names: as it stands, else inside the package's config folder.

    Raises:
        ValueError: it is in neither place.
    """
    for candidate in (Path(path).expanduser(), config_folder() / path):
        if path and candidate.exists():
            return candidate
    raise ValueError(f'{path!r}: no such file or folder, nor in {config_folder()}')

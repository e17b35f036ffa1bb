"""Which code made a result."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
import subprocess

PACKAGE = 'diffusion_policy_ros'


def code_version(folder: Path = Path(__file__).parent) -> str:
    """
    Return this package's version and, in a clone, the commit: `0.1.0 1a2b3c4-dirty`.

    Args:
        folder: where the code lies; `-dirty` says that tracked files of it are changed.
    """
    command = ['git', '-C', str(folder), 'describe', '--always', '--dirty', '--abbrev=12',
               '--exclude=*']
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # installed, or a machine without git
        return version(PACKAGE)
    return f'{version(PACKAGE)} {commit}'

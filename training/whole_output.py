"""Outputs that are there as a whole or not at all."""

from __future__ import annotations

import argparse
from collections.abc import Callable
import json
from pathlib import Path
import shutil
from tempfile import NamedTemporaryFile
from typing import Any

from diffusion_policy_ros.data.only_writer import only_writer


def check_writable(output: Path) -> None:
    """
    Make a file's folder and try to write there: what is measured for hours has a place to go.

    Raises:
        ValueError: in one line that names the file, when it could not be written.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=output.parent, prefix='.writable'):
            pass
    except OSError as error:
        raise ValueError(f'{output}: {error.strerror}, expected a place that can be written '
                         'to') from None
    if output.is_dir():
        raise ValueError(f'{output}: found a folder, expected a file')


def write_text(output: Path, text: str) -> None:
    """Write a file, in folders made where they lack; a kill leaves an older one as it was."""
    new = output.with_name(f'{output.name}.new')
    output.parent.mkdir(parents=True, exist_ok=True)
    new.write_text(text, newline='')
    new.replace(output)


def write_json(output: Path, value: Any) -> None:
    """Write a JSON file as `write_text` does."""
    write_text(output, json.dumps(value, indent=1) + '\n')


def write_whole(parser: argparse.ArgumentParser, output: Path,
                write: Callable[[Path], str]) -> None:
    """
    Have a hidden folder written beside `output`, name it so at the end, and say what is in it.

    What `write` refuses is one line, and the program ends with exit code 2.

    Args:
        parser: that ends the program.
        output: folder to make; refused where it exists.
        write: is given the folder to make instead; returns what is in it, in words.
    """
    try:
        with only_writer(output):
            said = _write(output, write)
    except (ValueError, OSError) as error:
        parser.exit(2, f'{parser.prog}: {error}\n')
    except KeyboardInterrupt:
        parser.exit(130, f'{parser.prog}: interrupted; nothing was written\n')
    print(f'{output}: {said}')


def _write(output: Path, write: Callable[[Path], str]) -> str:
    if output.exists():
        raise ValueError(f'{output}: exists, expected no such folder')
    new = output.with_name(f'.{output.name}.new')
    shutil.rmtree(new, ignore_errors=True)  # what a kill has left
    try:
        said = write(new)
        new.rename(output)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return said

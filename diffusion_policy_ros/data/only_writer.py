"""One process at a time writes an output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, ExitStack, suppress
import fcntl
import os
from pathlib import Path
from typing import IO


@contextmanager
def only_writer(path: Path, lock: Path | None = None) -> Iterator[None]:
    """
    Keep other processes from writing a file or folder, made or not; a kill frees it.

    Args:
        path: of the output.
        lock: file to lock, removed at the end; None for `.<name>.lock` beside the output.

    Raises:
        ValueError: another process is writing it, or nothing can be written there.
    """
    place = path.resolve()
    lock = lock or place.with_name(f'.{place.name}.lock')
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(lock)
    except BlockingIOError:
        raise ValueError(f'{path}: is being written by another process') from None
    except OSError as error:
        raise ValueError(f'{path}: cannot be written ({error.strerror}: {lock}), expected a '
                         'folder that can') from None
    with file:
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _locked(lock: Path) -> IO[str]:
    while True:
        with ExitStack() as closing:
            file = closing.enter_context(lock.open('w'))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):  # its owner has removed it since it was opened
                if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                    closing.pop_all()
                    return file

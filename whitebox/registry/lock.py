"""The lock of a home, between processes.

Writers hold it shared from the first byte of a pack until the index knows the pack; who deletes
files, or lays out a new database, holds it alone. So a sweep never takes the files of a
registration that is not finished. The system releases the lock when a process dies.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from whitebox.errors import StorageError


class HomeLock:
    """The lock file of a home, held by many together or by one alone."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the lock together with other writers."""
        with self._open() as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield

    @contextmanager
    def exclusive(self, *, wait: bool = False) -> Iterator[bool]:
        """Hold the lock alone; gives False at once when others hold it and `wait` is not set."""
        with self._open() as descriptor:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True

    @contextmanager
    def _open(self) -> Iterator[int]:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(
                f"{self._path} cannot be opened: {error.strerror}: make it writable, or set "
                "WHITEBOX_HOME to another folder"
            ) from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)

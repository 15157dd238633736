"""Result files: each is written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from whitebox.errors import StorageError


def write_whole(file: Path, data: bytes) -> None:
    """Write a file that no reader ever sees half of. Raises StorageError naming it."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        part.write_bytes(data)
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StorageError(f"cannot write {file}: {error.strerror or error}") from error

"""Pack files: many arrays in one file, written whole, mapped read-only.

Buffers go in, a file name and offsets come out; a file's pages come back as one uint8 array,
shared by every process. A pack never changes once it has its name. This module knows no SQL, so
it never decides whether a pack is still wanted.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import secrets
import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from whitebox.errors import StorageError

ALIGNMENT = 64  # kernels use vector loads on the mapped pages
_HEADER = b"whitebox pack 1\n".ljust(ALIGNMENT, b"\0")
_SUFFIX = ".pack"
_UNFINISHED = ".tmp"
_BLOCK_BYTES = 4 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_MAP_FAILED = ctypes.c_void_p(-1).value


@dataclass(frozen=True)
class Pack:
    """A pack file: its name in the folder and its exact size."""

    file: str
    nbytes: int


class Place(NamedTuple):
    """Where in a pack an array lies."""

    offset: int
    nbytes: int


class PackFolder:
    """The packs in one folder, and this process's mappings of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Weak: pages are unmapped when the last array over them goes, deleted file or not.
        self._mapped: weakref.WeakValueDictionary[str, np.ndarray] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def write(
        self, buffers: Iterable[Callable[[], np.ndarray]], *, durable: bool
    ) -> tuple[Pack, list[Place]]:
        """Write byte arrays, made one at a time, into a new pack; gives where each lies.

        With `durable` the pack survives a power failure once this returns. The caller holds the
        lock, shared, until the index knows the pack.
        """
        stem = secrets.token_hex(12)
        unfinished, finished = self.folder / (stem + _UNFINISHED), self.folder / (stem + _SUFFIX)
        try:
            with closing(_PackWriter(unfinished, durable)) as writer:
                places = [writer.append(buffer()) for buffer in buffers]
                nbytes = writer.finish()
            os.rename(unfinished, finished)
            if durable:
                _sync_folder(self.folder)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise StorageError(
                f"cannot write weights to {self.folder}: {error.strerror}: free space or make it "
                "writable, then try again"
            ) from error
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        return Pack(finished.name, nbytes), places

    def map(self, pack: Pack) -> np.ndarray:
        """The pages of a pack, read-only. Raises OSError when it is missing or has another size."""
        with self._lock:
            pages = self._mapped.get(pack.file)
            if pages is None:
                pages = self._mapped[pack.file] = _map_file(self.folder / pack.file, pack.nbytes)
            return pages

    def is_intact(self, pack: Pack) -> bool:
        """Whether the file is there and has its size; reads no content."""
        try:
            return (self.folder / pack.file).stat().st_size == pack.nbytes
        except OSError:
            return False

    def used_at(self, file: str) -> float:
        """When `mark_used` was last called for a pack, or when it was written."""
        try:
            return (self.folder / file).stat().st_mtime
        except OSError:
            return 0.0

    def mark_used(self, file: str) -> None:
        """Remember in the file's time that the pack was of use now."""
        try:
            os.utime(self.folder / file)
        except OSError:
            return  # the time only guides which cache entries go first

    def remove(self, file: str) -> int:
        """Delete a pack file; gives the bytes freed. Mappings of it stay valid."""
        path = self.folder / file
        try:
            nbytes = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        return nbytes

    def files(self) -> list[str]:
        """The names of all pack files, unfinished ones too."""
        return [name for name in os.listdir(self.folder) if name.endswith((_SUFFIX, _UNFINISHED))]


def bytes_of(array: np.ndarray) -> np.ndarray:
    """An array's elements in C order, as bytes; copied only when not contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


class _PackWriter:
    """Writes aligned arrays to a new file, in large blocks.

    Durable packs go past the page cache where the file system allows it: they are waited for
    anyhow, that halves the time, and weights that are only read to be repacked do not push out
    pages that are in use. Other packs are left in the page cache, to be mapped at once.
    """

    def __init__(self, path: Path, durable: bool) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o600)
        self._durable = durable
        self._block = np.frombuffer(mmap.mmap(-1, _BLOCK_BYTES), dtype=np.uint8)
        self._filled = 0
        self._written = 0
        if durable:
            _bypass_page_cache(self._descriptor)
        self._fill(np.frombuffer(_HEADER, dtype=np.uint8))

    def append(self, data: np.ndarray) -> Place:
        """Write bytes at the next aligned offset; gives where they lie."""
        self._pad(ALIGNMENT)
        place = Place(self._written + self._filled, data.size)
        self._fill(data)
        return place

    def finish(self) -> int:
        """Write what is left, to the disk itself for a durable pack; gives the file's size."""
        self._pad(mmap.PAGESIZE)
        self._flush()
        if self._durable:
            os.fsync(self._descriptor)
        return self._written

    def close(self) -> None:
        os.close(self._descriptor)

    def _pad(self, multiple: int) -> None:
        self._fill(np.zeros(-(self._written + self._filled) % multiple, dtype=np.uint8))

    def _fill(self, data: np.ndarray) -> None:
        while data.size:
            part = data[: _BLOCK_BYTES - self._filled]
            self._block[self._filled : self._filled + part.size] = part
            self._filled += part.size
            data = data[part.size :]
            if self._filled == _BLOCK_BYTES:
                self._flush()

    def _flush(self) -> None:
        pending = self._block[: self._filled]
        while pending.size:
            count = os.write(self._descriptor, pending.data)
            pending = pending[count:]
            self._written += count
        self._filled = 0


def _bypass_page_cache(descriptor: int) -> None:
    """Ask for direct writes. Does nothing on a file system (or platform) that has none."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    with suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | getattr(os, "O_DIRECT", 0))


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _map_file(path: Path, nbytes: int) -> np.ndarray:
    """Map a file of exactly `nbytes`, read-only.

    Not with `mmap.mmap`, which keeps a file descriptor for each mapping (before Python 3.13):
    thousands of models would run into the limit on open files.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        if size != nbytes:
            raise OSError(f"has {size} bytes instead of {nbytes}")
        address = _libc.mmap(None, nbytes, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address == _MAP_FAILED:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    finally:
        os.close(descriptor)
    memory = (ctypes.c_uint8 * nbytes).from_address(address)
    # Not at exit: threads may still read while the interpreter goes.
    weakref.finalize(memory, _libc.munmap, address, nbytes).atexit = False
    return np.frombuffer(memoryview(memory).toreadonly(), dtype=np.uint8)

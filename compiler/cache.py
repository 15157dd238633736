"""The kernel cache: object files on disk, addressed by what they were compiled from.

An entry is the object file followed by the SHA-256 of its bytes. Entries are written to a
temporary name, flushed and renamed; a damaged one is noticed when read, dropped and rebuilt.
Nothing here is precious: the folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from whitebox.compiler.target import Target
from whitebox.ir.graph import Graph

_DIGEST_BYTES = 32


@cache
def _source_digest(*folders: str) -> str:
    """Digest of the code that decides what a kernel or a plan looks like."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def compiler_version() -> str:
    """Identity of code generation: TVM's version and the digest of templates and lowering."""
    try:
        tvm = version("apache-tvm")
    except PackageNotFoundError:
        tvm = "none"
    return f"{tvm}-{_source_digest('kernels', 'compiler/lower')}"


@cache
def pipeline_version() -> str:
    """Identity of everything between an imported graph and its plan."""
    sources = _source_digest("passes", "compiler", "whitebox/ir", "whitebox/runtime")
    return f"{compiler_version()}-{sources}"


def kernel_key(body: Graph, target: Target) -> str:
    """The address of the kernel that computes `body` on `target`."""
    parts = "\0".join((body.digest, target.key, compiler_version()))
    return hashlib.sha256(parts.encode()).hexdigest()[:40]


def variant_key(key: str, variant: int) -> str:
    """The address of the same kernel with another schedule; variant 0 is the kernel itself."""
    return hashlib.sha256(f"{key}\0{variant}".encode()).hexdigest()[:40] if variant else key


def write_atomically(path: Path, data: bytes) -> None:
    """Create or replace `path` with `data`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class KernelCache:
    """Object files under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._verified: set[str] = set()

    def path(self, key: str) -> Path:
        """Where the entry is, or would be."""
        return self.folder / key[:2] / f"{key}.o"

    def has(self, key: str) -> bool:
        """Whether a sound entry is there; a damaged one is dropped."""
        if key in self._verified:
            return True
        try:
            data = self.path(key).read_bytes()
        except OSError:
            return False
        body, stored = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != stored:
            self.path(key).unlink(missing_ok=True)
            return False
        self._verified.add(key)
        return True

    def put(self, key: str, object_file: bytes) -> Path:
        """Store an object file. ELF readers ignore what follows the sections."""
        write_atomically(self.path(key), object_file + hashlib.sha256(object_file).digest())
        return self.path(key)

    def resolve(self, key: str) -> str:
        """The key of the variant that tuning has found best; the key itself when none is there."""
        try:
            tuned = self._choice(key).read_text()
        except OSError:
            return key
        return tuned if self.has(tuned) else key

    def choose(self, key: str, tuned: str) -> None:
        """Have `key` resolve to the variant `tuned` from now on, in every process."""
        write_atomically(self._choice(key), tuned.encode())

    def _choice(self, key: str) -> Path:
        return self.path(key).with_suffix(".tuned")

    def sizes(self) -> tuple[int, int]:
        """(entries, bytes)."""
        found = [path.stat().st_size for path in self.folder.glob("*/*.o")]
        return len(found), sum(found)

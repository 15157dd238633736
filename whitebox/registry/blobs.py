"""The blob store: constant tensors, stored once by the digest of their bytes.

Tensors go in and are written together, new ones only, to one pack file; read-only arrays over
the mapped pages come out, 64-byte aligned, shared by every process. A blob is never changed. It
stays while a version uses its pack: the registry records uses, `sweep` drops what has none.
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from whitebox.errors import StorageError
from whitebox.ir.graph import Tensor, string_bytes
from whitebox.ir.types import TensorType, numpy_dtype
from whitebox.registry.database import Database
from whitebox.registry.lock import HomeLock
from whitebox.registry.packs import Pack, PackFolder, Place, bytes_of


@dataclass(frozen=True)
class Staged:
    """Tensors that are safely in files; `places` are those in `pack`, not yet in the index."""

    digests: tuple[str, ...]
    pack: Pack | None
    places: Mapping[str, Place]
    new_bytes: int
    shared_bytes: int


class BlobStore:
    """Content-addressed tensors in `packs`, indexed by `database`."""

    def __init__(self, packs: PackFolder, database: Database, lock: HomeLock) -> None:
        self._packs = packs
        self._database = database
        self._lock = lock

    def put(self, tensors: Iterable[Tensor]) -> tuple[int, int]:
        """Store tensors that no version uses yet; gives bytes written and bytes already there."""
        with self._lock.shared():
            staged = self.stage(tensors)
            with self._database.transaction() as connection:
                self.index(connection, staged)
        return staged.new_bytes, staged.shared_bytes

    def stage(self, tensors: Iterable[Tensor]) -> Staged:
        """Write tensors that are not stored, or whose pack is damaged, durably into one pack.

        The caller holds the lock, shared, until it has committed `index`.
        """
        wanted = {tensor.digest: tensor for tensor in tensors}
        known = self._stored(wanted)
        new = {digest: tensor for digest, tensor in wanted.items() if digest not in known}
        shared_bytes = sum(known.values())
        if not new:
            return Staged(tuple(wanted), None, {}, 0, shared_bytes)
        pack, places = self._packs.write(
            (partial(_bytes_of_tensor, tensor) for tensor in new.values()), durable=True
        )
        new_bytes = sum(place.nbytes for place in places)
        placed = dict(zip(new, places, strict=True))
        return Staged(tuple(wanted), pack, placed, new_bytes, shared_bytes)

    def index(self, connection: sqlite3.Connection, staged: Staged) -> set[int]:
        """Make staged tensors findable; gives the packs that hold them, for `uses`."""
        if staged.pack is not None:
            # Another process may have stored some of them meanwhile: its copies stay.
            known = self._stored(staged.places)
            places = {d: place for d, place in staged.places.items() if d not in known}
            if places:
                self._index_pack(connection, staged.pack, places)
            else:
                self._packs.remove(staged.pack.file)
        rows = self._database.query_in(
            "SELECT DISTINCT pack FROM blobs WHERE digest", staged.digests
        )
        return {pack for (pack,) in rows}

    def _index_pack(
        self, connection: sqlite3.Connection, pack: Pack, places: Mapping[str, Place]
    ) -> None:
        """Enter a new pack. Blobs that move to it left a damaged one: its users move as well."""
        damaged = self._database.query_in("SELECT DISTINCT pack FROM blobs WHERE digest", places)
        new = connection.execute(
            "INSERT INTO packs (file, nbytes, derived) VALUES (?, ?, 0)", (pack.file, pack.nbytes)
        ).lastrowid
        connection.executemany(
            "INSERT OR REPLACE INTO blobs (digest, pack, offset, nbytes) VALUES (?, ?, ?, ?)",
            [(digest, new, *place) for digest, place in places.items()],
        )
        for (old,) in damaged:
            connection.execute(
                "INSERT OR IGNORE INTO uses SELECT version, ? FROM uses WHERE pack = ?", (new, old)
            )
            if not self._database.query_in("SELECT 1 FROM blobs WHERE pack", [old]):
                connection.execute("DELETE FROM uses WHERE pack = ?", (old,))
                connection.execute("DELETE FROM packs WHERE id = ?", (old,))

    def _stored(self, digests: Iterable[str]) -> dict[str, int]:
        """Which of the digests are in an intact pack, with their bytes."""
        rows = self._database.query_in(
            "SELECT digest, blobs.nbytes, file, packs.nbytes FROM blobs "
            "JOIN packs ON packs.id = pack WHERE digest",
            digests,
        )
        packs = {Pack(file, size) for _, _, file, size in rows}
        intact = {pack for pack in packs if self._packs.is_intact(pack)}
        return {digest: size for digest, size, *pack in rows if Pack(*pack) in intact}

    def has(self, digest: str) -> bool:
        """Whether a tensor with this digest is stored."""
        return digest in self._stored([digest])

    def tensor(self, digest: str, type: TensorType) -> np.ndarray:
        """A stored tensor, read-only, on mapped pages (strings are decoded)."""
        return self.readers({digest: type})[digest]()

    def readers(self, wanted: Mapping[str, TensorType]) -> dict[str, Callable[[], np.ndarray]]:
        """What gives a stored tensor each time it is called, even after the blob was dropped.

        By digest. Raises StorageError when one is not there.
        """
        rows = self._database.query_in(
            "SELECT digest, file, packs.nbytes, offset, blobs.nbytes FROM blobs "
            "JOIN packs ON packs.id = pack WHERE digest",
            wanted,
        )
        readers: dict[str, Callable[[], np.ndarray]] = {}
        for digest, file, size, offset, nbytes in rows:
            try:
                raw = self._packs.map(Pack(file, size))[offset : offset + nbytes]
            except OSError as error:
                raise StorageError(self._damage(file, _reason(error))) from error
            readers[digest] = _reader(digest, wanted[digest], raw)
        for digest, type in wanted.items():
            if digest not in readers:
                raise StorageError(
                    f"the weights {digest} ({type}) are not in {self._packs.folder}: "
                    "register the model that uses them again"
                )
        return readers

    def verify(self) -> list[str]:
        """Read every blob and compare its digest; one line for each damaged pack."""
        damaged = []
        for id_, file, size in self._database.query(
            "SELECT id, file, nbytes FROM packs WHERE derived = 0"
        ):
            try:
                pages = self._packs.map(Pack(file, size))
            except OSError as error:
                damaged.append(self._damage(file, _reason(error)))
                continue
            blobs = self._database.query(
                "SELECT digest, offset, nbytes FROM blobs WHERE pack = ?", (id_,)
            )
            wrong = sum(
                hashlib.sha256(pages[offset : offset + nbytes].data).hexdigest() != digest
                for digest, offset, nbytes in blobs
            )
            if wrong:
                what = f"has {wrong} damaged tensors of {len(blobs)}: delete it, then"
                damaged.append(self._damage(file, what))
        return damaged

    def _damage(self, file: str, what: str) -> str:
        """One line on a damaged pack: the file, whose weights it holds, the way out."""
        rows = self._database.query(
            "SELECT DISTINCT name FROM packs JOIN uses ON pack = packs.id "
            "JOIN versions ON versions.id = uses.version JOIN models ON models.id = model "
            "WHERE file = ? ORDER BY name LIMIT 5",
            (file,),
        )
        users = ", ".join(name for (name,) in rows) or "no model"
        path = self._packs.folder / file
        return f"{path}, with weights of {users}, {what} register the same model file again"

    def sweep(self) -> int:
        """Drop packs that no version uses and files of processes that died; gives bytes freed.

        Does nothing while any process is writing a pack.
        """
        with self._lock.exclusive() as alone:
            if not alone:
                return 0
            unused = "FROM packs WHERE derived = 0 AND id NOT IN (SELECT pack FROM uses)"
            if self._database.query(f"SELECT 1 {unused} LIMIT 1"):
                with self._database.transaction() as connection:
                    connection.execute(f"DELETE {unused}")
            known = {file for (file,) in self._database.query("SELECT file FROM packs")}
            return sum(self._packs.remove(f) for f in self._packs.files() if f not in known)


def _reader(digest: str, type: TensorType, raw: np.ndarray) -> Callable[[], np.ndarray]:
    if type.dtype == "string":
        return partial(_decode_strings, raw, type)
    if raw.nbytes != type.nbytes:
        raise StorageError(
            f"the blob {digest} has {raw.nbytes} bytes, {type} takes {type.nbytes}: "
            "register the model that uses it again"
        )
    array = raw.view(numpy_dtype(type.dtype)).reshape(type.dims)
    return lambda: array


def _bytes_of_tensor(tensor: Tensor) -> np.ndarray:
    """The bytes that a tensor's digest is of."""
    if tensor.type.dtype == "string":
        return np.frombuffer(string_bytes(tensor.array), dtype=np.uint8)
    return bytes_of(tensor.array)


def _decode_strings(raw: np.ndarray, type: TensorType) -> np.ndarray:
    """A string tensor from length-prefixed UTF-8; what is not UTF-8 stays bytes."""
    data, position = raw.tobytes(), 0
    items: list[str | bytes] = []
    while position < len(data):
        (length,) = struct.unpack_from("<I", data, position)
        item = data[position + 4 : position + 4 + length]
        position += 4 + length
        try:
            items.append(item.decode())
        except UnicodeDecodeError:
            items.append(item)
    array = np.empty(len(items), dtype=object)
    array[:] = items
    array = array.reshape(type.dims)
    array.flags.writeable = False
    return array


def _reason(error: OSError) -> str:
    """Why a pack cannot be mapped."""
    if isinstance(error, FileNotFoundError):
        return "is missing:"
    return f"cannot be read ({error.strerror or error}):"

"""Derived arrays, such as packed weights: a cache that may be dropped at any time.

Arrays go in under a key that says all that they depend on; read-only arrays over mapped pages
come out, or None. An entry is checked when it is read, so it need not be flushed to the disk
when it is written: what a power failure or the disk damaged is dropped and made again.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from functools import partial

import msgspec
import numpy as np

from whitebox.ir.types import dtype_name, numpy_dtype
from whitebox.registry.database import Database
from whitebox.registry.lock import HomeLock
from whitebox.registry.packs import Pack, PackFolder, bytes_of

MIN_BUDGET_BYTES = 256 << 20
BUDGET_FACTOR = 4  # int8 weights may be derived to float32


class DerivedStore:
    """Keyed arrays in `packs`, indexed by `database`."""

    def __init__(self, packs: PackFolder, database: Database, lock: HomeLock) -> None:
        self._packs = packs
        self._database = database
        self._lock = lock

    def get(self, key: str) -> np.ndarray | None:
        """The array stored under `key`, read-only and 64-byte aligned; None when it is not there.

        Reads and checks all of it: keep the array rather than ask again.
        """
        rows = self._database.query(
            "SELECT file, packs.nbytes, offset, derived.nbytes, dtype, shape, checksum "
            "FROM derived JOIN packs ON packs.id = pack WHERE key = ?",
            (key,),
        )
        if not rows:
            return None
        file, size, offset, nbytes, dtype, shape, checksum = rows[0]
        try:
            raw = self._packs.map(Pack(file, size))[offset : offset + nbytes]
        except OSError:
            self._drop([file])
            return None
        if zlib.crc32(raw.data) != checksum:
            self._drop([file])
            return None
        self._packs.mark_used(file)
        dims: list[int] = msgspec.json.decode(shape)
        return raw.view(numpy_dtype(dtype)).reshape(dims)

    def put(self, entries: Mapping[str, np.ndarray]) -> None:
        """Store arrays (not strings), all in one pack. Keys that are there keep their array."""
        with self._lock.shared():
            new = {key: array for key, array in entries.items() if not self._has(key)}
            if not new:
                return
            pack, places = self._packs.write(
                (partial(bytes_of, array) for array in new.values()), durable=False
            )
            rows = [
                (
                    key,
                    *place,
                    dtype_name(array.dtype),
                    msgspec.json.encode(array.shape).decode(),
                    zlib.crc32(bytes_of(array).data),
                )
                for (key, array), place in zip(new.items(), places, strict=True)
            ]
            with self._database.transaction() as connection:
                pack_id = connection.execute(
                    "INSERT INTO packs (file, nbytes, derived) VALUES (?, ?, 1)",
                    (pack.file, pack.nbytes),
                ).lastrowid
                connection.executemany(
                    "INSERT OR REPLACE INTO derived "
                    "(pack, key, offset, nbytes, dtype, shape, checksum) "
                    f"VALUES ({pack_id}, ?, ?, ?, ?, ?, ?)",
                    rows,
                )

    def _has(self, key: str) -> bool:
        return bool(self._database.query("SELECT 1 FROM derived WHERE key = ?", (key,)))

    def evict(self) -> int:
        """Drop the packs unused for longest until the rest fit the budget; gives bytes freed.

        Derived data may take `BUDGET_FACTOR` times the room of the models' weights. So removing
        models lets go of what was derived from them, and the cache cannot grow without end.
        """
        packs = self._database.query("SELECT file, nbytes FROM packs WHERE derived = 1")
        ((weights,),) = self._database.query(
            "SELECT coalesce(sum(nbytes), 0) FROM packs WHERE derived = 0"
        )
        excess = sum(size for _, size in packs) - max(MIN_BUDGET_BYTES, BUDGET_FACTOR * weights)
        victims = []
        for file, size in sorted(packs, key=lambda pack: self._packs.used_at(pack[0])):
            if excess <= 0:
                break
            victims.append(file)
            excess -= size
        return self._drop(victims) if victims else 0

    def _drop(self, files: list[str]) -> int:
        """Forget packs, then delete them. Arrays that are in use stay valid."""
        with self._database.transaction() as connection:
            connection.executemany("DELETE FROM packs WHERE file = ?", [(f,) for f in files])
        return sum(map(self._packs.remove, files))

"""Derived arrays, such as packed weights: a cache that may be dropped at any time.

Arrays go in under a key that says all that they depend on; read-only arrays over mapped pages
come out. An entry need not be flushed to the disk when it is written: it is checked when it is
first read after the machine has started, and what a power failure damaged is dropped and made
again.
"""

from __future__ import annotations

import time
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial

import msgspec
import numpy as np

from whitebox.ir.types import dtype_name, numpy_dtype
from whitebox.registry.database import Database, Row
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

    def get(self, keys: Iterable[str]) -> dict[str, np.ndarray]:
        """The arrays stored under `keys`, as far as there are any: read-only, 64-byte aligned."""
        rows = self._database.query_in(
            "SELECT file, packs.nbytes, key, offset, derived.nbytes, dtype, shape, checksum "
            "FROM derived JOIN packs ON packs.id = pack WHERE key",
            keys,
        )
        by_pack: dict[Pack, list[Row]] = defaultdict(list)
        for file, size, *entry in rows:
            by_pack[Pack(file, size)].append(tuple(entry))
        found: dict[str, np.ndarray] = {}
        damaged = []
        for pack, entries in by_pack.items():
            try:
                found.update(self._read(pack, entries))
            except OSError:
                damaged.append(pack.file)
        if damaged:
            self._drop(damaged)
        return found

    def _read(self, pack: Pack, entries: Iterable[Row]) -> dict[str, np.ndarray]:
        """Arrays of one pack. Raises OSError when it is damaged."""
        pages = self._packs.map(pack)
        # What was written or read since the machine started is in memory as it was written.
        checked = booted_at() < self._packs.used_at(pack.file) <= time.time()
        arrays = {}
        for key, offset, nbytes, dtype, shape, checksum in entries:
            raw = pages[offset : offset + nbytes]
            if not checked and zlib.crc32(raw.data) != checksum:
                raise OSError("has other bytes than were written")
            arrays[key] = raw.view(numpy_dtype(dtype)).reshape(msgspec.json.decode(shape))
        self._packs.mark_used(pack.file)
        return arrays

    def put(self, entries: Mapping[str, np.ndarray]) -> None:
        """Store arrays (not strings), all in one pack. Keys that are there keep their array."""
        with self._lock.shared():
            there = self._database.query_in("SELECT key FROM derived WHERE key", entries)
            new = {key: array for key, array in entries.items() if (key,) not in there}
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


def booted_at() -> float:
    """When the machine started; where that is not known, now: then nothing counts as checked."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.time() - (0.0 if clock is None else time.clock_gettime(clock))

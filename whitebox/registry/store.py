"""The registry: names, immutable versions and their graphs, in one home folder.

Graphs go in; records and graphs over memory-mapped weights come out. Weights are safe on the
disk before the one transaction that makes a version visible, so a process killed at any
instruction leaves a registration either whole or absent. Any number of threads and processes may
use one home. Nothing here compiles or runs a model.
"""

from __future__ import annotations

import difflib
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np

from whitebox.compiler.structure import Structured, name_symbols
from whitebox.errors import ModelNotFound, StorageError
from whitebox.ir.graph import Graph
from whitebox.registry.blobs import BlobStore
from whitebox.registry.database import Database, Row
from whitebox.registry.derived import DerivedStore
from whitebox.registry.lock import HomeLock
from whitebox.registry.packs import PackFolder
from whitebox.registry.records import (
    ModelRecord,
    Signature,
    decode_signature,
    encode_signature,
    identity,
    signature_of,
    validate_name,
)
from whitebox.registry.structures import StructureStore, large_tensors, nbytes
from whitebox.registry.upgrade import upgrade

_RECORDS = (
    "SELECT name, version, signature, digest, created, nbytes, metadata "
    "FROM versions JOIN models ON models.id = model"
)


class Registry:
    """The models of one home. A context manager; thread-safe, but not to be used after a fork."""

    def __init__(self, home: str | Path) -> None:
        self.home = Path(home).expanduser().absolute()
        _create_folders(self.home)
        self._lock = HomeLock(self.home / "lock")
        self._database = Database(self.home / "registry.db", self._lock)
        packs = PackFolder(self.home / "blobs")
        self.blobs = BlobStore(packs, self._database, self._lock)
        self._derived = DerivedStore(packs, self._database, self._lock)
        self._structures = StructureStore(self._database, self.blobs)
        upgrade(self._database, self.blobs, self._structures, self._lock)
        self.sweep()

    def add(
        self,
        name: str,
        graph: Graph,
        metadata: Mapping[str, Any] | None = None,
        precision: str = "f32",
    ) -> tuple[ModelRecord, bool, int, int]:
        """Register the graph's only model as a new version of `name`: see `keep`."""
        validate_name(name)
        model = Structured.of(graph, precision)
        return self.keep(name, model, signature_of(graph.model), metadata)

    def keep(
        self,
        name: str,
        model: Structured,
        signature: Signature,
        metadata: Mapping[str, Any] | None = None,
    ) -> tuple[ModelRecord, bool, int, int]:
        """Register a model as a new version of `name`.

        Gives the record, whether it is new, bytes of weights written and bytes already stored.
        When the newest or an older version has the same content and precision, that one is given
        back.
        """
        validate_name(name)
        with self._lock.shared():
            staged = self.blobs.stage(large_tensors(model))
            with self._database.transaction() as connection:
                packs = self.blobs.index(connection, staged)
                row = (
                    identity(model),
                    encode_signature(*signature),
                    msgspec.json.encode({**(metadata or {}), "precision": model.precision}),
                    nbytes(model),
                    time.time(),
                )
                id_, version, created = _insert_version(connection, name, row, packs)
                self._structures.insert(connection, id_, model)
                record = self.get(name, version)
        return record, created, staged.new_bytes, staged.shared_bytes

    def get(self, name: str, version: int | None = None) -> ModelRecord:
        """A version of a model, the newest by default. Raises ModelNotFound."""
        rows = self._database.query(
            f"{_RECORDS} WHERE name = ? AND version = coalesce(?, version) "
            "ORDER BY version DESC LIMIT 1",
            (name, version),
        )
        if not rows:
            raise self._not_found(name, version)
        return _record(rows[0])

    def list(self) -> list[ModelRecord]:
        """Every version of every model, by name and version."""
        return [_record(row) for row in self._database.query(f"{_RECORDS} ORDER BY name, version")]

    def rows(self, after: int = 0) -> Sequence[tuple[int, ModelRecord]]:
        """The versions added since that with the number `after`, with their numbers, in order."""
        query = _RECORDS.replace("SELECT", "SELECT versions.id,")
        rows = self._database.query(f"{query} WHERE versions.id > ? ORDER BY versions.id", (after,))
        return [(number, _record(row)) for number, *row in rows]

    def row_ids(self) -> set[int]:
        """The numbers of all versions, as `rows` gives them."""
        return {number for (number,) in self._database.query("SELECT id FROM versions")}

    def count(self) -> int:
        """How many versions there are."""
        ((count,),) = self._database.query("SELECT count(*) FROM versions")
        return int(count)

    def structures(self) -> dict[tuple[str, int], int]:
        """The number of the structure of each version, by name and version."""
        rows = self._database.query(
            "SELECT name, versions.version, structure FROM contents "
            "JOIN versions ON versions.id = contents.version JOIN models ON models.id = model"
        )
        return {(name, version): structure for name, version, structure in rows}

    def model(self, record: ModelRecord) -> Structured:
        """A version's structure and weights, which are read from mapped pages on demand."""
        try:
            found = self._structures.load(record.name, record.version, record.precision)
        except StorageError as error:
            raise StorageError(f"{record.name} v{record.version}: {error}") from error
        if found is None:
            raise self._not_found(record.name, record.version)
        return found

    def graph(self, record: ModelRecord) -> Graph:
        """The graph of a version, weights and all."""
        model = self.model(record)
        try:
            return name_symbols(model.graph, [s.type for s in (*record.inputs, *record.outputs)])
        except StorageError as error:
            raise StorageError(f"{record.name} v{record.version}: {error}") from error

    def remove(self, name: str, version: int | None = None) -> None:
        """Remove one version, or all of a model's. Their numbers are never given again."""
        with self._database.transaction() as connection:
            removed = connection.execute(
                "DELETE FROM versions WHERE model = (SELECT id FROM models WHERE name = ?) "
                "AND version = coalesce(?, version)",
                (name, version),
            ).rowcount
            if not removed:
                raise self._not_found(name, version)
            self._structures.sweep(connection)
            connection.execute("UPDATE state SET generation = generation + 1")
        self.sweep()

    def generation(self) -> int:
        """A number that changes when any process adds or removes a version. Cheap to ask."""
        ((generation,),) = self._database.query("SELECT generation FROM state")
        return int(generation)

    def stored_bytes(self) -> tuple[int, int]:
        """Bytes of all weights, each distinct one once; bytes of what is derived from them."""
        ((stored, derived),) = self._database.query(
            "SELECT (SELECT coalesce(sum(nbytes), 0) FROM blobs), "
            "(SELECT coalesce(sum(nbytes), 0) FROM derived)"
        )
        return int(stored), int(derived)

    def get_derived(self, keys: Iterable[str]) -> dict[str, np.ndarray]:
        """Arrays of the derived cache, read-only and aligned. See `DerivedStore`."""
        return self._derived.get(keys)

    def put_derived(self, entries: Mapping[str, np.ndarray]) -> None:
        """Keep arrays in the derived cache, under keys that say all that they depend on."""
        self._derived.put(entries)

    def sweep(self) -> int:
        """Delete what nothing needs any more; gives bytes freed. Runs at opening and removal."""
        return self.blobs.sweep() + self._derived.evict()

    def close(self) -> None:
        """Let go of the database. Graphs already given out stay readable."""
        self._database.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _not_found(self, name: str, version: int | None) -> ModelNotFound:
        """What is there instead of what was asked for."""
        rows = self._database.query(
            "SELECT name, version FROM versions JOIN models ON models.id = model ORDER BY 1, 2"
        )
        versions = [str(number) for known, number in rows if known == name]
        if versions:
            return ModelNotFound(
                f"model {name!r} has no version {version}: it has {', '.join(versions)}"
            )
        close = difflib.get_close_matches(name, {known for known, _ in rows}, n=1)
        step = f"did you mean {close[0]!r}?" if close else "register it, or list what is there"
        return ModelNotFound(f"no model {name[:200]!r} is registered: {step}")


def _insert_version(
    connection: sqlite3.Connection, name: str, row: Row, packs: set[int]
) -> tuple[int, int, bool]:
    """(row, number) of the version with this content, made when not there; whether it was made."""
    connection.execute("INSERT OR IGNORE INTO models (name, newest) VALUES (?, 0)", (name,))
    model, newest = connection.execute(
        "SELECT id, newest FROM models WHERE name = ?", (name,)
    ).fetchone()
    known = connection.execute(
        "SELECT id, version FROM versions WHERE model = ? AND digest = ?", (model, row[0])
    ).fetchone()
    if known:
        id_, version = known
    else:
        version = newest + 1
        id_ = connection.execute(
            "INSERT INTO versions (model, version, digest, signature, metadata, nbytes, created) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (model, version, *row),
        ).lastrowid
        connection.execute("UPDATE models SET newest = ? WHERE id = ?", (version, model))
        connection.execute("UPDATE state SET generation = generation + 1")
    connection.executemany(
        "INSERT OR IGNORE INTO uses (version, pack) VALUES (?, ?)", [(id_, pack) for pack in packs]
    )
    return id_, version, not known


def _record(row: Iterable[Any]) -> ModelRecord:
    name, version, signature, digest, created, nbytes, metadata = row
    inputs, outputs = decode_signature(signature)
    return ModelRecord(
        name=name,
        version=version,
        inputs=inputs,
        outputs=outputs,
        digest=digest,
        created=created,
        nbytes=nbytes,
        metadata=_metadata(metadata),
    )


@lru_cache(maxsize=4096)  # variants of an architecture have the same
def _metadata(data: bytes) -> Mapping[str, Any]:
    decoded: Mapping[str, Any] = msgspec.json.decode(data)
    return decoded


def _create_folders(home: Path) -> None:
    """Make the home, for its owner only, or say why it cannot serve."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in ("blobs", "kernels", "plans"):
            (home / folder).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{home} cannot be used as a home: {error.filename}: {error.strerror}: set "
            "WHITEBOX_HOME to a folder that you may write to"
        ) from error

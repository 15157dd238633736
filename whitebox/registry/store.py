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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np

from whitebox.errors import ModelNotFound, StorageError
from whitebox.ir.graph import Graph, Tensor, string_bytes, topological
from whitebox.ir.serial import decode, encode
from whitebox.ir.types import TensorType
from whitebox.registry.blobs import BlobStore
from whitebox.registry.database import Database, Row
from whitebox.registry.derived import DerivedStore
from whitebox.registry.lock import HomeLock
from whitebox.registry.packs import PackFolder
from whitebox.registry.records import (
    ModelRecord,
    decode_signature,
    encode_signature,
    identity,
    signature_of,
    validate_name,
)

INLINE_LIMIT = 1024  # bytes; smaller tensors are written with the graph

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
        self.sweep()

    def add(
        self,
        name: str,
        graph: Graph,
        metadata: Mapping[str, Any] | None = None,
        precision: str = "f32",
    ) -> tuple[ModelRecord, bool, int, int]:
        """Register the graph's only model as a new version of `name`.

        Gives the record, whether it is new, bytes of weights written and bytes already stored.
        When the newest or an older version has the same content and precision, that one is given
        back.
        """
        validate_name(name)
        model = replace(graph.model, name=name)
        named = Graph([model], graph.names)
        tensors = {tensor.digest: tensor for tensor in tensors_of(named)}
        data = encode(named, INLINE_LIMIT)
        large = _referenced(data, tensors)
        inputs, outputs = signature_of(model)
        with self._lock.shared():
            staged = self.blobs.stage(large)
            with self._database.transaction() as connection:
                packs = self.blobs.index(connection, staged)
                row = (
                    identity(model, graph.digest, precision),
                    encode_signature(inputs, outputs),
                    msgspec.json.encode({**(metadata or {}), "precision": precision}),
                    sum(map(_nbytes, tensors.values())),
                    time.time(),
                )
                version, created = _insert_version(connection, name, row, data, packs)
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

    def graph(self, record: ModelRecord) -> Graph:
        """The graph of a version. Its large tensors are read from mapped pages on demand."""
        rows = self._database.query(
            "SELECT data FROM graphs JOIN versions ON versions.id = graphs.version "
            "JOIN models ON models.id = model WHERE name = ? AND versions.version = ?",
            (record.name, record.version),
        )
        if not rows:
            raise self._not_found(record.name, record.version)

        def stored(digest: str, type: TensorType) -> Tensor:
            return Tensor(type, digest, load=self.blobs.reader(digest, type))

        try:
            return decode(rows[0][0], stored)
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


def tensors_of(graph: Graph) -> Iterator[Tensor]:
    """Every tensor in a graph's attributes, those of nested graphs too."""
    for model in graph.models.values():
        roots = [node for _, node in (*model.inputs, *model.outputs)]
        for node in topological(roots):
            yield from _tensors_in(node.attrs.values())


def _tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Graph):
            yield from tensors_of(value)
        elif isinstance(value, (tuple, list)):
            yield from _tensors_in(value)


def _referenced(data: bytes, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """The tensors that an encoded graph refers to, found by decoding it.

    So a graph is only ever stored when it can be read back.
    """
    found: list[Tensor] = []

    def note(digest: str, type: TensorType) -> Tensor:
        found.append(tensors[digest])
        return Tensor(type, digest, load=lambda: tensors[digest].array)

    decode(data, note)
    return found


def _nbytes(tensor: Tensor) -> int:
    """Bytes of a tensor as it is stored."""
    if tensor.type.dtype == "string":
        return len(string_bytes(tensor.array))
    return tensor.type.nbytes


def _insert_version(
    connection: sqlite3.Connection, name: str, row: Row, data: bytes, packs: set[int]
) -> tuple[int, bool]:
    """The version with this content, made when it is not there, and whether it was made."""
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
    # A known version's graph may have been damaged, or written in an older form: now it is not.
    connection.execute(
        "INSERT INTO graphs (version, data) VALUES (?, ?) ON CONFLICT (version) "
        "DO UPDATE SET data = excluded.data WHERE data IS NOT excluded.data",
        (id_, data),
    )
    connection.executemany(
        "INSERT OR IGNORE INTO uses (version, pack) VALUES (?, ?)", [(id_, pack) for pack in packs]
    )
    return version, not known


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

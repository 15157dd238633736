"""upgrade: a home of the first schema, which kept whole graphs, becomes one of today's.

All in one transaction, with the home to itself. A version whose graph is damaged keeps its place:
registering the same file again heals it.
"""

from __future__ import annotations

import sqlite3

import msgspec

from whitebox.compiler.structure import Structured
from whitebox.errors import StorageError
from whitebox.ir import serial
from whitebox.ir.graph import Tensor
from whitebox.ir.types import TensorType
from whitebox.registry.blobs import BlobStore
from whitebox.registry.database import NEW_IN_2, SCHEMA_VERSION, Database
from whitebox.registry.lock import HomeLock
from whitebox.registry.records import identity
from whitebox.registry.structures import StructureStore


def upgrade(
    database: Database, blobs: BlobStore, structures: StructureStore, lock: HomeLock
) -> None:
    """Bring a home to SCHEMA_VERSION; nothing to do for one that has it."""
    if database.schema_version() == SCHEMA_VERSION:
        return
    with lock.exclusive(wait=True), database.transaction() as connection:
        if database.schema_version() == SCHEMA_VERSION:  # another process was first
            return
        for statement in NEW_IN_2.split(";\n"):
            connection.execute(statement)
        rows = connection.execute(
            "SELECT id, metadata, data FROM versions JOIN graphs ON graphs.version = versions.id"
        ).fetchall()
        for id_, metadata, data in rows:
            _move(connection, blobs, structures, id_, metadata, data)
        connection.execute("DROP TABLE graphs")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _move(
    connection: sqlite3.Connection,
    blobs: BlobStore,
    structures: StructureStore,
    id_: int,
    metadata: bytes,
    data: bytes,
) -> None:
    def stored(digest: str, type: TensorType) -> Tensor:
        return Tensor(type, digest, load=blobs.readers({digest: type})[digest])

    try:
        graph = serial.decode(data, stored)
    except StorageError:
        return
    precision = "bf16" if msgspec.json.decode(metadata).get("precision") == "bf16" else "f32"
    model = Structured.of(graph, precision)
    structures.insert(connection, id_, model)
    connection.execute("UPDATE versions SET digest = ? WHERE id = ?", (identity(model), id_))

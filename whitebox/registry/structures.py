"""Structures: graphs without their weights, stored once for all models of one architecture.

Enter: a Structured model. Leave: the same over memory-mapped weights, its graph decoded only when
somebody wants it. A version's own content is a list of its weights: small ones with their bytes,
others by digest.
"""

from __future__ import annotations

import hashlib
import sqlite3
from weakref import WeakValueDictionary

import msgspec
import numpy as np

from whitebox.compiler.structure import Ends, Structure, Structured
from whitebox.errors import StorageError
from whitebox.ir import serial
from whitebox.ir.graph import Tensor, string_bytes
from whitebox.ir.serial import is_inside
from whitebox.ir.types import TensorType, numpy_dtype
from whitebox.registry.blobs import BlobStore
from whitebox.registry.database import Database

_WEIGHTS = list[tuple[bytes, bytes | None]]


class StructureStore:
    """The structures in `database`; their weights, and large constants, are in `blobs`."""

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self._database = database
        self._blobs = blobs
        # Models of one structure share it in memory.
        self._loaded: WeakValueDictionary[int, Structure] = WeakValueDictionary()

    def insert(self, connection: sqlite3.Connection, version: int, model: Structured) -> None:
        """Enter a version's content, in the place of what may be damaged."""
        structure = model.structure
        names = msgspec.json.encode(structure.names)
        key = hashlib.sha256(structure.digest.encode() + names).hexdigest()
        stored = connection.execute("SELECT data FROM structures WHERE key = ?", (key,)).fetchone()
        if stored is None or not serial.is_intact(stored[0]):
            types = [[type.dtype, type.shape] for type in structure.weight_types]
            encoded_types, data = msgspec.msgpack.encode(types), _encoded(structure)
            connection.execute(
                "INSERT INTO structures (key, digest, names, weight_types, data) "
                "VALUES (?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET data = excluded.data",
                (key, structure.digest, names, encoded_types, data),
            )
        listed = [
            (bytes.fromhex(weight.digest), weight.array.tobytes() if is_inside(weight) else None)
            for weight in model.weights
        ]
        connection.execute(
            "INSERT INTO contents (version, structure, weights) "
            "SELECT ?, id, ? FROM structures WHERE key = ? "
            "ON CONFLICT (version) DO UPDATE SET weights = excluded.weights",
            (version, msgspec.msgpack.encode(listed), key),
        )

    def load(self, name: str, version: int, precision: str) -> Structured | None:
        """A version's content; None when it is not there. Raises StorageError when damaged."""
        rows = self._database.query(
            "SELECT structure, weights FROM contents "
            "JOIN versions ON versions.id = contents.version JOIN models ON models.id = model "
            "WHERE name = ? AND versions.version = ?",
            (name, version),
        )
        if not rows:
            return None
        number, stored = rows[0]
        structure = self._loaded.get(number)
        if structure is None:
            structure = self._loaded[number] = self._structure(number)
        try:
            listed = msgspec.msgpack.decode(stored, type=_WEIGHTS)
        except msgspec.DecodeError as error:
            raise StorageError("its weights are damaged; register the model again") from error
        outside = {
            digest.hex(): type
            for (digest, data), type in zip(listed, structure.weight_types, strict=True)
            if data is None
        }
        readers = self._blobs.readers(outside)
        weights = tuple(
            Tensor(type, digest.hex(), load=readers[digest.hex()])
            if data is None
            else _inline(type, digest.hex(), data)
            for (digest, data), type in zip(listed, structure.weight_types, strict=True)
        )
        return Structured(structure, weights, precision)

    def _structure(self, number: int) -> Structure:
        rows = self._database.query(
            "SELECT digest, names, weight_types, data FROM structures WHERE id = ?", (number,)
        )
        if not rows:  # removed, with its last version, after that was looked up
            raise StorageError("it has just been removed; register the model again")
        digest, names, types, data = rows[0]
        weight_types = [TensorType(d, tuple(s)) for d, s in msgspec.msgpack.decode(types)]
        # (the bytes are in memory, so that a model in use outlives its removal)
        return Structure(
            digest,
            msgspec.json.decode(names, type=Ends),
            weight_types,
            lambda: serial.decode(data, self._stored),
        )

    def _stored(self, digest: str, type: TensorType) -> Tensor:
        return Tensor(type, digest, load=self._blobs.readers({digest: type})[digest])

    def sweep(self, connection: sqlite3.Connection) -> None:
        """Drop the structures that no version has."""
        connection.execute(
            "DELETE FROM structures "
            "WHERE NOT EXISTS (SELECT 1 FROM contents WHERE structure = structures.id)"
        )


def _encoded(structure: Structure) -> bytes:
    """A structure as bytes; only ever such as can be read back."""
    data = serial.encode(structure.graph)
    constants = {tensor.digest: tensor for tensor in structure.constants}
    serial.decode(data, lambda digest, type: constants[digest])
    return data


def large_tensors(model: Structured) -> list[Tensor]:
    """Those of a model that belong into blobs."""
    return [each for each in (*model.weights, *model.structure.constants) if not is_inside(each)]


def nbytes(model: Structured) -> int:
    """Bytes of all tensors of a model as they are stored, equal ones once."""
    tensors = {tensor.digest: tensor for tensor in (*model.weights, *model.structure.constants)}
    return sum(map(_nbytes, tensors.values()))


def _nbytes(tensor: Tensor) -> int:
    if tensor.type.dtype == "string":
        return len(string_bytes(tensor.array))
    return tensor.type.nbytes


def _inline(type: TensorType, digest: str, data: bytes) -> Tensor:
    return Tensor(
        type, digest, array=np.frombuffer(data, numpy_dtype(type.dtype)).reshape(type.dims)
    )

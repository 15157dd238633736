"""What the registry says about models: plain immutable records.

A graph goes in, its signature comes out; records are also stored and read back as JSON, so that
listing models decodes no graph. Nothing here touches a file or a database.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import groupby
from typing import Any, TypeAlias

import msgspec

from whitebox.compiler.structure import Structured
from whitebox.errors import InvalidName
from whitebox.ir.graph import Model
from whitebox.ir.types import Dim, MapType, OptionalType, SequenceType, TensorType, Type

MAX_NAME_LENGTH = 200

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


class TensorSpec(msgspec.Struct, frozen=True):
    """One named input or output."""

    name: str
    type: Type

    @property
    def tensor(self) -> TensorType:
        """The type of a tensor. Raises TypeError for a sequence, optional or map."""
        if not isinstance(self.type, TensorType):
            raise TypeError(f"{self.name} is a {self.type}, not a tensor")
        return self.type

    @property
    def wire_shape(self) -> list[int]:
        """The shape as the Open Inference Protocol spells it: -1 is a free dimension."""
        return [dim if isinstance(dim, int) else -1 for dim in self.tensor.shape or ()]

    def __str__(self) -> str:
        return f"{self.name} {self.type}"


Signature: TypeAlias = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One immutable version of a model. `nbytes` counts its weights, each distinct one once.

    `digest` is the identity of what the model computes, together with the names in its signature
    and the precision.
    """

    name: str
    version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    digest: str
    created: float
    nbytes: int
    metadata: Mapping[str, Any]

    @property
    def precision(self) -> str:
        """The precision that the version is computed in."""
        return "bf16" if self.metadata.get("precision") == "bf16" else "f32"

    @property
    def given_shapes(self) -> dict[str, tuple[int, ...]] | None:
        """The shapes, by input, that it was registered for; None when none were named."""
        stored = self.metadata.get("shapes")
        # What a file says about itself is text, under whatever key.
        if not isinstance(stored, dict):
            return None
        return {name: tuple(dims) for name, dims in stored.items()}

    def __str__(self) -> str:
        inputs, outputs = (", ".join(map(str, specs)) for specs in (self.inputs, self.outputs))
        return f"{self.name} v{self.version} ({inputs}) -> ({outputs})"


class ModelInfo(ModelRecord, frozen=True, kw_only=True):
    """A version of a model, and which versions of it there are."""

    versions: tuple[int, ...]

    @classmethod
    def of(cls, record: ModelRecord, versions: Iterable[int]) -> ModelInfo:
        """A record seen among the versions of its model."""
        fields = {name: getattr(record, name) for name in ModelRecord.__struct_fields__}
        return cls(**fields, versions=tuple(sorted(versions)))

    @classmethod
    def newest(cls, records: Iterable[ModelRecord]) -> list[ModelInfo]:
        """The newest version of each model, by name."""
        ordered = sorted(records, key=lambda record: (record.name, record.version))
        models = [list(group) for _, group in groupby(ordered, key=lambda record: record.name)]
        return [cls.of(model[-1], (record.version for record in model)) for model in models]


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """What registering a model did. `created` is False when the same content was there."""

    name: str
    version: int
    created: bool
    kernels_compiled: int
    kernels_reused: int
    seconds: float
    new_bytes: int
    shared_bytes: int


def validate_name(name: str) -> str:
    """A model name that is allowed, unchanged. Raises InvalidName saying what is wrong with it."""
    shown = ascii(name if len(name) <= 60 else name[:57] + "...")
    if not name:
        raise InvalidName("a model name is empty: give one, for example 'resnet50'")
    if len(name) > MAX_NAME_LENGTH:
        raise InvalidName(
            f"the model name {shown} has {len(name)} characters: use at most {MAX_NAME_LENGTH}"
        )
    if not name.isascii():
        raise InvalidName(
            f"the model name {shown} has characters outside ASCII: use letters a-z, digits, '._-'"
        )
    if not _NAME.fullmatch(name) or ".." in name:
        raise InvalidName(
            f"the model name {shown} is not allowed: use letters, digits and '._-', without '..' "
            "and not starting with '.' or '-'"
        )
    return name


def signature_of(model: Model) -> Signature:
    """The input and output specs of a graph's model."""
    inputs = tuple(TensorSpec(name, node.type) for name, node in model.inputs)
    return inputs, tuple(TensorSpec(name, node.type) for name, node in model.outputs)


def identity(model: Structured) -> str:
    """The digest of a version: what it computes, the names that requests use, the precision."""
    weights = [weight.digest for weight in model.weights]
    parts = [model.digest, weights, model.structure.names, model.precision]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]


def encode_signature(inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> bytes:
    """Specs as JSON."""
    ends = [[[spec.name, _type_to_json(spec.type)] for spec in end] for end in (inputs, outputs)]
    return msgspec.json.encode(ends)


@lru_cache(maxsize=4096)  # variants of an architecture have one signature
def decode_signature(data: bytes) -> Signature:
    """The specs that `encode_signature` wrote."""
    inputs, outputs = (
        tuple(TensorSpec(name, _type_from_json(type)) for name, type in end)
        for end in msgspec.json.decode(data)
    )
    return inputs, outputs


def _type_to_json(type: Type) -> Mapping[str, Any]:
    match type:
        case TensorType(dtype, shape):
            return {"tensor": dtype, "shape": shape}
        case SequenceType(element):
            return {"sequence": _type_to_json(element)}
        case OptionalType(element):
            return {"optional": _type_to_json(element)}
        case MapType(key, value):
            return {"map": key, "value": _type_to_json(value)}


def _type_from_json(data: Mapping[str, Any]) -> Type:
    match data:
        case {"tensor": dtype, "shape": shape}:
            dims: tuple[Dim, ...] | None = None if shape is None else tuple(shape)
            return TensorType(dtype, dims)
        case {"sequence": element}:
            return SequenceType(_type_from_json(element))
        case {"optional": element}:
            return OptionalType(_type_from_json(element))
        case {"map": key, "value": value}:
            return MapType(key, _type_from_json(value))
    raise ValueError(f"not a type: {data}")

"""reading: from a model file to its structure and weights.

Variants of an architecture come in files that differ in the data of their initializers only. What
the first has become is kept under the file's *outline*, all but that data, with every condition on
the data under which another becomes the same structure. Where they hold, no graph is built.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import onnx

from whitebox.compiler.cache import pipeline_version, write_atomically
from whitebox.compiler.structure import Ends, Structure, Structured, tensors_of
from whitebox.errors import StorageError
from whitebox.ir import onnx_io, serial
from whitebox.ir.graph import Tensor
from whitebox.ir.onnx_io import Opened
from whitebox.ir.ops import DRAW
from whitebox.ir.types import TensorType
from whitebox.ir.weights import is_float, is_weight
from whitebox.passes import share
from whitebox.registry.records import Signature, decode_signature, encode_signature, signature_of

MAX_KNOWN = 256


class Outline(msgspec.Struct, frozen=True):
    """What a file has become, and under which conditions on its initializers.

    `order`: the initializer that each weight is. `fixed`: the digests of those whose data counts.
    `equals`: for each initializer the first that is the same. `others`: digests of the structure's
    constants, which no weight may have.
    """

    digest: str
    names: Ends
    signature: bytes
    graph: bytes
    order: tuple[int, ...]
    fixed: dict[int, str]
    equals: tuple[int, ...]
    others: frozenset[str]


class ModelReader:
    """Reads model files; what is known of outlines is kept in a folder that may be deleted.

    Thread-safe.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, tuple[Outline, Structure]] = {}
        self._lock = threading.Lock()

    def read(
        self, source: str | Path | bytes | onnx.ModelProto, name: str, precision: str
    ) -> tuple[Structured, Signature, dict[str, str]]:
        """(model, signature, metadata) of a file.

        Raises InvalidModel, UnsupportedOperator, or InvalidInput (precision).
        """
        opened = onnx_io.open_model(source)
        path = None if opened.outline is None else self._path(opened.outline)
        types = [tensor.type for tensor in opened.initializers]
        known = None if path is None else self._find(path, types)
        if known is not None and _fits(known[0], opened.initializers):
            outline, structure = known
            weights = tuple(opened.initializers[index] for index in outline.order)
            signature = decode_signature(outline.signature)
            return Structured(structure, weights, precision), signature, opened.metadata
        graph = share(opened.graph(name))
        model, signature = Structured.of(graph, precision), signature_of(graph.model)
        made = path and _outline_of(opened, model, signature)
        if path and made:
            write_atomically(path, msgspec.msgpack.encode(made))
            self._remember(path, made, model.structure)
        return model, signature, opened.metadata

    def _path(self, outline: str) -> Path:
        parts = "\0".join((outline, pipeline_version(), onnx.__version__))
        digest = hashlib.sha256(parts.encode()).hexdigest()[:40]
        return self._folder / digest[:2] / f"{digest}.outline"

    def _find(self, path: Path, types: Iterable[TensorType]) -> tuple[Outline, Structure] | None:
        known = self._known.get(path.name)
        if known is not None:
            return known
        try:
            outline = msgspec.msgpack.decode(path.read_bytes(), type=Outline)
        except (OSError, msgspec.DecodeError):
            return None
        if not serial.is_intact(outline.graph):
            return None
        load = partial(serial.decode, outline.graph, _self_contained)
        every = list(types)
        structure = Structure(
            outline.digest, outline.names, [every[index] for index in outline.order], load
        )
        return self._remember(path, outline, structure)

    def _remember(
        self, path: Path, outline: Outline, structure: Structure
    ) -> tuple[Outline, Structure]:
        with self._lock:
            known = self._known[path.name] = (outline, structure)
            if len(self._known) > MAX_KNOWN:
                self._known.pop(next(iter(self._known)))
        return known


class _Watched(Tensor):
    """An initializer equal to no other constant, that knows whether its data has been looked at."""

    __slots__ = ("seen",)

    def __init__(self, tensor: Tensor, place: int) -> None:
        super().__init__(tensor.type, f"initializer {place}", array=tensor.array)
        self.seen = False

    @property
    def array(self) -> np.ndarray:
        """The data, read-only."""
        self.seen = True
        return super().array


def _outline_of(opened: Opened, model: Structured, signature: Signature) -> Outline | None:
    """What a file has become, if it depends on its initializers in known ways only."""
    tensors = opened.initializers
    first = _first(tensors)
    at = {_same(tensors[index]): index for index in first}
    if model.structure.constants or not all(_same(weight) in at for weight in model.weights):
        return None  # more than the initializers has to be stored
    watched = {index: _Watched(tensors[index], index) for index in first}
    graph = share(opened.graph("", [watched[index] for index in first]))
    if any(DRAW in node.attrs for node in graph.nodes):
        return None  # a random operator is told from another file's by all of the file
    if any(node.op.startswith("ai.onnx.ml.") for node in graph.nodes):
        return None  # its weights are spelled out, and what is constant folded
    others = {each.digest for each in tensors_of(graph) if not isinstance(each, _Watched)}
    if any(weight.digest in others for weight in model.weights):
        return None  # they have become one
    order = tuple(at[_same(weight)] for weight in model.weights)
    fixed = {
        index: tensors[index].digest
        for index in watched
        if watched[index].seen or index not in order
    }
    return Outline(
        digest=model.digest,
        names=model.structure.names,
        signature=encode_signature(*signature),
        graph=serial.encode(model.structure.graph),
        order=order,
        fixed=fixed,
        equals=first,
        others=frozenset(others),
    )


def _fits(outline: Outline, tensors: Sequence[Tensor]) -> bool:
    """Whether a file with these initializers becomes the same structure."""
    weights = [tensors[index] for index in outline.order]
    return (
        all(tensors[index].digest == digest for index, digest in outline.fixed.items())
        and _first(tensors) == outline.equals
        and not any(weight.digest in outline.others for weight in weights)
        # Whether numbers with a fraction are weights, their types say, which the outline has.
        and all(is_float(weight.type) or is_weight(weight) for weight in weights)
    )


def _first(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """For each tensor the place of the first that is the same."""
    places: dict[tuple[str, TensorType], int] = {}
    return tuple(places.setdefault(_same(each), index) for index, each in enumerate(tensors))


def _same(tensor: Tensor) -> tuple[str, TensorType]:
    """What tensors that become one node have in common."""
    return tensor.digest, tensor.type


def _self_contained(digest: str, type: TensorType) -> Tensor:
    raise StorageError(f"an outline refers to the bytes {digest} ({type}), which it should hold")

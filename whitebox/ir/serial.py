"""Graphs as bytes, and back: how the registry stores them and compile jobs carry them.

Enter: a Graph. Leave: MessagePack behind a header with version and checksum; equal graphs give
equal bytes. Small constants are inside, large ones only by digest: their bytes are the blob
store's business.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np

from whitebox.errors import StorageError
from whitebox.ir.graph import (
    WEIGHT,
    Graph,
    Model,
    Node,
    Tensor,
    constant,
    string_bytes,
    topological,
)
from whitebox.ir.types import (
    MapType,
    OptionalType,
    SequenceType,
    TensorType,
    Type,
    numpy_dtype,
)

VERSION = 1

_MAGIC = b"whitebox"
_HEADER = struct.Struct("<8sI16s")

Fetch: TypeAlias = Callable[[str, TensorType], Tensor]


def encode(graph: Graph, inline_limit: int = 1024) -> bytes:
    """The graph as bytes; constants of up to `inline_limit` bytes are inside."""
    payload = msgspec.msgpack.encode(_graph_out(graph, inline_limit))
    return _HEADER.pack(_MAGIC, VERSION, _checksum(payload)) + payload


def decode(data: bytes, tensor: Fetch, weights: Sequence[Tensor] | None = None) -> Graph:
    """The graph that `encode` wrote; `tensor` supplies the constants that are not inside.

    `weights`, where given, are put in the place of the graph's Weight placeholders.
    Raises StorageError when the data is damaged or of a newer version.
    """
    payload = data[_HEADER.size :]
    if len(data) < _HEADER.size:
        raise StorageError("a stored graph is cut short; register the model again")
    magic, version, checksum = _HEADER.unpack_from(data)
    if magic != _MAGIC or (version == VERSION and checksum != _checksum(payload)):
        raise StorageError("a stored graph is damaged; register the model again")
    if version != VERSION:
        raise StorageError(
            f"a stored graph has version {version} and this program reads {VERSION}; "
            "register the model again"
        )
    return _graph_in(msgspec.msgpack.decode(payload), tensor, weights)


def is_inside(tensor: Tensor, inline_limit: int = 1024) -> bool:
    """Whether a tensor's bytes are written with the graph."""
    if tensor.type.nbytes > inline_limit:
        return False
    return tensor.type.dtype != "string" or len(string_bytes(tensor.array)) <= inline_limit


def is_intact(data: bytes) -> bool:
    """Whether `decode` would read what `encode` of this version wrote."""
    if len(data) < _HEADER.size:
        return False
    return _HEADER.unpack_from(data) == (_MAGIC, VERSION, _checksum(data[_HEADER.size :]))


def _checksum(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()[:16]


# A graph is [nodes, models, names]; a node refers to others by their place among the nodes.


def _graph_out(graph: Graph, limit: int) -> list[Any]:
    declared = [node for model in graph.models.values() for _, node in model.inputs]
    nodes = topological([*declared, *graph.roots])
    place = {node: index for index, node in enumerate(nodes)}
    models = [
        [
            model.name,
            [[name, place[node]] for name, node in model.inputs],
            [[name, place[node]] for name, node in model.outputs],
            dict(sorted(model.metadata.items())),
        ]
        for model in graph.models.values()
    ]
    names = [[place[node], name] for node, name in graph.names.items() if node in place]
    return [[_node_out(node, place, limit) for node in nodes], models, sorted(names)]


def _node_out(node: Node, place: Mapping[Node, int], limit: int) -> list[Any]:
    inputs = [None if source is None else place[source] for source in node.inputs]
    attrs = {name: _attr_out(value, limit) for name, value in node.attrs.items()}
    return [node.op, inputs, attrs, [_type_out(type) for type in node.types], node.version]


def _graph_in(stored: list[Any], fetch: Fetch, weights: Sequence[Tensor] | None = None) -> Graph:
    nodes: list[Node] = []
    for op, inputs, attrs, types, version in stored[0]:
        if op == WEIGHT and weights is not None:
            nodes.append(constant(weights[attrs["position"]]))
            continue
        nodes.append(
            Node.make(
                op,
                [None if index is None else nodes[index] for index in inputs],
                {name: _attr_in(value, fetch) for name, value in attrs.items()},
                [_type_in(type) for type in types],
                version,
            )
        )
    models = [
        Model(
            name,
            tuple((each, nodes[index]) for each, index in inputs),
            tuple((each, nodes[index]) for each, index in outputs),
            metadata,
        )
        for name, inputs, outputs, metadata in stored[1]
    ]
    return Graph(models, {nodes[index]: name for index, name in stored[2]})


# An attribute is itself, or a list whose head tells what the rest is.


def _attr_out(value: Any, limit: int) -> Any:
    match value:
        case tuple():
            return ["tuple", *(_attr_out(item, limit) for item in value)]
        case Tensor():
            return ["tensor", _type_out(value.type), value.digest, _data_out(value, limit)]
        case Graph():
            return ["graph", _graph_out(value, limit)]
        case TensorType() | SequenceType() | OptionalType() | MapType():
            return ["type", _type_out(value)]
        case _:
            return value


def _attr_in(value: Any, fetch: Fetch) -> Any:
    match value:
        case ["tuple", *items]:
            return tuple(_attr_in(item, fetch) for item in items)
        case ["tensor", type, digest, data]:
            return _tensor_in(_type_in(type), digest, data, fetch)
        case ["graph", graph]:
            return _graph_in(graph, fetch)
        case ["type", type]:
            return _type_in(type)
        case _:
            return value


def _data_out(tensor: Tensor, limit: int) -> bytes | None:
    """The bytes of a small tensor, as they are hashed."""
    if not is_inside(tensor, limit):
        return None
    data = tensor.array
    return string_bytes(data) if data.dtype == object else data.tobytes()


def _tensor_in(type: Type, digest: str, data: bytes | None, fetch: Fetch) -> Tensor:
    assert isinstance(type, TensorType)
    if data is None:
        return fetch(digest, type)
    if type.dtype == "string":
        array = _strings(data, type.size)
    else:
        array = np.frombuffer(data, numpy_dtype(type.dtype))
    array = array.reshape(type.dims)
    array.flags.writeable = False
    return Tensor(type, digest, array=array)


def _strings(data: bytes, count: int) -> np.ndarray:
    """The inverse of `string_bytes`."""
    items, at = np.empty(count, object), 0
    for index in range(count):
        (length,) = struct.unpack_from("<I", data, at)
        raw = data[at + 4 : at + 4 + length]
        at += 4 + length
        try:
            items[index] = raw.decode()
        except UnicodeDecodeError:
            items[index] = raw
    return items


def _type_out(type: Type) -> list[Any]:
    match type:
        case TensorType(dtype, shape):
            return ["tensor", dtype, shape]
        case SequenceType(element):
            return ["seq", _type_out(element)]
        case OptionalType(element):
            return ["optional", _type_out(element)]
        case MapType(key, value):
            return ["map", key, _type_out(value)]


def _type_in(stored: list[Any]) -> Type:
    match stored:
        case ["tensor", dtype, shape]:
            return TensorType(dtype, None if shape is None else tuple(shape))
        case ["seq", element]:
            return SequenceType(_type_in(element))
        case ["optional", element]:
            return OptionalType(_type_in(element))
        case ["map", key, value]:
            return MapType(key, _type_in(value))
    raise StorageError("a stored graph holds an unknown type; register the model again")

"""Takes the bytes of large tensors out of a serialised model before protobuf copies them.

Enter: a file's bytes. Leave: the same message with a short mark in place of each large `raw_data`,
and views of what the marks stand for. Parsing and reading a 100 MB model thus touches its weights
once, to hash them. Only the protobuf wire format is known here (https://protobuf.dev/programming-
guides/encoding); whatever looks odd is left to protobuf, which says what is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

LARGE_BYTES = 1 << 12

# Field numbers of onnx.proto.
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 5, 9
_BYTES = 2  # the wire type of what has a length


class _Odd(Exception):
    """Bytes that are not what they should be."""


@dataclass(frozen=True)
class TakenTensors:
    """The views of large tensors' bytes, found by the marks that replaced them."""

    nonce: bytes
    views: tuple[memoryview, ...]

    def find(self, raw_data: bytes) -> memoryview | None:
        """The bytes that a mark stands for; None when these bytes are no mark."""
        if len(raw_data) != len(self.nonce) + 4 or not raw_data.startswith(self.nonce):
            return None
        index = int.from_bytes(raw_data[len(self.nonce) :], "little")
        return self.views[index] if index < len(self.views) else None


NONE_TAKEN = TakenTensors(b"", ())


def take_tensors(data: memoryview) -> tuple[bytes, TakenTensors]:
    """(the model with marks, what they stand for); the model as it is when it looks odd."""
    # Unguessable, so that no file can hold a mark of its own.
    nonce = os.urandom(16)
    views: list[memoryview] = []
    try:
        graphs = [f for f in _fields(data) if f.number == _MODEL_GRAPH]
        if len(graphs) != 1 or graphs[0].wire != _BYTES:
            raise _Odd
        (graph,) = graphs
        inner = b"".join(_marked_graph(graph.payload, nonce, views))
        head = bytes(data[: graph.start]) + _header(_MODEL_GRAPH, len(inner))
        return head + inner + bytes(data[graph.end :]), TakenTensors(nonce, tuple(views))
    except (_Odd, IndexError):
        return bytes(data), NONE_TAKEN


def _marked_graph(graph: memoryview, nonce: bytes, views: list[memoryview]) -> Iterator[bytes]:
    """The pieces of a GraphProto, its large initializers marked."""
    kept = 0
    for field in _fields(graph):
        if field.number != _GRAPH_INITIALIZER or field.wire != _BYTES:
            continue
        if len(field.payload) < LARGE_BYTES:
            continue
        marked = _marked_tensor(field.payload, nonce, views)
        if marked is None:
            continue
        yield bytes(graph[kept : field.start])
        yield _header(_GRAPH_INITIALIZER, len(marked)) + marked
        kept = field.end
    yield bytes(graph[kept:])


def _marked_tensor(tensor: memoryview, nonce: bytes, views: list[memoryview]) -> bytes | None:
    """A TensorProto with its `raw_data` marked; None when it has none, or several."""
    found = [f for f in _fields(tensor) if f.number == _TENSOR_RAW_DATA and f.wire == _BYTES]
    if len(found) != 1:
        return None
    (raw,) = found
    mark = nonce + len(views).to_bytes(4, "little")
    views.append(raw.payload)
    head = _header(_TENSOR_RAW_DATA, len(mark))
    return bytes(tensor[: raw.start]) + head + mark + bytes(tensor[raw.end :])


@dataclass(frozen=True, slots=True)
class _Field:
    """One field of a message: where it starts and ends, and its payload."""

    number: int
    wire: int
    start: int
    end: int
    payload: memoryview


def _fields(message: memoryview) -> Iterator[_Field]:
    position, length = 0, len(message)
    while position < length:
        start = position
        key, position = _varint(message, position)
        wire, begin = key & 7, position
        match wire:
            case 0:  # varint
                _, position = _varint(message, position)
            case 1:  # 64 bits
                position += 8
            case 2:  # length and bytes
                size, begin = _varint(message, position)
                position = begin + size
            case 5:  # 32 bits
                position += 4
            case _:
                raise _Odd
        if position > length:
            raise _Odd
        yield _Field(key >> 3, wire, start, position, message[begin:position])


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """(value, position behind it)."""
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise _Odd


def _header(number: int, size: int) -> bytes:
    """The key and length in front of a payload of `size` bytes."""
    out = bytearray([number << 3 | _BYTES])
    while size >= 0x80:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out)

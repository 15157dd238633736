"""Large tensors set aside before protobuf parses a model.

Enter: a serialized ModelProto. Leave: a small one in which the data of large tensors is replaced by
marks, and the data itself as views into the input. So weights are never copied, and models beyond
protobuf's 2 GB can be read. Nothing here judges a model: what does not look like one is left alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

# Smaller tensors are cheaper to copy than to set aside.
_LARGE = 1 << 16

_LENGTH_DELIMITED = 2
_FIXED = {1: 8, 5: 4}

# Message → its fields that may lead to tensor data: field number → message, or None for the data.
Message: TypeAlias = "Mapping[int, Message | None]"
_TENSOR: Message = {9: None}
_ATTRIBUTE: Message = {5: _TENSOR}
_NODE: Message = {5: _ATTRIBUTE}
# How an attribute ends whose type, the last field that everybody writes, is a list of floats,
# integers or strings. Dictionaries and trees are long lists, and hold no tensor.
_LISTS = (b"\xa0\x01\x06", b"\xa0\x01\x07", b"\xa0\x01\x08")
_GRAPH: Message = {1: _NODE, 5: _TENSOR}
_MODEL: Message = {7: _GRAPH}


@dataclass
class Aside:
    """Tensor data by its mark. Marks hold a secret, so that no file can forge one."""

    secret: bytes = field(default_factory=lambda: os.urandom(16))
    views: dict[bytes, memoryview] = field(default_factory=dict)

    def put(self, data: memoryview) -> bytes:
        mark = self.secret + len(self.views).to_bytes(8, "little")
        self.views[mark] = data
        return mark

    def get(self, raw: bytes) -> bytes | memoryview:
        """The data that a tensor's raw bytes stand for; they themselves unless they are a mark."""
        return self.views.get(raw, raw) if len(raw) == len(self.secret) + 8 else raw


def set_aside(data: bytes, aside: Aside) -> bytes:
    """The model without the data of its large tensors, which goes into `aside`."""
    if len(data) < _LARGE:
        return data
    try:
        return b"".join(_rewritten(memoryview(data), _MODEL, aside))
    except (LookupError, ValueError):
        # Not a sequence of protobuf fields; the parser will say so.
        return data


def _rewritten(view: memoryview, message: Message, aside: Aside) -> list[bytes | memoryview]:
    """A message in pieces, large tensor data in it replaced by marks."""
    pieces: list[bytes | memoryview] = []
    at = kept = 0
    while at < len(view):
        start = at
        tag, at = _varint(view, at)
        number, kind = tag >> 3, tag & 7
        if kind != _LENGTH_DELIMITED:
            at = _varint(view, at)[1] if kind == 0 else at + _FIXED[kind]
            continue
        length, at = _varint(view, at)
        content, at = view[at : at + length], at + length
        if at > len(view):
            raise ValueError("a field reaches beyond its message")
        if length < _LARGE or number not in message:
            continue
        inner = message[number]
        if inner is _ATTRIBUTE and content[-len(_LISTS[0]) :] in _LISTS:
            continue
        new = [aside.put(content)] if inner is None else _rewritten(content, inner, aside)
        pieces += [view[kept:start], _encoded(tag), _encoded(sum(map(len, new))), *new]
        kept = at
    return [*pieces, view[kept:]]


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """A variable-length number and where it ends."""
    value = shift = 0
    while True:
        byte = view[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _encoded(value: int) -> bytes:
    """A number as protobuf writes it."""
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)

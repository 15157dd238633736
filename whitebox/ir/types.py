"""Types of values: what dtype and shape flow along an edge.

A dimension is an `int`, a symbol (`str`: equal symbols are equal sizes) or None (unknown).
Dtypes are named as ONNX names them, in lower case: "float32", "int64", "bfloat16", "string", …
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import ml_dtypes
import numpy as np

from whitebox.ir.sizes import Extent, Size

Dim: TypeAlias = int | str | None

_PLAIN = (
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 "
    "float16 float32 float64 complex64 complex128"
).split()

_NUMPY: dict[str, np.dtype] = {
    **{name: np.dtype(name) for name in _PLAIN},
    "string": np.dtype(object),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "float8e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float8e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "float8e8m0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "float4e2m1": np.dtype(ml_dtypes.float4_e2m1fn),
    "float6e2m3": np.dtype(ml_dtypes.float6_e2m3fn),
    "float6e3m2": np.dtype(ml_dtypes.float6_e3m2fn),
    "int4": np.dtype(ml_dtypes.int4),
    "uint4": np.dtype(ml_dtypes.uint4),
    "int2": np.dtype(ml_dtypes.int2),
    "uint2": np.dtype(ml_dtypes.uint2),
}
_NAMES = {dtype: name for name, dtype in _NUMPY.items()}

DTYPES: tuple[str, ...] = tuple(_NUMPY)

# What the products of a model are computed in.
PRECISIONS = ("f32", "bf16")

# Dtypes by their number in ONNX (TensorProto.DataType), as attributes such as Cast's `to` have it.
ONNX_DTYPES: tuple[str, ...] = tuple(
    (
        "undefined float32 uint8 int8 uint16 int16 int32 int64 string bool float16 float64 uint32 "
        "uint64 complex64 complex128 bfloat16 float8e4m3fn float8e4m3fnuz float8e5m2 "
        "float8e5m2fnuz uint4 int4 float4e2m1 float8e8m0 uint2 int2 float6e2m3 float6e3m2"
    ).split()
)
_SHORT = {"float": "f", "int": "i", "uint": "u", "bfloat": "bf", "complex": "c"}


def numpy_dtype(name: str) -> np.dtype:
    """The numpy dtype that holds elements of the ONNX dtype `name` (4-bit: one a byte)."""
    return _NUMPY[name]


def dtype_name(dtype: np.dtype) -> str:
    """The ONNX name of a numpy dtype, byte order ignored. Raises KeyError when ONNX has none."""
    if dtype.kind in "USO":
        return "string"
    return _NAMES[dtype.newbyteorder("=")]


def short_dtype(name: str) -> str:
    """ "float32" → "f32", "int64" → "i64": for printing."""
    stem = name.rstrip("0123456789")
    return _SHORT[stem] + name[len(stem) :] if stem in _SHORT and stem != name else name


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor's dtype and shape; `shape` is None when not even the rank is known."""

    dtype: str
    shape: tuple[Dim, ...] | None

    @property
    def is_static(self) -> bool:
        """Whether every dimension is a known number."""
        return self.shape is not None and all(type(dim) is int for dim in self.shape)

    @property
    def is_named(self) -> bool:
        """Whether every dimension is a number or a symbol: then equal types are equal shapes."""
        return self.shape is not None and None not in self.shape

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape of a static type. Raises TypeError when a dimension is free."""
        if self.shape is None or not self.is_static:
            raise TypeError(f"{self} is not static")
        return self.shape  # type: ignore[return-value]

    @property
    def extents(self) -> tuple[Extent, ...]:
        """The shape, a symbol as the size it stands for. Raises TypeError if one is unknown."""
        if self.shape is None or None in self.shape:
            raise TypeError(f"{self} has an unknown dimension")
        return tuple(
            Size.symbol(dim) if isinstance(dim, str) else dim
            for dim in self.shape
            if dim is not None
        )

    @property
    def rank(self) -> int:
        """Number of dimensions. Raises TypeError when unknown."""
        if self.shape is None:
            raise TypeError(f"the rank of {self} is unknown")
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements of a static type."""
        return math.prod(self.dims)

    @property
    def nbytes(self) -> int:
        """Bytes of a static type, elements unpacked (a 4-bit element takes one byte)."""
        return self.size * numpy_dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return _spelled(self)


@lru_cache(maxsize=4096)
def _spelled(type: TensorType) -> str:
    # Cached because every node's digest spells its types, and few types differ.
    if type.shape is None:
        return f"{short_dtype(type.dtype)}[…]"
    dims = ",".join("?" if dim is None else str(dim) for dim in type.shape)
    return f"{short_dtype(type.dtype)}[{dims}]"


@dataclass(frozen=True, slots=True)
class SequenceType:
    """An ONNX sequence; all elements have type `element`."""

    element: Type

    def __str__(self) -> str:
        return f"seq({self.element})"


@dataclass(frozen=True, slots=True)
class OptionalType:
    """An ONNX optional value."""

    element: Type

    def __str__(self) -> str:
        return f"optional({self.element})"


@dataclass(frozen=True, slots=True)
class MapType:
    """An ONNX map from keys of dtype `key` to values of type `value`."""

    key: str
    value: Type

    def __str__(self) -> str:
        return f"map({short_dtype(self.key)},{self.value})"


Type: TypeAlias = TensorType | SequenceType | OptionalType | MapType


def with_dims(type: Type, change: Callable[[Dim], Dim]) -> Type:
    """A type with every dimension in it changed."""
    match type:
        case TensorType(dtype, shape):
            return TensorType(dtype, None if shape is None else tuple(map(change, shape)))
        case SequenceType(element):
            return SequenceType(with_dims(element, change))
        case OptionalType(element):
            return OptionalType(with_dims(element, change))
        case MapType(key, value):
            return MapType(key, with_dims(value, change))

"""Tensor data of the Open Inference Protocol: JSON elements and raw bytes to numpy and back.

Enters: an input's name, datatype and shape with a JSON list or a view of bytes; or a result array.
Leaves: a numpy array of the declared shape (a view of the bytes where that is possible); or a list
or bytes to send. Never knows HTTP, a model's signature or the runtime.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from whitebox.errors import InvalidInput
from whitebox.ir.types import dtype_name, numpy_dtype

Array = NDArray[Any]

DTYPES: dict[str, str] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "BF16": "bfloat16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "string",
}
_DATATYPES = {dtype: datatype for datatype, dtype in DTYPES.items()}

_MAX_RANK = 32  # numpy 1's own limit
_MAX_BYTES = 2**63 - 1  # what an index can address
_SHOWN = 80  # characters of a client's text that an error repeats

# What a JSON element of each kind of dtype may be, and how to say so.
_ELEMENTS: dict[str, tuple[frozenset[type], str]] = {
    "bool": (frozenset({bool}), "true or false"),
    "integer": (frozenset({int}), "whole numbers"),
    "float": (frozenset({int, float}), "numbers"),
    "string": (frozenset({str}), "strings"),
}
_JSON_NAMES = {
    bool: "a boolean",
    int: "a whole number",
    float: "a fractional number",
    str: "a string",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


def quote(text: str) -> str:
    """A client's text for an error: quoted, escaped and cut to a length that is safe to repeat."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


def datatype_of(dtype: str) -> str:
    """The protocol's name of an ONNX dtype; its own name in capitals where there is none."""
    return _DATATYPES.get(dtype, dtype.upper())


def element_count(name: str, datatype: str, shape: Sequence[int]) -> int:
    """How many elements the declared shape holds, once it is known to be possible."""
    if datatype not in DTYPES:
        raise InvalidInput(
            f"input {quote(name)}: there is no datatype {quote(datatype)}; "
            f"send one of {', '.join(DTYPES)}"
        )
    if len(shape) > _MAX_RANK:
        raise InvalidInput(
            f"input {quote(name)}: the shape has {len(shape)} dimensions; send at most {_MAX_RANK}"
        )
    for axis, dim in enumerate(shape):
        if dim < 0:
            raise InvalidInput(
                f"input {quote(name)}: dimension {axis} of the shape is {_number(dim)}; "
                "send the size of the data, which is never negative"
            )
    # Zeros are left out: numpy cannot hold [0, 2**62, 2**62] either.
    itemsize = numpy_dtype(DTYPES[datatype]).itemsize
    if math.prod(dim for dim in shape if dim) * itemsize > _MAX_BYTES:
        raise InvalidInput(
            f"input {quote(name)}: a {datatype} tensor of shape {_shape(shape)} is too large to "
            "exist; check the shape"
        )
    return math.prod(shape)


def from_json(name: str, datatype: str, shape: Sequence[int], data: Any) -> Array:
    """An array from JSON elements, given flat in row-major order or nested as the shape is."""
    count = element_count(name, datatype, shape)
    if type(data) is not list:
        raise InvalidInput(f"input {quote(name)}: data is {_json_name(data)}, send an array")
    flat = _flatten(name, shape, data)
    if len(flat) != count:
        raise InvalidInput(
            f"input {quote(name)}: data has {len(flat)} elements, but shape {_shape(shape)} "
            f"holds {count}; make them agree"
        )
    dtype = numpy_dtype(DTYPES[datatype])
    kind = _element_kind(dtype)
    _check_elements(name, datatype, kind, flat)
    if kind == "integer":
        array = _integers(name, datatype, dtype, flat)
    elif kind == "float":
        array = _floats(name, datatype, dtype, flat)
    else:
        array = np.array(flat, dtype=dtype)
    return array.reshape(tuple(shape))


def from_bytes(name: str, datatype: str, shape: Sequence[int], raw: memoryview) -> Array:
    """An array over little-endian, row-major bytes: a view, except for BYTES and odd booleans."""
    count = element_count(name, datatype, shape)
    if datatype == "BYTES":
        return _strings(name, count, raw).reshape(tuple(shape))
    dtype = numpy_dtype(DTYPES[datatype])
    if count * dtype.itemsize != len(raw):
        raise InvalidInput(
            f"input {quote(name)}: a {datatype} tensor of shape {_shape(shape)} takes "
            f"{count * dtype.itemsize} bytes, binary_data_size is {len(raw)}; make them agree"
        )
    if count == 0:
        return np.empty(tuple(shape), dtype)
    if datatype == "BOOL":
        octets = np.frombuffer(raw, np.uint8)
        # Any other byte in a bool array would make two unequal truths of it.
        flat: Array = octets.view(np.bool_) if octets.max() <= 1 else octets != 0
    else:
        flat = np.frombuffer(raw, dtype)
    return flat.reshape(tuple(shape))


def result_datatype(name: str, value: object) -> str:
    """The protocol's datatype of a result; raises for what it cannot carry."""
    if not isinstance(value, np.ndarray):
        raise InvalidInput(
            f"output {quote(name)} is not a tensor, which the protocol cannot carry; "
            "name the outputs that you want"
        )
    try:
        return _DATATYPES[dtype_name(value.dtype)]
    except KeyError:
        raise InvalidInput(
            f"output {quote(name)} has the type {value.dtype}, which the protocol cannot carry; "
            "name the outputs that you want, or cast it in the model"
        ) from None


def to_json(name: str, array: Array) -> Any:
    """The elements in row-major order, for msgspec to encode.

    NaN and the infinities are written as the bare words `NaN`, `Infinity` and `-Infinity`. Strict
    JSON has no such numbers; Triton writes these, and Python's and Triton's clients read them.
    """
    flat = array.reshape(-1)
    if dtype_name(array.dtype) == "string":
        return [_text(name, element) for element in flat.tolist()]
    if _element_kind(array.dtype) == "float":
        elements = flat.astype(np.float64).tolist()
        if not np.isfinite(flat).all():
            return msgspec.Raw(json.dumps(elements).encode())
        return elements
    return flat.tolist()


def to_bytes(array: Array) -> memoryview | bytes:
    """The elements as little-endian, row-major bytes; a view where the array is laid out so."""
    if dtype_name(array.dtype) == "string":
        texts = [_octets(element) for element in array.reshape(-1).tolist()]
        return b"".join(chain.from_iterable((struct.pack("<I", len(t)), t) for t in texts))
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _flatten(name: str, shape: Sequence[int], data: list[Any]) -> list[Any]:
    if not data or type(data[0]) is not list:
        return data
    flat, nested = data, len(data) == shape[0] if shape else False
    for dim in shape[1:]:
        nested = nested and set(map(type, flat)) <= {list} and set(map(len, flat)) <= {dim}
        if not nested:
            break
        flat = list(chain.from_iterable(flat))
    if not nested or (flat and type(flat[0]) is list):
        raise InvalidInput(
            f"input {quote(name)}: the arrays nested in data do not have the shape "
            f"{_shape(shape)}; nest them as the shape says, or send a flat array"
        )
    return flat


def _check_elements(name: str, datatype: str, kind: str, flat: list[Any]) -> None:
    allowed, wanted = _ELEMENTS[kind]
    if not set(map(type, flat)) <= allowed:
        index = next(i for i, element in enumerate(flat) if type(element) not in allowed)
        raise InvalidInput(
            f"input {quote(name)}: element {index} of data is {_json_name(flat[index])}, "
            f"but {datatype} takes {wanted}"
        )


def _integers(name: str, datatype: str, dtype: np.dtype[Any], flat: list[int]) -> Array:
    info = np.iinfo(dtype)
    for extreme in (min(flat), max(flat)) if flat else ():
        if not info.min <= extreme <= info.max:
            raise InvalidInput(
                f"input {quote(name)}: {_number(extreme)} does not fit {datatype}, which goes from "
                f"{info.min} to {info.max}"
            )
    return np.array(flat, dtype=dtype)


def _floats(name: str, datatype: str, dtype: np.dtype[Any], flat: list[float]) -> Array:
    try:
        wide = np.array(flat, dtype=np.float64)
    except OverflowError:
        raise InvalidInput(
            f"input {quote(name)}: data has a number that does not fit {datatype}; scale the data"
        ) from None
    with np.errstate(over="ignore"):
        array = wide.astype(dtype)
    overflown = np.isfinite(wide) & ~np.isfinite(array)
    if overflown.any():
        raise InvalidInput(
            f"input {quote(name)}: {wide[overflown][0]} does not fit {datatype}; scale the data"
        )
    return array


def _strings(name: str, count: int, raw: memoryview) -> Array:
    """BYTES elements, each a little-endian 4-byte length and that many bytes of UTF-8."""
    texts: list[str] = []
    offset = 0
    while offset < len(raw) and len(texts) <= count:
        start = offset + 4
        end = start + struct.unpack_from("<I", raw, offset)[0] if start <= len(raw) else start
        if end > len(raw):
            raise InvalidInput(
                f"input {quote(name)}: element {len(texts)} of the BYTES data runs past its end; "
                "send each element as a 4-byte little-endian length and its bytes"
            )
        try:
            texts.append(str(raw[start:end], "utf-8"))
        except UnicodeDecodeError:
            raise InvalidInput(
                f"input {quote(name)}: element {len(texts)} of the BYTES data is not UTF-8, "
                "as ONNX strings are; encode it (base64, say) or send it as UINT8"
            ) from None
        offset = end
    if len(texts) != count:
        found = f"more than {count}" if len(texts) > count else str(len(texts))
        raise InvalidInput(
            f"input {quote(name)}: the BYTES data has {found} elements, its shape holds {count}; "
            "make them agree"
        )
    return np.array(texts, dtype=object)


def _text(name: str, element: object) -> str:
    if not isinstance(element, bytes):
        return str(element)
    try:
        return element.decode()
    except UnicodeDecodeError:
        raise InvalidInput(
            f"output {quote(name)} holds bytes that are not UTF-8; ask for it with binary_data true"
        ) from None


def _octets(element: object) -> bytes:
    return element if isinstance(element, bytes) else str(element).encode()


def _element_kind(dtype: np.dtype[Any]) -> str:
    # bfloat16 is no numpy type of its own and says "V" (void).
    return {"b": "bool", "i": "integer", "u": "integer", "O": "string"}.get(dtype.kind, "float")


def _json_name(value: object) -> str:
    return _JSON_NAMES.get(type(value), "missing")


def _number(value: int) -> str:
    return str(value) if value.bit_length() <= 128 else f"an integer of {value.bit_length()} bits"


def _shape(shape: Sequence[int]) -> str:
    return "[" + ",".join(map(_number, shape)) + "]"

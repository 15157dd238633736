"""Attributes, types and tensors, to and from ONNX's protobuf messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import onnx
import onnx.helper
import onnx.numpy_helper

from whitebox.errors import InvalidModel
from whitebox.ir.graph import Tensor
from whitebox.ir.types import (
    ONNX_DTYPES,
    Dim,
    MapType,
    OptionalType,
    SequenceType,
    TensorType,
    Type,
)

Kind: TypeAlias = str  # "INT", "FLOATS", "GRAPH", …: an attribute's type as ONNX names it


def kind_of(attribute: onnx.AttributeProto) -> Kind:
    """The name of an attribute's type."""
    try:
        return str(onnx.AttributeProto.AttributeType.Name(attribute.type))
    except ValueError:
        raise InvalidModel(f"attribute {attribute.name!r} has no known type") from None


def plain_attribute(attribute: onnx.AttributeProto) -> Any:
    """An attribute's value in plain Python. Graphs are the business of `onnx_io`."""
    kind = kind_of(attribute)
    match kind:
        case "FLOAT" | "INT":
            return attribute.f if kind == "FLOAT" else attribute.i
        case "STRING":
            return _text(attribute.s)
        case "TENSOR":
            return Tensor.of(onnx.numpy_helper.to_array(attribute.t))
        case "TYPE_PROTO":
            return type_of_proto(attribute.tp)
        case "FLOATS":
            return tuple(attribute.floats)
        case "INTS":
            return tuple(attribute.ints)
        case "STRINGS":
            return tuple(map(_text, attribute.strings))
        case "TENSORS":
            return tuple(Tensor.of(onnx.numpy_helper.to_array(t)) for t in attribute.tensors)
        case "TYPE_PROTOS":
            return tuple(map(type_of_proto, attribute.type_protos))
    raise InvalidModel(f"attribute {attribute.name!r} is a {kind}, which has no plain value")


def text(value: str | bytes) -> str:
    """A string field. protobuf hands out bytes where a damaged file holds no UTF-8."""
    return value if isinstance(value, str) else value.decode(errors="replace")


def _text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def proto_of_attribute(name: str, value: Any, kind: Kind) -> onnx.AttributeProto:
    """An attribute as protobuf; `kind` decides where the value alone would not (empty lists)."""
    if isinstance(value, Tensor):
        value = onnx.numpy_helper.from_array(value.array)
    elif isinstance(value, (TensorType, SequenceType, OptionalType, MapType)):
        value = proto_of_type(value)
    elif isinstance(value, tuple) and value and isinstance(value[0], Tensor):
        value = [onnx.numpy_helper.from_array(tensor.array) for tensor in value]
    return onnx.helper.make_attribute(name, value, attr_type=getattr(onnx.AttributeProto, kind))


def type_of_proto(proto: onnx.TypeProto) -> Type:
    """A type, its free dimensions as symbols."""
    match proto.WhichOneof("value"):
        case "tensor_type" | "sparse_tensor_type" as which:
            tensor = getattr(proto, which)
            shape = None
            if tensor.HasField("shape"):
                shape = tuple(_dim_of_proto(dim) for dim in tensor.shape.dim)
            return TensorType(dtype_of_number(tensor.elem_type), shape)
        case "sequence_type":
            return SequenceType(type_of_proto(proto.sequence_type.elem_type))
        case "optional_type":
            return OptionalType(type_of_proto(proto.optional_type.elem_type))
        case "map_type":
            key = dtype_of_number(proto.map_type.key_type)
            return MapType(key, type_of_proto(proto.map_type.value_type))
        case which:
            raise InvalidModel(f"a value of kind {which or 'unknown'} is not supported")


def dtype_of_number(number: int) -> str:
    """The dtype with this number in ONNX."""
    if not 0 < number < len(ONNX_DTYPES):
        raise InvalidModel(f"{number} is not the number of an ONNX dtype")
    return ONNX_DTYPES[number]


def _dim_of_proto(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value"):
        # Some exporters write -1 for a free dimension.
        return dim.dim_value if dim.dim_value >= 0 else None
    name = text(dim.dim_param)
    # Some exporters write "?" for every free dimension, equal or not.
    return None if name in ("", "?") else name


def proto_of_type(type: Type) -> onnx.TypeProto:
    """A type as protobuf."""
    match type:
        case TensorType(dtype, shape):
            return onnx.helper.make_tensor_type_proto(ONNX_DTYPES.index(dtype), shape)
        case SequenceType(element):
            return onnx.helper.make_sequence_type_proto(proto_of_type(element))
        case OptionalType(element):
            return onnx.helper.make_optional_type_proto(proto_of_type(element))
        case MapType(key, value):
            return onnx.helper.make_map_type_proto(ONNX_DTYPES.index(key), proto_of_type(value))


def proto_of_call(
    op: str,
    attrs: Mapping[str, Any],
    kinds: Mapping[str, Kind],
    inputs: Sequence[str],
    n_outputs: int,
) -> onnx.NodeProto:
    """One application of an operator; attributes that `kinds` does not know are our own."""
    domain, _, name = op.rpartition(".")
    proto = onnx.NodeProto(op_type=name, domain=domain, input=inputs)
    proto.output.extend(f"y{index}" for index in range(n_outputs))
    for key, value in attrs.items():
        if key in kinds:
            proto.attribute.append(proto_of_attribute(key, value, kinds[key]))
    return proto

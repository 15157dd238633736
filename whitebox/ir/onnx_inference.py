"""Type inference by ONNX itself, for the operators that `shapes` has no rule for.

Enter: a `Call`. Leave: types. Slow (everything goes through protobuf), so results are memoised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import onnx
import onnx.defs
import onnx.helper
import onnx.numpy_helper
import onnx.shape_inference
from onnx.defs import OpSchema

from whitebox.errors import UnsupportedOperator
from whitebox.ir import onnx_schema
from whitebox.ir.graph import Node, Tensor
from whitebox.ir.onnx_proto import proto_of_call, proto_of_type, type_of_proto
from whitebox.ir.shapes.rule import Call, Misfit
from whitebox.ir.types import TensorType, Type

# Constants up to this many elements are shown to the inference.
_SHOWN_ELEMENTS = 4096


def infer(call: Call) -> tuple[Type, ...]:
    """The result types as ONNX's own inference gives them; memoised."""
    given = tuple(None if node is None else (node.types[0], _shown(node)) for node in call.inputs)
    return _infer(call.op, call.version, given, tuple(call.attrs.items()), call.n_outputs)


def _shown(node: Node) -> Tensor | None:
    if not node.is_constant:
        return None
    tensor: Tensor = node.attrs["value"]  # type: ignore[assignment]
    small = tensor.type.size <= _SHOWN_ELEMENTS and tensor.type.dtype != "string"
    return tensor if small else None


@lru_cache(maxsize=4096)
def _infer(
    op: str,
    version: int,
    given: tuple[tuple[Type, Tensor | None] | None, ...],
    attrs: tuple[tuple[str, Any], ...],
    n_outputs: int,
) -> tuple[Type, ...]:
    schema, described = onnx_schema.schema(op, version), onnx_schema.form(op, version)
    if schema is None or described is None:
        raise UnsupportedOperator(f"operator {op} is not known in opset {version}")
    names = ["" if item is None else f"x{index}" for index, item in enumerate(given)]
    types = {f"x{i}": proto_of_type(item[0]) for i, item in enumerate(given) if item is not None}
    values = {
        f"x{i}": onnx.numpy_helper.from_array(item[1].array)
        for i, item in enumerate(given)
        if item is not None and item[1] is not None
    }
    opsets = [onnx.helper.make_opsetid(schema.domain, version)]
    if schema.domain:
        opsets.append(onnx.helper.make_opsetid("", onnx.defs.onnx_opset_version()))
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema,
            proto_of_call(op, dict(attrs), described.kinds, names, n_outputs),
            types,
            values,
            opset_imports=opsets,
        )
    except Exception as error:
        # Whatever onnx's C++ code throws, it is the operator's use that it could not make sense of.
        raise Misfit(_reason(error)) from error
    bound = _bound_types(schema, given)
    return tuple(
        type_of_proto(found[f"y{i}"])
        if f"y{i}" in found and found[f"y{i}"].WhichOneof("value")
        else _declared_result(schema, i, bound)
        for i in range(n_outputs)
    )


def _reason(error: Exception) -> str:
    """The last words of onnx's message, which is what it found."""
    text = " ".join(str(error).split())
    return text.rsplit("] ", 1)[-1] or text


def _bound_types(
    schema: OpSchema, given: Sequence[tuple[Type, Tensor | None] | None]
) -> dict[str, Type]:
    """Type variable → the type of an input that it names."""
    bound: dict[str, Type] = {}
    formal = list(schema.inputs)
    for index, item in enumerate(given):
        if item is not None and formal:
            bound.setdefault(formal[min(index, len(formal) - 1)].type_str, item[0])
    return bound


def _declared_result(schema: OpSchema, index: int, bound: Mapping[str, Type]) -> Type:
    """What the schema alone says about a result: its dtype, with nothing known of the shape."""
    formal = schema.outputs[min(index, len(schema.outputs) - 1)]
    type = bound.get(formal.type_str)
    if isinstance(type, TensorType):
        return TensorType(type.dtype, None)
    if type is not None:
        return type
    allowed = sorted(formal.types)
    for name in ("tensor(float)", *allowed):
        if name in allowed and name.startswith("tensor("):
            spelled = {"float": "float32", "double": "float64"}.get(name[7:-1], name[7:-1])
            return TensorType(spelled, None)
    raise Misfit(f"the type of result {index} cannot be told")

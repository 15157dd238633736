"""What ONNX says about operators: their forms, defaults, types and meaning.

Enter: operator names, nodes, numpy arrays. Leave: plain descriptions (`Form`), types, arrays.
Besides `onnx_io` this is the only module that touches protobuf; none of it shows outside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnx
import onnx.defs
import onnx.helper
import onnx.numpy_helper
import onnx.shape_inference
from onnx.defs import OpSchema

from whitebox.errors import InvalidModel, UnsupportedOperator
from whitebox.ir.graph import CONSTANT, OUTPUT, Graph, Model, Node, Tensor, topological
from whitebox.ir.onnx_proto import (
    Kind,
    plain_attribute,
    proto_of_attribute,
    proto_of_type,
    type_of_proto,
)
from whitebox.ir.reference import CONTROL, SEMANTICS
from whitebox.ir.shapes.rule import Call, Misfit
from whitebox.ir.types import OptionalType, SequenceType, TensorType, Type, numpy_dtype

# Constants up to this many elements are shown to the general type inference.
_SHOWN_ELEMENTS = 4096


@dataclass(frozen=True)
class Form:
    """One version of an operator, as ONNX defines it."""

    domain: str
    name: str
    since: int
    deprecated: bool
    min_inputs: int
    max_inputs: int
    max_outputs: int
    kinds: Mapping[str, Kind]
    required: frozenset[str]
    defaults: Mapping[str, Any]
    composite: bool  # whether ONNX defines it by a function of other operators


def split_op(op: str) -> tuple[str, str]:
    """"ai.onnx.ml.Scaler" → ("ai.onnx.ml", "Scaler"); the default domain is ""."""
    domain, _, name = op.rpartition(".")
    return domain, name


def join_op(domain: str, name: str) -> str:
    """The inverse of `split_op`; "ai.onnx" is another spelling of the default domain."""
    return name if domain in ("", "ai.onnx") else f"{domain}.{name}"


@cache
def _schema(op: str, version: int) -> OpSchema | None:
    """The schema in force in opset `version`; of the newest, non-deprecated form when 0."""
    domain, name = split_op(op)
    if version:
        try:
            return onnx.defs.get_schema(name, version, domain)
        except onnx.defs.SchemaError:
            return None
    return _newest_schemas().get(op)


@cache
def _newest_schemas() -> dict[str, OpSchema]:
    newest: dict[str, OpSchema] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        op = join_op(schema.domain, schema.name)
        known = newest.get(op)
        # A deprecated form only counts where there is no other.
        rank = (not schema.deprecated, schema.since_version)
        if known is None or rank > (not known.deprecated, known.since_version):
            newest[op] = schema
    return newest


@cache
def form(op: str, version: int = 0) -> Form | None:
    """The form of an operator in opset `version` (default: its newest); None when there is none."""
    schema = _schema(op, version)
    if schema is None:
        return None
    attributes = schema.attributes
    return Form(
        schema.domain,
        schema.name,
        schema.since_version,
        schema.deprecated,
        schema.min_input,
        schema.max_input,
        schema.max_output,
        {name: attribute.type.name for name, attribute in attributes.items()},
        frozenset(name for name, attribute in attributes.items() if attribute.required),
        {
            name: plain_attribute(attribute.default_value)
            for name, attribute in attributes.items()
            if attribute.default_value.name
        },
        schema.has_function or schema.has_context_dependent_function,
    )


def known(domain: str, name: str, opset: int) -> bool:
    """Whether ONNX defines this operator in this opset and still supports it."""
    found = form(join_op(domain, name), opset)
    return found is not None and not found.deprecated


@cache
def newest_opset(domain: str) -> int | None:
    """The newest opset of a domain that the installed onnx knows; None for an unknown domain."""
    spelled = "" if domain == "ai.onnx" else domain
    if spelled == "":
        return onnx.defs.onnx_opset_version()
    versions = [s.since_version for s in _newest_schemas().values() if s.domain == spelled]
    return max(versions, default=None)


def proto_of_call(call: Call, names: Sequence[str]) -> onnx.NodeProto:
    """One operator application as protobuf, graphs left out."""
    domain, name = split_op(call.op)
    described = form(call.op, call.version)
    proto = onnx.NodeProto(op_type=name, domain=domain, input=names)
    proto.output.extend(f"y{index}" for index in range(call.n_outputs))
    for key, value in call.attrs.items():
        kind = described.kinds.get(key) if described is not None else None
        if described is None or kind is not None:
            proto.attribute.append(proto_of_attribute(key, value, kind))
    return proto


# Type inference by ONNX itself.


def infer(call: Call) -> tuple[Type, ...]:
    """The result types as ONNX's own inference gives them; memoised."""
    given = tuple(
        None if node is None else (node.types[0], _shown(node)) for node in call.inputs
    )
    return _infer(call.op, call.version, given, tuple(call.attrs.items()), call.n_outputs)


def _shown(node: Node) -> Tensor | None:
    if not node.is_constant:
        return None
    tensor: Tensor = node.attrs["value"]  # type: ignore[assignment]
    small = tensor.type.size <= _SHOWN_ELEMENTS and tensor.type.dtype != "string"
    return tensor if small else None


@cache
def _infer(
    op: str,
    version: int,
    given: tuple[tuple[Type, Tensor | None] | None, ...],
    attrs: tuple[tuple[str, Any], ...],
    n_outputs: int,
) -> tuple[Type, ...]:
    schema = _schema(op, version)
    if schema is None:
        raise UnsupportedOperator(f"operator {op} is not known in opset {version}")
    call = Call(op, version, (), dict(attrs), n_outputs)
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
            schema, proto_of_call(call, names), types, values, opset_imports=opsets
        )
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
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


# Evaluation.


def evaluate(node: Node, arrays: Sequence[Any]) -> list[Any]:
    """The results of a node on numpy arrays (None: absent; lists: sequences)."""
    if node.op in CONTROL:
        return CONTROL[node.op](node, arrays, _run_body)
    since, function = SEMANTICS.get(node.op, (0, None))
    found = NotImplemented
    if function is not None and (node.version >= since or not node.version):
        found = function(node, arrays)
    if found is NotImplemented:
        return _by_reference(node, arrays)
    return found if isinstance(found, list) else [_declared(found, node.types[0])]


def _declared(value: Any, type: Type) -> np.ndarray:
    """A result as an array (numpy makes scalars of results without axes) of its dtype."""
    assert isinstance(type, TensorType)
    return np.asarray(value, numpy_dtype(type.dtype))


def evaluate_graph(
    graph: Graph, feeds: Mapping[str, Any] | Sequence[Any], model: str | None = None
) -> dict[str, Any]:
    """The outputs of a model, by name, computed node by node with `evaluate`.

    Feeds go by input name, or in the order of the inputs.
    """
    signature = graph.model if model is None else graph.models[model]
    names = [name for name, _ in signature.inputs]
    values = [feeds[name] for name in names] if isinstance(feeds, Mapping) else list(feeds)
    results = _run(signature, values)
    return dict(zip([name for name, _ in signature.outputs], results, strict=True))


def _run(model: Model, values: list[Any]) -> list[Any]:
    results: dict[Node, list[Any]] = {
        source: [value] for (_, source), value in zip(model.inputs, values, strict=True)
    }
    roots = [root for _, root in model.outputs]
    order = topological(roots)
    uses = Counter(source for node in order for source in node.inputs)
    uses.update(roots)
    for node in order:
        if node not in results:
            given = [None if source is None else results[source] for source in node.inputs]
            results[node] = _results(node, given)
        for source in node.inputs:
            uses[source] -= 1
            if source is not None and not uses[source]:
                # Nothing reads it any more; whole networks would not fit in memory otherwise.
                results[source] = []
    return [results[root][0] for root in roots]


def _results(node: Node, given: Sequence[list[Any] | None]) -> list[Any]:
    if node.op == CONSTANT:
        return [node.value]
    if node.op == OUTPUT:
        return [given[0][node.attrs["index"]]]  # type: ignore[index]
    return evaluate(node, [None if source is None else source[0] for source in given])


def _run_body(body: Graph, values: list[Any]) -> list[Any]:
    return _run(body.model, values)


_evaluators: WeakKeyDictionary[Node, Any] = WeakKeyDictionary()


def _by_reference(node: Node, arrays: Sequence[Any]) -> list[Any]:
    """Through onnx's own implementation of the operator."""
    evaluator = _evaluators.get(node)
    if evaluator is None:
        evaluator = _evaluators[node] = _reference_evaluator(node)
    feeds = {f"x{index}": value for index, value in enumerate(arrays) if value is not None}
    with np.errstate(all="ignore"):
        return list(evaluator.run(None, feeds))


def _reference_evaluator(node: Node) -> Any:
    from onnx.reference import ReferenceEvaluator

    described = form(node.op, node.version)
    if described is None:
        raise UnsupportedOperator(f"operator {node.op} has no implementation on the host")
    names = ["" if source is None else f"x{index}" for index, source in enumerate(node.inputs)]
    call = Call(node.op, node.version, node.inputs, node.attrs, len(node.types))
    inputs = [
        onnx.helper.make_value_info(name, proto_of_type(source.types[0]))
        for name, source in zip(names, node.inputs, strict=True)
        if source is not None
    ]
    outputs = [
        onnx.helper.make_value_info(f"y{index}", proto_of_type(type))
        for index, type in enumerate(node.types)
    ]
    graph = onnx.helper.make_graph([proto_of_call(call, names)], "node", inputs, outputs)
    opsets = [onnx.helper.make_opsetid(described.domain, node.version)]
    if described.domain:
        opsets.append(onnx.helper.make_opsetid("", onnx.defs.onnx_opset_version()))
    return ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets))

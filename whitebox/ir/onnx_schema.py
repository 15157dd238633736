"""What ONNX says about operators: their forms, their defaults and what they mean.

Enter: operator names, nodes, numpy arrays. Leave: plain descriptions (`Form`) and arrays. protobuf
stays inside: only modules named onnx_* see it.
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
from onnx.defs import OpSchema

from whitebox.errors import UnsupportedOperator
from whitebox.ir.graph import CONSTANT, OUTPUT, Graph, Model, Node, topological
from whitebox.ir.onnx_proto import Kind, plain_attribute, proto_of_call, proto_of_type
from whitebox.ir.reference import CONTROL, SEMANTICS
from whitebox.ir.types import TensorType, Type, numpy_dtype


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


def split_op(op: str) -> tuple[str, str]:
    """The domain ("" is ONNX's own) and the name: ai.onnx.ml.Scaler → ai.onnx.ml, Scaler."""
    domain, _, name = op.rpartition(".")
    return domain, name


def join_op(domain: str, name: str) -> str:
    """The inverse of `split_op`; "ai.onnx" is another spelling of the default domain."""
    return name if domain in ("", "ai.onnx") else f"{domain}.{name}"


@cache
def schema(op: str, version: int) -> OpSchema | None:
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
    for each in onnx.defs.get_all_schemas_with_history():
        op = join_op(each.domain, each.name)
        best = newest.get(op)
        # A deprecated form only counts where there is no other.
        rank = (not each.deprecated, each.since_version)
        if best is None or rank > (not best.deprecated, best.since_version):
            newest[op] = each
    return newest


@cache
def form(op: str, version: int = 0) -> Form | None:
    """The form of an operator in opset `version` (default: its newest); None when there is none."""
    found = schema(op, version)
    if found is None:
        return None
    attributes = found.attributes
    return Form(
        domain=found.domain,
        name=found.name,
        since=found.since_version,
        deprecated=found.deprecated,
        min_inputs=found.min_input,
        max_inputs=found.max_input,
        max_outputs=found.max_output,
        kinds={name: attribute.type.name for name, attribute in attributes.items()},
        required=frozenset(name for name, attribute in attributes.items() if attribute.required),
        defaults={
            name: plain_attribute(attribute.default_value)
            for name, attribute in attributes.items()
            if attribute.default_value.name
        },
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
        return int(onnx.defs.onnx_opset_version())
    versions = [s.since_version for s in _newest_schemas().values() if s.domain == spelled]
    return max(versions, default=None)


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
    inputs = [
        onnx.helper.make_value_info(name, proto_of_type(source.types[0]))
        for name, source in zip(names, node.inputs, strict=True)
        if source is not None
    ]
    outputs = [
        onnx.helper.make_value_info(f"y{index}", proto_of_type(type))
        for index, type in enumerate(node.types)
    ]
    proto = proto_of_call(node.op, node.attrs, described.kinds, names, len(node.types))
    graph = onnx.helper.make_graph([proto], "node", inputs, outputs)
    opsets = [onnx.helper.make_opsetid(described.domain, node.version)]
    if described.domain:
        opsets.append(onnx.helper.make_opsetid("", onnx.defs.onnx_opset_version()))
    return ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets))

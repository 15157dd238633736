"""Graphs for people: printed one line a node, and read from ONNX's own text form.

    resnet(x %0 f32[N,64]) -> (y %3 f32[N,64])
      %w0 f32[64,64] = #1f3a2b4c
      %w1 i64[2] = [1, -1]
      %3 f32[N,64] = MatMul(%1, %w0)  # fc1

Numbers follow the order of computation. The body of a fused node is indented below it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx.parser

from whitebox.errors import InvalidModel
from whitebox.ir import onnx_schema
from whitebox.ir.graph import (
    CONSTANT,
    INPUT,
    OUTPUT,
    WEIGHT,
    Graph,
    Model,
    Node,
    Tensor,
    topological,
)
from whitebox.ir.onnx_import import Importer
from whitebox.ir.onnx_tensors import TensorReader

# Constants up to this many elements are printed with their values.
_SHOWN_ELEMENTS = 8


def format_graph(graph: Graph) -> str:
    """The graph as text, models first."""
    return "\n".join(_lines(graph, ""))


def _lines(graph: Graph, indent: str) -> Iterator[str]:
    declared = [node for model in graph.models.values() for _, node in model.inputs]
    nodes = topological([*declared, *graph.roots])
    labels = _labels(nodes)
    for model in graph.models.values():
        yield indent + _signature(model, labels)
    users = _models_of(graph) if len(graph.models) > 1 else {}
    for node in nodes:
        if node.op in (INPUT, OUTPUT):
            continue
        about = users.get(node) or graph.names.get(node)
        line = f"{indent}  {labels[node]} {_types(node)} = {_right_side(node, labels)}"
        yield f"{line}  # {about}" if about else line
        for name, value in node.attrs.items():
            if isinstance(value, Graph):
                yield f"{indent}    {name}:"
                yield from _lines(value, indent + "    ")


def _labels(nodes: list[Node]) -> dict[Node, str]:
    """%0, %1, … in order of computation; constants count for themselves; results are %3.1."""
    labels: dict[Node, str] = {}
    constants = computed = 0
    for node in nodes:
        if node.op in (CONSTANT, WEIGHT):
            labels[node] = f"%w{constants}"
            constants += 1
        elif node.op == OUTPUT:
            labels[node] = f"{labels[node.inputs[0]]}.{node.attr('index')}"  # type: ignore[index]
        else:
            labels[node] = f"%{computed}"
            computed += 1
    return labels


def _signature(model: Model, labels: dict[Node, str]) -> str:
    def side(values: tuple[tuple[str, Node], ...]) -> str:
        return ", ".join(f"{name} {labels[node]} {node.types[0]}" for name, node in values)

    return f"{model.name}({side(model.inputs)}) -> ({side(model.outputs)})"


def _models_of(graph: Graph) -> dict[Node, str]:
    """Node → the models that use it."""
    users: dict[Node, list[str]] = {}
    for model in graph.models.values():
        for node in topological(root for _, root in model.outputs):
            users.setdefault(node, []).append(model.name)
    return {node: ", ".join(names) for node, names in users.items()}


def _types(node: Node) -> str:
    return ", ".join(map(str, node.types))


def _right_side(node: Node, labels: dict[Node, str]) -> str:
    if node.op == CONSTANT:
        return _value(node.attrs["value"])
    inputs = ", ".join("-" if source is None else labels[source] for source in node.inputs)
    return f"{node.op}({inputs}){_attributes(node)}"


def _attributes(node: Node) -> str:
    """The attributes that are not at their default."""
    form = onnx_schema.form(node.op, node.version) if node.version else None
    defaults = form.defaults if form is not None else {}
    shown = [
        f"{name}={_value(value)}"
        for name, value in node.attrs.items()
        if not isinstance(value, Graph) and defaults.get(name) != value
    ]
    return f" {{{', '.join(shown)}}}" if shown else ""


def _value(value: Any) -> str:
    match value:
        case Tensor():
            small = value.type.size <= _SHOWN_ELEMENTS
            return _array(value.array) if small else f"#{value.digest[:8]}"
        case tuple():
            return f"[{', '.join(map(_value, value))}]"
        case float():
            return f"{value:g}"
        case str() | bytes():
            return repr(value)
        case _:
            return str(value)


def _array(array: np.ndarray) -> str:
    def item(value: Any) -> str:
        if isinstance(value, list):
            return f"[{', '.join(map(item, value))}]"
        return f"{value:.6g}" if isinstance(value, float) else repr(value)

    return item(array.tolist())


def parse_graph_text(text: str) -> Graph:
    """The graph of a model or graph in ONNX's text form; the domain "whitebox" is allowed.

    A graph without opsets is taken in the newest ones.
    """
    stripped = text.strip()
    try:
        if stripped.startswith("<"):
            model = onnx.parser.parse_model(stripped)
            proto, opsets = model.graph, {e.domain: e.version for e in model.opset_import}
            functions = model.functions
        else:
            proto, opsets, functions = onnx.parser.parse_graph(stripped), {}, []
    except onnx.parser.ParseError as error:
        raise InvalidModel(f"the text is no ONNX graph: {' '.join(str(error).split())}") from error
    newest = {domain: onnx_schema.newest_opset(domain) or 1 for domain in ("", "ai.onnx.ml")}
    importer = Importer(
        {(f.domain, f.name, f.overload): f for f in functions},
        TensorReader(None),
        lambda: "text",
        own_domain=True,
    )
    return importer.graph(proto.name or "graph", proto, {**newest, **opsets})

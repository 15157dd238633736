"""A graph as an ONNX model that other tools read, through onnx-graphsurgeon.

Enter: a Graph with one model. Leave: a ModelProto in standard operators, in an opset and IR version
that onnxruntime takes. Names of the signature are kept; all others are made up where missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx.numpy_helper
import onnx_graphsurgeon as gs

from whitebox.errors import UnsupportedOperator
from whitebox.ir import onnx_schema
from whitebox.ir.graph import CONSTANT, INPUT, OUTPUT, Graph, Model, Node, Tensor, topological
from whitebox.ir.onnx_proto import proto_of_type
from whitebox.ir.standard import standard
from whitebox.ir.types import (
    ONNX_DTYPES,
    MapType,
    OptionalType,
    SequenceType,
    TensorType,
    Type,
)

# The newest that onnxruntime reads, where the operators allow it.
_OPSET, _IR_VERSION = 26, 13


def dump(graph: Graph) -> onnx.ModelProto:
    """The only model of `graph` as an ONNX model."""
    plain = standard(graph)
    model = plain.model
    opsets = _opsets(plain)
    writer = _Writer(opsets, dict(plain.names))
    written = writer.graph(model, {})
    written.opset = opsets[""]
    written.import_domains = [onnx.helper.make_opsetid(d, v) for d, v in opsets.items()]
    exported = gs.export_onnx(written, do_type_check=False)
    exported.ir_version = _IR_VERSION if opsets[""] <= _OPSET else onnx.IR_VERSION
    exported.producer_name = "whitebox"
    # graphsurgeon knows tensors only; sequences, optionals and maps are put right here.
    for info, (_, node) in zip(exported.graph.input, model.inputs, strict=True):
        info.type.CopyFrom(proto_of_type(node.types[0]))
    for info, (_, node) in zip(exported.graph.output, model.outputs, strict=True):
        info.type.CopyFrom(proto_of_type(node.types[0]))
    for key, value in model.metadata.items():
        exported.metadata_props.add(key=key, value=value)
    return exported


def _opsets(graph: Graph) -> dict[str, int]:
    """Domain → the newest opset in which every operator means what its node means."""
    used: dict[str, list[Node]] = {"": []}
    for node in _all_nodes(graph):
        if node.op not in (CONSTANT, INPUT, OUTPUT):
            used.setdefault(onnx_schema.split_op(node.op)[0], []).append(node)
    return {domain: _opset(domain, nodes) for domain, nodes in used.items()}


def _all_nodes(graph: Graph) -> list[Node]:
    """The nodes of a graph and of the bodies in it."""
    nodes = list(graph.nodes)
    for node in graph.nodes:
        for value in node.attrs.values():
            if isinstance(value, Graph):
                nodes += _all_nodes(value)
    return nodes


def _opset(domain: str, nodes: list[Node]) -> int:
    newest = onnx_schema.newest_opset(domain) or 1
    preferred = range(min(newest, _OPSET if domain == "" else newest), 0, -1)
    candidates: list[int] = [*preferred, *range(_OPSET + 1, newest + 1)]
    for opset in candidates:
        if all(_means_the_same(node, opset) for node in nodes):
            return opset
    raise UnsupportedOperator(
        f"no opset of domain {domain or 'ai.onnx'!r} has all of "
        f"{', '.join(sorted({node.op for node in nodes}))} in the forms that the model uses"
    )


def _means_the_same(node: Node, opset: int) -> bool:
    """Whether the operator, written in an opset, means what the node means.

    A node in the newest form was brought there because the forms between only take more types, or
    attributes that change nothing at their defaults.
    """
    form, newest = onnx_schema.form(node.op, opset), onnx_schema.form(node.op)
    if form is None or newest is None or form.deprecated:
        return False
    if form.since != node.version and (node.version != newest.since or opset < _OPSET):
        return False
    return all(
        name in form.kinds or name not in newest.kinds or newest.defaults.get(name) == value
        for name, value in node.attrs.items()
    )


@dataclass
class _Writer:
    """Makes graphsurgeon tensors for nodes, each under a name of its own."""

    opsets: Mapping[str, int]
    names: dict[Node, str]
    taken: set[str] = field(default_factory=set)

    def graph(self, model: Model, outside: Mapping[Node, gs.Tensor]) -> gs.Graph:
        """A graph, or a body whose captured inputs are tensors `outside`."""
        tensors: dict[Node, list[gs.Tensor]] = {n: [t] for n, t in outside.items()}
        self.taken.update(name for name, _ in model.outputs)
        inputs = []
        for name, node in model.inputs:
            if node not in tensors:
                tensors[node] = [_variable(self._fresh(name), node.types[0])]
                inputs.append(tensors[node][0])
        outputs = [_variable(name, node.types[0]) for name, node in model.outputs]
        # A result that is computed here can bear the output's name; others need a copy.
        direct: dict[Node, gs.Tensor] = {}
        for (_, node), tensor in zip(model.outputs, outputs, strict=True):
            if node.op not in (CONSTANT, INPUT):
                direct.setdefault(node, tensor)
        nodes: list[gs.Node] = []
        for node in topological(root for _, root in model.outputs):
            self._write(node, tensors, direct, nodes)
        for (_, node), tensor in zip(model.outputs, outputs, strict=True):
            if direct.get(node) is not tensor:
                copy = gs.Node("Identity", inputs=[tensors[node][0]], outputs=[tensor])
                nodes.append(copy)
        return gs.Graph(nodes=nodes, inputs=inputs, outputs=outputs, name=model.name)

    def _write(
        self,
        node: Node,
        tensors: dict[Node, list[gs.Tensor]],
        direct: Mapping[Node, gs.Tensor],
        nodes: list[gs.Node],
    ) -> None:
        if node in tensors:
            return
        if node.op == CONSTANT:
            tensors[node] = [self._constant(node)]
            return
        if node.op == OUTPUT:
            source, index = node.inputs[0], node.attr("index")
            assert source is not None
            if node in direct:
                # The results of the source are made already: rename this one.
                nodes.append(
                    gs.Node("Identity", inputs=[tensors[source][index]], outputs=[direct[node]])
                )
                tensors[node] = [direct[node]]
            else:
                tensors[node] = [tensors[source][index]]
            return
        label = self.names.get(node, "")
        results = [_variable(self._fresh(label), type) for type in node.types]
        if node in direct:
            results[0] = direct[node]
        domain, name = onnx_schema.split_op(node.op)
        inputs = [
            gs.Variable.empty() if source is None else tensors[source][0]
            for source in _formal_inputs(node)
        ]
        attrs = self._attributes(node, tensors)
        label = label if label not in self.taken else ""
        nodes.append(gs.Node(name, label or None, attrs, inputs, results, domain or None))
        tensors[node] = results

    def _attributes(self, node: Node, tensors: Mapping[Node, list[gs.Tensor]]) -> dict[str, Any]:
        form = onnx_schema.form(node.op, self.opsets[onnx_schema.split_op(node.op)[0]])
        assert form is not None
        attrs: dict[str, Any] = {}
        for name, value in node.attrs.items():
            if name not in form.kinds or value == ():
                continue
            attrs[name] = value
            if isinstance(value, Graph):
                attrs[name] = self.graph(value.model, self._captured(node, value, tensors))
            elif isinstance(value, Tensor):
                attrs[name] = onnx.numpy_helper.from_array(value.array)
            elif isinstance(value, (TensorType, SequenceType, OptionalType, MapType)):
                attrs[name] = proto_of_type(value)
        return attrs

    def _captured(
        self, node: Node, body: Graph, tensors: Mapping[Node, list[gs.Tensor]]
    ) -> dict[Node, gs.Tensor]:
        """The body's captured inputs as what they are outside; constants anew, for the body."""
        count = node.attr("n_captured", 0)
        outer = node.inputs[len(node.inputs) - count :]
        formal = body.model.inputs[len(body.model.inputs) - count :]
        return {
            inner: self._constant(source) if source.op == CONSTANT else tensors[source][0]
            for (_, inner), source in zip(formal, outer, strict=True)
            if source is not None
        }

    def _constant(self, node: Node) -> gs.Constant:
        name = self._fresh("")
        return gs.Constant(name, gs.ir.tensor.LazyValues(onnx.numpy_helper.from_array(node.value)))

    def _fresh(self, wanted: str) -> str:
        """`wanted` where it is still free, else a name like v12."""
        name, count = wanted, len(self.taken)
        while not name or name in self.taken:
            name, count = f"v{count}", count + 1
        self.taken.add(name)
        return name


def _formal_inputs(node: Node) -> tuple[Node | None, ...]:
    return node.inputs[: len(node.inputs) - node.attr("n_captured", 0)]


def _variable(name: str, type: Type) -> gs.Variable:
    if isinstance(type, TensorType):
        return gs.Variable(name, ONNX_DTYPES.index(type.dtype), type.shape)
    return gs.Variable(name)

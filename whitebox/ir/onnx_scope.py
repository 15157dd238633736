"""What names mean while an ONNX graph is read, and the order to read its nodes in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

import onnx

from whitebox.errors import InvalidModel
from whitebox.ir.graph import Node, input_node
from whitebox.ir.onnx_proto import text


@dataclass
class Scope:
    """The names visible in one graph. A body's scope turns what it reads outside into inputs.

    `captures` maps an outside name to the body's input for it; the branches of an If share it.
    `opsets` and `attrs` are those in force: a function brings its own, its bodies inherit them.
    """

    opsets: Mapping[str, int]
    attrs: Mapping[str, onnx.AttributeProto] = field(default_factory=dict)
    parent: Scope | None = None
    captures: dict[str, Node] = field(default_factory=dict)
    n_formal: int = 0
    values: dict[str, Node | None] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        outside = self.parent is not None and name in self.parent
        return name in self.values or outside

    def find(self, name: str) -> Node | None:
        """The node that a name means here; None for an input that a function was not given."""
        if name in self.values:
            return self.values[name]
        if name in self.captures:
            return self.captures[name]
        if self.parent is None or name not in self.parent:
            raise InvalidModel(f"reads {name!r}, which nothing produces; correct the model")
        outside = self.parent.find(name)
        if outside is None or outside.is_constant:
            # A constant needs no input: the body can hold it.
            return outside
        position = self.n_formal + len(self.captures)
        self.captures[name] = input_node(position, outside.types[0])
        return self.captures[name]

    def resolved(self, attributes: Sequence[onnx.AttributeProto]) -> Iterator[onnx.AttributeProto]:
        """Attributes with references to the enclosing function's attributes replaced."""
        for attribute in attributes:
            if not attribute.ref_attr_name:
                yield attribute
            elif attribute.ref_attr_name in self.attrs:
                replaced = onnx.AttributeProto()
                replaced.CopyFrom(self.attrs[attribute.ref_attr_name])
                replaced.name = attribute.name
                yield replaced

    def define(self, name: str, node: Node | None) -> None:
        """Give a value its name, which must be new in this graph."""
        if name in self.values:
            raise InvalidModel(f"the name {name!r} is defined twice; correct the model")
        self.values[name] = node


def label(proto: onnx.NodeProto) -> str:
    """A node as messages name it: its name (or its first result's) and its operator."""
    name, operator = text(proto.name or next(iter(proto.output), "")), text(proto.op_type)
    return (
        f"{name!r} ({text(proto.domain)}.{operator})" if proto.domain else f"{name!r} ({operator})"
    )


def in_order(nodes: Sequence[onnx.NodeProto], scope: Scope) -> Sequence[onnx.NodeProto]:
    """The nodes so that each follows those it reads, as ONNX demands and not every file does."""
    producer = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needs = [
        {producer[name] for name in _reads(node) if name in producer and name not in scope.values}
        for node in nodes
    ]
    if all(max(need, default=-1) < index for index, need in enumerate(needs)):
        return nodes
    try:
        order = TopologicalSorter(dict(enumerate(needs))).static_order()
        return [nodes[index] for index in order]
    except CycleError as error:
        around = " → ".join(label(nodes[index]) for index in error.args[1][:8])
        raise InvalidModel(f"the graph has a cycle: {around}; correct the model") from error


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """The names that a node reads, those in its bodies included."""
    yield from node.input
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            for inner in attribute.g.node:
                yield from _reads(inner)
            yield from (info.name for info in attribute.g.output)

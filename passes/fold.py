"""fold: evaluate what is known before the first request.

Small constant expressions become constants, so that shape arithmetic disappears. Large ones (the
folding of a BatchNorm into a convolution's weights, the packing of weights) stay expressions over
the original weights: they are evaluated once when a model is loaded, stored under the
expression's digest, and shared by every model with the same weights.
"""

from __future__ import annotations

import numpy as np

from whitebox.ir import onnx_schema, ops
from whitebox.ir.graph import CONSTANT, INPUT, OUTPUT, WEIGHT, Graph, Node, constant, input_node
from whitebox.ir.types import TensorType
from whitebox.passes.record import decide

# Up to this many bytes, a value is computed at once and kept with the graph.
SMALL_BYTES = 1 << 16

# Ops whose result depends on the operand's type only.
TYPE_ONLY = frozenset({"Shape", "Size"})


def fold(graph: Graph) -> Graph:
    """Constant → Constant: f(c₁, …, cₙ) = the value of f on these constants."""
    return graph.map(lambda node, inputs: fold_node(ops.rebuild(node, inputs)))


def specialize(graph: Graph, shapes: dict[str, tuple[int, ...]]) -> Graph:
    """The graph of one model for concrete input shapes, by input name.

    Types are inferred anew and constants folded on the way, since a folded shape is what makes
    the next type exact. Raises InvalidModel when the shapes do not fit the model.
    """
    static: dict[Node, Node] = {}
    for name, node in graph.model.inputs:
        if name in shapes and isinstance(node.type, TensorType):
            typed = TensorType(node.type.dtype, tuple(shapes[name]))
            static[node] = input_node(node.attr("position"), typed)

    def build(node: Node, inputs: tuple[Node | None, ...]) -> Node:
        if node.op == INPUT:
            return static.get(node, node)
        return fold_node(ops.rebuild(node, inputs))

    return graph.map(build)


def fold_node(node: Node) -> Node:
    """The constant that `node` always is, or `node`."""
    if node.op in (CONSTANT, INPUT, WEIGHT):
        return node
    if node.op in TYPE_ONLY:
        return _shape(node)
    if not node.is_constant_expression or not _is_small(node) or _is_quantized_weight(node):
        return node
    index = 0
    if node.op == OUTPUT:
        index, node = node.attr("index"), node.inputs[0]  # type: ignore[assignment]
    elif len(node.types) > 1:
        return node  # its Output nodes are folded instead
    if not all(source is None or source.is_constant for source in node.inputs):
        return node  # over a large expression that is not evaluated yet
    arrays = [None if source is None else source.value for source in node.inputs]
    result = constant(onnx_schema.evaluate(node, arrays)[index])
    decide("folded", node, "all its inputs are constants")
    return result


def _shape(node: Node) -> Node:
    """Shape(x: static) = a constant; the same for Size."""
    source = node.inputs[0]
    if source is None or not isinstance(source.type, TensorType) or not source.type.is_static:
        return node
    if node.op == "Size":
        return constant(np.array(source.type.size, np.int64))
    dims = source.type.dims[node.attr("start", 0) : node.attr("end")]
    return constant(np.array(dims, np.int64))


def _is_quantized_weight(node: Node) -> bool:
    """Whether `quantize` may want the integers that the node scales."""
    return node.op == "DequantizeLinear" and node.tensor.rank > 1


def _is_small(node: Node) -> bool:
    """Whether the results and all operands are small tensors."""
    types = [*node.types, *(t for source in node.inputs if source for t in source.types)]
    return all(
        isinstance(type, TensorType) and type.is_static and type.nbytes <= SMALL_BYTES
        for type in types
    )

"""Recurrent layers: the input's share of the gates becomes a matrix product of its own."""

from __future__ import annotations

import numpy as np

from whitebox.ir import ops
from whitebox.ir.graph import Node, constant
from whitebox.passes.rewrite import Rule, rule
from whitebox.passes.rules.algebra import reshape
from whitebox.passes.rules.packing import pad_to

_ACTIVATIONS = {"GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh"), "RNN": ("Tanh",)}
_GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}


def recurrent_rules(lanes: int) -> tuple[Rule, ...]:
    """The rules, for panels of `lanes` hidden units."""

    @rule("GRU", "LSTM", "RNN")
    def input_product_of_layer(node: Node) -> Node | None:
        """LSTM(X, W, R, B) = whitebox.LSTM(X · W' + B', R in panels of units);  GRU, RNN alike"""
        return _layer(node, lanes) if _is_usual(node) else None

    return (input_product_of_layer,)


def _is_usual(node: Node) -> bool:
    """Whether the layer has nothing that the kernels do not know."""
    if node.attr("clip") or node.attr("input_forget", 0) or node.attr("layout", 0):
        return False
    usual = _ACTIVATIONS[node.op] * (2 if node.attr("direction") == "bidirectional" else 1)
    # An RNN's default names two activations, whatever its directions.
    if tuple(node.attr("activations") or usual)[: len(usual)] != usual:
        return False
    given = [*node.inputs, *[None] * 8]
    if given[4] is not None or given[7] is not None:  # sequence lengths, peepholes
        return False
    known = [source.tensor for source in given if source is not None]
    return all(type.dtype == "float32" and type.is_static and type.size for type in known)


def _layer(node: Node, lanes: int) -> Node:
    x, w, r, b, _, *states = (*node.inputs, *[None] * 7)[:7]
    assert x is not None and w is not None and r is not None
    steps, batch, size = x.tensor.dims
    directions, _, hidden = r.tensor.dims
    gates, units = _GATES[node.op], -(-hidden // lanes) * lanes
    columns = directions * gates * units

    def padded(weights: Node, width: int) -> Node:
        """[directions, gates · hidden, width] with the hidden units padded, gates apart."""
        split = reshape(weights, (directions, gates, hidden, width))
        return pad_to(split, (directions, gates, units, width))

    matrix = ops.node("Transpose", padded(w, size), perm=(3, 0, 1, 2))
    product = ops.node(
        "MatMul", reshape(x, (steps * batch, size)), reshape(matrix, (size, columns))
    )
    after = node.op == "GRU" and bool(node.attr("linear_before_reset", 0))
    reset_bias = None
    if b is not None:
        bias = padded(_input_bias(b, gates, after), 1)
        product = ops.node("Add", product, reshape(bias, (columns,)))
        if after:
            last = _columns(b, b.tensor.dims[1] - hidden, b.tensor.dims[1])
            reset_bias = pad_to(last, (directions, units))
    panels = reshape(padded(r, hidden), (directions, gates, units // lanes, lanes, hidden))
    return ops.node(
        f"whitebox.{node.op}",
        reshape(product, (steps, batch, directions, gates, units)),
        ops.node("Transpose", panels, perm=(0, 2, 1, 4, 3)),
        reset_bias,
        *(None if s is None else pad_to(s, (directions, batch, units)) for s in states),
        outputs=len(node.types),
        hidden_size=hidden,
        direction=node.attr("direction", "forward"),
        linear_before_reset=int(after),
    )


def _input_bias(bias: Node, gates: int, after: bool) -> Node:
    """What is added to the input's share: both biases, but that which a reset gate multiplies."""
    directions, size = bias.tensor.dims
    rows = size // 2
    added = rows * (gates - 1) // gates if after else rows
    own, state = _columns(bias, 0, rows), _columns(bias, rows, rows + added)
    return ops.node("Add", own, pad_to(state, (directions, rows)))


def _columns(matrix: Node, start: int, stop: int) -> Node:
    bounds = (start, stop, 1, 1)
    return ops.node("Slice", matrix, *(constant(np.array([n], np.int64)) for n in bounds))

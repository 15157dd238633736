"""Recurrent layers whose input products are made: whitebox.GRU, whitebox.LSTM, whitebox.RNN.

What enters: nodes in float32, and the values of their inputs; the number of steps may be a symbol.
What leaves: the layer's results, held in arrays: the states of all steps, the last state, and the
last cell of an LSTM.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from whitebox.compiler.lower.value import Body, Index, Value, const, emitter, from_array
from whitebox.ir.graph import Node
from whitebox.ir.sizes import Extent, all_known
from whitebox.kernels.cpu import recurrent
from whitebox.kernels.cpu.affine import Opaque, expression
from whitebox.kernels.cpu.nest import Array


def _layer(node: Node, body: Body) -> recurrent.Layer:
    steps, *rest = node.tensor.extents
    directions, batch, hidden = all_known(rest)
    return recurrent.Layer(
        kind=node.op.removeprefix("whitebox."),
        steps=steps,
        batch=batch,
        hidden=hidden,
        directions=directions,
        backwards=node.attr("direction") == "reverse",
        reset_after=bool(node.attr("linear_before_reset")),
        lanes=body.target.lanes,
        threads=body.target.threads,
    )


def _initial(body: Body, array: Array, start: Value | None) -> None:
    """Fill the first of the states in `array`; zero where none is given."""
    shape = array.shape[-3:]
    zero = Value("float32", shape, lambda scope, axes: const(0, "float32"))
    body.store([(Array(shape, array.buffer), start or zero)])


def _last_state(steps: Extent) -> Index:
    """Which of the two states the last step leaves."""
    if isinstance(steps, int):
        return Index({}, steps % 2)
    turn = tirx.truncmod(expression(steps), const(2, "int32"))
    return Index.of(Opaque(turn, 0, 1, frozenset()))


@emitter("whitebox.GRU", "whitebox.LSTM", "whitebox.RNN")
def _recurrent(node: Node, args: Sequence[Value], body: Body) -> tuple[Value, ...]:
    share, weights, *rest = args
    bias, state, cell = (*rest, *[None] * 3)[:3]
    layer = _layer(node, body)
    shape = (layer.directions, layer.batch, layer.units)
    states, cells = body.array((2, *shape), "float32"), body.array(shape, "float32")
    _initial(body, states, state)
    _initial(body, cells, cell)
    result = body.array(node.tensor.extents, "float32")
    body.statements += layer.statements(
        recurrent.Buffers(
            share=body.buffer(share),
            weights=body.buffer(weights),
            bias=None if bias is None else body.buffer(bias),
            y=result.buffer,
            state=states.buffer,
            cell=cells.buffer,
            update=body.array(shape, "float32").buffer,
            reset_state=body.array(shape, "float32").buffer,
        )
    )
    last = _last_state(layer.steps)
    finals = (*shape[:-1], layer.hidden)
    return (
        from_array(result, "float32"),
        Value("float32", finals, lambda scope, axes: states(scope, (last, *axes))),
        Value("float32", finals, lambda scope, axes: cells(scope, axes)),
    )[: len(node.types)]

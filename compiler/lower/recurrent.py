"""Recurrent layers: GRU, LSTM and RNN with their standard activations.

What enters: nodes in float32 without sequence lengths, peepholes or clipping. What leaves: the
layer's results, held in arrays. The input's share of all gates, for all steps, is one product made
before the loop over time; each step adds the state's share and applies the gates, vectorised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from whitebox.compiler.lower import functions as fn
from whitebox.compiler.lower.value import (
    Axes,
    Body,
    Index,
    Scope,
    Value,
    const,
    emitter,
    from_array,
)
from whitebox.ir.graph import Node
from whitebox.kernels.cpu.affine import Loop, flatten
from whitebox.kernels.cpu.dense import Product, Rows
from whitebox.kernels.cpu.nest import Array, loop_over, new_var, sequence

_GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}

# From this many multiplications on, the input's product is shared among the threads.
_PARALLEL_PRODUCT = 1 << 19

# The same for one step: its weights are then too many for a core's own cache.
_PARALLEL_STEP = 1 << 18


class _Layer:
    """The arrays of one layer, and the statements of its steps."""

    def __init__(self, node: Node, args: Sequence[Value], body: Body) -> None:
        given = [*args, *[None] * 8]
        self.node, self.body = node, body
        self.x, self.w, self.r = (body.materialize(value) for value in args[:3])
        self.steps, self.batch, self.inputs = self.x.shape
        self.directions, rows, _ = self.w.shape
        self.hidden = rows // _GATES[node.op]
        self.gates = _GATES[node.op]
        self.bias = given[3]
        self.before = given[5], given[6]
        size = (self.steps, self.batch, rows)
        self.input_share = [body.array(size, "float32") for _ in range(self.directions)]
        self.state_share = body.array((self.batch, rows), "float32")
        self.result = body.array((self.steps, self.directions, self.batch, self.hidden), "float32")
        finals = (self.directions, self.batch, self.hidden)
        self.state, self.cell = (body.array(finals, "float32") for _ in range(2))

    def run(self) -> tuple[Value, ...]:
        """All directions; Y, Y_h and Y_c."""
        for array, start in zip((self.state, self.cell), self.before, strict=True):
            zero = Value("float32", array.shape, lambda scope, axes: const(0, "float32"))
            self.body.store([(array, start or zero)])
        for direction in range(self.directions):
            self._input_product(direction)
            self._over_time(direction)
        return tuple(from_array(array, "float32") for array in (self.result, self.state, self.cell))

    def _rows(self, value: Value | Array, *axes: Index) -> Rows:
        array = value if isinstance(value, Array) else value.element
        assert isinstance(array, Array)
        rest = len(array.shape) - len(axes)
        start = flatten((*axes, *[Index({})] * rest), array.shape)
        return Rows(array.buffer, start.expr, array.shape[-1])

    def _input_product(self, direction: int) -> None:
        rows, m = self.gates * self.hidden, self.steps * self.batch
        work = rows * m * self.inputs
        self.body.statements += Product(
            self._rows(self.input_share[direction]),
            self._rows(self.x),
            self._rows(self.w, Index({}, direction)),
            m, rows, self.inputs, self.body.target.lanes,
            parallel=self.body.target.threads > 1 and work >= _PARALLEL_PRODUCT,
        ).statements()  # fmt: skip

    def state_product(self, vector: Array, direction: int, first: int, count: int) -> list[Any]:
        """The share of `count` gates from gate `first` on that comes from a state."""
        place = Index({}, direction) if len(vector.shape) == 3 else None
        out = self._rows(self.state_share, Index({}), Index({}, first * self.hidden))
        weights = self._rows(self.r, Index({}, direction), Index({}, first * self.hidden))
        work = count * self.hidden * self.hidden * self.batch
        return Product(
            out,
            self._rows(vector, place) if place is not None else self._rows(vector),
            weights,
            self.batch, count * self.hidden, self.hidden, self.body.target.lanes,
            parallel=self.body.target.threads > 1 and work >= _PARALLEL_STEP,
        ).statements()  # fmt: skip

    def _over_time(self, direction: int) -> None:
        """The loop over steps; backwards in the second direction, or the only one when reversed."""
        var = new_var("t")
        backwards = direction == 1 or self.node.attr("direction", "forward") == "reverse"
        time = Loop(self.steps, "t", fixed=True)
        time.bind(tirx.const(self.steps - 1, "int32") - var if backwards else var)
        outside, self.body.statements = self.body.statements, []
        _STEPS[self.node.op](self, direction, Index.of(time))
        inside, self.body.statements = self.body.statements, outside
        self.body.statements.append(loop_over(var, self.steps, sequence(inside)))

    def store(self, results: Sequence[tuple[Array, Callable[[Scope, Axes], Any]]]) -> None:
        """Fill [batch, hidden] parts of arrays; serial, since a step is short."""
        from whitebox.kernels.cpu import injective

        self.body.statements += injective.store(
            results, self.body.vector_bytes, threads=1, in_place=True
        )

    def input_part(self, scope: Scope, direction: int, time: Index, axes: Axes, gate: int) -> Any:
        batch, unit = axes
        place = unit + gate * self.hidden
        share = self.input_share[direction](scope, (time, batch, place))
        return share + self.bias_part(scope, direction, unit, gate)

    def bias_part(self, scope: Scope, direction: int, unit: Index, gate: int) -> Any:
        """The bias of a gate: those of W come first (gates counted on into those of R)."""
        if self.bias is None:
            return const(0, "float32")
        return self.bias.at(scope, (Index({}, direction), unit + gate * self.hidden))

    def state_part(self, scope: Scope, direction: int, axes: Axes, gate: int) -> Any:
        batch, unit = axes
        share = self.state_share(scope, (batch, unit + gate * self.hidden))
        return share + self.bias_part(scope, direction, unit, self.gates + gate)

    def gate(self, scope: Scope, direction: int, time: Index, axes: Axes, gate: int) -> Any:
        """The argument of a gate's activation."""
        own = self.input_part(scope, direction, time, axes, gate)
        return own + self.state_part(scope, direction, axes, gate)


class _Part:
    """[batch, hidden] of a larger array, at fixed leading indices, as something to store to."""

    def __init__(self, array: Array, *lead: Index) -> None:
        self.array, self.lead = array, lead
        self.shape = array.shape[len(lead) :]

    def __call__(self, scope: Scope, axes: Axes) -> Any:
        return self.array(scope, (*self.lead, *axes))

    def store(self, scope: Scope, axes: Axes, value: Any) -> Any:
        return self.array.store(scope, (*self.lead, *axes), value)


def _kept(layer: _Layer, results: Sequence[tuple[Any, Callable[[Scope, Axes], Any]]]) -> None:
    layer.store([(part, element) for part, element in results])


def _rnn_step(layer: _Layer, d: int, time: Index) -> None:
    state = _Part(layer.state, Index({}, d))
    layer.body.statements += layer.state_product(layer.state, d, 0, 1)

    def new(scope: Scope, axes: Axes) -> Any:
        return _once(scope, (d, "h"), axes, lambda: fn.tanh(layer.gate(scope, d, time, axes, 0)))

    _kept(layer, [(state, new), (_Part(layer.result, time, Index({}, d)), new)])


def _once(scope: Scope, name: Any, axes: Axes, make: Callable[[], Any]) -> Any:
    """A value computed once in a scope, however often it is asked for."""
    key = (name, *(axis.key for axis in axes))
    known = scope.memo.get(key)
    if known is None:
        known = scope.keep(make())
        scope.remember(key, known, axes)
    return known


def _lstm_step(layer: _Layer, d: int, time: Index) -> None:
    """Gates are input, output, forget, cell."""
    state, cell = (_Part(array, Index({}, d)) for array in (layer.state, layer.cell))
    layer.body.statements += layer.state_product(layer.state, d, 0, 4)

    def gate(scope: Scope, axes: Axes, k: int) -> Any:
        activation = fn.tanh if k == 3 else fn.sigmoid
        return scope.keep(activation(scope.keep(layer.gate(scope, d, time, axes, k))))

    def new_cell(scope: Scope, axes: Axes) -> Any:
        def make() -> Any:
            kept = gate(scope, axes, 2) * cell(scope, axes)
            return kept + gate(scope, axes, 0) * gate(scope, axes, 3)

        return _once(scope, "c", axes, make)

    def new_state(scope: Scope, axes: Axes) -> Any:
        def make() -> Any:
            return gate(scope, axes, 1) * scope.keep(fn.tanh(new_cell(scope, axes)))

        return _once(scope, "h", axes, make)

    result = _Part(layer.result, time, Index({}, d))
    _kept(layer, [(cell, new_cell), (state, new_state), (result, new_state)])


def _gru_step(layer: _Layer, d: int, time: Index) -> None:
    """Gates are update, reset, hidden. The reset comes before or after the state's product."""
    state = _Part(layer.state, Index({}, d))
    after = bool(layer.node.attr("linear_before_reset", 0))
    layer.body.statements += layer.state_product(layer.state, d, 0, 3 if after else 2)

    def gate(scope: Scope, axes: Axes, k: int) -> Any:
        return scope.keep(fn.sigmoid(scope.keep(layer.gate(scope, d, time, axes, k))))

    if not after:
        reset_state = layer.body.array((layer.batch, layer.hidden), "float32")
        layer.store([(reset_state, lambda scope, axes: gate(scope, axes, 1) * state(scope, axes))])
        layer.body.statements += layer.state_product(reset_state, d, 2, 1)

    def new(scope: Scope, axes: Axes) -> Any:
        def make() -> Any:
            share = layer.state_part(scope, d, axes, 2)
            if after:
                share = gate(scope, axes, 1) * share
            hidden = scope.keep(layer.input_part(scope, d, time, axes, 2) + share)
            update = gate(scope, axes, 0)
            old = state(scope, axes)
            candidate = scope.keep(fn.tanh(hidden))
            return update * (old - candidate) + candidate

        return _once(scope, "h", axes, make)

    _kept(layer, [(state, new), (_Part(layer.result, time, Index({}, d)), new)])


_STEPS = {"GRU": _gru_step, "LSTM": _lstm_step, "RNN": _rnn_step}


@emitter("GRU", "LSTM", "RNN")
def _recurrent(node: Node, args: Sequence[Value], body: Body) -> tuple[Value, ...]:
    return _Layer(node, args, body).run()[: len(node.types)]

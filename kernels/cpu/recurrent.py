"""Recurrent layers: all steps of a GRU, LSTM or RNN whose input products are already made.

Enters: flat buffers of the input's share of all gates, the recurrent weights in panels of units,
and the states. Leaves: TIR statements that fill the results. Knows no Graph.

    for t in steps:                         one parallel launch around all of them
        for panel in directions × units:    the same panels in the same thread at every step
            for k in hidden: gates of `lanes` units += state[k] × weights     in registers
            gates → activations → new cell and state
        barrier

A thread's weights thus stay in its core's cache from step to step. Where there is a direction for
every thread, each runs one, and needs no barriers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from whitebox.ir.sizes import Extent
from whitebox.kernels.cpu import vector_math
from whitebox.kernels.cpu.affine import expression
from whitebox.kernels.cpu.nest import loop_over, new_var, sequence

GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}

# Sums that must be in flight to hide the latency of a multiply-add.
_LATENCY = 8
# Vector registers: a row of a tile takes one for each gate's sum and one for its unit of the state.
_REGISTERS = {16: 32, 8: 16, 4: 16}
# Multiply-adds of a step from which the threads share it: a barrier costs less than a microsecond.
_PARALLEL_STEP = 1 << 16


@dataclass(frozen=True)
class Buffers:
    """The flat arrays of a layer; hidden units are padded to whole vectors in all but `y`.

    `share` is [steps, batch, directions, gates, units], `weights` [directions, units / lanes,
    gates, hidden, lanes], `bias` (what a GRU that resets after the product adds to it) [directions,
    units], `y` [steps, directions, batch, hidden]. `state` holds two states [directions, batch,
    units], those before and after a step in turn; the others are [directions, batch, units].
    """

    share: Any
    weights: Any
    bias: Any | None
    y: Any
    state: Any
    cell: Any
    update: Any
    reset_state: Any


@dataclass(frozen=True)
class Layer:
    """Sizes of a layer, and which way it runs; how many steps may be known only then.

    `reset_after` says that a GRU's reset gate is applied to the product, not to the state.
    """

    kind: str
    steps: Extent
    batch: int
    hidden: int
    directions: int
    backwards: bool
    reset_after: bool
    lanes: int
    threads: int

    @property
    def panels(self) -> int:
        return -(-self.hidden // self.lanes)

    @property
    def units(self) -> int:
        """Hidden units, padded."""
        return self.panels * self.lanes

    @property
    def gates(self) -> int:
        return GATES[self.kind]

    @property
    def parallel(self) -> bool:
        work = self.directions * self.batch * self.gates * self.hidden * self.hidden
        return self.threads > 1 and work >= _PARALLEL_STEP

    def statements(self, buffers: Buffers) -> list[Any]:
        """All steps. They read the first of the two states and leave the last one."""
        if not self.parallel or self.directions < self.threads:
            steps = self._steps(buffers, None)
            return [_pragma("launch_point", steps) if self.parallel else steps]
        direction = new_var("d")
        steps = self._steps(buffers, direction)
        return [loop_over(direction, self.directions, steps, "PARALLEL")]

    def _steps(self, buffers: Buffers, direction: Any | None) -> Any:
        """The loop over time, in one direction or in all of them at once."""
        time = new_var("t")
        phases = [_Step(self, buffers, time, phase) for phase in self._phases()]
        if direction is None:
            body = [self._everywhere(phase) for phase in phases]
        else:
            body = [self._panels(phase, direction) for phase in phases]
        return loop_over(time, self.steps, sequence(body))

    def _panels(self, step: _Step, direction: Any) -> Any:
        panel = new_var("panel")
        return loop_over(panel, self.panels, step.statement(direction, panel))

    def _phases(self) -> tuple[str, ...]:
        if self.kind == "GRU" and not self.reset_after:
            return ("reset", "candidate")
        return ("whole",)

    def _everywhere(self, step: _Step) -> Any:
        """One phase of a step, over all directions and panels of units."""
        item = new_var("item")
        panels = tirx.const(self.panels, "int32")
        body = step.statement(tirx.floordiv(item, panels), tirx.floormod(item, panels))
        count = self.directions * self.panels
        if not self.parallel:
            return loop_over(item, count, body)
        return _pragma("barrier_when_finish", loop_over(item, count, body, "PARALLEL"))


def _pragma(name: str, body: Any) -> Any:
    return tirx.AttrStmt(tirx.const(0, "int32"), f"pragma_parallel_{name}", 1, body)


@dataclass(frozen=True)
class _Step:
    """One phase of step `time`, for the units of one panel."""

    layer: Layer
    buffers: Buffers
    time: Any
    phase: str

    def statement(self, direction: Any, panel: Any) -> Any:
        gates = {"reset": (0, 1), "candidate": (2,)}.get(self.phase, tuple(range(self.layer.gates)))
        most = (_REGISTERS.get(self.layer.lanes, 16) - 1) // (len(gates) + 1)
        rows = max(1, min(self.layer.batch, most))
        whole, rest = divmod(self.layer.batch, rows)
        statements = []
        if whole:
            row = new_var("row")
            tile = _Tile(self, direction, panel, row * rows, rows, gates)
            statements.append(loop_over(row, whole, tile.statement()))
        if rest:
            first = tirx.const(whole * rows, "int32")
            tile = _Tile(self, direction, panel, first, rest, gates)
            statements.append(tile.statement())
        return sequence(statements)


@dataclass(frozen=True)
class _Tile:
    """Some rows of the batch by the units of one panel."""

    step: _Step
    direction: Any
    panel: Any
    first: Any
    rows: int
    gates: tuple[int, ...]

    def statement(self) -> Any:
        """The products, in registers over all of the state, then what the gates make of them."""
        layer = self.step.layer
        chains = max(1, _LATENCY // (self.rows * len(self.gates)))
        chains = min(chains, layer.hidden)
        count = self.rows * len(self.gates)
        sums = self._local("sums", chains * count)
        zero = tirx.Broadcast(tirx.const(0, "float32"), layer.lanes)
        statements = [tirx.AllocBuffer(sums)]
        statements += [
            tirx.BufferStore(sums, zero, [self._lanes_at(i)]) for i in range(chains * count)
        ]
        at, whole = new_var("k"), layer.hidden // chains
        steps = [self._accumulate(sums, at * chains + c, c * count) for c in range(chains)]
        statements.append(loop_over(at, whole, sequence(steps)))
        for k in range(whole * chains, layer.hidden):
            statements.append(self._accumulate(sums, tirx.const(k, "int32"), 0))
        totals = self._local("totals", count)
        statements.append(tirx.AllocBuffer(totals))
        for i in range(count):
            total = tirx.BufferLoad(sums, [self._lanes_at(i)])
            for c in range(1, chains):
                total = total + tirx.BufferLoad(sums, [self._lanes_at(c * count + i)])
            statements.append(tirx.BufferStore(totals, total, [self._lanes_at(i)]))
        statements += [self._finish(totals, row) for row in range(self.rows)]
        return sequence(statements)

    def _local(self, name: str, vectors: int) -> Any:
        size = (vectors * self.step.layer.lanes,)
        return tirx.decl_buffer(size, "float32", name=name, scope="local")

    def _lanes_at(self, vector: int) -> Any:
        lanes = self.step.layer.lanes
        return tirx.Ramp(tirx.const(vector * lanes, "int32"), 1, lanes)

    def _accumulate(self, sums: Any, k: Any, first: int) -> Any:
        """Unit `k` of the state times its weights, added to the sums from `first` on."""
        layer, buffers, lanes = self.step.layer, self.step.buffers, self.step.layer.lanes
        source = buffers.reset_state if self.step.phase == "candidate" else buffers.state
        held = self.step.phase != "candidate"
        units = [
            tirx.Broadcast(tirx.BufferLoad(source, [self._place(i, parity=held) + k]), lanes)
            for i in range(self.rows)
        ]
        statements = []
        # A vector of weights is used up before the next: there are few registers beside the sums.
        for j, gate in enumerate(self.gates):
            row = (self.direction * layer.panels + self.panel) * layer.gates + gate
            start = (row * layer.hidden + k) * lanes
            weight = tirx.BufferLoad(buffers.weights, [tirx.Ramp(start, 1, lanes)])
            for i, unit in enumerate(units):
                slot = [self._lanes_at(first + i * len(self.gates) + j)]
                total = tirx.BufferLoad(sums, slot) + unit * weight
                statements.append(tirx.BufferStore(sums, total, slot))
        return sequence(statements)

    def _place(self, row: int, *, parity: bool = False, after: bool = False) -> Any:
        """Where a row of a state starts; with `parity`, in the one before or `after` this step."""
        layer = self.step.layer
        lead = self.direction
        if parity:
            turn = self.step.time + (1 if after else 0)
            lead = tirx.bitwise_and(turn, tirx.const(1, "int32")) * layer.directions + lead
        return (lead * layer.batch + self.first + row) * layer.units

    def _real_time(self) -> Any:
        """The step of the input that belongs to step `time` in this direction."""
        layer, time = self.step.layer, self.step.time
        reverse = expression(layer.steps - 1) - time
        if layer.directions == 2:
            return tirx.Select(self.direction == 1, reverse, time)
        return reverse if layer.backwards else time

    def _finish(self, totals: Any, row: int) -> Any:
        """Activations of one row's gates; the new state is stored, and copied to the result."""
        layer, buffers = self.step.layer, self.step.buffers
        lane = new_var("v")
        unit = self.panel * layer.lanes + lane
        vector = _Vector(lane, layer.lanes)
        batch = self.first + row
        start = (self._real_time() * layer.batch + batch) * layer.directions + self.direction

        def total(gate: int) -> Any:
            slot = (row * len(self.gates) + self.gates.index(gate)) * layer.lanes
            return tirx.BufferLoad(totals, [slot + lane])

        def share(gate: int) -> Any:
            place = (start * layer.gates + gate) * layer.units + unit
            return tirx.BufferLoad(buffers.share, [place])

        def held(buffer: Any, **where: bool) -> tuple[Any, list[Any]]:
            place = [self._place(row, **where) + unit]
            return tirx.BufferLoad(buffer, place), place

        old, _ = held(buffers.state, parity=True)
        _, new_place = held(buffers.state, parity=True, after=True)
        if self.step.phase == "reset":
            update = vector.keep(vector_math.sigmoid(share(0) + total(0)))
            reset = vector.keep(vector_math.sigmoid(share(1) + total(1)))
            _, place = held(buffers.update)
            vector.store(buffers.update, update, place)
            vector.store(buffers.reset_state, reset * old, place)
            return vector.statement()
        if layer.kind == "LSTM":
            cell, place = held(buffers.cell)
            i, o, f = (vector.keep(vector_math.sigmoid(share(g) + total(g))) for g in range(3))
            new = vector.keep(vector_math.tanh(share(3) + total(3)))
            cell = vector.keep(f * cell + i * new)
            vector.store(buffers.cell, cell, place)
            state = vector.keep(o * vector.keep(vector_math.tanh(cell)))
        elif layer.kind == "GRU":
            state = self._gru(vector, share, total, old, held, unit)
        else:
            state = vector.keep(vector_math.tanh(share(0) + total(0)))
        vector.store(buffers.state, state, new_place)
        return sequence([vector.statement(), self._copy_out(row)])

    def _gru(
        self,
        vector: _Vector,
        share: Callable[[int], Any],
        total: Callable[[int], Any],
        old: Any,
        held: Callable[..., tuple[Any, list[Any]]],
        unit: Any,
    ) -> Any:
        layer, buffers = self.step.layer, self.step.buffers
        if self.step.phase == "candidate":
            update, _ = held(buffers.update)
            product = total(2)
        else:
            update = vector.keep(vector_math.sigmoid(share(0) + total(0)))
            reset = vector.keep(vector_math.sigmoid(share(1) + total(1)))
            product = total(2)
            if buffers.bias is not None:
                product += tirx.BufferLoad(buffers.bias, [self.direction * layer.units + unit])
            product = reset * product
        candidate = vector.keep(vector_math.tanh(share(2) + product))
        return vector.keep(update * (old - candidate) + candidate)

    def _copy_out(self, row: int) -> Any:
        """The new state into the result, without the padding of the last panel."""
        layer, buffers = self.step.layer, self.step.buffers
        start = (self._real_time() * layer.directions + self.direction) * layer.batch
        start = (start + self.first + row) * layer.hidden
        place = self._place(row, parity=True, after=True)

        def copy(count: int) -> Any:
            lane = new_var("v")
            unit = self.panel * layer.lanes + lane
            value = tirx.BufferLoad(buffers.state, [place + unit])
            body = tirx.BufferStore(buffers.y, value, [start + unit])
            return loop_over(lane, count, body, "VECTORIZED" if count > 1 else "SERIAL")

        whole, rest = divmod(layer.hidden, layer.lanes)
        if not rest:
            return copy(layer.lanes)
        return tirx.IfThenElse(self.panel < whole, copy(layer.lanes), copy(rest))


class _Vector:
    """Statements at each lane of a vector, in order."""

    def __init__(self, lane: Any, lanes: int) -> None:
        self.lane, self.lanes = lane, lanes
        self.allocations: list[Any] = []
        self.body: list[Any] = []

    def keep(self, value: Any) -> Any:
        """A value that is used more than once, in a register."""
        name = f"g{len(self.allocations)}"
        buffer = tirx.decl_buffer((self.lanes,), "float32", name=name, scope="local")
        self.allocations.append(tirx.AllocBuffer(buffer))
        self.store(buffer, value, [self.lane])
        return tirx.BufferLoad(buffer, [self.lane])

    def store(self, buffer: Any, value: Any, place: list[Any]) -> None:
        self.body.append(tirx.BufferStore(buffer, value, place))

    def statement(self) -> Any:
        loop = loop_over(self.lane, self.lanes, sequence(self.body), "VECTORIZED")
        return sequence([*self.allocations, loop])

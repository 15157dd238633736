"""Convolution and pooling on blocked data over sizes that are symbols, by `windows_free`.

What enters: a node with a window, and the values of its operands. What leaves: statements that hand
each vector of the result to `write`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any

from tvm import tirx

from whitebox.compiler.lower.templates import window
from whitebox.compiler.lower.value import Axes, Body, Value
from whitebox.ir.graph import Node
from whitebox.ir.sizes import Extent, all_known, product
from whitebox.kernels.cpu.affine import expression, flatten, unflatten
from whitebox.kernels.cpu.conv_tiling import Extents, Tile, choose_tile
from whitebox.kernels.cpu.nest import Array, loop_over, new_var, sequence
from whitebox.kernels.cpu.product import TileScope, Write
from whitebox.kernels.cpu.windows_free import FreeWindows, Taps, number, place, vector_at
from whitebox.kernels.cpu.winograd_free import FreeWinograd
from whitebox.kernels.cpu.winograd_transforms import IN

# Reducing fewer channels than this at a time costs more in loop overhead than zero channels do.
_LEAST_CHANNEL_STEP = 4
# A row for which every tile fits as well as it ever does.
_MANY = 1 << 10
# Columns of a window without input channels: as many as hide the latency of one.
_COLUMNS = 8


def _array(value: Value, body: Body) -> Array:
    array = body.materialize(value).element
    assert isinstance(array, Array)
    return array


def _add(sums: Any, slot: int, lanes: int, term: Any) -> Any:
    at = tirx.Ramp(slot * lanes, 1, lanes)
    return tirx.BufferStore(sums, tirx.BufferLoad(sums, [at]) + term, [at])


def convolution(node: Node, args: Sequence[Value], body: Body, write: Write) -> None:
    """Add the statements of a whitebox.Conv to the body."""
    data, weight = (_array(value, body) for value in args[:2])
    lanes = body.lanes
    blocked = node.attr("data_layout") == "NCHWc"
    w_shape = all_known(weight.shape)
    strides, pads, dilations = window(node, 2)
    kernel = (w_shape[2], w_shape[3])
    channels = w_shape[1] * lanes if blocked else w_shape[1]
    wanted = node.attr("in_channels") or channels
    if not blocked or gcd(wanted, lanes) >= _LEAST_CHANNEL_STEP:
        channels = wanted
    step = gcd(channels, lanes) if blocked else 1
    size, out = data.shape[2:4], node.tensor.extents[2:4]
    flat = kernel == (1, 1) and strides == (1, 1) and not any(pads)
    if flat:
        size = out = (1, product(out))
    tile = _conv_tile(out, w_shape, channels, lanes, blocked and kernel[1] > strides[1])
    windows = FreeWindows(
        data.shape[0], w_shape[0], (size[0], size[1]), (out[0], out[1]), kernel,
        (strides[0], strides[1]), (pads[0], pads[1]), (dilations[0], dilations[1]),
        channels // step, step,
        body.quotient(out[1], FreeWindows.piece_columns(tile)) if flat else 1,
        tile, lanes, body.target.threads,
    )  # fmt: skip
    x_shape = (*data.shape[:2], *size, *data.shape[4:])

    def add_taps(sums: Any, o: Any, group: Any, kh: Any, kw: Any, taps: Taps) -> list[Any]:
        channel = new_var("i")
        block, lane = _channel(group, channel, step, lanes, blocked)
        rights, statements = [], []
        for v in range(tile.vectors):
            own = o * number(tile.vectors) + number(v)
            if w_shape[0] % tile.vectors:
                own = tirx.min(own, number(w_shape[0] - 1))
            lead = (own, block, kh, kw)
            at = place((*lead, lane, number(0)) if blocked else (*lead, number(0)), w_shape)
            rights.append(vector_at(weight.buffer, at, lanes))
        for t, column in enumerate(taps.columns):
            lead = (taps.batch, block, taps.row, column)
            at = place((*lead, lane) if blocked else lead, x_shape)
            value = tirx.BufferLoad(data.buffer, [at])
            left = tirx.Broadcast(taps.guarded(t, value, tirx.const(0, "float32")), lanes)
            for v, right in enumerate(rights):
                statements.append(_add(sums, t * tile.vectors + v, lanes, left * right))
        return [loop_over(channel, step, sequence(statements))]

    statements = windows.statements(add_taps, _finished(node, args, body, flat, write))
    body.statements.append(statements)


def _channel(group: Any, i: Any, step: int, lanes: int, blocked: bool) -> tuple[Any, Any]:
    """Block and lane of input channel `i` of a group."""
    if not blocked or step == lanes:
        return group, i
    per_block = number(lanes // step)
    first = tirx.truncmod(group, per_block) * number(step)
    return tirx.truncdiv(group, per_block), first + i


def _conv_tile(
    out: Sequence[Extent], w_shape: tuple[int, ...], channels: int, lanes: int, overlapping: bool
) -> Tile:
    """The tile that suits rows of the given length, or long ones where it is not known."""
    columns = out[1] if isinstance(out[1], int) else _MANY
    extents = Extents(
        rows=64, columns=columns, out_blocks=w_shape[0],
        taps=channels * w_shape[2] * w_shape[3], ragged_copy=0,
        overlapping=overlapping,
    )  # fmt: skip
    return choose_tile(extents, lanes, 1)


def depthwise(node: Node, args: Sequence[Value], body: Body, write: Write) -> None:
    """Add the statements of a whitebox.DepthwiseConv to the body."""
    data, weight = (_array(value, body) for value in args[:2])
    w_shape, lanes = all_known(weight.shape), body.lanes
    windows = _windows(node, data, (w_shape[1], w_shape[2]), body, 0.0)

    def add_taps(sums: Any, o: Any, group: Any, kh: Any, kw: Any, taps: Taps) -> list[Any]:
        at = place((o, kh, kw, number(0)), w_shape)
        right = vector_at(weight.buffer, at, lanes)
        zero = tirx.Broadcast(tirx.const(0, "float32"), lanes)
        return [
            _add(sums, t, lanes, _column(data, o, t, taps, lanes, zero) * right)
            for t in range(len(taps.columns))
        ]

    body.statements.append(windows.statements(add_taps, _finished(node, args, body, False, write)))


def winograd(node: Node, args: Sequence[Value], body: Body, write: Write) -> None:
    """Add the statements of a whitebox.WinogradConv to the body."""
    data, weight = (_array(value, body) for value in args[:2])
    w_shape, lanes = all_known(weight.shape), body.lanes
    _, pads, _ = window(node, 2)
    shape, out = data.shape, node.tensor.extents
    kernel = node.attr("kernel_shape")[0]
    channels = w_shape[3] * lanes
    tile = _conv_tile((1, _MANY), (w_shape[0], 1, 1, 1), channels, lanes, False)
    step = IN + 1 - kernel
    rows, across = body.quotient(out[2], step), body.quotient(out[3], step)
    tiles = product((shape[0], rows, across))
    groups = body.quotient(tiles, FreeWinograd.group_tiles(tile, channels))
    product_ = FreeWinograd(
        shape[0], w_shape[3], w_shape[0], (shape[2], shape[3]), (out[2], out[3]),
        (pads[0], pads[1]), kernel, rows, across, groups, tile, lanes, body.target.threads,
    )  # fmt: skip
    done = _finished(node, args, body, False, write)
    body.statements.append(product_.statements(data.buffer, weight.buffer, done))


def max_pool(node: Node, args: Sequence[Value], body: Body, write: Write) -> None:
    """Add the statements of a whitebox.MaxPool to the body."""
    data, lanes = _array(args[0], body), body.lanes
    kernel = node.attr("kernel_shape")
    lowest = float(tirx.min_value("float32").value)
    windows = _windows(node, data, (kernel[0], kernel[1]), body, lowest)

    def add_taps(sums: Any, o: Any, group: Any, kh: Any, kw: Any, taps: Taps) -> list[Any]:
        least = tirx.Broadcast(tirx.const(lowest, "float32"), lanes)
        statements = []
        for t in range(len(taps.columns)):
            at = tirx.Ramp(t * lanes, 1, lanes)
            value = _column(data, o, t, taps, lanes, least)
            most = tirx.max(tirx.BufferLoad(sums, [at]), value)
            statements.append(tirx.BufferStore(sums, most, [at]))
        return statements

    body.statements.append(windows.statements(add_taps, write))


def average_pool(node: Node, args: Sequence[Value], body: Body, write: Write) -> None:
    """Add the statements of a whitebox.AveragePool to the body."""
    data, lanes = _array(args[0], body), body.lanes
    kernel = node.attr("kernel_shape")
    windows = _windows(node, data, (kernel[0], kernel[1]), body, 0.0)
    pads = window(node, 2)[1]
    padded = bool(node.attr("count_include_pad", 0))

    def add_taps(sums: Any, o: Any, group: Any, kh: Any, kw: Any, taps: Taps) -> list[Any]:
        zero = tirx.Broadcast(tirx.const(0, "float32"), lanes)
        return [
            _add(sums, t, lanes, _column(data, o, t, taps, lanes, zero))
            for t in range(len(taps.columns))
        ]

    def divide(scope: TileScope, axes: Axes) -> list[Any]:
        counts = [
            _counted(windows, axis, axes[2 + axis].expr, pads[2 + axis] if padded else None)
            for axis in (0, 1)
        ]
        scope.value = scope.value / tirx.Cast("float32", counts[0] * counts[1])
        return write(scope, axes)

    body.statements.append(windows.statements(add_taps, divide))


def _counted(windows: FreeWindows, axis: int, at: Any, end: int | None) -> Any:
    """How many taps of the window at `at` an average counts: those inside of the data, and of its
    border, `end` wide at its end, unless that is None."""
    begin, stride, dilation = (
        of[axis] for of in (windows.pads, windows.strides, windows.dilations)
    )
    low, high = (0, 0) if end is None else (-begin, end)
    limit = expression(windows.size[axis]) + number(high)
    start = at * number(stride) - number(begin)

    def taps_before(bound: Any) -> Any:
        """Taps that lie before a position."""
        span = tirx.max(bound - start, number(0)) + number(dilation - 1)
        return tirx.min(tirx.truncdiv(span, number(dilation)), number(windows.kernel[axis]))

    return tirx.max(taps_before(limit) - taps_before(number(low)), number(1))


def _windows(
    node: Node, data: Array, kernel: tuple[int, int], body: Body, start: float
) -> FreeWindows:
    """Windows in which each channel is on its own."""
    strides, pads, dilations = window(node, 2)
    shape, out = data.shape, node.tensor.extents
    (blocks,) = all_known(shape[1:2])
    columns = min(out[3], _COLUMNS) if isinstance(out[3], int) else _COLUMNS
    return FreeWindows(
        shape[0], blocks, (shape[2], shape[3]), (out[2], out[3]), kernel,
        (strides[0], strides[1]), (pads[0], pads[1]), (dilations[0], dilations[1]),
        1, 1, 1, Tile(columns, 1), body.lanes, body.target.threads, start,
    )  # fmt: skip


def _column(data: Array, o: Any, t: int, taps: Taps, lanes: int, otherwise: Any) -> Any:
    """The vector of channels that a tap reads at one column."""
    at = place((taps.batch, o, taps.row, taps.columns[t], number(0)), data.shape)
    value = vector_at(data.buffer, at, lanes)
    if taps.inside is None:
        return value
    return tirx.Select(tirx.Broadcast(taps.inside[t], lanes), value, otherwise)


def _finished(node: Node, args: Sequence[Value], body: Body, flat: bool, write: Write) -> Write:
    """`write` with the bias added, at the indices of the node's own result."""
    bias = _array(args[2], body) if len(args) > 2 else None
    shape = node.tensor.extents

    def finish(scope: TileScope, axes: Axes) -> list[Any]:
        n, block, row, column, lane = axes
        if flat:
            row, column = unflatten(column, shape[2:4])
        scope.axes = (n, block, row, column, lane)
        if bias is not None:
            at = flatten((block, lane), (shape[1], shape[4]))
            scope.value = scope.value + tirx.BufferLoad(bias.buffer, [at.expr])
        return write(scope, scope.axes)

    return finish

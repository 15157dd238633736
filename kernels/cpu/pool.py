"""Max and average pooling over sliding windows, channel-blocked and in ONNX's own layout.

`BlockedPool` takes NCHWc `[N, C/c, H, W, c]` and makes the nest of the depthwise convolution
without its weights. `PlainPool` takes `[N, C, D1..Dk]` with any number of spatial dimensions;
it vectorises along the last one, from a copy whose stride phases lie apart. Both take strides,
dilations, padding and `ceil_mode` (through the declared output size); the average divides by the
number of elements that the ONNX specification counts. Global pooling is a reduction and is not done
here, nor are the indices of a maximum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from whitebox.kernels.cpu import conv_stages
from whitebox.kernels.cpu.conv_tiling import ceil_div
from whitebox.kernels.cpu.plain_copy import Reader, copy_blocks, phases
from whitebox.kernels.cpu.windows import Windows

Kind = Literal["max", "average"]

_PLAIN_VECTORS = 4


@dataclass(frozen=True, slots=True)
class PoolAxis:
    """One pooled dimension."""

    size: int
    kernel: int
    stride: int
    begin: int
    end: int
    dilation: int
    out: int

    def counted(self, include_pad: bool) -> int | None:
        """How many elements each window averages, where that is the same for all; else None."""
        counts = {self._count(o, include_pad) for o in {0, self.out - 1}}
        return counts.pop() if len(counts) == 1 and self.kernel in counts else None

    def _count(self, o: int, include_pad: bool) -> int:
        low, high = self._bounds(include_pad)
        start = o * self.stride - self.begin
        taps = (start + k * self.dilation for k in range(self.kernel))
        return sum(low <= position < high for position in taps)

    def _bounds(self, include_pad: bool) -> tuple[int, int]:
        return (-self.begin, self.size + self.end) if include_pad else (0, self.size)

    def count(self, o: Any, include_pad: bool) -> Any:
        """The same for a TVM index: the number of taps of window `o` that are averaged."""
        from tvm import te

        low, high = self._bounds(include_pad)
        start, d = o * self.stride - self.begin, self.dilation
        first = te.max((low - start + d - 1) // d, 0)
        end = te.min((high - start + d - 1) // d, self.kernel)
        return te.max(end - first, 1)


def _axes(
    size: Sequence[int],
    out_size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> tuple[PoolAxis, ...]:
    rank = len(size)
    return tuple(
        PoolAxis(size[a], kernel[a], strides[a], pads[a], pads[a + rank], dilations[a], out_size[a])
        for a in range(rank)
    )


def _finish(
    kind: Kind, axes: Sequence[PoolAxis], include_pad: bool, value: Any, at: Sequence[Any]
) -> Any:
    """The pooled value of one element: the maximum as it is, the sum over its count."""
    from tvm import tirx

    if kind == "max":
        return value
    known = [axis.counted(include_pad) for axis in axes]
    constant = prod(count for count in known if count is not None)
    variable = [
        axis.count(o, include_pad)
        for axis, o, count in zip(axes, at, known, strict=True)
        if count is None
    ]
    count: Any = constant
    for factor in variable:
        count = count * factor
    return value * (1.0 / constant if not variable else 1.0 / tirx.Cast("float32", count))


def _reduce(kind: Kind, value: Any, axis: list[Any]) -> Any:
    from tvm import te

    return (te.max if kind == "max" else te.sum)(value, axis=axis)


def _border(kind: Kind, dtype: str = "float32") -> Any:
    from tvm import tirx

    return tirx.min_value(dtype) if kind == "max" else tirx.const(0, dtype)


@dataclass(frozen=True, slots=True)
class BlockedPool:
    """Parameters of one pooling kernel on NCHWc; of integers too, where it takes the greatest."""

    kind: Kind
    include_pad: bool
    windows: Windows
    axes: tuple[PoolAxis, ...]
    batch: int
    channel_blocks: int
    lanes: int
    threads: int
    columns: int
    band: int
    dtype: str

    @classmethod
    def default(
        cls,
        kind: Kind,
        x_shape: Sequence[int],
        out_shape: Sequence[int],
        kernel: Sequence[int],
        strides: Sequence[int],
        pads: Sequence[int],
        dilations: Sequence[int],
        *,
        include_pad: bool = False,
        threads: int,
        dtype: str = "float32",
    ) -> BlockedPool:
        """The template for ONNX's attributes; `out_shape` is the declared NCHWc result."""
        size, out_size, lanes = x_shape[2:4], out_shape[2:4], x_shape[4]
        windows = Windows.make(size, kernel, strides, pads, dilations, out_size)
        return cls(
            kind=kind,
            include_pad=include_pad,
            windows=windows,
            axes=_axes(size, out_size, kernel, strides, pads, dilations),
            batch=x_shape[0],
            channel_blocks=x_shape[1],
            lanes=lanes,
            threads=threads,
            columns=windows.column_tile(lanes),
            band=windows.band(lanes, x_shape[0] * x_shape[1], threads),
            dtype=dtype,
        )

    def compute(self, x: Any) -> Any:
        """The pooling as tensor expressions; blocks pool_pad, pool_acc, pool_view."""
        from tvm import te

        win = self.windows
        (sh, sw), (dh, dw), (oh, ow) = win.strides, win.dilations, win.out_size
        x = win.padded(x, self.columns, _border(self.kind, self.dtype), name="pool_pad")
        kh = te.reduce_axis((0, win.kernel[0]), "kh")
        kw = te.reduce_axis((0, win.kernel[1]), "kw")
        full = ceil_div(ow, self.columns) * self.columns
        acc = te.compute(
            (self.batch, self.channel_blocks, oh, full, self.lanes),
            lambda n, o, h, p, c: _reduce(
                self.kind, x[n, o, h * sh + kh * dh, p * sw + kw * dw, c], [kh, kw]
            ),
            name="pool_acc",
        )
        return te.compute(
            (self.batch, self.channel_blocks, oh, ow, self.lanes),
            lambda n, o, h, p, c: _finish(
                self.kind, self.axes, self.include_pad, acc[n, o, h, p, c], [h, p]
            ),
            name="pool_view",
        )

    def schedule(self, sch: Any) -> None:
        """Schedule a function made of `compute` and an elementwise epilogue."""
        result = conv_stages.inline_around(
            sch, ("pool_acc", "pool_pad"), ("pool_acc",), self.threads
        )
        conv_stages.schedule_windows(
            sch,
            result,
            accumulator=sch.get_sblock("pool_acc"),
            copy="pool_pad",
            band=self.band,
            columns=self.columns,
            cycles=self.batch * self.channel_blocks * self.windows.cycles,
            threads=self.threads,
        )


@dataclass(frozen=True, slots=True)
class PlainPool:
    """Parameters of one pooling kernel in ONNX's layout."""

    kind: Kind
    include_pad: bool
    axes: tuple[PoolAxis, ...]
    batch: int
    channels: int
    lanes: int
    threads: int

    @classmethod
    def default(
        cls,
        kind: Kind,
        x_shape: Sequence[int],
        out_shape: Sequence[int],
        kernel: Sequence[int],
        strides: Sequence[int],
        pads: Sequence[int],
        dilations: Sequence[int],
        *,
        include_pad: bool = False,
        lanes: int,
        threads: int,
    ) -> PlainPool:
        """The template for ONNX's attributes; `out_shape` is the declared result."""
        axes = _axes(x_shape[2:], out_shape[2:], kernel, strides, pads, dilations)
        narrow = lanes // 2 if axes[-1].out <= lanes // 2 else lanes
        return cls(kind, include_pad, axes, x_shape[0], x_shape[1], narrow, threads)

    @property
    def full_row(self) -> int:
        """Output positions of a row, rounded up to whole vectors."""
        return ceil_div(self.axes[-1].out, self.lanes) * self.lanes

    def compute(self, x: Any) -> Any:
        """The pooling as tensor expressions; blocks pool_pad, pool_acc, pool_view."""
        from tvm import te

        copy = self._phases(x)
        taps = [te.reduce_axis((0, axis.kernel), f"k{a}") for a, axis in enumerate(self.axes)]
        last = self.axes[-1]

        def body(n: Any, c: Any, *at: Any) -> Any:
            rows = [
                o * axis.stride + k * axis.dilation
                for o, k, axis in zip(at[:-1], taps, self.axes, strict=False)
            ]
            offset = taps[-1] * last.dilation
            phase, start = offset % last.stride, offset // last.stride
            return _reduce(self.kind, copy(n, c, *rows, phase, at[-1] + start), taps)

        lead = [axis.out for axis in self.axes[:-1]]
        acc = te.compute((self.batch, self.channels, *lead, self.full_row), body, name="pool_acc")
        return te.compute(
            (self.batch, self.channels, *lead, last.out),
            lambda n, c, *at: _finish(self.kind, self.axes, self.include_pad, acc[(n, c, *at)], at),
            name="pool_view",
        )

    def _phases(self, x: Any) -> Reader:
        last = self.axes[-1]
        rows = [(a.out - 1) * a.stride + (a.kernel - 1) * a.dilation + 1 for a in self.axes[:-1]]
        across = self.full_row + (last.kernel - 1) * last.dilation // last.stride
        begins = [axis.begin for axis in self.axes]
        border = _border(self.kind)
        return phases(x, begins, rows, across, last.stride, prefix="pool", border=border)

    def schedule(self, sch: Any) -> None:
        """Schedule a function made of `compute` and an elementwise epilogue."""
        own = ("pool_acc", "pool_pad", "pool_phases")
        result = conv_stages.inline_around(sch, own, ("pool_acc",), self.threads)
        planes = sch.fuse(*sch.get_loops(result)[:2])
        acc = sch.get_sblock("pool_acc")
        sch.compute_at(acc, planes, preserve_unit_loops=True)
        for copy in copy_blocks(sch, "pool"):
            sch.compute_at(copy, planes, preserve_unit_loops=True)
            conv_stages.fill_rows(sch, copy, self.lanes)
        taps = self.batch * self.channels * prod(a.out * a.kernel for a in self.axes)
        conv_stages.parallel(sch, [planes], 2 * taps / self.lanes, self.threads)
        self._schedule_sums(sch, acc)

    def _schedule_sums(self, sch: Any, acc: Any) -> None:
        writer = sch.cache_write(acc, 0, "local")
        across = sch.get_loops(writer)[-1]
        vectors = min(_PLAIN_VECTORS, self.full_row // self.lanes)
        while self.full_row // self.lanes % vectors:
            vectors -= 1
        tiles, vector, lane = sch.split(across, [None, vectors, self.lanes])
        sch.compute_at(acc, tiles, preserve_unit_loops=True)
        sch.vectorize(lane)
        sch.unroll(vector)
        across = sch.get_loops(acc)[-len(self.axes) - 1]
        taps = sch.get_loops(acc)[-len(self.axes) :]
        vector, lane = sch.split(across, [None, self.lanes])
        sch.reorder(*taps, vector, lane)
        sch.vectorize(lane)
        sch.unroll(vector)
        sch.decompose_reduction(acc, taps[0])

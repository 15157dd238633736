"""Convolution of integers on channel-blocked data: `whitebox.ConvInteger`, group 1.

In: X as NCHWc `[N, IC/c, H, W, c]`, int16 or uint8; W packed `[OC/c, IC/c, KH, KW, c/g, c·g]`, g
neighbouring input channels innermost; optionally the number (scalar) that pads X. Out: exact
sums, int32 NCHWc `[N, OC/c, OH, OW, c]`. Any stride and dilation. The loop nest is the one of
`Conv2d`, each step of which adds g products into a register of sums (`dot_product`):

    conv_pad:  padded copy of X, parallel over rows          (only where padding is read)
    parallel n, channel tile, row [, column tile]:
        for column tile:
            acc[vectors][columns] = 0                        registers
            for ic block, kh, kw, group in block:
                acc[v][i] += X[.., column i, group] · W[v, .., group, :]
            result = epilogue(acc)                           scaling and rounding, mostly
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd, prod
from typing import Any

from whitebox.kernels.cpu import conv_stages
from whitebox.kernels.cpu.conv_tiling import (
    Extents,
    Tile,
    ceil_div,
    cycles,
    register_tiles,
)
from whitebox.kernels.cpu.dot_product import DotProduct
from whitebox.kernels.cpu.windows import Windows

_MOST_ALTERNATIVES = 8


@dataclass(frozen=True, slots=True)
class IntegerConv2d:
    """Parameters of one integer convolution; `flat` joins H and W of a 1x1 convolution."""

    x_shape: tuple[int, ...]
    out_blocks: int
    windows: Windows
    in_channels: int
    dot: DotProduct
    threads: int
    tile: Tile
    flat: bool

    @classmethod
    def default(
        cls,
        x_shape: Sequence[int],
        w_shape: Sequence[int],
        strides: Sequence[int],
        pads: Sequence[int],
        dilations: Sequence[int],
        *,
        in_channels: int,
        dot: DotProduct,
        threads: int,
    ) -> IntegerConv2d:
        """The template with the tile that the cost model likes best."""
        windows = Windows.make(x_shape[2:4], w_shape[2:4], strides, pads, dilations)
        pointwise = windows.kernel == (1, 1) and windows.strides == (1, 1) and not any(pads)
        made = cls(
            tuple(x_shape), w_shape[0], windows, in_channels, dot, threads, Tile(1, 1), pointwise
        )
        return replace(made, tile=made._ranked()[0])

    def alternatives(self) -> tuple[IntegerConv2d, ...]:
        """The templates with the next best tiles, for measuring which is really the best."""
        ranked = self._ranked()[: _MOST_ALTERNATIVES + 1]
        return tuple(replace(self, tile=tile) for tile in ranked if tile != self.tile)

    def _ranked(self) -> list[Tile]:
        """The tiles that fit the registers, the fastest first."""
        rows, columns = self._positions
        extents = Extents(
            rows=self.x_shape[0] * rows,
            columns=columns,
            out_blocks=self.out_blocks,
            taps=self._groups * prod(self.windows.kernel),
            ragged_copy=0 if any(self.windows.pads) else prod(self.x_shape) // self.dot.lanes,
        )
        lanes, threads = self.dot.lanes, self.threads
        # One register more than for floats: a product is added by an instruction of its own.
        registers = 31 if lanes == 16 else 15
        fit = [
            tile
            for tile in register_tiles(extents, lanes)
            if tile.columns * tile.vectors + tile.vectors + 1 <= registers
        ]
        return sorted(
            fit,
            key=lambda tile: (
                cycles(extents, tile, lanes, threads),
                -tile.columns * tile.vectors,
            ),
        )

    @property
    def _positions(self) -> tuple[int, int]:
        """Independent rows of an image, and the columns of each."""
        height, width = self.windows.out_size
        return (1, height * width) if self.flat else (height, width)

    @property
    def _groups(self) -> int:
        """Steps of the reduction for one tap."""
        return ceil_div(self.in_channels, self.dot.group)

    @property
    def _full_blocks(self) -> int:
        return ceil_div(self.out_blocks, self.tile.vectors) * self.tile.vectors

    @property
    def _full_columns(self) -> int:
        return ceil_div(self._positions[1], self.tile.columns) * self.tile.columns

    def compute(self, x: Any, w: Any, bias: Any = None, border: Any = None) -> Any:
        """Tensor expressions; blocks conv_pad, conv_acc, conv_view and conv_bias."""
        from tvm import te

        acc = self._accumulate(self._source(x, border), w)
        (n, _), (oh, ow) = self.x_shape[:2], self.windows.out_size
        shape = (n, self.out_blocks, oh, ow, self.dot.lanes)

        def view(n: Any, o: Any, h: Any, p: Any, c: Any) -> Any:
            return acc[n, o, 0, h * ow + p, c] if self.flat else acc[n, o, h, p, c]

        result = te.compute(shape, view, name="conv_view")
        if bias is None:
            return result
        return te.compute(
            shape, lambda n, o, h, p, c: result[n, o, h, p, c] + bias[o, 0, 0, c], name="conv_bias"
        )

    def _source(self, x: Any, border: Any) -> Any:
        """X as `[N, IC/c, rows, columns, c]`, wide enough for the last column tile."""
        from tvm import te, tirx

        win, (n, blocks, height, width, lanes) = self.windows, self.x_shape
        zero = tirx.const(0, self.dot.data) if border is None else border()
        if self.flat:
            positions = self._full_columns
            if positions == height * width and conv_stages.is_input(x):
                return x
            return te.compute(
                (n, blocks, 1, positions, lanes),
                lambda n, k, h, p, c: te.if_then_else(
                    p < height * width, x[n, k, p // width, p % width, c], zero
                ),
                name="conv_pad",
            )
        rows, across = win.rows_read(win.out_size[0]), win.columns_read(self._full_columns)
        top, left = win.pads[:2]
        if not (top or left or rows > height or across > width) and conv_stages.is_input(x):
            return x

        def element(n: Any, k: Any, h: Any, p: Any, c: Any) -> Any:
            inside = tirx.all(h >= top, h < top + height, p >= left, p < left + width)
            return te.if_then_else(inside, x[n, k, h - top, p - left, c], zero)

        return te.compute((n, blocks, rows, across, lanes), element, name="conv_pad")

    def _accumulate(self, x: Any, w: Any) -> Any:
        """[N, channel tiles, rows, full column tiles, c]."""
        from tvm import te

        win, group = self.windows, self.dot.group
        (sh, sw), (dh, dw) = win.strides, win.dilations
        per_block = self.dot.lanes // group
        step = gcd(self._groups, per_block)
        outer = te.reduce_axis((0, self._groups // step), "outer")
        inner = te.reduce_axis((0, step), "inner")
        kh, kw = (te.reduce_axis((0, win.kernel[axis]), f"k{axis}") for axis in (0, 1))
        lane = te.reduce_axis((0, group), "lane")
        block, place = outer, inner
        if step < per_block:
            pieces = per_block // step
            block, place = outer // pieces, outer % pieces * step + inner
        wide = self.flat and int(x.shape[2]) > 1
        width = self.x_shape[3]

        def body(n: Any, o: Any, h: Any, p: Any, c: Any) -> Any:
            if self._full_blocks > self.out_blocks:
                o = te.min(o, self.out_blocks - 1)
            at = (p // width, p % width) if wide else (h * sh + kh * dh, p * sw + kw * dw)
            value = x[(n, block, *at, place * group + lane)].astype("int32")
            weight = w[o, block, kh, kw, place, c * group + lane].astype("int32")
            return te.sum(value * weight, axis=[outer, kh, kw, inner, lane])

        rows = self._positions[0]
        shape = (self.x_shape[0], self._full_blocks, rows, self._full_columns, self.dot.lanes)
        return te.compute(shape, body, name="conv_acc")

    def schedule(self, sch: Any) -> None:
        """Schedule a function made of `compute` and an elementwise epilogue."""
        own = ("conv_acc", "conv_pad")
        result = conv_stages.inline_around(sch, own, staged=("conv_acc",), threads=self.threads)
        if "conv_pad" in conv_stages.blocks(sch):
            conv_stages.copy_rows(sch, sch.get_sblock("conv_pad"), self.dot.lanes, self.threads)
        if self.flat:
            width = self.windows.out_size[1]
            sch.transform_block_layout(result, lambda n, o, h, w, c: (n, o, h * width + w, c))
        n, o, *rows, column, c = sch.get_loops(result)
        outer, v = sch.split(o, [None, self.tile.vectors])
        tiles, i = sch.split(column, [None, self.tile.columns])
        sch.reorder(n, outer, *rows, tiles, v, i, c)
        acc = sch.get_sblock("conv_acc")
        sch.set_scope(acc, 0, "local")
        sch.compute_at(acc, tiles, preserve_unit_loops=True)
        self._parallelise(sch, [n, outer, *rows], tiles)
        sch.vectorize(c)
        if conv_stages.unrolled_fits(sch, result, self.tile.vectors * self.tile.columns):
            sch.unroll(v)
            sch.unroll(i)
        self._schedule_reduction(sch, acc)

    def _parallelise(self, sch: Any, outer: list[Any], tiles: Any) -> None:
        """Parallel over the outer loops, and over column tiles too where that balances better."""
        rows, columns = self._positions
        taps = self._groups * prod(self.windows.kernel)
        steps = self.x_shape[0] * self._full_blocks * rows * columns * taps
        units = prod(int(sch.get(loop).extent) for loop in outer)
        if self.flat or (units % self.threads and units < 16 * self.threads):
            outer = [*outer, tiles]
        conv_stages.parallel(sch, outer, steps, self.threads)

    def _schedule_reduction(self, sch: Any, acc: Any) -> None:
        *_, o, _, i, c, outer, kh, kw, inner, lane = sch.get_loops(acc)
        sch.reorder(outer, kh, kw, inner, i, o, c, lane)
        sch.unroll(o)
        sch.unroll(i)
        self.dot.decompose(sch, acc, outer, c)

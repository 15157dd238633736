"""Direct convolution on channel-blocked data: `whitebox.Conv`, group 1, any stride and dilation.

In: X as NCHWc `[N, IC/c, H, W, c]` or NCHW `[N, IC, H, W]` (images), W packed
`[OC/c, IC/c, KH, KW, c, c]` or `[OC/c, IC, KH, KW, c]`, optionally B `[OC/c, 1, 1, c]`. Out: NCHWc
`[N, OC/c, OH, OW, c]`. It takes every blocked Conv; the loop nest it makes is

    conv_pad:  padded copy of X, parallel over rows          (only where padding is read)
    parallel n, channel tile, row [, column tile]:
        for column tile:
            acc[vectors][columns] = 0                        registers
            for ic block, kh, kw, ic in block:
                acc[v][i] += broadcast X[.., column i, ic] * W[v, .., ic, :]
            result = epilogue(acc)

A 1x1 stride-1 convolution without padding treats H*W as one row. No test is inside the
reduction: where the columns do not divide, the last tile computes positions that are not written,
from a copy of X that is wide enough; where the channel tiles do not divide, the last one repeats
the last channel block.
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
    choose_tile,
    cycles,
    ranked_tiles,
)

# Reducing fewer channels than this at a time costs more in loop overhead than zero channels do.
_LEAST_CHANNEL_STEP = 4


@dataclass(frozen=True, slots=True)
class Conv2d:
    """Parameters of one blocked convolution kernel.

    `in_channels` is how many input channels are reduced over; in NCHWc it may be smaller than the
    stored, zero-padded count. `flat` joins H and W.
    """

    x_shape: tuple[int, ...]
    out_blocks: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]
    lanes: int
    threads: int
    in_channels: int
    tile: Tile
    flat: bool

    @classmethod
    def default(
        cls,
        x_shape: Sequence[int],
        w_shape: Sequence[int],
        strides: Sequence[int] = (1, 1),
        pads: Sequence[int] = (0, 0, 0, 0),
        dilations: Sequence[int] = (1, 1),
        *,
        lanes: int,
        threads: int,
        data_layout: str = "NCHWc",
        in_channels: int | None = None,
    ) -> Conv2d:
        """The template with the tile that the cost model likes best."""
        blocked = data_layout == "NCHWc"
        stored = x_shape[1] * (x_shape[4] if blocked else 1)
        channels = in_channels or stored
        if blocked and gcd(channels, lanes) < _LEAST_CHANNEL_STEP:
            channels = stored
        kernel = (w_shape[2], w_shape[3])
        oh, ow = _out_size(x_shape[2:4], kernel, strides, pads, dilations)
        row = Extents(
            rows=x_shape[0] * oh,
            columns=ow,
            out_blocks=w_shape[0],
            taps=channels * kernel[0] * kernel[1],
            read_vectors=prod(x_shape) // lanes,
            copied=any(pads),
            overlapping=not blocked and kernel[1] > strides[1],
        )
        choices = [row]
        if kernel == (1, 1) and tuple(strides) == (1, 1) and not any(pads):
            choices.insert(0, replace(row, rows=x_shape[0], columns=oh * ow))
        tiles = [choose_tile(choice, lanes, threads) for choice in choices]
        times = [cycles(c, t, lanes, threads) for c, t in zip(choices, tiles, strict=True)]
        best = times.index(min(times))
        return cls(
            x_shape=tuple(x_shape),
            out_blocks=w_shape[0],
            kernel=kernel,
            strides=(strides[0], strides[1]),
            pads=(pads[0], pads[1], pads[2], pads[3]),
            dilations=(dilations[0], dilations[1]),
            lanes=lanes,
            threads=threads,
            in_channels=channels,
            tile=tiles[best],
            flat=choices[best] is not row,
        )

    def alternatives(self) -> tuple[Conv2d, ...]:
        """The templates with the next best tiles, for measuring which is really the best."""
        oh, ow = self.out_size
        extents = Extents(
            rows=self.x_shape[0] * (1 if self.flat else oh),
            columns=oh * ow if self.flat else ow,
            out_blocks=self.out_blocks,
            taps=self.in_channels * self.kernel[0] * self.kernel[1],
            read_vectors=prod(self.x_shape) // self.lanes,
            copied=any(self.pads),
            overlapping=not self.blocked and self.kernel[1] > self.strides[1],
        )
        ranked = ranked_tiles(extents, self.lanes, self.threads)
        return tuple(replace(self, tile=tile) for tile in ranked if tile != self.tile)

    @property
    def blocked(self) -> bool:
        """Whether X is NCHWc."""
        return len(self.x_shape) == 5

    @property
    def out_size(self) -> tuple[int, int]:
        """Output height and width."""
        return _out_size(self.x_shape[2:4], self.kernel, self.strides, self.pads, self.dilations)

    @property
    def read_size(self) -> tuple[int, int]:
        """Height and width of the input region that full column tiles read, padding included."""
        oh, ow = self.out_size
        columns = ceil_div(ow, self.tile.columns) * self.tile.columns
        return (
            (oh - 1) * self.strides[0] + (self.kernel[0] - 1) * self.dilations[0] + 1,
            (columns - 1) * self.strides[1] + (self.kernel[1] - 1) * self.dilations[1] + 1,
        )

    def compute(self, x: Any, w: Any, bias: Any = None) -> Any:
        """Tensor expressions; blocks conv_pad, conv_acc, conv_view and conv_bias."""
        from tvm import te

        acc = self._accumulate_flat(x, w) if self.flat else self._accumulate(x, w)
        oh, ow = self.out_size
        shape = (self.x_shape[0], self.out_blocks, oh, ow, self.lanes)

        def view(n: Any, o: Any, h: Any, x_: Any, c: Any) -> Any:
            return acc[n, o, h * ow + x_, c] if self.flat else acc[n, o, h, x_, c]

        result = te.compute(shape, view, name="conv_view")
        if bias is None:
            return result
        return te.compute(
            shape,
            lambda n, o, h, x_, c: result[n, o, h, x_, c] + bias[o, 0, 0, c],
            name="conv_bias",
        )

    def _accumulate_flat(self, x: Any, w: Any) -> Any:
        """[N, channel tiles, positions, c] for a 1x1 convolution, positions being full tiles."""
        from tvm import te

        x_in = x
        n, _, height, width = self.x_shape[:4]
        positions = ceil_div(height * width, self.tile.columns) * self.tile.columns
        copied = positions > height * width or not conv_stages.is_input(x)
        if copied:
            x = te.compute(
                (n, self.x_shape[1], positions, *self.x_shape[4:]),
                lambda n, k, p, *c: te.if_then_else(
                    p < height * width, x_in[(n, k, p // width, p % width, *c)], 0.0
                ),
                name="conv_pad",
            )
        steps, step = self._reduction()

        def body(n: Any, o: Any, p: Any, c: Any) -> Any:
            block, lane = self._channel(steps, step)
            weight = self._weight(w, o, block, 0, 0, lane, c)
            at = (p,) if copied else (p // width, p % width)
            return te.sum(self._at(x, n, block, lane, *at) * weight, axis=[steps, step])

        return te.compute((n, self._full_blocks, positions, self.lanes), body, name="conv_acc")

    def _accumulate(self, x: Any, w: Any) -> Any:
        """[N, channel tiles, OH, full column tiles, c]."""
        from tvm import te

        (n, _, height, width), (sh, sw), (dh, dw) = self.x_shape[:4], self.strides, self.dilations
        top, left = self.pads[:2]
        rows, columns = self.read_size
        if top or left or rows > height or columns > width or not conv_stages.is_input(x):
            x = self._padded(x)
        oh, ow = self.out_size
        full = ceil_div(ow, self.tile.columns) * self.tile.columns
        kh = te.reduce_axis((0, self.kernel[0]), "kh")
        kw = te.reduce_axis((0, self.kernel[1]), "kw")
        steps, step = self._reduction()

        def body(n: Any, o: Any, h: Any, p: Any, c: Any) -> Any:
            block, lane = self._channel(steps, step)
            value = self._at(x, n, block, lane, h * sh + kh * dh, p * sw + kw * dw)
            weight = self._weight(w, o, block, kh, kw, lane, c)
            return te.sum(value * weight, axis=[steps, kh, kw, step])

        return te.compute((n, self._full_blocks, oh, full, self.lanes), body, name="conv_acc")

    def _padded(self, x: Any) -> Any:
        """X with its zero border, wide enough for the last column tile."""
        from tvm import te, tirx

        (top, left), (height, width) = self.pads[:2], self.x_shape[2:4]
        rows, columns = self.read_size

        def body(n: Any, k: Any, h: Any, p: Any, *lane: Any) -> Any:
            inside = tirx.all(h >= top, h < top + height, p >= left, p < left + width)
            return te.if_then_else(inside, x[(n, k, h - top, p - left, *lane)], 0.0)

        shape = (*self.x_shape[:2], rows, columns, *self.x_shape[4:])
        return te.compute(shape, body, name="conv_pad")

    @property
    def _full_blocks(self) -> int:
        return ceil_div(self.out_blocks, self.tile.vectors) * self.tile.vectors

    def _reduction(self) -> tuple[Any, Any]:
        """Reduction axes over channels: groups of channels, and channels within one block."""
        from tvm import te

        step = gcd(self.in_channels, self.lanes) if self.blocked else 1
        return (
            te.reduce_axis((0, self.in_channels // step), "group"),
            te.reduce_axis((0, step), "channel"),
        )

    def _channel(self, group: Any, channel: Any) -> tuple[Any, Any]:
        """Block and lane of a reduced channel."""
        if not self.blocked:
            return group, 0
        step = gcd(self.in_channels, self.lanes)
        per_block = self.lanes // step
        if per_block == 1:
            return group, channel
        return group // per_block, group % per_block * step + channel

    def _at(self, x: Any, n: Any, block: Any, lane: Any, *position: Any) -> Any:
        return x[(n, block, *position, lane)] if self.blocked else x[(n, block, *position)]

    def _weight(self, w: Any, o: Any, block: Any, kh: Any, kw: Any, lane: Any, c: Any) -> Any:
        from tvm import te

        if self._full_blocks > self.out_blocks:
            o = te.min(o, self.out_blocks - 1)
        at = (o, block, kh, kw, lane, c) if self.blocked else (o, block, kh, kw, c)
        return w[at].astype("float32")

    def schedule(self, sch: Any) -> None:
        """Schedule a function made of `compute` and an elementwise epilogue."""
        own = ("conv_acc", "conv_pad")
        result = conv_stages.inline_around(sch, own, staged=("conv_acc",), threads=self.threads)
        if "conv_pad" in conv_stages.blocks(sch):
            conv_stages.copy_rows(sch, sch.get_sblock("conv_pad"), self.lanes, self.threads)
        if self.flat:
            width = self.out_size[1]
            sch.transform_block_layout(result, lambda n, o, h, w, c: (n, o, h * width + w, c))
        n, o, *spatial, c = sch.get_loops(result)
        outer_o, v = sch.split(o, [None, self.tile.vectors])
        tiles, i = sch.split(spatial[-1], [None, self.tile.columns])
        sch.reorder(n, outer_o, *spatial[:-1], tiles, v, i, c)
        acc = sch.get_sblock("conv_acc")
        sch.set_scope(acc, 0, "local")
        sch.compute_at(acc, tiles, preserve_unit_loops=True)
        self._parallelise(sch, [n, outer_o, *spatial[:-1]], tiles)
        sch.vectorize(c)
        if conv_stages.unrolled_fits(sch, result, self.tile.vectors * self.tile.columns):
            sch.unroll(v)
            sch.unroll(i)
        self._schedule_reduction(sch, acc)

    def _parallelise(self, sch: Any, outer: list[Any], tiles: Any) -> None:
        """Parallel over the outer loops, and over column tiles too where that balances better."""
        oh, ow = self.out_size
        taps = self.in_channels * self.kernel[0] * self.kernel[1]
        multiply_adds = self.x_shape[0] * self._full_blocks * oh * ow * taps
        units = 1
        for loop in outer:
            units *= int(sch.get(loop).extent)
        if self.flat or (units % self.threads and units < 16 * self.threads):
            outer = [*outer, tiles]
        conv_stages.parallel(sch, outer, multiply_adds, self.threads)

    def _schedule_reduction(self, sch: Any, acc: Any) -> None:
        spatial_count = 4 if self.flat else 5
        loops = sch.get_loops(acc)
        reduced = loops[-2:] if self.flat else loops[-4:]
        spatial = loops[-len(reduced) - spatial_count : -len(reduced)]
        o, i, c = spatial[1], spatial[-2], spatial[-1]
        sch.reorder(*reduced, i, o, c)
        sch.vectorize(c)
        sch.unroll(o)
        sch.unroll(i)
        sch.decompose_reduction(acc, reduced[0])


def _out_size(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> tuple[int, int]:
    def one(axis: int) -> int:
        span = (kernel[axis] - 1) * dilations[axis] + 1
        return (size[axis] + pads[axis] + pads[axis + 2] - span) // strides[axis] + 1

    return one(0), one(1)

"""Direct convolution on channel-blocked data: `whitebox.Conv`, group 1, any stride and dilation.

In: X as NCHWc `[N, IC/c, H, W, c]` or NCHW `[N, IC, H, W]` (images), W packed
`[OC/c, IC/c, KH, KW, c, c]` or `[OC/c, IC, KH, KW, c]`, optionally B `[OC/c, 1, 1, c]`. Out: NCHWc
`[N, OC/c, OH, OW, c]`. It takes every blocked Conv; the loop nest it makes is

    conv_pad:  padded copy of X, parallel over rows          (only where padding is read)
    parallel n, channel tile, row [, column tile]:           or: parallel n, chunk of positions:
        for column tile:                                             for channel tile, column tile:
            acc[vectors][columns] = 0                        registers
            for ic block, kh, kw, ic in block:
                acc[v][i] += broadcast X[.., column i, ic] * W[v, .., ic, :]
            result = epilogue(acc)

Rows may be joined, so that column tiles run over H*W: always possible on narrow vectors, whose few
columns can have an address each, else for 1x1 kernels of stride 1 without padding. No test is
inside the reduction: where the columns do not divide, the last tile computes positions that are not
written, from a copy of X that is wide enough or from the last position again; where the channel
tiles do not divide, the last one repeats the last channel block.
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
    chunk_sizes,
    cycles,
    positions_cycles,
    ranked_tiles,
    traffic_cycles,
)

# Reducing fewer channels than this at a time costs more in loop overhead than zero channels do.
_LEAST_CHANNEL_STEP = 4
_ALTERNATIVES = 8


@dataclass(frozen=True, slots=True)
class Conv2d:
    """Parameters of one blocked convolution kernel.

    `in_channels` is how many input channels are reduced over; in NCHWc it may be smaller than the
    stored, zero-padded count. `flat` joins H and W. Threads share out channel tiles or, where
    `chunk` is not 0, chunks of so many column tiles (rows, if not joined): they then read mostly
    what they wrote themselves, but all weights each.
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
    chunk: int

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
        untiled = cls(
            x_shape=tuple(x_shape),
            out_blocks=w_shape[0],
            kernel=(w_shape[2], w_shape[3]),
            strides=(strides[0], strides[1]),
            pads=(pads[0], pads[1], pads[2], pads[3]),
            dilations=(dilations[0], dilations[1]),
            lanes=lanes,
            threads=threads,
            in_channels=channels,
            tile=Tile(1, 1),
            flat=False,
            chunk=0,
        )
        return min(untiled._candidates(_ALTERNATIVES), key=Conv2d._cycles)

    def alternatives(self) -> tuple[Conv2d, ...]:
        """The templates with the next best tiles, for measuring which is really the best."""
        ranked = sorted(self._candidates(_ALTERNATIVES), key=Conv2d._cycles)
        return tuple(other for other in ranked[:_ALTERNATIVES] if other != self)

    def _candidates(self, most: int) -> list[Conv2d]:
        """Templates with the best tiles for joined and for separate rows."""
        candidates = []
        for flat in (True, False) if self._joinable else (False,):
            shaped = replace(self, flat=flat, chunk=0)
            for tile in ranked_tiles(shaped._extents, self.lanes, self.threads, most):
                tiled = replace(shaped, tile=tile)
                candidates += [tiled, *(replace(tiled, chunk=n) for n in tiled._chunks())]
        return candidates

    @property
    def _joinable(self) -> bool:
        """Whether rows may be joined, and there are several."""
        allowed = self.lanes < conv_stages.WIDE or self._pointwise
        return allowed and self.out_size[0] > 1

    def _chunks(self) -> list[int]:
        # (not tried on wide vectors)
        if self.lanes >= conv_stages.WIDE:
            return []
        return chunk_sizes(self._extents, self.tile, self.x_shape[0], self.threads)

    def _cycles(self) -> float:
        extents, images = self._extents, self.x_shape[0]
        if self.lanes >= conv_stages.WIDE:
            return cycles(extents, self.tile, self.lanes, self.threads)
        fetched = traffic_cycles(extents, self.tile, bool(self.chunk), self.lanes, self.threads)
        if not self.chunk:
            return cycles(extents, self.tile, self.lanes, self.threads) + fetched
        return fetched + positions_cycles(
            extents, self.tile, self.chunk, images, self.lanes, self.threads
        )

    @property
    def _extents(self) -> Extents:
        oh, ow = self.out_size
        copied = self._gathered or any(self.pads)
        return Extents(
            rows=self.x_shape[0] * (1 if self.flat else oh),
            columns=oh * ow if self.flat else ow,
            out_blocks=self.out_blocks,
            taps=self.in_channels * self.kernel[0] * self.kernel[1],
            ragged_copy=0 if copied else prod(self.x_shape) // self.lanes,
            overlapping=not (self.blocked or self.flat) and self.kernel[1] > self.strides[1],
            gathered=self._gathered,
            read_bytes=4 * prod(self.x_shape),
        )

    @property
    def _gathered(self) -> bool:
        """Whether each column of a tile has an address of its own."""
        return self.flat and self.lanes < conv_stages.WIDE

    @property
    def _pointwise(self) -> bool:
        """Whether output positions are the input's."""
        return self.kernel == (1, 1) and self.strides == (1, 1) and not any(self.pads)

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
        columns = ow if self.flat else ceil_div(ow, self.tile.columns) * self.tile.columns
        return (
            (oh - 1) * self.strides[0] + (self.kernel[0] - 1) * self.dilations[0] + 1,
            (columns - 1) * self.strides[1] + (self.kernel[1] - 1) * self.dilations[1] + 1,
        )

    def compute(self, x: Any, w: Any, bias: Any = None) -> Any:
        """Tensor expressions; blocks conv_pad, conv_acc, conv_view and conv_bias."""
        from tvm import te

        acc = self._accumulate(x, w)
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

    def _accumulate(self, x: Any, w: Any) -> Any:
        """Sums `[N, channel tiles, OH, full column tiles, c]`, or with OH and OW joined."""
        from tvm import te

        (sh, sw), (dh, dw), (oh, ow) = self.strides, self.dilations, self.out_size
        columns = oh * ow if self.flat else ow
        step = self.tile.columns * (self.chunk or 1 if self.flat else 1)
        full = ceil_div(columns, step) * step
        one_row = self.flat and full > columns and not self._gathered
        x = self._in_one_row(x, full) if one_row else self._with_border(x)
        kh = te.reduce_axis((0, self.kernel[0]), "kh")
        kw = te.reduce_axis((0, self.kernel[1]), "kw")
        steps, step = self._reduction()

        def read_from(*position: Any) -> tuple[Any, Any]:
            if not self.flat:
                return position[0] * sh, position[1] * sw
            (p,) = position
            if one_row:
                return 0, p
            if full > columns:
                p = te.min(p, columns - 1)
            return p // ow * sh, p % ow * sw

        def body(n: Any, o: Any, *rest: Any) -> Any:
            *position, c = rest
            top, left = read_from(*position)
            block, lane = self._channel(steps, step)
            value = self._at(x, n, block, lane, top + kh * dh, left + kw * dw)
            weight = self._weight(w, o, block, kh, kw, lane, c)
            return te.sum(value * weight, axis=[steps, kh, kw, step])

        spatial = (full,) if self.flat else (oh, full)
        shape = (self.x_shape[0], self._full_blocks, *spatial, self.lanes)
        return te.compute(shape, body, name="conv_acc")

    def _in_one_row(self, x: Any, positions: int) -> Any:
        """X with H and W joined, and zeros up to whole column tiles."""
        from tvm import te

        n, blocks, height, width = self.x_shape[:4]

        def body(n: Any, k: Any, _: Any, p: Any, *c: Any) -> Any:
            value = x[(n, k, p // width, p % width, *c)]
            return te.if_then_else(p < height * width, value, 0.0)

        return te.compute((n, blocks, 1, positions, *self.x_shape[4:]), body, name="conv_pad")

    def _with_border(self, x: Any) -> Any:
        """X itself or, where the windows leave it or it is computed, a copy with a border."""
        (top, left), (height, width) = self.pads[:2], self.x_shape[2:4]
        rows, columns = self.read_size
        if top or left or rows > height or columns > width or not conv_stages.is_input(x):
            return self._padded(x)
        return x

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
            copy = sch.get_sblock("conv_pad")
            conv_stages.copy_rows(sch, copy, self.lanes, self.threads, by_row=self.chunk > 0)
        if self.flat:
            width = self.out_size[1]
            sch.transform_block_layout(result, lambda n, o, h, w, c: (n, o, h * width + w, c))
        acc = sch.get_sblock("conv_acc")
        sch.set_scope(acc, 0, "local")
        shared_out, tiles, v, i, c = self._tile(sch, result)
        sch.compute_at(acc, tiles, preserve_unit_loops=True)
        taps = self.in_channels * prod(self.kernel)
        multiply_adds = self.x_shape[0] * self._full_blocks * prod(self.out_size) * taps
        conv_stages.parallel(sch, shared_out, multiply_adds, self.threads)
        sch.vectorize(c)
        if conv_stages.unrolled_fits(sch, result, self.tile.vectors * self.tile.columns):
            sch.unroll(v)
            sch.unroll(i)
        self._schedule_reduction(sch, acc)

    def _tile(self, sch: Any, result: Any) -> tuple[list[Any], Any, Any, Any, Any]:
        """The loops that threads share out, then those over tiles and within one."""
        n, o, *spatial, c = sch.get_loops(result)
        outer_o, v = sch.split(o, [None, self.tile.vectors])
        if not self.chunk:
            rows = spatial[:-1]
            tiles, i = sch.split(spatial[-1], [None, self.tile.columns])
            sch.reorder(n, outer_o, *rows, tiles, v, i, c)
            return self._balanced(sch, [n, outer_o, *rows], tiles), tiles, v, i, c
        if self.flat:
            chunks, tiles, i = sch.split(spatial[0], [None, self.chunk, self.tile.columns])
            sch.reorder(n, chunks, outer_o, tiles, v, i, c)
        else:
            chunks, row = sch.split(spatial[0], [None, self.chunk])
            tiles, i = sch.split(spatial[1], [None, self.tile.columns])
            sch.reorder(n, chunks, outer_o, row, tiles, v, i, c)
        return [n, chunks], tiles, v, i, c

    def _balanced(self, sch: Any, outer: list[Any], tiles: Any) -> list[Any]:
        """The outer loops, and the one over column tiles too where that balances better."""
        units = prod(int(sch.get(loop).extent) for loop in outer)
        if self.flat or (units % self.threads and units < 16 * self.threads):
            return [*outer, tiles]
        return outer

    def _schedule_reduction(self, sch: Any, acc: Any) -> None:
        *spatial, group, kh, kw, step = sch.get_loops(acc)
        reduced = (group, kh, kw, step)
        o, i, c = spatial[-3 if self.flat else -4], spatial[-2], spatial[-1]
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

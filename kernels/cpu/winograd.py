"""Winograd convolution with 6x6 tiles on channel-blocked data: `whitebox.WinogradConv`.

In: X as NCHWc `[N, IC/c, H, W, c]`, transformed weights U `[OC/c, 6, 6, IC/c, c, c]`, optionally
B `[OC/c, 1, 1, c]`. Out: NCHWc `[N, OC/c, OH, OW, c]`. It takes kernels of 3x3 and 5x5 with
stride and dilation 1. A tile's 36 multiply-adds for a pair of channels make 4x4 results of a 3x3
kernel, which take 144 directly, or 2x2 of a 5x5 kernel, which take 100. The loop nest it makes is

    parallel bands of tile rows (on wide vectors, where V is small: a loop of its own):
        V[6, 6] = transformed 6x6 input tiles, for all input channels
        for channel tile:
            M[6, 6] = V[6, 6] x U[6, 6]                      36 products of matrices in registers
            for tile: results = transformed M, epilogue

The transforms multiply by small constants and add, so rounding errors grow by about ten.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from whitebox.kernels.cpu import conv_stages
from whitebox.kernels.cpu.conv_tiling import ceil_div
from whitebox.kernels.cpu.winograd_transforms import (
    IN,
    INPUT_TRANSFORM,
    output_transform,
    transformed,
)

# Transformed input of this size, by lanes, is made for all bands at once and stays in the outer
# cache. Where that is small, and a core reads slowly what another wrote, every band makes its own.
_SHARED_BYTES = {16: 4 * 1024 * 1024, 8: 0, 4: 0}
# A band's own transformed input should stay in a core's cache.
_BAND_BYTES = 640 * 1024
# Products of a band's tiles wait for the output transform in the cache.
_BAND_TILES = 64
_ACCUMULATORS = {16: 28, 8: 12, 4: 12}
_IN_FLIGHT = 8
# Time to fetch a vector of weights that only the outer cache holds, beside the work on it.
_STREAM_CYCLES = 1
# Estimated time to transform one tile of one channel block.
_TRANSFORM_CYCLES = 200


@dataclass(frozen=True, slots=True)
class Winograd:
    """Parameters: bands of `band` tile rows; a register tile is `columns` tiles x `vectors`."""

    x_shape: tuple[int, ...]
    out_blocks: int
    pads: tuple[int, int, int, int]
    kernel: int
    threads: int
    band: int
    columns: int
    vectors: int
    shared: bool

    @classmethod
    def default(
        cls,
        x_shape: Sequence[int],
        out_blocks: int,
        pads: Sequence[int],
        kernel: int,
        *,
        lanes: int,
        threads: int,
    ) -> Winograd:
        """The template with bands and register tiles that fit the caches and registers."""
        n, blocks, height, width = x_shape[:4]
        out = IN + 1 - kernel
        rows = ceil_div(height + pads[0] + pads[2] - kernel + 1, out)
        across = ceil_div(width + pads[1] + pads[3] - kernel + 1, out)
        row_bytes = IN * IN * blocks * lanes * across * 4
        shared = n * rows * row_bytes <= _SHARED_BYTES[lanes]

        def cost(band: int, columns: int, vectors: int) -> float:
            steps = ceil_div(band * across, columns)
            bands, groups = n * ceil_div(rows, band), ceil_div(out_blocks, vectors)
            worst = (
                ceil_div(bands * groups, threads) if shared else ceil_div(bands, threads) * groups
            )
            step = max(columns * vectors, _IN_FLIGHT) + 0.15 * (columns + vectors)
            step += _STREAM_CYCLES * vectors / steps
            spilled = 1.2 if not shared and band * row_bytes > _BAND_BYTES else 1.0
            return worst * steps * step * spilled

        choices = _choices(rows, across, out_blocks, _ACCUMULATORS[lanes])
        band, columns, vectors = min(choices, key=lambda choice: (cost(*choice), choice))
        return cls(
            tuple(x_shape),
            out_blocks,
            (pads[0], pads[1], pads[2], pads[3]),
            kernel,
            threads,
            band,
            columns,
            vectors,
            shared,
        )

    @property
    def out_size(self) -> tuple[int, int]:
        """Output height and width."""
        (height, width), (top, left, bottom, right) = self.x_shape[2:4], self.pads
        reach = self.kernel - 1
        return height + top + bottom - reach, width + left + right - reach

    @property
    def out(self) -> int:
        """Rows and columns that a tile writes."""
        return IN + 1 - self.kernel

    @property
    def _across(self) -> int:
        return ceil_div(self.out_size[1], self.out)

    @property
    def _bands(self) -> int:
        """Bands of one image."""
        return ceil_div(ceil_div(self.out_size[0], self.out), self.band)

    @property
    def _tiles(self) -> int:
        """Tiles of a band, rounded up to whole register tiles."""
        return ceil_div(self.band * self._across, self.columns) * self.columns

    def compute(self, x: Any, u: Any, bias: Any = None) -> Any:
        """Tensor expressions; blocks wino_*, conv_view and conv_bias."""
        from tvm import te

        products = self._products(self._transformed_input(x), u)
        bands, tiles, lanes = self.x_shape[0] * self._bands, self._tiles, self.x_shape[4]
        lead = (bands, self._full_blocks, tiles)
        transform = output_transform(self.out)
        rows = te.compute(
            (*lead, self.out, IN, lanes),
            lambda q, o, t, i, j, c: transformed(
                transform, i, [products[q, o, r, j, t, c] for r in range(IN)]
            ),
            name="wino_half",
        )
        result = te.compute(
            (*lead, self.out, self.out, lanes),
            lambda q, o, t, i, j, c: transformed(
                transform, j, [rows[q, o, t, i, s, c] for s in range(IN)]
            ),
            name="wino_out",
        )
        band = self.out * self.band

        def view(n: Any, o: Any, h: Any, w: Any, c: Any) -> Any:
            tile = h % band // self.out * self._across + w // self.out
            return result[n * self._bands + h // band, o, tile, h % self.out, w % self.out, c]

        shape = (self.x_shape[0], self.out_blocks, *self.out_size, lanes)
        viewed = te.compute(shape, view, name="conv_view")
        if bias is None:
            return viewed
        return te.compute(
            shape, lambda n, o, h, w, c: viewed[n, o, h, w, c] + bias[o, 0, 0, c], name="conv_bias"
        )

    @property
    def _full_blocks(self) -> int:
        return ceil_div(self.out_blocks, self.vectors) * self.vectors

    def _transformed_input(self, x: Any) -> Any:
        """V `[bands, 6, 6, IC/c, tiles, c]`."""
        from tvm import te, tirx

        n, blocks, height, width, lanes = self.x_shape
        top, left = self.pads[:2]
        bands, tiles = n * self._bands, self._tiles

        def tile(q: Any, k: Any, t: Any, r: Any, s: Any, c: Any) -> Any:
            h = (q % self._bands * self.band + t // self._across) * self.out + r
            w = t % self._across * self.out + s
            inside = tirx.all(h >= top, h < top + height, w >= left, w < left + width)
            image = q // self._bands
            return te.if_then_else(inside, x[image, k, h - top, w - left, c], 0.0)

        read = te.compute((bands, blocks, tiles, IN, IN, lanes), tile, name="wino_tile")
        half = te.compute(
            (bands, blocks, tiles, IN, IN, lanes),
            lambda q, k, t, i, s, c: transformed(
                INPUT_TRANSFORM, i, [read[q, k, t, r, s, c] for r in range(IN)]
            ),
            name="wino_rows",
        )
        return te.compute(
            (bands, IN, IN, blocks, tiles, lanes),
            lambda q, i, j, k, t, c: transformed(
                INPUT_TRANSFORM, j, [half[q, k, t, i, s, c] for s in range(IN)]
            ),
            name="wino_in",
        )

    def _products(self, v: Any, u: Any) -> Any:
        """M `[bands, OC/c, 6, 6, tiles, c]`."""
        from tvm import te

        n, blocks, _, _, lanes = self.x_shape
        k = te.reduce_axis((0, blocks), "k")
        lane = te.reduce_axis((0, lanes), "lane")
        last = self.out_blocks - 1

        def product(q: Any, o: Any, i: Any, j: Any, t: Any, c: Any) -> Any:
            o = te.min(o, last) if self._full_blocks > self.out_blocks else o
            return te.sum(v[q, i, j, k, t, lane] * u[o, i, j, k, lane, c], axis=[k, lane])

        shape = (n * self._bands, self._full_blocks, IN, IN, self._tiles, lanes)
        return te.compute(shape, product, name="wino_acc")

    def schedule(self, sch: Any) -> None:
        """Schedule a function made of `compute` and an elementwise epilogue."""
        own = ("wino_tile", "wino_rows", "wino_in", "wino_acc", "wino_half", "wino_out")
        result = conv_stages.inline_around(sch, own, staged=("wino_tile",), threads=self.threads)
        n, o, h, w, c = sch.get_loops(result)
        group, v = sch.split(o, [None, self.vectors])
        band, row, i = sch.split(h, [None, self.band, self.out])
        tile, j = sch.split(w, [None, self.out])
        order = (group, n, band) if self.shared else (n, band, group)
        sch.reorder(*order, v, row, tile, i, j, c)
        sch.vectorize(c)
        if conv_stages.unrolled_fits(sch, result, self.out * self.out):
            sch.unroll(i)
            sch.unroll(j)
        self._schedule_output(sch, tile)
        outer = sch.fuse(*order) if self.shared else sch.fuse(n, band)
        products = sch.get_sblock("wino_acc")
        sch.compute_at(products, outer if self.shared else group, preserve_unit_loops=True)
        self._schedule_input(sch, None if self.shared else outer)
        conv_stages.parallel(sch, [outer], self._product_cycles, self.threads)
        self._schedule_products(sch, products)

    @property
    def _transform_cycles(self) -> float:
        n, blocks = self.x_shape[:2]
        return n * blocks * self._bands * self._tiles * _TRANSFORM_CYCLES

    @property
    def _product_cycles(self) -> float:
        n, blocks, _, _, lanes = self.x_shape
        tiles = n * self._bands * self._tiles * self._full_blocks
        return tiles * (IN * IN * blocks * lanes + _TRANSFORM_CYCLES)

    def _schedule_output(self, sch: Any, tile: Any) -> None:
        for name, axis in (("wino_out", -2), ("wino_half", -3)):
            block = sch.get_sblock(name)
            sch.compute_at(block, tile, preserve_unit_loops=True)
            sch.set_scope(block, 0, "local")
            _transform(sch, block, axis)

    def _schedule_input(self, sch: Any, outer: Any) -> None:
        block = sch.get_sblock("wino_in")
        if outer is not None:
            sch.compute_at(block, outer, preserve_unit_loops=True)
        *_, q, i, j, k, tile, c = sch.get_loops(block)
        sch.reorder(q, k, tile, i, j, c)
        if outer is None:
            conv_stages.parallel(sch, [q, k], self._transform_cycles, self.threads)
        for name, axis in (("wino_rows", -3), ("wino_tile", None)):
            inner = sch.get_sblock(name)
            sch.compute_at(inner, tile, preserve_unit_loops=True)
            sch.set_scope(inner, 0, "local")
            _transform(sch, inner, axis)
        _transform(sch, block, -2)

    def _schedule_products(self, sch: Any, products: Any) -> None:
        writer = sch.cache_write(products, 0, "local")
        *_, o, i, j, t, c = sch.get_loops(writer)
        steps, column = sch.split(t, [None, self.columns])
        sch.reorder(i, j, steps, column, o, c)
        sch.compute_at(products, steps, preserve_unit_loops=True)
        sch.vectorize(c)
        sch.unroll(column)
        sch.unroll(o)
        *_, o, i, j, t, c, k, lane = sch.get_loops(products)
        sch.reorder(k, lane, t, o, c)
        sch.vectorize(c)
        sch.unroll(t)
        sch.unroll(o)
        sch.decompose_reduction(products, k)


def _choices(
    rows: int, across: int, out_blocks: int, accumulators: int
) -> Iterator[tuple[int, int, int]]:
    """Bands and register tiles: (band, columns, vectors)."""
    for band in range(1, rows + 1):
        if band > 1 and band * across > _BAND_TILES:
            break
        # More vectors at a time would read weights from too many places.
        for vectors in range(1, min(2, out_blocks) + 1):
            for columns in range(1, min(accumulators // vectors, band * across) + 1):
                yield band, columns, vectors


def _transform(sch: Any, block: Any, axis: int | None) -> None:
    """Vectorise a tile's channels; write out the rows of its transform, which lie along `axis`."""
    loops = sch.get_loops(block)
    sch.vectorize(loops[-1])
    if axis is not None:
        sch.reorder(loops[-2 if axis == -3 else -3], loops[axis])
        sch.unroll(loops[axis])

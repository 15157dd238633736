"""Direct convolution in bf16 on channel-blocked data, for CPUs with instructions for it.

In: X as NCHWc `[N, IC/16, H, W, 16]`, float32, W packed `[OC/nt, IC/32, KH, KW, 16, nt, 2]`, bf16,
optionally B `[OC/16, 1, 1, 16]`. Out: NCHWc `[N, OC/16, OH, OW, 16]`, float32. The loop nest is

    conv_pad: X in bfloat16, 32 channels a block, padded                  once, in parallel
    parallel n, panel of nt channels, rows, columns:
        tile[positions, nt] = sum over channel blocks, kh, kw             kernels/cpu/bf16
        result = epilogue(tile)

The 32 channels of a position are a row of a tile register, and positions lie a stride apart: X
needs no other form. Positions past the last are computed from padding and not written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from whitebox.kernels.cpu import bf16, conv_stages
from whitebox.kernels.cpu.conv_tiling import ceil_div
from whitebox.kernels.cpu.gemm_bf16 import tile_rows

BLOCK = bf16.LANES
# Channels that one step reduces over.
STEP = 2 * bf16.STEP_PAIRS
# Sums of one tile under PAIRS: that many vector registers.
_SUMS = 28
_IN_FLIGHT = 8
_COPY = "conv_pad"
_TILE = "conv_tile"


@dataclass(frozen=True, slots=True)
class Bf16Conv2d:
    """Parameters: a tile has `high` x `across` output positions and `nt` channels.

    `flat` joins H and W.
    """

    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]
    out_blocks: int
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]
    threads: int
    kind: str
    high: int
    across: int
    flat: bool

    @classmethod
    def default(
        cls,
        x_shape: Sequence[int],
        w_shape: Sequence[int],
        out_shape: Sequence[int],
        strides: Sequence[int],
        pads: Sequence[int],
        dilations: Sequence[int],
        *,
        threads: int,
        kind: str,
    ) -> Bf16Conv2d:
        """The template with tiles that waste few positions; `kind` is what the target has."""
        oh, ow = out_shape[2:4]
        one = tuple(w_shape[2:4]) == tuple(strides) == (1, 1)
        flat = one and not any(pads)
        if flat:
            oh, ow = 1, oh * ow
        if kind == bf16.PAIRS:
            high, across = 1, _columns(ow, w_shape[5] // BLOCK)
        else:
            across = tile_rows(ow)
            high = 2 if across <= bf16.TILE_ROWS and oh > 1 else 1
        return cls(
            tuple(x_shape),
            tuple(w_shape),
            out_shape[1],
            (strides[0], strides[1]),
            (pads[0], pads[1], pads[2], pads[3]),
            (dilations[0], dilations[1]),
            threads,
            kind,
            high,
            across,
            flat,
        )

    @property
    def out_size(self) -> tuple[int, int]:
        """Output height and width."""
        sizes = []
        for axis in range(2):
            reach = (self.w_shape[2 + axis] - 1) * self.dilations[axis] + 1
            padded = self.x_shape[2 + axis] + self.pads[axis] + self.pads[2 + axis]
            sizes.append((padded - reach) // self.strides[axis] + 1)
        return sizes[0], sizes[1]

    @property
    def _tiles(self) -> tuple[int, int]:
        """How many tiles lie above and beside each other."""
        height, width = self.out_size
        if self.flat:
            return 1, ceil_div(height * width, self.across)
        return ceil_div(height, self.high), ceil_div(width, self.across)

    def compute(self, x: Any, w: Any, bias: Any = None) -> Any:
        """Tensor expressions; blocks conv_pad, conv_tile, conv_view and conv_bias."""
        from tvm import te

        tile = self._product(self._padded(x), w)
        (oh, ow), blocks = self.out_size, self.w_shape[5] // BLOCK
        shape = (self.x_shape[0], self.out_blocks, oh, ow, BLOCK)

        def view(n: Any, o: Any, h: Any, p: Any, c: Any) -> Any:
            if self.flat:
                h, p = 0, h * ow + p
            at = (h // self.high, p // self.across, h % self.high, p % self.across)
            return tile[(n, o // blocks, *at, o % blocks * BLOCK + c)]

        result = te.compute(shape, view, name="conv_view")
        if bias is None:
            return result
        return te.compute(
            shape,
            lambda n, o, h, p, c: result[n, o, h, p, c] + bias[o, 0, 0, c],
            name="conv_bias",
        )

    def _padded(self, x: Any) -> Any:
        """X's bfloat16 bits `[N, IC/32, rows, columns, 2, 16]`, as large as full tiles read."""
        from tvm import te, tirx

        n, stored, height, width = self.x_shape[:4]
        top, left = self.pads[:2]
        below, beside = self._tiles
        last = (below * self.high - 1, beside * self.across - 1)
        rows, columns = (
            last[axis] * self.strides[axis]
            + (self.w_shape[2 + axis] - 1) * self.dilations[axis]
            + 1
            for axis in range(2)
        )
        if self.flat:
            rows = 1

        def element(n: Any, k: Any, h: Any, p: Any, b: Any, c: Any) -> Any:
            block = k * 2 + b
            if self.flat:
                inside = [p < height * width]
                at = (p // width, p % width)
            else:
                inside = [h >= top, h < top + height, p >= left, p < left + width]
                at = (h - top, p - left)
            if stored % 2:
                inside.append(block < stored)
            value = x[(n, block, *at, c)]
            return te.if_then_else(tirx.all(*inside), bf16.rounded(value), tirx.const(0, "uint16"))

        shape = (n, self.w_shape[1], rows, columns, 2, BLOCK)
        return te.compute(shape, element, name=_COPY)

    def _product(self, x: Any, w: Any) -> Any:
        """`[N, panels, tiles of rows, tiles of columns, high, across, nt]`."""
        from tvm import te

        _, steps, kernel_h, kernel_w, pairs, nt, _ = self.w_shape
        (sh, sw), (dh, dw) = self.strides, self.dilations
        axes = [
            te.reduce_axis((0, extent), name)
            for extent, name in (
                (steps, "step"), (kernel_h, "kh"), (kernel_w, "kw"), (pairs, "pair"), (2, "half"),
            )
        ]  # fmt: skip
        step, kh, kw, pair, half = axes

        def product(n: Any, o: Any, r: Any, t: Any, i: Any, j: Any, c: Any) -> Any:
            h = (r * self.high + i) * sh + kh * dh
            p = (t * self.across + j) * sw + kw * dw
            channel = pair * 2 + half
            left = bf16.widened(x[n, step, h, p, channel // BLOCK, channel % BLOCK])
            right = w[o, step, kh, kw, pair, c, half].astype("float32")
            return te.sum(left * right, axis=axes)

        shape = (self.x_shape[0], self.w_shape[0], *self._tiles, self.high, self.across, nt)
        return te.compute(shape, product, name=_TILE)

    def schedule(self, sch: Any) -> None:
        """Schedule a function made of `compute` and an elementwise epilogue."""
        result = conv_stages.inline_around(sch, (_TILE, _COPY), staged=(), threads=self.threads)
        if self.flat:
            width = self.out_size[1]
            sch.transform_block_layout(result, lambda n, o, h, w, c: (n, o, h * width + w, c))
        n, o, *rows, columns, c = sch.get_loops(result)
        panel, v = sch.split(o, [None, self.w_shape[5] // BLOCK])
        above, i = sch.split(rows[0], [None, self.high]) if rows else (None, None)
        beside, j = sch.split(columns, [None, self.across])
        outer = [loop for loop in (n, panel, above, beside) if loop is not None]
        sch.reorder(*outer, *([i] if rows else []), v, j, c)
        tile = sch.get_sblock(_TILE)
        sch.set_scope(tile, 0, "local")
        sch.compute_at(tile, beside, preserve_unit_loops=True)
        sch.vectorize(c)
        conv_stages.parallel(sch, outer, self._cycles, self.threads)
        # A tile's three axes, then the reduction's five.
        extents = (self.high, self.across, self.w_shape[5])
        bf16.write_out(sch, sch.get_loops(tile)[-8], self.kind, extents, self._tile_product)
        self._schedule_copy(sch)

    @property
    def _cycles(self) -> float:
        """About how long the products take on one core."""
        below, beside = self._tiles
        positions = self.x_shape[0] * below * self.high * beside * self.across
        panels, steps, kernel_h, kernel_w, pairs, nt, _ = self.w_shape
        return positions * panels * steps * kernel_h * kernel_w * pairs * nt / BLOCK / 8

    def _schedule_copy(self, sch: Any) -> None:
        copy = sch.get_sblock(_COPY)
        cycles = conv_stages.copy_cycles(sch, copy, BLOCK)
        n, k, h, p, _, c = sch.get_loops(copy)
        sch.vectorize(c)
        conv_stages.parallel(sch, [n, k, p] if self.flat else [n, k, h], cycles, self.threads)

    def _tile_product(self, reads: Sequence[Any], writes: Sequence[Any]) -> bf16.TileProduct:
        x, w = reads
        (out,) = writes
        first = [each.min for each in out.region]
        (sh, sw), (dh, dw) = self.strides, self.dilations
        _, steps, kernel_h, kernel_w, pairs, nt, _ = self.w_shape

        def a(row: int, at: Sequence[Any], pair: Any) -> Any:
            step, kh, kw = at
            i, j = divmod(row, self.across)
            half, lane = pair // (BLOCK // 2), pair % (BLOCK // 2) * 2
            return bf16.address(x, step, i * sh + kh * dh, j * sw + kw * dw, half, lane)

        loops = (steps, kernel_h, kernel_w)
        return bf16.TileProduct(
            self.high * self.across,
            nt,
            2 if self.high == 2 or self.across > bf16.TILE_ROWS else 1,
            loops if self.kind == bf16.TILES else (*loops, pairs),
            a,
            2 * STEP * sw,
            lambda at, pair, column: bf16.address(w, *at, pair, column, 0),
            out.source,
            lambda row, column: [
                *first[:-3],
                first[-3] + row // self.across,
                first[-2] + row % self.across,
                first[-1] + column,
            ],
        )


def _columns(width: int, vectors: int) -> int:
    """Positions of a tile in registers, such that few of the last tile's are wasted."""
    return min(
        range(1, min(_SUMS // vectors, width) + 1),
        key=lambda columns: (
            ceil_div(width, columns) * (max(columns * vectors, _IN_FLIGHT) + vectors),
            -columns,
        ),
    )

"""Sliding windows over H and W of blocked data: geometry, padded copies and cache-sized bands.

Shared by depthwise convolution and pooling. Tile choices know no TVM; `padded` builds a tensor
expression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from whitebox.kernels.cpu.conv_stages import is_input
from whitebox.kernels.cpu.conv_tiling import ceil_div

# A band's padded input should stay in the cache closest to the core, beside the rows it writes.
_BAND_BYTES = 24 * 1024
_TILE_OVERHEAD = 12
_BORDER_CYCLES_PER_VECTOR = 6


@dataclass(frozen=True, slots=True)
class Windows:
    """Kernel windows over an input of `size`; `pads` is top, left, bottom, right."""

    size: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]
    out_size: tuple[int, int]

    @classmethod
    def make(
        cls,
        size: Sequence[int],
        kernel: Sequence[int],
        strides: Sequence[int],
        pads: Sequence[int],
        dilations: Sequence[int],
        out_size: Sequence[int] | None = None,
    ) -> Windows:
        """Windows with the output size that floor rounding gives, unless one is named."""
        spans = [(kernel[a] - 1) * dilations[a] + 1 for a in (0, 1)]
        floor = [(size[a] + pads[a] + pads[a + 2] - spans[a]) // strides[a] + 1 for a in (0, 1)]
        oh, ow = out_size or floor
        return cls(
            (size[0], size[1]),
            (kernel[0], kernel[1]),
            (strides[0], strides[1]),
            (pads[0], pads[1], pads[2], pads[3]),
            (dilations[0], dilations[1]),
            (oh, ow),
        )

    @property
    def cycles(self) -> int:
        """Estimated time for one channel block of one image."""
        return prod(self.out_size) * (prod(self.kernel) + _BORDER_CYCLES_PER_VECTOR)

    def rows_read(self, out_rows: int) -> int:
        """Input rows that so many consecutive output rows read."""
        return (out_rows - 1) * self.strides[0] + (self.kernel[0] - 1) * self.dilations[0] + 1

    def columns_read(self, out_columns: int) -> int:
        """Input columns that so many consecutive output columns read."""
        return (out_columns - 1) * self.strides[1] + (self.kernel[1] - 1) * self.dilations[1] + 1

    def column_tile(self, lanes: int) -> int:
        """Accumulators per tile: the fewest cycles over the row, the larger tile where tied."""
        taps = prod(self.kernel)
        largest = 14 if lanes == 16 else 6

        def cost(tile: int) -> int:
            per_tile = max(tile, 8) * taps + 2 * tile + _TILE_OVERHEAD
            return ceil_div(self.out_size[1], tile) * per_tile

        return min(range(1, largest + 1), key=lambda tile: (cost(tile), -tile))

    def band(self, lanes: int, planes: int, threads: int) -> int:
        """Output rows per band: a divisor of all rows whose input fits the cache."""
        height, width = self.out_size
        row_bytes = self.columns_read(width) * lanes * 4

        def cost(rows: int) -> float:
            read = self.rows_read(rows)
            copied = read / (rows * self.strides[0])
            spilled = 1.5 if read * row_bytes > _BAND_BYTES else 1.0
            bands = planes * (height // rows)
            imbalance = ceil_div(bands, threads) * threads / bands
            compute = prod(self.kernel) / self.strides[0]
            return (compute + 2 * copied * spilled) * imbalance

        return min((r for r in range(1, height + 1) if height % r == 0), key=cost)

    def padded(self, x: Any, columns: int, value: float, name: str) -> Any:
        """X, copied with a border of `value` where windows or full column tiles leave it."""
        from tvm import te, tirx

        (top, left), (height, width) = self.pads[:2], self.size
        rows = self.rows_read(self.out_size[0])
        across = self.columns_read(ceil_div(self.out_size[1], columns) * columns)
        if not (top or left or rows > height or across > width) and is_input(x):
            return x
        lead = [int(dim) for dim in x.shape[:2]]
        lanes = [int(dim) for dim in x.shape[4:]]

        def body(n: Any, k: Any, h: Any, p: Any, *lane: Any) -> Any:
            inside = tirx.all(h >= top, h < top + height, p >= left, p < left + width)
            return te.if_then_else(inside, x[(n, k, h - top, p - left, *lane)], value)

        return te.compute((*lead, rows, across, *lanes), body, name=name)

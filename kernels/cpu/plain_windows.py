"""Multiply-accumulate over plain-layout windows, vectorised along the last spatial dimension.

In: X `[N, C, D1..Dk]` and, through a function, one weight per (output channel, input channel, tap).
Out: sums `[N, channels, O1..Ok]` with the last dimension rounded up to whole vectors. Shared by the
plain convolution, transposed convolution and pooling templates. The loop nest it makes is

    conv_pad: copy of X with its border, wide enough for whole vectors; with a stride in the last
              dimension, its phases apart, so that vector loads stay contiguous
    parallel n, channel tile, rows:
        for tile of vectors:
            acc[channels][vectors] = 0                       registers
            for input channel, taps:
                acc[m][v] += broadcast W[m, ...] * X[.., vector v]

`flat` joins all spatial dimensions into one: for 1x..x1 kernels, and by gathering every tap of
every position (im2col) where rows are much shorter than a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from whitebox.kernels.cpu import conv_stages, stages
from whitebox.kernels.cpu.conv_tiling import Extents, Tile, ceil_div, choose_tile
from whitebox.kernels.cpu.plain_copy import Reader, copy_blocks, phases

# Rows that fill less of their vectors than this are gathered when enough channels share the gather.
_POOR_FILL = 0.7
_GATHER_CHANNELS = 12


@dataclass(frozen=True, slots=True)
class PlainWindows:
    """Geometry and tile; `channels` and `in_channels` are per group, `pads` the leading ones."""

    batch: int
    groups: int
    in_channels: int
    channels: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    out_size: tuple[int, ...]
    lanes: int
    threads: int
    tile: Tile
    flat: bool

    @classmethod
    def default(
        cls,
        *,
        batch: int,
        groups: int,
        in_channels: int,
        channels: int,
        size: Sequence[int],
        kernel: Sequence[int],
        strides: Sequence[int],
        pads: Sequence[int],
        dilations: Sequence[int],
        out_size: Sequence[int],
        lanes: int,
        threads: int,
    ) -> PlainWindows:
        """Windows with the layout and the tile that the cost model likes best."""
        width = out_size[-1]
        fill = width / (ceil_div(width, lanes) * lanes)
        pointwise = prod(kernel) == 1 and prod(strides) == 1 and tuple(size) == tuple(out_size)
        flat = pointwise or (fill < _POOR_FILL and channels >= _GATHER_CHANNELS)
        positions = prod(out_size) if flat else width
        if positions <= lanes // 2:
            lanes //= 2
        extents = Extents(
            rows=batch * groups * (1 if flat else prod(out_size[:-1])),
            columns=channels,
            out_blocks=ceil_div(positions, lanes),
            taps=in_channels * prod(kernel),
            ragged_copy=0,
        )
        tile = choose_tile(extents, lanes, threads, whole=groups > 1)
        return cls(
            batch,
            groups,
            in_channels,
            channels,
            tuple(size),
            tuple(kernel),
            tuple(strides),
            tuple(pads),
            tuple(dilations),
            tuple(out_size),
            lanes,
            threads,
            tile,
            flat,
        )

    @property
    def row(self) -> int:
        """Positions in one row, before rounding up."""
        return prod(self.out_size) if self.flat else self.out_size[-1]

    @property
    def full_row(self) -> int:
        """Positions in one row of whole vector tiles."""
        step = self.lanes * self.tile.vectors
        return ceil_div(self.row, step) * step

    @property
    def full_channels(self) -> int:
        """Output channels of all groups in whole channel tiles."""
        return ceil_div(self.groups * self.channels, self.tile.columns) * self.tile.columns

    @property
    def whole(self) -> bool:
        """Whether rows are whole vector tiles, so that results can be written as they are made."""
        return self.row == self.full_row

    def accumulate(self, x: Any, weight: Callable[[Any, Any, list[Any]], Any]) -> Any:
        """Sums of `weight(channel, input channel, taps)` times X; blocks conv_pad and conv_acc."""
        from tvm import te

        read = self._reader(x)
        ic = te.reduce_axis((0, self.in_channels), "ic")
        taps = [te.reduce_axis((0, k), f"k{axis}") for axis, k in enumerate(self.kernel)]
        last = self.groups * self.channels - 1

        def body(n: Any, m: Any, *at: Any) -> Any:
            if self.full_channels > last + 1:
                m = te.min(m, last)
            group = m // self.channels if self.groups > 1 else 0
            value = read(n, group * self.in_channels + ic, list(at), taps)
            return te.sum(value * weight(m, ic, taps), axis=[ic, *taps])

        lead = () if self.flat else self.out_size[:-1]
        shape = (self.batch, self.full_channels, *lead, self.full_row)
        return te.compute(shape, body, name="conv_acc")

    def _reader(self, x: Any) -> Callable[[Any, Any, list[Any], list[Any]], Any]:
        """How the reduction reads X: from X itself, or from a copy made for it."""
        if self.flat:
            return self._flat_reader(x)
        stride, spacing = self.strides[-1], self.dilations[-1]
        copy = self._phases(x)

        def read(n: Any, c: Any, at: list[Any], taps: list[Any]) -> Any:
            rows = self._rows(at[:-1], taps[:-1])
            offset = taps[-1] * spacing
            return copy(n, c, *rows, offset % stride, at[-1] + offset // stride)

        return read

    def _rows(self, at: Sequence[Any], taps: Sequence[Any]) -> list[Any]:
        return [
            o * s + k * d
            for o, k, s, d in zip(at, taps, self.strides, self.dilations, strict=False)
        ]

    def _inside(self, at: Sequence[Any]) -> Any:
        """Whether a position of the padded input lies in X."""
        from tvm import tirx

        return tirx.all(
            *[tirx.all(i >= p, i < p + d) for i, p, d in zip(at, self.pads, self.size, strict=True)]
        )

    def _load(self, x: Any, n: Any, c: Any, at: Sequence[Any]) -> Any:
        """X at a position of the padded input, zero in the border."""
        from tvm import te

        source = [i - p for i, p in zip(at, self.pads, strict=True)]
        return te.if_then_else(self._inside(at), x[(n, c, *source)], 0.0)

    def _phases(self, x: Any) -> Reader:
        spans = [(k - 1) * d for k, d in zip(self.kernel, self.dilations, strict=True)]
        rows = [
            (o - 1) * s + span + 1
            for o, s, span in zip(self.out_size[:-1], self.strides, spans, strict=False)
        ]
        stride = self.strides[-1]
        across = self.full_row + spans[-1] // stride
        return phases(x, self.pads, rows, across, stride, prefix="conv", border=0.0)

    def _flat_reader(self, x: Any) -> Callable[[Any, Any, list[Any], list[Any]], Any]:
        from tvm import te

        pointwise = prod(self.kernel) == 1 and self.size == self.out_size
        if pointwise and self.whole and conv_stages.is_input(x):
            return lambda n, c, at, taps: x[(n, c, *self._unravel(at[0]))]

        def gathered(n: Any, c: Any, *where: Any) -> Any:
            taps, p = where[:-1], where[-1]
            at = self._rows(self._unravel(p), taps)
            return te.if_then_else(p < self.row, self._load(x, n, c, at), 0.0)

        shape = (self.batch, self.groups * self.in_channels, *self.kernel, self.full_row)
        copy = te.compute(shape, gathered, name="conv_pad")
        return lambda n, c, at, taps: copy[(n, c, *taps, at[0])]

    def _unravel(self, position: Any) -> list[Any]:
        """Spatial indices of a flat output position."""
        at: list[Any] = []
        for extent in reversed(self.out_size[1:]):
            at.insert(0, position % extent)
            position = position // extent
        return [position, *at]

    def view(self, acc: Any, n: Any, m: Any, at: Sequence[Any]) -> Any:
        """The sum for one output element."""
        if not self.flat:
            return acc[(n, m, *at)]
        return acc[n, m, _ravel(at, self.out_size)]

    def schedule(self, sch: Any, result: Any, fused: bool) -> None:
        """Tile the sums and, where `fused`, compute them as the block `result` writes them out."""
        self._schedule_copies(sch)
        acc = sch.get_sblock("conv_acc")
        if fused:
            writer = result
            sch.set_scope(acc, 0, "local")
            if self.flat and len(self.out_size) > 1:
                sch.transform_block_layout(result, _joined_positions(self.out_size))
        else:
            writer = sch.cache_write(acc, 0, "local")
        n, m, *rows, across = sch.get_loops(writer)
        outer_m, channel = sch.split(m, [None, self.tile.columns])
        tiles, vector, lane = sch.split(across, [None, self.tile.vectors, self.lanes])
        sch.reorder(n, outer_m, *rows, tiles, channel, vector, lane)
        sch.compute_at(acc, tiles, preserve_unit_loops=True)
        self._parallelise(sch, [n, outer_m, *rows, tiles])
        sch.vectorize(lane)
        if conv_stages.unrolled_fits(sch, writer, self.tile.columns * self.tile.vectors):
            sch.unroll(channel)
            sch.unroll(vector)
        self._schedule_reduction(sch, acc, len(rows))

    @property
    def by_channel_tile(self) -> bool:
        """Whether `schedule_channel_tiles` applies and has work for all threads."""
        tiles = self.batch * (self.full_channels // self.tile.columns)
        whole = self.full_channels == self.groups * self.channels
        return self.flat and whole and tiles >= 4 * self.threads

    def schedule_channel_tiles(self, sch: Any, result: Any) -> None:
        """Tile the sums of flat rows that end in part of a vector.

        A channel tile's sums go to whole vectors of scratch; `result` reads them from there.
        """
        self._schedule_copies(sch)
        acc = sch.get_sblock("conv_acc")
        writer = sch.cache_write(acc, 0, "local")
        if len(self.out_size) > 1:
            sch.transform_block_layout(result, _joined_positions(self.out_size))
        n, m, across = sch.get_loops(writer)
        outer_m, channel = sch.split(m, [None, self.tile.columns])
        item = sch.fuse(n, outer_m)
        tiles, vector, lane = sch.split(across, [None, self.tile.vectors, self.lanes])
        sch.reorder(item, tiles, channel, vector, lane)
        sch.compute_at(acc, tiles, preserve_unit_loops=True)
        # Placed from the sums' side, so that these stay whole vectors.
        sch.reverse_compute_at(result, item, preserve_unit_loops=True)
        stages.vectorize_rows(sch, sch.get_loops(result)[-1:], self.row, self.lanes)
        self._parallelise(sch, [item])
        sch.vectorize(lane)
        sch.unroll(channel)
        sch.unroll(vector)
        self._schedule_reduction(sch, acc, 0)

    def _schedule_copies(self, sch: Any) -> None:
        for block in copy_blocks(sch, "conv"):
            cycles = conv_stages.copy_cycles(sch, block, self.lanes)
            *outer, _ = sch.get_loops(block)
            conv_stages.fill_rows(sch, block, self.lanes)
            conv_stages.parallel(sch, outer, cycles, self.threads)

    def _parallelise(self, sch: Any, outer: list[Any]) -> None:
        rows = self.batch * (1 if self.flat else prod(self.out_size[:-1]))
        taps = self.in_channels * prod(self.kernel)
        cycles = rows * self.full_row / self.lanes * self.full_channels * taps
        conv_stages.parallel(sch, outer, cycles, self.threads)

    def _schedule_reduction(self, sch: Any, acc: Any, rows: int) -> None:
        reduced = 1 + len(self.kernel)
        loops = sch.get_loops(acc)
        spatial, reduction = loops[-reduced - rows - 3 : -reduced], loops[-reduced:]
        channel, across = spatial[1], spatial[-1]
        vector, lane = sch.split(across, [None, self.lanes])
        sch.reorder(*reduction, channel, vector, lane)
        sch.vectorize(lane)
        sch.unroll(channel)
        sch.unroll(vector)
        sch.decompose_reduction(acc, reduction[0])


def _joined_positions(out_size: Sequence[int]) -> Any:
    """The index map that joins all spatial dimensions of a result."""
    from tvm import tirx

    def joined(n: Any, m: Any, *at: Any) -> tuple[Any, ...]:
        return (n, m, _ravel(at, out_size))

    return tirx.IndexMap.from_func(joined, ndim=2 + len(out_size), index_dtype="int32")


def _ravel(at: Sequence[Any], size: Sequence[int]) -> Any:
    """The flat position of spatial indices."""
    position = at[0]
    for index, extent in zip(at[1:], size[1:], strict=True):
        position = position * extent + index
    return position

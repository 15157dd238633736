"""Register tiles for direct convolutions: a cost model over the few tiles that fit the registers.

In: the extents of a convolution and the vector width. Out: a `Tile`. It knows no TVM, so that a
kernel's identity can be computed without a compiler.

A tile holds `columns` output positions x `vectors` output-channel vectors in registers. One step of
the reduction loads `vectors` weight vectors and broadcasts `columns` input scalars.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# Two multiply-adds a cycle, each with a latency of four or five: the widest cores of today. A core
# with one unit ranks tiles the same way, only it is less sensitive to weight traffic.
_PER_CYCLE = 2
_IN_FLIGHT, _NARROW_IN_FLIGHT = 10, 8
# Cycles of a load where it is an instruction of its own: two a cycle, less where broadcasts meet in
# a bank of the cache. With AVX-512 (16 lanes) a broadcast is part of its multiply-add.
_LOAD_CYCLES = 0.65
# Two columns of 8 lanes share a cache line, which tiles of an odd number split with neighbours.
_SPLIT_LINE_CYCLES = 0.5
# Columns whose addresses fit the integer registers, and what making one costs.
_ADDRESSES, _ADDRESS_CYCLES = 6, 4
# Bytes of weights a core can stream per cycle when one channel tile's weights stay in its cache,
# and when they do not.
_CACHED_BYTES_PER_CYCLE = 24.0
_UNCACHED_BYTES_PER_CYCLE = 10.0
_CACHE_BYTES = 768 * 1024
_COPY_CYCLES_PER_VECTOR = 6
# Input of one chunk of positions stays in a core's own cache, beside weights.
_CHUNK_BYTES = 192 * 1024
# Cycles to fetch a cache line (two vectors of 8) that another core wrote last, a line of weights
# that the other core reads too, and one of an input that a core's own cache does not hold.
_REMOTE_LINE, _SHARED_LINE, _OUTER_LINE = 80, 10, 1.3


@dataclass(frozen=True, slots=True)
class Tile:
    """What one micro-kernel computes: `columns` positions of `vectors` channel vectors."""

    columns: int
    vectors: int


@dataclass(frozen=True, slots=True)
class Extents:
    """The loop extents around and in the micro-kernel.

    `rows` counts independent rows (batch included) of `columns` positions; `taps` is the length of
    the reduction; `ragged_copy` the vectors to copy where columns do not divide. `overlapping`:
    neighbouring columns read the same input scalars one step apart, and the compiler then keeps
    them in registers as well. `gathered`: the rows of an image are joined, and each column of a
    tile has an address of its own. `read_bytes` is the size of the input.
    """

    rows: int
    columns: int
    out_blocks: int
    taps: int
    ragged_copy: int
    overlapping: bool = False
    gathered: bool = False
    read_bytes: int = 0


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def register_tiles(extents: Extents, lanes: int) -> Iterator[Tile]:
    """All tiles whose accumulators and operands fit the vector registers."""
    # With AVX-512 the broadcast folds into the multiply-add; without, it needs a register, and the
    # compiler keeps all weight vectors of a step.
    budget = 31 if lanes == 16 else 15
    for vectors in range(1, 9):
        for columns in range(1, _ADDRESSES + 1 if extents.gathered else budget):
            operands = vectors if lanes < 16 else min(columns, vectors)
            operands = columns if extents.overlapping else operands
            if columns * vectors + operands <= budget:
                yield Tile(columns, vectors)


def cycles(extents: Extents, tile: Tile, lanes: int, threads: int) -> float:
    """Estimated time of the slowest thread, where threads share out channel tiles."""
    channel_tiles = ceil_div(extents.out_blocks, tile.vectors)
    column_tiles = ceil_div(extents.columns, tile.columns)
    units = channel_tiles * extents.rows * column_tiles
    copied = extents.ragged_copy if extents.columns % tile.columns else 0
    time = ceil_div(units, threads) * _tile_cycles(extents, tile, lanes)
    return time + copied * _COPY_CYCLES_PER_VECTOR / threads


def positions_cycles(
    extents: Extents, tile: Tile, chunk: int, images: int, lanes: int, threads: int
) -> float:
    """The same where they share out chunks of `chunk` column tiles (or rows, if not joined)."""
    column_tiles = ceil_div(extents.columns, tile.columns)
    per_image = column_tiles if extents.gathered else extents.rows // images
    tiles = chunk if extents.gathered else chunk * column_tiles
    worst = ceil_div(images * ceil_div(per_image, chunk), threads) * tiles
    channel_tiles = ceil_div(extents.out_blocks, tile.vectors)
    return worst * channel_tiles * _tile_cycles(extents, tile, lanes)


def chunk_sizes(extents: Extents, tile: Tile, images: int, threads: int) -> list[int]:
    """Chunks whose input fits a core's cache, in column tiles of joined rows, or else in rows."""
    least = ceil_div(extents.read_bytes // images, _CHUNK_BYTES)
    if extents.gathered:
        tiles = ceil_div(extents.columns, tile.columns)
        even = ceil_div(max(least, 1) * images, threads) * threads // images
        return sorted({ceil_div(tiles, n) for n in (least, even) if 0 < n <= tiles})
    rows = extents.rows // images
    return [n for n in range(1, rows // max(least, 1) + 1) if rows % n == 0]


def traffic_cycles(
    extents: Extents, tile: Tile, by_position: bool, lanes: int, threads: int
) -> float:
    """Time for what each thread fetches from elsewhere."""
    remote = 1 - 1 / threads
    read, weights = (
        nbytes / 64
        for nbytes in (extents.read_bytes, extents.taps * extents.out_blocks * lanes * lanes * 4)
    )
    if by_position:
        return weights * remote * _SHARED_LINE
    again = ceil_div(extents.out_blocks, tile.vectors) / threads
    outer = read * again * _OUTER_LINE if extents.read_bytes > _CHUNK_BYTES else 0
    return read * remote * _REMOTE_LINE + outer


def _tile_cycles(extents: Extents, tile: Tile, lanes: int) -> float:
    """Estimated time of one register tile."""
    held = tile.columns * tile.vectors
    slab = tile.vectors * extents.taps * lanes * 4
    rate = _CACHED_BYTES_PER_CYCLE if slab <= _CACHE_BYTES else _UNCACHED_BYTES_PER_CYCLE
    streaming = tile.vectors * lanes * 4 / rate
    # Loads beyond the multiply-adds cost little each, but break ties towards square tiles.
    step = max(_arithmetic(tile, lanes), streaming) + 0.05 * (tile.columns + tile.vectors)
    tested = extents.columns % tile.columns or extents.out_blocks % tile.vectors
    per_tile = extents.taps * step + (10 if tested else 4) * held + 40
    return per_tile + _ADDRESS_CYCLES * tile.columns * extents.gathered


def _arithmetic(tile: Tile, lanes: int) -> float:
    """Cycles of one step's multiply-adds and loads, whichever take longer."""
    held, loads = tile.columns * tile.vectors, tile.columns + tile.vectors
    if lanes == 16:
        return max(held, _IN_FLIGHT) / _PER_CYCLE
    split = _SPLIT_LINE_CYCLES if lanes == 8 and tile.columns % 2 else 0.0
    return max(max(held, _NARROW_IN_FLIGHT) / _PER_CYCLE, loads * _LOAD_CYCLES) + split


def ranked_tiles(extents: Extents, lanes: int, threads: int, most: int = 8) -> list[Tile]:
    """The tiles with the least estimated times, the best first."""
    tiles = register_tiles(extents, lanes)
    ranked = sorted(tiles, key=lambda tile: cycles(extents, tile, lanes, threads))
    return ranked[:most]


def choose_tile(extents: Extents, lanes: int, threads: int, whole: bool = False) -> Tile:
    """The tile with the least estimated time; the larger one where several tie.

    With `whole`, only tiles whose columns divide the columns.
    """
    tiles = register_tiles(extents, lanes)
    return min(
        (tile for tile in tiles if not (whole and extents.columns % tile.columns)),
        key=lambda tile: (cycles(extents, tile, lanes, threads), -tile.columns * tile.vectors),
    )

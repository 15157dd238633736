"""The register-tiled core of every float32 matrix product, and the choice of its tiles.

Enters: rows of A and panels of B (`[batch, ceil(N/nt), K, nt]`, zero-padded along N) as TE
expressions. Leaves: the tiles of the product, and a schedule in which each tile's accumulators stay
in registers. The choice of tiles imports no TVM. Nothing here knows which operator it serves.

    for item in parallel(batch × N/nt × M/mt):      a panel of B stays in cache over its rows' tiles
        for k: mt × nt fused multiply-adds          no bound test: the last tile repeats rows
        tile → stack                                full vectors
        for i in mt, j in nt: result = epilogue(tile)      the only place that tests bounds
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from whitebox.kernels.cpu import stages

# Vector registers that accumulators may take, of 32 (AVX-512) or 16 (AVX, NEON has 32 but short).
_ACCUMULATORS = {16: 28, 8: 12, 4: 12}
# Fused multiply-adds that must be in flight to hide their latency.
_LATENCY = 8
# Row strides that are a multiple of this fall into one cache set, which has 8 ways.
_ALIAS_BYTES, _WAYS = 4096, 8

TILE, RESULT, PANELS, ROWS = "matmul_tile", "matmul", "panels", "rows"


@dataclass(frozen=True)
class Tiles:
    """Extents of one matrix product and of its register tile.

    `batch` products of `m`×`k` by `k`×`n`; a tile is `mt` rows by `nt` columns (a multiple of
    `lanes`).
    """

    batch: int
    m: int
    k: int
    n: int
    mt: int
    nt: int
    lanes: int
    threads: int

    @property
    def row_tiles(self) -> int:
        return -(-self.m // self.mt)

    @property
    def panels(self) -> int:
        return -(-self.n // self.nt)

    @property
    def parallel(self) -> bool:
        """Whether the work pays for waking the other threads."""
        work = self.batch * self.m * self.k * self.n
        return self.threads > 1 and work >= stages.PARALLEL_WORK * 2

    def row(self, tile: Any, i: Any) -> Any:
        """The row that position `i` of row tile `tile` computes.

        Past the last row it repeats a row of the tile before, so that the micro-kernel never tests
        a bound and never reads outside A; what it computes there is not written out.
        """
        from tvm import tirx

        tail = self.m - (self.row_tiles - 1) * self.mt
        if tail == self.mt:
            return tile * self.mt + i
        outside = tirx.all(tile == self.row_tiles - 1, i >= tail)
        return tile * self.mt + i - tirx.Select(outside, self.mt, 0)

    def element(self, product: Any, f: Any, r: Any, n: Any) -> Any:
        """Element (`r`, `n`) of product `f`, given the tensor of tiles."""
        return product[f, n // self.nt, r // self.mt, r % self.mt, n % self.nt]


def choose_nt(n: int, lanes: int) -> int:
    """Columns of a register tile: the multiple of `lanes` that pads `n` least for its speed.

    Four vectors a row need the fewest loads per multiply-add; narrower tiles cost a little more.
    """
    widths = {4: 1.0, 3: 1.02, 2: 1.06, 1: 1.25} if lanes == 16 else {3: 1.0, 2: 1.03, 1: 1.25}
    return min(
        (width * lanes for width in widths),
        key=lambda nt: (-(-n // nt) * nt * widths[nt // lanes], -nt),
    )


def most_rows(nt: int, lanes: int, m: int) -> int:
    """The most rows of a register tile of `nt` columns that fit the registers."""
    return max(1, min(m, _ACCUMULATORS.get(lanes, 12) // (nt // lanes)))


def choose_mt(m: int, k: int, nt: int, lanes: int, *, columns: int, threads: int) -> int:
    """Rows of a register tile, given that `columns` = batch × panels tiles lie side by side."""
    vectors = nt // lanes
    most = most_rows(nt, lanes, m)
    if k * 4 % _ALIAS_BYTES == 0:
        most = min(most, _WAYS)

    def cost(mt: int) -> float:
        items = columns * -(-m // mt)
        busy = max(mt * vectors, _LATENCY)
        loads = (mt + vectors) / 2
        return -(-items // threads) * (max(busy, loads, nt / 4) + 2)

    return min(range(1, most + 1), key=lambda mt: (cost(mt), -mt))


def tile_product(tiles: Tiles, row: Callable[..., Any], panel: Callable[..., Any]) -> Any:
    """The TE tensor of tiles: `row(f, r, k)` reads A, `panel(f, p, k, j)` reads panels of B."""
    from tvm import te

    k = te.reduce_axis((0, tiles.k), name="k")
    shape = (tiles.batch, tiles.panels, tiles.row_tiles, tiles.mt, tiles.nt)
    return te.compute(
        shape,
        lambda f, p, t, i, j: te.sum(row(f, tiles.row(t, i), k) * panel(f, p, k, j), axis=k),
        name=TILE,
    )


def schedule_tiles(
    sch: Any, tiles: Tiles, loops: list[Any], *, shared: bool, panels: Any | None = None
) -> None:
    """Schedule the tiles and the write-out.

    `loops` are the output block's, one each over batch, rows and columns. `shared` says that all
    products of the batch have the same B, whose panels then lead. `panels` is the block that packs
    B, if it is to pack each panel just before its use.
    """
    output = stages.output_block(sch)
    tile = sch.get_sblock(TILE)
    batch, row, column = loops
    row_tile, i = sch.split(row, [None, tiles.mt])
    panel, j = sch.split(column, [None, tiles.nt])
    outer = (panel, batch) if shared else (batch, panel)
    sch.reorder(*outer, row_tile, i, j)
    if panels is None:
        item = parallel = sch.fuse(*outer, row_tile)
    else:
        parallel, item = sch.fuse(*outer), row_tile
    if tiles.parallel:
        sch.parallel(parallel)
    sch.compute_at(tile, item, preserve_unit_loops=True)
    if panels is not None:
        sch.compute_at(panels, parallel, preserve_unit_loops=True)
    sch.set_scope(tile, 0, "local")
    _schedule_write_out(sch, tiles, output, j)
    _schedule_micro_kernel(sch, tiles, tile)


def schedule_packing(sch: Any, tiles: Tiles, panels: Any, *, parallel: bool) -> None:
    """Pack B's panels, a vector of columns at a time."""
    f, p, _, j = sch.get_loops(panels)[-4:]
    if parallel and tiles.parallel:
        sch.parallel(sch.fuse(f, p))
    outer, inner = sch.split(j, [None, tiles.lanes])
    sch.vectorize(inner)
    if tiles.n % tiles.nt:
        sch.annotate(outer, "pragma_loop_partition_hint", 1)


def _schedule_write_out(sch: Any, tiles: Tiles, output: Any, j: Any) -> None:
    """Epilogue and store, one vector at a time in a rolled loop: its code is small."""
    outer, inner = sch.split(j, [None, tiles.lanes])
    sch.vectorize(inner)
    if tiles.n % tiles.nt:
        sch.annotate(outer, "pragma_loop_partition_hint", 1)


def _schedule_micro_kernel(sch: Any, tiles: Tiles, tile: Any) -> None:
    """All `mt` × `nt` accumulators in registers over the whole of K, then one copy to the stack."""
    copy = sch.cache_write(tile, 0, "local")
    i, j, k = sch.get_loops(tile)[-3:]
    vector, lane = sch.split(j, [None, tiles.lanes])
    sch.reorder(k, i, vector, lane)
    for loops in ((i, vector, lane), _copy_loops(sch, copy, tiles.lanes)):
        sch.unroll(loops[0])
        sch.unroll(loops[1])
        sch.vectorize(loops[2])
    sch.decompose_reduction(tile, k)


def _copy_loops(sch: Any, copy: Any, lanes: int) -> tuple[Any, Any, Any]:
    i, j = sch.get_loops(copy)[-2:]
    vector, lane = sch.split(j, [None, lanes])
    return i, vector, lane

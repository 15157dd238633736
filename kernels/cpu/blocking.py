"""How a matrix product is cut so that what is read again is near.

Enters: the extents of a product. Leaves: the sizes of its parts. Needs no TVM.

A block of a panel of B, `depth` of K deep, stays in L1 over all row tiles of an item; the rows of A
that meet it stay in L2 over the panels of the item. The sums wait in a strip between blocks of K.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from whitebox.ir.sizes import Extent
from whitebox.kernels.cpu.gemm_tiles import choose_mt, most_rows

# Bytes of L1 that a block of a panel may take, by lanes. With AVX-512 a core has a larger L1, and
# an L2 that feeds the registers as fast as they multiply.
_PANEL_BYTES = {8: 20 * 1024}
# Rows of an item: what of A is read again in each of its panels has to stay in L2.
_ROWS = 208
# Panels of an item.
_GROUP = 4
# Rows of an item where there may be too few items for all threads otherwise, in tiles.
_CHUNK = 8
# Weights that are not in L2 when a product starts: blocks of K let the next of them be fetched in
# time. Fewer rows read a block too few times for it to matter where it is; with more rows fetching
# is a small part of the time, and the sums that wait between blocks cost more.
_FAR_BYTES = 512 * 1024
_BLOCKED_ROWS = range(24, 512)


@dataclass(frozen=True)
class Blocking:
    """`mt` rows of a register tile; `rows` (whole tiles) and `panels` of an item; `depth` of K in a
    block, or None where all of K is one block.
    """

    mt: int
    rows: int
    panels: int
    depth: int | None


def choose(
    m: Extent,
    k: Extent,
    n: Extent,
    nt: int,
    *,
    batch: Extent,
    lanes: int,
    threads: int,
    deep: bool,
) -> Blocking:
    """The blocking that the cost model likes best; `deep` says whether K may be cut."""
    panels = -(-n // nt) if isinstance(n, int) else None
    known = m if isinstance(m, int) else None
    far = isinstance(k, int) and isinstance(n, int) and 4 * k * n >= _FAR_BYTES
    deep = deep and far and (known is None or known in _BLOCKED_ROWS)
    depth = _depth(k, nt, lanes) if deep else None
    if known is None or panels is None or not isinstance(batch, int) or not isinstance(k, int):
        mt = choose_mt(1 << 12, 1, nt, lanes, columns=1, threads=1)
        rows, group = _CHUNK * mt, 1
        if depth is not None and panels is not None:
            group = _group(panels, 1, threads)
            if panels // group >= 2 * threads:
                rows = _ROWS // mt * mt
        return Blocking(mt, rows, group, depth)
    aligned_k = k if depth is None else depth
    mt = choose_mt(known, aligned_k, nt, lanes, columns=batch * panels, threads=threads)
    tiles = -(-known // mt)
    if depth is None:
        return Blocking(mt, min(_CHUNK, tiles) * mt, 1, None)
    chunks = -(-tiles * mt // _ROWS)
    group = _group(panels, chunks * batch, threads)
    while -(-panels // group) * chunks * batch < threads and chunks < tiles:
        chunks += 1
    return Blocking(mt, -(-tiles // chunks) * mt, group, depth)


def alternatives(default: Blocking, nt: int, lanes: int) -> Iterator[Blocking]:
    """Other blockings, for measuring which is really the best."""
    for mt in range(most_rows(nt, lanes, default.rows), 0, -1):
        rows = -(-default.rows // mt) * mt
        if mt != default.mt:
            yield replace(default, mt=mt, rows=rows)
    if default.depth is not None:
        yield replace(default, depth=None, panels=1)


def _depth(k: Extent, nt: int, lanes: int) -> int | None:
    """The depth of a block: the largest that fits, a divisor of `k` if one is not much smaller."""
    most = _PANEL_BYTES.get(lanes, 0) // (4 * nt)
    if not isinstance(k, int) or not most or k <= most:
        return None
    fitting = (depth for depth in range(most, most // 2, -1) if k % depth == 0)
    return next(fitting, -(-k // -(-k // most)))


def _group(panels: int, others: int, threads: int) -> int:
    """How many panels an item takes, the threads' shares being as even as they can."""

    def longest(group: int) -> int:
        return -(-(-(-panels // group) * others) // threads) * group

    return min(range(min(_GROUP, panels), 0, -1), key=longest)

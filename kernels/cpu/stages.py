"""What schedule templates do to the blocks around their anchor.

Enters: an `s_tir.Schedule` of a function made of producers, an anchor and an epilogue. Leaves: the
same schedule with the surrounding blocks inlined, or made into vectorised stages of their own.
It never looks at a Graph, and never touches a block that the caller wants to keep.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

# Below this many scalar operations a parallel launch (about 7 us) costs more than it saves.
PARALLEL_WORK = 200_000


def block_name(sch: Any, block: Any) -> str:
    """The name that a block has in the function."""
    return str(sch.get(block).name_hint)


def blocks(sch: Any) -> list[Any]:
    """All blocks of the function, producers before consumers."""
    return list(sch.get_child_blocks(sch.get_sblock("root")))


def output_block(sch: Any) -> Any:
    """The one block that writes the function's result."""
    (block,) = sch.get_output_blocks(sch.get_sblock("root"))
    return block


def upstream(sch: Any, block: Any) -> list[Any]:
    """Every block that `block` depends on, nearest first, each once."""
    found: dict[str, Any] = {}
    pending = list(sch.get_producers(block))
    while pending:
        producer = pending.pop(0)
        name = block_name(sch, producer)
        if name not in found:
            found[name] = producer
            pending += sch.get_producers(producer)
    return list(found.values())


def computes(sch: Any, block: Any) -> bool:
    """Whether a block does more than move data: arithmetic, a select or a call."""
    from tvm import ir, tirx

    body = sch.get(block).body
    return not (isinstance(body, tirx.BufferStore) and isinstance(body.value, ir.TensorLoad))


def inline_all(sch: Any, keep: Collection[str]) -> None:
    """Inline every block but those named in `keep` and the output block."""
    kept = {*keep, block_name(sch, output_block(sch))}
    for block in blocks(sch):
        if block_name(sch, block) not in kept:
            sch.compute_inline(block)


def vectorize_rows(sch: Any, loops: Sequence[Any], extent: int, lanes: int) -> None:
    """Vectorise the last of `loops` (of `extent`), the tail apart from the full vectors."""
    if extent < lanes:
        return
    outer, inner = sch.split(loops[-1], [None, lanes])
    sch.vectorize(inner)
    if extent % lanes:
        # Otherwise the bound test sits in every vector and turns it into scalars.
        sch.annotate(outer, "pragma_loop_partition_hint", 1)


def extents(sch: Any, block: Any) -> list[int]:
    """Extents of the loops around a block, outermost first."""
    return [int(sch.get(loop).extent) for loop in sch.get_loops(block)]


def schedule_stage(sch: Any, block: Any, lanes: int, threads: int) -> None:
    """A spatial block on its own at the root: parallel over rows, vectors along the last axis."""
    sizes = extents(sch, block)
    loops = sch.get_loops(block)
    if len(loops) > 1:
        rows = sch.fuse(*loops[:-1])
        work = 4
        for size in sizes:
            work *= size
        if threads > 1 and work >= PARALLEL_WORK:
            sch.parallel(rows)
    vectorize_rows(sch, loops, sizes[-1], lanes)

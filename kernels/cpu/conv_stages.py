"""Schedule steps that the convolution and pooling templates share.

In: a `tvm.s_tir.Schedule` of a function made of optional injective producers, the template's own
blocks, and an elementwise epilogue. Out: the same schedule with producers and epilogue inlined.
It never chooses tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

# Waking the thread pool takes about 7 us; two threads gain as much on about this many cycles.
_PARALLEL_WORTH_CYCLES = 50_000
_COPY_CYCLES_PER_VECTOR = 5
# Vectors of this many lanes come with 32 registers, in cores with large caches of their own.
WIDE = 16

# Write-out code of more vector instructions than this stays a loop: unrolled, it would dominate
# the compile time while the reduction dominates the run time.
_UNROLLED_EPILOGUE_OPERATIONS = 300
_CALL_OPERATIONS = 20


def is_input(tensor: Any) -> bool:
    """Whether the tensor is a function parameter rather than the result of a producer block."""
    from tvm import te

    return isinstance(tensor.op, te.PlaceholderOp)


def blocks(sch: Any) -> dict[str, Any]:
    """The function's blocks by name, in program order."""
    root = sch.get_sblock("root")
    return {sch.get(block).name_hint: block for block in sch.get_child_blocks(root)}


def parallel(sch: Any, loops: Sequence[Any], cycles: float, threads: int) -> None:
    """Run the loops in parallel where there are threads, and work enough to wake them."""
    if threads > 1 and cycles > _PARALLEL_WORTH_CYCLES:
        sch.parallel(sch.fuse(*loops) if len(loops) > 1 else loops[0])


def copy_cycles(sch: Any, block: Any, lanes: int) -> float:
    """Estimated time of an injective block."""
    return elements(sch, block) / lanes * _COPY_CYCLES_PER_VECTOR


def inline_around(sch: Any, own: Sequence[str], staged: Sequence[str], threads: int) -> Any:
    """Inline all blocks that are not the template's `own`; return the block that writes the result.

    A producer that a block of `staged` reads (it reads each element many times), or whose result
    is broadcast and not trivial, becomes a loop of its own, so that nothing is computed twice.
    """
    (result,) = sch.get_output_blocks(sch.get_sblock("root"))
    result_name = sch.get(result).name_hint
    for name, block in blocks(sch).items():
        if name in own or name == result_name:
            continue
        readers = {sch.get(reader).name_hint for reader in sch.get_consumers(block)}
        if readers & set(staged) or _repeated(sch, block, result):
            flat_loop(sch, block, threads)
        else:
            sch.compute_inline(block)
    return sch.get_sblock(result_name)


def _repeated(sch: Any, block: Any, result: Any) -> bool:
    """Whether inlining the block into the result would repeat costly work for every element."""
    fewer = elements(sch, block) < elements(sch, result)
    return fewer and operations(sch.get(block).body.value) >= _CALL_OPERATIONS


def elements(sch: Any, block: Any) -> int:
    """How often the block runs, reductions included."""
    return prod(int(sch.get(loop).extent) for loop in sch.get_loops(block))


def flat_loop(sch: Any, block: Any, threads: int, lanes: int = 16) -> None:
    """Schedule an injective block as one parallel vectorised loop over all its elements."""
    loops = sch.get_loops(block)
    if not loops:
        return
    cycles = copy_cycles(sch, block, lanes)
    fused = sch.fuse(*loops) if len(loops) > 1 else loops[0]
    outer, inner = sch.split(fused, [None, lanes])
    parallel(sch, [outer], cycles, threads)
    sch.vectorize(inner)


def operations(expression: Any) -> int:
    """Roughly how many vector instructions an element expression costs; indices are free."""
    from tvm import ir

    if hasattr(expression, "indices"):  # a buffer load
        return 1
    if isinstance(expression, ir.Call):
        return _CALL_OPERATIONS + sum(operations(argument) for argument in expression.args)
    operands = ("a", "b", "value", "body", "condition", "true_value", "false_value")
    parts = [getattr(expression, name) for name in operands if hasattr(expression, name)]
    parts = [part for part in parts if isinstance(part, ir.Expr)]
    return (1 if parts else 0) + sum(operations(part) for part in parts)


def unrolled_fits(sch: Any, block: Any, copies: int) -> bool:
    """Whether `copies` of the block's body may be written out one after the other."""
    return operations(sch.get(block).body.value) * copies <= _UNROLLED_EPILOGUE_OPERATIONS


def copy_rows(sch: Any, block: Any, lanes: int, threads: int, by_row: bool = False) -> None:
    """Schedule a padded copy `[N, C, H, W]` or `[N, C/c, H, W, c]`.

    Rows of single elements are first cleared and then filled: a test per element would not
    vectorise. Channel vectors are tested one by one, which costs less than clearing them twice.
    """
    loops = sch.get_loops(block)
    cycles = copy_cycles(sch, block, lanes)
    if int(sch.get(loops[-1]).extent) == lanes:
        sch.vectorize(loops[-1])
        outer = loops[:-2]
        if by_row:
            n, channel, row = outer
            sch.reorder(n, row, channel)
            outer = [n, row]
    else:
        fill_rows(sch, block, lanes)
        outer = loops[:-1]
    parallel(sch, outer, cycles, threads)


def fill_rows(sch: Any, block: Any, lanes: int) -> None:
    """Clear each row, then fill it, instead of testing every element; else leave it to LLVM."""
    row = sch.get_loops(block)[-1]
    if not sch.can_decompose_padding(block, row):
        return
    for part in (sch.decompose_padding(block, row), block):
        extent = int(sch.get(sch.get_loops(part)[-1]).extent)
        outer, inner = sch.split(sch.get_loops(part)[-1], [None, lanes])
        sch.vectorize(inner)
        if extent % lanes:
            # Otherwise the bound test sits in every vector and turns it into scalars.
            sch.annotate(outer, "pragma_loop_partition_hint", 1)


def schedule_windows(
    sch: Any,
    result: Any,
    *,
    accumulator: Any,
    copy: str,
    band: int,
    columns: int,
    cycles: float,
    threads: int,
) -> None:
    """Schedule windows over NCHWc: bands of rows in parallel, `columns` registers a tile."""
    n, o, h, w, c = sch.get_loops(result)
    bands, row = sch.split(h, [None, band])
    tiles, i = sch.split(w, [None, columns])
    # Threads share out what the convolutions around share out: rows, or channels on wide vectors.
    order = (n, o, bands) if int(sch.get(c).extent) >= WIDE else (n, bands, o)
    sch.reorder(*order, row, tiles, i, c)
    outer = sch.fuse(*order)
    sch.set_scope(accumulator, 0, "local")
    sch.compute_at(accumulator, tiles, preserve_unit_loops=True)
    if copy in blocks(sch):
        padded = sch.get_sblock(copy)
        sch.compute_at(padded, outer, preserve_unit_loops=True)
        sch.vectorize(sch.get_loops(padded)[-1])
    parallel(sch, [outer], cycles, threads)
    sch.vectorize(c)
    if unrolled_fits(sch, result, columns):
        sch.unroll(i)
    *_, across, lane, kh, kw = sch.get_loops(accumulator)
    sch.reorder(kh, kw, across, lane)
    sch.vectorize(lane)
    sch.unroll(across)
    sch.decompose_reduction(accumulator, kh)


def write_rows(sch: Any, block: Any, threads: int, interleaved: int = 1) -> None:
    """Schedule an epilogue of its own: parallel over rows, `interleaved` elements a step."""
    *outer, row = sch.get_loops(block)
    cycles = elements(sch, block)
    if interleaved > 1:
        _, phase = sch.split(row, [None, interleaved])
        sch.unroll(phase)
    parallel(sch, outer, cycles, threads)

"""Products in bf16 as instructions of their own: AMX tiles, and AVX-512 dot products of pairs.

Enters: a scheduled block that sums `a[i, k] * w[k, j]` over a tile, and where its operands lie.
Leaves: the same block with its loops written out in TIR. Operands reach the instructions by
address: whatever of type bfloat16 TVM sees in an expression, it widens. Weights
lie in pairs along k, `[.., K/2, columns, 2]`: so both kinds of instruction read them.

    tiles: two by two tiles of up to 16 rows x 16 columns; a step adds 32 products to each sum
    pairs: rows x vectors of sums in registers; a step adds 2 products to each sum of a vector
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TILES, PAIRS = "tiles", "pairs"

# Pairs of k that one step of the reduction takes.
STEP_PAIRS = 16
LANES = 16
# A tile register: rows of 64 bytes.
TILE_ROWS, TILE_BYTES = 16, 64
# Sums of two by two tiles hide the latency of the instruction; then two for each operand are left.
_A_TILE, _W_TILE = 4, 6

DOT = "whitebox_dot_bf16"
# TVM has no bfloat16 that LLVM would take for an operand, hence a function in LLVM's own terms.
DOT_LLVM = f"""
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)

define linkonce_odr <16 x float> @{DOT}(<16 x float> %sum, ptr %a, ptr %w) alwaysinline {{
  %pair = load i32, ptr %a, align 4
  %one = insertelement <16 x i32> poison, i32 %pair, i64 0
  %all = shufflevector <16 x i32> %one, <16 x i32> poison, <16 x i32> zeroinitializer
  %left = bitcast <16 x i32> %all to <32 x bfloat>
  %right = load <32 x bfloat>, ptr %w, align 4
  %new = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(
      <16 x float> %sum, <32 x bfloat> %right, <32 x bfloat> %left)
  ret <16 x float> %new
}}
"""


@dataclass(frozen=True)
class TileProduct:
    """What the instructions need to know of one tile of sums, `rows` x `columns`.

    Under TILES the rows are those of `stacked` registers, one or two, of equal heights.
    `loops` are the extents of the reduction's loops; each of their iterations takes STEP_PAIRS
    pairs, but under PAIRS the last of `pairs`. Given their variables, `a(row, at, pair)` and
    `w(at, pair, column)` are the addresses of operands; rows of a are `a_stride` bytes apart.
    `out(row, column)` is an index into `buffer`, whose rows are `columns` long.
    """

    rows: int
    columns: int
    stacked: int
    loops: tuple[int, ...]
    a: Callable[[Any, Sequence[Any], Any], Any]
    a_stride: int
    w: Callable[[Sequence[Any], Any, Any], Any]
    buffer: Any
    out: Callable[[Any, Any], list[Any]]

    def body(self, kind: str) -> Any:
        """The loops over the reduction, as TIR."""
        return self._tiles() if kind == TILES else self._pairs()

    def _reduction(self, step: Callable[[Sequence[Any]], list[Any]]) -> Any:
        """`step` in all loops."""
        from tvm import tirx

        at = [tirx.Var(f"k{number}", "int32") for number in range(len(self.loops))]
        body = _sequence(step(at))
        for var, extent in reversed(list(zip(at, self.loops, strict=True))):
            body = tirx.For(var, 0, extent, tirx.ForKind.SERIAL, body)
        return body

    def _tiles(self) -> Any:
        from tvm import tirx

        height, wide = self.rows // self.stacked, self.columns // LANES
        sums = [
            (i, j, tirx.const(i * wide + j, "uint8"))
            for i in range(self.stacked)
            for j in range(wide)
        ]
        a_tiles = [tirx.const(_A_TILE + i, "uint8") for i in range(self.stacked)]
        w_tiles = [tirx.const(_W_TILE + j, "uint8") for j in range(wide)]
        first = tirx.const(0, "int32")

        def step(at: Sequence[Any]) -> list[Any]:
            loads = [
                _load(tile, self.a(i * height, at, first), self.a_stride)
                for i, tile in enumerate(a_tiles)
            ]
            loads += [
                _load(tile, self.w(at, first, j * LANES), self.columns * 4)
                for j, tile in enumerate(w_tiles)
            ]
            return loads + [
                _instruction("llvm.x86.tdpbf16ps", tile, a_tiles[i], w_tiles[j])
                for i, j, tile in sums
            ]

        stores = [
            _instruction(
                "llvm.x86.tilestored64",
                tile,
                _address(self.buffer, self.out(i * height, j * LANES)),
                tirx.const(self.columns * 4, "int64"),
            )
            for i, j, tile in sums
        ]
        zeros = [_instruction("llvm.x86.tilezero", tile) for _, _, tile in sums]
        # Without tiles in use, a switch to another thread has less to save.
        release = _instruction("llvm.x86.tilerelease")
        return _sequence([*_configure(height), *zeros, self._reduction(step), *stores, release])

    def _pairs(self) -> Any:
        from tvm import tirx

        vectors = self.columns // LANES
        each = [(i, v) for i in range(self.rows) for v in range(vectors)]
        sums = tirx.decl_buffer((len(each) * LANES,), "float32", name="sums", scope="local")

        def lanes(start: Any) -> Any:
            return tirx.Ramp(start, 1, LANES)

        def at_sum(i: int, v: int) -> list[Any]:
            return [lanes(tirx.const((i * vectors + v) * LANES, "int32"))]

        def step(at: Sequence[Any]) -> list[Any]:
            *outer, pair = at
            return [
                tirx.BufferStore(
                    sums,
                    tirx.call_pure_extern(
                        "float32x16",
                        DOT,
                        tirx.BufferLoad(sums, at_sum(i, v)),
                        self.a(i, outer, pair),
                        self.w(outer, pair, v * LANES),
                    ),
                    at_sum(i, v),
                )
                for i, v in each
            ]

        zero = tirx.Broadcast(tirx.const(0, "float32"), LANES)
        statements = [tirx.AllocBuffer(sums)]
        statements += [tirx.BufferStore(sums, zero, at_sum(i, v)) for i, v in each]
        statements.append(self._reduction(step))
        for i, v in each:
            *index, column = self.out(i, v * LANES)
            value = tirx.BufferLoad(sums, at_sum(i, v))
            statements.append(tirx.BufferStore(self.buffer, value, [*index, lanes(column)]))
        return _imported(DOT_LLVM, _sequence(statements))


def rounded(value: Any) -> Any:
    """The bits of a float32 rounded to bfloat16, to nearest even, as uint16.

    Bits, since TVM would keep an array of bfloat16 of its own making in float32.
    """
    from tvm import tirx

    bits = tirx.reinterpret("uint32", value)
    odd = tirx.bitwise_and(tirx.shift_right(bits, _u32(16)), _u32(1))
    nearest = tirx.shift_right(bits + odd + _u32(0x7FFF), _u32(16))
    magnitude = tirx.bitwise_and(bits, _u32(0x7FFFFFFF))
    return tirx.Select(magnitude > _u32(0x7F800000), _u32(0x7FC0), nearest).astype("uint16")


def widened(bits: Any) -> Any:
    """The float32 that the bits of a bfloat16 stand for."""
    from tvm import tirx

    return tirx.reinterpret("float32", tirx.shift_left(bits.astype("uint32"), _u32(16)))


def _u32(number: int) -> Any:
    from tvm import tirx

    return tirx.const(number, "uint32")


def write_out(
    sch: Any,
    loop: Any,
    kind: str,
    extents: Sequence[int],
    product: Callable[[Sequence[Any], Sequence[Any]], TileProduct],
) -> None:
    """Replace the nest at `loop`, which holds one block, by the instructions of `kind`.

    `extents` are the last ones of the tensor of tiles: those of one tile. `product` is given the
    regions that the block reads and writes.
    """
    from tvm import ir
    from tvm.s_tir import SBlock

    outer = sch.blockize(loop)
    block = sch.get(outer)
    (out,) = block.writes
    # Scheduling cuts a lone tile down to what is read of it; the instructions write all of it.
    kept = len(out.region) - len(extents)
    whole = [ir.Range(0, extent) for extent in extents]
    out = ir.TensorRegion(out.source, [*out.region[:kept], *whole], out.ty)
    body = product(block.reads, [out]).body(kind)
    # (which is where the addresses in the body do not say it)
    said = {"explicit_write_region": [0]}
    written = SBlock(block.iter_vars, block.reads, [out], block.name_hint, body, annotations=said)
    sch.state.replace(sch.get_sref(outer), written, {block: written})


def address(region: Any, *offsets: Any) -> Any:
    """The address of the element at `offsets` (of the last axes) from a region's first one."""
    index = [each.min for each in region.region]
    kept = len(index) - len(offsets)
    moved = [first + offset for first, offset in zip(index[kept:], offsets, strict=True)]
    return _address(region.source, [*index[:kept], *moved])


def _address(buffer: Any, index: Sequence[Any]) -> Any:
    from tvm import tirx

    return tirx.call_intrin("handle", "tirx.address_of", tirx.BufferLoad(buffer, list(index)))


def _instruction(name: str, *arguments: Any) -> Any:
    from tvm import tirx

    return tirx.Evaluate(tirx.call_llvm_intrin("void", name, *arguments))


def _load(tile: Any, start: Any, stride: int) -> Any:
    from tvm import tirx

    return _instruction("llvm.x86.tileloadd64", tile, start, tirx.const(stride, "int64"))


def _configure(height: int) -> list[Any]:
    """Statements that tell the thread's tile unit how many rows each register has."""
    from tvm import tirx

    layout = np.zeros(TILE_BYTES, np.uint8)
    layout[0] = 1  # the palette: eight tiles
    for tile in range(8):
        layout[16 + 2 * tile] = TILE_BYTES
        layout[48 + tile] = height if tile < _W_TILE else STEP_PAIRS
    buffer = tirx.decl_buffer((8,), "int64", name="tile_layout", scope="local")
    words = [int(word) for word in layout.view(np.int64)]
    stores = [
        tirx.BufferStore(buffer, tirx.const(word, "int64"), [index])
        for index, word in enumerate(words)
    ]
    load = _instruction("llvm.x86.ldtilecfg", _address(buffer, [tirx.const(0, "int32")]))
    return [tirx.AllocBuffer(buffer), *stores, load]


def _imported(llvm: str, body: Any) -> Any:
    """The statement with functions written in LLVM's language at hand."""
    from tvm import ir, tirx

    zero = tirx.const(0, "int32")
    return tirx.AttrStmt(zero, "pragma_import_llvm", ir.StringImm(llvm), body)


def _sequence(statements: Sequence[Any]) -> Any:
    from tvm import tirx

    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))

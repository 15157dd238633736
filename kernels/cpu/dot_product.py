"""Dot products of short integer vectors: the instruction that integer kernels are made of.

Enters: the dtype of the data and the vector width; later a schedule in which the two innermost
loops of a reduction run over the lanes of a vector of sums and over a group of neighbouring
products. Leaves: that schedule with one vector step in their place. All of them are exact. Nothing
here knows an operator.

    sums[lane] += Σ x[i] * w[lane * group + i],  i < group

Words are int16 data and weights, two products a step (`vpmaddwd`): every x86 CPU has it, and it
adds as many products a cycle as `vpmaddubsw` does on bytes, which saturates. Bytes are uint8 data
and int8 weights, four products a step, on CPUs that have AVX-512 VNNI.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_WORDS = {
    4: "llvm.x86.sse2.pmadd.wd",
    8: "llvm.x86.avx2.pmadd.wd",
    16: "llvm.x86.avx512.pmaddw.d.512",
}
_BYTES = {16: "llvm.x86.avx512.vpdpbusd.512"}


@dataclass(frozen=True, slots=True)
class DotProduct:
    """`data` and `weight` are dtypes, `group` the products of one step, `lanes` the sums."""

    data: str
    weight: str
    group: int
    lanes: int
    instruction: str | None

    @classmethod
    def of(cls, data: str, lanes: int, x86: bool) -> DotProduct:
        """The dot product for data of this dtype; without an instruction where none is known."""
        if data == "uint8":
            return cls(data, "int8", 4, lanes, _BYTES.get(lanes) if x86 else None)
        return cls("int16", "int16", 2, lanes, _WORDS.get(lanes) if x86 else None)

    def decompose(self, sch: Any, sums: Any, outer: Any, lanes: Any) -> None:
        """Clear the block `sums` before `outer`, its first reduction loop, and vectorise it.

        `lanes` is the loop over lanes; in it is only the one over the group. Both become a vector
        step. TVM's own `tensorize` crashes in 0.27, so the block is rewritten here.
        """
        if self.instruction is None:
            sch.vectorize(lanes)
            sch.decompose_reduction(sums, outer)
            return
        cleared = sch.decompose_reduction(sums, outer)
        sch.vectorize(sch.get_loops(cleared)[-1])
        loop = sch.get(lanes)
        sch.state.replace(sch.get_sref(lanes), self._vector_step(loop, loop.body), {})

    def _vector_step(self, lanes: Any, group: Any) -> Any:
        """The block `sums[lanes] += dot(x[group], w[lanes * group])` for a nest of two loops."""
        from tvm import s_tir, tirx
        from tvm.ir import Range

        realize = group.body
        block, store = realize.block, realize.block.body
        zero = tirx.const(0, "int32")
        replaced = (lanes.loop_var, group.loop_var)
        # The block's own indices over lanes and group stay, at zero.
        values = [
            zero if any(value.same_as(var) for var in replaced) else value
            for value in realize.iter_values
        ]

        def vector(load: Any, extent: int) -> tuple[Any, Any]:
            """The load of `extent` neighbours, and the region it reads."""
            *outer, last = load.indices
            sizes = [*[1] * len(outer), extent]
            region = [
                Range.from_min_extent(at, size)
                for at, size in zip(load.indices, sizes, strict=True)
            ]
            read = tirx.BufferLoad(load.source, [*outer, tirx.Ramp(last, 1, extent)])
            return read, tirx.BufferRegion(load.source, region)

        sums, product = store.value.a, store.value.b
        total, total_region = vector(sums, self.lanes)
        x, x_region = vector(product.a.value, self.group)
        w, w_region = vector(product.b.value, self.lanes * self.group)
        value = self._added(total, tirx.reinterpret("int32", x), w)
        step = tirx.BufferStore(store.buffer, value, list(total.indices))
        made = s_tir.SBlock(
            block.iter_vars,
            [total_region, x_region, w_region],
            [total_region],
            block.name_hint,
            step,
        )
        return s_tir.SBlockRealize(values, realize.predicate, made)

    def _added(self, total: Any, word: Any, weights: Any) -> Any:
        """The sums after a step; `word` is a group of data as one 32-bit number."""
        from tvm import tirx

        wide, words = f"int32x{self.lanes}", tirx.Broadcast(word, self.lanes)
        if self.group == 4:
            left = tirx.reinterpret(f"int8x{self.lanes * 4}", words)
            return tirx.call_llvm_pure_intrin(wide, self.instruction, total, left, weights)
        pairs = tirx.reinterpret(f"int16x{self.lanes * 2}", words)
        return total + tirx.call_llvm_pure_intrin(wide, self.instruction, pairs, weights)

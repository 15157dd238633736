"""The register tile of a product written by hand, and how memory is asked for ahead of its use.

What enters: expressions of elements, and buffers. What leaves: TIR statements. Never a loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from whitebox.kernels.cpu.affine import Index

LINE_BYTES = 64
# Arguments of the prefetch instruction: for reading, into the second level, data.
_READ, _SECOND_LEVEL, _DATA = 0, 2, 1


class Sums:
    """The sums of a register tile of some rows, in registers."""

    def __init__(self, rows: int, nt: int, lanes: int) -> None:
        self._rows, self._nt, self._lanes = rows, nt, lanes
        self._buffer = tirx.decl_buffer((rows * nt,), "float32", name="sums", scope="local")
        self._places = [(i, v) for i in range(rows) for v in range(nt // lanes)]

    def _slot(self, i: int, v: int) -> Any:
        return tirx.Ramp(i * self._nt + v * self._lanes, 1, self._lanes)

    def start(self, initial: Callable[[int, int], Any]) -> list[Any]:
        """The registers with their first values."""
        stores = [
            tirx.BufferStore(self._buffer, initial(i, v), [self._slot(i, v)])
            for i, v in self._places
        ]
        return [tirx.AllocBuffer(self._buffer), *stores]

    def add(self, lefts: list[Any], buffer: Any, begin: Index) -> list[Any]:
        """A row's element of A times the columns that begin in a panel, added for each row."""
        statements = []
        for i, v in self._places:
            place = tirx.Ramp((begin + v * self._lanes).expr, 1, self._lanes)
            right = tirx.BufferLoad(buffer, [place])
            if str(buffer.dtype) != "float32":
                right = tirx.Cast(f"float32x{self._lanes}", right)
            total = tirx.BufferLoad(self._buffer, [self._slot(i, v)])
            total = total + tirx.Broadcast(lefts[i], self._lanes) * right
            statements.append(tirx.BufferStore(self._buffer, total, [self._slot(i, v)]))
        return statements

    def store(self, target: Any, place: Callable[[int, int], Any]) -> list[Any]:
        """The registers stored to a buffer."""
        return [
            tirx.BufferStore(
                target,
                tirx.BufferLoad(self._buffer, [self._slot(i, v)]),
                [tirx.Ramp(place(i, v), 1, self._lanes)],
            )
            for i, v in self._places
        ]


def prefetch(element: Any) -> Any:
    """Ask for the cache line of an element, which need not exist."""
    address = tirx.call_intrin("handle", "tirx.address_of", element)
    hints = [tirx.const(hint, "int32") for hint in (_READ, _SECOND_LEVEL, _DATA)]
    return tirx.Evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", address, *hints))

"""Static memory planning: where each intermediate lives in the arena.

Buffers whose lifetimes do not overlap share bytes. The largest buffer is placed first, each at the
lowest offset that is free throughout its life (greedy by size: Pisarchyk and Lee, "Efficient
Memory Management for Deep Neural Net Inference", 2020).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

ALIGNMENT = 64

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Bytes that must stay untouched from step `first` to step `last`, both included."""

    nbytes: int
    first: int
    last: int


def aligned_size(nbytes: int) -> int:
    """`nbytes` rounded up to the alignment that kernels assume."""
    return -(-max(nbytes, 1) // ALIGNMENT) * ALIGNMENT


def plan_memory(lifetimes: Mapping[K, Lifetime]) -> tuple[dict[K, int], int]:
    """(offset of each buffer, size of the arena), in bytes."""
    offsets: dict[K, int] = {}
    placed: list[tuple[int, int, Lifetime]] = []  # (start, end, lifetime), by start
    peak = 0
    for key, life in sorted(lifetimes.items(), key=lambda item: -item[1].nbytes):
        size = aligned_size(life.nbytes)
        offset = 0
        for start, end, other in placed:
            if other.first > life.last or other.last < life.first:
                continue
            if start - offset >= size:
                break
            offset = max(offset, end)
        offsets[key] = offset
        placed.append((offset, offset + size, life))
        placed.sort(key=lambda item: item[0])
        peak = max(peak, offset + size)
    return offsets, peak

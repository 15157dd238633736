"""Devices: where a plan's memory is. The plan and its executor go through this and assume nothing.

An address is a plain integer; whoever holds a `Memory` keeps it alive.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from whitebox.ir.types import numpy_dtype
from whitebox.runtime.memory import ALIGNMENT, aligned_size
from whitebox.runtime.native import address_of

# Results share a block up to this many, while it stays this small: making an array of its own
# for each costs more than a small model takes.
_MAX_ROWS = 16
_BLOCK_BYTES = 64 << 10

# What a pool of larger blocks remembers at most.
_POOL_BYTES = 256 << 20
_POOL_BLOCKS = 32


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on a device: their address and the object that owns them."""

    address: int
    owner: Any


class Device(Protocol):
    """What an executor needs of a device."""

    # DLDeviceType: 1 is the CPU, 2 CUDA.
    dl_type: int

    def allocate(self, nbytes: int) -> Memory:
        """Fresh aligned memory."""

    def upload(self, array: np.ndarray) -> Memory:
        """The array's bytes on the device, aligned; without a copy where that is possible."""

    def arrays(self, dtype: str, shape: tuple[int, ...]) -> Callable[[], list[np.ndarray]]:
        """A function that makes fresh aligned host arrays for results, at least one a call."""


class CpuDevice:
    """Host memory."""

    dl_type = 1

    def __init__(self) -> None:
        self._pool = BlockPool()

    def allocate(self, nbytes: int) -> Memory:
        buffer = np.empty(aligned_size(nbytes) + ALIGNMENT, np.uint8)
        return Memory(aligned_size(address_of(buffer)), buffer)

    def upload(self, array: np.ndarray) -> Memory:
        """`array` must have its dtype's native byte order. Copies what is not aligned."""
        placed = aligned(array)
        return Memory(address_of(placed), placed)

    def arrays(self, dtype: str, shape: tuple[int, ...]) -> Callable[[], list[np.ndarray]]:
        """Small ones are rows of one block of memory, which lives as long as any of them.

        The memory of a large one is used again once nothing refers to it.
        """
        return _blocks(numpy_dtype(dtype), shape, _MAX_ROWS, self._pool.take)


class BlockPool:
    """Memory for large results, taken back when the caller has dropped them. Thread-safe.

    The system hands out large blocks page by page at first touch, which takes longer than many a
    kernel. The pool refers to the blocks it has made, and a block that nobody else refers to is
    free: an array in a block, and every view of it, holds on to the block. What it remembers is
    bounded; a block it has forgotten belongs to its arrays alone.
    """

    def __init__(self, most_bytes: int = _POOL_BYTES, most_blocks: int = _POOL_BLOCKS) -> None:
        self._most_bytes = most_bytes
        self._most_blocks = most_blocks
        self._blocks: list[np.ndarray] = []  # least recently used first
        self._nbytes = 0
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> np.ndarray:
        """A block of exactly `nbytes` that nobody uses; what is in it is left over."""
        with self._lock:
            blocks = self._blocks
            for index in range(len(blocks)):
                if len(blocks[index]) == nbytes and sys.getrefcount(blocks[index]) == _ALONE:
                    blocks.append(blocks.pop(index))
                    return blocks[-1]
            block = np.empty(nbytes, np.uint8)
            blocks.append(block)
            self._nbytes += nbytes
            while self._nbytes > self._most_bytes or len(blocks) > self._most_blocks:
                self._nbytes -= len(blocks.pop(0))
            return block


# The references to an array that only a list refers to, counted as `take` does.
_LIST = [np.empty(0)]
_ALONE = sys.getrefcount(_LIST[0])


def _unshared(nbytes: int) -> np.ndarray:
    return np.empty(nbytes, np.uint8)


def _blocks(
    dtype: np.dtype,
    shape: tuple[int, ...],
    most: int,
    take: Callable[[int], np.ndarray] = _unshared,
) -> Callable[[], list[np.ndarray]]:
    """A function that makes aligned arrays, up to `most` a call when they are small.

    The memory of large ones is got from `take`.
    """
    strides = [dtype.itemsize]
    for dim in reversed(shape):
        strides.append(strides[-1] * dim)
    row = aligned_size(strides.pop())
    count = min(most, max(1, _BLOCK_BYTES // row))
    dims, layout = (count, *shape), (row, *reversed(strides))
    size = count * row + ALIGNMENT
    new = take if size > _BLOCK_BYTES + ALIGNMENT else _unshared

    def make() -> list[np.ndarray]:
        buffer = new(size)
        block = np.ndarray(dims, dtype, buffer, -address_of(buffer) % ALIGNMENT, layout)
        # (iterating over a block of scalars would give numbers)
        return list(block) if shape else [block[index, ...] for index in range(count)]

    return make


def aligned(array: np.ndarray) -> np.ndarray:
    """The array in C order and aligned as kernels assume, copied only if it is not."""
    if array.flags.c_contiguous and address_of(array) % ALIGNMENT == 0:
        return array
    copy = _blocks(array.dtype, array.shape, 1)()[0]
    copy[...] = array
    return copy


class Arena:
    """Scratch memory that all plans of one engine thread share, as large as the largest needs."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.nbytes = 0
        self._memory = device.allocate(0)
        self.address = self._memory.address

    def reserve(self, nbytes: int) -> int:
        """The address of at least `nbytes`. What it held before is lost."""
        if nbytes > self.nbytes:
            self._memory = self.device.allocate(nbytes)
            self.address = self._memory.address
            self.nbytes = nbytes
        return self.address

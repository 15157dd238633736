"""Devices: where a plan's memory is. The plan and its executor go through this and assume nothing.

An address is a plain integer; whoever holds a `Memory` keeps it alive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from whitebox.ir.types import numpy_dtype
from whitebox.runtime.memory import ALIGNMENT, aligned_size


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

    def empty(self, dtype: str, shape: tuple[int, ...]) -> tuple[np.ndarray, Memory]:
        """A host array for a result, and where the kernel is to write it."""


class CpuDevice:
    """Host memory."""

    dl_type = 1

    def allocate(self, nbytes: int) -> Memory:
        buffer = np.empty(aligned_size(nbytes) + ALIGNMENT, np.uint8)
        address = buffer.__array_interface__["data"][0]
        return Memory(aligned_size(address), buffer)

    def upload(self, array: np.ndarray) -> Memory:
        """`array` must have its dtype's native byte order. Copies what is not aligned."""
        address = array.__array_interface__["data"][0]
        if array.flags.c_contiguous and address % ALIGNMENT == 0:
            return Memory(address, array)
        copy, memory = self.empty_like(array)
        copy[...] = array
        return memory

    def empty(self, dtype: str, shape: tuple[int, ...]) -> tuple[np.ndarray, Memory]:
        return self._empty(numpy_dtype(dtype), shape)

    def empty_like(self, array: np.ndarray) -> tuple[np.ndarray, Memory]:
        return self._empty(array.dtype, array.shape)

    def _empty(self, dtype: np.dtype, shape: tuple[int, ...]) -> tuple[np.ndarray, Memory]:
        size = dtype.itemsize
        for dim in shape:
            size *= dim
        buffer = np.empty(size + ALIGNMENT, np.uint8)
        address = buffer.__array_interface__["data"][0]
        start = -address % ALIGNMENT
        array = buffer[start : start + size].view(dtype).reshape(shape)
        return array, Memory(address + start, array)


class Arena:
    """Scratch memory that all plans of one engine thread share, as large as the largest needs."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.nbytes = 0
        self._memory = device.allocate(0)

    def reserve(self, nbytes: int) -> int:
        """The address of at least `nbytes`. What it held before is lost."""
        if nbytes > self.nbytes:
            self._memory = self.device.allocate(nbytes)
            self.nbytes = nbytes
        return self._memory.address

"""A plan as native tables: what the interpreter reads, laid out once and kept at its addresses.

Per call only the array rows change: inputs and outputs enter as addresses of array objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from whitebox.kernels.host.interpreter import (
    ARRAY_WORDS,
    BEGUN,
    BINDING_WORDS,
    BINDINGS,
    HEAD_WORDS,
    POINTER_AT,
    STEP_WORDS,
    STEPS,
)
from whitebox.runtime.device import Device
from whitebox.runtime.memory import aligned_size
from whitebox.runtime.native import (
    DL_TENSOR,
    FFI_ANY,
    FFI_DL_TENSOR_PTR,
    array_pointer_offset,
    dl_type,
)
from whitebox.runtime.plan import Operand, Plan, Storage


class Program:
    """The tables of one plan. `words` is the interpreter's argument.

    Before each call the addresses (`id`) of arrays go into `cells`: at `places`, those of the
    inputs and then of the outputs. `input_cells` and `output_cells` are the same places, but None
    for what no kernel touches.
    """

    def __init__(
        self, plan: Plan, device: Device, parameters: Sequence[int], functions: Sequence[Any]
    ) -> None:
        self.owners: tuple[object, ...] = ()  # of the memory that it refers to
        operands: dict[Operand, int] = {}
        for step in plan.steps:
            if step.kernel:
                for operand in (*step.operands, *step.results):
                    operands.setdefault(operand, len(operands))
        self._tensors = np.zeros(len(operands), DL_TENSOR)
        self._dims = np.zeros((max(len(operands), 1), 2, _max_rank(operands)), np.int64)
        for operand, row in operands.items():
            self._describe(operand, row, device.dl_type)
            if operand.storage == Storage.PARAMETER:
                self._tensors["data"][row] = parameters[operand.index]
        arena = [(row, o.index) for o, row in operands.items() if o.storage == Storage.ARENA]
        self._arena_rows = np.array([row for row, _ in arena], np.intp)
        self._arena_offsets = np.array([offset for _, offset in arena], np.uint64)
        self._lay_out_words(plan, operands, self._lay_out_steps(plan, operands, functions))

    def _describe(self, operand: Operand, row: int, device_type: int) -> None:
        """The parts of a DLTensor that never change."""
        dims = operand.native.dims
        rank = len(dims)
        shape, strides = self._dims[row]
        shape[:rank] = dims
        for axis in range(rank):
            strides[axis] = np.prod(dims[axis + 1 :], dtype=np.int64)
        record = self._tensors[row : row + 1]
        record["device_type"] = device_type
        record["ndim"] = rank
        record["code"], record["bits"] = dl_type(operand.native.dtype)
        record["lanes"] = 1
        record["shape"] = shape.ctypes.data
        record["strides"] = strides.ctypes.data

    def _lay_out_steps(
        self, plan: Plan, operands: dict[Operand, int], functions: Sequence[Any]
    ) -> list[tuple[int, int, int]]:
        """The rows of the steps; their arguments never change."""
        taken = [(*s.operands, *s.results) if s.kernel else () for s in plan.steps]
        self._arguments = np.zeros(max(sum(map(len, taken)), 1), FFI_ANY)
        self._arguments["type_index"] = FFI_DL_TENSOR_PTR
        first_tensor = self._tensors.ctypes.data
        first_argument = self._arguments.ctypes.data
        rows, used = [], 0
        for function, step_operands in zip(functions, taken, strict=True):
            count = len(step_operands)
            addresses = [first_tensor + operands[o] * DL_TENSOR.itemsize for o in step_operands]
            self._arguments["value"][used : used + count] = addresses
            rows.append((function.__chandle__(), first_argument + used * FFI_ANY.itemsize, count))
            used += count
        return rows

    def _lay_out_words(
        self, plan: Plan, operands: dict[Operand, int], steps: list[tuple[int, int, int]]
    ) -> None:
        """Head, array rows, bindings, steps."""
        import tvm_ffi

        bound = [o for o in operands if o.storage in (Storage.INPUT, Storage.OUTPUT)]
        arrays = list(dict.fromkeys((o.storage, o.index) for o in bound))
        at = {key: HEAD_WORDS + i * ARRAY_WORDS for i, key in enumerate(arrays)}
        self.input_cells = [at.get((Storage.INPUT, i)) for i in range(len(plan.inputs))]
        self.output_cells = [at.get((Storage.OUTPUT, i)) for i in range(len(plan.outputs))]
        # What no kernel touches is written to a word that the interpreter overwrites.
        cells = (*self.input_cells, *self.output_cells)
        self.places = [BEGUN if cell is None else cell for cell in cells]
        bindings = HEAD_WORDS + len(arrays) * ARRAY_WORDS
        first_step = bindings + len(bound) * BINDING_WORDS
        words = np.zeros(first_step + len(steps) * STEP_WORDS, np.int64)
        words[[POINTER_AT, BINDINGS, STEPS]] = array_pointer_offset(), bindings, first_step
        # (where "data" is the first field, the address of a tensor is that of its pointer)
        tensors = self._tensors.ctypes.data
        for number, operand in enumerate(bound):
            row = bindings + number * BINDING_WORDS
            words[row] = at[operand.storage, operand.index] + 1
            words[row + 1] = tensors + operands[operand] * DL_TENSOR.itemsize
        words[first_step:] = np.array(steps, np.int64).reshape(-1)
        self.arena_bytes = plan.arena_bytes
        copies = []
        for index, operand in enumerate(plan.inputs):
            cell = self.input_cells[index]
            if cell is not None:
                words[cell + 3] = operand.nbytes
                copies.append((cell + 2, self.arena_bytes))
                self.arena_bytes += aligned_size(operand.nbytes)
        self._copies = copies
        self._first_step = first_step
        # Read by the interpreter at these addresses for as long as this object lives.
        self._words = words
        self.words = tvm_ffi.from_dlpack(words)
        self.cells = words.data

    def place_arena(self, address: int) -> None:
        """Say where the arena is: `arena_bytes` from `address` on."""
        self._tensors["data"][self._arena_rows] = self._arena_offsets + np.uint64(address)
        for word, offset in self._copies:
            self._words[word] = address + offset

    def one_step(self, number: int, function: Any = None) -> Any:
        """A program of one step, with the arrays of this program's last call.

        It calls `function` in place of the step's own kernel, when one is given.
        """
        import tvm_ffi

        head = self._words[: self._first_step]
        row = self._first_step + number * STEP_WORDS
        words = np.concatenate([head, self._words[row : row + STEP_WORDS]])
        if function is not None:
            words[self._first_step] = function.__chandle__()
        return tvm_ffi.from_dlpack(words)


def _max_rank(operands: dict[Operand, int]) -> int:
    return max((len(operand.native.dims) for operand in operands), default=0) or 1

"""An executable: a plan bound to parameters, kernels and a device. Running it is one native call.

Not thread-safe by itself: whoever runs it holds the engine that owns the arena.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from whitebox.errors import WhiteboxError
from whitebox.ir import onnx_schema, serial
from whitebox.ir.graph import Graph, Tensor
from whitebox.ir.types import TensorType, numpy_dtype
from whitebox.kernels.host.interpreter import ROW_WORDS, STATE_WORDS
from whitebox.runtime.device import Arena, Memory
from whitebox.runtime.native import DL_TENSOR, FFI_ANY, FFI_DL_TENSOR_PTR, dl_type
from whitebox.runtime.plan import Operand, Plan, Step, Storage

Value = Any  # np.ndarray, or a Python object for sequences, maps and optionals


class Executable:
    """A model at one set of input shapes, ready to run."""

    def __init__(
        self,
        plan: Plan,
        parameters: Sequence[np.ndarray],
        function: Callable[[str], Any],
        interpret: Any,
        arena: Arena,
    ) -> None:
        import tvm_ffi

        self.plan = plan
        self.arena = arena
        self._interpret = interpret
        self._parameters = parameters
        self._memories = [
            arena.device.upload(array) if array.dtype != object else None for array in parameters
        ]
        self._functions: list[Any] = []
        self._failure: Exception | None = None
        self._objects: list[Value] = [None] * plan.objects
        self._inputs: list[Value] = []
        self._results: list[Value] = []
        self._lay_out(function)
        # Read by the interpreter at these addresses for as long as this object lives.
        self._table_ref = tvm_ffi.from_dlpack(self._table)
        self._state_ref = tvm_ffi.from_dlpack(self._state)
        self._arena_base = -1

    def _lay_out(self, function: Callable[[str], Any]) -> None:
        """Fill the native tables; addresses of inputs, outputs and arena are filled in per run."""
        operands: dict[Operand, int] = {}
        for step in self.plan.steps:
            if step.kernel:
                for operand in (*step.operands, *step.results):
                    operands.setdefault(operand, len(operands))
        self._tensors = np.zeros(len(operands), DL_TENSOR)
        self._dims = np.zeros((max(len(operands), 1), 2, _max_rank(operands)), np.int64)
        for operand, row in operands.items():
            self._describe(operand, row)
        self._rows = {
            storage: np.array(
                [row for operand, row in operands.items() if operand.storage == storage], np.intp
            )
            for storage in Storage
        }
        self._offsets = {
            storage: np.array([o.index for o in operands if o.storage == storage], np.uint64)
            for storage in Storage
        }
        for operand, row in operands.items():
            if operand.storage == Storage.PARAMETER:
                memory = self._memories[operand.index]
                assert memory is not None
                self._tensors["data"][row] = memory.address
        self._lay_out_steps(operands, function)

    def _describe(self, operand: Operand, row: int) -> None:
        """The parts of a DLTensor that never change."""
        rank = len(operand.shape)
        shape, strides = self._dims[row]
        shape[:rank] = operand.shape
        for axis in range(rank):
            strides[axis] = np.prod(operand.shape[axis + 1 :], dtype=np.int64)
        record = self._tensors[row : row + 1]
        record["device_type"] = self.arena.device.dl_type
        record["ndim"] = rank
        record["code"], record["bits"] = dl_type(operand.dtype)
        record["lanes"] = 1
        record["shape"] = shape.ctypes.data
        record["strides"] = strides.ctypes.data

    def _lay_out_steps(self, operands: dict[Operand, int], function: Callable[[str], Any]) -> None:
        steps = self.plan.steps
        self._table = np.zeros((max(len(steps), 1), ROW_WORDS), np.int64)
        self._state = np.zeros(STATE_WORDS, np.int64)
        count = sum(len(s.operands) + len(s.results) for s in steps if s.kernel)
        self._arguments = np.zeros(max(count, 1), FFI_ANY)
        self._arguments["type_index"] = FFI_DL_TENSOR_PTR
        first_tensor = self._tensors.ctypes.data
        first_argument = self._arguments.ctypes.data
        used = 0
        for number, step in enumerate(steps):
            called = function(step.kernel) if step.kernel else self._host_function(step)
            self._functions.append(called)
            taken = (*step.operands, *step.results) if step.kernel else ()
            addresses = [first_tensor + operands[o] * DL_TENSOR.itemsize for o in taken]
            self._arguments["value"][used : used + len(taken)] = addresses
            argument = first_argument + used * FFI_ANY.itemsize
            self._table[number] = (called.__chandle__(), argument, len(taken), 0)
            used += len(taken)

    def _host_function(self, step: Step) -> Any:
        """A step that numpy computes, as a function the interpreter can call."""
        import tvm_ffi

        def no_weights(digest: str, type: TensorType) -> Tensor:
            raise ValueError(f"a host step refers to the weights {digest}")

        body = serial.decode(step.host, no_weights)

        def run() -> None:
            try:
                self._run_on_host(body, step)
            except Exception as error:
                self._failure = error
                raise

        return tvm_ffi.convert(run)

    def _run_on_host(self, body: Graph, step: Step) -> None:
        arguments = [self._read(operand) for operand in step.operands]
        values = onnx_schema.evaluate_graph(body, arguments)
        for operand, value in zip(step.results, values.values(), strict=True):
            if operand.storage == Storage.OBJECT:
                self._objects[operand.index] = value
            else:
                self._read(operand)[...] = value

    def _read(self, operand: Operand) -> Value:
        """The current value of an operand, as a view of its memory."""
        match operand.storage:
            case Storage.OBJECT:
                return self._objects[operand.index]
            case Storage.PARAMETER:
                return self._parameters[operand.index].reshape(operand.shape)
            case Storage.INPUT:
                value = self._inputs[operand.index]
                return value.reshape(operand.shape) if isinstance(value, np.ndarray) else value
            case Storage.OUTPUT:
                return self._results[operand.index].reshape(operand.shape)
        dtype = numpy_dtype(operand.dtype)
        count = int(np.prod(operand.shape, dtype=np.int64))
        place = ctypes.c_char * (count * dtype.itemsize)
        raw = memoryview(place.from_address(self._arena_base + operand.index))
        return np.frombuffer(raw, dtype, count).reshape(operand.shape)

    def run(self, inputs: Sequence[Value]) -> list[Value]:
        """The outputs for inputs of exactly the plan's types, in order.

        Raises WhiteboxError naming the step that failed.
        """
        uploaded = self._bind(inputs)
        self._failure = None
        if self.plan.steps:
            try:
                self._interpret(self._table_ref, self._state_ref)
            except Exception as error:
                raise self._step_error() from error
            if self._state[1]:
                raise self._step_error() from self._failure
        outputs = [
            self._results[index]
            if operand.storage == Storage.OUTPUT and operand.index == index
            else _detached(self._read(operand))
            for index, operand in enumerate(self.plan.outputs)
        ]
        # The caller owns the results; the inputs may go.
        del uploaded
        self._inputs, self._results = [], []
        return outputs

    def _bind(self, inputs: Sequence[Value]) -> list[Memory | None]:
        """Point the tables at this run's inputs, fresh outputs and the arena."""
        device = self.arena.device
        base = self.arena.reserve(self.plan.arena_bytes)
        data = self._tensors["data"]
        if base != self._arena_base:
            data[self._rows[Storage.ARENA]] = self._offsets[Storage.ARENA] + np.uint64(base)
            self._arena_base = base
        self._inputs = list(inputs)
        memories = [
            device.upload(value)
            if isinstance(value, np.ndarray) and value.dtype != object
            else None
            for value in inputs
        ]
        for row, index in zip(self._rows[Storage.INPUT], self._offsets[Storage.INPUT], strict=True):
            memory = memories[int(index)]
            assert memory is not None
            data[row] = memory.address
        results: list[tuple[np.ndarray, Memory] | None] = [
            device.empty(operand.dtype, operand.shape)
            if operand.storage == Storage.OUTPUT and operand.index == index
            else None
            for index, operand in enumerate(self.plan.outputs)
        ]
        for row, index in zip(
            self._rows[Storage.OUTPUT], self._offsets[Storage.OUTPUT], strict=True
        ):
            result = results[int(index)]
            assert result is not None
            data[row] = result[1].address
        self._results = [None if result is None else result[0] for result in results]
        return memories

    def _step_error(self) -> WhiteboxError:
        step = self.plan.steps[int(self._state[0]) - 1]
        kind = f"kernel {step.kernel[:12]}" if step.kernel else "host step"
        reason = f": {self._failure}" if self._failure else ""
        return WhiteboxError(f"{kind} {step.label} failed{reason}")

    def time_step(
        self, inputs: Sequence[Value], step: int, functions: Sequence[Any], calls: int
    ) -> list[float]:
        """Seconds a call of each function in place of one step's kernel, on its real operands."""
        import time

        import tvm_ffi

        self._bind(inputs)
        seconds = []
        for function in functions:
            row = self._table[step : step + 1].copy()
            row[0, 0] = function.__chandle__()
            table = tvm_ffi.from_dlpack(row)
            start = time.perf_counter()
            for _ in range(calls):
                self._interpret(table, self._state_ref)
            seconds.append((time.perf_counter() - start) / calls)
        self._inputs, self._results = [], []
        return seconds

    def profile(self, inputs: Sequence[Value], repeats: int = 5) -> list[float]:
        """Seconds of each step on a real run: the median of `repeats`, one call a step."""
        import time

        import tvm_ffi

        self._bind(inputs)
        times = np.zeros((repeats, len(self.plan.steps)))
        rows = [tvm_ffi.from_dlpack(self._table[i : i + 1].copy()) for i in range(times.shape[1])]
        for repeat in times:
            for number, row in enumerate(rows):
                start = time.perf_counter()
                self._interpret(row, self._state_ref)
                repeat[number] = time.perf_counter() - start
        self._inputs, self._results = [], []
        return list(np.median(times, axis=0))


def _max_rank(operands: dict[Operand, int]) -> int:
    return max((len(operand.shape) for operand in operands), default=0) or 1


def _detached(value: Value) -> Value:
    """A copy that no later run overwrites."""
    return value.copy() if isinstance(value, np.ndarray) else value

"""An executable: a plan bound to parameters, kernels and a device. Running it is one native call.

Not thread-safe by itself: whoever runs it holds the engine that owns the arena.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from whitebox.errors import WhiteboxError
from whitebox.ir import onnx_schema, serial
from whitebox.ir.graph import Graph, Tensor
from whitebox.ir.types import TensorType, numpy_dtype
from whitebox.kernels.host.interpreter import BEGUN
from whitebox.runtime.device import Arena
from whitebox.runtime.light import PlainCall, light_call
from whitebox.runtime.plan import Operand, Plan, Step, Storage
from whitebox.runtime.program import Program

Value = Any  # np.ndarray, or a Python object for sequences, maps and optionals

# A model whose kernels touch no more than this is light: it runs for some tens of microseconds.
LIGHT_BYTES = 1 << 20


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
        self.plan = plan
        self.arena = arena
        self._interpret = interpret
        self._parameters = parameters
        self._memories = [
            arena.device.upload(array) if array.dtype != object else None for array in parameters
        ]
        self._functions = [
            function(step.kernel) if step.kernel else self._host_function(step)
            for step in plan.steps
        ]
        self._addresses = [0 if memory is None else memory.address for memory in self._memories]
        self._program = self._new_program()
        self._failure: Exception | None = None
        self._objects: list[Value] = [None] * plan.objects
        self._inputs: Sequence[Value] = []
        self._results: list[Value] = []
        self._arena_base = -1
        self._own = [
            operand.storage == Storage.OUTPUT and operand.index == index
            for index, operand in enumerate(plan.outputs)
        ]
        self._makers = [
            arena.device.arrays(operand.dtype, operand.shape) if own else None
            for operand, own in zip(plan.outputs, self._own, strict=True)
        ]

    def _new_program(self) -> Program:
        return Program(self.plan, self.arena.device, self._addresses, self._functions)

    @property
    def is_plain(self) -> bool:
        """Whether `plain_call` will do: only kernels, and each writes results of its own."""
        return all(self._own) and all(step.kernel for step in self.plan.steps)

    def plain_call(self, busy: threading.Lock) -> PlainCall:
        """A function that gives the outputs for arrays of exactly the plan's types in C order.

        As `run`, without needless steps, holding `busy` meanwhile. It may also give None: then
        call `run`.
        """
        makers = [make for make in self._makers if make is not None]
        if self._is_light():
            own = self._new_program()
            memory = self.arena.device.allocate(own.arena_bytes)
            own.place_arena(memory.address)
            return light_call(own, self._interpret, makers, memory, self._step_error)
        program = self._program
        pools: list[list[np.ndarray]] = [[] for _ in makers]

        def call(*arrays: np.ndarray) -> list[np.ndarray]:
            with busy:
                if self._arena_base != self.arena.address:
                    self._place_arena()
                for pool, make in zip(pools, makers, strict=True):
                    if not pool:
                        pool += make()
                results = [pool.pop() for pool in pools]
                for place, array in zip(program.places, (*arrays, *results), strict=True):
                    program.cells[place] = id(array)
                if self._interpret(program.words):
                    raise self._step_error(program)
                return results

        return call

    def _is_light(self) -> bool:
        """Whether the model does so little that it need not wait for another to finish."""
        steps = self.plan.steps
        operands = {o for step in steps for o in (*step.operands, *step.results)}
        return sum(operand.nbytes for operand in operands) <= LIGHT_BYTES

    def run(self, inputs: Sequence[Value]) -> list[Value]:
        """The outputs for inputs of exactly the plan's types, in order.

        Raises WhiteboxError naming the step that failed.
        """
        self._bind(inputs)
        self._failure = None
        try:
            if self.plan.steps and self._interpret(self._program.words):
                raise self._step_error(self._program) from self._failure
            return [
                _detached(self._read(operand)) if result is None else result
                for operand, result in zip(self.plan.outputs, self._results, strict=True)
            ]
        finally:
            # The caller owns the results; the inputs may go.
            self._inputs, self._results = [], []

    def _place_arena(self) -> None:
        """Point the tables at the arena, made larger if need be."""
        self._arena_base = self.arena.reserve(self._program.arena_bytes)
        self._program.place_arena(self._arena_base)

    def _bind(self, inputs: Sequence[Value]) -> None:
        """Point the tables at this run's inputs, fresh outputs and the arena."""
        if self._arena_base != self.arena.address:
            self._place_arena()
        self._inputs = [
            np.require(value, requirements="C")
            if isinstance(value, np.ndarray) and value.dtype != object
            else value
            for value in inputs
        ]
        self._results = [None if make is None else make()[0] for make in self._makers]
        cells = self._program.input_cells + self._program.output_cells
        for cell, array in zip(cells, (*self._inputs, *self._results), strict=True):
            if cell is not None:
                self._program.cells[cell] = id(array)

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

    def _step_error(self, program: Program) -> WhiteboxError:
        step = self.plan.steps[program.cells[BEGUN] - 1]
        kind = f"kernel {step.kernel[:12]}" if step.kernel else "host step"
        reason = f": {self._failure}" if self._failure else ""
        return WhiteboxError(f"{kind} {step.label} failed{reason}")

    def time_step(
        self, inputs: Sequence[Value], step: int, functions: Sequence[Any], calls: int
    ) -> list[float]:
        """Seconds a call of each function in place of one step's kernel, on its real operands."""
        import time

        self._bind(inputs)
        seconds = []
        for function in functions:
            program = self._program.one_step(step, function)
            start = time.perf_counter()
            for _ in range(calls):
                self._interpret(program)
            seconds.append((time.perf_counter() - start) / calls)
        self._inputs, self._results = [], []
        return seconds

    def profile(self, inputs: Sequence[Value], repeats: int = 5) -> list[float]:
        """Seconds of each step on a real run: the median of `repeats`, one call a step."""
        import time

        self._bind(inputs)
        times = np.zeros((repeats, len(self.plan.steps)))
        programs = [self._program.one_step(number) for number in range(times.shape[1])]
        for repeat in times:
            for number, program in enumerate(programs):
                start = time.perf_counter()
                self._interpret(program)
                repeat[number] = time.perf_counter() - start
        self._inputs, self._results = [], []
        return list(np.median(times, axis=0))


def _detached(value: Value) -> Value:
    """A copy that no later run overwrites."""
    return value.copy() if isinstance(value, np.ndarray) else value

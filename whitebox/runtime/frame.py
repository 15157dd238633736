"""A frame: what one lane of the engine needs to run a plan again and again.

The tables that the interpreter reads, pointed at the lane's scratch memory, and the values at hand.
Not thread-safe: whoever runs it holds the lane.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whitebox.errors import WhiteboxError
from whitebox.ir import serial
from whitebox.ir.graph import Graph, Tensor
from whitebox.ir.types import TensorType, numpy_dtype
from whitebox.kernels.host.interpreter import BEGUN
from whitebox.runtime.device import Arena
from whitebox.runtime.plan import Operand, Plan, Step, Storage
from whitebox.runtime.program import Program
from whitebox.runtime.texts import native_texts

Value = Any  # np.ndarray, or a Python object for sequences, maps and optionals
Maker = Callable[[], list[np.ndarray]]


@dataclass(frozen=True, eq=False)
class Bound:
    """A plan with all that its runs have in common.

    `addresses` are where the parameters are, `functions` the kernels by key, `makers` make the
    arrays of those results that kernels write.
    """

    plan: Plan
    parameters: Sequence[np.ndarray]
    addresses: Sequence[int]
    functions: dict[str, Any]
    interpret: Any
    makers: Sequence[Maker | None]


class Frame:
    """The tables and values of a bound plan in one arena."""

    def __init__(self, bound: Bound, arena: Arena) -> None:
        self._bound = bound
        self._plan = bound.plan
        self._arena = arena
        self._arena_base = -1
        # The program refers to them by address only.
        self._functions = [
            bound.functions[step.kernel] if step.kernel else self._host_function(step)
            for step in bound.plan.steps
        ]
        self._program = Program(bound.plan, arena.device, bound.addresses, self._functions)
        self._failure: Exception | None = None
        self._objects: list[Value] = [None] * bound.plan.objects
        self._inputs: Sequence[Value] = []
        self._results: list[Value] = []
        self._takes_texts = any(operand.dtype == "string" for operand in bound.plan.inputs)
        self._texts: list[object] = []
        self._pools: list[list[np.ndarray]] = [[] for _ in bound.makers]

    def call(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """As `run`, for a plan of kernels alone and arrays of exactly its types in C order."""
        if self._arena_base != self._arena.address:
            self._place_arena()
        for pool, make in zip(self._pools, self._bound.makers, strict=True):
            if not pool and make is not None:
                pool += make()
        results = [pool.pop() for pool in self._pools]
        program = self._program
        given = [self._native(array) for array in arrays] if self._takes_texts else arrays
        for place, array in zip(program.places, (*given, *results), strict=True):
            program.cells[place] = id(array)
        if self._bound.interpret(program.words):
            raise self._step_error()
        self._texts = []
        return results

    def run(self, inputs: Sequence[Value]) -> list[Value]:
        """The outputs for inputs of exactly the plan's types, in order.

        Raises WhiteboxError naming the step that failed.
        """
        self._bind(inputs)
        self._failure = None
        try:
            if self._plan.steps and self._bound.interpret(self._program.words):
                raise self._step_error() from self._failure
            return [
                _detached(self._read(operand)) if result is None else result
                for operand, result in zip(self._plan.outputs, self._results, strict=True)
            ]
        finally:
            # The caller owns the results; the inputs may go.
            self._inputs, self._results, self._texts = [], [], []

    def _place_arena(self) -> None:
        """Point the tables at the arena, made larger if need be."""
        self._arena_base = self._arena.reserve(self._program.arena_bytes)
        self._program.place_arena(self._arena_base)

    def _bind(self, inputs: Sequence[Value]) -> None:
        """Point the tables at this run's inputs, fresh outputs and the arena."""
        if self._arena_base != self._arena.address:
            self._place_arena()
        self._inputs = [
            np.require(value, requirements="C")
            if isinstance(value, np.ndarray) and value.dtype != object
            else value
            for value in inputs
        ]
        self._results = [None if make is None else make()[0] for make in self._bound.makers]
        cells = self._program.input_cells + self._program.output_cells
        for cell, array in zip(cells, (*self._inputs, *self._results), strict=True):
            if cell is not None:
                self._program.cells[cell] = id(self._native(array))

    def _native(self, value: Value) -> Value:
        """What a kernel is given for an input; it lives as long as the inputs."""
        if value.dtype != object:
            return value
        pairs, kept = native_texts(value)
        self._texts.append((pairs, kept))
        return pairs

    def _host_function(self, step: Step) -> Any:
        """A step that numpy computes, as a function the interpreter can call."""
        import tvm_ffi

        def no_weights(digest: str, type: TensorType) -> Tensor:
            raise ValueError(f"a host step refers to the weights {digest}")

        body = serial.decode(step.host, no_weights)

        # Weak: the frame has the function, which holds on to this where no garbage collector looks.
        this = weakref.ref(self)

        def run() -> None:
            frame = this()
            assert frame is not None
            try:
                frame._run_on_host(body, step)
            except Exception as error:
                frame._failure = error
                raise

        return tvm_ffi.convert(run)

    def _run_on_host(self, body: Graph, step: Step) -> None:
        from whitebox.ir import onnx_schema

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
                value = self._objects[operand.index]
                # Strings of a known shape may be read through a view.
                return value.reshape(operand.shape) if operand.dtype else value
            case Storage.PARAMETER:
                return self._bound.parameters[operand.index].reshape(operand.shape)
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

    def _step_error(self) -> WhiteboxError:
        return step_error(self._plan, self._program, self._failure)

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
                self._bound.interpret(program)
            seconds.append((time.perf_counter() - start) / calls)
        self._inputs, self._results = [], []
        return seconds

    def profile(self, inputs: Sequence[Value], repeats: int = 5) -> list[float]:
        """Seconds of each step on a real run: the median of `repeats`, one call a step."""
        import time

        self._bind(inputs)
        times = np.zeros((repeats, len(self._plan.steps)))
        programs = [self._program.one_step(number) for number in range(times.shape[1])]
        for repeat in times:
            for number, program in enumerate(programs):
                start = time.perf_counter()
                self._bound.interpret(program)
                repeat[number] = time.perf_counter() - start
        self._inputs, self._results = [], []
        return list(np.median(times, axis=0))


def step_error(plan: Plan, program: Program, cause: Exception | None = None) -> WhiteboxError:
    """What to say of a program that failed."""
    step = plan.steps[program.cells[BEGUN] - 1]
    kind = f"kernel {step.kernel[:12]}" if step.kernel else "host step"
    reason = f": {cause}" if cause else ""
    return WhiteboxError(f"{kind} {step.label} failed{reason}")


def _detached(value: Value) -> Value:
    """A copy that no later run overwrites."""
    return value.copy() if isinstance(value, np.ndarray) else value

"""An executable: a plan bound to parameters, kernels and a device. Running it is one native call.

Thread-safe as far as each arena is used by one run at a time, which the engine's lanes see to.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import numpy as np

from whitebox.runtime.device import Arena, Device
from whitebox.runtime.engine import Engine
from whitebox.runtime.frame import Bound, Frame, Value, step_error
from whitebox.runtime.light import PlainCall, light_call
from whitebox.runtime.plan import Plan, Storage
from whitebox.runtime.program import Program

# A model whose kernels touch no more than this is light: it runs for some tens of microseconds, so
# it need not wait for another to finish.
LIGHT_BYTES = 1 << 20

# What an operand of a step takes, in the plan and in the tables that are made of it.
_PLAN_BYTES = 256
_TABLE_BYTES = 256
# What a kernel takes once it is linked.
_KERNEL_BYTES = 24 << 10


class Executable:
    """A model at one set of input shapes, ready to run.

    `stage` is what runs it in one batch with others (see batching), None when it runs alone.
    """

    stage: Any = None

    def __init__(
        self,
        plan: Plan,
        parameters: Sequence[np.ndarray],
        function: Callable[[str], Any],
        interpret: Any,
        device: Device,
    ) -> None:
        self.plan = plan
        self._device = device
        self._memories = [
            device.upload(array) if array.dtype != object else None for array in parameters
        ]
        makers = [
            device.arrays(operand.dtype, operand.shape)
            if operand.storage == Storage.OUTPUT and operand.index == index
            else None
            for index, operand in enumerate(plan.outputs)
        ]
        self._bound = Bound(
            plan,
            parameters,
            [0 if memory is None else memory.address for memory in self._memories],
            {key: function(key) for key in plan.kernels},
            interpret,
            makers,
        )
        self._frames: dict[Arena, Frame] = {}

    @property
    def general(self) -> bool:
        """Whether the kernels serve other shapes as well."""
        return self.plan.general

    @property
    def is_plain(self) -> bool:
        """Whether `plain_call` will do: only kernels, and each writes results of its own."""
        return None not in self._bound.makers and all(step.kernel for step in self.plan.steps)

    @property
    def is_light(self) -> bool:
        """Whether a run takes microseconds, less than to wait for one's turn."""
        return self.plan.touched_bytes <= LIGHT_BYTES

    def plain_call(self, engine: Engine) -> PlainCall:
        """A function that gives the outputs for arrays of exactly the plan's types in C order.

        As `run` in one of the engine's lanes, without needless steps. It may also give None: then
        call `run`.
        """
        if self.is_light:
            return self._light_call()

        def call(*arrays: np.ndarray) -> list[np.ndarray]:
            lane = engine.enter()
            try:
                return self._frame(lane.arena).call(arrays)
            finally:
                engine.leave(lane)

        return call

    def _light_call(self) -> PlainCall:
        bound = self._bound
        functions = [bound.functions[step.kernel] for step in self.plan.steps]

        def program() -> Program:
            made = Program(self.plan, self._device, bound.addresses, functions)
            memory = self._device.allocate(made.arena_bytes)
            made.place_arena(memory.address)
            # What the tables refer to by address has to live as long as they do.
            made.owners = (memory, self)
            return made

        makers = [make for make in bound.makers if make is not None]
        fail = partial(step_error, self.plan)
        return light_call(self.plan.inputs, program, bound.interpret, makers, fail)

    def held(self) -> dict[Hashable, int]:
        """What it keeps in memory, by part, in bytes."""
        plan, bound = self.plan, self._bound
        parts: dict[Hashable, int] = {
            ("parameter", memory.address): array.nbytes
            for memory, array in zip(self._memories, bound.parameters, strict=True)
            if memory is not None
        }
        parts.update((("kernel", key), _KERNEL_BYTES) for key in plan.kernels)
        operands = sum(len(step.operands) + len(step.results) for step in plan.steps)
        parts["plan", id(plan)] = operands * _PLAN_BYTES
        light = plan.arena_bytes if plan.touched_bytes <= LIGHT_BYTES else 0
        parts["tables", id(self)] = operands * _TABLE_BYTES + light
        return parts

    def _frame(self, arena: Arena) -> Frame:
        """The frame in an arena, made when it is first needed."""
        frame = self._frames.get(arena)
        if frame is None:
            frame = self._frames[arena] = Frame(self._bound, arena)
        return frame

    def run(self, inputs: Sequence[Value], arena: Arena) -> list[Value]:
        """The outputs for inputs of exactly the plan's types, in order.

        Raises WhiteboxError naming the step that failed.
        """
        return self._frame(arena).run(inputs)

    def run_plain(self, arrays: Sequence[np.ndarray], arena: Arena) -> list[np.ndarray]:
        """As `run` in fewer steps, if `is_plain`, for arrays of the plan's types in C order."""
        return self._frame(arena).call(arrays)

    def time_step(
        self, inputs: Sequence[Value], arena: Arena, step: int, functions: Sequence[Any], calls: int
    ) -> list[float]:
        """Seconds a call of each function in place of one step's kernel, on its real operands."""
        return self._frame(arena).time_step(inputs, step, functions, calls)

    def profile(self, inputs: Sequence[Value], arena: Arena) -> list[float]:
        """Seconds of each step on a real run: the median of several, one call a step."""
        return self._frame(arena).profile(inputs)

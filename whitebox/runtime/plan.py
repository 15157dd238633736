"""Plans: a fused graph as a list of steps over numbered storage.

A plan is plain data. It names kernels by key, parameters by number, and memory by offsets, so it
is made once for a structure and shape (`planner`), kept on disk (`plans`), and bound to any model
of that structure on any device.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from whitebox.ir.types import TensorType


class Storage(IntEnum):
    """Where an operand lives."""

    INPUT = 0  # index: the model's input
    OUTPUT = 1  # index: the model's output
    ARENA = 2  # index: offset in bytes
    PARAMETER = 3  # index: into the parameters
    OBJECT = 4  # index: a Python value (strings, sequences, maps)


class Operand(msgspec.Struct, frozen=True, array_like=True):
    """A tensor in some storage. Objects that are no tensors of a known shape have no `dtype`."""

    storage: Storage
    index: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def native(self) -> TensorType:
        """The tensor that a kernel is given: of a text, where its code points are and how many."""
        if self.dtype == "string":
            return TensorType("int64", (*self.shape, 2))
        return TensorType(self.dtype, self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor; 0 for objects."""
        return 0 if self.storage == Storage.OBJECT else self.native.nbytes


class Step(msgspec.Struct, frozen=True):
    """One kernel call; or a call of the host, when `kernel` is empty and `host` holds the body."""

    label: str
    kernel: str
    operands: tuple[Operand, ...]
    results: tuple[Operand, ...]
    host: bytes = b""


class Expression(msgspec.Struct, frozen=True, array_like=True):
    """A constant expression over weights that it numbers from 0, as serialised graph.

    `digest` is that of the graph, `nbytes` how much is computed (0: a constant, or strings).
    """

    digest: str
    nbytes: int
    data: bytes


class Parameter(msgspec.Struct, frozen=True, array_like=True):
    """What a model's weights at `weights` are in a place of the plan.

    Put into the expression with that number; a weight as it is when the number is -1.
    """

    expression: int
    weights: tuple[int, ...]


class Plan(msgspec.Struct, frozen=True, weakref=True):
    """The steps of one model at one set of input shapes.

    `unshared_bytes` is what the intermediates would take if none shared memory,
    `touched_bytes` what a run reads and writes but for tables that it looks something up in. A
    `general` plan calls kernels that serve other sizes as well, where there are any.
    """

    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    steps: tuple[Step, ...]
    arena_bytes: int
    unshared_bytes: int
    touched_bytes: int
    objects: int
    expressions: tuple[Expression, ...]
    parameters: tuple[Parameter, ...]
    general: bool = False

    @property
    def kernels(self) -> list[str]:
        """The distinct kernels, in order of first use."""
        return list(dict.fromkeys(step.kernel for step in self.steps if step.kernel))


def encode_plan(plan: Plan) -> bytes:
    return msgspec.msgpack.encode(plan)


def decode_plan(data: bytes) -> Plan:
    """Raises msgspec.DecodeError when the bytes are damaged."""
    return msgspec.msgpack.decode(data, type=Plan)

"""What operators are lowered to: values given by a function from indices to an element.

What enters: nodes of a body. What leaves: `Value`s, which cost nothing until they are stored, and
`Body`, which holds the statements of the kernel being made. An operator that moves or combines
elements makes a new function of indices; one that reduces asks the body for a loop nest and gives
the array it fills. Never decides what is fused: everything that is not stored is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from tvm import tirx

from whitebox.compiler.target import Target
from whitebox.errors import CompileError
from whitebox.ir.graph import Node
from whitebox.ir.sizes import Extent, Size
from whitebox.kernels.cpu import injective, reduce
from whitebox.kernels.cpu.affine import Index, expression, symbol_variable
from whitebox.kernels.cpu.nest import Array, Axes, Element, Scope, allocate
from whitebox.kernels.cpu.reduce import Reduction, States


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor as a function of indices. A `shared` one is read more than once."""

    dtype: str
    shape: tuple[Extent, ...]
    element: Element
    shared: bool = False

    def at(self, scope: Scope, axes: Axes) -> Any:
        """The element at these indices, computed once in a scope."""
        if isinstance(self.element, Array):
            return self.element(scope, axes)
        key = (id(self), *(axis.key for axis in axes))
        known = scope.memo.get(key)
        if known is not None:
            return known
        made = self.element(scope, axes)
        if self.shared:
            made = scope.keep(made)
        scope.remember(key, made, axes)
        return made

    def broadcast(self, scope: Scope, axes: Axes) -> Any:
        """The element that indices of a larger shape mean, in numpy's broadcasting."""
        own = axes[len(axes) - len(self.shape) :]
        return self.at(
            scope,
            tuple(
                Index({}) if dim == 1 else axis for axis, dim in zip(own, self.shape, strict=True)
            ),
        )


Results: TypeAlias = "Value | tuple[Value, ...]"
Emitter: TypeAlias = "Callable[[Node, Sequence[Value], Body], Results]"
EMITTERS: dict[str, Emitter] = {}


def emitter(*ops: str) -> Callable[[Emitter], Emitter]:
    """Register the function that lowers these operators."""

    def register(function: Emitter) -> Emitter:
        EMITTERS.update(dict.fromkeys(ops, function))
        return function

    return register


@dataclass
class Body:
    """The kernel being made: its statements so far, and what it is made for.

    `variant` 0 is the schedule that the cost model likes best, others it likes less.
    """

    target: Target
    variant: int = 0
    statements: list[Any] = field(default_factory=list)
    allocations: list[Any] = field(default_factory=list)
    definitions: list[Any] = field(default_factory=list)

    @property
    def lanes(self) -> int:
        return self.target.lanes

    @property
    def vector_bytes(self) -> int:
        return self.target.lanes * 4

    def quotient(self, size: Extent, divisor: int) -> Extent:
        """`size / divisor`, rounded up; a symbol of the kernel's own where it is not known."""
        if isinstance(size, int):
            return -(-size // divisor)
        name = f"d{len(self.definitions)}"
        rounded = expression(size) + const(divisor - 1, "int32")
        value = tirx.truncdiv(rounded, const(divisor, "int32"))
        self.definitions.append(tirx.Bind(symbol_variable(name), value))
        return Size.symbol(name)

    def array(self, shape: Sequence[Extent], dtype: str) -> Array:
        """A new array that lives as long as the kernel runs."""
        array, statement = allocate(shape, dtype, f"m{len(self.allocations)}")
        self.allocations.append(statement)
        return array

    def last_reads(self) -> list[Any]:
        """A read of each array at the kernel's end, which has no effect but to keep it alive.

        TVM would otherwise put an array in the place of one that is read for the last time where it
        is written; the vector that overlaps the one before it would then read its own results.
        """
        zero = tirx.const(0, "int32")
        return [
            tirx.Evaluate(tirx.BufferLoad(statement.buffer, [zero]))
            for statement in self.allocations
        ]

    def store(self, results: Sequence[tuple[Array, Value]]) -> None:
        """Fill arrays of one shape with values."""
        pairs = [(array, value.at) for array, value in results]
        self.statements += injective.store(pairs, self.vector_bytes, self.target.threads)

    def materialize(self, value: Value) -> Value:
        """The value, held in memory."""
        if isinstance(value.element, Array):
            return value
        array = self.array(value.shape, value.dtype)
        self.store([(array, value)])
        return from_array(array, value.dtype)

    def buffer(self, value: Value) -> Any:
        """The flat buffer that holds a value."""
        array = self.materialize(value).element
        assert isinstance(array, Array)
        return array.buffer

    def reduce(self, shape: Sequence[Extent], dtype: str, reduction: Reduction) -> Value:
        """An array filled by a reduction; `shape` is the shape of what is kept."""
        array = self.array(shape, dtype)
        self.statements += reduce.store(array, reduction, self.vector_bytes, self.target.threads)
        return from_array(array, dtype)


def from_array(array: Array, dtype: str) -> Value:
    """The value that an array in memory holds."""
    return Value(dtype, array.shape, array)


# What a polynomial of many steps costs, in units of one load.
_HEAVY_WORK = 6


def mapped(
    node: Node, args: Sequence[Value], function: Callable[..., Any], *, heavy: bool = False
) -> Value:
    """Elements combined one by one, with broadcasting. A heavy function's result is kept."""
    dtype = node.tensor.dtype

    def element(scope: Scope, axes: Axes) -> Any:
        if heavy:
            scope.work += _HEAVY_WORK
        return convert(function(*(arg.broadcast(scope, axes) for arg in args)), dtype)

    return Value(dtype, node.tensor.extents, element, shared=heavy)


def moved(node: Node, source: Value, where: Callable[[Axes], Axes]) -> Value:
    """Elements taken from other places of one source."""
    return Value(
        node.tensor.dtype, node.tensor.extents, lambda scope, axes: source.at(scope, where(axes))
    )


def reshaped(value: Value, shape: Sequence[Extent]) -> Value:
    """The same elements in C order under another shape."""
    from whitebox.kernels.cpu.affine import flatten, unflatten

    if tuple(shape) == value.shape:
        return value
    if isinstance(value.element, Array):
        return replace(
            value, shape=tuple(shape), element=replace(value.element, shape=tuple(shape))
        )
    return Value(
        value.dtype,
        tuple(shape),
        lambda scope, axes: value.at(scope, unflatten(flatten(axes, shape), value.shape)),
    )


def ints(node: Node, position: int, default: Sequence[int] | None = None) -> tuple[int, ...]:
    """A static operand as a tuple of numbers."""
    source = node.inputs[position] if position < len(node.inputs) else None
    if source is None:
        if default is None:
            raise CompileError(f"{node.op}: input {position} is missing")
        return tuple(default)
    if not source.is_constant:
        raise CompileError(f"{node.op}: input {position} must be a constant to be compiled")
    return tuple(int(v) for v in source.value.reshape(-1))


def dtype_of(expr: Any) -> str:
    """The dtype of a TVM expression."""
    return str(expr.ty.dtype)


def compute_dtype(dtype: str) -> str:
    """The dtype in which arithmetic on `dtype` runs."""
    return "float32" if dtype in ("float16", "bfloat16") else dtype


def convert(expr: Any, dtype: str) -> Any:
    """`expr` as `dtype`, value kept; float32 behind a rounding to 16 bits is taken as it is."""
    if dtype_of(expr) == dtype:
        return expr
    if isinstance(expr, tirx.Cast) and dtype_of(expr.value) == dtype == "float32":
        return expr.value
    return tirx.Cast(dtype, expr)


def const(value: float | bool | Size, dtype: str) -> Any:
    """A constant expression; a size that is not known yet is one for all of the kernel."""
    return expression(value, dtype) if isinstance(value, Size) else tirx.const(value, dtype)


__all__ = [
    "EMITTERS", "Array", "Axes", "Body", "Emitter", "Index", "Reduction", "Results", "Scope",
    "States", "Value", "compute_dtype", "const", "convert", "dtype_of", "emitter", "from_array",
    "ints", "mapped", "moved", "reshaped",
]  # fmt: skip

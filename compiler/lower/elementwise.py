"""Operators that combine elements one by one: arithmetic, comparison, activation, conversion.

What enters: nodes and the values of their inputs. What leaves: values. Arithmetic on 16-bit floats
runs in float32. Integer division never traps: a divisor of zero counts as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

from tvm import tirx

from whitebox.compiler.lower import functions as fn
from whitebox.compiler.lower.value import (
    EMITTERS,
    Body,
    Value,
    compute_dtype,
    const,
    convert,
    dtype_of,
    emitter,
    mapped,
)
from whitebox.ir.graph import Node

Function = Callable[..., Any]

# Polynomials of many steps, which must not be repeated or nested in one expression.
_HEAVY = (fn.exp, fn.log, fn.erf, fn.tanh, fn.sigmoid, fn.softplus, fn.mish, fn.power)


def _widened(function: Function) -> Function:
    """`function` with 16-bit floats widened to float32."""

    def apply(*args: Any) -> Any:
        return function(*(convert(arg, compute_dtype(dtype_of(arg))) for arg in args))

    return apply


def _register(names: dict[str, Function]) -> None:
    def make(function: Function) -> Any:
        wide, heavy = _widened(function), function in _HEAVY
        return lambda node, args, body: mapped(node, args, wide, heavy=heavy)

    EMITTERS.update({name: make(function) for name, function in names.items()})


def _divide(a: Any, b: Any) -> Any:
    return fn.divide_integers(a, b) if fn.is_integer(a) else a / b


def _sign(x: Any) -> Any:
    zero, one = const(0, dtype_of(x)), const(1, dtype_of(x))
    below = zero if fn.is_unsigned(x) else const(-1, dtype_of(x))
    # Neither above nor below: zero, or not a number, which stays.
    return tirx.Select(x > zero, one, tirx.Select(x < zero, below, x))


def _comparable(function: Function) -> Function:
    """Comparison of booleans goes by their numbers."""

    def apply(a: Any, b: Any) -> Any:
        if dtype_of(a) == "bool":
            a, b = convert(a, "int8"), convert(b, "int8")
        return function(a, b)

    return apply


_register(
    {
        "Add": lambda a, b: a + b,
        "Sub": lambda a, b: a - b,
        "Mul": lambda a, b: a * b,
        "Div": _divide,
        "Pow": fn.power,
        "Neg": lambda x: const(0, dtype_of(x)) - x if fn.is_integer(x) else -x,
        "Abs": lambda x: x if fn.is_unsigned(x) else tirx.abs(x),
        "Reciprocal": lambda x: const(1, dtype_of(x)) / x,
        "Sqrt": tirx.sqrt,
        "Floor": tirx.floor,
        "Ceil": tirx.ceil,
        "Round": tirx.nearbyint,
        "Sign": _sign,
        "Exp": fn.exp,
        "Log": fn.log,
        "Erf": fn.erf,
        "Sigmoid": fn.sigmoid,
        "Tanh": fn.tanh,
        "Relu": fn.relu,
        "Softplus": fn.softplus,
        "Softsign": lambda x: x / (const(1, dtype_of(x)) + tirx.abs(x)),
        "Mish": fn.mish,
        "HardSwish": lambda x: x * fn.hard_sigmoid(x, 1 / 6, 0.5),
        "PRelu": lambda x, slope: tirx.Select(x < const(0, dtype_of(x)), slope * x, x),
        "Sin": tirx.sin,
        "Cos": tirx.cos,
        "Tan": tirx.tan,
        "Asin": tirx.asin,
        "Acos": tirx.acos,
        "Atan": tirx.atan,
        "Sinh": lambda x: fn.library("sinh", x),
        "Cosh": lambda x: fn.library("cosh", x),
        "Asinh": tirx.asinh,
        "Acosh": tirx.acosh,
        "Atanh": tirx.atanh,
        "IsNaN": fn.is_nan,
        "Equal": _comparable(lambda a, b: tirx.EQ(a, b)),
        "Less": lambda a, b: a < b,
        "LessOrEqual": lambda a, b: a <= b,
        "Greater": lambda a, b: a > b,
        "GreaterOrEqual": lambda a, b: a >= b,
        "And": tirx.And,
        "Or": tirx.Or,
        "Xor": lambda a, b: tirx.NE(convert(a, "int8"), convert(b, "int8")),
        "Not": tirx.Not,
        "BitwiseAnd": tirx.bitwise_and,
        "BitwiseOr": tirx.bitwise_or,
        "BitwiseXor": tirx.bitwise_xor,
        "BitwiseNot": tirx.bitwise_not,
    }
)


def _variadic(name: str, function: Function, finish: Function = lambda total, count: total) -> None:
    def emit(node: Node, args: Sequence[Value], body: Body) -> Value:
        return mapped(node, args, _widened(lambda *xs: finish(reduce(function, xs), len(xs))))

    EMITTERS[name] = emit


_variadic("Sum", lambda a, b: a + b)
_variadic("Mean", lambda a, b: a + b, lambda total, count: total / const(count, dtype_of(total)))
_variadic("Max", fn.maximum)
_variadic("Min", fn.minimum)


def _parametric(name: str, make: Callable[..., Any], **defaults: float) -> None:
    """An activation with number attributes: `make(x, attribute, …)`."""

    def emit(node: Node, args: Sequence[Value], body: Body) -> Value:
        values = [node.attr(key, default) for key, default in defaults.items()]
        return mapped(node, args, _widened(lambda x: make(x, *values)), heavy=True)

    EMITTERS[name] = emit


def _elu(x: Any, alpha: float) -> Any:
    dtype = dtype_of(x)
    return tirx.Select(x < const(0, dtype), const(alpha, dtype) * (fn.exp(x) - const(1, dtype)), x)


def _celu(x: Any, alpha: float) -> Any:
    dtype = dtype_of(x)
    scale = const(alpha, dtype)
    return tirx.Select(x < const(0, dtype), scale * (fn.exp(x / scale) - const(1, dtype)), x)


def _selu(x: Any, alpha: float, gamma: float) -> Any:
    return _elu(x, alpha) * const(gamma, dtype_of(x))


def _shrink(x: Any, bias: float, limit: float) -> Any:
    dtype = dtype_of(x)
    shift = const(bias, dtype)
    inner = tirx.Select(x > const(limit, dtype), x - shift, const(0, dtype))
    return tirx.Select(x < const(-limit, dtype), x + shift, inner)


def _thresholded_relu(x: Any, alpha: float) -> Any:
    return tirx.Select(x > const(alpha, dtype_of(x)), x, const(0, dtype_of(x)))


def _leaky_relu(x: Any, alpha: float) -> Any:
    return tirx.Select(x < const(0, dtype_of(x)), x * const(alpha, dtype_of(x)), x)


_parametric("LeakyRelu", _leaky_relu, alpha=0.01)
_parametric("ThresholdedRelu", _thresholded_relu, alpha=1.0)
_parametric("Elu", _elu, alpha=1.0)
_parametric("Celu", _celu, alpha=1.0)
_parametric("Selu", _selu, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875)
_parametric("HardSigmoid", fn.hard_sigmoid, alpha=0.2, beta=0.5)
_parametric("Shrink", _shrink, bias=0.0, lambd=0.5)
_parametric("Swish", lambda x, alpha: x * fn.sigmoid(x * const(alpha, dtype_of(x))), alpha=1.0)


@emitter("Gelu")
def _gelu(node: Node, args: Sequence[Value], body: Body) -> Value:
    """x * Φ(x), or its approximation by tanh."""

    def exact(x: Any) -> Any:
        half, one = const(0.5, dtype_of(x)), const(1, dtype_of(x))
        return half * x * (one + fn.erf(x * const(math.sqrt(0.5), dtype_of(x))))

    def approximate(x: Any) -> Any:
        dtype = dtype_of(x)
        inner = const(math.sqrt(2 / math.pi), dtype) * (x + const(0.044715, dtype) * x * x * x)
        return const(0.5, dtype) * x * (const(1, dtype) + fn.tanh(inner))

    return mapped(
        node,
        args,
        _widened(approximate if node.attr("approximate", "none") == "tanh" else exact),
        heavy=True,
    )


@emitter("Clip")
def _clip(node: Node, args: Sequence[Value], body: Body) -> Value:
    """Bounds are scalars, each may be absent; the upper one wins."""
    low, high = [*args[1:], None, None][:2]

    def clip(x: Any, *limits: Any) -> Any:
        at = iter(limits)
        if low is not None:
            least = next(at)
            x = tirx.Select(x < least, least, x)
        if high is not None:
            most = next(at)
            x = tirx.Select(x > most, most, x)
        return x

    given = [bound for bound in (low, high) if bound is not None]
    return mapped(node, [args[0], *given], _widened(clip))


@emitter("Where")
def _where(node: Node, args: Sequence[Value], body: Body) -> Value:
    return mapped(node, args, tirx.Select)


@emitter("Cast", "CastLike")
def _cast(node: Node, args: Sequence[Value], body: Body) -> Value:
    dtype = node.tensor.dtype
    return mapped(node, args[:1], lambda x: fn.cast(x, dtype))


@emitter("Mod")
def _mod(node: Node, args: Sequence[Value], body: Body) -> Value:
    truncating = bool(node.attr("fmod", 0))
    return mapped(node, args, _widened(lambda a, b: fn.remainder(a, b, truncating)))


@emitter("IsInf")
def _is_inf(node: Node, args: Sequence[Value], body: Body) -> Value:
    wanted = [
        sign
        for sign, name in ((1, "detect_positive"), (-1, "detect_negative"))
        if node.attr(name, 1)
    ]

    def check(x: Any) -> Any:
        infinite = [tirx.EQ(x, const(sign * math.inf, dtype_of(x))) for sign in wanted]
        return reduce(tirx.Or, infinite, const(False, "bool")) if infinite else const(False, "bool")

    return mapped(node, args, _widened(check))


@emitter("BitShift")
def _bit_shift(node: Node, args: Sequence[Value], body: Body) -> Value:
    left = node.attr("direction") == "LEFT"
    return mapped(node, args, tirx.shift_left if left else tirx.shift_right)

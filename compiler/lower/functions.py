"""Functions of elements, as TVM expressions, with ONNX's meaning in the corner cases.

What enters and leaves: scalar expressions. NaN goes through where ONNX's reference lets it through.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from whitebox.compiler.lower.value import const, convert, dtype_of
from whitebox.kernels.cpu import vector_math


def is_integer(x: Any) -> bool:
    return "int" in dtype_of(x)


def is_unsigned(x: Any) -> bool:
    return dtype_of(x).startswith("uint")


def is_nan(x: Any) -> Any:
    # Not `x != x`, which TVM simplifies away.
    return tirx.isnan(x)


def library(name: str, *args: Any) -> Any:
    """A function of C's mathematics library, which works on one element at a time."""
    dtype = dtype_of(args[0])
    suffix = "f" if dtype == "float32" else ""
    return tirx.call_pure_extern(dtype, name + suffix, *args)


def _fast(x: Any, vectorised: Any, general: Any) -> Any:
    """The vectorised function where there is one (float32), else the C library's."""
    return vectorised(x) if dtype_of(x) == "float32" else general(x)


def exp(x: Any) -> Any:
    return _fast(x, vector_math.exp, tirx.exp)


def log(x: Any) -> Any:
    return _fast(x, vector_math.log, tirx.log)


def erf(x: Any) -> Any:
    return _fast(x, vector_math.erf, tirx.erf)


def tanh(x: Any) -> Any:
    return _fast(x, vector_math.tanh, tirx.tanh)


def sigmoid(x: Any) -> Any:
    one = const(1, dtype_of(x))
    return _fast(x, vector_math.sigmoid, lambda x: one / (one + tirx.exp(-x)))


def softplus(x: Any) -> Any:
    """log(1 + exp(x)), without overflow."""
    zero = const(0, dtype_of(x))
    return tirx.max(x, zero) + log(const(1, dtype_of(x)) + exp(-tirx.abs(x)))


def mish(x: Any) -> Any:
    """x * tanh(softplus(x)), by one exponential: with e = exp(x), (e² + 2e) / (e² + 2e + 2)."""
    dtype = dtype_of(x)
    # Above 20 the quotient is one.
    e = exp(tirx.min(x, const(20, dtype)))
    square = e * (e + const(2, dtype))
    return x * (square / (square + const(2, dtype)))


def relu(x: Any) -> Any:
    zero = const(0, dtype_of(x))
    return tirx.Select(x < zero, zero, x)


def hard_sigmoid(x: Any, alpha: float, beta: float) -> Any:
    dtype = dtype_of(x)
    line = x * const(alpha, dtype) + const(beta, dtype)
    return tirx.max(const(0, dtype), tirx.min(const(1, dtype), line))


def maximum(a: Any, b: Any) -> Any:
    """The greater; NaN when either is."""
    if is_integer(a):
        return tirx.max(a, b)
    return tirx.Select(tirx.Or(a > b, is_nan(a)), a, b)


def minimum(a: Any, b: Any) -> Any:
    """The lesser; NaN when either is."""
    if is_integer(a):
        return tirx.min(a, b)
    return tirx.Select(tirx.Or(a < b, is_nan(a)), a, b)


def _safe(b: Any) -> Any:
    """A divisor for which no processor traps: neither 0 nor -1."""
    dtype = dtype_of(b)
    one = const(1, dtype)
    bad = tirx.EQ(b, const(0, dtype))
    if not is_unsigned(b):
        bad = tirx.Or(bad, tirx.EQ(b, const(-1, dtype)))
    return tirx.Select(bad, one, b)


def divide_integers(a: Any, b: Any) -> Any:
    """The quotient, rounded towards zero."""
    quotient = tirx.truncdiv(a, _safe(b))
    if is_unsigned(b):
        return quotient
    return tirx.Select(tirx.EQ(b, const(-1, dtype_of(b))), const(0, dtype_of(a)) - a, quotient)


def remainder(a: Any, b: Any, truncating: bool) -> Any:
    """The remainder with the sign of the dividend (truncating) or of the divisor."""
    zero = const(0, dtype_of(b))
    rest = tirx.truncmod(a, _safe(b)) if is_integer(a) else library("fmod", a, b)
    if truncating or is_unsigned(a):
        return rest
    signs = (convert(x < zero, "int8") for x in (rest, b))
    crosses = tirx.And(tirx.NE(rest, zero), tirx.NE(*signs))
    return tirx.Select(crosses, rest + b, rest)


def power(base: Any, exponent: Any) -> Any:
    """`base ** exponent` in the dtype of the base."""
    dtype = dtype_of(base)
    wide = "float64" if is_integer(base) or dtype_of(exponent) == "float64" else dtype
    return cast(tirx.power(convert(base, wide), convert(exponent, wide)), dtype)


def cast(x: Any, dtype: str) -> Any:
    """ONNX's Cast between numeric types."""
    source = dtype_of(x)
    if source == dtype:
        return x
    if dtype == "bool":
        return tirx.NE(x, const(0, source))
    if "float" in source and "int" in dtype and "64" not in dtype:
        # Through a wider integer, so that out of range numbers wrap as they do in numpy.
        return convert(convert(x, "int64" if dtype == "uint32" else "int32"), dtype)
    return convert(x, dtype)

"""Transcendental functions as float32 expressions that vectorise.

Enters: a float32 TE/TIR expression. Leaves: one made of arithmetic, selects and bit casts only,
which LLVM turns into vector code; its own `exp` or `tanh` would become a call of libm for each
lane. Relative errors stay below 5e-7; infinities and NaN come out right; results below the
smallest normal number may be flushed to zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

_Coefficients: TypeAlias = tuple[float, ...]

# Adding it to a small float rounds that float to an integer, kept in the low bits of the mantissa.
_ROUND = 12582912.0  # 1.5 · 2^23
_LOG2E = 1.44269504088896341
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4

_EXP: _Coefficients = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3)
_EXP += (4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
# e^r = 1 + r q(r) to 1e-7 for |r| <= ln(2) / 2, where it is the best polynomial of its degree.
_EXP_SHORT = (8.2902722e-3, 4.1898161e-2, 1.6667639e-1, 4.9999148e-1, 9.999997e-1)
_TANH_P: _Coefficients = (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11)
_TANH_P += (5.12229709037114e-08, 1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03)
_TANH_Q: _Coefficients = (
    1.19825839466702e-06,
    1.18534705686654e-04,
    2.26843463243900e-03,
    4.89352518554385e-03,
)
_ERF_P: _Coefficients = (0.00022905065861350646, 0.0034082910107109506, 0.050955695062380861)
_ERF_P += (0.18520832239976145, 1.128379143519084)
_ERF_Q: _Coefficients = (-1.1791602954361697e-7, 0.000023547966471313185, 0.0010179625278914885)
_ERF_Q += (0.014070470171167667, 0.11098505178285362, 0.49746925110067538, 1.0)
_LOG: _Coefficients = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
)
_LOG += (-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)


def _float(value: float) -> Any:
    from tvm import tirx

    return tirx.const(value, "float32")


def _let(value: Any, body: Callable[[Any], Any]) -> Any:
    """`body` of a name for `value`: a repeated expression would be a copy at each use."""
    from tvm import tirx

    value = tirx.convert(value)  # an element of a TE tensor is no expression yet
    name = tirx.Var("v", str(value.ty))
    return tirx.Let(name, value, body(name))


def _polynomial(x: Any, coefficients: Sequence[float]) -> Any:
    """Horner's scheme, highest power first."""
    result = _float(coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + _float(coefficient)
    return result


def _clamp(x: Any, low: float, high: float) -> Any:
    """`x` between bounds. Unlike min and max it hands a NaN on."""
    from tvm import tirx

    above = tirx.Select(x < _float(low), _float(low), x)
    return _let(above, lambda y: tirx.Select(y > _float(high), _float(high), y))


def exp(x: Any) -> Any:
    """e^x."""
    return _let(x, lambda x: _let(_clamp(x, -88.0, 89.0), _exp_of_clamped))


def exp_nonpositive(x: Any) -> Any:
    """e^x where `x` is known to be at most 0, as in a softmax: a third fewer operations."""
    from tvm import tirx

    bounded = _let(x, lambda x: tirx.Select(x < _float(-88.0), _float(-88.0), x))
    return _let(bounded, _exp_short)


def _exp_short(x: Any) -> Any:
    """e^x for |x| <= 88: no power of two is out of range."""

    def mantissa(r: Any) -> Any:
        return _polynomial(r, (*_EXP_SHORT, 1.0))

    return _let(_shifted(x), lambda s: _exp_scaled(x, s, mantissa))


def _shifted(x: Any) -> Any:
    """x / ln 2, rounded to an integer in the low bits of the mantissa."""
    return x * _float(_LOG2E) + _float(_ROUND)


def _exp_of_clamped(x: Any) -> Any:
    from tvm import tirx

    def long(r: Any) -> Any:
        return (_polynomial(r, _EXP) * r * r + r) + _float(1.0)

    # 2^127 is the largest power that a float holds; what is over it stays in the mantissa.
    most = _float(_ROUND + 127)
    capped = _let(_shifted(x), lambda s: tirx.Select(s > most, most, s))
    return _let(capped, lambda s: _exp_scaled(x, s, long))


def _exp_scaled(x: Any, shifted: Any, mantissa: Callable[[Any], Any]) -> Any:
    """2^n · e^r with r = x - n ln 2, given n as `_shifted` makes it and `mantissa` for e^r."""
    from tvm import tirx

    n = shifted - _float(_ROUND)
    bits = tirx.reinterpret("int32", shifted)
    power = tirx.reinterpret("float32", (bits << 23) + tirx.const(127 << 23, "int32"))
    remainder = _let(n, lambda n: x - n * _float(_LN2_HIGH) - n * _float(_LN2_LOW))
    return _let(remainder, mantissa) * power


def _saturating(x: Any, limit: float, over: Sequence[float], under: Sequence[float]) -> Any:
    """The odd function x · over(x²) / under(x²), which is ±1 from ±`limit` on."""
    from tvm import tirx

    def bounded(x: Any) -> Any:
        value = _let(x * x, lambda s: x * _polynomial(s, over) / _polynomial(s, under))
        value = tirx.Select(x > _float(limit), _float(1.0), value)
        return tirx.Select(x < _float(-limit), _float(-1.0), value)

    return _let(x, bounded)


def tanh(x: Any) -> Any:
    """Hyperbolic tangent."""
    return _saturating(x, 7.90531110763549805, _TANH_P, _TANH_Q)


def erf(x: Any) -> Any:
    """The error function."""
    return _saturating(x, 3.7439211627767994, _ERF_P, _ERF_Q)


def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x)."""
    power = _let(x, lambda x: _let(_clamp(_float(0.0) - x, -88.0, 88.0), _exp_short))
    return _float(1.0) / (_float(1.0) + power)


def log(x: Any) -> Any:
    """Natural logarithm. Numbers below the smallest normal one count as zero."""
    from tvm import tirx

    def integer(value: int) -> Any:
        return tirx.const(value, "int32")

    def series(mantissa: Any, exponent: Any) -> Any:
        square = mantissa * mantissa
        tail = _polynomial(mantissa, _LOG) * mantissa * square
        tail = tail + exponent * _float(_LN2_LOW) - _float(0.5) * square
        return mantissa + tail + exponent * _float(_LN2_HIGH)

    def of_bits(bits: Any) -> Any:
        # The mantissa goes to [sqrt(1/2), sqrt(2)), so that it is near 1 for results near 0.
        exponent = (bits - integer(0x3F3504F3)) >> 23
        return _let(
            exponent,
            lambda e: _let(
                tirx.reinterpret("float32", bits - (e << 23)) - _float(1.0),
                lambda m: series(m, tirx.Cast("float32", e)),
            ),
        )

    def special(x: Any) -> Any:
        value = _let(tirx.reinterpret("int32", x), of_bits)
        infinity, nan = _float(float("inf")), _float(float("nan"))
        value = tirx.Select(x < _float(1.17549435e-38), _float(float("-inf")), value)
        value = tirx.Select(x < _float(0.0), nan, value)
        return tirx.Select(x < infinity, value, x)

    return _let(x, special)

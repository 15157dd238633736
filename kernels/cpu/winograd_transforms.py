"""The input and output transforms of Winograd convolutions with 6x6 tiles, as expressions.

In: elements of a row or column of a tile. Out: one element of its transform. Interpolation points
are 0, 1, -1, 2, -2 and infinity for every kernel size; the weight transform, which alone depends on
it further, is made with the packing of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Matrix = Sequence[Sequence[float]]

# Rows and columns that a tile reads.
IN = 6
INPUT_TRANSFORM: Matrix = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
# Row i: the i-th powers of the points but infinity, which counts in the last row only.
_OUTPUT_POWERS = ((1, 1, 1, 1, 1), (0, 1, -1, 2, -2), (0, 1, 1, 4, 4), (0, 1, -1, 8, -8))


def output_transform(out: int) -> Matrix:
    """[out, 6]: from a transformed row to `out` results."""
    return [(*powers, int(i == out - 1)) for i, powers in enumerate(_OUTPUT_POWERS[:out])]


def transformed(matrix: Matrix, row: Any, values: Sequence[Any]) -> Any:
    """The product of one row of a constant matrix with a vector; `row` is an unrolled loop."""
    from tvm import tirx

    result = combined(matrix[-1], values)
    for number in range(len(matrix) - 2, -1, -1):
        result = tirx.Select(row == number, combined(matrix[number], values), result)
    return result


def combined(coefficients: Sequence[float], values: Sequence[Any]) -> Any:
    """The sum of values times constants."""
    from tvm import tirx

    total: Any = None
    for factor, value in zip(coefficients, values, strict=True):
        if not factor:
            continue
        if total is None:
            total = value if factor == 1 else value * tirx.const(factor, "float32")
        elif factor == 1:
            total = total + value
        elif factor == -1:
            total = total - value
        else:
            total = total + value * tirx.const(factor, "float32")
    return total

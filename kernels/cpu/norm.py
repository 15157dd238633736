"""Templates for normalisation over trailing dimensions: layer, RMS and instance normalisation.

Enters: a shape and how many trailing dimensions make a row, then TE tensors. Leaves: a TE tensor
named "normalization" and a schedule that takes one row after the other in cache. The variance is
that of centred values, so that a large mean does not cancel it. Knows no Graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from whitebox.kernels.cpu.rows import Rows, reduction_blocks

RESULT = "normalization"
_ROW, _MEAN, _CENTRED, _SCALE = "norm_row", "norm_mean", "centred_row", "norm_scale"


@dataclass(frozen=True)
class Normalization:
    """`(x - mean) / sqrt(variance + epsilon) · scale + bias`, mean and variance over each row.

    `kind` is "layer" (scale and bias broadcast to X), "rms" (no mean, no bias needed) or "instance"
    (scale and bias belong to the second dimension). A row is the last `axes` dimensions.
    """

    rows: Rows
    kind: str
    epsilon: float

    @classmethod
    def default(
        cls,
        shape: tuple[int, ...],
        axes: int,
        lanes: int,
        threads: int,
        *,
        kind: str = "layer",
        epsilon: float = 1e-5,
    ) -> Normalization:
        """The template for `shape`; InstanceNormalization has `axes = rank - 2`."""
        return cls(Rows(tuple(shape), axes, lanes, threads), kind, epsilon)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return self.rows.shape

    def compute(self, x: Any, scale: Any | None = None, bias: Any | None = None) -> Any:
        from tvm import te

        rows, count = self.rows, float(self.rows.size)
        values = rows.cache(_ROW, x, 0.0)
        if self.kind != "rms":
            mean = rows.reduce(_MEAN, "sum", values, lambda total: total * (1.0 / count))
            row = values
            values = rows.cache(_CENTRED, lambda *i: row(*i) - rows.of(mean, i), 0.0)

        def square(*index: Any) -> Any:
            return values(*index) * values(*index)

        def factor(total: Any) -> Any:
            return 1.0 / te.sqrt(total * (1.0 / count) + self.epsilon)

        factors = rows.reduce(_SCALE, "sum", square, factor)

        def result(*index: Any) -> Any:
            value = values(*index) * rows.of(factors, index)
            if scale is not None:
                value = value * self._parameter(scale, index)
            return value if bias is None else value + self._parameter(bias, index)

        return te.compute(self.shape, result, name=RESULT)

    def schedule(self, sch: Any) -> None:
        centring = () if self.kind == "rms" else (*reduction_blocks(_MEAN), _CENTRED)
        self.rows.schedule(sch, (_ROW, *centring, *reduction_blocks(_SCALE)), cost=3)

    def _parameter(self, tensor: Any, index: tuple[Any, ...]) -> Any:
        """The element of scale or bias that goes with an element of X."""
        if self.kind == "instance":
            return tensor(index[1])
        last = index[len(index) - len(tensor.shape) :]
        own = [0 if int(size) == 1 else i for i, size in zip(last, tensor.shape, strict=True)]
        return tensor(*own)

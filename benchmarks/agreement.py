"""How far two answers are apart. Never raises: answers that cannot be compared are `inf` apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np

LIMIT = 1e-3  # the largest relative error of an answer in float32


class Compared(Protocol):
    """What is known of an answer that has been compared."""

    error: float | None
    cosine: float | None


@dataclass(frozen=True)
class Limit:
    """How far an answer may be off: its largest error, and its direction."""

    relative: float
    cosine: float

    def allows(self, answer: Compared) -> bool:
        """Whether the answer is near enough."""
        assert answer.error is not None and answer.cosine is not None
        return answer.error <= self.relative and answer.cosine >= self.cosine


# bf16 keeps 8 bits: an operand is off by up to 2⁻⁹, a sum of many by less, a network of many layers
# by more again. Direction says more about such an answer than its worst element.
LIMITS = MappingProxyType({"f32": Limit(LIMIT, 0.999), "bf16": Limit(0.2, 0.99)})
# A float32 sum that falls to the other side of one half is a step of 1/256, and makes more further
# on. Where the CPU lacks VNNI the peers' own products saturate, or leave a bit out.
QUANTIZED = Limit(0.15, 0.99)


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference of any element, as a fraction of the largest expected magnitude.

    Infinite when shapes or dtypes differ, or when a number stands where a NaN should, or the
    reverse. Integers, booleans and strings are either equal (0) or not (inf).
    """
    if got.shape != want.shape or got.dtype != want.dtype:
        return float("inf")
    if want.dtype.kind not in "fcV" or want.dtype == object:
        return 0.0 if np.array_equal(got, want) else float("inf")
    if want.size == 0:
        return 0.0
    left, right = got.astype(np.float64), want.astype(np.float64)
    # Equal infinities are no difference; a NaN is one unless both have it.
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    if not np.isfinite(left[~same]).all() or not np.isfinite(right[~same]).all():
        return float("inf")
    difference = np.abs(left[~same] - right[~same]).max(initial=0.0)
    scale = np.abs(right[np.isfinite(right)]).max(initial=0.0)
    return float(difference / scale) if difference else 0.0


def cosine(got: np.ndarray, want: np.ndarray) -> float:
    """The cosine of the angle between two answers; 0 when they cannot be compared at all.

    Of integers, booleans and strings: the share of equal elements.
    """
    if got.shape != want.shape or got.dtype != want.dtype:
        return 0.0
    if want.dtype.kind not in "fcV" or want.dtype == object:
        return float(np.mean(got == want)) if want.size else 1.0
    left, right = got.astype(np.float64).ravel(), want.astype(np.float64).ravel()
    finite = np.isfinite(left) & np.isfinite(right)
    left, right = left[finite], right[finite]
    norms = np.linalg.norm(left) * np.linalg.norm(right)
    return float(left @ right / norms) if norms else float(np.array_equal(left, right))


def least_cosine(got: Sequence[np.ndarray], want: Sequence[np.ndarray]) -> float:
    """The smallest cosine over all results of a model."""
    if len(got) != len(want):
        return 0.0
    return min((cosine(a, b) for a, b in zip(got, want, strict=True)), default=1.0)


def worst_error(got: Sequence[np.ndarray], want: Sequence[np.ndarray]) -> float:
    """The largest relative error over all results of a model."""
    if len(got) != len(want):
        return float("inf")
    return max((relative_error(a, b) for a, b in zip(got, want, strict=True)), default=0.0)

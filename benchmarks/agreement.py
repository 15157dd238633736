"""How far two answers are apart. Never raises: answers that cannot be compared are `inf` apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LIMIT = 1e-3


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


def worst_error(got: Sequence[np.ndarray], want: Sequence[np.ndarray]) -> float:
    """The largest relative error over all results of a model."""
    if len(got) != len(want):
        return float("inf")
    return max((relative_error(a, b) for a, b in zip(got, want, strict=True)), default=0.0)

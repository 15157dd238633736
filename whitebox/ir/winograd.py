"""The weight transforms of Winograd convolutions with 6x6 tiles: F(4x4, 3x3) and F(2x2, 5x5).

Shared by whoever packs or reads transformed weights.
"""

from __future__ import annotations

from functools import cache

import numpy as np

KERNELS = ((3, 3), (5, 5))
# Interpolation points but for infinity, and each one's factor in the weight transform.
_POINTS = np.array([0, 1, -1, 2, -2])
_FACTORS = np.array([1 / 4, -1 / 6, -1 / 6, 1 / 24, 1 / 24])


@cache
def weight_transform(size: int) -> np.ndarray:
    """[size², 36]: a kernel as a row, times this, is the transformed 6x6 kernel."""
    return _both_axes(size).T.astype(np.float32)


@cache
def weight_inverse(size: int) -> np.ndarray:
    """[36, size²]: the way back."""
    return np.linalg.pinv(_both_axes(size).T).astype(np.float32)


def _both_axes(size: int) -> np.ndarray:
    at_points = _FACTORS[:, None] * _POINTS[:, None] ** np.arange(size)
    one_axis = np.vstack([at_points, np.eye(size)[-1]])
    return np.kron(one_axis, one_axis)

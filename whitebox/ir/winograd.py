"""The weight transform of Winograd's F(4x4, 3x3), shared by whoever packs or reads weights."""

from __future__ import annotations

import numpy as np

# Rows for the interpolation points 0, 1, -1, 2, -2 and infinity.
_TRANSFORM = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
_BOTH_AXES = np.kron(_TRANSFORM, _TRANSFORM)

# [9, 36]: a 3x3 kernel as a row, times this, is the transformed 6x6 kernel.
WEIGHT_TRANSFORM = _BOTH_AXES.T.astype(np.float32)
# [36, 9]: the way back.
WEIGHT_INVERSE = np.linalg.pinv(_BOTH_AXES.T).astype(np.float32)

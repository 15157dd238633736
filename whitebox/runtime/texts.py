"""Texts as kernels take them: for each, where its code points are and how many there are.

What enters: an array of texts. What leaves: an int64 array with such a pair for each, and what has
to live as long as the pairs are used.
"""

from __future__ import annotations

import numpy as np

# A bytes object ends with its data and a zero byte.
_DATA_AT = bytes.__basicsize__ - 1
# Native order, as kernels read code points; lone surrogates are code points like others.
_CODE_POINTS = f"utf-32-{'le' if np.little_endian else 'be'}"
_AFTER = "\0"  # kernels look at the code point after the last


def native_texts(texts: np.ndarray) -> tuple[np.ndarray, list[bytes]]:
    """(pairs of an address and a length, the code points that they refer to)."""
    kept = [
        ((text if type(text) is str else _decoded(text)) + _AFTER).encode(
            _CODE_POINTS, "surrogatepass"
        )
        for text in texts.ravel().tolist()
    ]
    pairs = [(id(raw) + _DATA_AT, len(raw) // 4 - 1) for raw in kept]
    return np.array(pairs, np.int64).reshape(*texts.shape, 2), kept


def _decoded(text: object) -> str:
    return text.decode() if isinstance(text, bytes) else str(text)

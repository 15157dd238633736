"""Materialisation: results that are kept, to be given again for the same inputs.

Results go in under the digest of a computation (a model's, or a node's) and that of the bytes of
its inputs; copies come out, so that nobody can change what is kept. Bounded: what was not asked for
longest is dropped first. Never decides what is worth keeping.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from whitebox.ir.graph import Graph, string_bytes
from whitebox.ir.ops import DRAW

# What an entry takes besides its results: its key and the tables that hold it.
_ENTRY_BYTES = 512


class Key(NamedTuple):
    """What was computed, and of what."""

    computation: str
    inputs: bytes


class Materialized:
    """Results by key, of at most `most_bytes` together. Thread-safe."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.nbytes = 0
        self.hits = 0
        self.misses = 0
        self._results: OrderedDict[Key, list[np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> list[np.ndarray] | None:
        """Copies of the results that are kept under a key."""
        with self._lock:
            found = self._results.get(key)
            if found is None:
                self.misses += 1
                return None
            self.hits += 1
            self._results.move_to_end(key)
        return [array.copy() for array in found]

    def put(self, key: Key, results: Sequence[Any]) -> None:
        """Keep copies of results, if they are arrays and there is room for them."""
        if not all(isinstance(each, np.ndarray) for each in results):
            return
        nbytes = _nbytes(results)
        if nbytes > self.most_bytes:
            return
        copies = [array.copy() for array in results]
        with self._lock:
            if key in self._results:
                return
            self._results[key] = copies
            self.nbytes += nbytes
            while self.nbytes > self.most_bytes:
                _, dropped = self._results.popitem(last=False)
                self.nbytes -= _nbytes(dropped)

    def __len__(self) -> int:
        return len(self._results)


def digest_of(values: Iterable[Any]) -> bytes | None:
    """A digest of arrays, of their types and shapes too; None where some are no arrays.

    SHA-256, as clients choose the inputs: none may find two that are taken for one another. CPUs
    have instructions for it, so nothing else in the standard library is faster.
    """
    digest = hashlib.sha256()
    for value in values:
        if not isinstance(value, np.ndarray):
            return None
        digest.update(f"{value.dtype.str}{value.shape};".encode())
        strings = value.dtype == object
        data = string_bytes(value) if strings else np.ascontiguousarray(value).reshape(-1)
        digest.update(data if isinstance(data, bytes) else data.view(np.uint8).data)
    return digest.digest()


def is_repeatable(graph: Graph) -> bool:
    """Whether the same inputs always give the same results: nothing in the graph is random."""
    return not any(
        DRAW in node.attrs
        or any(isinstance(v, Graph) and not is_repeatable(v) for v in node.attrs.values())
        for node in graph.nodes
    )


def _nbytes(arrays: Sequence[np.ndarray]) -> int:
    # Of strings numpy counts the references only.
    texts = (
        len(str(item)) + 64 for array in arrays if array.dtype == object for item in array.flat
    )
    return _ENTRY_BYTES + sum(array.nbytes for array in arrays) + sum(texts)

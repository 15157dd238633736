"""Importing TVM without what it does not need here.

tvm_ffi imports torch where it is installed, to know its tensors: seconds of work, in every process
that compiles or serves, for tensors that Whitebox never makes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_torch() -> Iterator[None]:
    """What is imported inside finds no torch, unless it is in memory already."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # how Python spells "not there"
    try:
        yield
    finally:
        del sys.modules["torch"]

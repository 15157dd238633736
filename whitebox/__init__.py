"""Whitebox: a white-box inference runtime. Every model in one DAG of operators.

    import whitebox

    session = whitebox.InferenceSession("model.onnx")      # onnxruntime's face
    session.run(None, {"x": array})

    with whitebox.Runtime() as runtime:                    # many models, kept in a home
        runtime.register("model.onnx", "detector")
        runtime.predict("detector", {"x": array})
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from whitebox import errors

if TYPE_CHECKING:
    from whitebox.ir.graph import Graph
    from whitebox.runtime.runtime import Runtime
    from whitebox.runtime.session import (
        InferenceSession,
        SessionOptions,
        get_available_providers,
    )

_HOMES = {
    "Runtime": "whitebox.runtime.runtime",
    "InferenceSession": "whitebox.runtime.session",
    "SessionOptions": "whitebox.runtime.session",
    "get_available_providers": "whitebox.runtime.session",
    "Graph": "whitebox.ir.graph",
}

__all__ = [
    "Graph",
    "InferenceSession",
    "Runtime",
    "SessionOptions",
    "errors",
    "get_available_providers",
]


def __getattr__(name: str) -> Any:
    """Load on first use: `whitebox --help` must not wait for numpy."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'whitebox' has no attribute {name!r}")

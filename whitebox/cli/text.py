"""How things are written for a person: sizes, times, columns; and records for a script."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whitebox.registry.records import ModelInfo, TensorSpec


def size(nbytes: int) -> str:
    """Bytes in a unit that keeps the number short: "512 B", "97.5 MB"."""
    amount = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{nbytes} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def age(created: float, now: float | None = None) -> str:
    """How long ago: "3 minutes ago"."""
    seconds = max(0.0, (time.time() if now is None else now) - created)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            return f"{count(int(seconds // length), unit)} ago"
    return "just now"


def count(number: int, noun: str) -> str:
    """ "1 kernel", "2 kernels"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, three spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def model_to_dict(model: ModelInfo) -> dict[str, Any]:
    """A model for JSON output. A free dimension is -1."""
    return {
        "name": model.name,
        "version": model.version,
        "versions": list(model.versions),
        "inputs": [_spec_to_dict(spec) for spec in model.inputs],
        "outputs": [_spec_to_dict(spec) for spec in model.outputs],
        "digest": model.digest,
        "created": model.created,
        "nbytes": model.nbytes,
        "metadata": model.metadata,
    }


def _spec_to_dict(spec: TensorSpec) -> dict[str, Any]:
    from whitebox.ir.types import TensorType

    if not isinstance(spec.type, TensorType):
        return {"name": spec.name, "type": str(spec.type)}
    shape = None if spec.type.shape is None else spec.wire_shape
    return {"name": spec.name, "dtype": spec.type.dtype, "shape": shape}

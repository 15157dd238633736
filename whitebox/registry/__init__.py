"""Models that are kept: names, immutable versions, content-addressed weights."""

from whitebox.registry.records import (
    ModelInfo,
    ModelRecord,
    Registration,
    TensorSpec,
    validate_name,
)
from whitebox.registry.store import Registry

__all__ = [
    "ModelInfo",
    "ModelRecord",
    "Registration",
    "Registry",
    "TensorSpec",
    "validate_name",
]

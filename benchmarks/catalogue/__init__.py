"""The models that the benchmarks and the tests run: where each comes from, what it takes.

A pure description. What enters: nothing. What leaves: `MODELS`, name → `Model`, and `GROUPS`, the
names that stand for several.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from benchmarks.catalogue.exported import EXPORTED
from benchmarks.catalogue.light import LIGHT
from benchmarks.catalogue.model import Model
from benchmarks.catalogue.quantized import QUANTIZED
from benchmarks.catalogue.real import REAL

MODELS: Mapping[str, Model] = MappingProxyType(
    {model.name: model for model in (*REAL, *LIGHT, *EXPORTED, *QUANTIZED)}
)
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "all": tuple(model.name for model in (*REAL, *LIGHT, *EXPORTED)),
        "real": tuple(model.name for model in REAL),
        "light": tuple(model.name for model in LIGHT),
        "exports": tuple(model.name for model in EXPORTED),
        "quantized": tuple(model.name for model in QUANTIZED),
    }
)

__all__ = ["GROUPS", "MODELS", "Model"]

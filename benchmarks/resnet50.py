"""The convolutions of ResNet-50 as single operators, and how many times the network has each.

A pure description. What enters: nothing. What leaves: `RESNET50`, operators by name, their `count`
set. Each includes the way from NCHW to the blocked layout and back, which a network takes once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from benchmarks.operators import Operator, convolution

FAMILY = "resnet50"

# input channels, size, output channels, kernel, stride, count
_LAYERS = (
    (3, 224, 64, 7, 2, 1),
    (64, 56, 64, 1, 1, 1), (64, 56, 64, 3, 1, 3), (64, 56, 256, 1, 1, 4), (256, 56, 64, 1, 1, 2),
    (256, 56, 128, 1, 1, 1), (128, 56, 128, 3, 2, 1), (256, 56, 512, 1, 2, 1),
    (128, 28, 128, 3, 1, 3), (128, 28, 512, 1, 1, 4), (512, 28, 128, 1, 1, 3),
    (512, 28, 256, 1, 1, 1), (256, 28, 256, 3, 2, 1), (512, 28, 1024, 1, 2, 1),
    (256, 14, 256, 3, 1, 5), (256, 14, 1024, 1, 1, 6), (1024, 14, 256, 1, 1, 5),
    (1024, 14, 512, 1, 1, 1), (512, 14, 512, 3, 2, 1), (1024, 14, 2048, 1, 2, 1),
    (512, 7, 512, 3, 1, 2), (512, 7, 2048, 1, 1, 3), (2048, 7, 512, 1, 1, 2),
)  # fmt: skip


def _operators() -> dict[str, Operator]:
    made = {}
    for *sizes, kernel, stride, count in _LAYERS:
        one = convolution(FAMILY, *sizes, kernel, stride)
        name = f"{FAMILY} {one.name}"
        made[name] = replace(one, name=name, count=count)
    return made


RESNET50: Mapping[str, Operator] = MappingProxyType(_operators())

"""Convolutional networks of one architecture: SqueezeNet, each with seeded weights of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx

from benchmarks.catalogue import MODELS
from benchmarks.many.recipes import Feeds
from benchmarks.models import path
from benchmarks.weights import randomised

ARCHITECTURE = "light_squeezenet"
REQUESTS = 8


def build(files: Sequence[Path]) -> list[Feeds]:
    """Write the models; give requests."""
    model = onnx.load(path(ARCHITECTURE))
    for seed, file in enumerate(files):
        onnx.save(randomised(model, seed), file)
    return [MODELS[ARCHITECTURE].feeds(seed) for seed in range(REQUESTS)]

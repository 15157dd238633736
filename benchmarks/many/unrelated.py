"""Models that have nothing to do with each other: the catalogue's, then networks of many shapes.

Real models, architectures of the onnx package and of frameworks with seeded weights, scikit-learn
pipelines, quantised networks. What cannot be had here is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from onnx import helper

from benchmarks.catalogue import MODELS
from benchmarks.many import proto
from benchmarks.many.recipes import Feeds
from benchmarks.models import ModelUnavailable, with_weights

# Larger ones would be all that the memory of either engine shows.
MAX_BYTES = 120_000_000
REQUESTS = 4


def build(files: Sequence[Path]) -> dict[str, list[Feeds]]:
    """Write the models; give the requests of each by its name."""
    known = _catalogue()
    requests = {}
    for number, file in enumerate(files):
        found = next(known, None)
        if found is None:
            requests[file.stem] = _network(number, file)
        else:
            name, content = found
            file.write_bytes(content)
            requests[file.stem] = [MODELS[name].feeds(seed) for seed in range(REQUESTS)]
    return requests


def _catalogue() -> Iterator[tuple[str, bytes]]:
    """The models that can be had and are not too large, each file once."""
    seen = set()
    for model in MODELS.values():
        if (model.package, model.file) in seen:
            continue
        seen.add((model.package, model.file))
        try:
            with with_weights(model) as file:
                if file.stat().st_size <= MAX_BYTES:
                    yield model.name, file.read_bytes()
        except ModelUnavailable:
            continue


def _network(number: int, file: Path) -> list[Feeds]:
    """A network of fully connected layers of widths of its own."""
    rng = np.random.default_rng([3, number])
    widths = rng.integers(3, 40, rng.integers(2, 5)).tolist()
    nodes, stored, last = [], {}, "x"
    for layer, (rows, columns) in enumerate(itertools.pairwise(widths)):
        stored[f"w{layer}"] = rng.normal(0, rows**-0.5, (rows, columns)).astype(np.float32)
        nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [f"sum{layer}"]))
        nodes.append(helper.make_node("Tanh", [f"sum{layer}"], [f"value{layer}"]))
        last = f"value{layer}"
    nodes[-1].output[0] = "y"
    x = (proto.FLOAT, ["N", widths[0]])
    proto.save(file, nodes, x, ["N", widths[-1]], stored)
    shape = (REQUESTS, 1, widths[0])
    return [{"x": row} for row in rng.standard_normal(shape).astype(np.float32)]

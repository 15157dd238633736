"""Heads on one encoder: MiniLM (real weights), its mean over the words, and a classifier's layer.

The encoder's weights are in one file that all the models name, so no runtime has to read a copy of
them for each. Heads have seeded weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from onnx.external_data_helper import convert_model_to_external_data

from benchmarks.catalogue import MODELS
from benchmarks.many import proto
from benchmarks.many.recipes import Feeds
from benchmarks.models import path

ENCODER, SHARED = "minilm-int8", "encoder.bin"
HIDDEN, CLASSES, WORDS = 384, 8, 32
REQUESTS = 64


def build(files: Sequence[Path]) -> list[Feeds]:
    """Write the models and the encoder's weights beside them; give requests."""
    encoder = onnx.load(path(ENCODER))
    convert_model_to_external_data(encoder, location=SHARED, size_threshold=1024)
    onnx.save(encoder, files[0])  # writes the weights, and what is written over below
    for seed, file in enumerate(files):
        _with_head(encoder, np.random.default_rng([2, seed]), file)
    model = MODELS[ENCODER]
    return [model.feeds(seed, L=WORDS) for seed in range(REQUESTS)]


def _with_head(encoder: onnx.ModelProto, rng: np.random.Generator, file: Path) -> None:
    made = onnx.ModelProto()
    made.CopyFrom(encoder)
    graph, node = made.graph, helper.make_node
    hidden = graph.output[0].name
    graph.initializer.extend(
        proto.weights(
            {
                "head": rng.normal(0, 0.2, (HIDDEN, CLASSES)).astype(np.float32),
                "head_bias": rng.normal(0, 0.2, CLASSES).astype(np.float32),
            }
        )
    )
    graph.node.extend(
        [
            node("ReduceMean", [hidden], ["head_mean"], axes=[1], keepdims=0),
            node("Gemm", ["head_mean", "head", "head_bias"], ["head_scores"]),
            node("Softmax", ["head_scores"], ["y"], axis=1),
        ]
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("y", proto.FLOAT, ["batch", CLASSES]))
    onnx.save(made, file)

"""Quantised models: what onnxruntime's quantiser makes of networks with seeded weights."""

from __future__ import annotations

from benchmarks.catalogue.model import CENTRED, Input, Model


def _quantized(name: str, *dims: int) -> Model:
    x, file = Input("x", dims, CENTRED), f"quantized/{name}.onnx"
    return Model(name, "onnxruntime", file, "generated", (x,), kind="quantized")


_IMAGES = (
    "resnet18-qdq", "resnet18-qdq-s8-channels", "resnet18-qoperator", "resnet50-qdq",
    "mobilenetv2-qdq-channels", "squeezenet-qdq", "squeezenet-qoperator",
)  # fmt: skip
_TEXTS = (
    "encoder-qdq", "encoder-qdq-s8-channels", "encoder-qoperator", "encoder-dynamic",
    "encoder-dynamic-channels",
)  # fmt: skip

QUANTIZED = (
    *(_quantized(name, 1, 3, 224, 224) for name in _IMAGES),
    *(_quantized(name, 1, 128, 384) for name in _TEXTS),
)

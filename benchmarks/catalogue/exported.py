"""Models exported on this machine: usual architectures, as their frameworks spell them in ONNX.

Their weights are seeded (`benchmarks.exports`), so an answer means nothing; it varies as a trained
model's does.
"""

from __future__ import annotations

import numpy as np

from benchmarks.catalogue.model import (
    CENTRED,
    TEXT_SIZES,
    Draw,
    Input,
    Model,
    integers,
    normal,
    tokens,
)

_TORCH = "torch onnxscript"
_TRANSFORMERS = "torch onnxscript transformers"
_NUMBERS = normal(1)
_SKLEARN = "scikit-learn skl2onnx"
_LIGHTGBM = "lightgbm onnxmltools"
_WORDS = 400  # the texts' vocabulary


def sentences(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Texts of forty words out of a small vocabulary, the first of it more often."""
    made = np.empty(shape, object)
    for place in np.ndindex(shape):
        words = (rng.random(40) ** 2 * _WORDS).astype(int)
        made[place] = " ".join(f"word{number}" for number in words)
    return made


def _exported(
    name: str,
    package: str,
    module: str,
    inputs: tuple[Input, ...],
    sizes: dict[str, int],
    variants: tuple[dict[str, int], ...] = (),
    recipe: str | None = None,
) -> Model:
    file = f"{module}/{recipe or name}.onnx"
    usual = (sizes, *variants)
    return Model(name, package, file, "generated", inputs, sizes, usual, kind="export")


def _image(name: str, package: str = _TRANSFORMERS, size: int = 224) -> Model:
    x = Input("x", ("N", 3, size, size), CENTRED)
    return _exported(name, package, "vision", (x,), {"N": 1}, ({"N": 3},))


def _text(name: str, inputs: tuple[Input, ...], length: int) -> Model:
    return _exported(name, _TRANSFORMERS, "text", inputs, {"N": 1, "L": length}, TEXT_SIZES[:4])


def _table(
    name: str,
    package: str,
    features: int,
    rows: int = 1,
    recipe: str | None = None,
    draw: Draw = _NUMBERS,
) -> Model:
    """A model of rows of numbers."""
    x = Input("x", ("N", features), draw)
    return _exported(name, package, "tabular", (x,), {"N": rows}, ({"N": 7},), recipe)


_BERT = ("input_ids", "attention_mask", "token_type_ids")

EXPORTED = (
    _image("resnet50"),
    _image("mobilenet-v2"),
    _image("mobilenet-v3", _TORCH),
    _image("efficientnet-b0"),
    _image("convnext-tiny"),
    _image("vit-base"),
    _image("unet", _TORCH, size=256),
    _text("bert-base", tokens(_BERT, 30522), 128),
    _text("distilbert", tokens(_BERT[:2], 30522), 128),
    _text("gpt2-prefill", tokens(_BERT[:2], 50257), 64),
    _exported(
        "lstm-tagger",
        _TORCH,
        "text",
        (Input("words", ("N", "L"), integers(0, 10_000)),),
        {"N": 1, "L": 64},
        ({"N": 1, "L": 9}, {"N": 4, "L": 30}),
    ),
    _table("sk-logistic", _SKLEARN, 20),
    _table("sk-mlp", _SKLEARN, 20),
    _table("sk-pca-svc", _SKLEARN, 20),
    _table("sk-kmeans", _SKLEARN, 20),
    _table("sk-knn", _SKLEARN, 20),
    _table("sk-forest-100", _SKLEARN, 20),
    _table("sk-forest-100-rows1000", _SKLEARN, 20, 1000, "sk-forest-100"),
    _table("sk-tfidf", _SKLEARN, 1, draw=sentences),
    _table("lightgbm-100", _LIGHTGBM, 20),
    _table("lightgbm-1000", _LIGHTGBM, 20),
    _table("lightgbm-100-rows1000", _LIGHTGBM, 20, 1000, "lightgbm-100"),
    _table("lightgbm-1000-rows1000", _LIGHTGBM, 20, 1000, "lightgbm-1000"),
)

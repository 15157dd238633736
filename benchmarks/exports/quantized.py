"""Quantised models: small networks built here, made 8-bit by onnxruntime's own quantiser.

What leaves: `RECIPES`, name → the bytes of an ONNX file with seeded weights, in one of the
forms that onnxruntime.quantization writes: pairs of QuantizeLinear and DequantizeLinear (QDQ), its
QLinear operators (QOperator), or products of integers with scales found at run time (dynamic).
Activations are calibrated on seeded random data; accuracy on a task is not the point.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_CALIBRATION_RUNS = 4
# What onnxruntime's quantiser and its kernels take.
_OPSET, _IR_VERSION = 17, 9


@dataclass
class Network:
    """An ONNX graph being written, with seeded weights."""

    random: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def op(self, kind: str, *inputs: str, **attrs: object) -> str:
        """The name of an operator's result."""
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attrs))
        return name

    def weight(self, array: np.ndarray) -> str:
        """The name of a constant."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def normal(self, *shape: int, scale: float) -> str:
        """A constant of normally distributed numbers."""
        return self.weight((self.random.standard_normal(shape) * scale).astype(np.float32))

    def conv(self, x: str, channels: int, outputs: int, size: int, **attrs: int) -> str:
        """A padded convolution with bias; its weights keep the scale of the data."""
        group = attrs.get("group", 1)
        inner = channels // group
        scale = (2 / (inner * size * size)) ** 0.5
        weight = self.normal(outputs, inner, size, size, scale=scale)
        stride, pad = attrs.get("stride", 1), size // 2
        return self.op(
            "Conv", x, weight, self.normal(outputs, scale=0.1),
            kernel_shape=[size] * 2, strides=[stride] * 2, pads=[pad] * 4, group=group,
        )  # fmt: skip

    def linear(self, x: str, inner: int, outer: int) -> str:
        """x · W + b."""
        product = self.op("MatMul", x, self.normal(inner, outer, scale=inner**-0.5))
        return self.op("Add", product, self.normal(outer, scale=0.1))

    def model(self, shape: tuple[int, ...], result: str, out: tuple[int, ...]) -> onnx.ModelProto:
        """The model from "x" to `result`."""
        self.nodes[-1].output[0] = result
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(result, TensorProto.FLOAT, out)],
            self.weights,
        )
        opsets = [helper.make_opsetid("", _OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)


def resnet(net: Network) -> onnx.ModelProto:
    """ResNet-18: basic blocks with residual additions."""
    x = net.op("Relu", net.conv("x", 3, 64, 7, stride=2))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for outputs in (64, 128, 256, 512):
        for index in range(2):
            stride = 2 if index == 0 and outputs > 64 else 1
            y = net.op("Relu", net.conv(x, channels, outputs, 3, stride=stride))
            y = net.conv(y, outputs, outputs, 3)
            if stride > 1:
                x = net.conv(x, channels, outputs, 1, stride=stride)
            x = net.op("Relu", net.op("Add", y, x))
            channels = outputs
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    net.op("Gemm", x, net.normal(512, 1000, scale=512**-0.5), net.normal(1000, scale=0.1))
    return net.model((1, 3, 224, 224), "y", (1, 1000))


def bottlenecks(net: Network) -> onnx.ModelProto:
    """ResNet-50: bottlenecks, most of whose work is in 1x1 convolutions."""
    x = net.op("Relu", net.conv("x", 3, 64, 7, stride=2))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for width, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for index in range(count):
            stride = 2 if index == 0 and width > 64 else 1
            y = net.op("Relu", net.conv(x, channels, width, 1))
            y = net.op("Relu", net.conv(y, width, width, 3, stride=stride))
            y = net.conv(y, width, 4 * width, 1)
            if index == 0:
                x = net.conv(x, channels, 4 * width, 1, stride=stride)
            x = net.op("Relu", net.op("Add", y, x))
            channels = 4 * width
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    net.op("Gemm", x, net.normal(2048, 1000, scale=2048**-0.5), net.normal(1000, scale=0.1))
    return net.model((1, 3, 224, 224), "y", (1, 1000))


def mobilenet(net: Network) -> onnx.ModelProto:
    """MobileNetV2: depthwise convolutions between expanding and projecting ones."""
    six = (net.weight(np.float32(0)), net.weight(np.float32(6)))
    x = net.op("Clip", net.conv("x", 3, 32, 3, stride=2), *six)
    channels = 32
    for expand, outputs, count, first in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
        (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for index in range(count):
            stride, wide, y = first if index == 0 else 1, channels * expand, x
            if expand > 1:
                y = net.op("Clip", net.conv(y, channels, wide, 1), *six)
            y = net.op("Clip", net.conv(y, wide, wide, 3, stride=stride, group=wide), *six)
            y = net.conv(y, wide, outputs, 1)
            x = net.op("Add", x, y) if stride == 1 and channels == outputs else y
            channels = outputs
    x = net.op("Clip", net.conv(x, channels, 1280, 1), *six)
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    net.op("Gemm", x, net.normal(1280, 1000, scale=1280**-0.5), net.normal(1000, scale=0.1))
    return net.model((1, 3, 224, 224), "y", (1, 1000))


def squeezenet(net: Network) -> onnx.ModelProto:
    """SqueezeNet 1.1: concatenations of 1x1 and 3x3 convolutions."""
    x = net.op("Relu", net.conv("x", 3, 64, 3, stride=2))
    channels = 64
    for pooled, squeeze, expand in (
        (True, 16, 64), (False, 16, 64), (True, 32, 128), (False, 32, 128),
        (True, 48, 192), (False, 48, 192), (False, 64, 256), (False, 64, 256),
    ):  # fmt: skip
        if pooled:
            x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2])
        x = net.op("Relu", net.conv(x, channels, squeeze, 1))
        branches = [net.op("Relu", net.conv(x, squeeze, expand, size)) for size in (1, 3)]
        x, channels = net.op("Concat", *branches, axis=1), 2 * expand
    x = net.op("Relu", net.conv(x, channels, 1000, 1))
    net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.model((1, 3, 224, 224), "y", (1, 1000))


def encoder(net: Network) -> onnx.ModelProto:
    """A transformer encoder: 6 layers, 384 wide, 12 heads, 128 positions."""
    length, width, heads = 128, 384, 12
    depth = width // heads
    split = net.weight(np.array([1, length, heads, depth], np.int64))
    joined = net.weight(np.array([1, length, width], np.int64))
    scale = net.weight(np.float32(depth**-0.5))

    def norm(x: str) -> str:
        one, zero = np.ones(width, np.float32), np.zeros(width, np.float32)
        return net.op("LayerNormalization", x, net.weight(one), net.weight(zero), axis=-1)

    def heads_of(x: str, perm: list[int]) -> str:
        return net.op("Transpose", net.op("Reshape", net.linear(x, width, width), split), perm=perm)

    x = "x"
    for _ in range(6):
        query, value = heads_of(x, [0, 2, 1, 3]), heads_of(x, [0, 2, 1, 3])
        scores = net.op("Mul", net.op("MatMul", query, heads_of(x, [0, 2, 3, 1])), scale)
        mixed = net.op("MatMul", net.op("Softmax", scores, axis=-1), value)
        mixed = net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
        x = norm(net.op("Add", x, net.linear(mixed, width, width)))
        inner = net.linear(x, width, 4 * width)
        error = net.op("Erf", net.op("Mul", inner, net.weight(np.float32(0.5**0.5))))
        half = net.op("Mul", inner, net.weight(np.float32(0.5)))
        gelu = net.op("Mul", half, net.op("Add", error, net.weight(np.float32(1))))
        x = norm(net.op("Add", x, net.linear(gelu, 4 * width, width)))
    return net.model((1, length, width), x, (1, length, width))


@dataclass(frozen=True, slots=True)
class Quantized:
    """A network and how it is quantised: `form` is "qdq", "qoperator" or "dynamic"."""

    build: Callable[[Network], onnx.ModelProto]
    form: str
    signed: bool = False
    per_channel: bool = False


_QUANTIZED: Mapping[str, Quantized] = MappingProxyType(
    {
        "resnet18-qdq": Quantized(resnet, "qdq"),
        "resnet18-qdq-s8-channels": Quantized(resnet, "qdq", signed=True, per_channel=True),
        "resnet18-qoperator": Quantized(resnet, "qoperator"),
        "resnet50-qdq": Quantized(bottlenecks, "qdq"),
        "mobilenetv2-qdq-channels": Quantized(mobilenet, "qdq", per_channel=True),
        "squeezenet-qdq": Quantized(squeezenet, "qdq"),
        "squeezenet-qoperator": Quantized(squeezenet, "qoperator"),
        "encoder-qdq": Quantized(encoder, "qdq"),
        "encoder-qdq-s8-channels": Quantized(encoder, "qdq", signed=True, per_channel=True),
        "encoder-qoperator": Quantized(encoder, "qoperator"),
        "encoder-dynamic": Quantized(encoder, "dynamic"),
        "encoder-dynamic-channels": Quantized(encoder, "dynamic", per_channel=True),
    }
)


def _feeds(model: onnx.ModelProto, seed: int) -> dict[str, np.ndarray]:
    """Seeded inputs, spread evenly over [-1, 1)."""
    random = np.random.default_rng(seed)
    given = model.graph.input[0]
    dims = [dim.dim_value for dim in given.type.tensor_type.shape.dim]
    return {given.name: random.uniform(-1, 1, dims).astype(np.float32)}


def _quantized(how: Quantized) -> bytes:
    """The bytes of a quantised model."""
    model = how.build(Network(np.random.default_rng(0)))
    with tempfile.TemporaryDirectory(prefix="whitebox-") as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "quantised.onnx"
        onnx.save(model, source)
        _quantize(how, source, target, model)
        return target.read_bytes()


def _quantize(how: Quantized, source: Path, target: Path, model: onnx.ModelProto) -> None:
    from onnxruntime import quantization as q

    signed = q.QuantType.QInt8
    if how.form == "dynamic":
        q.quantize_dynamic(source, target, per_channel=how.per_channel, weight_type=signed)
        return

    class Samples(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter([_feeds(model, seed) for seed in range(1, 1 + _CALIBRATION_RUNS)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    q.quantize_static(
        source,
        target,
        Samples(),
        quant_format=q.QuantFormat.QDQ if how.form == "qdq" else q.QuantFormat.QOperator,
        per_channel=how.per_channel,
        activation_type=signed if how.signed else q.QuantType.QUInt8,
        weight_type=signed,
    )


RECIPES: Mapping[str, Callable[[], bytes]] = MappingProxyType(
    {name: partial(_quantized, how) for name, how in _QUANTIZED.items()}
)

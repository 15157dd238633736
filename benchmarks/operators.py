"""Models of a single operator each, one or more for every family of kernels.

A pure description. What enters: nothing. What leaves: `OPERATORS`: for each its ONNX model, seeded
inputs, and how much work it is: floating-point operations where arithmetic decides, bytes that
have to be read and written at least where memory does.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

Dims = tuple[int, ...]


@dataclass(frozen=True)
class Operator:
    """One operator at one size. `body` is ONNX text that computes y from x and the weights.

    `integers` gives inputs that hold indices the bound below which they are. `flops` is 0 where
    memory decides. `count` is how often a network that consists of its family has it.
    """

    name: str
    family: str
    body: str
    inputs: Mapping[str, Dims]
    output: Dims
    weights: Mapping[str, Dims] = field(default_factory=dict)
    flops: int = 0
    integers: Mapping[str, int] = field(default_factory=dict)
    count: int = 1

    @property
    def nbytes(self) -> int:
        """Bytes of inputs, weights and output, each once; of a gathered table what is taken."""
        read = [*self.inputs.values(), *self.weights.values()]
        if self.integers:
            read = [*self.inputs.values(), self.output]
        return 4 * sum(map(math.prod, [*read, self.output]))

    def model(self, seed: int = 0) -> onnx.ModelProto:
        """The model, with seeded weights."""
        import onnx

        types = {name: "int64" if name in self.integers else "float" for name in self.inputs}
        inputs = ", ".join(f"{types[n]}[{_spelled(dims)}] {n}" for n, dims in self.inputs.items())
        made = onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 21, "ai.onnx.ml" : 3]>\n'
            f"operator ({inputs}) => (float[{_spelled(self.output)}] y) {{ {self.body} }}"
        )
        rng = self._rng(seed)
        for name, dims in self.weights.items():
            values = rng.standard_normal(dims, np.float32) / np.float32(math.sqrt(dims[-1]))
            made.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
        return made

    def feeds(self, seed: int = 0) -> dict[str, np.ndarray]:
        """Seeded inputs."""
        rng = self._rng(seed + 1)
        return {
            name: rng.integers(0, self.integers[name], dims)
            if name in self.integers
            else rng.standard_normal(dims, np.float32)
            for name, dims in self.inputs.items()
        }

    def _rng(self, seed: int) -> np.random.Generator:
        return np.random.default_rng([seed, zlib.crc32(self.name.encode())])


def _spelled(dims: Dims) -> str:
    return ",".join(map(str, dims))


def _matmul(m: int, k: int, n: int) -> Operator:
    family = "gemv" if m == 1 else "gemm"
    name, weights = f"matmul {m}×{k}×{n}", {"w": (k, n)}
    return Operator(
        name, family, "y = MatMul(x, w)", {"x": (m, k)}, (m, n), weights, flops=2 * m * k * n
    )


def _batched(batch: int, m: int, k: int, n: int) -> Operator:
    inputs = {"x": (batch, m, k), "z": (batch, k, n)}
    flops = 2 * batch * m * k * n
    name = f"batched matmul {batch}×{m}×{k}×{n}"
    return Operator(name, "gemm", "y = MatMul(x, z)", inputs, (batch, m, n), flops=flops)


def convolution(
    family: str,
    channels: int,
    size: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    group: int = 1,
) -> Operator:
    """A convolution of a square image whose border keeps its size, but for the stride."""
    pad, out = kernel // 2, -(-size // stride)
    inner = channels // group
    body = (
        f"y = Conv <pads = [{pad}, {pad}, {pad}, {pad}], strides = [{stride}, {stride}], "
        f"group = {group}> (x, w)"
    )
    return Operator(
        f"{kernel}×{kernel}/{stride} {channels}→{outputs} at {size}",
        family,
        body,
        {"x": (1, channels, size, size)},
        (1, outputs, out, out),
        {"w": (outputs, inner, kernel, kernel)},
        flops=2 * outputs * out * out * inner * kernel * kernel,
    )


def plain(
    name: str, family: str, body: str, x: Dims, output: Dims | None = None, **weights: Dims
) -> Operator:
    return Operator(name, family, body, {"x": x}, output or x, weights)


def _recurrent(kind: str, gates: int, steps: int, size: int) -> Operator:
    weights = {
        "w": (1, gates * size, size),
        "r": (1, gates * size, size),
        "b": (1, 2 * gates * size),
    }
    return Operator(
        f"{kind} {steps} steps of {size}",
        "recurrent",
        f"y = {kind} <hidden_size = {size}> (x, w, r, b)",
        {"x": (steps, 1, size)},
        (steps, 1, 1, size),
        weights,
        flops=2 * steps * gates * size * 2 * size,
    )


def _attention(heads: int, length: int, size: int) -> Operator:
    dims = (1, heads, length, size)
    body = (
        "k = Transpose <perm = [0, 1, 3, 2]> (x2) s = MatMul(x, k) "
        f"c = Constant <value_float = {1 / math.sqrt(size)}> () "
        "t = Mul(s, c) p = Softmax <axis = -1> (t) y = MatMul(p, x3)"
    )
    inputs = {"x": dims, "x2": dims, "x3": dims}
    flops = 4 * heads * length * length * size
    return Operator(
        f"attention {heads}×{length}×{size}", "attention", body, inputs, dims, flops=flops
    )


_GELU = (
    "r = Constant <value_float = 0.70710678> () h = Constant <value_float = 0.5> () "
    "o = Constant <value_float = 1.0> () a = Mul(x, r) b = Erf(a) c = Add(b, o) d = Mul(x, c) "
    "y = Mul(d, h)"
)
NORM = "y = LayerNormalization(x, w, b)"
_WINDOW = "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]"
_MAP, _HALF = (1, 64, 112, 112), (1, 64, 56, 56)

_ALL = (
    _matmul(1024, 1024, 1024),
    _matmul(256, 256, 256),
    _matmul(64, 768, 3072),
    _matmul(2048, 64, 64),
    _matmul(1, 1024, 1024),
    _matmul(1, 4096, 4096),
    _batched(12, 128, 64, 128),
    convolution("convolution", 64, 56, 64, 3),
    convolution("convolution", 256, 14, 256, 3),
    convolution("convolution", 64, 56, 256, 1),
    convolution("convolution", 1024, 14, 256, 1),
    convolution("convolution", 128, 56, 128, 3, stride=2),
    convolution("convolution", 256, 56, 512, 1, stride=2),
    convolution("stem", 3, 224, 64, 7, stride=2),
    convolution("stem", 3, 224, 32, 3, stride=2),
    convolution("depthwise", 144, 56, 144, 3, group=144),
    convolution("depthwise", 144, 56, 144, 5, stride=2, group=144),
    plain("max pool 3×3/2", "pool", f"y = MaxPool <{_WINDOW}> (x)", _MAP, _HALF),
    plain("average pool 3×3/2", "pool", f"y = AveragePool <{_WINDOW}> (x)", _MAP, _HALF),
    plain(
        "global average pool", "pool", "y = GlobalAveragePool(x)",
        (1, 2048, 7, 7), (1, 2048, 1, 1),
    ),
    plain("softmax rows of 1000", "softmax", "y = Softmax <axis = -1> (x)", (256, 1000)),
    plain("softmax over channels", "softmax", "y = Softmax <axis = 1> (x)", (1, 21, 128, 128)),
    plain("layer norm", "norm", NORM, (512, 768), w=(768,), b=(768,)),
    _attention(12, 128, 64),
    _attention(8, 512, 64),
    plain("relu", "elementwise", "y = Relu(x)", (1, 64, 112, 112)),
    plain("gelu (erf)", "elementwise", _GELU, (512, 3072)),
    plain("sigmoid·x", "elementwise", "s = Sigmoid(x) y = Mul(x, s)", (1, 96, 56, 56)),
    plain(
        "transpose 0231", "movement", "y = Transpose <perm = [0, 2, 3, 1]> (x)",
        _HALF, (1, 56, 56, 64),
    ),
    plain("transpose matrix", "movement", "y = Transpose <perm = [1, 0]> (x)", (1024, 1024)),
    Operator(
        "concat channels", "movement", "y = Concat <axis = 1> (x, z)",
        {"x": _HALF, "z": _HALF}, (1, 128, 56, 56),
    ),
    Operator(
        "gather rows", "movement", "y = Gather(w, x)", {"x": (1, 512)}, (1, 512, 384),
        {"w": (30522, 384)}, integers={"x": 30522},
    ),
    _recurrent("LSTM", 4, 64, 256),
    _recurrent("GRU", 3, 64, 256),
)  # fmt: skip

OPERATORS: Mapping[str, Operator] = MappingProxyType({made.name: made for made in _ALL})

"""Quantised models: integer kernels on awkward shapes, the instructions they are made of, and whole
models against the meaning that ONNX gives them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

os.environ.setdefault("TVM_NUM_THREADS", "2")

tvm = pytest.importorskip("tvm")
from tvm import s_tir, te  # noqa: E402
from tvm_ffi import from_dlpack  # noqa: E402

import whitebox  # noqa: E402
from whitebox.compiler.supported import lowerable  # noqa: E402
from whitebox.compiler.target import Target, host_target  # noqa: E402
from whitebox.compiler.worker import tvm_target  # noqa: E402
from whitebox.errors import UnsupportedOperator  # noqa: E402
from whitebox.ir import onnx_io, onnx_schema, ops  # noqa: E402
from whitebox.ir.graph import Graph, Model, constant, input_node  # noqa: E402
from whitebox.ir.types import TensorType  # noqa: E402
from whitebox.kernels.cpu.conv_integer import IntegerConv2d  # noqa: E402
from whitebox.kernels.cpu.dot_product import DotProduct  # noqa: E402
from whitebox.passes import optimize, passes_for  # noqa: E402
from whitebox.passes.fuse import label  # noqa: E402
from whitebox.passes.layout import layout  # noqa: E402
from whitebox.passes.quantize import quantize  # noqa: E402

HOST = host_target(2)
LANES = HOST.lanes
VNNI = Target("cpu", "x86_64", "cascadelake", 16, 2)
Array = np.ndarray[Any, np.dtype[Any]]


def aligned(array: Array) -> Array:
    raw = np.empty(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    result = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    result[...] = array
    return result


# Channels in and out, size, kernel, stride, pads, dilation.
CONVOLUTIONS = (
    (24, 40, 9, 3, 1, (1, 1, 1, 1), 1),
    (16, 16, 8, 1, 1, (0, 0, 0, 0), 1),
    (3, 8, 17, 7, 2, (3, 3, 3, 3), 1),
    (20, 12, 13, 3, 2, (0, 1, 2, 0), 1),
    (8, 24, 11, 3, 1, (2, 2, 2, 2), 2),
    (40, 8, 7, 1, 2, (0, 0, 0, 0), 1),
)


def packed_conv(case: tuple[Any, ...], dtype: str, w_dtype: str, group: int, lanes: int) -> Any:
    """A ConvInteger of random integers as the `layout` pass packs it, and its operands' values."""
    channels, filters, size, kernel, stride, pads, dilation = case
    random = np.random.default_rng(size * kernel)
    low, high = (0, 256) if dtype == "uint8" else (-128, 128)
    x = random.integers(low, high, (2, channels, size, size + 3)).astype(dtype)
    limits = (0, 256) if w_dtype == "uint8" else (-128, 128)
    weight = random.integers(*limits, (filters, channels, kernel, kernel)).astype(w_dtype)
    zeros = (constant(np.array(low + 77, dtype)), constant(np.array(limits[0] // 2, w_dtype)))
    if w_dtype == "int8":
        zeros = (zeros[0], constant(np.zeros(filters, w_dtype)))
    node = ops.node(
        "ConvInteger", input_node(0, TensorType(dtype, x.shape)), constant(weight), *zeros,
        strides=(stride, stride), pads=pads, dilations=(dilation, dilation),
    )  # fmt: skip
    graph = Graph([Model("m", (("x", node.inputs[0]),), (("y", node),))])
    return graph, layout(graph, lanes=lanes, integer_group=group), x


@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("group", [2, 4])
@pytest.mark.parametrize(("dtype", "w_dtype"), [("uint8", "int8"), ("int8", "int8")])
def test_layout_packs_convolutions_exactly(
    case: tuple[Any, ...], group: int, dtype: str, w_dtype: str
) -> None:
    graph, packed, x = packed_conv(case, dtype, w_dtype, group, 16)
    assert any(node.op == "whitebox.ConvInteger" for node in packed.nodes)
    want = onnx_schema.evaluate_graph(graph, [x])["y"]
    np.testing.assert_array_equal(onnx_schema.evaluate_graph(packed, [x])["y"], want)


def conv_kernel(node: Any, dot: DotProduct, target: Target) -> Any:
    """The compiled kernel of a whitebox.ConvInteger, without what surrounds it."""
    x, weight, bias, border = (*node.inputs, None, None)[:4]
    template = IntegerConv2d.default(
        x.tensor.dims, weight.tensor.dims, node.attr("strides"), node.attr("pads"),
        node.attr("dilations"), in_channels=node.attr("in_channels"), dot=dot, threads=2,
    )  # fmt: skip
    operands = [source for source in (x, weight, bias, border) if source is not None]
    tensors = [
        te.placeholder(source.tensor.dims, source.tensor.dtype, name=f"p{index}")
        for index, source in enumerate(operands)
    ]
    result = template.compute(*tensors)
    # An epilogue, as rounding is one.
    doubled = te.compute(result.shape, lambda *i: result(*i) * 2, name="doubled")
    sch = s_tir.Schedule(te.create_prim_func([*tensors, doubled]))
    template.schedule(sch)
    return tvm.compile(sch.mod, target=tvm_target(target))


@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize(
    ("group", "w_dtype", "instruction"),
    [(2, "int8", True), (2, "uint8", True), (2, "int8", False), (4, "int8", False)],
)
def test_convolutions_are_exact(
    case: tuple[Any, ...], group: int, w_dtype: str, instruction: bool
) -> None:
    """Words with the host's instruction; words and bytes, whose loops are the same, without."""
    graph, packed, x = packed_conv(case, "uint8", w_dtype, group, LANES)
    (node,) = (each for each in packed.nodes if each.op == "whitebox.ConvInteger")
    dot = DotProduct.of(node.inputs[0].tensor.dtype, LANES, instruction and HOST.x86)
    kernel = conv_kernel(node, dot, HOST)["main"]
    values = [
        onnx_schema.evaluate_graph(Graph([Model("m", graph.model.inputs, (("v", source),))]), [x])
        for source in node.inputs
        if source is not None
    ]
    arrays = [aligned(value["v"]) for value in values]
    result = aligned(np.zeros(node.tensor.dims, np.int32))
    kernel(*[from_dlpack(array) for array in (*arrays, result)])
    want = onnx_schema.evaluate_graph(Graph([Model("m", graph.model.inputs, (("v", node),))]), [x])
    np.testing.assert_array_equal(result, want["v"] * 2)


@pytest.mark.parametrize(
    ("group", "mcpu", "lanes", "instruction"),
    [
        (2, "haswell", 8, "vpmaddwd"),
        (2, "skylake-avx512", 16, "vpmaddwd"),
        (4, "cascadelake", 16, "vpdpbusd"),
    ],
)
def test_convolutions_are_made_of_the_targets_instruction(
    group: int, mcpu: str, lanes: int, instruction: str
) -> None:
    _, packed, _ = packed_conv(CONVOLUTIONS[0], "uint8", "int8", group, lanes)
    (node,) = (each for each in packed.nodes if each.op == "whitebox.ConvInteger")
    dot = DotProduct.of(node.inputs[0].tensor.dtype, lanes, True)
    built = conv_kernel(node, dot, Target("cpu", "x86_64", mcpu, lanes, 2))
    assert instruction in built.mod.inspect_source("asm")


class Writer:
    """A small quantised network as onnxruntime's quantiser would write it."""

    def __init__(self, dtype: str, per_channel: bool) -> None:
        self.random = np.random.default_rng(5)
        self.dtype, self.per_channel = dtype, per_channel
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, **attrs: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attrs))
        return name

    def known(self, array: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def rounded(self, x: str, scale: float, zero: int = 100) -> str:
        """x in 8 bits and back."""
        if self.dtype == "int8":
            zero -= 128
        parameters = (self.known(np.float32(scale)), self.known(np.array(zero, self.dtype)))
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, *parameters), *parameters)

    def weight(self, shape: tuple[int, ...], axis: int) -> str:
        values = self.known(self.random.integers(-127, 128, shape).astype(np.int8))
        if not self.per_channel:
            return self.op("DequantizeLinear", values, self.known(np.float32(0.003)))
        scales = self.random.uniform(0.001, 0.004, shape[axis]).astype(np.float32)
        zeros = self.known(np.zeros(shape[axis], np.int8))
        return self.op("DequantizeLinear", values, self.known(scales), zeros, axis=axis)

    def conv(self, x: str, inner: int, outer: int, size: int, group: int = 1) -> str:
        weight = self.weight((outer, inner // group, size, size), 0)
        bias = self.known(self.random.standard_normal(outer).astype(np.float32))
        pads = [size // 2] * 4
        return self.op("Conv", x, weight, bias, kernel_shape=[size] * 2, pads=pads, group=group)

    def model(self, shape: tuple[int, ...], result: tuple[int, ...]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, "quantised",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(self.nodes[-1].output[0], TensorProto.FLOAT, result)],
            self.weights,
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def network(dtype: str, per_channel: bool) -> onnx.ModelProto:
    """Residual, pooled, concatenated and depthwise convolutions, and a classifier."""
    net = Writer(dtype, per_channel)
    x = net.rounded("x", 0.02)
    x = net.rounded(net.op("Relu", net.conv(x, 3, 24, 3)), 0.03, 0)
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    x = net.rounded(x, 0.03, 0)
    y = net.rounded(net.conv(x, 24, 24, 3), 0.1)
    x = net.rounded(net.op("Relu", net.op("Add", x, y)), 0.1, 0)
    y = net.rounded(net.conv(x, 24, 24, 3, group=24), 0.1)
    branches = [net.rounded(net.conv(y, 24, 16, size), 0.15) for size in (1, 3)]
    x = net.rounded(net.op("Concat", *branches, axis=1), 0.2)
    x = net.rounded(net.op("GlobalAveragePool", x), 0.1)
    x = net.op("Flatten", x)
    x = net.op("Gemm", x, net.weight((10, 32), 0), transB=1)
    net.rounded(x, 0.05)
    return net.model((1, 3, 20, 20), (1, 10))


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_quantised_networks_keep_their_meaning(
    dtype: str, per_channel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHITEBOX_HOME", str(tmp_path))
    model = network(dtype, per_channel)
    x = np.random.default_rng(1).uniform(-2, 2, (1, 3, 20, 20)).astype(np.float32)
    (got,) = whitebox.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    (want,) = onnx_schema.evaluate_graph(onnx_io.load(model), [x]).values()
    # Float32 sums fall to the other side of one half here and there; the result has 256 steps.
    assert np.abs(got - want).max() < 4.1 * 0.05
    assert np.abs(got - want).mean() < 0.05


@pytest.mark.parametrize("target", [HOST, VNNI], ids=["host", "vnni"])
def test_quantised_regions_are_fused_around_integer_products(target: Target) -> None:
    fused = optimize(onnx_io.load(network("uint8", True)), passes_for(target, lowerable))
    labels = [label(node) for node in fused.nodes if node.op == "whitebox.Fused"]
    assert sum("Integer" in each for each in labels) == 5
    # Nothing is scaled or rounded outside of other kernels, but the network's own input.
    kernels = ("Integer", "Depthwise", "MaxPool", "Concat", "Reduce")
    assert sum(not any(name in each for name in kernels) for each in labels) == 1


def test_words_are_stored_once_and_read_by_all() -> None:
    graph = optimize(onnx_io.load(network("uint8", True)), passes_for(HOST, lowerable))
    bodies = [node.attr("body") for node in graph.nodes if node.op == "whitebox.Fused"]
    nodes = [node for body in bodies for node in body.nodes if node.op.startswith("whitebox.")]
    readers = [n for n in nodes if n.op in ("whitebox.ConvInteger", "whitebox.DepthwiseConv")]
    assert len(readers) == 5
    assert all(node.inputs[0] is not None for node in readers)
    assert {node.inputs[0].tensor.dtype for node in readers} == {"int16"}


def test_a_target_without_integer_products_keeps_float32() -> None:
    graph = onnx_io.load(network("uint8", False))
    assert quantize(graph, integer_group=0) is graph


CONTRIB = """
<ir_version: 9, opset_import: ["" : 17, "com.microsoft" : 1]>
agraph (float[1, 4, 6, 6] x) => (float[1, 5] y, float[1, 8] z)
<float s = {0.02}, uint8 a = {110}, float t = {0.05}, uint8 b = {90},
 float u = {0.004}, uint8 c = {0}, int64[2] flat = {1, 8}> {
   q = QuantizeLinear(x, s, a)
   added = com.microsoft.QLinearAdd(q, s, a, q, s, a, t, b)
   product = com.microsoft.QLinearMul(q, s, a, added, t, b, t, b)
   leaky = com.microsoft.QLinearLeakyRelu<alpha = 0.2>(product, t, b, t, b)
   gate = com.microsoft.QLinearSigmoid(added, t, b, u, c)
   joined = com.microsoft.QLinearConcat<axis = 1>(t, b, leaky, t, b, gate, u, c)
   pooled = com.microsoft.QLinearAveragePool<kernel_shape = [2, 2]>(joined, t, b, t, b)
   mean = com.microsoft.QLinearGlobalAveragePool(pooled, t, b, s, a)
   row = Reshape(mean, flat)
   soft = com.microsoft.QLinearSoftmax<axis = 1, opset = 17>(row, s, a, u, c)
   z = DequantizeLinear(soft, u, c)
   y = com.microsoft.QGemm<transB = 1>(row, s, a, w, v, d, bias)
}
"""


def test_onnxruntimes_own_operators_mean_what_they_do_there() -> None:
    runtime = pytest.importorskip("onnxruntime")
    model = onnx.parser.parse_model(CONTRIB)
    random = np.random.default_rng(3)
    arrays = {
        "w": random.integers(-127, 128, (5, 8)).astype(np.int8),
        "v": np.float32(0.01),
        "d": np.int8(0),
        "bias": random.integers(-999, 999, 5).astype(np.int32),
    }
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()
    )
    x = random.uniform(-2, 2, (1, 4, 6, 6)).astype(np.float32)
    exact = runtime.SessionOptions()
    exact.add_session_config_entry("session.x64quantprecision", "1")
    session = runtime.InferenceSession(
        model.SerializeToString(), exact, providers=["CPUExecutionProvider"]
    )
    want = session.run(None, {"x": x})
    got = onnx_schema.evaluate_graph(onnx_io.load(model), [x])
    # One step of the integers before: 0.02 in five products with weights up to 1.27.
    np.testing.assert_allclose(got["y"], want[0], atol=0.06)
    np.testing.assert_allclose(got["z"], want[1], atol=0.005)


def test_unknown_attributes_of_onnxruntimes_operators_are_refused() -> None:
    text = CONTRIB.replace(
        "QLinearGlobalAveragePool(", "QLinearGlobalAveragePool<channels_last = 1>("
    )
    with pytest.raises(UnsupportedOperator, match="channels_last"):
        onnx_io.load(onnx.parser.parse_model(text))

"""Convolution and pooling templates against the ONNX reference, on awkward shapes.

Every case appends an epilogue (bias, residual, relu) the way the lowering does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

os.environ.setdefault("TVM_NUM_THREADS", "2")

tvm = pytest.importorskip("tvm")
from tvm import s_tir, te  # noqa: E402
from tvm_ffi import from_dlpack  # noqa: E402

from whitebox.compiler.target import host_target  # noqa: E402
from whitebox.ir.winograd import weight_transform  # noqa: E402
from whitebox.kernels.cpu.conv import Conv2d  # noqa: E402
from whitebox.kernels.cpu.conv_plain import PlainConv  # noqa: E402
from whitebox.kernels.cpu.conv_tiling import Extents, choose_tile, register_tiles  # noqa: E402
from whitebox.kernels.cpu.conv_transpose import PlainConvTranspose  # noqa: E402
from whitebox.kernels.cpu.depthwise import DepthwiseConv2d  # noqa: E402
from whitebox.kernels.cpu.pool import BlockedPool, PlainPool  # noqa: E402
from whitebox.kernels.cpu.winograd import Winograd  # noqa: E402

HOST = host_target(2)
LANES = HOST.lanes
TARGET = tvm.target.Target({"kind": "llvm", "mcpu": HOST.mcpu, "num-cores": 2})
Array = np.ndarray[Any, np.dtype[Any]]


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape, dtype=np.float32)


def aligned(array: Array) -> Array:
    buffer = np.empty(array.size + 16, np.float32)
    start = -buffer.ctypes.data % 64 // 4
    result = buffer[start : start + array.size].reshape(array.shape)
    result[...] = array
    return result


def pad_channels(array: Array, axis: int, lanes: int) -> Array:
    missing = -array.shape[axis] % lanes
    return np.pad(array, [(0, missing if a == axis else 0) for a in range(array.ndim)])


def block(x: Array, lanes: int) -> Array:
    n, _, h, w = x.shape
    return pad_channels(x, 1, lanes).reshape(n, -1, lanes, h, w).transpose(0, 1, 3, 4, 2)


def unblock(y: Array, channels: int) -> Array:
    n, blocks, h, w, lanes = y.shape
    return y.transpose(0, 1, 4, 2, 3).reshape(n, blocks * lanes, h, w)[:, :channels]


def pack_weights(w: Array, lanes: int, blocked: bool) -> Array:
    w = pad_channels(w, 0, lanes)
    if not blocked:
        return w.reshape(-1, lanes, *w.shape[1:]).transpose(0, 2, 3, 4, 1)
    w = pad_channels(w, 1, lanes)
    o, i, kh, kw = w.shape
    return w.reshape(o // lanes, lanes, i // lanes, lanes, kh, kw).transpose(0, 2, 4, 5, 3, 1)


def pack_bias(b: Array, lanes: int) -> Array:
    return pad_channels(b, 0, lanes).reshape(-1, 1, 1, lanes)


def run(
    template: Any,
    operands: Sequence[Array],
    out_shape: Sequence[int],
    epilogue: Callable[[Any, Any], Any] | None = None,
    residual: Array | None = None,
) -> Array:
    """Compile the template with an epilogue, as the lowering would, and call it."""
    tensors = [te.placeholder(a.shape, name=f"p{i}") for i, a in enumerate(operands)]
    result = template.compute(*tensors)
    assert [int(dim) for dim in result.shape] == list(out_shape)
    arrays = list(operands)
    if residual is not None:
        other = te.placeholder(residual.shape, name="residual")
        tensors.append(other)
        arrays.append(residual)
        sum_ = te.compute(result.shape, lambda *i: result(*i) + other(*i), name="sum")
        result = te.compute(result.shape, lambda *i: te.max(sum_(*i), 0.0), name="relu")
    elif epilogue is not None:
        other = te.placeholder((out_shape[0], out_shape[1], 1, 1, out_shape[4]), name="gate")
        gate = random(*[int(dim) for dim in other.shape])
        result = epilogue(result, other)
        tensors.append(other)
        arrays.append(gate)
    sch = s_tir.Schedule(te.create_prim_func([*tensors, result]))
    template.schedule(sch)
    kernel = tvm.compile(sch.mod, target=TARGET)["main"]
    out = aligned(np.full(out_shape, np.nan, np.float32))
    kernel(*[from_dlpack(aligned(a)) for a in arrays], from_dlpack(out))
    return out


def reference(op: str, inputs: Sequence[Array], **attrs: Any) -> Array:
    names = [f"i{k}" for k in range(len(inputs))]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], **attrs)],
        "case",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, a.shape)
            for name, a in zip(names, inputs, strict=True)
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)])
    (result,) = ReferenceEvaluator(model).run(None, dict(zip(names, inputs, strict=True)))
    return np.asarray(result)


def assert_close(actual: Array, expected: Array) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


# batch, channels, height, width, out channels, kernel, strides, pads, dilations, layout
CONV = [
    (1, 16, 8, 8, 32, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), "NCHWc"),
    (1, 24, 13, 19, 40, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), "NCHWc"),
    (2, 24, 13, 19, 40, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), "NCHWc"),
    (1, 64, 7, 7, 32, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), "NCHWc"),
    (1, 33, 7, 7, 176, (3, 5), (2, 1), (1, 4, 1, 4), (1, 2), "NCHWc"),
    (1, 96, 1, 1, 80, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), "NCHWc"),
    (1, 32, 14, 14, 16, (1, 1), (2, 2), (0, 0, 0, 0), (1, 1), "NCHWc"),
    (1, 20, 9, 37, 16, (2, 2), (2, 3), (0, 1, 1, 0), (1, 1), "NCHWc"),
    (1, 16, 25, 3, 48, (5, 1), (1, 1), (0, 0, 0, 0), (1, 1), "NCHWc"),
    (1, 3, 31, 33, 20, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), "NCHW"),
    (2, 1, 9, 11, 16, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), "NCHW"),
    (1, 5, 17, 23, 33, (3, 3), (1, 1), (0, 2, 1, 0), (1, 1), "NCHW"),
]


@pytest.mark.parametrize("case", CONV, ids=str)
@pytest.mark.parametrize(("lanes", "flat"), [(16, None), (8, True), (8, False)])
def test_blocked_convolution(case: Any, lanes: int, flat: bool | None) -> None:
    n, c, height, width, oc, kernel, strides, pads, dilations, layout = case
    x, w, b = random(n, c, height, width), random(oc, c, *kernel), random(oc)
    attrs = {"strides": strides, "pads": pads, "dilations": dilations}
    expected = reference("Conv", [x, w, b], **attrs)
    residual = random(*expected.shape)
    blocked = layout == "NCHWc"
    data = block(x, lanes) if blocked else x
    weights = pack_weights(w, lanes, blocked)
    template = Conv2d.default(
        data.shape,
        weights.shape,
        **attrs,
        lanes=lanes,
        threads=2,
        data_layout=layout,
        in_channels=c,
    )
    if flat is not None:
        template = replace(template, flat=flat)
    other = block(residual, lanes)
    actual = run(template, [data, weights, pack_bias(b, lanes)], other.shape, residual=other)
    assert_close(unblock(actual, oc), np.maximum(expected + residual, 0))


@pytest.mark.parametrize("lanes", [4, 8])
def test_blocked_convolution_on_narrower_vectors(lanes: int) -> None:
    x, w, b = random(1, 12, 11, 13), random(20, 12, 3, 3), random(20)
    expected = reference("Conv", [x, w, b], pads=[1, 1, 1, 1])
    residual = random(*expected.shape)
    data, weights = block(x, lanes), pack_weights(w, lanes, True)
    pads = (1, 1, 1, 1)
    template = Conv2d.default(data.shape, weights.shape, pads=pads, lanes=lanes, threads=2)
    other = block(residual, lanes)
    actual = run(template, [data, weights, pack_bias(b, lanes)], other.shape, residual=other)
    assert_close(unblock(actual, 20), np.maximum(expected + residual, 0))


# batch, channels, height, width, out channels, kernel, pads
WINOGRAD = [
    (1, 16, 8, 8, 32, 3, (1, 1, 1, 1)),
    (1, 40, 13, 19, 24, 3, (1, 1, 1, 1)),
    (2, 33, 7, 9, 48, 3, (0, 2, 1, 0)),
    (3, 16, 5, 5, 16, 3, (1, 1, 1, 1)),
    (1, 16, 40, 44, 80, 3, (0, 0, 0, 0)),
    (1, 160, 120, 60, 33, 3, (1, 1, 1, 1)),
    (1, 24, 13, 11, 32, 5, (2, 2, 2, 2)),
    (2, 16, 8, 9, 20, 5, (0, 1, 2, 3)),
]


def winograd_weights(w: Array, lanes: int) -> Array:
    o, i, *_ = w.shape
    transformed = (w.reshape(o * i, -1) @ weight_transform(w.shape[2])).reshape(o, i, 6, 6)
    return pack_weights(transformed, lanes, True).transpose(0, 2, 3, 1, 4, 5)


@pytest.mark.parametrize("case", WINOGRAD, ids=str)
@pytest.mark.parametrize("lanes", [LANES, 8])
def test_winograd_convolution(case: Any, lanes: int) -> None:
    n, c, height, width, oc, kernel, pads = case
    x, w, b = random(n, c, height, width), random(oc, c, kernel, kernel), random(oc)
    expected = reference("Conv", [x, w, b], pads=pads)
    residual = random(*expected.shape)
    data, weights = block(x, lanes), winograd_weights(w, lanes)
    template = Winograd.default(data.shape, weights.shape[0], pads, kernel, lanes=lanes, threads=2)
    other = block(residual, lanes)
    actual = run(template, [data, weights, pack_bias(b, lanes)], other.shape, residual=other)
    expected = np.maximum(expected + residual, 0)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(unblock(actual, oc), expected, rtol=0, atol=2e-5 * scale)


def test_epilogue_with_calls_and_a_gate_per_channel() -> None:
    """A long epilogue is not unrolled; y * sigmoid(y) * gate reads the sums twice."""
    x, w, b = random(1, 16, 10, 10), random(32, 16, 3, 3), random(32)
    y = reference("Conv", [x, w, b], pads=[1, 1, 1, 1])
    data, weights = block(x, LANES), pack_weights(w, LANES, True)
    template = Conv2d.default(data.shape, weights.shape, pads=(1, 1, 1, 1), lanes=LANES, threads=2)

    def epilogue(result: Any, gate: Any) -> Any:
        sigmoid = te.compute(
            result.shape, lambda *i: 1.0 / (1.0 + te.exp(0.0 - result(*i))), name="sigmoid"
        )
        swish = te.compute(result.shape, lambda *i: result(*i) * sigmoid(*i), name="swish")
        return te.compute(
            result.shape, lambda n, o, h, w, c: swish[n, o, h, w, c] * gate[n, o, 0, 0, c], "gated"
        )

    shape = block(y, LANES).shape
    gate = random(shape[0], shape[1], 1, 1, shape[4])
    actual = run(template, [data, weights, pack_bias(b, LANES)], shape, epilogue=epilogue)
    assert_close(unblock(actual, 32), unblock(block(y / (1 + np.exp(-y)), LANES) * gate, 32))


@pytest.mark.parametrize(("kernel", "pads"), [((1, 1), (0, 0, 0, 0)), ((3, 3), (1, 1, 1, 1))])
def test_a_producer_is_computed_once(
    kernel: tuple[int, int], pads: tuple[int, int, int, int]
) -> None:
    x, w = random(1, 16, 12, 12), random(16, 16, *kernel)
    data, weights = block(x, LANES), pack_weights(w, LANES, True)
    template = Conv2d.default(data.shape, weights.shape, pads=pads, lanes=LANES, threads=2)

    class Produced:
        def compute(self, x: Any, w: Any) -> Any:
            doubled = te.compute(x.shape, lambda *i: x(*i) * 2.0, name="doubled")
            scaled = te.compute(w.shape, lambda *i: w(*i) * 0.5, name="scaled")
            return template.compute(doubled, scaled)

        def schedule(self, sch: Any) -> None:
            template.schedule(sch)

    expected = reference("Conv", [x, w], pads=pads)
    actual = run(Produced(), [data, weights], block(expected, LANES).shape)
    assert_close(unblock(actual, 16), expected)


def test_a_producer_of_an_image_is_padded_after_it_is_computed() -> None:
    """Padding adds zeros to the producer's result, not to its input."""
    x, w = random(1, 3, 10, 11), random(16, 3, 3, 3)
    weights = pack_weights(w, LANES, False)
    pads = (1, 1, 1, 1)
    template = Conv2d.default(
        x.shape, weights.shape, pads=pads, lanes=LANES, threads=2, data_layout="NCHW"
    )

    class Shifted:
        def compute(self, x: Any, w: Any) -> Any:
            shifted = te.compute(x.shape, lambda *i: x(*i) + 1.0, name="shifted")
            return template.compute(shifted, w)

        def schedule(self, sch: Any) -> None:
            template.schedule(sch)

    expected = reference("Conv", [x + 1, w], pads=pads)
    actual = run(Shifted(), [x, weights], block(expected, LANES).shape)
    assert_close(unblock(actual, 16), expected)


def test_only_kernels_with_threads_and_work_are_parallel() -> None:
    def scheduled(size: int, threads: int) -> str:
        template = Conv2d.default(
            (1, 2, size, size, 16),
            (4, 2, 3, 3, 16, 16),
            pads=(1, 1, 1, 1),
            lanes=16,
            threads=threads,
        )
        x = te.placeholder((1, 2, size, size, 16), name="x")
        w = te.placeholder((4, 2, 3, 3, 16, 16), name="w")
        sch = s_tir.Schedule(te.create_prim_func([x, w, template.compute(x, w)]))
        template.schedule(sch)
        return str(sch.mod)

    assert "T.parallel" in scheduled(28, threads=2)
    assert "T.parallel" not in scheduled(28, threads=1)
    assert "T.parallel" not in scheduled(4, threads=2)


def test_choosing_a_template_needs_no_compiler() -> None:
    code = (
        "import sys\n"
        "from whitebox.kernels.cpu.conv import Conv2d\n"
        "from whitebox.kernels.cpu import conv_plain, conv_transpose, depthwise, pool, winograd\n"
        "Conv2d.default((1, 4, 56, 56, 16), (4, 4, 3, 3, 16, 16), lanes=16, threads=2)\n"
        "assert 'tvm' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


DEPTHWISE = [
    (1, 16, 8, 8, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    (1, 40, 13, 19, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    (2, 33, 7, 7, (5, 5), (1, 1), (2, 2, 2, 2), (1, 1)),
    (1, 20, 15, 29, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    (1, 24, 9, 31, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2)),
    (1, 8, 6, 40, (3, 2), (2, 1), (0, 1, 0, 0), (1, 1)),
    (1, 16, 1, 33, (1, 7), (1, 1), (0, 3, 0, 3), (1, 1)),
    (1, 16, 12, 12, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    (1, 128, 28, 28, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
]


@pytest.mark.parametrize("case", DEPTHWISE, ids=str)
def test_depthwise_convolution(case: Any) -> None:
    n, c, height, width, kernel, strides, pads, dilations = case
    x, w, b = random(n, c, height, width), random(c, 1, *kernel), random(c)
    attrs = {"strides": strides, "pads": pads, "dilations": dilations}
    expected = reference("Conv", [x, w, b], group=c, **attrs)
    residual = random(*expected.shape)
    data = block(x, LANES)
    weights = pad_channels(w[:, 0], 0, LANES).reshape(-1, LANES, *kernel).transpose(0, 2, 3, 1)
    template = DepthwiseConv2d.default(data.shape, weights.shape, **attrs, lanes=LANES, threads=2)
    other = block(residual, LANES)
    actual = run(template, [data, weights, pack_bias(b, LANES)], other.shape, residual=other)
    assert_close(unblock(actual, c), np.maximum(expected + residual, 0))


# operator, shape, kernel, strides, pads, dilations, ceil_mode, count_include_pad
POOL_2D = [
    ("MaxPool", (1, 16, 12, 12), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 0, 0),
    ("MaxPool", (1, 20, 10, 14), (3, 3), (2, 2), (0, 0, 0, 0), (1, 1), 1, 0),
    ("MaxPool", (1, 24, 20, 19), (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), 0, 0),
    ("MaxPool", (2, 16, 7, 40), (2, 1), (2, 1), (0, 0, 0, 0), (1, 1), 0, 0),
    ("AveragePool", (1, 33, 13, 17), (3, 2), (2, 1), (1, 0, 0, 1), (1, 1), 0, 1),
    ("AveragePool", (2, 20, 11, 14), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 1, 0),
    ("AveragePool", (1, 16, 9, 9), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 0, 0),
]
POOL_ND = [
    ("MaxPool", (2, 3, 50), (4,), (3,), (1, 2), (1,), 0, 0),
    ("AveragePool", (1, 3, 6, 8, 10), (2, 3, 2), (2, 1, 2), (0, 1, 0, 0, 1, 1), (1, 1, 1), 0, 0),
]


def pool_case(case: Any) -> tuple[Array, Array, str, tuple[Any, ...], bool]:
    op, shape, kernel, strides, pads, dilations, ceil_mode, include = case
    x = random(*shape)
    attrs = {"kernel_shape": kernel, "strides": strides, "pads": pads, "dilations": dilations}
    if op == "AveragePool":
        attrs["count_include_pad"] = include
    expected = reference(op, [x], ceil_mode=ceil_mode, **attrs)
    kind = "max" if op == "MaxPool" else "average"
    return x, expected, kind, (kernel, strides, pads, dilations), bool(include)


@pytest.mark.parametrize("case", POOL_2D, ids=str)
def test_blocked_pooling(case: Any) -> None:
    x, expected, kind, geometry, include = pool_case(case)
    data, residual = block(x, LANES), block(random(*expected.shape), LANES)
    template = BlockedPool.default(
        kind, data.shape, residual.shape, *geometry, include_pad=include, threads=2
    )
    actual = run(template, [data], residual.shape, residual=residual)
    blocked = np.maximum(block(expected, LANES) + residual, 0)
    channels = expected.shape[1]
    assert_close(unblock(actual, channels), unblock(blocked, channels))


@pytest.mark.parametrize("case", POOL_2D[1:6] + POOL_ND, ids=str)
def test_plain_pooling(case: Any) -> None:
    x, expected, kind, geometry, include = pool_case(case)
    residual = random(*expected.shape)
    template = PlainPool.default(
        kind, x.shape, expected.shape, *geometry, include_pad=include, lanes=LANES, threads=2
    )
    actual = run(template, [x], expected.shape, residual=residual)
    assert_close(actual, np.maximum(expected + residual, 0))


# x shape, w shape, strides, pads, dilations, group
PLAIN = [
    ((1, 8, 64), (12, 8, 3), (1,), (1, 1), (1,), 1),
    ((2, 8, 51), (7, 8, 5), (2,), (2, 2), (1,), 1),
    ((1, 24, 40), (24, 1, 9), (1,), (4, 4), (1,), 24),
    ((1, 4, 5, 9, 16), (6, 4, 3, 3, 3), (1, 1, 1), (1,) * 6, (1, 1, 1), 1),
    ((2, 6, 5, 7, 9), (4, 3, 2, 3, 2), (1, 2, 3), (1, 0, 1, 0, 1, 1), (1, 1, 1), 2),
    ((1, 32, 14, 14), (32, 4, 3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 8),
    ((1, 24, 8, 8), (48, 8, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 3),
    ((1, 18, 7, 7), (40, 18, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((1, 1, 20, 12), (16, 1, 3, 12), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((1, 6, 9, 9), (30, 6, 3, 3), (1, 1), (2, 2, 2, 2), (2, 2), 1),
    ((2, 3, 17, 23), (5, 3, 3, 3), (1, 1), (0, 1, 2, 1), (1, 1), 1),
    ((1, 16, 1), (64, 16, 1), (1,), (0, 0), (1,), 1),
]


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_plain_convolution(case: Any) -> None:
    x_shape, w_shape, strides, pads, dilations, group = case
    x, w, b = random(*x_shape), random(*w_shape), random(w_shape[0])
    attrs = {"strides": strides, "pads": pads, "dilations": dilations, "group": group}
    expected = reference("Conv", [x, w, b], **attrs)
    residual = random(*expected.shape)
    template = PlainConv.default(x_shape, w_shape, **attrs, lanes=LANES, threads=2)
    actual = run(template, [x, w, b], expected.shape, residual=residual)
    assert_close(actual, np.maximum(expected + residual, 0))


# x shape, w shape, strides, pads, dilations, group, output padding
TRANSPOSED = [
    ((1, 8, 16, 16), (8, 6, 2, 2), (2, 2), (0, 0, 0, 0), (1, 1), 1, (0, 0)),
    ((1, 24, 10, 12), (24, 1, 2, 2), (2, 2), (0, 0, 0, 0), (1, 1), 1, (0, 0)),
    ((1, 6, 7, 7), (6, 5, 4, 4), (2, 2), (1, 1, 1, 1), (1, 1), 1, (0, 0)),
    ((1, 8, 9, 11), (8, 3, 3, 5), (2, 3), (1, 0, 0, 2), (2, 1), 2, (1, 2)),
    ((2, 12, 50), (12, 10, 5), (3,), (1, 1), (1,), 1, (0,)),
    ((1, 4, 3, 4, 5), (4, 3, 3, 2, 3), (2, 1, 2), (0,) * 6, (1, 1, 1), 1, (0, 0, 0)),
    ((1, 3, 5, 6), (3, 4, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, (0, 0)),
    ((1, 2, 5, 6), (2, 4, 1, 1), (3, 2), (0, 0, 0, 0), (1, 1), 1, (2, 1)),
]


@pytest.mark.parametrize("case", TRANSPOSED, ids=str)
def test_transposed_convolution(case: Any) -> None:
    x_shape, w_shape, strides, pads, dilations, group, output_padding = case
    x, w, b = random(*x_shape), random(*w_shape), random(w_shape[1] * group)
    attrs = {"strides": strides, "pads": pads, "dilations": dilations}
    parts = zip(np.split(x, group, 1), np.split(w, group), np.split(b, group), strict=True)
    expected = np.concatenate(  # the reference knows no groups here
        [
            reference("ConvTranspose", part, output_padding=output_padding, **attrs)
            for part in parts
        ],
        axis=1,
    )
    residual = random(*expected.shape)
    template = PlainConvTranspose.default(
        x_shape, w_shape, expected.shape, **attrs, group=group, lanes=LANES, threads=2
    )
    actual = run(template, [x, w, b], expected.shape, residual=residual)
    assert_close(actual, np.maximum(expected + residual, 0))


@pytest.mark.parametrize("columns", [1, 7, 13, 17, 40, 47, 101, 196])
@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_chosen_tiles_fit_the_registers_and_waste_little(columns: int, lanes: int) -> None:
    extents = Extents(
        rows=20,
        columns=columns,
        out_blocks=8,
        taps=576,
        ragged_copy=1000,
    )
    tile = choose_tile(extents, lanes, 2)
    assert tile in set(register_tiles(extents, lanes))
    computed = -(-columns // tile.columns) * tile.columns
    assert computed <= 1.25 * columns


@pytest.mark.parametrize("lanes", [4, 8])
@pytest.mark.parametrize("images", [1, 8, 32])
def test_chunks_of_separate_rows_are_no_longer_than_the_image(lanes: int, images: int) -> None:
    """One long row is no chunk of column tiles: they would be computed again for each row."""
    x_shape, w_shape = (images, 256 // lanes, 1, 512, lanes), (64, 256 // lanes, 1, 5, lanes, lanes)
    chosen = Conv2d.default(x_shape, w_shape, lanes=lanes, threads=2)
    for template in (chosen, *chosen.alternatives()):
        assert not template.flat and template.chunk <= 1

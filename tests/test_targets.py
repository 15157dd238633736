"""Every family of kernels for every target: it compiles for all, and answers right on those that
this machine can run.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from whitebox.compiler import target as target_module
from whitebox.compiler.target import X86, Target, cpu_flags, host_target
from whitebox.compiler.worker import tvm_target
from whitebox.ir import onnx_schema, ops
from whitebox.ir.graph import Graph, Node, constant, input_node
from whitebox.ir.types import TensorType

tvm = pytest.importorskip("tvm")
from tests.fused import bodies, built, fused, model_of, operators, run  # noqa: E402

RNG = np.random.default_rng(5)


def target_for(mcpu: str, lanes: int) -> Target:
    return Target("cpu", "x86_64", mcpu, lanes, 2)


TARGETS = [
    *(target_for(mcpu, 8 if mcpu == "haswell" else 16) for mcpu, _ in X86),
    target_for("x86-64", 4),
    Target("cpu", "aarch64", "generic", 4, 2),
]
RUNNABLE = [
    target
    for target in TARGETS
    if host_target().arch == target.arch == "x86_64"
    and all(needed <= cpu_flags() for mcpu, needed in X86 if mcpu == target.mcpu)
]


def data(*dims: int, dtype: str = "float32", position: int = 0) -> Node:
    return input_node(position, TensorType(dtype, dims))


def known(*shape: int) -> Node:
    return constant(RNG.standard_normal(shape).astype(np.float32) / 4)


def matmul() -> Graph:
    x = data(19, 40)
    return model_of(ops.node("Relu", ops.node("MatMul", x, known(40, 33))), x)


def vector_times_matrix() -> Graph:
    x = data(1, 300)
    return model_of(ops.node("MatMul", x, known(300, 130)), x)


def attention_product() -> Graph:
    q, k = data(2, 9, 16), data(2, 11, 16, position=1)
    return model_of(ops.node("MatMul", q, ops.node("Transpose", k, perm=(0, 2, 1))), q, k)


def computed_product() -> Graph:
    a, b = data(2, 9, 16), data(2, 16, 21, position=1)
    return model_of(ops.node("MatMul", a, b), a, b)


def integer_product() -> Graph:
    x = data(5, 36, dtype="uint8")
    weight = constant(RNG.integers(-9, 9, (36, 20)).astype(np.int8))
    return model_of(ops.node("MatMulInteger", x, weight), x)


def conv(size: int, channels: int, side: int, group: int = 1, stride: int = 1) -> Graph:
    x, pad = data(1, channels, side, side), size // 2
    weight = known(channels if group > 1 else 40, channels // group, size, size)
    attrs = {"kernel_shape": (size, size), "pads": (pad,) * 4, "strides": (stride, stride)}
    return model_of(ops.node("Relu", ops.node("Conv", x, weight, group=group, **attrs)), x)


def conv_1d() -> Graph:
    x = data(1, 6, 30)
    return model_of(ops.node("Conv", x, known(8, 6, 3), kernel_shape=(3,)), x)


def conv_transpose() -> Graph:
    x = data(1, 6, 7, 7)
    return model_of(ops.node("ConvTranspose", x, known(6, 8, 2, 2), strides=(2, 2)), x)


def pool(op: str) -> Graph:
    x = data(1, 24, 9, 9)
    return model_of(ops.node(op, x, kernel_shape=(3, 3), strides=(2, 2)), x)


def normalization(op: str) -> Graph:
    x = data(3, 5, 70)
    size = 5 if op == "InstanceNormalization" else 70
    return model_of(ops.node(op, x, known(size), known(size)), x)


def softmax() -> Graph:
    x = data(7, 50)
    return model_of(ops.node("Softmax", x, axis=-1), x)


def reduction() -> Graph:
    x = data(9, 33, 17)
    return model_of(ops.node("ReduceMean", x, constant(np.array([1])), keepdims=0), x)


def elementwise() -> Graph:
    x = data(9, 130)
    return model_of(ops.node("Mul", ops.node("Erf", x), ops.node("Sigmoid", ops.node("Exp", x))), x)


def movement() -> Graph:
    x = data(5, 18, 30)
    return model_of(ops.node("Transpose", ops.node("Relu", x), perm=(2, 0, 1)), x)


def gathering() -> Graph:
    x = data(3, 4, dtype="int64")
    return model_of(ops.node("Gather", known(40, 24), ops.node("Abs", x)), x)


def resize() -> Graph:
    x = data(1, 3, 8, 8)
    scales = constant(np.array([1, 1, 2, 2], np.float32))
    return model_of(ops.node("Resize", x, None, scales, mode="linear"), x)


def scan() -> Graph:
    x = data(6, 40)
    return model_of(ops.node("CumSum", x, constant(np.array(1))), x)


def recurrent() -> Graph:
    x = data(4, 1, 10)
    weights = (known(1, 48, 10), known(1, 48, 12))
    return model_of(ops.node("LSTM", x, *weights, hidden_size=12, outputs=1), x)


def trees(rows: int, count: int = 20) -> Graph:
    """Some trees: each asks of one feature after the other whether it is large."""
    x, nodes = data(rows, 6), np.arange(6)
    forest = {
        "n_targets": 1,
        "nodes_treeids": np.repeat(np.arange(count), 13),
        "nodes_nodeids": np.tile(np.arange(13), count),
        "nodes_featureids": np.tile([*nodes, *[0] * 7], count),
        "nodes_modes": np.tile([*["BRANCH_GT"] * 6, *["LEAF"] * 7], count),
        "nodes_values": RNG.standard_normal(13 * count),
        "nodes_truenodeids": np.tile([*(6 + nodes), *[0] * 7], count),
        "nodes_falsenodeids": np.tile([1, 2, 3, 4, 5, 12, *[0] * 7], count),
        "target_treeids": np.repeat(np.arange(count), 7),
        "target_nodeids": np.tile(6 + np.arange(7), count),
        "target_ids": np.zeros(7 * count, int),
        "target_weights": RNG.standard_normal(7 * count),
    }
    attrs = {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in forest.items()
    }
    return model_of(ops.node("ai.onnx.ml.TreeEnsembleRegressor", x, **attrs), x)


FAMILIES: dict[str, Callable[[], Graph]] = {
    "matmul": matmul,
    "vector times matrix": vector_times_matrix,
    "attention product": attention_product,
    "computed product": computed_product,
    "integer product": integer_product,
    "conv": lambda: conv(1, 32, 9),
    "conv of an image": lambda: conv(3, 3, 12, stride=2),
    "winograd": lambda: conv(3, 32, 8),
    "depthwise": lambda: conv(3, 32, 9, group=32),
    "conv 1-D": conv_1d,
    "conv transpose": conv_transpose,
    "max pool": lambda: pool("MaxPool"),
    "average pool": lambda: pool("AveragePool"),
    "layer norm": lambda: normalization("LayerNormalization"),
    "instance norm": lambda: normalization("InstanceNormalization"),
    "softmax": softmax,
    "reduction": reduction,
    "elementwise": elementwise,
    "movement": movement,
    "gather": gathering,
    "resize": resize,
    "scan": scan,
    "lstm": recurrent,
    "trees of a row": lambda: trees(1),
    "trees of rows": lambda: trees(40),
    "tree of a row": lambda: trees(1, 1),
}
# Those whose code differs most between targets; the rest only in the number of lanes.
_TELLING = ("matmul", "integer product", "conv", "winograd", "softmax", "elementwise")


def device(target: Target) -> object:
    """TVM's object for a target, also where it is another architecture than this machine's."""
    if target.arch == "x86_64":
        return tvm_target(target)
    triple = f"{target.arch}-linux-gnu"
    return tvm.target.Target({"kind": "llvm", "mtriple": triple, "mattr": ["+neon"]})


def feeds(graph: Graph) -> dict[Node, np.ndarray]:
    random = np.random.default_rng(1)
    return {
        node: random.standard_normal(node.tensor.dims).astype(np.float32)
        if node.tensor.dtype == "float32"
        else random.integers(0, 9, node.tensor.dims).astype(node.tensor.dtype)
        for _, node in graph.model.inputs
    }


def check_compiles(family: str, target: Target, precision: str) -> None:
    graph = fused(FAMILIES[family](), target, precision)
    found = bodies(graph)
    assert found
    for body in found:
        assert built(body, target, device(target)) is not None


def label(target: Target) -> str:
    return target.mcpu if target.arch == "x86_64" else target.arch


@pytest.mark.parametrize("target", TARGETS, ids=label)
def test_the_telling_families_compile_for_every_target(target: Target) -> None:
    for family in _TELLING:
        check_compiles(family, target, "bf16" if target.bf16 else "f32")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", TARGETS, ids=label)
def test_every_family_compiles_for_every_target(
    target: Target, family: str, precision: str
) -> None:
    check_compiles(family, target, precision)


@pytest.mark.parametrize("target", RUNNABLE, ids=label)
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_agree_on_targets_that_this_machine_can_run(target: Target, family: str) -> None:
    graph = FAMILIES[family]()
    given = feeds(graph)
    (expected,) = onnx_schema.evaluate_graph(graph, list(given.values())).values()
    lowered = fused(graph, target)
    inputs = [node for _, node in lowered.model.inputs]
    found = run(lowered, target, dict(zip(inputs, given.values(), strict=True)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_targets_get_the_kernels_that_they_are_for() -> None:
    expected = {
        "sapphirerapids": ("whitebox.MatMulBf16", "whitebox.MatMulInteger"),
        "cooperlake": ("whitebox.MatMulBf16", "whitebox.MatMulInteger"),
        "cascadelake": ("whitebox.MatMul", "whitebox.MatMulInteger"),
        "skylake-avx512": ("whitebox.MatMul", "whitebox.MatMulInteger"),
        "haswell": ("whitebox.MatMul", "whitebox.MatMulInteger"),
    }
    for target in TARGETS:
        product, integer = expected.get(target.mcpu, ("whitebox.MatMul", "MatMulInteger"))
        assert product in operators(fused(matmul(), target, "bf16"))
        assert integer in operators(fused(integer_product(), target, "bf16"))


@pytest.mark.parametrize(("allowed", "expected"), [(True, "sapphirerapids"), (False, "cooperlake")])
def test_tiles_are_used_only_where_the_system_keeps_them(
    monkeypatch: pytest.MonkeyPatch, allowed: bool, expected: str
) -> None:
    every = frozenset().union(*(needed for _, needed in X86))
    monkeypatch.setattr(target_module, "cpu_flags", lambda: every)
    monkeypatch.setattr(target_module, "tiles_allowed", lambda: allowed)
    monkeypatch.setattr(target_module.platform, "machine", lambda: "x86_64")
    assert host_target(2) == target_for(expected, 16)

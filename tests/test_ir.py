"""The graph: interning, digests, operator types, text, stored form, reference semantics."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.defs
import pytest

from whitebox.errors import InvalidModel, StorageError
from whitebox.ir import onnx_io, onnx_schema, ops, serial
from whitebox.ir.graph import Graph, Model, Node, Tensor, constant, input_node, output
from whitebox.ir.reference.blocked import from_blocked, to_blocked
from whitebox.ir.shapes import RULES
from whitebox.ir.text import parse_graph_text
from whitebox.ir.types import TensorType

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"


def f32(*shape: int | str | None, at: int = 0) -> Node:
    return input_node(at, TensorType("float32", shape))


def i64(*values: int) -> Node:
    return constant(np.array(values, np.int64))


def zeros(*shape: int) -> Node:
    return constant(np.zeros(shape, np.float32))


def no_blobs(digest: str, type: TensorType) -> Tensor:
    raise AssertionError(f"{type} {digest} should have been stored inside")


MLP = """
mlp (float[N, 3] x) => (float[N, 2] y)
{
    w = Constant <value = float[3, 2] {1, 2, 3, 4, 5, 6}> ()
    b = Constant <value = float[2] {0.5, -0.5}> ()
    product = MatMul (x, w)
    shifted = Add (product, b)
    y = LeakyRelu <alpha = 0.2> (shifted)
}
"""


# Identity.


def test_equal_nodes_are_one_object() -> None:
    assert ops.node("Relu", f32(2, 3)) is ops.node("Relu", f32(2, 3))
    assert ops.node("Relu", f32(2, 3)) is not ops.node("Relu", f32(2, 4))
    assert i64(1, 2) is i64(1, 2)
    assert i64(1, 2) is not constant(np.array([1, 2], np.int32))


def test_defaults_and_spellings_do_not_matter() -> None:
    x = f32(2, 3, 4)
    assert ops.node("Softmax", x) is ops.node("Softmax", x, axis=2)
    assert ops.node("Concat", x, x, axis=-1) is ops.node("Concat", x, x, axis=np.int64(2))
    assert ops.node("LeakyRelu", x, alpha=1) is ops.node("LeakyRelu", x, alpha=1.0)
    assert ops.node("Clip", x, None, None) is ops.node("Clip", x)


def test_names_are_not_identity() -> None:
    renamed = MLP.replace("mlp", "other").replace("product", "p").replace("x", "input")
    assert parse_graph_text(MLP) == parse_graph_text(renamed)
    assert parse_graph_text(MLP) != parse_graph_text(MLP.replace("0.5, -0.5", "0.5, 0.5"))


def test_digest_is_stable_across_processes() -> None:
    program = (
        "import sys; from whitebox.ir.text import parse_graph_text;"
        "print(parse_graph_text(sys.stdin.read()).digest)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=MLP, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == parse_graph_text(MLP).digest


def test_random_operators_do_not_merge() -> None:
    graph = parse_graph_text(
        """r () => (float[4] a, float[4] b)
        { a = RandomNormal <shape = [4]> ()  b = RandomNormal <shape = [4]> () }"""
    )
    (_, a), (_, b) = graph.model.outputs
    assert a is not b
    drawn = onnx_schema.evaluate_graph(graph, {})
    assert not np.array_equal(drawn["a"], drawn["b"])


# Types.

TYPES: list[tuple[Callable[[], Node], str]] = [
    (lambda: ops.node("Add", f32("N", 3), f32(1, at=1)), "f32[N,3]"),
    (lambda: ops.node("Add", f32("N", 3), f32("M", 1, at=1)), "f32[?,3]"),
    (lambda: ops.node("Mul", f32("N", 3), f32(4, 3, at=1)), "f32[4,3]"),
    (lambda: ops.node("Less", f32(2, 1), f32(5, at=1)), "bool[2,5]"),
    (lambda: ops.node("Cast", f32("N"), to=7), "i64[N]"),
    (lambda: ops.node("MatMul", f32("N", 4, 8), zeros(8, 5)), "f32[N,4,5]"),
    (lambda: ops.node("MatMul", f32(8), f32("N", 8, 5, at=1)), "f32[N,5]"),
    (lambda: ops.node("Gemm", f32(8, "N"), zeros(8, 5), transA=1), "f32[N,5]"),
    (
        lambda: ops.node("Conv", f32("N", 3, 9, "W"), zeros(8, 3, 3, 3), pads=(1, 1, 1, 1)),
        "f32[N,8,9,W]",
    ),
    (
        lambda: ops.node("Conv", f32(1, 4, 9, 9), zeros(8, 1, 3, 3), group=4, strides=(2, 2)),
        "f32[1,8,4,4]",
    ),
    (
        lambda: ops.node("Conv", f32(1, 3, 9), zeros(8, 3, 4), auto_pad="SAME_UPPER", strides=(2,)),
        "f32[1,8,5]",
    ),
    (
        lambda: ops.node("ConvTranspose", f32(1, 4, 5, 5), zeros(4, 2, 2, 2), strides=(2, 2)),
        "f32[1,2,10,10]",
    ),
    (
        lambda: ops.node(
            "MaxPool", f32(1, 4, 6, 6), kernel_shape=(3, 3), strides=(2, 2), ceil_mode=1
        ),
        "f32[1,4,3,3]",
    ),
    (lambda: ops.node("GlobalAveragePool", f32("N", 4, None, 6)), "f32[N,4,1,1]"),
    (lambda: ops.node("Reshape", f32("N", 4, 6), i64(0, -1)), "f32[N,24]"),
    (lambda: ops.node("Reshape", f32("N", 4, 6), i64(-1, 24)), "f32[N,24]"),
    (lambda: ops.node("Reshape", f32(2, 12), i64(2, -1, 3)), "f32[2,4,3]"),
    (
        lambda: ops.node("Reshape", f32(2, 12), input_node(1, TensorType("int64", (3,)))),
        "f32[?,?,?]",
    ),
    (lambda: ops.node("Flatten", f32("N", 4, 6)), "f32[N,24]"),
    (lambda: ops.node("Transpose", f32("N", 4, 6)), "f32[6,4,N]"),
    (lambda: ops.node("Squeeze", f32(1, "N", 1), i64(0)), "f32[N,1]"),
    (lambda: ops.node("Unsqueeze", f32("N"), i64(0, -1)), "f32[1,N,1]"),
    (lambda: ops.node("Slice", f32("N", 10), i64(8), i64(-100), i64(1), i64(-3)), "f32[N,3]"),
    (lambda: ops.node("Slice", f32("N", 10), i64(0), i64(2**62), i64(0)), "f32[N,10]"),
    (lambda: ops.node("Concat", f32("N", 2), f32(3, 4, at=1), axis=1), "f32[3,6]"),
    (lambda: ops.node("Gather", f32("N", 5), i64(1, 2, 3), axis=1), "f32[N,3]"),
    (lambda: ops.node("Shape", f32("N", 5, 6), start=1), "i64[2]"),
    (lambda: ops.node("Pad", f32("N", 5), i64(0, 1, 0, 2)), "f32[N,8]"),
    (lambda: ops.node("Expand", f32("N", 1), i64(1, 7)), "f32[N,7]"),
    (lambda: ops.node("Tile", f32("N", 2), i64(1, 3)), "f32[N,6]"),
    (lambda: ops.node("Range", i64(0), i64(7), i64(2)), "i64[4]"),
    (lambda: ops.node("ConstantOfShape", i64(2, 3)), "f32[2,3]"),
    (lambda: ops.node("ReduceMean", f32("N", 5, 6), i64(-1), keepdims=0), "f32[N,5]"),
    (lambda: ops.node("ReduceSum", f32("N", 5)), "f32[1,1]"),
    (lambda: ops.node("ArgMax", f32("N", 5), axis=-1, keepdims=0), "i64[N]"),
    (
        lambda: ops.node(
            "Resize", f32(1, 3, 5, "W"), None, constant(np.array([1, 1, 1.5, 2], np.float32))
        ),
        "f32[1,3,7,?]",
    ),
    (
        lambda: ops.node(
            "OneHot", input_node(0, TensorType("int64", ("N",))), i64(10), f32(2, at=1)
        ),
        "f32[N,10]",
    ),
    (
        lambda: ops.node("Einsum", f32("N", 4, 5), f32(5, 6, at=1), equation="...ij,jk->...ik"),
        "f32[N,4,6]",
    ),
    (
        lambda: ops.node("Where", input_node(1, TensorType("bool", (3, 1))), f32(4), f32(4, at=2)),
        "f32[3,4]",
    ),
    (lambda: output(ops.node("Split", f32(7, 2), outputs=3, num_outputs=3), 2), "f32[1,2]"),
    (lambda: output(ops.node("TopK", f32("N", 9), i64(3), outputs=2), 1), "i64[N,3]"),
    # Through onnx's own inference.
    (lambda: ops.node("Det", f32("N", 3, 3)), "f32[N]"),
    (
        lambda: output(
            ops.node(
                "GRU", f32(5, 2, 3), zeros(1, 12, 3), zeros(1, 12, 4), outputs=2, hidden_size=4
            ),
            1,
        ),
        "f32[1,2,4]",
    ),
]


@pytest.mark.parametrize(("build", "expected"), TYPES, ids=[expected for _, expected in TYPES])
def test_types(build: Callable[[], Node], expected: str) -> None:
    assert str(build().type) == expected


WRONG: list[tuple[Callable[[], Node], str]] = [
    (lambda: ops.node("Add", f32(2, 3), f32(4, 5, at=1)), "Add(f32[2,3], f32[4,5])"),
    (lambda: ops.node("Add", f32(2), i64(1, 2)), "float32 and int64"),
    (lambda: ops.node("MatMul", f32(2, 3), f32(4, 5, at=1)), "3 and 4"),
    (lambda: ops.node("Reshape", f32(2, 3), i64(4, 2)), "[4, 2]"),
    (lambda: ops.node("Concat", f32(2, 3), f32(3, at=1), axis=0), "ranks"),
    (lambda: ops.node("Softmax", f32(2, 3), axis=2), "axis 2"),
    (lambda: ops.node("Conv", f32(1, 3, 2, 2), zeros(8, 3, 3, 3)), "does not fit 2"),
    (lambda: ops.node("Conv", f32(1, 3, 2, 2), zeros(8, 3, 1, 1), strides=(1,)), "strides"),
    (lambda: ops.node("Relu", f32(1), f32(1, at=1)), "takes 1 to 1 inputs"),
    (lambda: ops.node("Relu", f32(1), axis=1), "no attribute 'axis'"),
    (lambda: ops.node("Concat", f32(1)), "'axis'"),
    (lambda: ops.node("Softmax", f32(1), axis="x"), "must be INT"),
    (lambda: ops.node("Relux", f32(1)), "Relux"),
]


@pytest.mark.parametrize(("build", "words"), WRONG, ids=[words for _, words in WRONG])
def test_a_misfit_names_operator_and_types(build: Callable[[], Node], words: str) -> None:
    with pytest.raises(InvalidModel) as caught:
        build()
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_rebuild_infers_anew() -> None:
    x = f32("N", 3, 8, 8)
    conv = ops.node("Conv", x, zeros(4, 3, 3, 3), auto_pad="SAME_UPPER", strides=(2, 2))
    assert ops.rebuild(conv, conv.inputs) is conv
    static = ops.rebuild(conv, (f32(5, 3, 8, 8), conv.inputs[1]))
    assert str(static.type) == "f32[5,4,4,4]"
    assert static.attr("pads") == (0, 0, 1, 1) and static.attr("auto_pad") is None


def test_types_of_a_loop_hold_for_every_iteration() -> None:
    graph = parse_graph_text(
        """l (int64 n, float[1, 2] start, float[2] step) => (all, trace)
        {
            yes = Constant <value = bool {1}> ()
            all, trace = Loop (n, yes, start)
            <body = b (int64 i, bool c, float[a, b] s) => (c2, s2, t) {
                c2 = Identity (c)
                t = Add (s, step)
                s2 = Concat <axis = 0> (s, start)
            }>
        }"""
    )
    (_, every), (_, trace) = graph.model.outputs
    assert str(every.type) == "f32[?,2]" and str(trace.type) == "f32[?,?,2]"
    start = np.ones((1, 2), np.float32)
    got = onnx_schema.evaluate_graph(graph, [np.array(1), start, np.ones(2, np.float32)])
    assert got["all"].shape == (2, 2) and np.array_equal(got["trace"], [start + 1])


def test_traits_are_of_operators_that_exist() -> None:
    own = (op for op in ops.TRAITS if op.startswith(ops.WHITEBOX))
    assert all(op in RULES for op in own)
    standard = (op for op in ops.TRAITS if not op.startswith(ops.WHITEBOX))
    assert all(onnx_schema.form(op) is not None for op in standard)
    assert ops.traits("Add").elementwise and ops.traits("Add").commutative
    assert ops.traits("Reshape").view and ops.traits("Reshape").static_inputs == (1,)
    assert not ops.traits("whitebox.Fused").elementwise


@pytest.mark.parametrize("file", sorted(LIGHT.glob("*.onnx")), ids=lambda file: file.stem)
def test_types_agree_with_onnx(file: Path) -> None:
    graph = onnx_io.load(file)
    inferred = onnx.shape_inference.infer_shapes(onnx.load(file)).graph
    expected = {
        info.name: info.type.tensor_type for info in (*inferred.value_info, *inferred.output)
    }
    compared = 0
    for node, name in graph.names.items():
        if name in expected and node.op not in ("Reshape", "Flatten"):
            dims = tuple(dim.dim_value for dim in expected[name].shape.dim)
            assert node.tensor.shape == dims, name
            compared += 1
    assert compared >= 10


# Text.


def test_printing() -> None:
    graph = parse_graph_text(
        """g (float[N, 4] x) => (float[N, 4] y, int64[N, 2] best)
        {
            one = Constant <value = float {1}> ()
            grown = whitebox.Fused (x, one) <body = body (float[N, 4] a, float b) => (float[N, 4] r)
            {
                t = Mul (a, b)
                r = Elu <alpha = 0.5> (t)
            }>
            y = Softmax <axis = 0> (grown)
            k = Constant <value = int64[1] {2}> ()
            top, best = TopK (y, k)
        }"""
    )
    assert str(graph) == (
        "g(x %0 f32[N,4]) -> (y %2 f32[N,4], best %3.1 i64[N,2])\n"
        "  %w0 f32[] = 1\n"
        "  %1 f32[N,4] = whitebox.Fused(%0, %w0)  # grown\n"
        "    body:\n"
        "    body(a %0 f32[N,4], b %1 f32[]) -> (r %3 f32[N,4])\n"
        "      %2 f32[N,4] = Mul(%0, %1)\n"
        "      %3 f32[N,4] = Elu(%2) {alpha=0.5}\n"
        "  %2 f32[N,4] = Softmax(%1) {axis=0}  # y\n"
        "  %w1 i64[1] = [2]\n"
        "  %3 f32[N,2], i64[N,2] = TopK(%2, %w1) {axis=1}"
    )


def test_printing_says_which_models_use_a_node() -> None:
    mlp = parse_graph_text(MLP)
    other = Graph([Model("other", mlp.model.inputs, (("y", mlp.model.outputs[0][1]),))])
    assert "LeakyRelu(%2) {alpha=0.2}  # mlp, other" in str(mlp.merge(other))


@pytest.mark.parametrize("text", ["", "nonsense", "g (float x) => (y) { y = }", "g () => (y) {}"])
def test_text_that_is_no_graph(text: str) -> None:
    with pytest.raises(InvalidModel):
        parse_graph_text(text)


# Stored form.


def sample() -> Graph:
    values: list[Any] = ["ä", "", "long " * 9]
    strings = constant(np.array(values, object))
    big = constant(np.arange(4096, dtype=np.float32).reshape(64, 64))
    x = f32("N", 64)
    y = ops.node("MatMul", ops.node("Clip", x, constant(np.float32(-1))), big)
    same = ops.node("Equal", strings, strings)
    empty = ops.node("SequenceEmpty", dtype=1)
    names = {y: "product"}
    outputs = (("y", y), ("same", same), ("empty", empty))
    return Graph([Model("m", (("x", x),), outputs, {"opset": "17"})], names)


def test_stored_graph_comes_back() -> None:
    graph = sample()
    tensors = {n.attr("value").digest: n.attr("value") for n in graph.nodes if n.is_constant}
    data = serial.encode(graph)
    assert len(data) < 2000, "the large constant is not inside"
    again = serial.decode(data, lambda digest, type: tensors[digest])
    assert again == graph and str(again) == str(graph)
    assert again.model.metadata == {"opset": "17"}
    assert serial.encode(again) == data
    whole = serial.encode(graph, inline_limit=1 << 20)
    assert serial.decode(whole, no_blobs) == graph


def test_bodies_are_stored() -> None:
    graph = parse_graph_text(
        """g (bool c, float[2] x) => (y)
        {
            y = If (c) <then_branch = t () => (a) { a = Neg (x) },
                        else_branch = e () => (b) { b = Abs (x) }>
        }"""
    )
    assert serial.decode(serial.encode(graph), no_blobs) == graph


def test_damaged_stored_graphs_are_noticed() -> None:
    data = serial.encode(parse_graph_text(MLP))
    for damaged in (b"", data[:10], data[:-1], data + b"x", b"x" + data[1:]):
        with pytest.raises(StorageError):
            serial.decode(damaged, no_blobs)
    for at in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[at] ^= 0x10
        with pytest.raises(StorageError):
            serial.decode(bytes(flipped), no_blobs)


# Operators on blocked data mean what the plain ones mean.


@pytest.mark.parametrize("channels", [3, 8, 13])
def test_blocked_convolution(channels: int) -> None:
    rng, block = np.random.default_rng(channels), 4
    x = rng.standard_normal((2, channels, 7, 6)).astype(np.float32)
    w = rng.standard_normal((9, channels, 3, 3)).astype(np.float32)
    b = rng.standard_normal(9).astype(np.float32)
    attrs = {"kernel_shape": (3, 3), "strides": (2, 1), "pads": (1, 0, 1, 2), "dilations": (1, 1)}
    plain = ops.node("Conv", f32(*x.shape), constant(w), constant(b), **attrs)
    blocks = -(-channels // block)
    padded = np.zeros((12, blocks * block, 3, 3), np.float32)
    padded[:9, :channels] = w
    packed = padded.reshape(3, 4, blocks, block, 3, 3).transpose(0, 2, 4, 5, 3, 1)
    bias = np.pad(b, (0, 3)).reshape(3, 1, 1, 4)
    wide = ops.node(
        "whitebox.Conv",
        f32(2, blocks, 7, 6, block),
        constant(packed),
        constant(bias),
        block=block,
        data_layout="NCHWc",
        group=1,
        **attrs,
    )
    (expected,) = onnx_schema.evaluate(plain, [x, w, b])
    (got,) = onnx_schema.evaluate(wide, [to_blocked(x, block), packed, bias])
    assert got.shape == wide.tensor.dims
    np.testing.assert_allclose(from_blocked(got)[:, :9], expected, rtol=1e-5, atol=1e-5)


def test_every_dtype_that_onnx_has_is_known() -> None:
    from whitebox.ir.types import ONNX_DTYPES

    numbers = onnx.TensorProto.DataType.values()
    assert set(numbers) == set(range(len(ONNX_DTYPES)))

"""Sizes that are symbols: their algebra, kernels that serve every size, and who gets which."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st

import whitebox
from benchmarks.catalogue import MODELS
from tests.test_lower import TARGET, aligned, body_of, placeholder
from whitebox.compiler.families import Family, generalizations, is_instance, probes
from whitebox.compiler.lower import lower
from whitebox.compiler.target import Target
from whitebox.ir import ops
from whitebox.ir.graph import Graph, constant, output
from whitebox.ir.onnx_schema import evaluate_graph
from whitebox.ir.sizes import Extent, Size, at_least, exact_quotient
from whitebox.ir.types import TensorType
from whitebox.ir.winograd import weight_transform

tvm = pytest.importorskip("tvm")

Sizes = dict[str, int]

extents: st.SearchStrategy[Extent] = st.recursive(
    st.integers(-4, 9) | st.sampled_from([Size.symbol("n"), Size.symbol("m")]),
    lambda inner: st.tuples(inner, inner, st.booleans()).map(
        lambda t: t[0] + t[1] if t[2] else t[0] * t[1]
    ),
    max_leaves=6,
)
values = st.fixed_dictionaries({"n": st.integers(1, 9), "m": st.integers(1, 9)})


def value_of(size: Extent, sizes: Sizes) -> int:
    if isinstance(size, int):
        return size
    return sum(coef * int(np.prod([sizes[s] for s in names])) for names, coef in size.terms)


@given(extents, extents, values)
def test_sizes_are_numbers_that_are_not_known_yet(a: Extent, b: Extent, sizes: Sizes) -> None:
    x, y = value_of(a, sizes), value_of(b, sizes)
    assert value_of(a + b, sizes) == x + y
    assert value_of(a - b, sizes) == x - y
    assert value_of(a * b, sizes) == x * y
    assert (a == b) <= (x == y)
    assert at_least(a, b) <= (x >= y)
    quotient = exact_quotient(a, b) if b != 0 else None
    assert quotient is None or value_of(quotient, sizes) * y == x


# Bodies by name; each is made for two free sizes.


def _linear(n: int, m: int) -> Graph:
    x, w, bias = placeholder(0, n, m, 20), placeholder(1, 2, 20, 16), placeholder(2, 27)
    rest = placeholder(3, n, m, 27)
    product = ops.make("whitebox.MatMul", (x, w), {"n": 27, "nt": 16})
    return body_of([x, w, bias, rest], ops.node("Add", ops.node("Add", product, bias), rest))


def _rows(n: int, m: int) -> Graph:
    del m
    x, w = placeholder(0, n, 40), placeholder(1, 1, 40, 16)
    return body_of([x, w], ops.make("whitebox.MatMul", (x, w), {"n": 16, "nt": 16}))


def _scores(n: int, m: int) -> Graph:
    q, k, mask = (
        placeholder(0, n, 3, m, 24),
        placeholder(1, n, 3, m, 24),
        placeholder(2, n, 1, m, m),
    )
    return body_of(
        [q, k, mask], ops.node("Add", ops.make("whitebox.MatMulTransposed", (q, k), {}), mask)
    )


def _mixed(n: int, m: int) -> Graph:
    p, v = placeholder(0, n, 3, m, m), placeholder(1, n, 3, m, 32)
    return body_of([p, v], ops.node("Transpose", ops.node("MatMul", p, v), perm=(0, 2, 1, 3)))


def _odd_columns(n: int, m: int) -> Graph:
    a, b = placeholder(0, 5, n), placeholder(1, 2, n, m)
    return body_of([a, b], ops.node("Tanh", ops.node("MatMul", a, b)))


def _softmax(n: int, m: int) -> Graph:
    x = placeholder(0, n, 5, m)
    return body_of([x], ops.node("Mul", ops.node("Softmax", x, axis=-1), x))


def _columns(n: int, m: int) -> Graph:
    x = placeholder(0, n, m, 9)
    return body_of([x], ops.node("Softmax", x, axis=1))


def _norm(n: int, m: int) -> Graph:
    x, scale, bias = placeholder(0, n, m, 30), placeholder(1, 30), placeholder(2, 30)
    return body_of([x, scale, bias], ops.node("LayerNormalization", x, scale, bias))


def _instance_norm(n: int, m: int) -> Graph:
    x, scale, bias = placeholder(0, n, 4, m, 3), placeholder(1, 4), placeholder(2, 4)
    return body_of([x, scale, bias], ops.node("InstanceNormalization", x, scale, bias))


def _reductions(n: int, m: int) -> Graph:
    x = placeholder(0, n, m, 6)
    last = ops.node("ReduceSum", x, constant(np.array([2])), keepdims=0)
    return body_of([x], ops.node("ReduceMean", last, constant(np.array([1])), keepdims=0))


def _over_rows(n: int, m: int) -> Graph:
    x = placeholder(0, n, m)
    return body_of([x], ops.node("ReduceMax", x, constant(np.array([0])), keepdims=0))


def _position(n: int, m: int) -> Graph:
    x = placeholder(0, n, m)
    return body_of([x], ops.node("ArgMax", x, axis=1, keepdims=0))


def _transposed(n: int, m: int) -> Graph:
    x = placeholder(0, n, 7, m)
    return body_of([x], ops.node("Transpose", ops.node("Exp", x), perm=(2, 1, 0)))


def _views(n: int, m: int) -> Graph:
    x, y = placeholder(0, n * m, 12), placeholder(1, n, m, 3, 4)
    split = ops.node("Reshape", ops.node("Tanh", x), constant(np.array([n, m, 3, 4])))
    return body_of([x, y], ops.node("Add", split, y))


def _joined(n: int, m: int) -> Graph:
    x, y = placeholder(0, n, m), placeholder(1, n, 5)
    return body_of([x, y], ops.node("Relu", ops.node("Concat", x, y, axis=1)))


def _cut(n: int, m: int) -> Graph:
    x = placeholder(0, n, 9, m)
    starts, ends, axes = (constant(np.array([v])) for v in (2, 7, 1))
    return body_of([x], ops.node("Neg", ops.node("Slice", x, starts, ends, axes)))


def _padded(n: int, m: int) -> Graph:
    x = placeholder(0, n, m)
    pads = constant(np.array([0, 2, 1, 3]))
    return body_of([x], ops.node("Pad", x, pads))


def _looked_up(n: int, m: int) -> Graph:
    table, where = placeholder(0, m, 10), placeholder(1, n, dtype="int64")
    return body_of([table, where], ops.node("Gather", table, where, axis=0))


def _spread(n: int, m: int) -> Graph:
    x, y = placeholder(0, n, 1), placeholder(1, 1, m)
    less = ops.node("Less", x, y)
    return body_of([x, y], ops.node("Cast", less, to=1), ops.node("Mul", x, y))


_WINDOW = {"block": TARGET.lanes, "dilations": (1, 1), "kernel_shape": (3, 3), "pads": (1, 1, 1, 1)}


def _conv(n: int, m: int) -> Graph:
    c = TARGET.lanes
    x, w, bias = (
        placeholder(0, 2, 2, n, m, c),
        placeholder(1, 3, 2, 3, 3, c, c),
        placeholder(2, 3, 1, 1, c),
    )
    attrs = {**_WINDOW, "strides": (1, 1), "data_layout": "NCHWc", "in_channels": 2 * c}
    return body_of([x, w, bias], ops.node("Relu", ops.make("whitebox.Conv", (x, w, bias), attrs)))


def _image_conv(n: int, m: int) -> Graph:
    c = TARGET.lanes
    x, w = placeholder(0, 1, 3, n, m), placeholder(1, 2, 3, 3, 3, c)
    attrs = {**_WINDOW, "strides": (2, 2), "data_layout": "NCHW", "in_channels": 3}
    return body_of([x, w], ops.make("whitebox.Conv", (x, w), attrs))


def _pointwise(n: int, m: int) -> Graph:
    c = TARGET.lanes
    x, w, y = (
        placeholder(0, n, 2, m, 5, c),
        placeholder(1, 1, 2, 1, 1, c, c),
        placeholder(2, n, 1, m, 5, c),
    )
    attrs = {
        **_WINDOW, "kernel_shape": (1, 1), "pads": (0,) * 4, "strides": (1, 1),
        "data_layout": "NCHWc", "in_channels": 2 * c,
    }  # fmt: skip
    return body_of([x, w, y], ops.node("Add", ops.make("whitebox.Conv", (x, w), attrs), y))


def _depthwise(n: int, m: int) -> Graph:
    c = TARGET.lanes
    x, w = placeholder(0, 2, 2, n, m, c), placeholder(1, 2, 3, 3, c)
    return body_of(
        [x, w], ops.make("whitebox.DepthwiseConv", (x, w), {**_WINDOW, "strides": (2, 1)})
    )


def _max_pool(n: int, m: int) -> Graph:
    x = placeholder(0, 2, 2, n, m, TARGET.lanes)
    attrs = {**_WINDOW, "strides": (2, 2), "ceil_mode": 1}
    return body_of([x], ops.make("whitebox.MaxPool", (x,), attrs))


def _average_pool(n: int, m: int, **attrs: Any) -> Graph:
    x = placeholder(0, 2, 2, n, m, TARGET.lanes)
    attrs = {**_WINDOW, "strides": (2, 1), "ceil_mode": 1, **attrs}
    return body_of([x], ops.node("Relu", ops.make("whitebox.AveragePool", (x,), attrs)))


def _average_with_border(n: int, m: int) -> Graph:
    return _average_pool(n, m, count_include_pad=1, pads=(1, 0, 1, 2))


def _recurrent(op: str, steps: int, **attrs: Any) -> Graph:
    gates, directions, hidden, c = {"GRU": 3, "LSTM": 4}[op], 2, 20, TARGET.lanes
    panels = -(-hidden // c)
    share = placeholder(0, steps, 3, directions, gates, panels * c)
    weights = placeholder(1, directions, panels, gates, hidden, c)
    layer = ops.node(
        f"whitebox.{op}", share, weights, outputs=2, hidden_size=hidden,
        direction="bidirectional", **attrs,
    )  # fmt: skip
    return body_of([share, weights], output(layer, 0), output(layer, 1))


def _gru(n: int, m: int) -> Graph:
    del m
    return _recurrent("GRU", n, linear_before_reset=0)


def _lstm(n: int, m: int) -> Graph:
    del m
    return _recurrent("LSTM", n)


def _winograd(n: int, m: int) -> Graph:
    c = TARGET.lanes
    x, w = placeholder(0, 2, 2, n, m, c), placeholder(1, 3, 6, 6, 2, c, c)
    attrs = {**_WINDOW, "strides": (1, 1)}
    return body_of([x, w], ops.node("Tanh", ops.make("whitebox.WinogradConv", (x, w), attrs)))


def _enlarged(n: int, m: int) -> Graph:
    x = placeholder(0, 1, 2, n, m)
    scales = constant(np.array([1, 1, 2, 2], np.float32))
    return body_of([x], ops.node("Resize", x, None, scales, mode="linear"))


BODIES: dict[str, Callable[[int, int], Graph]] = {
    make.__name__.strip("_"): make
    for make in (
        _linear, _rows, _scores, _mixed, _odd_columns, _softmax, _columns, _norm, _instance_norm,
        _reductions, _over_rows, _position, _transposed, _views, _joined, _cut, _padded, _looked_up,
        _spread, _conv, _image_conv, _pointwise, _depthwise, _max_pool, _average_pool,
        _average_with_border, _gru, _lstm, _winograd, _enlarged,
    )
}  # fmt: skip
SIZES = ((1, 1), (1, 7), (2, 1), (3, 13), (5, 16), (2, 33), (17, 50))


@cache
def general(name: str) -> Graph:
    """The body with symbols."""
    made = list(generalizations([BODIES[name](4, 6)], [BODIES[name](11, 19)]))
    assert len(made) == 1
    return made[0]


@cache
def kernel_of(name: str) -> Any:
    """Compiled once for all sizes."""
    device = tvm.target.Target({"kind": "llvm", "mcpu": TARGET.mcpu, "num-cores": TARGET.threads})
    return tvm.compile(lower(general(name), TARGET, "kernel"), target=device)["kernel"]


def feeds_of(body: Graph, rng: np.random.Generator) -> list[np.ndarray]:
    feeds = []
    for _, node in body.model.inputs:
        type = node.tensor
        if type.dtype == "int64":
            rows = body.model.inputs[0][1].tensor.dims[0]
            feeds.append(rng.integers(-rows, rows, type.dims))
        else:
            feeds.append(rng.standard_normal(type.dims).astype(type.dtype))
    return feeds


def transformed_weights(outer: int, inner: int, block: int) -> np.ndarray:
    """Random 3x3 weights as Winograd's kernel takes them."""
    plain = np.random.default_rng(0).standard_normal((outer, inner, block, block, 9)) / 9
    made = (plain.astype(np.float32) @ weight_transform(3)).reshape(*plain.shape[:4], 6, 6)
    return made.transpose(0, 4, 5, 1, 2, 3)


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "x".join(map(str, sizes)))
@pytest.mark.parametrize("name", BODIES)
def test_one_kernel_serves_every_size(name: str, sizes: tuple[int, int]) -> None:
    body = BODIES[name](*sizes)
    if sizes != (1, 1):  # where what is not one body with others may merge
        assert Family([general(name)]).find(body) is general(name)
    feeds = feeds_of(body, np.random.default_rng(sizes))
    if name == "winograd":
        feeds[1] = transformed_weights(*feeds[1].shape[:1], *feeds[1].shape[3:5])
    expected = list(evaluate_graph(body, feeds).values())
    results = [aligned(np.full(np.shape(e), 7).astype(e.dtype)) for e in map(np.asarray, expected)]
    again = [aligned(result) for result in results]
    inputs = [*map(aligned, feeds)]
    kernel_of(name)(*inputs, *results)
    kernel_of(name)(*inputs, *again)
    for result, second, right in zip(results, again, expected, strict=True):
        np.testing.assert_allclose(result, right, rtol=2e-5, atol=2e-5)
        np.testing.assert_array_equal(result, second)


@pytest.mark.parametrize("name", ["linear", "scores", "softmax", "norm", "transposed"])
@pytest.mark.parametrize("lanes, mcpu", [(4, "x86-64"), (8, "haswell"), (16, "skylake-avx512")])
def test_it_compiles_for_every_width(name: str, lanes: int, mcpu: str) -> None:
    target = Target("cpu", "x86_64", mcpu, lanes, 2)
    device = tvm.target.Target({"kind": "llvm", "mcpu": mcpu, "num-cores": 2})
    assert tvm.compile(lower(general(name), target, "kernel"), target=device)


def test_only_instances_match() -> None:
    (scores,) = generalizations([BODIES["scores"](4, 6)], [BODIES["scores"](11, 19)])

    def other(q: tuple[int, ...], k: tuple[int, ...], dtype: str = "float32") -> Graph:
        a, b = placeholder(0, *q), placeholder(1, *k)
        mask = placeholder(2, q[0], 1, q[2], k[2], dtype=dtype)
        return body_of(
            [a, b, mask], ops.node("Add", ops.make("whitebox.MatMulTransposed", (a, b), {}), mask)
        )

    assert is_instance(other((2, 3, 5, 24), (2, 3, 5, 24)), scores)
    assert not is_instance(other((2, 3, 5, 24), (2, 3, 6, 24)), scores)  # one symbol, two sizes
    assert not is_instance(other((2, 4, 5, 24), (2, 4, 5, 24)), scores)  # another fixed size
    assert not is_instance(BODIES["mixed"](2, 5), scores)


def test_what_a_body_cannot_be_general_in() -> None:
    def repeated(n: int) -> Graph:
        x = placeholder(0, 2, 3)
        return body_of([x], ops.node("Gather", x, constant(np.arange(n)), axis=0))

    assert not list(generalizations([repeated(3)], [repeated(5)]))  # it holds other constants
    same = BODIES["softmax"](3, 4)
    assert not list(generalizations([same], [same]))  # nothing is free


def test_bodies_are_paired_with_those_of_their_own_fixed_sizes() -> None:
    def linear(n: int, width: int) -> Graph:
        x, w = placeholder(0, n, width), placeholder(1, 1, width, 16)
        return body_of([x, w], ops.make("whitebox.MatMul", (x, w), {"n": 16, "nt": 16}))

    # At the second sizes, the first body has become another.
    (made,) = generalizations([linear(3, 20), linear(3, 40)], [linear(5, 40)])
    assert is_instance(linear(7, 40), made)


def test_probes_cover_a_free_batch_of_one() -> None:
    free = [("x", TensorType("float32", ("N", 3, "H", None)))]
    (first, second), (one, other) = probes(free)
    assert all(a != b for a, b in zip(first["x"], second["x"], strict=True) if a != 3)
    assert one["x"][0] == other["x"][0] == 1 and one["x"][2:] == first["x"][2:]
    assert len(set(first["x"])) == 3
    assert probes([("x", TensorType("float32", (1, 3)))]) == []


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with whitebox.Runtime(tmp_path_factory.mktemp("home")) as runtime:
        yield runtime


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minilm-int8", "magika", "ppocr-cls"])
def test_new_shapes_compile_nothing(
    name: str, runtime: whitebox.Runtime, real_model: Callable[[str], Path]
) -> None:
    runtime.register(real_model(name), name)
    model = MODELS[name]
    rng = np.random.default_rng(0)
    compiled = runtime.stats()["kernels_compiled"]
    for _ in range(10):
        sizes = {key: int(rng.integers(2, 97 if key == "L" else 9)) for key in model.sizes}
        answers = runtime.predict(name, model.feeds(0, **sizes))
        assert all(np.isfinite(answer).all() for answer in answers.values())
    assert runtime.stats()["kernels_compiled"] == compiled


def _hot(tmp_path: Path, tiny_model: Path) -> tuple[whitebox.Runtime, Any]:
    runtime = whitebox.Runtime(tmp_path)
    runtime.register(tiny_model, "tiny")
    return runtime, runtime._serve("tiny", None)


def test_a_hot_shape_gets_kernels_of_its_own(tmp_path: Path, tiny_model: Path) -> None:
    runtime, served = _hot(tmp_path, tiny_model)
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    with runtime:
        first = runtime.predict("tiny", {"x": x})["y"]
        general = served.find({"x": (5, 4)})
        assert general.general
        for _ in range(2):
            np.testing.assert_array_equal(runtime.predict("tiny", {"x": x})["y"], first)
        assert runtime.preparer.background.wait(120)
        special = served.find({"x": (5, 4)})
        assert special is not general and not special.general
        later = runtime.predict("tiny", {"x": x})["y"]
        np.testing.assert_allclose(later, first, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(runtime.predict("tiny", {"x": x})["y"], later)


def test_explain_names_what_is_compiled_for_each_shape(tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        two (float[N, 2, 5, 5] x, float[2, 2, 3, 3] w) => (float y, float t) {
           y = Conv(x, w)
           t = Tanh(x)
        }
    """)
    with whitebox.Runtime(tmp_path) as runtime:
        runtime.register(model, "two")
        explanation = runtime.explain("two")
        assert explanation.compiled_per_shape == ("Conv",)
        assert "compiled for each shape\n       1× Conv\n" in str(explanation)


def test_a_shape_that_is_not_hot_keeps_what_it_has(tmp_path: Path, tiny_model: Path) -> None:
    runtime, served = _hot(tmp_path, tiny_model)
    x = np.ones((6, 4), np.float32)
    with runtime:
        runtime.predict("tiny", {"x": x})
        runtime.predict("tiny", {"x": x})
        assert runtime.preparer.background.wait(120)
        assert served.find({"x": (6, 4)}).general
        # The shape that it was registered for has kernels of its own from the start.
        runtime.predict("tiny", {"x": x[:1]})
        assert not served.find({"x": (1, 4)}).general


def test_another_process_finds_the_family(tmp_path: Path, tiny_model: Path) -> None:
    runtime, _ = _hot(tmp_path, tiny_model)
    runtime.close()
    with whitebox.Runtime(tmp_path) as second:
        for rows in (2, 3, 9):
            second.predict("tiny", {"x": np.ones((rows, 4), np.float32)})
        assert second.stats()["kernels_compiled"] == 0

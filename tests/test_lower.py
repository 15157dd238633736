"""Lowering to kernels: ONNX's own operator cases, compiled, against their expected results."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from whitebox.compiler.lower import lower
from whitebox.compiler.supported import OPS, TEMPLATE_OPS, lowerable
from whitebox.compiler.target import host_target
from whitebox.ir import onnx_io, ops
from whitebox.ir.graph import (
    CONSTANT,
    INPUT,
    OUTPUT,
    Graph,
    Model,
    Node,
    constant,
    input_node,
    output,
)
from whitebox.ir.onnx_schema import evaluate, evaluate_graph
from whitebox.ir.types import TensorType
from whitebox.passes.rewrite import rewrite
from whitebox.passes.rules.recurrent import recurrent_rules

tvm = pytest.importorskip("tvm")

TARGET = host_target(2)

# What runs by default: of the dozens of near copies that a family has, one or two.
_SAMPLE = re.compile(
    r"test_(add_bcast|sub_uint8|div_int8|mod_mixed_sign_int32|mod_int64_fmod|pow_types_int64_float32"
    r"|relu|clip_default_inbounds|hardswish|gelu_tanh_1|mish|softplus|erf|where_example|isnan|isinf"
    r"|round|sign|cast_FLOAT_to_FLOAT16|max_float16|equal_bool|and_bcast3v2d|bitshift_left_uint8"
    r"|transpose_all_permutations_4|concat_3d_axis_1|concat_3d_axis_negative_2|slice_neg_steps|slice"
    r"|pad|edge_pad|reflect_pad|wrap_pad|constant_pad_axes|gather_1|gather_negative_indices"
    r"|gather_elements_1|gathernd_example_int32_batch_dim1|tile|expand_dim_changed|split_equal_parts_2d"
    r"|depthtospace_crd_mode|spacetodepth|onehot_with_negative_axis|triu_neg|eyelike_with_dtype"
    r"|reversesequence_batch|reduce_mean_keepdims_random|reduce_max_do_not_keepdims_random"
    r"|reduce_log_sum_exp_negative_axes_keepdims_random|reduce_l2_default_axes_keepdims_random"
    r"|argmax_keepdims_random_select_last_index|argmin_no_keepdims_example|globalaveragepool"
    r"|softmax_axis_0|softmax_axis_2|logsoftmax_axis_1|layer_normalization_4d_axis1"
    r"|instancenorm_example|group_normalization_epsilon|batchnorm_example|lrn|l2normalization_axis_0"
    r"|resize_upsample_scales_nearest|resize_upsample_scales_linear|resize_downsample_sizes_cubic"
    r"|resize_upsample_sizes_nearest_ceil_half_pixel|quantizelinear_axis|dequantizelinear"
    r"|dynamicquantizelinear|qlinearmatmul_2D_uint8_float32|matmulinteger|matmul_4d|matmul_bcast"
    r"|gemm_all_attributes|gemm_transposeB|conv_with_strides_padding|basic_conv_with_padding"
    r"|conv_with_autopad_same|convtranspose_pads|maxpool_2d_pads|maxpool_2d_uint8"
    r"|averagepool_2d_ceil|gru_defaults|lstm_bidirectional|cumsum_2d_axis_0|scatternd_add"
    r"|scatter_elements_with_axis|convinteger_with_padding|qlinearconv)"
)


def aligned(array: Any) -> np.ndarray:
    """A copy at a 64-byte boundary, as kernels expect their arguments."""
    source = np.asarray(array)
    raw = np.zeros(source.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    result = raw[start : start + source.nbytes].view(source.dtype).reshape(source.shape)
    result[...] = source
    return result


def run(body: Graph, feeds: list[np.ndarray]) -> list[np.ndarray]:
    """Compile a body and run it."""
    device = tvm.target.Target({"kind": "llvm", "mcpu": TARGET.mcpu, "num-cores": TARGET.threads})
    kernel = tvm.compile(lower(body, TARGET, "kernel"), target=device)["kernel"]
    types = [node.tensor for _, node in body.model.outputs]
    results = [aligned(np.full(t.dims, 7).astype(t.dtype)) for t in types]
    kernel(*map(aligned, feeds), *results)
    return results


def body_of(inputs: list[Node], *outputs: Node) -> Graph:
    model = Model(
        "body",
        tuple((f"x{k}", node) for k, node in enumerate(inputs)),
        tuple((f"y{k}", node) for k, node in enumerate(outputs)),
    )
    return Graph([model])


def placeholder(position: int, *shape: int, dtype: str = "float32") -> Node:
    return input_node(position, TensorType(dtype, shape))


@cache
def cases() -> list[Any]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_model_tests(kind="node")


def array_of(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def specialised(graph: Graph, feeds: list[Any]) -> tuple[Graph, list[Any]]:
    """A case with static shapes: static operands become constants, the rest kernel inputs."""
    static = {
        source
        for node in graph.nodes
        for position, source in enumerate(node.inputs)
        if position in ops.traits(node.op).static_inputs
    }
    new: dict[Node, Node] = {}
    inputs, arguments = [], []
    for (_, node), feed in zip(graph.model.inputs, feeds, strict=True):
        if node in static:
            new[node] = constant(np.asarray(feed))
            continue
        new[node] = input_node(len(inputs), TensorType(node.tensor.dtype, np.shape(feed)))
        inputs.append(new[node])
        arguments.append(feed)

    def build(node: Node, sources: tuple[Node | None, ...]) -> Node:
        if node in new:
            return new[node]
        if node.op in (CONSTANT, INPUT):
            return node
        rebuilt = ops.rebuild(node, sources)
        known = [source for source in sources if source is not None]
        if node.op == "Shape":
            return constant(evaluate(rebuilt, [np.zeros(known[0].tensor.dims, np.float32)])[0])
        if known and node.op != OUTPUT and all(source.is_constant for source in known):
            values = [None if source is None else source.value for source in sources]
            folded = evaluate(rebuilt, values)
            if len(folded) == 1 and isinstance(folded[0], np.ndarray):
                return constant(folded[0])
        return rebuilt

    folded = graph.map(build)
    # Constants that are data, not static operands, are arguments of a kernel.
    moved: dict[Node, Node] = {}
    for node in folded.nodes:
        static_positions = ops.traits(node.op).static_inputs
        for position, source in enumerate(node.inputs):
            if source is None or not source.is_constant or position in static_positions:
                continue
            if source.tensor.size > 1 and source not in moved:
                moved[source] = input_node(len(inputs), source.tensor)
                inputs.append(moved[source])
                arguments.append(source.value)
    replaced: dict[Node, Node] = {}
    for node in folded.nodes:
        static_positions = ops.traits(node.op).static_inputs
        sources = [
            source
            if source is None
            else replaced[source]
            if position in static_positions
            else moved.get(source, replaced[source])
            for position, source in enumerate(node.inputs)
        ]
        replaced[node] = node.with_inputs(sources)
    outputs = [replaced[node] for _, node in folded.model.outputs]
    return body_of(inputs, *outputs), arguments


def compile_case(case: Any) -> str:
    """Compile and compare one of ONNX's cases; "ok", or why it is not for the compiler."""
    for inputs, expected in case.data_sets:
        try:
            graph = onnx_io.load(case.model, "case")
            body, feeds = specialised(graph, list(map(array_of, inputs)))
            body = rewrite(body, recurrent_rules(TARGET.lanes))
        except Exception as error:
            return f"not imported: {error}"
        computed = [node for node in body.nodes if node.op not in (INPUT, CONSTANT, OUTPUT)]
        reasons = [reason for node in computed if (reason := lowerable(node)) is not None]
        if reasons or not computed:
            return reasons[0] if reasons else "nothing to compute"
        for got, want in zip(run(body, feeds), map(array_of, expected), strict=True):
            assert got.shape == np.shape(want)
            # Half precision has steps of 1e-3; what is not rounded in between differs by a few.
            least = 4e-3 if got.dtype == np.float16 else 1e-3
            np.testing.assert_allclose(
                got, want, rtol=max(case.rtol or 0, least), atol=max(case.atol or 0, 1e-5)
            )
    return "ok"


def sampled() -> list[str]:
    return sorted(case.name for case in cases() if _SAMPLE.fullmatch(case.name))


@pytest.mark.parametrize("name", sampled())
def test_onnx_case(name: str) -> None:
    (case,) = (case for case in cases() if case.name == name)
    assert compile_case(case) == "ok"


@pytest.mark.slow
def test_every_onnx_case_that_is_lowerable() -> None:
    outcomes: Counter[str] = Counter()
    failures = []
    for case in cases():
        try:
            outcomes[compile_case(case)] += 1
        except Exception as error:
            failures.append(f"{case.name}: {str(error).strip()[:120]}")
    print(*(f"{count:5} {reason}" for reason, count in outcomes.most_common()), sep="\n")
    assert not failures, "\n".join(failures)
    assert outcomes["ok"] >= 1000


def test_supported_is_what_has_an_emitter() -> None:
    from whitebox.compiler.lower.templates import TEMPLATES
    from whitebox.compiler.lower.value import EMITTERS

    assert not OPS - set(EMITTERS)
    assert not TEMPLATE_OPS - set(TEMPLATES)
    assert not OPS & TEMPLATE_OPS


def test_several_results_of_several_shapes() -> None:
    x = placeholder(0, 3, 40)
    total = ops.node("ReduceSum", x, constant(np.array([1])), keepdims=0)
    value = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32)
    doubled, summed = run(body_of([x], ops.node("Add", x, x), total), [value])
    np.testing.assert_allclose(doubled, value + value)
    np.testing.assert_allclose(summed, value.sum(1), rtol=1e-5)


def test_data_indices_out_of_range_stay_inside() -> None:
    data, where = placeholder(0, 5, 3), placeholder(1, 4, dtype="int64")
    value = np.arange(15, dtype=np.float32).reshape(5, 3)
    (got,) = run(
        body_of([data, where], ops.node("Gather", data, where, axis=0)),
        [value, np.array([7, -1, -99, 1 << 31])],
    )
    assert got.shape == (4, 3)
    np.testing.assert_array_equal(got[1], value[4])
    assert np.isin(got, value).all()


def test_integer_division_by_zero_does_not_trap() -> None:
    a, b = placeholder(0, 4, dtype="int32"), placeholder(1, 4, dtype="int32")
    quotient, rest = ops.node("Div", a, b), ops.node("Mod", a, b)
    lowest = np.iinfo(np.int32).min
    feeds = [np.array([7, lowest, -7, 5], np.int32), np.array([0, -1, 2, -1], np.int32)]
    divided, _ = run(body_of([a, b], quotient, rest), feeds)
    np.testing.assert_array_equal(divided[2:], [-3, -5])


@pytest.mark.parametrize("op", ["GRU", "LSTM", "RNN"])
@pytest.mark.parametrize(
    "batch, hidden, attrs",
    [
        (2, 21, {}),
        (1, 5, {"direction": "reverse"}),
        (5, 64, {"direction": "bidirectional"}),
        (7, 80, {"linear_before_reset": 1}),
    ],
)
def test_recurrent_layer(op: str, batch: int, hidden: int, attrs: dict[str, Any]) -> None:
    """Sizes that are no multiple of a vector or a tile, with states given; serial and shared."""
    rows, states = {"GRU": (3, 1), "LSTM": (4, 2), "RNN": (1, 1)}[op]
    rows *= hidden
    if op != "GRU":
        attrs = {name: value for name, value in attrs.items() if name == "direction"}
    directions = 2 if attrs.get("direction") == "bidirectional" else 1
    shapes = [(5, batch, 7), (directions, rows, 7), (directions, rows, hidden)]
    shapes += [(directions, 2 * rows), *[(directions, batch, hidden)] * states]
    inputs = [placeholder(k, *shape) for k, shape in enumerate(shapes)]
    rng = np.random.default_rng(0)
    feeds = [(rng.standard_normal(shape) / 3).astype(np.float32) for shape in shapes]
    given = (*inputs[:4], None, *inputs[4:])
    layer = ops.node(op, *given, hidden_size=hidden, outputs=1 + states, **attrs)
    body = body_of(inputs, *(output(layer, k) for k in range(1 + states)))
    want = evaluate(layer, [*feeds[:4], None, *feeds[4:]])
    made = rewrite(body, recurrent_rules(TARGET.lanes))
    for got in (run(made, feeds), run(made, feeds), list(evaluate_graph(made, feeds).values())):
        for one, other in zip(got, want, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", ["GRU", "LSTM", "RNN"])
@pytest.mark.parametrize("layout", [0, 1])
def test_recurrent_layer_over_no_steps(op: str, layout: int) -> None:
    """No results, and the states as they were given or zero."""
    rows, states = {"GRU": (12, 1), "LSTM": (16, 2), "RNN": (4, 1)}[op]
    x, state = ((3, 0, 5), (3, 2, 4)) if layout else ((0, 3, 5), (2, 3, 4))
    shapes = [x, (2, rows, 5), (2, rows, 4), state]
    inputs = [placeholder(k, *shape) for k, shape in enumerate(shapes)]
    attrs = {"hidden_size": 4, "direction": "bidirectional", "layout": layout}
    layer = ops.node(op, *inputs[:3], None, None, inputs[3], outputs=1 + states, **attrs)
    feeds = [np.ones(shape, np.float32) for shape in shapes]
    y, h, *c = evaluate(layer, [*feeds[:3], None, None, feeds[3]])
    assert y.shape == ((3, 0, 2, 4) if layout else (0, 2, 3, 4))
    np.testing.assert_array_equal(h, feeds[3])
    assert all(not cell.any() and cell.shape == state for cell in c) and len(c) == states - 1


@pytest.mark.parametrize(
    "batch, rows, keys, size, width, mask",
    [
        ((2, 3), 13, 21, 16, 32, None),
        ((2, 3), 7, 64, 32, 16, (2, 1, 1, 64)),
        ((2,), 50, 50, 64, 64, (50, 50)),
        ((1, 4), 1, 200, 16, 16, (4, 1, 200)),
        ((3,), 40, 333, 32, 48, (3, 40, 1)),
    ],
)
@pytest.mark.parametrize("nan_to_zero", [0, 1])
def test_attention(
    batch: tuple[int, ...], rows: int, keys: int, size: int, width: int, mask: Any, nan_to_zero: int
) -> None:
    """Whole tiles and not, masks of every kind; a row that is masked out whole."""
    shapes = [(*batch, rows, size), (*batch, keys, size), (*batch, keys, width)]
    shapes += [] if mask is None else [mask]
    rng = np.random.default_rng(0)
    feeds = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    if mask is not None:
        feeds[3][..., 0, -keys // 2 :] = -np.inf
        if nan_to_zero:
            feeds[3][..., 0, :] = -np.inf
    inputs = [placeholder(k, *shape) for k, shape in enumerate(shapes)]
    node = ops.node("whitebox.Attention", *inputs, scale=0.3, nan_to_zero=nan_to_zero)
    with np.errstate(invalid="ignore"):
        (want,) = evaluate(node, feeds)
    (got,) = run(body_of(inputs, node), feeds)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_overlapping_vectors_never_read_what_they_have_written() -> None:
    """Rows of 18 end in a vector that overlaps another, in arrays that TVM would like to share."""
    x, w, mask = placeholder(0, 6, 8), placeholder(1, 8, 18), placeholder(2, 18)
    scores = ops.node("Add", ops.node("MatMul", x, w), mask)
    shares = ops.node("Softmax", scores, axis=-1)
    mixed = ops.node("MatMul", shares, ops.node("Transpose", w, perm=(1, 0)))
    rng = np.random.default_rng(0)
    feeds = [rng.standard_normal(n.tensor.dims).astype(np.float32) for n in (x, w, mask)]
    powers = np.exp(feeds[0] @ feeds[1] + feeds[2])
    want = powers / powers.sum(-1, keepdims=True) @ feeds[1].T
    (got,) = run(body_of([x, w, mask], mixed), feeds)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_chain_of_shared_values_compiles_in_linear_size() -> None:
    x = placeholder(0, 64)
    y = x
    for _ in range(24):
        y = ops.node("Mul", ops.node("Tanh", y), y)
    value = np.linspace(-1, 1, 64, dtype=np.float32)
    want = value
    for _ in range(24):
        want = np.tanh(want) * want
    np.testing.assert_allclose(run(body_of([x], y), [value])[0], want, atol=1e-6)


@pytest.mark.parametrize("channels", [3, 16, 20, 33])
def test_pack_and_unpack_channels(channels: int) -> None:
    """NCHW to NCHWc and back, as Pad, Reshape, Transpose and Slice write it."""
    blocks = -(-channels // 16)
    x = placeholder(0, 2, channels, 5, 7)
    pads = constant(np.array([0, 0, 0, 0, 0, blocks * 16 - channels, 0, 0]))
    split = ops.node("Reshape", ops.node("Pad", x, pads), constant(np.array([2, blocks, 16, 5, 7])))
    packed = ops.node("Transpose", split, perm=(0, 1, 3, 4, 2))
    value = np.random.default_rng(0).standard_normal((2, channels, 5, 7)).astype(np.float32)
    (got,) = run(body_of([x], packed), [value])
    padded = np.zeros((2, blocks * 16, 5, 7), np.float32)
    padded[:, :channels] = value
    np.testing.assert_array_equal(got, padded.reshape(2, blocks, 16, 5, 7).transpose(0, 1, 3, 4, 2))
    y = placeholder(0, 2, blocks, 5, 7, 16)
    whole = ops.node("Reshape", ops.node("Transpose", y, perm=(0, 1, 4, 2, 3)),
                     constant(np.array([2, blocks * 16, 5, 7])))  # fmt: skip
    back = ops.node("Slice", whole, *(constant(np.array([v])) for v in (0, channels, 1)))
    np.testing.assert_array_equal(run(body_of([y], back), [got])[0], value)


@pytest.mark.parametrize("shape", [(17, 33), (64, 128), (1, 1), (300, 5)])
def test_transpose_of_any_shape(shape: tuple[int, int]) -> None:
    x = placeholder(0, *shape)
    value = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    (got,) = run(body_of([x], ops.node("Transpose", x, perm=(1, 0))), [value])
    np.testing.assert_array_equal(got, value.T)


@pytest.mark.parametrize("groups", [2, 3, 4])
@pytest.mark.parametrize(("each", "size"), [(12, (7, 9)), (17, (1, 5)), (34, (4, 4))])
def test_channel_shuffle_into_blocks(groups: int, each: int, size: tuple[int, int]) -> None:
    """Transpose, Reshape and Pack as one loop nest."""
    channels = groups * each
    x = input_node(0, TensorType("float32", (1, groups, each, *size)))
    turned = ops.node("Transpose", x, perm=(0, 2, 1, 3, 4))
    shape = constant(np.array([1, channels, *size], np.int64))
    body = body_of([x], ops.node("whitebox.Pack", ops.node("Reshape", turned, shape), block=16))
    value = np.random.default_rng(0).standard_normal(x.tensor.dims).astype(np.float32)
    (got,) = run(body, [value])
    plain = np.zeros((1, -(-channels // 16) * 16, *size), np.float32)
    plain[:, :channels] = value.swapaxes(1, 2).reshape(1, channels, *size)
    blocks = plain.reshape(1, -1, 16, *size)
    np.testing.assert_array_equal(got, np.moveaxis(blocks, 2, -1))


@pytest.mark.parametrize("width", [1, 5, 16, 37])
def test_rows_are_looked_up_as_vectors(width: int) -> None:
    table = input_node(0, TensorType("float32", (9, width)))
    index = input_node(1, TensorType("int64", (2, 13)))
    body = body_of([table, index], ops.node("Relu", ops.node("Gather", table, index, axis=0)))
    random = np.random.default_rng(0)
    rows = random.standard_normal((9, width)).astype(np.float32)
    at = random.integers(-9, 9, (2, 13))
    (got,) = run(body, [rows, at])
    np.testing.assert_array_equal(got, np.maximum(rows[at], 0))


def test_convolution_with_an_epilogue() -> None:
    x, w = placeholder(0, 1, 3, 9, 9), placeholder(1, 8, 3, 3, 3)
    conv = ops.node("Conv", x, w, strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1))
    rng = np.random.default_rng(0)
    feeds = [rng.standard_normal(n.tensor.dims).astype(np.float32) for n in (x, w)]
    result = ops.node("Mul", conv, ops.node("Sigmoid", conv))
    (got,) = run(body_of([x, w], result), feeds)
    (plain,) = evaluate(conv, feeds)
    np.testing.assert_allclose(got, plain / (1 + np.exp(-plain)), rtol=1e-4, atol=1e-5)


def test_unknown_operators_and_dtypes_are_refused_with_a_reason() -> None:
    text = placeholder(0, 2, dtype="string")
    assert "string" in str(lowerable(ops.node("Equal", text, text)))
    free = input_node(0, TensorType("float32", ("n",)))
    assert "not known" in str(lowerable(ops.node("Relu", free)))
    assert "NonZero" in str(lowerable(ops.node("NonZero", placeholder(0, 3))))

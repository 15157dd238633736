"""ONNX in and out: real and legacy models, and files that are not what they should be."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.parser
import onnxruntime
import pytest
from onnx.backend.test.loader import load_model_tests

from benchmarks.weights import randomised
from whitebox.errors import InvalidModel, UnsupportedOperator
from whitebox.ir import onnx_io, onnx_schema, onnx_wire
from whitebox.ir.graph import Graph
from whitebox.ir.types import TensorType
from whitebox.passes import optimize
from whitebox.passes.fold import specialize

DATA = Path(onnx.__file__).parent / "backend/test/data"
LIGHT = sorted((DATA / "light").glob("*.onnx"))

CHAIN = """
<ir_version: 8, opset_import: ["" : 17]>
chain (float[N, 3] x) => (float[N, 3] y)
<float[3] w = {1, 2, 3}>
{ t = Mul (x, w)  y = Relu (t) }
"""


def model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(text)


def run(graph: Graph, *feeds: Any) -> list[Any]:
    return list(onnx_schema.evaluate_graph(graph, feeds).values())


def by_onnxruntime(proto: onnx.ModelProto, *feeds: np.ndarray) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return session.run(None, dict(zip([i.name for i in session.get_inputs()], feeds, strict=True)))


# What the file says.


def test_path_bytes_and_proto_give_the_same_graph(tmp_path: Path) -> None:
    proto = model(CHAIN)
    proto.metadata_props.add(key="author", value="me")
    proto.producer_name, proto.doc_string = "tool", "a chain"
    file = tmp_path / "my chain (v2).onnx"
    onnx.save(proto, file)
    graph = onnx_io.load(file)
    assert graph == onnx_io.load(str(file)) == onnx_io.load(proto.SerializeToString())
    assert graph == onnx_io.load(proto) and onnx_io.load(proto, "other").model.name == "other"
    assert graph.model.name == "my-chain-v2" and onnx_io.load(proto).model.name == "model"
    assert graph.model.metadata == {
        "author": "me",
        "producer": "tool",
        "opset": "ai.onnx 17",
        "doc": "a chain",
    }
    assert [(name, str(node.type)) for name, node in graph.model.inputs] == [("x", "f32[N,3]")]


def test_an_initialized_input_is_a_constant() -> None:
    proto = model(CHAIN)
    info = onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [3])
    proto.graph.input.append(info)
    assert onnx_io.load(proto) == onnx_io.load(model(CHAIN))


def test_nodes_may_be_in_any_order() -> None:
    proto = model(CHAIN)
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))
    assert onnx_io.load(proto) == onnx_io.load(model(CHAIN))


def test_minus_one_is_a_free_dimension() -> None:
    proto = model(CHAIN)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert str(onnx_io.load(proto).model.inputs[0][1].type) == "f32[?,3]"


def test_functions_are_inlined() -> None:
    graph = onnx_io.load(
        model(
            """
            <ir_version: 9, opset_import: ["" : 17, "mine" : 1]>
            f (float[4] x) => (float[4] y) { y = mine.twice <slope = 0.5> (x) }
            <domain: "mine", opset_import: ["" : 13, "mine" : 1]>
            twice <slope> (a) => (b) { c = mine.once <alpha: float = @slope> (a)  b = Add (c, c) }
            <domain: "mine", opset_import: ["" : 13]>
            once <alpha: float = 0.1> (a) => (b) { b = LeakyRelu <alpha: float = @alpha> (a) }
            """
        )
    )
    assert [node.op for node in graph.nodes] == ["Input", "LeakyRelu", "Add"]
    (got,) = run(graph, np.array([-2, -1, 0, 1], np.float32))
    assert got.tolist() == [-2, -1, 0, 2]


def test_bodies_list_what_they_capture() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    nest (bool c, bool d, float[2] x, float[2] z) => (float[2] y)
    {
        k = Constant <value = float[1] {3}> ()
        y = If (c) <
            then_branch = t () => (a) {
                a = If (d) <then_branch = tt () => (p) { p = Mul (x, k) },
                            else_branch = te () => (q) { q = Sub (z, k) }>
            },
            else_branch = e () => (b) { b = Neg (z) }>
    }
    """
    graph = onnx_io.load(model(text))
    (branching,) = [node for node in graph.nodes if node.op == "If"]
    assert branching.attr("n_captured") == 3, "d, x and z; constants live inside"
    x, z = np.array([1, 2], np.float32), np.array([10, 20], np.float32)
    for c, d in ((True, True), (True, False), (False, True)):
        feeds = np.array(c), np.array(d), x, z
        expected = by_onnxruntime(model(text), *feeds)
        assert np.array_equal(run(graph, *feeds), expected)
        assert np.array_equal(by_onnxruntime(onnx_io.dump(graph), *feeds), expected)


def test_what_only_training_needs_is_gone() -> None:
    graph = onnx_io.load(
        model(
            """
            <ir_version: 8, opset_import: ["" : 17]>
            t (float[2, 3] x) => (float[2, 3] y, bool[2, 3] mask)
            { a = Identity (x)  b, mask = Dropout (a)  y = Identity (b) }
            """
        )
    )
    (_, y), (_, mask) = graph.model.outputs
    assert y is graph.model.inputs[0][1]
    assert run(graph, np.ones((2, 3), np.float32))[1].all() and str(mask.type) == "bool[2,3]"


# Legacy forms mean what they meant.

LEGACY = {
    "softmax over all trailing axes": "(float[2,3,4] x) => (y) { y = Softmax <axis = 1> (x) }",
    "slice": """(float[2,3,4] x) => (y)
        { y = Slice <axes = [1], starts = [1], ends = [9]> (x) }""",
    "squeeze and unsqueeze": """(float[2,1,4] x) => (y)
        { a = Squeeze <axes = [1]> (x)  y = Unsqueeze <axes = [0]> (a) }""",
    "clip": "(float[2,3,4] x) => (y) { y = Clip <min = -0.5> (x) }",
    "pad": "(float[2,3] x) => (y) { y = Pad <pads = [0,1,0,2], value = 7.0> (x) }",
    "top-k": "(float[2,5] x) => (y, i) { y, i = TopK <k = 2> (x) }",
    "upsample": """(float[1,2,3,4] x) => (y)
        { y = Upsample <mode = "nearest", scales = [1.0, 1.0, 2.0, 2.5]> (x) }""",
    "reduce": "(float[2,3,4] x) => (y) { y = ReduceMean <axes = [1], keepdims = 0> (x) }",
    "split": "(float[2,6] x) => (a, b) { a, b = Split <axis = 1, split = [2, 4]> (x) }",
    "equal split": "(float[2,6] x) => (a, b, c) { a, b, c = Split <axis = 1> (x) }",
    "batch normalization": """(float[2,3,4] x) => (y)
        <float[3] s = {1,2,3}, float[3] b = {0,1,0}, float[3] m = {1,0,1}, float[3] v = {1,2,4}>
        { y = BatchNormalization <momentum = 0.8> (x, s, b, m, v) }""",
}


@pytest.mark.parametrize("text", LEGACY.values(), ids=LEGACY.keys())
def test_legacy_forms(text: str) -> None:
    proto = model(f'<ir_version: 4, opset_import: ["" : 8]> legacy {text}')
    graph = onnx_io.load(proto)
    newest = [onnx_schema.form(node.op) for node in graph.nodes if node.version]
    assert [form.since for form in newest if form] == [n.version for n in graph.nodes if n.version]
    (_, source), *_ = graph.model.inputs
    x = np.random.default_rng(0).standard_normal(source.tensor.dims).astype(np.float32)
    got, expected = run(graph, x), by_onnxruntime(proto, x)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# ONNX's own cases, with expected results.


def check_case(proto: onnx.ModelProto, feeds: list[Any], expected: list[Any]) -> None:
    """Load, evaluate and write again; types must hold for the results."""
    graph = onnx_io.load(proto.SerializeToString())
    results = run(graph, *feeds)
    for (name, node), got, wanted in zip(graph.model.outputs, results, expected, strict=True):
        check_value(name, got, wanted)
        if isinstance(node.type, TensorType) and node.type.shape is not None:
            known = [dim if isinstance(dim, int) else None for dim in node.type.shape]
            assert len(known) == np.ndim(got), name
            assert all(a in (None, b) for a, b in zip(known, np.shape(got), strict=True)), name
    again = onnx_io.load(onnx_io.dump(graph))
    for (name, _), got, wanted in zip(
        again.model.outputs, run(again, *feeds), expected, strict=True
    ):
        check_value(name, got, wanted)


def check_value(name: str, got: Any, wanted: Any) -> None:
    if isinstance(wanted, list):
        assert len(got) == len(wanted), name
        for a, b in zip(got, wanted, strict=True):
            check_value(name, a, b)
    elif wanted is None:
        assert got is None, name
    elif wanted.dtype.kind in "OUb":
        assert np.array_equal(got, wanted), name
    else:
        assert got.dtype == wanted.dtype, name
        wide = np.complex128 if wanted.dtype.kind == "c" else np.float64
        np.testing.assert_allclose(
            got.astype(wide), wanted.astype(wide), rtol=2e-3, atol=1e-5, err_msg=name
        )


FILES = [
    case
    for kind in ("simple", "pytorch-converted", "pytorch-operator")
    for case in load_model_tests(kind=kind)
    if case.model_dir and "gradient" not in case.name
]


def read_value(file: Path, type: onnx.TypeProto) -> Any:
    if type.WhichOneof("value") == "sequence_type":
        return onnx.numpy_helper.to_list(onnx.SequenceProto.FromString(file.read_bytes()))
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes()))


@pytest.mark.parametrize("case", FILES, ids=lambda case: case.name)
def test_onnx_cases_from_files(case: Any) -> None:
    folder = Path(case.model_dir)
    proto = onnx.load(folder / "model.onnx")
    data = folder / "test_data_set_0"
    feeds = [
        read_value(data / f"input_{at}.pb", info.type)
        for at, info in enumerate(proto.graph.input)
        if (data / f"input_{at}.pb").exists()
    ]
    expected = [
        read_value(data / f"output_{at}.pb", info.type)
        for at, info in enumerate(proto.graph.output)
    ]
    check_case(proto, feeds, expected)


# Cases that need Pillow, preview operators, random results, a form that is refused, or more digits
# than float16 has.
NOT_MEANT = ("image_decoder", "flexattention", "bernoulli", "scan_sum", "silu_fp16_expanded")


@pytest.mark.slow
def test_onnx_operator_cases() -> None:
    """Every operator case that onnx generates."""
    cases = [c for c in load_model_tests(kind="node") if not any(w in c.name for w in NOT_MEANT)]
    assert len(cases) > 1800
    for case in cases:
        (feeds, expected), *_ = case.data_sets
        check_case(case.model, [plain(v) for v in feeds], [plain(v) for v in expected])


def plain(value: Any) -> Any:
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


# Whole networks.


@pytest.mark.parametrize("file", LIGHT, ids=lambda file: file.stem)
def test_light_networks(file: Path) -> None:
    # As shipped every weight is 0.02: the logits are huge and equal, and rounding decides.
    proto = randomised(onnx.load(file)) if "squeezenet" in file.stem else onnx.load(file)
    graph = onnx_io.load(proto)
    (_, source), *_ = graph.model.inputs
    x = np.random.default_rng(0).standard_normal(source.tensor.dims).astype(np.float32)
    (expected,) = by_onnxruntime(proto, x)
    if "vgg" not in file.stem:  # whose products take numpy seconds
        np.testing.assert_allclose(run(graph, x)[0], expected, rtol=1e-3, atol=1e-6)
    written = onnx_io.dump(graph)
    assert onnx_io.load(written) == graph
    np.testing.assert_allclose(by_onnxruntime(written, x)[0], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["magika", "mtcnn-pnet", "ppocr-cls"])
def test_optimized_models_run_elsewhere(name: str, real_model: Callable[[str], Path]) -> None:
    """What `whitebox opt` writes, onnxruntime runs: blocked data and fused groups included."""
    file = real_model(name)
    graph = onnx_io.load(file)
    rng = np.random.default_rng(0)
    shapes = {"magika": (2, 2048), "mtcnn-pnet": (1, 40, 36, 3), "ppocr-cls": (1, 3, 48, 192)}
    (input_name, source), *_ = graph.model.inputs
    if source.tensor.dtype == "float32":
        x = rng.random(shapes[name], np.float32)
    else:
        x = rng.integers(0, 256, shapes[name], np.dtype(source.tensor.dtype))
    fast = optimize(specialize(graph, {input_name: shapes[name]}))
    assert any(node.op == "whitebox.Fused" for node in fast.nodes)
    expected = by_onnxruntime(onnx.load(file), x)
    for got in (run(fast, x), by_onnxruntime(onnx_io.dump(fast), x)):
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_large_weights_are_views_of_the_file() -> None:
    """Wherever they are: initializers, constants; in any of the ways that ONNX stores numbers."""
    weights = np.random.default_rng(0).standard_normal((300, 300)).astype(np.float32)
    proto = model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        big (float[1, 300] x) => (y)
        { b = Constant <value = float[1] {0}> ()  t = MatMul (x, a)  y = MatMul (t, b)
          r = RandomNormal <shape = [2]> () }
        """
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "a"))
    proto.graph.node[0].attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(weights + 1))
    proto.graph.output.add(name="r")
    data = proto.SerializeToString()
    graph = onnx_io.load(data)
    assert graph == onnx_io.load(data)
    values = [n.value for n in graph.nodes if n.is_constant]
    assert np.array_equal(values[0], weights) and np.array_equal(values[1], weights + 1)
    whole = np.frombuffer(data, np.uint8)
    assert all(np.shares_memory(value, whole) for value in values)
    proto.graph.initializer[0].ClearField("raw_data")
    proto.graph.initializer[0].float_data.extend(weights.reshape(-1).tolist())
    assert np.array_equal(run(onnx_io.load(proto), weights[:1])[0], run(graph, weights[:1])[0])


# Files that are not what they should be.


def refused(source: Any, *words: str, error: type[InvalidModel] = InvalidModel) -> None:
    with pytest.raises(error) as caught:
        onnx_io.load(source)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert message.isprintable() and len(message) < 700


def edited(change: Callable[[onnx.ModelProto], Any], text: str = CHAIN) -> onnx.ModelProto:
    proto = model(text)
    change(proto)
    return proto


@pytest.mark.parametrize("data", [b"", b"\0" * 64, b"PK\3\4 not a model", os.urandom(4096)])
def test_files_that_are_no_model(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "junk.onnx"
    file.write_bytes(data)
    refused(file, "junk.onnx")
    refused(data)


def test_truncated_files(tmp_path: Path) -> None:
    data = model(CHAIN).SerializeToString()
    file = tmp_path / "cut.onnx"
    for end in range(0, len(data) - 1, 5):
        file.write_bytes(data[:end])
        refused(file, "cut.onnx")


def test_no_such_file(tmp_path: Path) -> None:
    refused(tmp_path / "none.onnx", "none.onnx", "check the path")
    refused(tmp_path, "check the path")


HOSTILE: dict[str, tuple[Callable[[onnx.ModelProto], Any], tuple[str, ...]]] = {
    "cycle": (
        lambda m: m.graph.node[0].input.__setitem__(0, "y"),
        ("cycle", "'t' (Mul)", "'y' (Relu)"),
    ),
    "missing value": (
        lambda m: m.graph.node[0].input.__setitem__(0, "lost"),
        ("'t' (Mul)", "'lost'"),
    ),
    "missing output": (lambda m: m.graph.output[0].__setattr__("name", "lost"), ("'lost'",)),
    "name defined twice": (lambda m: m.graph.node[0].output.__setitem__(0, "x"), ("'x'", "twice")),
    "no outputs": (lambda m: m.graph.ClearField("output"), ("no outputs",)),
    "no graph": (lambda m: m.ClearField("graph"), ("no graph",)),
    "newer IR": (lambda m: m.__setattr__("ir_version", 99), ("IR version 99", "upgrade onnx")),
    "newer opset": (
        lambda m: m.opset_import[0].__setattr__("version", 99),
        ("opset 99", "upgrade onnx"),
    ),
    "no opset": (lambda m: m.ClearField("opset_import"), ("no opset",)),
    "wrong rank": (lambda m: m.graph.initializer[0].dims.__setitem__(0, 5), ("'w'", "5")),
    "negative dimension": (lambda m: m.graph.initializer[0].dims.__setitem__(0, -3), ("'w'", "-3")),
    "huge dimension": (lambda m: m.graph.initializer[0].dims.append(2**50), ("'w'",)),
    "unknown dtype": (lambda m: m.graph.initializer[0].__setattr__("data_type", 99), ("'w'", "99")),
    "unknown attribute": (
        lambda m: m.graph.node[1].attribute.add(name="gain", type=2),
        ("'y' (Relu)", "'gain'"),
    ),
    "types that do not fit": (
        lambda m: m.graph.input[0].type.tensor_type.__setattr__("elem_type", 7),
        ("'t' (Mul)", "i64[N,3]"),
    ),
    "too few inputs": (lambda m: m.graph.node[1].ClearField("input"), ("'y' (Relu)", "inputs")),
}


@pytest.mark.parametrize(("change", "words"), HOSTILE.values(), ids=HOSTILE.keys())
def test_broken_models(change: Callable[[onnx.ModelProto], Any], words: tuple[str, ...]) -> None:
    refused(edited(change), *words)


def test_unknown_operators_are_named() -> None:
    def change(node: int, **fields: str) -> onnx.ModelProto:
        proto = model(CHAIN)
        for field, value in fields.items():
            setattr(proto.graph.node[node], field, value)
        return proto

    words = ("'y'", "Relux", "opset 17", "ai.onnx")
    refused(change(1, op_type="Relux"), *words, error=UnsupportedOperator)
    custom = change(1, domain="com.acme", op_type="Turbo", name="n\x1b[31m1")
    refused(custom, "Turbo", "'com.acme'", error=UnsupportedOperator)
    # Operators of our own do not come from files.
    refused(change(1, domain="whitebox", op_type="Fused"), "Fused", error=UnsupportedOperator)


def test_a_function_that_calls_itself() -> None:
    refused(
        model(
            """
            <ir_version: 9, opset_import: ["" : 17, "mine" : 1]>
            f (float[4] x) => (y) { y = mine.g (x) }
            <domain: "mine", opset_import: ["" : 17, "mine" : 1]> g (a) => (b) { b = mine.g (a) }
            """
        ),
        "'g'",
        "calls itself",
    )


def test_functions_that_unfold_without_end() -> None:
    levels = "".join(
        f"""<domain: "mine", opset_import: ["" : 17, "mine" : 1]>
        f{level} (a) => (b) {{ c = mine.f{level + 1} (a)  b = mine.f{level + 1} (c) }}"""
        for level in range(40)
    )
    text = f"""<ir_version: 9, opset_import: ["" : 17, "mine" : 1]>
        bomb (float[4] x) => (y) {{ y = mine.f0 (x) }} {levels}
        <domain: "mine", opset_import: ["" : 17]> f40 (a) => (b) {{ b = Relu (a) }}"""
    refused(model(text), "100000 nodes")


def test_sparse_tensors() -> None:
    proto = model(CHAIN.replace("float[3] w = {1, 2, 3}", "float[1] unused = {0}"))
    values = onnx.numpy_helper.from_array(np.array([1, 3], np.float32), "w")
    indices = onnx.numpy_helper.from_array(np.array([0, 2], np.int64))
    proto.graph.sparse_initializer.add(values=values, indices=indices, dims=[3])
    (got,) = run(onnx_io.load(proto), np.ones((1, 3), np.float32))
    assert got.tolist() == [[1, 0, 3]]
    for dims in ([2], [-1], [2**40, 2**40]):
        del proto.graph.sparse_initializer[0].dims[:]
        proto.graph.sparse_initializer[0].dims.extend(dims)
        refused(proto, "'w'")


def external(folder: Path, location: str, **entries: Any) -> Path:
    """A model whose weight is the external file `location`."""
    proto = model(CHAIN)
    (weight,) = proto.graph.initializer
    weight.ClearField("float_data")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        weight.external_data.add(key=key, value=str(value))
    file = folder / "external.onnx"
    file.write_bytes(proto.SerializeToString())
    return file


def test_external_data(tmp_path: Path) -> None:
    weights = np.array([9, 1, 2, 3], np.float32)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(b"xyz" + weights.tobytes())
    file = external(tmp_path, "sub/w.bin", offset=7, length=12)
    assert onnx_io.load(file) == onnx_io.load(model(CHAIN))
    refused(file.read_bytes(), "'w'", "give the model by its path")


@pytest.mark.parametrize(
    ("location", "entries", "words"),
    [
        ("w.bin", {"length": 8}, ("'w'", "8 bytes")),
        ("w.bin", {"offset": 4}, ("w.bin", "ends before")),
        ("w.bin", {"offset": -4}, ("'w'", "-4")),
        ("w.bin", {"offset": "x"}, ("'w'",)),
        ("gone.bin", {}, ("gone.bin", "missing")),
        ("", {}, ("outside",)),
        ("../secret.bin", {}, ("../secret.bin", "outside")),
        ("a/../../secret.bin", {}, ("outside",)),
        ("/etc/passwd", {}, ("/etc/passwd", "outside")),
        ("link.bin", {}, ("link.bin", "outside")),
        ("linked/secret.bin", {}, ("outside",)),
        ("w.bin\0.txt", {}, ("outside",)),
    ],
)
def test_external_data_that_is_wrong(
    location: str, entries: dict[str, Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "w.bin").write_bytes(bytes(12))
    (tmp_path / "secret.bin").write_bytes(bytes(12))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "linked").symlink_to(tmp_path)
    refused(external(folder, location, **entries), "external.onnx", *words)


def test_low_precision_and_text_tensors_come_back() -> None:
    proto = model(
        """
        <ir_version: 12, opset_import: ["" : 23]>
        t () => (string[2] s, int4[3] i, bfloat16[2] b)
        <string[2] s0 = {"a", "ü"}>
        { s = Reshape (s0, k)  i = Reshape (i0, k3)  b = Reshape (b0, k) }
        """
    )
    tensors = {
        "k": onnx.numpy_helper.from_array(np.array([2], np.int64)),
        "k3": onnx.numpy_helper.from_array(np.array([3], np.int64)),
        "i0": onnx.helper.make_tensor("i0", onnx.TensorProto.INT4, [3], [-8, 7, 1]),
        "b0": onnx.helper.make_tensor("b0", onnx.TensorProto.BFLOAT16, [2], [1.5, -2.0]),
    }
    for name, tensor in tensors.items():
        tensor.name = name
        proto.graph.initializer.append(tensor)
    graph = onnx_io.load(proto)
    s, i, b = run(graph)
    assert s.tolist() == ["a", "ü"] and i.tolist() == [-8, 7, 1] and b.tolist() == [1.5, -2.0]
    assert onnx_io.load(onnx_io.dump(graph)) == graph


def test_long_lists_stay_where_they_are_and_tensors_beside_them_do_not() -> None:
    numbers = np.arange(30_000, dtype=np.float32)
    listed = onnx.helper.make_node("Constant", [], ["a"], value_floats=numbers.tolist())
    held = onnx.helper.make_node("Constant", [], ["b"], value=onnx.numpy_helper.from_array(numbers))
    added = onnx.helper.make_node("Add", ["a", "b"], ["y"])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [len(numbers)])
    graph = onnx.helper.make_graph([listed, held, added], "lists", [], [y])
    data = onnx.helper.make_model(graph).SerializeToString()
    aside = onnx_wire.Aside()
    assert len(onnx_wire.set_aside(data, aside)) > numbers.nbytes
    assert [bytes(view) for view in aside.views.values()] == [numbers.tobytes()]
    (answer,) = onnx_schema.evaluate_graph(onnx_io.load(data, "lists"), {}).values()
    np.testing.assert_array_equal(answer, 2 * numbers)

"""Files of one outline become what they would become by themselves, or graphs of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest

from benchmarks.models import path
from benchmarks.weights import randomised
from whitebox.compiler.structure import Structured
from whitebox.ir import onnx_io
from whitebox.ir.onnx_import import Importer
from whitebox.runtime.reading import ModelReader

NET = """
<ir_version: 10, opset_import: ["" : 21, "ai.onnx.ml" : 3]>
net (float[N, 4] x) => (float[N, M] y) {{ {body} }}"""


def file(body: str, about: str = "", **initializers: Any) -> bytes:
    model = onnx.parser.parse_model(NET.format(body=body))
    model.doc_string = about
    for name, values in initializers.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
    return bytes(model.SerializeToString())


def floats(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def reader(tmp_path: Path) -> ModelReader:
    return ModelReader(tmp_path)


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the graphs that have been built."""
    names: list[str] = []
    build = Importer.graph

    def watched(self: Importer, name: str, *rest: Any) -> Any:
        names.append(name)
        return build(self, name, *rest)

    monkeypatch.setattr(Importer, "graph", watched)
    yield names


def assert_read_right(reader: ModelReader, data: bytes) -> None:
    model, signature, metadata = reader.read(data, "m", "f32")
    graph = onnx_io.load(data, "m")
    alone = Structured.of(graph, "f32")
    assert model.digest == alone.digest
    assert [w.digest for w in model.weights] == [w.digest for w in alone.weights]
    assert [w.type for w in model.weights] == [w.type for w in alone.weights]
    assert model.structure.graph == alone.structure.graph
    assert model.graph == alone.graph
    assert model.structure.names == alone.structure.names
    assert metadata == graph.model.metadata
    assert [spec.name for spec in signature[0]] == [name for name, _ in graph.model.inputs]
    assert [spec.type for spec in signature[1]] == [node.type for _, node in graph.model.outputs]


LINEAR = "p = MatMul(x, w) y = Add(p, b)"
HELD = (
    "c = Constant <value = float[1, 4] {1, 2, 3, 4}> () p = Mul(x, w) y = Concat <axis = 0> (p, c)"
)
TWICE = "p = MatMul(x, v) q = MatMul(p, w) y = MatMul(q, u)"


def test_a_variant_is_read_without_a_graph(reader: ModelReader, imported: list[str]) -> None:
    first = file(LINEAR, w=floats(0, 4, 3), b=floats(1, 3))
    other = file(LINEAR, "another", w=floats(2, 4, 3), b=floats(3, 3))
    reader.read(first, "first", "f32")
    imported.clear()
    model, _, metadata = reader.read(other, "other", "bf16")
    fresh = ModelReader(reader._folder).read(other, "fresh", "f32")[0]
    assert imported == []
    assert (metadata["doc"], model.precision) == ("another", "bf16")
    assert fresh.digest == model.digest
    assert fresh.structure.graph == model.structure.graph
    assert_read_right(reader, other)


PAIRS = {
    "other weights": (
        file(LINEAR, w=floats(0, 4, 3), b=floats(1, 3)),
        file(LINEAR, w=floats(2, 4, 3), b=floats(3, 3)),
    ),
    "a scalar": (file("y = Mul(x, s)", s=np.float32(1)), file("y = Mul(x, s)", s=np.float32(2))),
    "a shape": (
        file("y = Reshape(x, s)", s=np.array([-1, 2])),
        file("y = Reshape(x, s)", s=np.array([2, -1])),
    ),
    "tied weights": (
        file(TWICE, v=floats(0, 4, 4), w=floats(1, 4, 4), u=floats(0, 4, 4)),
        file(TWICE, v=floats(0, 4, 4), w=floats(0, 4, 4), u=floats(1, 4, 4)),
    ),
    "tied weights that are not": (
        file(TWICE, v=floats(0, 4, 4), w=floats(1, 4, 4), u=floats(0, 4, 4)),
        file(TWICE, v=floats(0, 4, 4), w=floats(1, 4, 4), u=floats(2, 4, 4)),
    ),
    "one data in two shapes": (
        file("p = MatMul(x, v) y = MatMul(p, w)", v=floats(0, 4, 2), w=floats(0, 2, 4)),
        file("p = MatMul(x, v) y = MatMul(p, w)", v=floats(1, 4, 2), w=floats(2, 2, 4)),
    ),
    "an order of weights": (
        file(TWICE, u=floats(0, 4, 4), v=floats(1, 4, 4), w=floats(2, 4, 4)),
        file(TWICE, u=floats(5, 4, 4), v=floats(3, 4, 4), w=floats(4, 4, 4)),
    ),
    "scales": (
        file("y = Resize(x, , s)", s=np.array([1, 2], np.float32)),
        file("y = Resize(x, , s)", s=np.array([1, 3], np.float32)),
    ),
    "a range": (
        file("y = Gather(x, i)", i=np.arange(400)),
        file("y = Gather(x, i)", i=np.arange(400)[::-1].copy()),
    ),
    "what becomes a range": (
        file("y = Gather(x, i)", i=np.arange(400)[::-1].copy()),
        file("y = Gather(x, i)", i=np.arange(400)),
    ),
    "a constant in the graph": (
        file(HELD,
             w=np.array([[4, 3, 2, 1]], np.float32)),
        file(HELD,
             w=np.array([[1, 2, 3, 4]], np.float32)),
    ),
    "coefficients": (
        file("p = ai.onnx.ml.Scaler <offset = [1.0], scale = [2.0]> (x) y = Mul(p, s)",
             s=np.float32(1)),
        file("p = ai.onnx.ml.Scaler <offset = [1.0], scale = [2.0]> (x) y = Mul(p, s)",
             s=np.float32(3)),
    ),
    "what nobody reads": (
        file("y = Neg(x)", unused=floats(0, 3)), file("y = Neg(x)", unused=floats(1, 3)),
    ),
    "random numbers": (
        file("r = RandomNormalLike(x) y = Mul(r, w)", w=floats(0, 4)),
        file("r = RandomNormalLike(x) y = Mul(r, w)", w=floats(1, 4)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_a_file_is_read_as_if_alone(reader: ModelReader, pair: tuple[bytes, bytes]) -> None:
    for data in (*pair, *pair):
        assert_read_right(reader, data)


@pytest.mark.parametrize(
    "body",
    ["y = Gemm(x, w, b)", "p = MatMul(x, w) y = Add(p, b)", "p = MatMul(x, w) y = Add(b, p)"],
)
def test_a_single_intercept_is_a_weight(
    reader: ModelReader, imported: list[str], body: str
) -> None:
    first, other = (
        reader.read(file(body, w=floats(i, 4, 1), b=floats(i + 9, 1)), "m", "f32")[0]
        for i in (0, 1)
    )
    assert len(first.weights) == 2
    assert first.digest == other.digest
    assert len(imported) == 2  # both by the first


@pytest.mark.parametrize(
    "body",
    [
        "p = MatMul(x, w) y = Mul(p, b)",
        "p = Add(x, b) y = MatMul(p, w)",
        "p = MatMul(x, w) q = Add(p, b) y = Mul(q, b)",
    ],
)
def test_a_single_number_that_passes_may_decide_by_is_not(reader: ModelReader, body: str) -> None:
    for seed in (0, 1):
        assert_read_right(reader, file(body, w=floats(seed, 4, 1), b=floats(seed + 9, 1)))
    model, _, _ = reader.read(file(body, w=floats(2, 4, 1), b=floats(3, 1)), "m", "f32")
    assert len(model.weights) == 1


def test_graphs_may_have_names_of_their_own(reader: ModelReader, imported: list[str]) -> None:
    for seed in (0, 1):
        model = onnx.load_from_string(file(LINEAR, w=floats(seed, 4, 3), b=floats(seed + 9, 3)))
        model.graph.name, model.graph.doc_string = f"graph {seed}", f"made at {seed}"
        reader.read(bytes(model.SerializeToString()), "m", "f32")
    assert len(imported) == 2  # both by the first


def test_a_network_with_other_weights(reader: ModelReader, imported: list[str]) -> None:
    proto = onnx.load(path("light_squeezenet"))
    files = [randomised(proto, seed).SerializeToString() for seed in range(2)]
    reader.read(files[0], "net", "f32")
    imported.clear()
    reader.read(files[1], "net", "f32")
    assert imported == []
    assert_read_right(reader, files[1])


def test_a_damaged_outline_is_made_again(reader: ModelReader) -> None:
    data = file(LINEAR, w=floats(0, 4, 3), b=floats(1, 3))
    reader.read(data, "m", "f32")
    (stored,) = reader._folder.rglob("*.outline")
    content = bytearray(stored.read_bytes())
    for damaged in (content[:50], content.replace(b"MatMul", b"MatMuX")):
        stored.write_bytes(damaged)
        assert_read_right(ModelReader(reader._folder), data)
        assert stored.read_bytes() == content

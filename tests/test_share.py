"""Two spellings of one model are one: one structure, one plan, the same nodes, the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import whitebox
from tests.test_passes import random_graph, seeded
from whitebox.compiler.structure import take_weights
from whitebox.ir import onnx_io, onnx_schema
from whitebox.ir.graph import Graph
from whitebox.passes import recording, share
from whitebox.passes.verify import verify

WIDTH = 24

# What two exporters may make of one network.
ONE = """
<ir_version: 10, opset_import: ["" : 21]>
one (float[N, 24] x) => (float[N, 24] y)
<float[24, 24] w = {0}, float[24] b = {0}, float half = {0.5}>
{
   p = MatMul(x, w)
   s = Add(p, b)
   r = Relu(s)
   t = Add(r, p)
   y = Mul(t, half)
}
"""
OTHER = """
<ir_version: 10, opset_import: ["" : 21]>
other (float[batch, 24] data) => (float[batch, 24] result)
<float[24, 24] kernel = {0}, float[24] bias = {0}, int64[1] first = {0}, int64[2] same = {0, 24}>
{
   half = Constant<value_float = 0.5>()
   d = Cast<to = 1>(data)
   i = Identity(d)
   p = MatMul(i, kernel)
   row = Unsqueeze(bias, first)
   flat = Squeeze(row, first)
   s = Add(flat, p)
   z = Dropout(s)
   r = Relu(z)
   c = Concat<axis = 1>(r)
   t = Sum(p, c)
   v = Reshape(t, same)
   result = Mul(half, v)
}
"""


def spelled(text: str, seed: int) -> onnx.ModelProto:
    """The model with its two weights drawn from a seed."""
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(seed)
    for tensor, dims in zip(model.graph.initializer, [(WIDTH, WIDTH), (WIDTH,)], strict=False):
        array = random.standard_normal(dims).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return model


def test_two_spellings_have_the_same_nodes_and_structure() -> None:
    one, other = (onnx_io.load(spelled(text, 1)) for text in (ONE, OTHER))
    assert one.digest != other.digest
    with recording() as decisions:
        first, second = share(one), share(other)
    assert {decision.action for decision in decisions} >= {"swapped", "cast_same", "one_or_two"}
    # The free dimension has two names; that is all that is left.
    assert [node.op for node in first.nodes] == [node.op for node in second.nodes]
    structures = [take_weights(graph)[0] for graph in (first, second)]
    assert structures[0].digest == structures[1].digest
    pairs = zip(structures[0].nodes, structures[1].nodes, strict=True)
    assert all(node is same for node, same in pairs)
    renamed = OTHER.replace("batch", "N")
    assert share(onnx_io.load(spelled(renamed, 1))).nodes == first.nodes


def test_variants_have_one_structure() -> None:
    graphs = [share(onnx_io.load(spelled(ONE, seed))) for seed in range(8)]
    assert len({graph.digest for graph in graphs}) == 8
    assert len({take_weights(graph)[0].digest for graph in graphs}) == 1


TWINS = """
<ir_version: 10, opset_import: ["" : 21]>
twins (float[N, 24] x) => (float[N, 24] y, float[N, 24] z)
<float[24, 24] v = {0}, float[24, 24] w = {0}>
{
   a = MatMul(x, v)
   b = MatMul(x, w)
   y = Add(a, b)
   z = Relu(b)
}
"""


def test_twins_that_differ_in_weights_stay_in_place() -> None:
    """Were they ordered by their bytes, `z` would read the first in one variant, not in another."""
    structures = set()
    for seed in range(8):
        model = onnx.parser.parse_model(TWINS)
        random = np.random.default_rng(seed)
        for tensor in model.graph.initializer:
            array = random.standard_normal((WIDTH, WIDTH)).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        structures.add(take_weights(share(onnx_io.load(model)))[0].digest)
    assert len(structures) == 1


def test_the_second_spelling_compiles_nothing_and_stores_nothing(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)
    with whitebox.Runtime(tmp_path) as runtime:
        runtime.register(spelled(ONE, 1), "one")
        plans = sorted(tmp_path.glob("plans/*/*"))
        again = runtime.register(spelled(OTHER, 1), "other")
        assert (again.kernels_compiled, again.new_bytes) == (0, 0)
        assert sorted(tmp_path.glob("plans/*/*")) == plans
        (y,) = runtime.predict("one", {"x": x}).values()
        (result,) = runtime.predict("other", {"data": x}).values()
    np.testing.assert_array_equal(result, y)
    session = onnxruntime.InferenceSession(spelled(OTHER, 1).SerializeToString())
    np.testing.assert_allclose(y, session.run(None, {"data": x})[0], rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_graph(), st.integers(0, 9))
def test_sharing_changes_no_bit_and_is_done_once(graph: Graph, seed: int) -> None:
    shared = share(graph)
    verify(shared)
    assert share(shared) == shared
    feeds = seeded(graph, seed)
    actual = onnx_schema.evaluate_graph(shared, feeds)
    for name, value in onnx_schema.evaluate_graph(graph, feeds).items():
        np.testing.assert_array_equal(actual[name], value)

"""partition: stages together compute what each graph computes alone, and what is common once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whitebox.compiler.partition import Partition, computed, partition
from whitebox.ir import onnx_schema, ops
from whitebox.ir.graph import Graph, Model, Node, constant, input_node, output
from whitebox.ir.types import TensorType

X = input_node(0, TensorType("float32", (4, 6)))
Y = input_node(1, TensorType("float32", (4, 6)))


def graph_of(*outputs: Node) -> Graph:
    named = tuple((f"y{i}", node) for i, node in enumerate(outputs))
    return Graph([Model("m", (("x", X), ("y", Y)), named)])


def weights(seed: int) -> Node:
    return constant(np.random.default_rng(seed).standard_normal((6, 6)).astype(np.float32))


def run(parts: Partition, graphs: Sequence[Graph]) -> list[list[np.ndarray]]:
    """The outputs of each graph, computed stage by stage."""
    random = np.random.default_rng(0)
    values = {node: random.standard_normal((4, 6)).astype(np.float32) for node in (X, Y)}
    for stage in (parts.shared, *parts.own):
        if stage is not None:
            given = [values[node] for node in stage.reads]
            results = onnx_schema.evaluate_graph(stage.graph, given).values()
            values.update(zip(stage.writes, results, strict=True))
    return [[values[node] for _, node in graph.model.outputs] for graph in graphs]


def expected(graphs: Sequence[Graph]) -> list[list[np.ndarray]]:
    random = np.random.default_rng(0)
    inputs = [random.standard_normal((4, 6)).astype(np.float32) for _ in range(2)]
    return [list(onnx_schema.evaluate_graph(graph, inputs).values()) for graph in graphs]


def test_heads_on_one_encoder_share_it() -> None:
    encoder = ops.node("Tanh", ops.node("MatMul", X, weights(0)))
    graphs = [graph_of(ops.node("MatMul", encoder, weights(seed))) for seed in (1, 2, 3)]
    parts = partition(graphs)
    assert parts.shared is not None
    assert parts.shared.writes == (encoder,)
    assert [stage and stage.reads for stage in parts.own] == [(encoder,)] * 3
    assert [len(computed(stage.graph)) for stage in parts.own if stage] == [1, 1, 1]


def test_what_nobody_shares_is_not_cut() -> None:
    graphs = [graph_of(ops.node("MatMul", X, weights(seed))) for seed in (1, 2)]
    parts = partition(graphs)
    assert parts.shared is None
    assert [stage and stage.graph.model.outputs[0][1].op for stage in parts.own] == ["MatMul"] * 2


def test_equal_models_leave_nothing_of_their_own() -> None:
    parts = partition([graph_of(ops.node("Exp", X))] * 2)
    assert parts.shared is not None
    assert parts.own == (None, None)


def test_results_of_one_node_stay_together() -> None:
    pair = ops.node("Split", X, outputs=2, axis=1, num_outputs=2)
    graphs = [graph_of(ops.node("Exp", output(pair, index))) for index in (0, 1)]
    parts = partition(graphs)
    assert parts.shared is not None
    assert parts.shared.writes == (output(pair, 0), output(pair, 1))
    for got, alone in zip(run(parts, graphs), expected(graphs), strict=True):
        np.testing.assert_array_equal(got, alone)


@st.composite
def several_graphs(draw: st.DrawFn) -> list[Graph]:
    """Graphs over one pool of nodes, so that they overlap in all sorts of ways."""
    pool: list[Node] = [X, Y, constant(np.ones((4, 6), np.float32))]
    for _ in range(draw(st.integers(1, 15))):
        source = draw(st.sampled_from(pool[-6:]))
        match draw(st.sampled_from(("unary", "binary", "product", "split", "view"))):
            case "unary":
                made = ops.node(draw(st.sampled_from(("Relu", "Tanh", "Neg"))), source)
            case "binary":
                made = ops.node("Add", source, draw(st.sampled_from(pool)))
            case "product":
                made = ops.node("MatMul", source, weights(draw(st.integers(0, 2))))
            case "split":
                halves = ops.node("Split", source, outputs=2, axis=0, num_outputs=2)
                parts = [output(halves, i) for i in draw(st.permutations((0, 1)))]
                made = ops.node("Concat", *parts, axis=0)
            case _:
                shape = constant(np.array([6, 4]))
                back = constant(np.array([4, 6]))
                made = ops.node("Reshape", ops.node("Reshape", source, shape), back)
        pool.append(made)
    ends = st.lists(st.sampled_from(pool), min_size=1, max_size=3)
    return [graph_of(*draw(ends)) for _ in range(draw(st.integers(1, 4)))]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(several_graphs())
def test_stages_compute_what_each_graph_does_and_nothing_twice(graphs: list[Graph]) -> None:
    parts = partition(graphs)
    for got, alone in zip(run(parts, graphs), expected(graphs), strict=True):
        for value, other in zip(got, alone, strict=True):
            np.testing.assert_array_equal(value, other)
    distinct = {node for graph in graphs for node in computed(graph)}
    stages = [stage for stage in (parts.shared, *parts.own) if stage is not None]
    assert sum(len(computed(stage.graph)) for stage in stages) == len(distinct)

"""Ensembles of trees mean what the operator's definition says, whatever the passes make of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from whitebox.compiler.target import host_target
from whitebox.ir import onnx_io, onnx_schema
from whitebox.ir.graph import Graph
from whitebox.passes import optimize
from whitebox.passes.fold import specialize

FEATURES = 4
MODES = {
    "BRANCH_LEQ": np.less_equal,
    "BRANCH_LT": np.less,
    "BRANCH_GTE": np.greater_equal,
    "BRANCH_GT": np.greater,
    "BRANCH_EQ": np.equal,
    "BRANCH_NEQ": np.not_equal,
}
AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
# Few, so that values are often equal to a threshold.
LEVELS = np.array([-np.inf, -1.5, -0.5, -0.0, 0.0, 0.5, 1.5, np.inf], np.float32)


@dataclass(frozen=True)
class Leaf:
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Branch:
    mode: str
    feature: int
    threshold: float
    nan_is_true: bool
    true: Branch | Leaf
    false: Branch | Leaf


def grown(
    random: np.random.Generator, leaves: int, modes: list[str], results: int, skew: float = 0.5
) -> Branch | Leaf:
    """A random tree; the nearer `skew` is to 0 or 1, the deeper."""
    if leaves == 1:
        return Leaf(tuple(random.standard_normal(results).astype(np.float32).tolist()))
    left = int(np.clip(random.binomial(leaves, skew), 1, leaves - 1))
    return Branch(
        mode=modes[random.integers(len(modes))],
        feature=int(random.integers(FEATURES)),
        threshold=float(random.choice(LEVELS)),
        nan_is_true=bool(random.integers(2)),
        true=grown(random, left, modes, results, skew),
        false=grown(random, leaves - left, modes, results, skew),
    )


def found(tree: Branch | Leaf, row: np.ndarray) -> tuple[float, ...]:
    """The weights of the leaf that a row ends at."""
    while isinstance(tree, Branch):
        value = row[tree.feature]
        passed = MODES[tree.mode](value, np.float32(tree.threshold))
        passed = passed or (tree.nan_is_true and np.isnan(value))
        tree = tree.true if passed else tree.false
    return tree.weights


def answers(trees: list[Branch | Leaf], x: np.ndarray, aggregate: str) -> np.ndarray:
    """[rows, results] by the definition."""
    leaves = np.array([[found(tree, row) for tree in trees] for row in x], np.float64)
    combine = {"SUM": np.sum, "AVERAGE": np.mean, "MIN": np.min, "MAX": np.max}[aggregate]
    return np.asarray(combine(leaves, axis=1))


def flattened(tree: Branch | Leaf) -> list[Branch | Leaf]:
    below = (tree.true, tree.false) if isinstance(tree, Branch) else ()
    return [tree, *(node for child in below for node in flattened(child))]


def model(op: str, version: int, attributes: dict[str, Any]) -> Graph:
    """One operator on x [N, FEATURES]."""
    node = helper.make_node(op, ["x"], ["y"], domain="ai.onnx.ml", **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", FEATURES])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", version)]
    graph = helper.make_graph([node], "ml", [x], [y])
    return onnx_io.load(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def regressor(trees: list[Branch | Leaf], results: int, aggregate: str) -> Graph:
    """The trees as TreeEnsembleRegressor has them."""
    nodes: list[tuple[Any, ...]] = []
    targets: list[tuple[Any, ...]] = []
    for number, tree in enumerate(trees):
        ids = {id(node): k for k, node in enumerate(flattened(tree))}
        for k, node in enumerate(flattened(tree)):
            if isinstance(node, Branch):
                children = ids[id(node.true)], ids[id(node.false)]
                test = node.feature, node.mode, node.threshold, int(node.nan_is_true)
                nodes.append((number, k, *test, *children))
            else:
                nodes.append((number, k, 0, "LEAF", 0.0, 0, 0, 0))
                targets += [(number, k, r, weight) for r, weight in enumerate(node.weights)]
    names = "treeids nodeids featureids modes values missing_value_tracks_true truenodeids "
    names += "falsenodeids"
    attributes = {f"nodes_{name}": [n[k] for n in nodes] for k, name in enumerate(names.split())}
    for k, name in enumerate("treeids nodeids ids weights".split()):
        attributes[f"target_{name}"] = [target[k] for target in targets]
    more = {"n_targets": results, "aggregate_function": aggregate}
    return model("TreeEnsembleRegressor", 3, {**attributes, **more})


def ensemble(trees: list[Branch | Leaf], aggregate: str) -> Graph:
    """The trees as TreeEnsemble has them: of one result, and no tree is a mere leaf."""
    nodes = [node for tree in trees for node in flattened(tree)]
    branches = [node for node in nodes if isinstance(node, Branch)]
    leaves = [node for node in nodes if isinstance(node, Leaf)]
    place = {id(node): k for kind in (branches, leaves) for k, node in enumerate(kind)}

    def column(name: str, kind: type, values: list[Any]) -> onnx.TensorProto:
        return onnx.numpy_helper.from_array(np.array(values, kind), name)

    children: dict[str, list[int]] = {}
    for side in ("true", "false"):
        each = [getattr(node, side) for node in branches]
        children[f"nodes_{side}nodeids"] = [place[id(child)] for child in each]
        children[f"nodes_{side}leafs"] = [int(isinstance(child, Leaf)) for child in each]
    modes = [list(MODES).index(node.mode) for node in branches]
    return model(
        "TreeEnsemble",
        5,
        {
            "n_targets": 1,
            "aggregate_function": AGGREGATES.index(aggregate),
            "tree_roots": [place[id(tree)] for tree in trees],
            "nodes_featureids": [node.feature for node in branches],
            "nodes_modes": column("modes", np.uint8, modes),
            "nodes_splits": column("splits", np.float32, [node.threshold for node in branches]),
            "nodes_missing_value_tracks_true": [int(node.nan_is_true) for node in branches],
            "leaf_targetids": [0] * len(leaves),
            "leaf_weights": column("weights", np.float32, [node.weights[0] for node in leaves]),
            **children,
        },
    )


def rows_of(random: np.random.Generator, count: int) -> np.ndarray:
    """Rows of numbers that are often at a threshold, or no numbers."""
    return random.choice([*LEVELS, 0.1, np.nan], (count, FEATURES)).astype(np.float32)


def operators(graph: Graph) -> set[str]:
    bodies = [node.attr("body") for node in graph.nodes if node.op == "whitebox.Fused"]
    return {node.op for body in bodies for node in body.nodes}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10_000),
    leaves=st.lists(st.integers(1, 40), min_size=1, max_size=20),
    modes=st.lists(st.sampled_from(sorted(MODES)), min_size=1, max_size=6),
    results=st.integers(1, 3),
    aggregate=st.sampled_from(AGGREGATES),
    rows=st.sampled_from([1, 2, 3, 9, 20]),
    skew=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_random_trees_keep_their_meaning(
    seed: int,
    leaves: list[int],
    modes: list[str],
    results: int,
    aggregate: str,
    rows: int,
    skew: float,
) -> None:
    random = np.random.default_rng(seed)
    results = 1 if aggregate in ("MIN", "MAX") else results
    trees = [grown(random, count, modes, results, skew) for count in leaves]
    x = rows_of(random, rows)
    expected = answers(trees, x, aggregate)
    graphs = [regressor(trees, results, aggregate)]
    if results == 1 and min(leaves) > 1:
        graphs.append(ensemble(trees, aggregate))
    for graph in graphs:
        fast = optimize(specialize(graph, {"x": x.shape}))
        assert operators(fast) & {"whitebox.TreeScan", "whitebox.TreeWalk"}
        (actual,) = onnx_schema.evaluate_graph(fast, [x]).values()
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@functools.cache
def example(name: str) -> tuple[list[Branch | Leaf], int, str]:
    """Trees, the number of results, and the aggregate."""
    random = np.random.default_rng(7)
    modes = sorted(MODES)
    sizes, results, aggregate, skew = {
        "stump": ([2], 1, "SUM", 0.5),
        "mixed": ([*range(1, 24), 64, 3], 3, "AVERAGE", 0.5),
        "deep": ([*range(9, 31)], 2, "SUM", 0.05),
        "large": ([70, 90, 130], 1, "MIN", 0.5),
    }[name]
    return [grown(random, size, modes, results, skew) for size in sizes], results, aggregate


@pytest.mark.parametrize("rows", [1, 3, 20, 45])
@pytest.mark.parametrize("name", ["stump", "mixed", "deep", "large"])
def test_kernels_answer_by_the_definition(name: str, rows: int) -> None:
    pytest.importorskip("tvm")
    from tests.fused import fused, run

    trees, results, aggregate = example(name)
    x = rows_of(np.random.default_rng(rows), rows)
    graph = specialize(regressor(trees, results, aggregate), {"x": x.shape})
    lowered = fused(graph, host_target(2))
    (given_x,) = (node for _, node in lowered.model.inputs)
    actual = run(lowered, host_target(2), {given_x: x})
    np.testing.assert_allclose(actual, answers(trees, x, aggregate), rtol=1e-5, atol=1e-5)


def test_trees_are_scanned_unless_a_walk_has_few_steps_or_a_scan_no_lanes() -> None:
    random = np.random.default_rng(0)

    def chosen(leaves: int, count: int, rows: int, skew: float = 0.5) -> set[str]:
        trees = [grown(random, leaves, ["BRANCH_LEQ"], 1, skew) for _ in range(count)]
        fast = optimize(specialize(regressor(trees, 1, "SUM"), {"x": (rows, FEATURES)}))
        return operators(fast) & {"whitebox.TreeScan", "whitebox.TreeWalk"}

    assert chosen(31, 20, 1, 0.05) == chosen(31, 20, 100) == {"whitebox.TreeScan"}
    assert chosen(31, 1, 1, 0.05) == chosen(31, 20, 1) == {"whitebox.TreeWalk"}
    assert chosen(31, 1, 100) == {"whitebox.TreeScan"}
    assert chosen(1500, 2, 100) == {"whitebox.TreeWalk"}


def test_sets_of_values_are_left_to_the_reference() -> None:
    def column(kind: type, values: list[float]) -> onnx.TensorProto:
        return onnx.numpy_helper.from_array(np.array(values, kind), "column")

    attributes = {
        "n_targets": 1,
        "tree_roots": [0],
        "nodes_featureids": [0],
        "nodes_splits": column(np.float32, [0]),
        "nodes_modes": column(np.uint8, [len(MODES)]),
        "membership_values": column(np.float32, [1.5, -0.5, np.nan]),
        "leaf_targetids": [0, 0],
        "leaf_weights": column(np.float32, [1, 2]),
        "nodes_trueleafs": [1],
        "nodes_falseleafs": [1],
        "nodes_truenodeids": [0],
        "nodes_falsenodeids": [1],
    }
    x = np.array([[-0.5, 0, 0, 0], [0.5, 0, 0, 0]], np.float32)
    fast = optimize(specialize(model("TreeEnsemble", 5, attributes), {"x": x.shape}))
    (actual,) = onnx_schema.evaluate_graph(fast, [x]).values()
    np.testing.assert_allclose(actual, [[1.0], [2.0]])

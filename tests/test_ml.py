"""Operators of ai.onnx.ml, spelled out by rules, answer as onnxruntime does."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import whitebox
from whitebox.ir import onnx_io, onnx_schema
from whitebox.passes import optimize
from whitebox.passes.fold import specialize

onnxruntime = pytest.importorskip("onnxruntime")

FEATURES = 5


def model(op: str, outputs: dict[str, int], **attributes: Any) -> onnx.ModelProto:
    """One operator on x [N, FEATURES]; `outputs` maps names to element types."""
    node = helper.make_node(op, ["x"], list(outputs), domain="ai.onnx.ml", **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", FEATURES])
    found = [helper.make_tensor_value_info(name, type, None) for name, type in outputs.items()]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 3)]
    graph = helper.make_graph([node], "ml", [x], found)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def trees(count: int, depth: int, results: int, kind: str, seed: int) -> dict[str, Any]:
    """Attributes of random complete trees, with leaves at different depths."""
    random = np.random.default_rng(seed)
    nodes: dict[str, list[Any]] = {
        name: []
        for name in (
            "treeids nodeids featureids modes values truenodeids falsenodeids "
            "missing_value_tracks_true"
        ).split()
    }
    leaves: dict[str, list[Any]] = {n: [] for n in ("treeids", "nodeids", "ids", "weights")}
    for tree in range(count):
        size = 2**depth - 1
        for number in range(2 * size + 1):
            leaf = number >= size or (number > 0 and random.random() < 0.1)
            nodes["treeids"].append(tree)
            nodes["nodeids"].append(number)
            nodes["featureids"].append(int(random.integers(FEATURES)))
            nodes["modes"].append("LEAF" if leaf else "BRANCH_LEQ")
            nodes["values"].append(float(random.standard_normal()))
            nodes["truenodeids"].append(0 if leaf else 2 * number + 1)
            nodes["falsenodeids"].append(0 if leaf else 2 * number + 2)
            nodes["missing_value_tracks_true"].append(int(random.integers(2)))
            for result in range(results if leaf else 0):
                leaves["treeids"].append(tree)
                leaves["nodeids"].append(number)
                leaves["ids"].append(result)
                leaves["weights"].append(float(random.standard_normal()))
    named = {f"nodes_{name}": values for name, values in nodes.items()}
    return {**named, **{f"{kind}_{name}": values for name, values in leaves.items()}}


def reachable(attributes: dict[str, Any], kind: str) -> dict[str, Any]:
    """Only the nodes that a root leads to, renumbered: leaves may stand where children were."""
    modes = attributes["nodes_modes"]
    ids = list(zip(attributes["nodes_treeids"], attributes["nodes_nodeids"], strict=True))
    place = {key: index for index, key in enumerate(ids)}
    kept, pending = set(), [key for key in ids if key[1] == 0]
    while pending:
        key = pending.pop()
        kept.add(key)
        index = place[key]
        if modes[index] != "LEAF":
            for side in ("true", "false"):
                pending.append((key[0], attributes[f"nodes_{side}nodeids"][index]))
    out: dict[str, Any] = {}
    for name, values in attributes.items():
        stem = "nodes" if name.startswith("nodes_") else kind
        keys = zip(attributes[f"{stem}_treeids"], attributes[f"{stem}_nodeids"], strict=True)
        pairs = [(value, key) for value, key in zip(values, keys, strict=True) if key in kept]
        if name.endswith("nodeids"):
            # Numbered again within each tree, in the order in which they stood.
            ranks = {tree: sorted(n for t, n in kept if t == tree) for tree, _ in kept}
            pairs = [(ranks[key[0]].index(value), key) for value, key in pairs]
        out[name] = [value for value, _ in pairs]
    return out


def forest(count: int, depth: int, results: int, kind: str, seed: int = 0) -> dict[str, Any]:
    return reachable(trees(count, depth, results, kind, seed), kind)


FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
LINEAR = {"coefficients": [0.5, -1, 2, 0.1, 3] * 3, "intercepts": [0.1, 0.2, 0.3]}


def machine(sizes: list[int], kernel: str, **more: Any) -> dict[str, Any]:
    """Attributes of a support vector classifier with so many vectors a class."""
    random = np.random.default_rng(3)
    count, classes = sum(sizes), len(sizes)
    return {
        "classlabels_ints": list(range(10, 10 + classes)),
        "vectors_per_class": sizes,
        "support_vectors": random.standard_normal(count * FEATURES).tolist(),
        "coefficients": random.standard_normal((classes - 1) * count).tolist(),
        "rho": random.standard_normal(classes * (classes - 1) // 2).tolist(),
        "kernel_type": kernel,
        "kernel_params": [0.3, 0.5, 3.0],
        **more,
    }


VECTORS = machine([7], "RBF", coefficients=[0.5, -1, 2, 0.1, 3, -2, 1], rho=[0.25])
REGRESSOR = {
    name: VECTORS[name]
    for name in ("support_vectors", "coefficients", "rho", "kernel_type", "kernel_params")
}
CASES = {
    "svm-regressor": model("SVMRegressor", {"y": FLOAT}, n_supports=7, **REGRESSOR),
    **{
        f"svm-{kernel.lower()}-{len(sizes)}": model(
            "SVMClassifier", {"label": INT64, "scores": FLOAT}, **machine(sizes, kernel)
        )
        for kernel in ("RBF", "LINEAR", "POLY", "SIGMOID")
        for sizes in ([4, 6], [3, 5, 4, 2])
    },
    "svm-logistic": model(
        "SVMClassifier",
        {"label": INT64, "scores": FLOAT},
        **machine([4, 6], "RBF", post_transform="LOGISTIC"),
    ),
    "normalizer-l1": model("Normalizer", {"y": FLOAT}, norm="L1"),
    "normalizer-l2": model("Normalizer", {"y": FLOAT}, norm="L2"),
    "imputer": model(
        "Imputer", {"y": FLOAT}, imputed_value_floats=[1.0, 2, 3, 4, 5], replaced_value_float=-7.0
    ),
    "imputer-nan": model(
        "Imputer", {"y": FLOAT}, imputed_value_floats=[0.5], replaced_value_float=float("nan")
    ),
    "scaler": model("Scaler", {"y": FLOAT}, offset=[1.0, 2, 3, 4, 5], scale=[2.0, 0.5, 1, 3, 4]),
    "linear": model("LinearRegressor", {"y": FLOAT}, targets=3, **LINEAR),
    "classifier": model(
        "LinearClassifier",
        {"label": INT64, "scores": FLOAT},
        classlabels_ints=[7, 3, 5],
        post_transform="SOFTMAX",
        coefficients=[0.5, -1, 2, 0.1, 3, 1, 1, -1, 0, 0, 0, 2, 0, -2, 0.3],
        intercepts=[0.1, 0.2, 0.3],
    ),
    "one-tree": model(
        "TreeEnsembleRegressor", {"y": FLOAT}, n_targets=1, **forest(1, 4, 1, "target")
    ),
    "deep-tree": model(
        "TreeEnsembleRegressor", {"y": FLOAT}, n_targets=1, **forest(1, 12, 1, "target")
    ),
    "stumps": model(
        "TreeEnsembleRegressor",
        {"y": FLOAT},
        n_targets=2,
        base_values=[1.5, -1],
        **forest(9, 1, 2, "target"),
    ),
    "forest": model(
        "TreeEnsembleRegressor",
        {"y": FLOAT},
        n_targets=1,
        aggregate_function="AVERAGE",
        **forest(30, 6, 1, "target"),
    ),
    "tree-classes": model(
        "TreeEnsembleClassifier",
        {"label": INT64, "scores": FLOAT},
        classlabels_int64s=[4, 2, 9],
        post_transform="SOFTMAX",
        **forest(8, 4, 3, "class"),
    ),
    "binary": model(
        "TreeEnsembleClassifier",
        {"label": INT64, "scores": FLOAT},
        classlabels_int64s=[0, 1],
        post_transform="LOGISTIC",
        **forest(8, 4, 1, "class"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_answers_as_onnxruntime(name: str) -> None:
    proto = CASES[name]
    ours = whitebox.InferenceSession(proto)
    theirs = onnxruntime.InferenceSession(proto.SerializeToString())
    for rows in (1, 6, 40):
        x = np.random.default_rng(rows).standard_normal((rows, FEATURES)).astype(np.float32)
        if "tree" in name or name in ("forest", "imputer-nan"):
            x[rows // 2, 1:3] = np.nan
        if name == "imputer":
            x[rows // 2, 1:3] = -7
        feeds = {"x": x}
        for mine, peer in zip(ours.run(None, feeds), theirs.run(None, feeds), strict=True):
            assert mine.dtype == peer.dtype
            np.testing.assert_allclose(mine, peer.reshape(mine.shape), rtol=1e-4, atol=1e-5)
    assert not any("(host)" in step.label for step in ours.explain(feeds).steps)


def test_variants_of_a_tree_share_kernels(tmp_path: Any) -> None:
    """Other thresholds and leaves are other weights, not another structure."""
    with whitebox.Runtime(tmp_path / "home") as runtime:
        attributes = forest(3, 3, 1, "target", seed=1)
        first = model("TreeEnsembleRegressor", {"y": FLOAT}, n_targets=1, **attributes)
        assert runtime.register(first, "first").kernels_compiled > 0
        attributes["nodes_values"] = [value + 1 for value in attributes["nodes_values"]]
        other = model("TreeEnsembleRegressor", {"y": FLOAT}, n_targets=1, **attributes)
        assert runtime.register(other, "other").kernels_compiled == 0


@pytest.mark.parametrize(
    ("name", "rows", "op"),
    [
        ("one-tree", 1, "TreeWalk"),
        ("deep-tree", 40, "TreeWalk"),
        ("stumps", 1, "TreeScan"),
        ("stumps", 3, "TreeScan"),
        ("forest", 40, "TreeScan"),
    ],
)
def test_trees_mean_the_same_in_numpy_and_in_standard_operators(
    name: str, rows: int, op: str
) -> None:
    graph = onnx_io.load(CASES[name])
    fast = optimize(specialize(graph, {"x": (rows, FEATURES)}))
    bodies = [node.attr("body") for node in fast.nodes if node.op == "whitebox.Fused"]
    assert any(node.op == f"whitebox.{op}" for body in bodies for node in body.nodes)
    x = np.random.default_rng(rows).standard_normal((rows, FEATURES)).astype(np.float32)
    x[0, 1:3] = np.nan
    answers = [
        onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]
        for proto in (CASES[name], onnx_io.dump(fast))
    ]
    (here,) = onnx_schema.evaluate_graph(fast, [x]).values()
    np.testing.assert_allclose(answers[1], answers[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(here, answers[0], rtol=1e-4, atol=1e-5)

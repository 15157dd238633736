"""Models that peers answer in a few microseconds: there the way through Python is what counts.

A pure description. What enters: nothing. What leaves: `TINY`, as `benchmarks.operators` has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from benchmarks.operators import NORM, Dims, Operator, plain


def _linear(name: str, body: str, size: int, outputs: int, **weights: Dims) -> Operator:
    return Operator(name, "tiny", body, {"x": (1, size)}, (1, outputs), weights)


def _tree(depth: int, features: int = 10) -> Operator:
    """A full decision tree: node n's children are 2n+1 and 2n+2."""
    rng = np.random.default_rng(depth)
    inner, nodes = 2**depth - 1, 2 ** (depth + 1) - 1
    leaf = [number >= inner for number in range(nodes)]
    leaves = range(inner, nodes)
    attributes: dict[str, list[object]] = {
        "nodes_treeids": [0] * nodes,
        "nodes_nodeids": list(range(nodes)),
        "nodes_modes": ['"LEAF"' if end else '"BRANCH_LEQ"' for end in leaf],
        "nodes_featureids": [0 if end else int(rng.integers(features)) for end in leaf],
        "nodes_values": [0.0 if end else float(rng.normal()) for end in leaf],
        "nodes_truenodeids": [0 if end else 2 * n + 1 for n, end in enumerate(leaf)],
        "nodes_falsenodeids": [0 if end else 2 * n + 2 for n, end in enumerate(leaf)],
        "target_treeids": [0] * len(leaves),
        "target_nodeids": list(leaves),
        "target_ids": [0] * len(leaves),
        "target_weights": [float(rng.normal()) for _ in leaves],
    }
    spelled = ", ".join(f"{key} = [{', '.join(map(str, v))}]" for key, v in attributes.items())
    body = f"y = ai.onnx.ml.TreeEnsembleRegressor <n_targets = 1, {spelled}> (x)"
    return _linear(f"tree of depth {depth}", body, features, 1)


_MLP = "h = Gemm(x, w, b) r = Relu(h) z = Gemm(r, w2, b2) y = Softmax(z)"
_LAST = {"w2": (64, 8), "b2": (8,)}
_DEEP = "h = Gemm(x, w, b) r = Relu(h) i = Gemm(r, w2, b2) q = Relu(i) y = Gemm(q, w3, b3)"


def _deep(size: int, outputs: int, hidden: int) -> Operator:
    weights = {"w": (size, hidden), "b": (hidden,), "w2": (hidden, hidden), "b2": (hidden,)}
    return _linear(
        f"MLP {size}-{hidden}-{hidden}-{outputs}", _DEEP, size, outputs,
        **weights, w3=(hidden, outputs), b3=(outputs,),
    )  # fmt: skip


def _towers(rows: int, size: int) -> Operator:
    """Two inputs, each through a layer of its own, compared: a recommender's last step."""
    body = (
        "u = Gemm(x, w, b) v = Gemm(z, w2, b2) p = Mul(u, v) "
        "axes = Constant <value_ints = [1]> () y = ReduceSum <keepdims = 1> (p, axes)"
    )
    weights = {"w": (size, 16), "b": (16,), "w2": (size, 16), "b2": (16,)}
    inputs = {"x": (rows, size), "z": (rows, size)}
    return Operator(f"two towers {rows}×{size}", "tiny", body, inputs, (rows, 1), weights)


_ALL = (
    _linear("linear 16→1", "y = Gemm(x, w, b)", 16, 1, w=(16, 1), b=(1,)),
    _linear("linear 64→4", "y = Gemm(x, w, b)", 64, 4, w=(64, 4), b=(4,)),
    _linear("logistic 128→10", "z = Gemm(x, w, b) y = Softmax(z)", 128, 10, w=(128, 10), b=(10,)),
    _linear("MLP 32-64-8", _MLP, 32, 8, w=(32, 64), b=(64,), **_LAST),
    _linear("MLP 128-64-8", _MLP, 128, 8, w=(128, 64), b=(64,), **_LAST),
    _deep(20, 2, 32),
    _deep(64, 1, 64),
    _tree(3),
    _tree(6),
    _tree(10),
    plain("layer norm 1×128", "tiny", NORM, (1, 128), w=(128,), b=(128,)),
    plain("layer norm 16×128", "tiny", NORM, (16, 128), w=(128,), b=(128,)),
    Operator(
        "two inputs", "tiny", "s = Add(x, z) y = Relu(s)", {"x": (1, 64), "z": (1, 64)}, (1, 64),
    ),
    _towers(1, 32),
    _towers(8, 32),
)  # fmt: skip

TINY: Mapping[str, Operator] = MappingProxyType({made.name: made for made in _ALL})

"""Attendance pipelines: what is known of somebody to how often they come, from data with gaps.

Missing numbers filled in, all scaled; then principal components, distances to centres of clusters
and a forest's opinions, side by side; then boosted trees on the numbers and a line through all
features, added. The early stages are the same in every pipeline; the boosted trees and the line
have been fitted to a sample of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from benchmarks.many import data, proto
from benchmarks.many.recipes import Feeds

COMPONENTS, CLUSTERS, EARLY_TREES, OWN_TREES = 6, 24, 40, 24
MISSING, UNKNOWN = 0.05, -999.0
REQUESTS = 512


def build(files: Sequence[Path]) -> list[Feeds]:
    """Write the models; give requests."""
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.linear_model import Ridge

    people, visits = data.visits()
    target = np.log1p(visits)
    early = _Early(people, target)
    rng = np.random.default_rng(0)
    gaps = np.where(rng.random(people.shape) < MISSING, np.float32(UNKNOWN), people)
    features = early.features(gaps)
    for seed, file in enumerate(files):
        rows = np.random.default_rng([1, seed]).choice(len(people), 1500)
        x = features[rows]
        trees = GradientBoostingRegressor(
            n_estimators=OWN_TREES, max_leaf_nodes=16, max_depth=None, random_state=seed
        )
        trees.fit(x[:, : people.shape[1]], target[rows])
        rest = target[rows] - trees.predict(x[:, : people.shape[1]])
        line = Ridge(10.0).fit(x, rest)
        stored = {
            **early.stored,
            "slopes": np.ascontiguousarray(line.coef_[:, np.newaxis], np.float32),
            "offset": np.array([line.intercept_], np.float32),
        }
        own = _ensemble(trees, people.shape[1], "scaled", "boosted")
        proto.save(
            file,
            [*early.nodes, own, *_last()],
            (proto.FLOAT, ["N", people.shape[1]]),
            ["N", 1],
            stored,
        )
    return [{"x": gaps[row : row + 1]} for row in rng.choice(len(gaps), REQUESTS, replace=False)]


class _Early:
    """The stages that all pipelines have in common, as nodes and as numpy."""

    def __init__(self, people: np.ndarray, target: np.ndarray) -> None:
        from sklearn.cluster import KMeans
        from sklearn.decomposition import PCA
        from sklearn.ensemble import RandomForestRegressor

        self.means = people.mean(0)
        self.scale = 1 / people.std(0)
        scaled = (people - self.means) * self.scale
        self.pca = PCA(COMPONENTS, random_state=0).fit(scaled)
        self.centres = KMeans(CLUSTERS, n_init=1, random_state=0).fit(scaled).cluster_centers_
        self.forest = RandomForestRegressor(
            EARLY_TREES, max_leaf_nodes=32, random_state=0, n_jobs=1
        ).fit(scaled[:8000], target[:8000])
        self.stored = {
            "pca": np.ascontiguousarray(self.pca.components_.T, np.float32),
            "pca_bias": (-self.pca.components_ @ self.pca.mean_).astype(np.float32),
            "centres": np.ascontiguousarray(-2 * self.centres.T, np.float32),
            "centres_squared": (self.centres**2).sum(1).astype(np.float32),
            "last_axis": np.array([1], np.int64),
        }
        self.nodes = self._nodes(people.shape[1])

    def features(self, gaps: np.ndarray) -> np.ndarray:
        """What the own stages of a pipeline are given."""
        x = (np.where(gaps == UNKNOWN, self.means, gaps) - self.means) * self.scale
        distances = (x**2).sum(1)[:, np.newaxis] - 2 * x @ self.centres.T
        distances += (self.centres**2).sum(1)
        opinion = self.forest.predict(x)[:, np.newaxis]
        return np.hstack([x, self.pca.transform(x), distances, opinion])

    def _nodes(self, width: int) -> list[onnx.NodeProto]:
        node, ml = helper.make_node, "ai.onnx.ml"
        return [
            node(
                "Imputer", ["x"], ["filled"], domain=ml,
                imputed_value_floats=self.means.tolist(), replaced_value_float=UNKNOWN,
            ),
            node(
                "Scaler", ["filled"], ["scaled"], domain=ml,
                offset=self.means.tolist(), scale=self.scale.tolist(),
            ),
            node("Gemm", ["scaled", "pca", "pca_bias"], ["components"]),
            node("Gemm", ["scaled", "centres", "centres_squared"], ["partial"]),
            node("ReduceSumSquare", ["scaled", "last_axis"], ["squared"], keepdims=1),
            node("Add", ["partial", "squared"], ["distances"]),
            _ensemble(self.forest, width, "scaled", "opinion"),
            node(
                "Concat", ["scaled", "components", "distances", "opinion"], ["features"], axis=1
            ),
        ]  # fmt: skip


def _last() -> list[onnx.NodeProto]:
    node = helper.make_node
    return [
        node("Gemm", ["features", "slopes", "offset"], ["line"]),
        node("Add", ["line", "boosted"], ["sum"]),
        node("Relu", ["sum"], ["y"]),
    ]


def _ensemble(trees: object, width: int, source: str, result: str) -> onnx.NodeProto:
    """The one node that a fitted ensemble of trees is converted to."""
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    kinds = [("x", FloatTensorType([None, width]))]
    converted = convert_sklearn(trees, initial_types=kinds, target_opset={"": 20, "ai.onnx.ml": 3})
    (node,) = (n for n in converted.graph.node if n.op_type == "TreeEnsembleRegressor")
    node.input[:], node.output[:], node.name = [source], [result], result
    return node

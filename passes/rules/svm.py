"""Support vector machines, spelled out: kernel values of all vectors, then matrix products."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from whitebox.ir import ops
from whitebox.ir.graph import Node, constant
from whitebox.passes.rewrite import Rule, rule
from whitebox.passes.rules.ml import ML, as_floats, both_classes, labels, matrix, transformed


def _kernel(x: Node, source: Node, vectors: np.ndarray) -> Node | None:
    """[rows, vectors]: how alike each row and each vector are."""
    gamma, shift, degree = (tuple(source.attr("kernel_params", ())) or (0.0, 0.0, 0.0))[:3]
    kind = source.attr("kernel_type", "LINEAR")
    if kind == "RBF":
        rows, features = x.tensor.dims
        apart = ops.node("Sub", _reshaped(x, rows, 1, features), matrix(vectors))
        axes = constant(np.array([2], np.int64))
        distance = ops.node("ReduceSumSquare", apart, axes, keepdims=0)
        return ops.node("Exp", ops.node("Mul", distance, matrix(-gamma)))
    product = ops.node("MatMul", x, matrix(vectors.T))
    if kind == "LINEAR":
        return product
    product = ops.node("Add", ops.node("Mul", product, matrix(gamma)), matrix(shift))
    if kind == "SIGMOID":
        return ops.node("Tanh", product)
    return ops.node("Pow", product, matrix(degree)) if kind == "POLY" else None


def _reshaped(x: Node, *dims: int) -> Node:
    return ops.node("Reshape", x, constant(np.array(dims, np.int64)))


@rule(ML + "SVMRegressor")
def svm_regressor(node: Node) -> Node | None:
    """SVMRegressor(x) = K(x, vectors) · coefficients + ρ"""
    x, count = as_floats(node.inputs[0]), node.attr("n_supports", 0)
    if x is None or count < 1 or node.attr("one_class", 0):
        return None
    vectors = np.asarray(node.attr("support_vectors"), np.float32)
    if vectors.size != count * x.tensor.dims[1]:
        return None
    alike = _kernel(x, node, vectors.reshape(count, -1))
    if alike is None:
        return None
    weights = np.asarray(node.attr("coefficients"), np.float32).reshape(count, 1)
    scores = ops.node("Add", ops.node("MatMul", alike, matrix(weights)), matrix(node.attr("rho")))
    return transformed(scores, node.attr("post_transform", "NONE"))


@rule("Output")
def svm_classifier(node: Node) -> Node | None:
    """SVMClassifier(x) = (label with most votes, K · C + ρ): one column, and one vote, a pair"""
    source = node.inputs[0]
    if source is None or source.op != ML + "SVMClassifier":
        return None
    x, sizes = as_floats(source.inputs[0]), source.attr("vectors_per_class", ())
    if x is None or not sum(sizes) or source.attr("prob_a"):
        return None
    vectors = np.asarray(source.attr("support_vectors"), np.float32)
    weights = np.asarray(source.attr("coefficients"), np.float32)
    # A binary decision with weights of one sign has rules of its own.
    if vectors.size != sum(sizes) * x.tensor.dims[1] or weights.min() >= 0:
        return None
    alike = _kernel(x, source, vectors.reshape(sum(sizes), -1))
    if alike is None:
        return None
    columns = _pair_columns(weights.reshape(len(sizes) - 1, -1), sizes)
    scores = ops.node("MatMul", alike, matrix(columns))
    scores = ops.node("Add", scores, matrix(source.attr("rho")))
    if node.attr("index") == 1:
        if len(sizes) == 2:
            scores = both_classes(scores, probability=False)
        return transformed(scores, source.attr("post_transform", "NONE"))
    return labels(source, _votes(scores, len(sizes)), "classlabels_ints")


def _pair_columns(weights: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """[vectors, pairs]: each class's vectors weigh in on the pairs that it is one of."""
    starts = np.cumsum([0, *sizes])
    pairs = list(combinations(range(len(sizes)), 2))
    columns = np.zeros((sum(sizes), len(pairs)), np.float32)
    for column, (first, second) in enumerate(pairs):
        for own, other in ((first, second - 1), (second, first)):
            part = slice(starts[own], starts[own + 1])
            columns[part, column] = weights[other, part]
    return columns


def _votes(scores: Node, classes: int) -> Node:
    """[rows, classes]: a positive score is a vote for the first of a pair, else for the second."""
    pairs = list(combinations(range(classes), 2))
    turned = np.zeros((len(pairs), classes), np.float32)
    for number, (first, second) in enumerate(pairs):
        turned[number, first], turned[number, second] = 1, -1
    start = -turned.clip(max=0).sum(0)
    positive = ops.node("Cast", ops.node("Greater", scores, matrix(0.0)), to=1)
    return ops.node("Add", ops.node("MatMul", positive, matrix(turned)), matrix(start))


SVM: tuple[Rule, ...] = (svm_regressor, svm_classifier)

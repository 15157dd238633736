"""Operators of ai.onnx.ml that are linear algebra or look-ups in disguise, spelled out.

What they hold as attributes becomes constants, so that models of one form share kernels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from whitebox.ir import ops
from whitebox.ir.graph import Node, constant
from whitebox.ir.types import ONNX_DTYPES, TensorType
from whitebox.passes.rewrite import Rule, rule
from whitebox.passes.rules.algebra import reshape
from whitebox.passes.rules.forest import forest_of, forest_of_ensemble
from whitebox.passes.rules.trees import tree_scores

ML = "ai.onnx.ml."
_FLOAT32 = ONNX_DTYPES.index("float32")


def as_floats(x: Node | None) -> Node | None:
    """A matrix of numbers as float32, rows of one length; None when `x` is something else."""
    if x is None or not isinstance(x.type, TensorType) or x.type.shape is None:
        return None
    if len(x.type.shape) != 2 or x.type.dtype in ("string", "float64"):
        return None
    if not isinstance(x.type.shape[1], int):
        return None
    return x if x.type.dtype == "float32" else ops.node("Cast", x, to=_FLOAT32)


def matrix(values: npt.ArrayLike) -> Node:
    """float32 numbers as a constant."""
    return constant(np.asarray(values, np.float32))


@rule(ML + "Imputer")
def imputer(node: Node) -> Node | None:
    """Imputer(x) = Where(x = replaced, imputed, x)"""
    x, imputed = node.inputs[0], node.attr("imputed_value_floats")
    if x is None or x.tensor.dtype != "float32" or as_floats(x) is None or not imputed:
        return None
    if len(imputed) not in (1, x.tensor.dims[1]):
        return None
    replaced = node.attr("replaced_value_float", 0.0)
    unknown = ops.node("IsNaN", x) if np.isnan(replaced) else ops.node("Equal", x, matrix(replaced))
    return ops.node("Where", unknown, matrix(imputed), x)


@rule(ML + "Scaler")
def scaler(node: Node) -> Node | None:
    """Scaler(x) = (x - offset) · scale"""
    x = as_floats(node.inputs[0])
    if x is None:
        return None
    offset, scale = node.attr("offset", (0.0,)), node.attr("scale", (1.0,))
    return ops.node("Mul", ops.node("Sub", x, matrix(offset)), matrix(scale))


_NORMS = {"L1": "ReduceL1", "L2": "ReduceL2", "MAX": "ReduceMax"}


@rule(ML + "Normalizer")
def normalizer(node: Node) -> Node | None:
    """Normalizer(x) = x / max(norm of each row, 10⁻³⁰)"""
    x, kind = as_floats(node.inputs[0]), node.attr("norm", "MAX")
    if x is None or kind not in _NORMS:
        return None
    measured = ops.node("Abs", x) if kind == "MAX" else x
    norm = ops.node(_NORMS[kind], measured, constant(np.array([1], np.int64)), keepdims=1)
    return ops.node("Div", x, ops.node("Max", norm, matrix(1e-30)))


@rule(ML + "ArrayFeatureExtractor")
def array_feature_extractor(node: Node) -> Node | None:
    """ArrayFeatureExtractor(x, i) = Gather(x, i) along the last axis"""
    x, indices = node.inputs
    if x is None or indices is None or not isinstance(x.type, TensorType) or not x.type.shape:
        return None
    if not x.type.is_static or not indices.tensor.is_static:
        return None
    flat = ops.node("Reshape", indices, constant(np.array([-1], np.int64)))
    found = ops.node("Gather", x, flat, axis=x.type.rank - 1)
    dims = (*(x.type.dims[:-1] or (1,)), indices.tensor.size)
    return reshape(found, dims)


def _linear(
    x: Node, coefficients: tuple[float, ...], intercepts: tuple[float, ...], results: int
) -> Node | None:
    """x · Wᵀ + b, one row of coefficients a result."""
    dims = x.tensor.shape
    assert dims is not None
    if dims[1] != len(coefficients) / results:
        return None
    weight = np.asarray(coefficients, np.float32).reshape(results, -1).T
    product = ops.node("MatMul", x, constant(np.ascontiguousarray(weight)))
    return ops.node("Add", product, matrix(intercepts)) if intercepts else product


def transformed(scores: Node, transform: str) -> Node | None:
    """Scores after ONNX's `post_transform`; None for the unusual ones."""
    match transform:
        case "NONE":
            return scores
        case "LOGISTIC":
            return ops.node("Sigmoid", scores)
        case "SOFTMAX":
            return ops.node("Softmax", scores, axis=1)
    return None


@rule(ML + "LinearRegressor")
def linear_regressor(node: Node) -> Node | None:
    """LinearRegressor(x) = transform(x · Wᵀ + b)"""
    x = as_floats(node.inputs[0])
    if x is None:
        return None
    intercepts = node.attr("intercepts", ())
    scores = _linear(x, node.attr("coefficients", ()), intercepts, node.attr("targets", 1))
    return None if scores is None else transformed(scores, node.attr("post_transform", "NONE"))


def labels(node: Node, scores: Node, key: str) -> Node | None:
    """The integer label of each row's largest score; None for labels that are strings."""
    labels = node.attr(key)
    if not labels:
        return None
    largest = ops.node("ArgMax", scores, axis=1, keepdims=0)
    if tuple(labels) == tuple(range(len(labels))):
        return largest
    return ops.node("Gather", constant(np.asarray(labels, np.int64)), largest, axis=0)


@rule("Output")
def linear_classifier(node: Node) -> Node | None:
    """LinearClassifier(x) = (label of the largest score, transform(x · Wᵀ + b)), a row a class"""
    source = node.inputs[0]
    if source is None or source.op != ML + "LinearClassifier":
        return None
    x = as_floats(source.inputs[0])
    classes = source.attr("classlabels_ints") or source.attr("classlabels_strings") or ()
    if x is None or len(classes) < 2:
        return None
    intercepts = source.attr("intercepts", ())
    scores = _linear(x, source.attr("coefficients", ()), intercepts, len(classes))
    if scores is None:
        return None
    if node.attr("index") == 1:
        return transformed(scores, source.attr("post_transform", "NONE"))
    return labels(source, scores, "classlabels_ints")


@rule(ML + "TreeEnsembleRegressor")
def tree_regressor(node: Node) -> Node | None:
    """TreeEnsembleRegressor(x) = transform(Σ leaves)"""
    x = as_floats(node.inputs[0])
    forest = forest_of(node, "target", node.attr("n_targets", 1))
    if x is None or not x.tensor.is_static or forest is None:
        return None
    scores = tree_scores(x, forest, node.attr("aggregate_function", "SUM"))
    if scores is None:
        return None
    return transformed(scores, node.attr("post_transform", "NONE"))


@rule(ML + "TreeEnsemble")
def tree_ensemble(node: Node) -> Node | None:
    """TreeEnsemble(x) = transform(Σ leaves)"""
    x, forest = node.inputs[0], forest_of_ensemble(node)
    if x is None or forest is None or not x.tensor.is_static or x.tensor.dtype != "float32":
        return None
    aggregate, transform = node.attr("aggregate_function", 1), node.attr("post_transform", 0)
    if aggregate not in range(len(_AGGREGATES)) or transform not in range(len(_TRANSFORMS)):
        return None
    scores = tree_scores(x, forest, _AGGREGATES[aggregate])
    return None if scores is None else transformed(scores, _TRANSFORMS[transform])


@rule("Output")
def tree_classifier(node: Node) -> Node | None:
    """TreeEnsembleClassifier(x) = (label of the largest score, transform(Σ leaves))"""
    source = node.inputs[0]
    if source is None or source.op != ML + "TreeEnsembleClassifier":
        return None
    x = as_floats(source.inputs[0])
    classes = source.attr("classlabels_int64s") or source.attr("classlabels_strings") or ()
    # With weights for one class only, ONNX means the two classes of a binary decision.
    binary = len(classes) == 2 and len(set(source.attr("class_ids", ()))) == 1
    if len(classes) < 2:
        return None
    forest = forest_of(source, "class", 1 if binary else len(classes))
    if x is None or not x.tensor.is_static or forest is None:
        return None
    scores = tree_scores(x, forest, "SUM")
    if scores is None:
        return None
    transform = source.attr("post_transform", "NONE")
    if binary:
        # As onnxruntime has it: weights that are all positive are a probability.
        probability = min(source.attr("class_weights")) >= 0
        scores = both_classes(scores, probability)
        transform = "NONE" if probability and transform == "LOGISTIC" else transform
    if node.attr("index") == 1:
        return transformed(scores, transform)
    return labels(source, scores, "classlabels_int64s")


# By the numbers that TreeEnsemble gives them.
_AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
_TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC")


def both_classes(score: Node, probability: bool) -> Node:
    """[rows, 2] from the score of the second class: 1 - s and s, or -s and s."""
    other = ops.node("Neg", score)
    if probability:
        other = ops.node("Add", other, matrix((1.0,)))
    return ops.node("Concat", other, score, axis=1)


# Those that hold weights as attributes, and need not know how many rows there are.
LINEAR: tuple[Rule, ...] = (scaler, linear_regressor, linear_classifier)

MACHINE_LEARNING: tuple[Rule, ...] = (
    imputer,
    *LINEAR,
    normalizer,
    array_feature_extractor,
    tree_regressor,
    tree_ensemble,
    tree_classifier,
)

"""Types of ai.onnx.ml operators, whose shapes onnx's own inference leaves open."""

from __future__ import annotations

from whitebox.ir.shapes.rule import Call, rule
from whitebox.ir.types import Dim, TensorType, Type

_ML = "ai.onnx.ml."


def _rows(call: Call) -> Dim:
    """How many rows the input has; a vector is one row."""
    shape = call.shape(0)
    if shape is None:
        return None
    return shape[0] if len(shape) > 1 else 1


def _labels(call: Call, *keys: str) -> tuple[str, int] | None:
    """(dtype, count) of a classifier's labels, from the first attribute that is there."""
    for key in keys:
        found = call.attrs.get(key)
        if found:
            return ("string" if "string" in key else "int64"), len(found)
    return None


@rule(_ML + "Scaler", _ML + "Normalizer")
def _scaler(call: Call) -> TensorType:
    return TensorType("float32", call.shape(0))


@rule(_ML + "Imputer", _ML + "Binarizer")
def _same(call: Call) -> TensorType:
    return call.tensor(0)


@rule(_ML + "ArrayFeatureExtractor")
def _array_feature_extractor(call: Call) -> TensorType:
    shape, indices = call.shape(0), call.shape(1)
    if not shape:
        return TensorType(call.dtype(0), None)
    count: Dim = 1
    for dim in indices or (None,):
        count = None if not isinstance(dim, int) or not isinstance(count, int) else count * dim
    lead = shape[:-1] or (1,)
    return TensorType(call.dtype(0), (*lead, count))


@rule(_ML + "LinearRegressor")
def _linear_regressor(call: Call) -> TensorType:
    return TensorType("float32", (_rows(call), call.attrs.get("targets", 1)))


@rule(_ML + "TreeEnsembleRegressor")
def _tree_regressor(call: Call) -> TensorType | None:
    targets = call.attrs.get("n_targets")
    return None if targets is None else TensorType("float32", (_rows(call), targets))


@rule(_ML + "SVMRegressor")
def _svm_regressor(call: Call) -> TensorType:
    return TensorType("float32", (_rows(call), 1))


@rule(_ML + "SVMClassifier")
def _svm_classifier(call: Call) -> tuple[Type, ...] | None:
    labels = _labels(call, "classlabels_ints", "classlabels_strings")
    if labels is None:
        return None
    dtype, count = labels
    if call.attrs.get("vectors_per_class") and not call.attrs.get("prob_a") and count > 2:
        count = count * (count - 1) // 2  # a score a pair
    return _classified(call, (dtype, count))


@rule(_ML + "LinearClassifier")
def _linear_classifier(call: Call) -> tuple[Type, ...] | None:
    return _classified(call, _labels(call, "classlabels_ints", "classlabels_strings"))


@rule(_ML + "TreeEnsembleClassifier")
def _tree_classifier(call: Call) -> tuple[Type, ...] | None:
    return _classified(call, _labels(call, "classlabels_int64s", "classlabels_strings"))


def _classified(call: Call, labels: tuple[str, int] | None) -> tuple[Type, ...] | None:
    """(label of each row, scores of each row)."""
    if labels is None:
        return None
    dtype, count = labels
    rows = _rows(call)
    types = (TensorType(dtype, (rows,)), TensorType("float32", (rows, count)))
    return types[: call.n_outputs]

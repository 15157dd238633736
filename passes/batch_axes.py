"""batch_axes: a proof that the rows of a batch have nothing to do with one another.

Enters: a graph at fixed sizes, all of whose inputs have the batch as their first axis. Leaves: the
axis of each output along which the rows of the batch lie, or the node that stands in the way. Then,
and only then, may requests be put together into one batch, and padded. The rules are those by which
frameworks vectorise over a batch ("batching rules"); an operator without one is never guessed.

A value's *axis* `a` means: cut along `a` into as many equal blocks as there are rows, block i
depends on row i alone, and in the same way for every i. None: the value depends on no input, and is
the same for every row wherever it meets one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TypeAlias

import numpy as np

from whitebox.errors import WhiteboxError
from whitebox.ir import ops
from whitebox.ir.graph import INPUT, OUTPUT, Graph, Node
from whitebox.ir.shapes.elementwise import ELEMENTWISE
from whitebox.ir.shapes.reduction import REDUCTIONS
from whitebox.ir.types import TensorType

Axis: TypeAlias = "int | None"


class RowsMix(WhiteboxError):
    """The rows of a batch are not known to be independent."""


def batch_axes(graph: Graph, rows: int) -> tuple[Axis, ...]:
    """The axis of each output of the graph's only model. `rows` is the batch, at least 2.

    Raises RowsMix, which names the node, when the rows are not known to be independent.
    """
    axes: dict[Node, Axis] = {}
    for name, node in graph.model.inputs:
        if not isinstance(node.type, TensorType) or node.type.dims[:1] != (rows,):
            raise RowsMix(f"input {name} is a {node.type}: its first axis is not the batch")
        axes[node] = 0
    for node in graph.nodes:
        if node.op == INPUT:
            continue
        if node.is_constant_expression:
            axes[node] = None
            continue
        given = [None if source is None else axes[source] for source in node.inputs]
        try:
            axes[node] = _Rows(node, given, rows).axis()
        except RowsMix as why:
            raise RowsMix(f"{graph.names.get(node, node.op)} ({node.op}) {why}") from None
    return tuple(axes[node] for _, node in graph.model.outputs)


Rule: TypeAlias = "Callable[[_Rows], int]"


class _Rows:
    """One node: its inputs' axes are known, its result's is asked for."""

    def __init__(self, node: Node, axes: Sequence[Axis], rows: int) -> None:
        self.node = node
        self.axes = axes
        self.rows = rows

    def axis(self) -> Axis:
        if all(axis is None for axis in self.axes):
            if ops.traits(self.node.op).random:
                raise RowsMix("draws random numbers")
            return None
        if any(not isinstance(t, TensorType) or not t.is_static for t in self.node.types):
            raise RowsMix("has a result of no fixed shape")
        if any(isinstance(value, Graph) for value in self.node.attrs.values()):
            raise RowsMix("has a body of its own")
        rule = _RULES.get(self.node.op)
        if rule is None:
            raise RowsMix("is an operator that may mix rows")
        axis = rule(self)
        if not self.several:
            extent = self.node.tensor.dims[axis]
            if extent % self.rows:
                raise RowsMix(f"gives {extent} elements along axis {axis} for {self.rows} rows")
        return axis

    @property
    def several(self) -> bool:
        """Whether the node has more than one result."""
        return len(self.node.types) > 1

    def dims(self, index: int) -> tuple[int, ...]:
        """The shape of an input."""
        source = self.node.inputs[index]
        assert source is not None
        return source.tensor.dims

    def values(self, index: int) -> list[int] | None:
        """The elements of a constant input; None when it is absent."""
        if index >= len(self.node.inputs) or self.node.inputs[index] is None:
            return None
        source = self.node.inputs[index]
        assert source is not None
        if not source.is_constant:
            raise RowsMix("has sizes that are not constant")
        return [int(value) for value in source.value.reshape(-1)]

    def only(self, *indices: int) -> int:
        """The axis that the given inputs have in common; nothing else may carry rows."""
        found = {self.axes[i] for i in indices if i < len(self.axes)} - {None}
        others = [a for i, a in enumerate(self.axes) if i not in indices and a is not None]
        if others or len(found) != 1:
            raise RowsMix("meets rows where it should meet weights")
        (axis,) = found
        assert axis is not None
        return axis

    def untouched(self, axis: int, touched: Sequence[int], rank: int) -> None:
        """See that the operator works along other axes only."""
        if axis in [each % rank for each in touched]:
            raise RowsMix("works along the batch")

    def uniform(self, index: int, axis: int) -> None:
        """See that an input without rows is the same for every row of an axis of its own."""
        source = self.node.inputs[index]
        if source is None or self.axes[index] is not None:
            return
        if axis < len(source.tensor.dims) and not _alike(source, axis, self.rows):
            raise RowsMix("has a constant with values for each row")


def _alike(source: Node, axis: int, rows: int) -> bool:
    """Whether a constant expression is the same in all blocks along an axis."""
    dims = source.tensor.dims
    if axis < 0 or dims[axis] == 1:
        return True
    if source.op == "Expand" or (source.inputs and ops.traits(source.op).elementwise):
        operands = source.inputs[:1] if source.op == "Expand" else source.inputs
        return all(
            each is None or _alike(each, axis - len(dims) + len(each.tensor.dims), rows)
            for each in operands
        )
    if not source.is_constant or dims[axis] % rows:
        return False
    blocks = np.stack(np.split(source.value, rows, axis))
    return bool((blocks == blocks[:1]).all())


def _broadcast(rows: _Rows, last: int = 0) -> int:
    """Operands are aligned at the right. `last` axes there are not broadcast."""
    out = len(rows.node.tensor.dims)
    present = [i for i, source in enumerate(rows.node.inputs) if source is not None]
    places = {out - len(rows.dims(i)) + axis for i in present if (axis := rows.axes[i]) is not None}
    if len(places) != 1:
        raise RowsMix("joins rows that lie along different axes")
    (place,) = places
    if place >= out - last:
        raise RowsMix("works along the batch")
    for i in present:
        rows.uniform(i, place - (out - len(rows.dims(i))))
        carried = rows.axes[i]
        if carried is not None and rows.dims(i)[carried] != rows.node.tensor.dims[place]:
            raise RowsMix("repeats rows")
    return place


def _first(rows: _Rows) -> int:
    """Images and tables: the first axis of the first input; all else are weights."""
    if rows.only(0) != 0:
        raise RowsMix("takes its items from another axis than the batch")
    if rows.node.attr("training_mode", 0) or (rows.node.op == "MaxPool" and rows.several):
        raise RowsMix("has results that count over the whole batch")
    return 0


def _expand(rows: _Rows) -> int:
    axis, dims, result = rows.only(0), rows.dims(0), rows.node.tensor.dims
    place = len(result) - len(dims) + axis
    if dims[axis] != result[place]:
        raise RowsMix("repeats rows")
    return place


def _cumulative(rows: _Rows) -> int:
    axis = rows.only(0)
    rows.untouched(axis, rows.values(1) or [], len(rows.dims(0)))
    return axis


def _terms(rows: _Rows) -> int:
    """TfIdfVectorizer: a vector is one text, a matrix has a text a row."""
    if len(rows.dims(0)) != 2:
        raise RowsMix("takes the batch as one text")
    return _first(rows)


def _products(rows: _Rows) -> int:
    """MatMul: A[..., M, K] · B[..., K, N]."""
    a, b = rows.axes[0], rows.axes[1]
    rank_a, rank_b, out = len(rows.dims(0)), len(rows.dims(1)), len(rows.node.tensor.dims)
    if min(rank_a, rank_b) < 2:
        raise RowsMix("multiplies vectors")
    if a == rank_a - 1 or b == rank_b - 2:
        raise RowsMix("sums over the batch")
    if b is None and a == rank_a - 2:
        return out - 2
    if a is None and b == rank_b - 1:
        return out - 1
    return _broadcast(rows, last=2)


def _gemm(rows: _Rows) -> int:
    """A' · B' + C, where A' is A or its transpose."""
    a = rows.only(0, 2) if rows.axes[0] is not None else -1
    if rows.axes[0] is None or a != (1 if rows.node.attr("transA") else 0):
        raise RowsMix("sums over the batch")
    if len(rows.node.inputs) > 2 and rows.node.inputs[2] is not None:
        rows.uniform(2, len(rows.dims(2)) - 2)
        if rows.axes[2] is not None and len(rows.dims(2)) != 2:
            raise RowsMix("adds rows along the wrong axis")
    return 0


def _along(default: int = -1) -> Rule:
    """Softmax and others that work along the axis `axis` of the first input."""

    def rule(rows: _Rows) -> int:
        axis = rows.only(0)
        rows.untouched(axis, [rows.node.attr("axis", default)], len(rows.dims(0)))
        return axis

    return rule


def _from_axis(rows: _Rows) -> int:
    """Norms over all axes from `axis` on."""
    axis = rows.only(0)
    rank = len(rows.dims(0))
    rows.untouched(axis, range(rows.node.attr("axis", -1) % rank, rank), rank)
    return axis


def _reduce(rows: _Rows) -> int:
    axis, rank = rows.only(0), len(rows.dims(0))
    if rows.node.op in ("ArgMax", "ArgMin"):
        axes = [rows.node.attr("axis", 0)]
    else:
        given = rows.values(1) if len(rows.node.inputs) > 1 else rows.node.attr("axes")
        axes = list(given or ())
        if not axes:
            if rows.node.attr("noop_with_empty_axes", 0):
                return axis
            axes = list(range(rank))
    rows.untouched(axis, axes, rank)
    if rows.node.attr("keepdims", 1):
        return axis
    return axis - len([each for each in axes if each % rank < axis])


def _transpose(rows: _Rows) -> int:
    axis, rank = rows.only(0), len(rows.dims(0))
    perm = rows.node.attr("perm") or tuple(reversed(range(rank)))
    return int(list(perm).index(axis))


def _reshape(rows: _Rows) -> int:
    """Elements keep their order: blocks stay blocks where what is outside of them does."""
    axis, dims = rows.only(0), rows.dims(0)
    outside = prod(dims[:axis])
    result = rows.node.tensor.dims
    for place, extent in enumerate(result):
        if prod(result[:place]) == outside and extent % rows.rows == 0 and extent:
            return place
    raise RowsMix("puts rows together")


def _concat(rows: _Rows) -> int:
    found = {axis for axis in rows.axes if axis is not None}
    rank = len(rows.node.tensor.dims)
    if len(found) != 1:
        raise RowsMix("joins rows that lie along different axes")
    (axis,) = found
    rows.untouched(axis, [rows.node.attr("axis")], rank)
    for index in range(len(rows.node.inputs)):
        rows.uniform(index, axis)
    return axis


def _slice(rows: _Rows) -> int:
    axis, dims = rows.only(0), rows.dims(0)
    starts = rows.values(1) or []
    axes = rows.values(3)
    steps = rows.values(4) or [1]
    if min(steps) < 0 or rows.node.tensor.dims[axis] != dims[axis]:
        rows.untouched(axis, range(len(starts)) if axes is None else axes, len(dims))
    return axis


def _pad(rows: _Rows) -> int:
    axis, rank = rows.only(0), len(rows.dims(0))
    pads = rows.values(1) or []
    axes = rows.values(3) or list(range(rank))
    touched = [a for i, a in enumerate(axes) if pads[i] or pads[i + len(axes)]]
    rows.untouched(axis, touched, rank)
    return axis


def _gather(rows: _Rows) -> int:
    data, indices = rows.axes[0], rows.axes[1]
    along = int(rows.node.attr("axis", 0)) % len(rows.dims(0))
    rank = len(rows.dims(1))
    if data is None and indices is not None:
        return along + indices
    if data is None or indices is not None or data == along:
        raise RowsMix("looks rows up in others")
    return data if data < along else data + rank - 1


def _gather_nd(rows: _Rows) -> int:
    """Indices that begin with the row's own number look only into that row."""
    if rows.only(0) != 0 or rows.node.attr("batch_dims", 0):
        raise RowsMix("looks rows up in others")
    indices = rows.node.inputs[1]
    assert indices is not None
    if indices.is_constant and indices.tensor.dims[0] == rows.rows == rows.dims(0)[0]:
        row, rest = indices.value[..., 0], indices.value[..., 1:]
        number = np.arange(rows.rows).reshape(-1, *[1] * (row.ndim - 1))
        if row.ndim and (row == number).all() and (rest == rest[:1]).all():
            return 0
    raise RowsMix("looks rows up in others")


def _gather_elements(rows: _Rows) -> int:
    axis = rows.only(0, 1)
    rows.untouched(axis, [rows.node.attr("axis", 0)], len(rows.dims(0)))
    rows.uniform(0, axis)
    rows.uniform(1, axis)
    if rows.dims(0)[axis] != rows.dims(1)[axis]:
        raise RowsMix("looks only some rows up")
    return axis


def _tile(rows: _Rows) -> int:
    axis = rows.only(0)
    repeats = rows.values(1) or []
    if repeats[axis] != 1:
        raise RowsMix("repeats rows")
    return axis


def _one_hot(rows: _Rows) -> int:
    axis = rows.only(0)
    at = rows.node.attr("axis", -1) % len(rows.node.tensor.dims)
    return axis if axis < at else axis + 1


def _resize(rows: _Rows) -> int:
    axis = rows.only(0)
    if rows.dims(0)[axis] != rows.node.tensor.dims[axis]:
        raise RowsMix("resizes the batch")
    return axis


def _recurrent(rows: _Rows) -> int:
    """X[steps, batch, size]; with `layout` 1 X[batch, steps, size]."""
    if rows.node.attr("layout", 0):
        raise RowsMix("has the batch first")
    for index in range(len(rows.node.inputs)):
        if rows.node.inputs[index] is None:
            continue
        place = {0: 1, 4: 0, 5: 1, 6: 1}.get(index)
        if place is None:
            if rows.axes[index] is not None:
                raise RowsMix("meets rows where it should meet weights")
        elif rows.axes[index] is None:
            rows.uniform(index, place)
        elif rows.axes[index] != place:
            raise RowsMix("has rows along the steps")
    if rows.axes[0] is None:
        raise RowsMix("reads no rows")
    # Of the states; the result of all steps, Y[steps, directions, batch, size], is the first.
    return 1 if rows.several else 2


def _output(rows: _Rows) -> int:
    """One of the results of a node with several."""
    axis = rows.only(0)
    source = rows.node.inputs[0]
    assert source is not None
    if source.op in ("LSTM", "GRU", "RNN") and rows.node.attr("index") == 0:
        return 2
    return axis


def _columns(rows: _Rows) -> int:
    """ArrayFeatureExtractor: columns of a matrix, or entries of a table by indices."""
    if rows.axes[0] is None and rows.axes[1] == 0:
        return len(rows.node.tensor.dims) - 1
    axis = rows.only(0)
    rows.untouched(axis, [-1], len(rows.dims(0)))
    return axis


def _einsum(rows: _Rows) -> int:
    equation = rows.node.attr("equation").replace(" ", "")
    if "->" not in equation or "." in equation:
        raise RowsMix("leaves its result to be guessed")
    terms, result = equation.split("->")
    letters = {
        term[axis]
        for term, axis in zip(terms.split(","), rows.axes, strict=True)
        if axis is not None
    }
    if len(letters) != 1 or next(iter(letters)) not in result:
        raise RowsMix("sums over the batch")
    (letter,) = letters
    for index, term in enumerate(terms.split(",")):
        if letter in term:
            rows.uniform(index, term.index(letter))
    return int(result.index(letter))


def _quantize(rows: _Rows) -> int:
    """Scales and zero points are weights, of one value or some along an axis."""
    axis = rows.only(0)
    if rows.node.attr("block_size", 0):
        raise RowsMix("has scales for blocks")
    if any(s is not None and s.tensor.size != 1 for s in rows.node.inputs[1:]):
        rows.untouched(axis, [rows.node.attr("axis", 1)], len(rows.dims(0)))
    return axis


def _same(rows: _Rows) -> int:
    return rows.only(0)


_IMAGES = (
    "Conv ConvTranspose ConvInteger QLinearConv MaxPool AveragePool LpPool GlobalAveragePool "
    "GlobalMaxPool GlobalLpPool BatchNormalization InstanceNormalization GroupNormalization LRN "
    "DepthToSpace SpaceToDepth"
).split()
# (of tables with a row an item)
_TABLES = (
    "ai.onnx.ml.Scaler ai.onnx.ml.Normalizer ai.onnx.ml.LinearClassifier "
    "ai.onnx.ml.LinearRegressor ai.onnx.ml.SVMClassifier ai.onnx.ml.SVMRegressor "
    "ai.onnx.ml.TreeEnsemble ai.onnx.ml.TreeEnsembleClassifier "
    "ai.onnx.ml.TreeEnsembleRegressor ai.onnx.ml.Imputer"
).split()
_ELEMENTS = (
    "ai.onnx.ml.LabelEncoder ai.onnx.ml.Binarizer ai.onnx.ml.CategoryMapper RegexFullMatch"
).split()

_RULES: dict[str, Rule] = {
    OUTPUT: _output,
    **dict.fromkeys(_IMAGES, _first),
    **dict.fromkeys(_TABLES, _first),
    **dict.fromkeys(_ELEMENTS, _same),
    **dict.fromkeys(("MatMul", "MatMulInteger"), _products),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "TopK"), _along()),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _from_axis),
    **dict.fromkeys((*REDUCTIONS, "ArgMax", "ArgMin"), _reduce),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantize),
    "Gemm": _gemm,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _along(0),
    "Slice": _slice,
    "Pad": _pad,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Expand": _expand,
    **dict.fromkeys(("CumSum", "CumProd"), _cumulative),
    "TfIdfVectorizer": _terms,
    "Tile": _tile,
    "OneHot": _one_hot,
    "Resize": _resize,
    "Einsum": _einsum,
    "ai.onnx.ml.ArrayFeatureExtractor": _columns,
}
for _op in ELEMENTWISE:
    _RULES.setdefault(_op, _broadcast)

"""Types of matrix products."""

from __future__ import annotations

from whitebox.ir.shapes.rule import Call, Misfit, Shape, broadcast, broadcast_dim, rule
from whitebox.ir.types import Dim, TensorType


def matmul_shape(a: Shape, b: Shape) -> Shape:
    """numpy.matmul's result shape."""
    if a is None or b is None:
        return None
    if not a or not b:
        raise Misfit("a scalar has no matrix product")
    rows: Shape = () if len(a) == 1 else (a[-2],)
    columns: Shape = () if len(b) == 1 else (b[-1],)
    inner_a, inner_b = a[-1], b[-1] if len(b) == 1 else b[-2]
    check_inner(inner_a, inner_b)
    batch = broadcast(a[:-2], b[:-2])
    assert batch is not None and rows is not None and columns is not None
    return batch + rows + columns


def check_inner(a: Dim, b: Dim) -> None:
    """Refuse a product whose inner dimensions are known to differ."""
    if isinstance(a, int) and isinstance(b, int) and a != b:
        raise Misfit(f"inner dimensions {a} and {b} differ")


@rule("MatMul")
def _matmul(call: Call) -> TensorType:
    a, b = call.tensor(0), call.tensor(1)
    if a.dtype != b.dtype:
        raise Misfit(f"dtypes {a.dtype} and {b.dtype} differ")
    return TensorType(a.dtype, matmul_shape(a.shape, b.shape))


@rule("MatMulInteger")
def _matmul_integer(call: Call) -> TensorType:
    return TensorType("int32", matmul_shape(call.shape(0), call.shape(1)))


@rule("QLinearMatMul")
def _qlinear_matmul(call: Call) -> TensorType:
    return TensorType(call.dtype(7), matmul_shape(call.shape(0), call.shape(3)))


@rule("Gemm")
def _gemm(call: Call) -> TensorType:
    a, b = call.shape(0), call.shape(1)
    if a is None or b is None:
        return TensorType(call.dtype(0), (None, None))
    if len(a) != 2 or len(b) != 2:
        raise Misfit("both factors must be matrices")
    rows, inner_a = reversed(a) if call.attrs["transA"] else a
    inner_b, columns = reversed(b) if call.attrs["transB"] else b
    check_inner(inner_a, inner_b)
    if call.has(2):
        # C broadcasts to the product and never the other way.
        broadcast((rows, columns), call.shape(2))
    return TensorType(call.dtype(0), (rows, columns))


@rule("Einsum")
def _einsum(call: Call) -> TensorType:
    """Labels name dimensions; "..." stands for batch dimensions that broadcast."""
    equation = call.attrs["equation"]
    if not isinstance(equation, str):
        raise Misfit(f"equation {equation!r} is no text")
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(call.inputs):
        raise Misfit(f"equation {equation!r} has {len(terms)} terms")
    sizes: dict[str, Dim] = {}
    batches: list[Shape] = []
    for index, term in enumerate(terms):
        shape = call.shape(index)
        if shape is None:
            return TensorType(call.dtype(0), None)
        labels, batch = _split_term(term, shape, equation)
        batches.append(batch)
        for label, dim in labels:
            sizes[label] = broadcast_dim(sizes.get(label, 1), dim)
    if not arrow:
        # The labels that occur once, in alphabetical order, after the batch.
        right = "..." + "".join(sorted(label for label in sizes if left.count(label) == 1))
    if any(label not in sizes for label in right.replace("...", "")):
        raise Misfit(f"equation {equation!r} names a result dimension that no input has")
    shape = broadcast(*batches) if "..." in right else ()
    assert shape is not None
    before, _, after = right.partition("...")
    dims = [*(sizes[x] for x in before), *shape, *(sizes[x] for x in after)]
    return TensorType(call.dtype(0), tuple(dims))


def _split_term(
    term: str, shape: tuple[Dim, ...], equation: str
) -> tuple[list[tuple[str, Dim]], tuple[Dim, ...]]:
    """The labelled dimensions of one input, and those that its "..." stands for."""
    before, dots, after = term.partition("...")
    named = before + after
    n_batch = len(shape) - len(named)
    if n_batch < 0 or (n_batch and not dots) or not all(map(str.isalpha, named)):
        raise Misfit(f"term {term!r} of equation {equation!r} does not fit rank {len(shape)}")
    end = len(before) + n_batch
    labelled = [*zip(before, shape, strict=False), *zip(after, shape[end:], strict=True)]
    return labelled, shape[len(before) : end]

"""Float32 matrix products by the tiled kernel of `product`: with known weights, or of free sizes.

What enters: a MatMul node in one of its forms, and the values of its operands. What leaves:
statements that hand each vector of the product to `write`. Right-hand sides known only at run time
are packed into panels first, unless their rows can be read as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from whitebox.compiler.lower.value import (
    Axes,
    Body,
    Index,
    Scope,
    Value,
    const,
)
from whitebox.errors import CompileError, NoSuchVariant
from whitebox.ir.graph import Node
from whitebox.ir.sizes import Extent
from whitebox.ir.sizes import product as size_of
from whitebox.kernels.cpu import blocking
from whitebox.kernels.cpu.affine import Opaque, expression, flatten, unflatten
from whitebox.kernels.cpu.blocking import Blocking
from whitebox.kernels.cpu.gemm_tiles import choose_nt
from whitebox.kernels.cpu.nest import Array
from whitebox.kernels.cpu.product import Panel, Product, TileScope, Write

# A number of columns for which every width of a panel fits as well as it ever does.
_MANY = 1 << 12


def product(node: Node, args: Sequence[Value], body: Body, write: Write) -> None:
    """Add the statements of a product to the body; `write(scope, axes)` stores what is at `axes`.

    Raises CompileError for products with vectors.
    """
    a, b = args[:2]
    shape, k = node.tensor.extents, a.shape[-1]
    packed = node.op == "whitebox.MatMul"
    if not packed and min(len(a.shape), len(b.shape)) < 2:
        raise CompileError(f"{node.op} with a vector has no kernel for free sizes")
    transposed = node.op == "whitebox.MatMulTransposed"
    n: Extent = node.attr("n") if packed else b.shape[-2 if transposed else -1]
    nt = node.attr("nt") if packed else choose_nt(n if isinstance(n, int) else _MANY, body.lanes)
    # Products that share B are one product with more rows.
    shared = packed or size_of(b.shape[:-2]) == 1
    lead = shape[:-1] if shared else shape[-2:-1]
    batch, m = (() if shared else shape[:-2]), size_of(lead)
    left = body.materialize(a)
    panel, panels = _panels(node, b, body, n, nt)
    cut = _cut(body, size_of(batch), m, k, n, nt, packed)
    groups = panels if cut.panels == 1 else body.quotient(panels, cut.panels)
    chunks = body.quotient(m, cut.rows)
    tiles = Product(
        batch, m, k, n, panels, groups, chunks, nt, body.lanes, body.target.threads, cut
    )

    def element(scope: Scope, outer: Axes, row: Index, at: Index) -> Any:
        if shared:
            assert isinstance(left.element, Array)
            return scope.load(left.element.buffer, row * k + at)
        return left.broadcast(scope, (*outer, row, at))

    def store(scope: TileScope, axes: Axes) -> list[Any]:
        *outer, row, column = axes
        scope.axes = (*outer, *unflatten(row, lead), column)
        return write(scope, scope.axes)

    body.statements.append(tiles.statements(element, panel, store))


def _cut(
    body: Body, batch: Extent, m: Extent, k: Extent, n: Extent, nt: int, packed: bool
) -> Blocking:
    """How the product is cut; only panels that lie one after the other are cut along K."""
    lanes, threads = body.lanes, body.target.threads
    best = blocking.choose(m, k, n, nt, batch=batch, lanes=lanes, threads=threads, deep=packed)
    if not body.variant:
        return best
    others = tuple(blocking.alternatives(best, nt, lanes))
    if body.variant > len(others):
        raise NoSuchVariant(f"a product has {len(others) + 1} schedules")
    return others[body.variant - 1]


def _panels(node: Node, b: Value, body: Body, n: Extent, nt: int) -> tuple[Panel, Extent]:
    """Where panels of B are, and how many there are."""
    if node.op == "whitebox.MatMul":
        weights = body.materialize(b).element
        assert isinstance(weights, Array)
        return _panel_in(weights, ()), weights.shape[0]
    lead, transposed = b.shape[:-2], node.op == "whitebox.MatMulTransposed"
    if not transposed and isinstance(n, int) and n % nt == 0:
        rows = body.materialize(b).element
        assert isinstance(rows, Array)
        return _rows_of(rows, nt), n // nt
    panels = body.quotient(n, nt)
    source = body.materialize(b)

    def element(scope: Scope, axes: Axes) -> Any:
        *outer, panel, k, j = axes
        column = panel * nt + j
        if not isinstance(n, int) or n % nt:
            # Past the last column it repeats that: what comes of it is not written out.
            last = const(0, "int32") + expression(n) - const(1, "int32")
            kept = tirx.min(column.expr, last)
            column = Index({Opaque(kept, 0, n - 1, column.loops): 1})
        return source.at(scope, (*outer, *((column, k) if transposed else (k, column))))

    packed = Value("float32", (*lead, panels, b.shape[-1 if transposed else -2], nt), element)
    array = body.materialize(packed).element
    assert isinstance(array, Array)
    return _panel_in(array, lead), panels


def _panel_in(array: Array, lead: Sequence[Extent]) -> Panel:
    """Panels laid out as `[batch of B, panel, K, nt]`."""

    def place(batch: Axes, panel: Index, k: Index) -> tuple[Any, Index]:
        return array.buffer, flatten((*_own(batch, lead), panel, k, Index({})), array.shape)

    return place


def _rows_of(array: Array, nt: int) -> Panel:
    """Panels that are pieces of B's own rows."""

    def place(batch: Axes, panel: Index, k: Index) -> tuple[Any, Index]:
        outer = _own(batch, array.shape[:-2])
        return array.buffer, flatten((*outer, k, panel * nt), array.shape)

    return place


def _own(batch: Axes, lead: Sequence[Extent]) -> Axes:
    """The indices of B's own batch, which broadcasts to the product's."""
    if size_of(lead) == 1:
        return (Index({}),) * len(lead)
    last = batch[len(batch) - len(lead) :]
    return tuple(Index({}) if dim == 1 else axis for axis, dim in zip(last, lead, strict=True))

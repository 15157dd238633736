"""Decision trees without a walk: every node of a tree is looked at, in an order that needs no path.

Enters: flat buffers of features, of the trees' nodes and of their leaves' scores. Leaves: TIR
statements that fill partial results, one for each part of the ensemble. Knows no Graph.

The leaves of a tree are numbered from left to right and its nodes come in preorder. A row's `leaf`
starts at the first one. A node splits the leaves [first, …) of its subtree at `next`: when the row
fails its test *and stands at `first`* it moves to `next`. It stands there just when the path leads
through the node, for nodes off the path are right of where it stands, or were left behind. So each
node costs two comparisons and two selections in as many lanes as a vector has, on addresses that
depend on nothing: no step waits for the look-ups of the one before.

(After Lucchese et al., "QuickScorer", SIGIR 2015, where a word of bits says which leaves are left:
a number does as well, for trees of any size.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

from tvm import tirx

from whitebox.ir.sizes import Extent, Size
from whitebox.kernels.cpu.affine import expression
from whitebox.kernels.cpu.injective import PARALLEL_WORK
from whitebox.kernels.cpu.nest import loop_over, new_var, sequence, share, worth

# Vectors in flight: they hide the latency of each other's selections, and those of rows share the
# loads of a node.
VECTORS = 4
# Nodes of trees that all rows go through before the next ones: they stay in the cache.
_CHUNK_NODES = 1024
# What a node costs (in units of `PARALLEL_WORK`): at some vectors of rows; at some trees of a row,
# whose features are looked up one by one.
_ROWS_COST, _TREES_COST = 18, 45


@dataclass(frozen=True)
class Tables:
    """The flat arrays of an ensemble.

    A group is a number of trees whose nodes lie beside each other: `feature`, `threshold`, `first`
    and `after` are [groups, nodes, trees of a group]; `count` [groups] says how many nodes a tree
    of the group has at most. `scores` are [leaves, results], and `leaf` [groups, trees of a group]
    is where a tree's leaves begin, from which `first` and `after` count. Past the nodes of a tree,
    `first` is negative: no row stands there.
    """

    count: Any
    leaf: Any
    feature: Any
    threshold: Any
    first: Any
    after: Any
    scores: Any


@dataclass(frozen=True)
class Scan:
    """Sizes of an ensemble, and how scores are combined."""

    groups: int
    nodes: int
    width: int
    features: int
    results: int
    identity: float
    combine: Callable[[Any, Any], Any]
    lanes: int
    threads: int

    @property
    def chunk(self) -> int:
        """Trees that are summed before the next ones."""
        return max(1, min(self.groups, _CHUNK_NODES // max(self.nodes, 1)))

    @property
    def chunks(self) -> int:
        return -(-self.groups // self.chunk)

    def over_rows(
        self, tables: Tables, x: Any, partial: Any, blocks: Extent, vectors: int
    ) -> list[Any]:
        """Neighbouring rows in the lanes; groups are single trees.

        `x` is [blocks, features, rows of a block], `partial` [chunks, results, blocks, rows of a
        block].
        """
        item, count = new_var("item"), expression(blocks)
        rows = _Rows(self, tables, vectors)
        chunk, block = tirx.truncdiv(item, count), tirx.truncmod(item, count)
        place = (chunk * self.results * count + block) * rows.size
        body = rows.statement(x, block, chunk, partial, place, count * rows.size)
        work = blocks * self.groups * self.nodes * _ROWS_COST
        parallel = worth(work, PARALLEL_WORK, self.threads)
        return [share(item, blocks * self.chunks, body, parallel)]

    def over_trees(self, tables: Tables, x: Any, partial: Any, rows: Extent) -> list[Any]:
        """The trees of a group in the lanes.

        `x` is [rows, features], `partial` [rows, results, groups, trees of a group].
        """
        item = new_var("item")
        row = tirx.truncdiv(item, tirx.const(self.groups, "int32"))
        group = tirx.truncmod(item, tirx.const(self.groups, "int32"))
        body = _Trees(self, tables).statement(x, row, group, partial)
        work = rows * self.groups * self.nodes * _TREES_COST
        parallel = worth(work, PARALLEL_WORK, self.threads)
        return [share(item, rows * self.groups, body, parallel)]


@dataclass(frozen=True)
class _Rows:
    """A chunk of trees by some vectors of rows."""

    scan: Scan
    tables: Tables
    vectors: int

    @property
    def size(self) -> int:
        """Rows of a block."""
        return self.vectors * self.scan.lanes

    def statement(
        self, x: Any, block: Any, chunk: Any, partial: Any, place: Any, stride: Any
    ) -> Any:
        """All trees of a chunk; the combined score of result `r` goes to `place + r · stride`."""
        scan, lanes = self.scan, self.scan.lanes
        total = _local("total", "float32", scan.results * self.size)
        none = tirx.Broadcast(tirx.const(scan.identity, "float32"), lanes)
        slots = [_ramp(k * lanes, lanes) for k in range(scan.results * self.vectors)]
        stores = [
            tirx.BufferStore(
                partial,
                tirx.BufferLoad(total, [slots[r * self.vectors + v]]),
                [_ramp(place + r * stride + v * lanes, lanes)],
            )
            for r in range(scan.results)
            for v in range(self.vectors)
        ]
        first = chunk * scan.chunk
        trees = tirx.min(tirx.const(scan.chunk, "int32"), scan.groups - first)
        return sequence(
            [
                tirx.AllocBuffer(total),
                *(tirx.BufferStore(total, none, [slot]) for slot in slots),
                *self._trees(x, block * scan.features, first, trees, total),
                *stores,
            ]
        )

    def _trees(self, x: Any, start: Any, first: Any, trees: Any, total: Any) -> list[Any]:
        """Some trees beside each other where one has too few vectors, then those that are left."""
        beside, tree = VECTORS // self.vectors, new_var("tree")
        if beside == 1:
            return [loop_over(tree, trees, self._tile(x, start, [first + tree], total))]
        several = [first + tree * beside + k for k in range(beside)]
        rest, one = tirx.truncmod(trees, tirx.const(beside, "int32")), new_var("tree")
        return [
            loop_over(
                tree,
                tirx.truncdiv(trees, tirx.const(beside, "int32")),
                self._tile(x, start, several, total),
            ),
            loop_over(one, rest, self._tile(x, start, [first + trees - rest + one], total)),
        ]

    def _tile(self, x: Any, start: Any, trees: list[Any], total: Any) -> Any:
        """Each row's leaf in some trees, then the scores of these leaves."""
        scan, tables, lanes = self.scan, self.tables, self.scan.lanes
        leaf = _local("leaf", "int32", len(trees) * self.size)
        zero = tirx.Broadcast(tirx.const(0, "int32"), lanes)
        tile = [(tree, v) for tree in trees for v in range(self.vectors)]
        slots = [k * lanes for k in range(len(tile))]
        at, steps = new_var("k"), []
        for (tree, v), slot in zip(tile, slots, strict=True):
            node = _Node(tables, tree * scan.nodes + at, lanes)
            row = (start + node.feature) * self.size + v * lanes
            steps.append(node.step(leaf, slot, tirx.BufferLoad(x, [_ramp(row, lanes)])))
        counts = [tirx.BufferLoad(tables.count, [tree]) for tree in trees]
        statements = [
            tirx.AllocBuffer(leaf),
            *(tirx.BufferStore(leaf, zero, [_ramp(slot, lanes)]) for slot in slots),
            loop_over(at, reduce(tirx.max, counts), sequence(steps)),
        ]
        for r in range(scan.results):
            for (tree, v), slot in zip(tile, slots, strict=True):
                start_of = tirx.Broadcast(tirx.BufferLoad(tables.leaf, [tree]), lanes)
                score = _score(scan, tables, start_of, leaf, slot, r)
                sum_slot = [_ramp((r * self.vectors + v) * lanes, lanes)]
                added = scan.combine(tirx.BufferLoad(total, sum_slot), score)
                statements.append(tirx.BufferStore(total, added, sum_slot))
        return sequence(statements)


@dataclass(frozen=True)
class _Trees:
    """A group of trees by one row."""

    scan: Scan
    tables: Tables

    def statement(self, x: Any, row: Any, group: Any, partial: Any) -> Any:
        """All nodes of a group, then the scores of the leaves."""
        scan, tables, lanes = self.scan, self.tables, min(self.scan.lanes, self.scan.width)
        leaf = _local("leaf", "int32", scan.width)
        zero = tirx.Broadcast(tirx.const(0, "int32"), lanes)
        parts = range(0, scan.width, lanes)
        at, steps = new_var("k"), []
        for part in parts:
            place = (group * scan.nodes + at) * scan.width + part
            node = _Node(tables, _ramp(place, lanes), lanes)
            start = tirx.Broadcast(row * scan.features, lanes)
            steps.append(node.step(leaf, part, tirx.BufferLoad(x, [start + node.feature])))
        statements = [
            tirx.AllocBuffer(leaf),
            *(tirx.BufferStore(leaf, zero, [_ramp(part, lanes)]) for part in parts),
            loop_over(at, tirx.BufferLoad(tables.count, [group]), sequence(steps)),
        ]
        for r in range(scan.results):
            for part in parts:
                start = tirx.BufferLoad(tables.leaf, [_ramp(group * scan.width + part, lanes)])
                score = _score(scan, tables, start, leaf, part, r)
                place = ((row * scan.results + r) * scan.groups + group) * scan.width + part
                statements.append(tirx.BufferStore(partial, score, [_ramp(place, lanes)]))
        return sequence(statements)


@dataclass(frozen=True)
class _Node:
    """A node in all lanes of a vector, or, where `place` is a vector, a node in each lane."""

    tables: Tables
    place: Any
    lanes: int

    @property
    def feature(self) -> Any:
        """The feature that is looked at."""
        return tirx.BufferLoad(self.tables.feature, [self.place])

    def step(self, leaf: Any, slot: int, value: Any) -> Any:
        """The leaves from `slot` on after the test of `value`."""
        tables = self.tables.first, self.tables.after, self.tables.threshold
        first, after, threshold = map(self._in_lanes, tables)
        stands = tirx.BufferLoad(leaf, [_ramp(slot, self.lanes)])
        # NaN fails: a negated comparison would be turned into the opposite one.
        moved = tirx.Select(value <= threshold, first, after)
        on_path = tirx.Select(tirx.EQ(stands, first), moved, stands)
        return tirx.BufferStore(leaf, on_path, [_ramp(slot, self.lanes)])

    def _in_lanes(self, table: Any) -> Any:
        value = tirx.BufferLoad(table, [self.place])
        return value if isinstance(self.place, tirx.Ramp) else tirx.Broadcast(value, self.lanes)


def _score(scan: Scan, tables: Tables, start: Any, leaf: Any, slot: int, result: int) -> Any:
    """One result's scores of the leaves from `slot` on, of trees whose leaves begin at `start`."""
    lanes = scan.lanes if scan.width == 1 else min(scan.lanes, scan.width)
    place = start + tirx.BufferLoad(leaf, [_ramp(slot, lanes)])
    if scan.results > 1:
        place = place * tirx.Broadcast(tirx.const(scan.results, "int32"), lanes)
        place = place + tirx.Broadcast(tirx.const(result, "int32"), lanes)
    return tirx.BufferLoad(tables.scores, [place])


def _local(name: str, dtype: str, size: int) -> Any:
    return tirx.decl_buffer((size,), dtype, name=name, scope="local")


def _ramp(start: Any, lanes: int) -> Any:
    start = tirx.const(start, "int32") if isinstance(start, int) else start
    return tirx.Ramp(start, 1, lanes)


def rows_of_block(rows: Extent, lanes: int) -> int:
    """Vectors of a block, such that the last block is nearly full."""
    if isinstance(rows, Size):
        return VECTORS
    vectors = -(-rows // lanes)
    return -(-vectors // -(-vectors // VECTORS))

"""simplify: rewrite the graph into fewer, more regular nodes.

Everything here holds for every target: identities, folding per-channel affine maps into weights,
recognising spelled-out operators, cancelling transposes. What is changed is rounding at most.
"""

from __future__ import annotations

from whitebox.ir.graph import Graph
from whitebox.passes.rewrite import Rule, rewrite
from whitebox.passes.rules.affine import AFFINE
from whitebox.passes.rules.algebra import ALGEBRA
from whitebox.passes.rules.ml import LINEAR, MACHINE_LEARNING, ML
from whitebox.passes.rules.movement import MOVEMENT
from whitebox.passes.rules.norm import NORM
from whitebox.passes.rules.precision import PRECISION
from whitebox.passes.rules.scan import SCAN
from whitebox.passes.rules.svm import SVM
from whitebox.passes.rules.table import TABLE
from whitebox.passes.rules.text import TEXT
from whitebox.passes.rules.transpose import TRANSPOSE
from whitebox.passes.rules.unit_axes import UNIT_AXES


def simplify(graph: Graph) -> Graph:
    """Apply RULES until none fires."""
    return rewrite(graph, RULES)


def spell_weights(graph: Graph) -> Graph:
    """The graph with weights as constants where operators hold them as attributes."""
    ops = {ML + name for name in ("Scaler", "LinearRegressor", "LinearClassifier")}
    return rewrite(graph, LINEAR) if any(node.op in ops for node in graph.nodes) else graph


# The order matters only where two rules match the same node: the first one wins.
RULES: tuple[Rule, ...] = (
    *TEXT,
    *MACHINE_LEARNING,
    *SVM,
    *SCAN,
    *PRECISION,
    *NORM,
    *AFFINE,
    *MOVEMENT,
    *ALGEBRA,
    *TABLE,
    *TRANSPOSE,
    *UNIT_AXES,
)

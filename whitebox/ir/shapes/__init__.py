"""Type inference in pure Python: the table `RULES`, one module a family of operators."""

from whitebox.ir.shapes import (  # noqa: F401  (importing registers the rules)
    blocked,
    control,
    elementwise,
    integer,
    linear,
    ml,
    movement,
    reduction,
    spatial,
    text,
    trees,
    views,
)
from whitebox.ir.shapes.rule import RULES, Call, Misfit

__all__ = ["RULES", "Call", "Misfit"]

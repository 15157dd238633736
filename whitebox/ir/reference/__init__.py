"""What operators mean, in numpy: for constants, for tests, and where there is no kernel."""

from whitebox.ir.reference import (  # noqa: F401  (each fills the table)
    bf16,
    blocked,
    elementwise,
    integer,
    labels,
    movement,
    optional,
    recurrent,
    text,
    trees,
    windows,
)
from whitebox.ir.reference.control import CONTROL
from whitebox.ir.reference.table import SEMANTICS

__all__ = ["CONTROL", "SEMANTICS"]

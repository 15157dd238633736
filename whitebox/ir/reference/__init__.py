"""What operators mean, in numpy: for constants, for tests, and where there is no kernel."""

from whitebox.ir.reference import blocked, elementwise, movement, optional, windows  # noqa: F401  (fill the table)
from whitebox.ir.reference.control import CONTROL
from whitebox.ir.reference.table import SEMANTICS

__all__ = ["CONTROL", "SEMANTICS"]

"""`python -m whitebox.cli`: the same as `whitebox`, for where no script is on the path."""

from __future__ import annotations

from whitebox.cli.app import main

main()

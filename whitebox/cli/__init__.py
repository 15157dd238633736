"""The command line. `whitebox --help`."""

from __future__ import annotations

from whitebox.cli.app import main

__all__ = ["main"]

"""Settings, read once from the environment.

`WHITEBOX_HOME`      where models, blobs and kernels live (default: the user's data folder)
`WHITEBOX_THREADS`   threads of a parallel kernel (default: the cores this process may use)
`WHITEBOX_DEBUG`     1 pass table, 2 graphs, 3 rules fired, 4 TIR (default: 0)
`WHITEBOX_DUMP`      a folder that receives each graph and each kernel's TIR
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """The folder that holds everything that is kept."""
    given = os.environ.get("WHITEBOX_HOME")
    return Path(given).expanduser() if given else Path(platformdirs.user_data_dir("whitebox"))


def threads() -> int:
    """How many threads a parallel kernel uses."""
    given = os.environ.get("WHITEBOX_THREADS")
    if given and given.isdigit() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def debug() -> int:
    """The debug level, 0 to 4."""
    given = os.environ.get("WHITEBOX_DEBUG", "0")
    return int(given) if given.isdigit() else 0


def dump_dir() -> Path | None:
    """Where to dump graphs and TIR, if anywhere."""
    given = os.environ.get("WHITEBOX_DUMP")
    return Path(given) if given else None

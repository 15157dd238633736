"""Settings, read once from the environment.

`WHITEBOX_HOME`      where models, blobs and kernels live (default: the user's data folder)
`WHITEBOX_THREADS`   threads of a parallel kernel (default: the cores this process may use)
`WHITEBOX_MEMORY_BUDGET`  how much memory models may hold, such as 512m or 1g (default: no bound)
`WHITEBOX_DEBUG`     1 pass table, 2 graphs, 3 rules fired, 4 TIR (default: 0)
`WHITEBOX_DUMP`      a folder that receives each graph and each kernel's TIR
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import platformdirs

from whitebox.errors import InvalidInput


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


def memory_budget() -> int | None:
    """How many bytes models may hold in memory. Raises InvalidInput when it is no size."""
    given = os.environ.get("WHITEBOX_MEMORY_BUDGET")
    return parse_size(given) if given else None


_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]?)(?:i?b)?", re.ASCII | re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes, spelled as Docker takes them: 512m, 1g, 1.5GiB; units are powers of 1024.

    Raises InvalidInput.
    """
    match = _SIZE.fullmatch(text.strip()) if len(text) < 40 else None
    size = (
        0
        if match is None
        else int(float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " "))
    )
    if size < 1:
        raise InvalidInput(f"{text[:40]!r} is not a size: write 512m or 1.5g, for example")
    return size


def debug() -> int:
    """The debug level, 0 to 4."""
    given = os.environ.get("WHITEBOX_DEBUG", "0")
    return int(given) if given.isdigit() else 0


def dump_dir() -> Path | None:
    """Where to dump graphs and TIR, if anywhere."""
    given = os.environ.get("WHITEBOX_DUMP")
    return Path(given) if given else None

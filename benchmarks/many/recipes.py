"""The sets of models: how many each has.

The module of a set's name has `build(files) -> requests`, run in a process of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

Feeds = dict[str, np.ndarray]

RECIPES: Mapping[str, int] = MappingProxyType(
    {"sentiment": 250, "attendance": 250, "heads": 100, "cnns": 100, "unrelated": 50}
)

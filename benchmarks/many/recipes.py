"""What a recipe for a set of models is: where it is, how many it makes, what its requests are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Recipe:
    """A set of models. `module` has `build(files) -> requests`, run in a process of its own."""

    title: str
    module: str
    count: int


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "sentiment": Recipe("sentiment pipelines", "sentiment", 250),
        "attendance": Recipe("attendance pipelines", "attendance", 250),
        "heads": Recipe("heads on one MiniLM", "heads", 100),
        "cnns": Recipe("CNNs of one architecture", "cnns", 100),
        "unrelated": Recipe("unrelated models", "unrelated", 50),
    }
)

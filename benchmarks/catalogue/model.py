"""What the catalogue says of a model, and how seeded inputs are drawn.

What enters: nothing. What leaves: `Model`, `Input` and the ways to draw values. It downloads and
exports nothing; `benchmarks.models` does.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
# real: weights somebody trained, from a package. light: an architecture of the onnx package, with
# seeded weights. export: exported here from PyTorch, scikit-learn or LightGBM, with seeded weights.
# quantized: made here by onnxruntime's quantiser, with seeded weights.
Kind = Literal["real", "light", "export", "quantized"]


def uniform(low: float, high: float) -> Draw:
    """float32 values spread evenly over [low, high)."""
    return lambda rng, shape: rng.uniform(low, high, shape).astype(np.float32)


def normal(scale: float) -> Draw:
    """float32 values around zero."""
    return lambda rng, shape: (rng.standard_normal(shape) * scale).astype(np.float32)


def integers(low: int, high: int, dtype: str = "int64") -> Draw:
    """Whole numbers in [low, high): token ids, bytes."""
    return lambda rng, shape: rng.integers(low, high, shape).astype(dtype)


CENTRED = uniform(-1, 1)


@dataclass(frozen=True, slots=True)
class Input:
    """One input: its name, its dimensions (numbers, or letters that `sizes` fills), its values."""

    name: str
    dims: tuple[int | str, ...]
    draw: Draw


@dataclass(frozen=True, eq=False)
class Model:
    """One model.

    `package` is pinned as pip spells it: what has the model, or what exports it. `file` is a glob
    that one file in the package matches, or "module/recipe.onnx" of `benchmarks.exports`. `sizes`
    fills the free dimensions; `variants` are other sizes that the model must take as well.
    `only_tag` is set when wheels exist for one version of Python only.
    """

    name: str
    package: str
    file: str
    licence: str
    inputs: tuple[Input, ...]
    sizes: Mapping[str, int] = field(default_factory=dict)
    variants: tuple[Mapping[str, int], ...] = ()
    only_tag: str | None = None
    kind: Kind = "real"

    def feeds(self, seed: int = 0, **sizes: int) -> dict[str, np.ndarray]:
        """Seeded inputs at the usual sizes, or at those given: `feeds(0, N=4)`."""
        unknown = set(sizes) - set(self.sizes)
        if unknown:
            raise ValueError(f"{self.name} has no free size {', '.join(sorted(unknown))}")
        filled = {**self.sizes, **sizes}
        # The name takes part, so that two models never get the same data by accident.
        rng = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        return {
            given.name: given.draw(
                rng, tuple(filled[dim] if isinstance(dim, str) else dim for dim in given.dims)
            )
            for given in self.inputs
        }


def tokens(names: tuple[str, ...], vocabulary: int) -> tuple[Input, ...]:
    """Token ids, then an attention mask of ones, then (where taken) token types of zeros."""
    draws = (integers(0, vocabulary), integers(1, 2), integers(0, 1))
    return tuple(Input(name, ("N", "L"), draw) for name, draw in zip(names, draws, strict=False))


TEXT_SIZES = tuple({"N": batch, "L": length} for batch in (1, 5) for length in (8, 64, 128))

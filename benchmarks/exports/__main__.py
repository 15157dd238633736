"""`python -m benchmarks.exports MODULE/RECIPE.onnx FILE` writes one model."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def main() -> None:
    module, _, file = sys.argv[1].partition("/")
    recipes = importlib.import_module(f"benchmarks.exports.{module}").RECIPES
    Path(sys.argv[2]).write_bytes(recipes[file.removesuffix(".onnx")]())


if __name__ == "__main__":
    main()

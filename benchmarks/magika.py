"""What kind of file is this? The few lines around Google's magika model (magika 1.0.3).

What enters: a file's bytes, and the model's scores. What leaves: the 2048 numbers the model takes,
and a label. The model sees the first and last 1024 bytes, white space at the ends left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.catalogue import MODELS
from benchmarks.models import package_file


@dataclass(frozen=True)
class Config:
    """The part of the model's own configuration that is needed."""

    beg_size: int
    end_size: int
    block_size: int
    padding_token: int
    min_file_size_for_dl: int
    target_labels_space: list[str]

    @classmethod
    def load(cls) -> Config:
        """Read it from the package that has the model."""
        file: Path = package_file(MODELS["magika"].package, "*/config.min.json")
        content = json.loads(file.read_text())
        return cls(**{name: content[name] for name in cls.__dataclass_fields__})


def tokens(content: bytes, config: Config) -> np.ndarray:
    """i32[1, 2048]: bytes as numbers, padded where the file is short.

    Raises ValueError when there is too little to go by.
    """
    first = content[: config.block_size].lstrip()[: config.beg_size]
    last = content[-config.block_size :].rstrip()[-config.end_size :]
    if len(first) < config.min_file_size_for_dl:
        raise ValueError(f"a file needs {config.min_file_size_for_dl} bytes to be told apart")
    row = np.full(config.beg_size + config.end_size, config.padding_token, np.int32)
    row[: len(first)] = np.frombuffer(first, np.uint8)
    row[len(row) - len(last) :] = np.frombuffer(last, np.uint8)
    return row[np.newaxis]


def label(scores: np.ndarray, config: Config) -> tuple[str, float]:
    """The most likely kind of file, and how sure the model is (0 to 1)."""
    best = int(scores.argmax())
    return config.target_labels_space[best], float(scores.reshape(-1)[best])

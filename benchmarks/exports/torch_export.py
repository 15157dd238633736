"""A PyTorch module as an ONNX model whose weights are seeded and whose answers vary.

What enters: a module, example inputs, which dimensions are free. What leaves: bytes. The weights
keep the scale of activations from layer to layer; batch normalisations get the statistics of the
example inputs, so that no depth makes them vanish or grow.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

OPSET = 20  # the peers read it


def exported(
    module: nn.Module,
    inputs: dict[str, torch.Tensor],
    free: dict[int, str],
    outputs: Sequence[str] = ("y",),
) -> bytes:
    """The module with seeded weights, in ONNX. `free` names the free dimensions of every input."""
    seed(module)
    with torch.no_grad():
        _calibrate(module, tuple(inputs.values()))
        answer = module(*inputs.values())
    _check_varies(answer if isinstance(answer, torch.Tensor) else answer[0])
    dims = {axis: torch.export.Dim(name, min=1, max=4096) for axis, name in free.items()}
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=tuple(dims for _ in inputs),
            verbose=False,
        )
        assert program is not None
        file = Path(folder) / "model.onnx"
        program.save(file, external_data=False)
        return file.read_bytes()


def seed(module: nn.Module) -> None:
    """Weights that keep the scale of what passes; scales near one, biases small."""
    module.eval()
    generator = torch.Generator().manual_seed(0)
    # Embeddings are looked up, not summed over.
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    for name, weight in module.named_parameters():
        draw = torch.randn(weight.shape, generator=generator)
        if id(weight) in tables:
            weight.data = 0.5 * draw
        elif weight.dim() > 1:
            # [outputs, inputs, …]; √2 makes up for what a rectifier drops.
            gain = math.sqrt(2) if weight.dim() > 2 else 1.0
            weight.data = draw * gain / math.sqrt(math.prod(weight.shape[1:]))
        elif name.endswith("bias") or "bias_" in name:
            weight.data = 0.1 * draw
        else:
            weight.data = 1 + 0.2 * draw


def _calibrate(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Give batch normalisations the statistics of `inputs`."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the average over all calls, which is one
        norm.train()
    if norms:
        module(*inputs)
    module.eval()


def _check_varies(answer: torch.Tensor) -> None:
    """Refuse a model whose answer is the same everywhere or for every input."""
    spread, between = answer.std(), (answer - answer.mean(0)).std()
    if not (answer.isfinite().all() and spread > 1e-3 and between > 1e-2 * spread):
        raise ValueError(f"the answer hardly varies: spread {spread}, between rows {between}")

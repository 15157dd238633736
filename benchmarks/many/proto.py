"""Small graphs in ONNX's own form, written by hand for runtimes of many makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# The newest that every peer reads.
OPSETS = {"": 20, "ai.onnx.ml": 3, "com.microsoft": 1}
IR_VERSION = 10

FLOAT, STRING = TensorProto.FLOAT, TensorProto.STRING
Shape = Sequence[int | str]


def weights(arrays: Mapping[str, np.ndarray]) -> list[onnx.TensorProto]:
    """Initializers by name."""
    return [numpy_helper.from_array(array, name) for name, array in arrays.items()]


def save(
    file: Path,
    nodes: Sequence[onnx.NodeProto],
    x: tuple[int, Shape],
    y: Shape,
    stored: Mapping[str, np.ndarray],
) -> None:
    """Write a model from "x", of an element type and shape, to "y" in float32."""
    graph = helper.make_graph(
        list(nodes),
        file.stem,
        [helper.make_tensor_value_info("x", *x)],
        [helper.make_tensor_value_info("y", FLOAT, y)],
        weights(stored),
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    onnx.save(model, file)

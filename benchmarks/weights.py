"""The same architecture with other weights.

What enters: a model and a seed. What leaves: a new model with the same nodes and shapes whose
weights are seeded random numbers of a sane scale. Scalars and small vectors (bounds, resize
scales, axes) are part of the architecture and stay.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import numpy_helper

# Smaller float constants are settings rather than weights.
_MIN_WEIGHTS = 16
_WRAPPERS = frozenset(("Unsqueeze", "Reshape", "Transpose", "Identity", "Cast"))
_MATRICES = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
_NORM_ROLES = ("data", "scale", "shift", "mean", "variance")


def randomised(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """A copy of `model` with other weights.

    Weights that nodes make (ConstantOfShape over a constant shape, as in onnx's light models)
    become initializers of a scale that fits their use: He for convolutions and products,
    positive for variances. Stored weights are perturbed by a tenth, which keeps their scale.
    """
    rng = np.random.default_rng(seed)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    # Before IR 4 an initializer had to be an input as well.
    result.ir_version = max(model.ir_version, 8)
    graph = result.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for tensor in graph.initializer:
        _perturb(tensor, rng)
    roles = _roles(graph)
    kept = []
    for node in graph.node:
        if node.op_type == "ConstantOfShape" and node.input[0] in stored:
            dims = tuple(int(dim) for dim in numpy_helper.to_array(stored[node.input[0]]))
            name = node.output[0]
            weights = _draw(roles.get(name, "shift"), dims, rng)
            graph.initializer.append(numpy_helper.from_array(weights, name))
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    _drop_unused(graph)
    return result


def _perturb(tensor: onnx.TensorProto, rng: np.random.Generator) -> None:
    if tensor.data_type != onnx.TensorProto.FLOAT or math.prod(tensor.dims) < _MIN_WEIGHTS:
        return
    values = numpy_helper.to_array(tensor)
    noise = 1 + 0.1 * rng.standard_normal(values.shape, dtype=np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values * noise, tensor.name))


def _roles(graph: onnx.GraphProto) -> dict[str, str]:
    """What each value is used as: "matrix", "scale", "branch", "shift", "mean" or "variance"."""
    roles: dict[str, str] = {}
    summed = {name for node in graph.node if node.op_type in ("Sum", "Add") for name in node.input}
    # Users come after what they use; backwards, a reshaped weight's role is known before it.
    for node in reversed(graph.node):
        for position, name in enumerate(node.input):
            role = "shift"
            if node.op_type in _MATRICES:
                role = "matrix" if position < 2 else "shift"
            elif node.op_type == "BatchNormalization":
                role = _NORM_ROLES[position]
                if role == "scale" and node.output[0] in summed:
                    role = "branch"
            elif node.op_type == "Mul":
                role = "scale"
            elif node.op_type in _WRAPPERS:
                role = roles.get(node.output[0], "shift")
            roles.setdefault(name, role)
    return roles


def _draw(role: str, dims: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if role == "variance":
        return rng.uniform(0.5, 1.5, dims).astype(np.float32)
    if role == "scale":
        return rng.uniform(0.5, 1.3, dims).astype(np.float32)
    if role == "branch":
        # Residual branches start small, or the sums of a deep network grow without bound.
        return rng.uniform(0.1, 0.4, dims).astype(np.float32)
    scale = 0.1
    if role == "matrix":
        # [outputs, inputs, …]: what one result sums over. A Gemm's or MatMul's is close enough.
        scale = math.sqrt(2 / max(1, math.prod(dims[1:])))
    return rng.standard_normal(dims, dtype=np.float32) * np.float32(scale)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove initializers that nothing reads, and inputs that are initializers."""
    read = {name for node in graph.node for name in node.input}
    initializers = [tensor for tensor in graph.initializer if tensor.name in read]
    names = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in names]
    del graph.initializer[:], graph.input[:]
    graph.initializer.extend(initializers)
    graph.input.extend(inputs)

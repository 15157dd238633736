"""Per-channel affine maps: BatchNormalization, and scales and biases around Conv and MatMul.

The new weights are expressions over the original ones. They are evaluated once, when a model is
loaded, so folding changes no kernel and costs no request anything.
"""

from __future__ import annotations

import numpy as np

from whitebox.ir import ops
from whitebox.ir.graph import Node, constant
from whitebox.ir.types import TensorType, numpy_dtype
from whitebox.passes.rewrite import Rule, is_shared, rule
from whitebox.passes.rules.algebra import reshape


def channel_vector(node: Node | None, rank: int, channels: int, axis: int = 1) -> Node | None:
    """A known tensor that varies along `axis` only, as a vector of length `channels`; else None."""
    if node is None or not node.is_constant_expression or not isinstance(node.type, TensorType):
        return None
    dims = node.type.dims
    if len(dims) > rank:
        return None
    aligned = (1,) * (rank - len(dims)) + dims
    if any(dim != 1 for position, dim in enumerate(aligned) if position != axis % rank):
        return None
    vector = reshape(node, (aligned[axis],))
    if aligned[axis] == channels:
        return vector
    if aligned[axis] != 1:
        return None
    return ops.node("Expand", vector, constant(np.array([channels], np.int64)))


def along(vector: Node, rank: int, axis: int) -> Node:
    """A vector as a tensor of `rank` dimensions that varies along `axis`."""
    dims = [1] * rank
    dims[axis] = vector.tensor.dims[0]
    return reshape(vector, tuple(dims))


def _known_operand(node: Node) -> tuple[Node, Node] | None:
    """The (unknown, known) operands of a commutative binary node, when exactly one is known."""
    a, b = node.inputs
    if a is None or b is None or a.is_constant_expression == b.is_constant_expression:
        return None
    return (b, a) if a.is_constant_expression else (a, b)


@rule("BatchNormalization")
def batch_norm_to_affine(node: Node) -> Node | None:
    """BatchNormalization(x, s, b, μ, σ²) = x · a + (b - μ · a),  a = s / √(σ² + ε)"""
    x, *parameters = node.inputs
    if x is None or node.attr("training_mode", 0) or len(node.types) != 1:
        return None
    scale, bias, mean, variance = parameters
    if scale is None or bias is None or mean is None or variance is None:
        return None
    if not all(each.is_constant_expression for each in (scale, bias, mean, variance)):
        return None
    epsilon = constant(np.array(node.attr("epsilon", 1e-5), _numpy(variance)))
    factor = ops.node("Div", scale, ops.node("Sqrt", ops.node("Add", variance, epsilon)))
    offset = ops.node("Sub", bias, ops.node("Mul", mean, factor))
    rank = x.tensor.rank
    scaled = ops.node("Mul", x, along(factor, rank, 1))
    return ops.node("Add", scaled, along(offset, rank, 1))


@rule("Mul")
def scale_into_conv(node: Node) -> Node | None:
    """Conv(x, W, b) · s = Conv(x, W · s, b · s), s known and per channel"""
    found = _known_operand(node)
    if found is None or found[0].op != "Conv" or is_shared(found[0]):
        return None
    conv, factor = found
    weight, bias = _conv_parameters(conv)
    if weight is None or conv.types != node.types:
        return None
    rank = conv.tensor.rank
    vector = channel_vector(factor, rank, conv.tensor.dims[1])
    if vector is None:
        return None
    scaled = ops.node("Mul", weight, along(vector, rank, 0))
    moved = None if bias is None else ops.node("Mul", bias, vector)
    return ops.rebuild(conv, (conv.inputs[0], scaled, *([moved] if moved else [])))


@rule("Add")
def bias_into_conv(node: Node) -> Node | None:
    """Conv(x, W, b) + c = Conv(x, W, b + c), c known and per channel"""
    found = _known_operand(node)
    if found is None or found[0].op != "Conv" or is_shared(found[0]):
        return None
    conv, offset = found
    weight, bias = _conv_parameters(conv)
    if weight is None or conv.types != node.types:
        return None
    vector = channel_vector(offset, conv.tensor.rank, conv.tensor.dims[1])
    if vector is None:
        return None
    moved = vector if bias is None else ops.node("Add", bias, vector)
    return ops.rebuild(conv, (conv.inputs[0], weight, moved))


@rule("Sub")
def sub_known(node: Node) -> Node | None:
    """x - c = x + (-c), c known"""
    a, b = node.inputs
    if a is None or b is None or not b.is_constant_expression or a.is_constant_expression:
        return None
    if not isinstance(node.type, TensorType) or not node.type.dtype.startswith("float"):
        return None
    return ops.node("Add", a, ops.node("Neg", b))


def _conv_parameters(conv: Node) -> tuple[Node | None, Node | None]:
    """(weight, bias) of a Conv whose parameters are known; (None, None) otherwise."""
    weight = conv.inputs[1]
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    known = weight is not None and weight.is_constant_expression and conv.tensor.is_static
    if not known or (bias is not None and not bias.is_constant_expression):
        return None, None
    return weight, bias


@rule("Mul")
def scale_into_matmul(node: Node) -> Node | None:
    """(x · W) ⊙ s = x · (W ⊙ s), s known and per column"""
    found = _known_operand(node)
    if found is None or found[0].op != "MatMul" or is_shared(found[0]):
        return None
    product, factor = found
    x, weight = product.inputs
    if weight is None or not weight.is_constant_expression or weight.tensor.rank != 2:
        return None
    if product.types != node.types or product.tensor.rank < 2:
        return None
    columns = weight.tensor.dims[1]
    vector = channel_vector(factor, product.tensor.rank, columns, axis=-1)
    if vector is None:
        return None
    return ops.node("MatMul", x, ops.node("Mul", weight, reshape(vector, (1, columns))))


@rule("Mul", "Add")
def merge_known(node: Node) -> Node | None:
    """(x · c) · d = x · (c · d);  (x + c) + d = x + (c + d);  c, d known"""
    found = _known_operand(node)
    if found is None or found[0].op != node.op or not _is_float32(node):
        return None
    inner = _known_operand(found[0])
    if inner is None or is_shared(found[0]):
        return None
    merged = ops.node(node.op, inner[1], found[1])
    # Worth it only while the merged operand stays as small as what it replaces.
    if merged.tensor.size > max(inner[1].tensor.size, found[1].tensor.size):
        return None
    result = ops.node(node.op, inner[0], merged)
    return result if result.types == node.types else None


@rule("Mul")
def distribute_known(node: Node) -> Node | None:
    """(x · a + b) · c = x · (a · c) + b · c;  a, b, c known"""
    found = _known_operand(node)
    if found is None or found[0].op != "Add" or is_shared(found[0]) or not _is_float32(node):
        return None
    sum_, factor = found
    terms = _known_operand(sum_)
    if terms is None or terms[0].op != "Mul" or _known_operand(terms[0]) is None:
        return None
    offset = ops.node("Mul", terms[1], factor)
    if offset.tensor.size > max(terms[1].tensor.size, factor.tensor.size):
        return None
    result = ops.node("Add", ops.node("Mul", terms[0], factor), offset)
    return result if result.types == node.types else None


def _is_float32(node: Node) -> bool:
    # In float16 a merged factor may overflow where the steps did not.
    return isinstance(node.type, TensorType) and node.type.dtype == "float32"


@rule("Gemm")
def gemm_to_matmul(node: Node) -> Node | None:
    """Gemm(A, B, C) = α · A' · B' + β · C, transposes made explicit"""
    a, b, *rest = node.inputs
    if a is None or b is None or not isinstance(node.type, TensorType) or not node.type.is_static:
        return None
    if node.attr("transA", 0):
        a = ops.node("Transpose", a, perm=(1, 0))
    if node.attr("transB", 0):
        b = ops.node("Transpose", b, perm=(1, 0))
    dtype = _numpy(node)
    alpha, beta = float(node.attr("alpha", 1.0)), float(node.attr("beta", 1.0))
    if alpha != 1.0:
        b = ops.node("Mul", b, constant(np.array(alpha, dtype)))
    result = ops.node("MatMul", a, b)
    bias = rest[0] if rest else None
    if bias is None or beta == 0.0:
        return result
    if beta != 1.0:
        bias = ops.node("Mul", bias, constant(np.array(beta, dtype)))
    return ops.node("Add", result, bias)


def _numpy(node: Node) -> np.dtype:
    return numpy_dtype(node.tensor.dtype)


@rule("ConvTranspose")
def conv_transpose_by_blocks(node: Node) -> Node | None:
    """ConvTranspose(x, W; stride = kernel): a pixel becomes a k×k block: Conv₁ₓ₁, reshuffled"""
    x, weight = node.inputs[:2]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if x is None or weight is None or not weight.is_constant_expression or x.tensor.rank != 4:
        return None
    kernel = weight.tensor.dims[2:]
    plain = (
        tuple(node.attr("strides", (1, 1))) == kernel
        and not any(node.attr("pads", (0, 0, 0, 0)))
        and not any(node.attr("output_padding", (0, 0)))
        and tuple(node.attr("dilations", (1, 1))) == (1, 1)
        and node.attr("group", 1) == 1
        and node.attr("output_shape") is None
        and node.attr("auto_pad", "NOTSET") == "NOTSET"
        and x.tensor.is_static
    )
    if not plain:
        return None
    ic, oc, kh, kw = weight.tensor.dims
    # W[ic, oc, kh, kw] → one output channel for each (oc, kh, kw).
    flat = ops.node("Transpose", reshape(weight, (ic, oc * kh * kw)), perm=(1, 0))
    pointwise = reshape(flat, (oc * kh * kw, ic, 1, 1))
    inputs = [x, pointwise]
    if bias is not None:
        if not bias.is_constant_expression:
            return None
        spread = ops.node("Expand", reshape(bias, (oc, 1)), constant(np.array([oc, kh * kw])))
        inputs.append(reshape(spread, (oc * kh * kw,)))
    blocks = ops.node("Conv", *inputs, kernel_shape=(1, 1), strides=(1, 1), pads=(0, 0, 0, 0))
    n, _, h, w = x.tensor.dims
    split = reshape(blocks, (n, oc, kh, kw, h, w))
    return reshape(ops.node("Transpose", split, perm=(0, 1, 4, 2, 5, 3)), (n, oc, h * kh, w * kw))


AFFINE: tuple[Rule, ...] = (
    batch_norm_to_affine,
    gemm_to_matmul,
    sub_known,
    scale_into_conv,
    bias_into_conv,
    scale_into_matmul,
    merge_known,
    distribute_known,
    conv_transpose_by_blocks,
)

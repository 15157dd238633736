"""Rules of the `layout` pass: into blocked form, and Unpack towards the outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from whitebox.ir import ops
from whitebox.ir.graph import Node, constant
from whitebox.passes.rewrite import Rule, rule
from whitebox.passes.rules.algebra import reshape
from whitebox.passes.rules.convolution import blocked_conv, conv_of_groups
from whitebox.passes.rules.packing import known, pack, pad_to, unpack
from whitebox.passes.rules.transpose import permutation, transpose

# Vectors a panel of a packed matrix may have, and the relative cost of a column in it: fewer of
# them need more loads for each multiply-add. 32 registers hold the sums of four, 16 of three.
PANEL_COSTS = {16: {4: 1.0, 3: 1.02, 2: 1.06, 1: 1.25}}
_NARROW_PANEL_COSTS = {3: 1.0, 2: 1.03, 1: 1.25}

# Finite → finite, whatever the padding lanes hold.
_SAFE_UNARY = (
    "Abs", "Clip", "Celu", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish",
    "Neg", "Relu", "Selu", "Sigmoid", "Sign", "Softplus", "Softsign", "Tanh", "ThresholdedRelu",
)  # fmt: skip
# Unary where the scale and the zero point are the same for all channels.
_SAFE_QUANTIZED = (
    "Cast", "DequantizeLinear", "QuantizeLinear", "whitebox.Centre", "whitebox.Saturate",
)  # fmt: skip
_SAFE_BINARY = ("Add", "Sub", "Mul", "Max", "Min", "PRelu")


def blocked_rules(lanes: int, winograd: bool) -> tuple[Rule, ...]:
    """The rules, for blocks of `lanes` channels; `winograd` says whether it may be used."""

    @rule("Conv")
    def conv_to_blocked(node: Node) -> Node | None:
        """Conv(x, W, b) = Unpack(whitebox.Conv(Pack(x), packed W, packed b)), W known"""
        return blocked_conv(node, lanes, winograd)

    @rule("MatMul")
    def matmul_to_panels(node: Node) -> Node | None:
        """A · W = whitebox.MatMul(A, W in column panels), W known"""
        return _matmul(node, lanes)

    return (
        conv_of_groups,
        conv_to_blocked,
        matmul_to_panels,
        transposed_operand,
        pack_unpack,
        unary_below_unpack,
        binary_below_unpack,
        pool_below_unpack,
        reduce_below_unpack,
        concat_below_unpack,
        slice_below_unpack,
        resize_below_unpack,
    )


def panel_width(columns: int, lanes: int, narrow: Mapping[int, float] = _NARROW_PANEL_COSTS) -> int:
    """Columns of a panel of packed weights: whole vectors, and little padding for their cost.

    `narrow` has the costs for 16 registers.
    """
    costs = PANEL_COSTS.get(lanes, narrow)

    def cost(vectors: int) -> float:
        width = vectors * lanes
        return -(-columns // width) * width * costs[vectors]

    return lanes * min(costs, key=lambda vectors: (cost(vectors), -vectors))


def _matmul(node: Node, lanes: int) -> Node | None:
    a, weight = node.inputs
    if a is None or weight is None or not known(weight) or known(a):
        return None
    if weight.tensor.rank != 2 or a.tensor.rank < 2 or node.tensor.dtype != "float32":
        return None
    if not node.tensor.is_static or 0 in node.tensor.dims or 0 in weight.tensor.dims:
        return None
    k, n = weight.tensor.dims
    width = panel_width(n, lanes)
    panels = -(-n // width)
    split = reshape(pad_to(weight, (k, panels * width)), (k, panels, width))
    packed = ops.node("Transpose", split, perm=(1, 0, 2))
    return ops.node("whitebox.MatMul", a, packed, n=n, nt=width)


@rule("MatMul")
def transposed_operand(node: Node) -> Node | None:
    """A · Transpose(B) = whitebox.MatMulTransposed(A, B'), which reads B' by rows"""
    a, b = node.inputs
    if a is None or b is None or known(b) or node.tensor.dtype != "float32":
        return None
    if not node.tensor.is_static or b.tensor.rank < 2:
        return None
    dims = b.tensor.dims
    if b.op == "Reshape" and b.inputs[0] is not None and b.inputs[0].tensor.rank >= 2:
        b = b.inputs[0]  # one that only regroups the batch
    if b.op != "Transpose" or b.tensor.dims[-2:] != dims[-2:]:
        return None
    source = b.inputs[0]
    assert source is not None
    perm = list(permutation(b))
    if perm[-2] != len(perm) - 1:
        return None
    perm[-1], perm[-2] = perm[-2], perm[-1]
    rows = transpose(source, tuple(perm))
    return ops.node("whitebox.MatMulTransposed", a, reshape(rows, (*dims[:-2], dims[-1], dims[-2])))


@rule("whitebox.Pack")
def pack_unpack(node: Node) -> Node | None:
    """Pack(Unpack(x)) = x"""
    source = node.inputs[0]
    if source is None or source.op != "whitebox.Unpack":
        return None
    assert source.inputs[0] is not None
    return source.inputs[0] if source.inputs[0].types == node.types else None


@rule("whitebox.Pack", "whitebox.Unpack")
def pack_is_reshape(node: Node) -> Node | None:
    """Pack(x) = Reshape(x) where H = W = 1 and C is a whole number of blocks;  Unpack alike"""
    source = node.inputs[0]
    assert source is not None
    plain = node if node.op == "whitebox.Unpack" else source
    blocked = source if node.op == "whitebox.Unpack" else node
    _, channels, height, width = plain.tensor.dims
    if height != 1 or width != 1 or channels % blocked.tensor.dims[-1]:
        return None
    return reshape(source, node.tensor.dims)


def _blocked_source(node: Node | None) -> Node | None:
    """x where node = Unpack(x)."""
    return node.inputs[0] if node is not None and node.op == "whitebox.Unpack" else None


@rule(*_SAFE_UNARY, *_SAFE_QUANTIZED)
def unary_below_unpack(node: Node) -> Node | None:
    """f(Unpack(x)) = Unpack(f(x))"""
    x = _blocked_source(node.inputs[0])
    if x is None or any(o is not None and o.tensor.size != 1 for o in node.inputs[1:]):
        return None
    inner = ops.rebuild(node, (x, *node.inputs[1:]))
    return unpack(inner, node.tensor.dims[1])


@rule(*_SAFE_BINARY)
def binary_below_unpack(node: Node) -> Node | None:
    """f(Unpack(x), Unpack(y)) = Unpack(f(x, y));  a known or plain y is packed"""
    first = next((o for o in node.inputs if _blocked_source(o) is not None), None)
    if first is None or len(node.inputs) != 2 or node.tensor.rank != 4:
        return None
    channels, lanes = node.tensor.dims[1], first.inputs[0].tensor.dims[-1]  # type: ignore[union-attr]
    if first.tensor.dims[1] != channels or first.tensor.dtype != "float32":
        return None
    operands = [_as_blocked(operand, channels, lanes, node) for operand in node.inputs]
    if any(operand is None for operand in operands):
        return None
    return unpack(ops.rebuild(node, tuple(operands)), channels)


def _as_blocked(operand: Node | None, channels: int, lanes: int, node: Node) -> Node | None:
    """An operand in blocked form: unpacked data, a known tensor, or data of the full shape."""
    assert operand is not None
    x = _blocked_source(operand)
    if x is not None:
        return x if operand.tensor.dims[1] == channels else None
    if operand.tensor.rank > 4:
        return None
    if operand.tensor.size == 1:
        return reshape(operand, ())
    dims = (1,) * (4 - operand.tensor.rank) + operand.tensor.dims
    if dims[1] == 1 and (operand.is_constant_expression or channels > 1):
        return reshape(operand, (*dims, 1))
    # Packing a value of the full size pays off, since the Pack after this node goes away; a value
    # of one pixel (a channel's gate) costs nothing to pack.
    if operand.is_constant_expression or dims == node.tensor.dims or dims[2:] == (1, 1):
        return pack(reshape(operand, dims), lanes)
    return None


@rule("MaxPool", "AveragePool")
def pool_below_unpack(node: Node) -> Node | None:
    """Pool(Unpack(x)) = Unpack(whitebox.Pool(x))"""
    x = _blocked_source(node.inputs[0])
    if x is None or len(node.types) != 1 or node.attr("auto_pad", "NOTSET") != "NOTSET":
        return None
    if node.attr("storage_order", 0):
        return None
    kernel = tuple(node.attr("kernel_shape"))
    strides = tuple(node.attr("strides", (1, 1)))
    dilations = tuple(node.attr("dilations", (1, 1)))
    pads = list(node.attr("pads", (0, 0, 0, 0)))
    include_pad = node.attr("count_include_pad", 0)
    for axis in range(2):
        # What ceil_mode adds at the end is spelled out as padding.
        reach = (node.tensor.dims[2 + axis] - 1) * strides[axis]
        reach += (kernel[axis] - 1) * dilations[axis] + 1
        needed = reach - x.tensor.dims[2 + axis] - pads[axis]
        if needed > pads[2 + axis]:
            if include_pad:
                return None
            pads[2 + axis] = needed
    attrs: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": strides,
        "dilations": dilations,
        "pads": tuple(pads),
        "block": x.tensor.dims[-1],
    }
    if node.op == "AveragePool":
        attrs["count_include_pad"] = include_pad
    return unpack(ops.node(f"whitebox.{node.op}", x, **attrs), node.tensor.dims[1])


@rule("ReduceMean", "ReduceMax", "ReduceSum")
def reduce_below_unpack(node: Node) -> Node | None:
    """Reduce(Unpack(x), over H and W) = Unpack(Reduce(x, over H and W))"""
    x = _blocked_source(node.inputs[0])
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if x is None or axes is None or not axes.is_constant:
        return None
    spatial = sorted(int(axis) % 4 for axis in axes.value)
    if not spatial or not set(spatial) <= {2, 3}:
        return None
    inner = ops.node(node.op, x, constant(np.array(spatial, np.int64)), keepdims=1)
    return reshape(unpack(inner, node.inputs[0].tensor.dims[1]), node.tensor.dims)  # type: ignore[union-attr]


@rule("Concat")
def concat_below_unpack(node: Node) -> Node | None:
    """Concat(Unpack(x), …) over channels = Unpack(Concat(x, …)), whole blocks but for the last"""
    sources = [_blocked_source(operand) for operand in node.inputs]
    if node.tensor.rank != 4 or node.attr("axis") % 4 != 1 or any(s is None for s in sources):
        return None
    lanes = sources[0].tensor.dims[-1]  # type: ignore[union-attr]
    if any(operand.tensor.dims[1] % lanes for operand in node.inputs[:-1]):  # type: ignore[union-attr]
        return None
    return unpack(ops.node("Concat", *sources, axis=1), node.tensor.dims[1])


@rule("Slice")
def slice_below_unpack(node: Node) -> Node | None:
    """Slice(Unpack(x), whole blocks of channels) = Unpack(Slice(x, these blocks))"""
    x = _blocked_source(node.inputs[0])
    if x is None or len(node.inputs) < 4 or not all(_is_value(each) for each in node.inputs[1:]):
        return None
    starts, ends, axes, *steps = (each.value for each in node.inputs[1:] if each is not None)
    if len(axes) != 1 or int(axes[0]) % 4 != 1 or (steps and int(steps[0][0]) != 1):
        return None
    lanes, channels = x.tensor.dims[-1], node.inputs[0].tensor.dims[1]  # type: ignore[union-attr]
    start, stop, _ = slice(int(starts[0]), int(ends[0])).indices(channels)
    if start % lanes or (stop % lanes and stop != channels) or stop <= start:
        return None
    bounds = (start // lanes, -(-stop // lanes), 1, 1)
    inner = ops.node("Slice", x, *(constant(np.array([b], np.int64)) for b in bounds))
    return unpack(inner, stop - start)


def _is_value(node: Node | None) -> bool:
    return node is None or node.is_constant


@rule("Resize")
def resize_below_unpack(node: Node) -> Node | None:
    """Resize(Unpack(x), H and W) = Unpack(Resize(x, H and W))"""
    x = _blocked_source(node.inputs[0])
    if x is None or node.attr("axes") is not None or len(node.inputs) < 3:
        return None
    if node.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    if node.attr("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return None
    if node.tensor.dims[:2] != node.inputs[0].tensor.dims[:2]:  # type: ignore[union-attr]
        return None
    scales = node.inputs[2]
    if scales is not None and scales.is_constant and scales.tensor.size == 4:
        grown = constant(np.append(scales.value, np.float32(1)))
        inputs: tuple[Node | None, ...] = (x, None, grown)
    else:
        n, blocks, _, _, lanes = x.tensor.dims
        sizes = np.array([n, blocks, *node.tensor.dims[2:], lanes], np.int64)
        inputs = (x, None, None, constant(sizes))
    return unpack(ops.rebuild(node, inputs), node.tensor.dims[1])

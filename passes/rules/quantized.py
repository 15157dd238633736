"""Quantised models: regions between DequantizeLinear and QuantizeLinear computed on integers.

Scales multiply, so (x - a) · s meeting (w - b) · t is (x - a)(w - b) summed in integers, times s·t.
What follows a product stays in float32 until it is rounded again, and is fused into its kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whitebox.ir import ops
from whitebox.ir.graph import Node, constant
from whitebox.ir.types import ONNX_DTYPES
from whitebox.passes.rewrite import Rule, is_shared, rule
from whitebox.passes.rules.affine import along
from whitebox.passes.rules.algebra import reshape
from whitebox.passes.rules.integer_conv import BYTES, takes_integers
from whitebox.passes.rules.packing import known

_FLOAT32 = ONNX_DTYPES.index("float32")


@dataclass(frozen=True)
class Dequantized:
    """(data - zero) · scale; scale and zero are scalars, or vectors along `axis`."""

    data: Node
    scale: Node
    zero: Node | None
    axis: int

    @classmethod
    def of(cls, node: Node | None) -> Dequantized | None:
        """What a DequantizeLinear of bytes to float32 stands for."""
        if node is None or node.op != "DequantizeLinear" or node.tensor.dtype != "float32":
            return None
        data, scale, zero = (*node.inputs, None)[:3]
        if data is None or scale is None or data.tensor.dtype not in BYTES:
            return None
        if scale.tensor.rank > 1 or not known(scale) or not (zero is None or known(zero)):
            return None
        axis = node.attr("axis", 1) % max(1, data.tensor.rank)
        return cls(data, scale, zero, axis)

    @property
    def per_tensor(self) -> bool:
        return self.scale.tensor.size == 1

    def on(self, data: Node, axis: int = 1) -> Node:
        """The same scale and zero point on other data."""
        return ops.node("DequantizeLinear", data, self.scale, self.zero, axis=axis)


@rule("Conv")
def conv_of_quantized(node: Node) -> Node | None:
    """Conv((x - a)·s, (W - b)·t, c) = ConvInteger(x, W, a, b) · s·t + c"""
    x, w = (Dequantized.of(each) for each in node.inputs[:2])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if x is None or w is None or not x.per_tensor or not (w.per_tensor or w.axis == 0):
        return None
    if bias is not None and not known(bias):
        return None
    total = _conv_integer(node, x.data, w.data, x.zero, w.zero)
    if total is None:
        return None
    result = _scaled(total, x.scale, w.scale, 1)
    return result if bias is None else ops.node("Add", result, along(bias, 4, 1))


@rule("QLinearConv")
def qlinear_conv(node: Node) -> Node | None:
    """QLinearConv(x, s, a, W, t, b, u, c, d) = Quantize((ConvInteger(x, W, a, b) + d)·s·t, u, c)"""
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias = (*node.inputs, None)[:9]
    if x is None or w is None or x_scale is None or w_scale is None:
        return None
    if not known(x_scale) or not known(w_scale) or not (bias is None or known(bias)):
        return None
    total = _conv_integer(node, x, w, x_zero, w_zero)
    if total is None:
        return None
    if bias is not None:
        total = ops.node("Add", total, along(bias, 4, 1))
    result = _scaled(total, x_scale, w_scale, 1)
    return ops.node("QuantizeLinear", result, y_scale, y_zero)


def _conv_integer(node: Node, x: Node, w: Node, *zeros: Node | None) -> Node | None:
    """The sums of products of a convolution, where there is a kernel for them."""
    made = ops.make("ConvInteger", (x, w, *zeros), node.attrs)
    return made if takes_integers(made) else None


@rule("MatMul")
def matmul_of_quantized(node: Node) -> Node | None:
    """((x - a)·s) · ((W - b)·t) = MatMulInteger(x, W, a, b) · s·t, t a scalar or one a column"""
    x, w = (Dequantized.of(each) for each in node.inputs)
    if x is None or w is None or not x.per_tensor or not (w.per_tensor or w.axis == 1):
        return None
    if known(x.data) or not known(w.data) or w.data.tensor.rank != 2 or x.data.tensor.rank < 2:
        return None
    total = ops.node("MatMulInteger", x.data, w.data, x.zero, w.zero)
    return _scaled(total, x.scale, w.scale, -1)


@rule("QLinearMatMul")
def qlinear_matmul(node: Node) -> Node | None:
    """QLinearMatMul(x, s, a, W, t, b, u, c) = Quantize(MatMulInteger(x, W, a, b) · s·t, u, c)"""
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = node.inputs
    if x is None or w is None or x_scale is None or w_scale is None or not known(w):
        return None
    if not known(x_scale) or not known(w_scale) or x_scale.tensor.size != 1:
        return None
    if known(x) or w.tensor.rank != 2 or x.tensor.rank < 2 or w_scale.tensor.rank > 1:
        return None
    total = ops.node("MatMulInteger", x, w, x_zero, w_zero)
    return ops.node("QuantizeLinear", _scaled(total, x_scale, w_scale, -1), y_scale, y_zero)


def _scaled(total: Node, scale: Node, scales: Node, axis: int) -> Node:
    """Sums as float32 times both scales, the second a scalar or a vector along `axis`."""
    factor = ops.node("Mul", reshape(scales, (scales.tensor.size,)), reshape(scale, ()))
    rank = total.tensor.rank
    shaped = reshape(factor, ()) if factor.tensor.size == 1 else along(factor, rank, axis)
    return ops.node("Mul", ops.node("Cast", total, to=_FLOAT32), shaped)


@rule("Transpose")
def transpose_below_dequantize(node: Node) -> Node | None:
    """Transpose((x - a)·s) = (Transpose(x) - a)·s, also with s along an axis"""
    x = Dequantized.of(node.inputs[0])
    if x is None:
        return None
    perm = node.attr("perm")
    return x.on(ops.rebuild(node, (x.data,)), perm.index(x.axis))


@rule("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "MaxPool")
def movement_below_dequantize(node: Node) -> Node | None:
    """T((x - a)·s) = (T(x) - a)·s for T that moves elements or takes the greatest, s a scalar"""
    x = Dequantized.of(node.inputs[0])
    if x is None or not x.per_tensor or len(node.types) != 1 or known(x.data):
        return None
    if node.op == "MaxPool" and not (x.scale.is_constant and np.all(x.scale.value > 0)):
        return None
    return x.on(ops.rebuild(node, (x.data, *node.inputs[1:])))


@rule("QuantizeLinear")
def requantize_same(node: Node) -> Node | None:
    """Quantize((x - a)·s, s, a) = x"""
    x = Dequantized.of(node.inputs[0])
    if x is None or not x.per_tensor or x.data.types != node.types:
        return None
    _, scale, zero = (*node.inputs, None)[:3]
    return x.data if scale is x.scale and zero is x.zero else None


@rule("QuantizeLinear")
def concat_of_quantized(node: Node) -> Node | None:
    """Quantize(Concat(x, …), s, a) = Concat(Quantize(x, s, a), …), s a scalar"""
    source, scale, zero = (*node.inputs, None)[:3]
    if source is None or source.op != "Concat" or scale is None or scale.tensor.size != 1:
        return None
    if is_shared(source):
        return None
    parts = [ops.rebuild(node, (part, scale, zero)) for part in source.inputs]
    return ops.rebuild(source, parts)


@rule("QuantizeLinear")
def scale_into_quantize(node: Node) -> Node | None:
    """Quantize(x · c + d, s, a) = Saturate(x · (c/s) + d/s, a);  c, d, s known"""
    source, scale, zero = (*node.inputs, None)[:3]
    if source is None or scale is None or scale.tensor.size != 1 or not known(scale):
        return None
    if node.tensor.dtype not in BYTES or source.tensor.dtype != "float32":
        return None
    divided = _divided(source, reshape(scale, ()))
    if divided is None:
        return None
    if zero is None:
        zero = constant(np.array(0, node.tensor.dtype))
    return ops.node("whitebox.Saturate", divided, reshape(zero, ()))


def _divided(x: Node, scale: Node) -> Node | None:
    """x / scale where that changes known factors only, else None."""
    if is_shared(x):
        return None
    match x.op:
        case "Relu":
            inner = _divided(_first(x), scale)
            return None if inner is None else ops.rebuild(x, (inner,))
        case "Clip":
            inner = _divided(_first(x), scale)
            bounds = x.inputs[1:]
            if inner is None or not all(bound is None or known(bound) for bound in bounds):
                return None
            moved = (None if bound is None else ops.node("Div", bound, scale) for bound in bounds)
            return ops.rebuild(x, (inner, *moved))
        case "Mul":
            a, b = x.inputs
            assert a is not None and b is not None
            if known(b):
                return ops.rebuild(x, (a, ops.node("Div", b, scale)))
            if known(a):
                return ops.rebuild(x, (ops.node("Div", a, scale), b))
        case "Add":
            parts = [_term_divided(each, scale) for each in x.inputs]
            if all(part is not None for part in parts):
                return ops.rebuild(x, parts)
        case "Conv":
            data, *parameters = x.inputs
            if all(each is None or known(each) for each in parameters):
                moved = (
                    None if each is None else ops.node("Div", each, scale) for each in parameters
                )
                return ops.rebuild(x, (data, *moved))
        case "DequantizeLinear":
            found = Dequantized.of(x)
            if found is not None and found.per_tensor:
                factor = ops.node("Div", found.scale, scale)
                return ops.rebuild(x, (found.data, factor, found.zero))
    return None


def _first(node: Node) -> Node:
    source = node.inputs[0]
    assert source is not None
    return source


def _term_divided(term: Node | None, scale: Node) -> Node | None:
    assert term is not None
    return ops.node("Div", term, scale) if known(term) else _divided(term, scale)


QUANTIZED: tuple[Rule, ...] = (
    conv_of_quantized,
    qlinear_conv,
    matmul_of_quantized,
    qlinear_matmul,
    transpose_below_dequantize,
    movement_below_dequantize,
    requantize_same,
    concat_of_quantized,
    scale_into_quantize,
)

"""Which operator is scheduled by which template, and with which parameters.

What enters: a node and a target. What leaves: the template for it, or None when the node is outside
of what the template takes (another dtype, several results), so that loop nests take it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from whitebox.compiler.supported import computes_float32
from whitebox.compiler.target import Target
from whitebox.ir.graph import Node
from whitebox.kernels.cpu.conv import Conv2d
from whitebox.kernels.cpu.conv_bf16 import Bf16Conv2d
from whitebox.kernels.cpu.conv_integer import IntegerConv2d
from whitebox.kernels.cpu.conv_plain import PlainConv
from whitebox.kernels.cpu.conv_transpose import PlainConvTranspose
from whitebox.kernels.cpu.depthwise import DepthwiseConv2d
from whitebox.kernels.cpu.dot_product import DotProduct
from whitebox.kernels.cpu.gemm_batched import BatchMatMul, Gemm
from whitebox.kernels.cpu.gemm_bf16 import Bf16MatMul
from whitebox.kernels.cpu.gemm_bf16_batched import Bf16BatchMatMul
from whitebox.kernels.cpu.gemm_integer import IntegerMatMul
from whitebox.kernels.cpu.norm import Normalization
from whitebox.kernels.cpu.pool import BlockedPool, PlainPool
from whitebox.kernels.cpu.softmax import Softmax
from whitebox.kernels.cpu.winograd import Winograd

Make = Callable[[Node, Target], Any]
TEMPLATES: dict[str, Make] = {}


def _integer_template(*ops: str) -> Callable[[Make], Make]:
    """Register a maker for nodes that may be on integers."""

    def register(make: Make) -> Make:
        TEMPLATES.update(dict.fromkeys(ops, make))
        return make

    return register


def _template(*ops: str) -> Callable[[Make], Make]:
    """Register a maker for float32 nodes with one result."""

    def register(make: Make) -> Make:
        def checked(node: Node, target: Target) -> Any:
            tensors = [source.tensor for source in node.inputs if source is not None]
            filled = all(type.size for type in (*tensors, node.tensor))
            taken = computes_float32(node) and filled and len(node.types) == 1
            return make(node, target) if taken else None

        TEMPLATES.update(dict.fromkeys(ops, checked))
        return make

    return register


@_integer_template("whitebox.ConvInteger")
def _integer_conv(node: Node, target: Target) -> Any:
    strides, pads, dilations = window(node, 2)
    x = node.inputs[0]
    assert x is not None
    lanes = x.tensor.dims[-1]
    return IntegerConv2d.default(
        x.tensor.dims, _dims(node, 1), strides, pads, dilations,
        in_channels=node.attr("in_channels"), threads=target.threads,
        dot=DotProduct.of(x.tensor.dtype, lanes, target.x86),
    )  # fmt: skip


@_integer_template("whitebox.MatMulInteger")
def _integer_matmul(node: Node, target: Target) -> Any:
    a = node.inputs[0]
    assert a is not None
    return IntegerMatMul.default(
        a.tensor.dims, node.attr("n"), node.attr("nt"), target.lanes, target.threads,
        group=target.integer_group, signed=a.tensor.dtype == "int8",
    )  # fmt: skip


def _dims(node: Node, position: int) -> tuple[int, ...]:
    source = node.inputs[position]
    assert source is not None
    return source.tensor.dims


def window(node: Node, rank: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Strides, pads and dilations of a node with a sliding window over `rank` axes."""
    return (
        node.attr("strides") or (1,) * rank,
        node.attr("pads") or (0,) * (2 * rank),
        node.attr("dilations") or (1,) * rank,
    )


@_template("whitebox.Conv")
def _conv(node: Node, target: Target) -> Any:
    strides, pads, dilations = window(node, 2)
    return Conv2d.default(
        _dims(node, 0), _dims(node, 1), strides, pads, dilations,
        lanes=target.lanes, threads=target.threads, data_layout=node.attr("data_layout"),
        in_channels=node.attr("in_channels"),
    )  # fmt: skip


@_template("whitebox.ConvBf16")
def _conv_bf16(node: Node, target: Target) -> Any:
    strides, pads, dilations = window(node, 2)
    return Bf16Conv2d.default(
        _dims(node, 0), _dims(node, 1), node.tensor.dims, strides, pads, dilations,
        threads=target.threads, kind=target.bf16,
    )  # fmt: skip


@_template("whitebox.WinogradConv")
def _winograd_conv(node: Node, target: Target) -> Any:
    _, pads, _ = window(node, 2)
    return Winograd.default(
        _dims(node, 0), _dims(node, 1)[0], pads, node.attr("kernel_shape")[0],
        lanes=target.lanes, threads=target.threads,
    )  # fmt: skip


@_integer_template("whitebox.DepthwiseConv")
def _depthwise(node: Node, target: Target) -> Any:
    strides, pads, dilations = window(node, 2)
    return DepthwiseConv2d.default(
        _dims(node, 0), _dims(node, 1), strides, pads, dilations,
        lanes=target.lanes, threads=target.threads,
    )  # fmt: skip


@_template("Conv")
def _plain_conv(node: Node, target: Target) -> Any:
    if node.attr("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    strides, pads, dilations = window(node, len(_dims(node, 0)) - 2)
    return PlainConv.default(
        _dims(node, 0), _dims(node, 1), strides, pads, dilations, node.attr("group", 1),
        lanes=target.lanes, threads=target.threads,
    )  # fmt: skip


@_template("ConvTranspose")
def _conv_transpose(node: Node, target: Target) -> Any:
    if node.attr("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    strides, pads, dilations = window(node, len(_dims(node, 0)) - 2)
    return PlainConvTranspose.default(
        _dims(node, 0), _dims(node, 1), node.tensor.dims, strides, pads, dilations,
        node.attr("group", 1), lanes=target.lanes, threads=target.threads,
    )  # fmt: skip


@_template("whitebox.MatMulBf16")
def _matmul_bf16(node: Node, target: Target) -> Any:
    n, nt, pairs = node.attr("n"), node.attr("nt"), _dims(node, 1)[1]
    return Bf16MatMul.default(_dims(node, 0), n, nt, pairs, target.threads, target.bf16)


@_template("whitebox.BatchMatMulBf16")
def _batch_matmul_bf16(node: Node, target: Target) -> Any:
    return Bf16BatchMatMul.default(
        _dims(node, 0), _dims(node, 1), target.threads, target.bf16, bool(node.attr("transpose_b"))
    )


@_template("MatMul")
def _matmul(node: Node, target: Target) -> Any:
    return BatchMatMul.default(_dims(node, 0), _dims(node, 1), target.lanes, target.threads)


@_template("Gemm")
def _gemm(node: Node, target: Target) -> Any:
    return Gemm.default(
        _dims(node, 0), _dims(node, 1), target.lanes, target.threads,
        transpose_a=bool(node.attr("transA", 0)), transpose_b=bool(node.attr("transB", 0)),
        alpha=node.attr("alpha", 1.0), beta=node.attr("beta", 1.0),
    )  # fmt: skip


@_template("Softmax", "LogSoftmax")
def _softmax(node: Node, target: Target) -> Any:
    shape = _dims(node, 0)
    return Softmax.default(
        shape, node.attr("axis", -1), target.lanes, target.threads, log=node.op == "LogSoftmax"
    )


@_template("LayerNormalization", "RMSNormalization")
def _layer_norm(node: Node, target: Target) -> Any:
    shape = _dims(node, 0)
    axes = len(shape) - node.attr("axis", -1) % len(shape)
    kind = "layer" if node.op == "LayerNormalization" else "rms"
    return Normalization.default(
        shape, axes, target.lanes, target.threads, kind=kind, epsilon=node.attr("epsilon", 1e-5)
    )


@_template("InstanceNormalization")
def _instance_norm(node: Node, target: Target) -> Any:
    shape = _dims(node, 0)
    return Normalization.default(
        shape, len(shape) - 2, target.lanes, target.threads,
        kind="instance", epsilon=node.attr("epsilon", 1e-5),
    )  # fmt: skip


@_template("whitebox.MatMulTransposed")
def _matmul_transposed(node: Node, target: Target) -> Any:
    return BatchMatMul.default(
        _dims(node, 0), _dims(node, 1), target.lanes, target.threads, transpose_b=True
    )


@_integer_template("whitebox.MaxPool")
@_template("whitebox.AveragePool")
def _blocked_pool(node: Node, target: Target) -> Any:
    strides, pads, dilations = window(node, 2)
    return BlockedPool.default(
        "max" if node.op == "whitebox.MaxPool" else "average",
        _dims(node, 0), node.tensor.dims, node.attr("kernel_shape"), strides, pads, dilations,
        include_pad=bool(node.attr("count_include_pad", 0)), threads=target.threads,
        dtype=node.tensor.dtype,
    )  # fmt: skip


@_template("MaxPool", "AveragePool")
def _plain_pool(node: Node, target: Target) -> Any:
    if node.attr("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    strides, pads, dilations = window(node, len(_dims(node, 0)) - 2)
    return PlainPool.default(
        "max" if node.op == "MaxPool" else "average",
        _dims(node, 0), node.tensor.dims, node.attr("kernel_shape"), strides, pads, dilations,
        include_pad=bool(node.attr("count_include_pad", 0)),
        lanes=target.lanes, threads=target.threads,
    )  # fmt: skip

"""Fused graphs run kernel by kernel: compiled for one target, made to run on another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tvm

from whitebox.compiler.lower import lower
from whitebox.compiler.supported import lowerable
from whitebox.compiler.target import Target
from whitebox.compiler.worker import tvm_target
from whitebox.ir import onnx_schema
from whitebox.ir.graph import Graph, Model, Node
from whitebox.ir.types import numpy_dtype
from whitebox.kernels.cpu.scratch import register_pipeline
from whitebox.passes import optimize, passes_for

Transform = Callable[[tvm.IRModule], tvm.IRModule]


def model_of(y: Node, *inputs: Node) -> Graph:
    """A graph with one model and one output."""
    return Graph([Model("m", tuple((f"x{i}", x) for i, x in enumerate(inputs)), (("y", y),))])


def fused(graph: Graph, target: Target, precision: str = "f32") -> Graph:
    """What the passes make of a graph for a target."""
    return optimize(graph, passes_for(target, lowerable, precision))


def bodies(graph: Graph) -> list[Graph]:
    """The bodies of a fused graph's kernels."""
    return [node.attr("body") for node in graph.nodes if node.op == "whitebox.Fused"]


def operators(graph: Graph) -> list[str]:
    """The operators inside a fused graph's kernels."""
    return [node.op for body in bodies(graph) for node in body.nodes]


def built(
    body: Graph,
    target: Target,
    device: Any = None,
    transform: Transform = lambda module: module,
    variant: int = 0,
) -> Any:
    """The kernel of a body as for `target`, for TVM's `device` (default: the target's)."""
    module = transform(lower(body, target, "main", variant))
    return tvm.compile(module, device or tvm_target(target), tir_pipeline=register_pipeline())


def run(
    graph: Graph,
    target: Target,
    feeds: Mapping[Node, np.ndarray],
    device: Any = None,
    transform: Transform = lambda module: module,
) -> np.ndarray:
    """The output of a fused graph; what is no kernel is evaluated by the reference."""
    values = dict(feeds)
    for node in graph.nodes:
        if node in values:
            continue
        if node.is_constant:
            values[node] = node.value
            continue
        arrays = [None if source is None else values[source] for source in node.inputs]
        if node.op == "whitebox.Fused":
            out = np.zeros(node.tensor.dims, numpy_dtype(node.tensor.dtype))
            tensors = [tvm.runtime.tensor(array) for array in (*arrays, out)]
            built(node.attr("body"), target, device, transform)["main"](*tensors)
            values[node] = tensors[-1].numpy()
        else:
            values[node] = np.asarray(onnx_schema.evaluate(node, arrays)[0])
    return values[graph.model.outputs[0][1]]

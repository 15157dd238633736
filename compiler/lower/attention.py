"""whitebox.Attention: softmax(scale · Q Kᵀ + mask) V.

What enters: nodes in float32, and the values of their inputs. What leaves: a value in an array.
"""

from __future__ import annotations

from collections.abc import Sequence

from whitebox.compiler.lower.value import Body, Value, emitter, from_array
from whitebox.ir.graph import Node
from whitebox.kernels.cpu import attention


@emitter("whitebox.Attention")
def _attention(node: Node, args: Sequence[Value], body: Body) -> Value:
    q, k, v, mask = (*args, None)[:4]
    assert q is not None and k is not None and v is not None
    shapes = [source.tensor.dims for source in node.inputs if source is not None]
    *batch, rows, size = shapes[0]
    made = attention.Attention(
        batch=tuple(batch),
        rows=rows,
        keys=shapes[1][-2],
        size=size,
        width=shapes[2][-1],
        scale=node.attr("scale"),
        mask=None if mask is None else (1,) * (len(shapes[0]) - len(shapes[3])) + shapes[3],
        nan_to_zero=bool(node.attr("nan_to_zero")),
        lanes=body.target.lanes,
        threads=body.target.threads,
    )
    result = body.array(node.tensor.dims, "float32")
    packed = body.array((made.packed_size,), "float32")
    body.statements += made.statements(
        attention.Buffers(
            q=body.buffer(q),
            k=body.buffer(k),
            v=body.buffer(v),
            mask=None if mask is None else body.buffer(mask),
            packed=packed.buffer,
            y=result.buffer,
        )
    )
    return from_array(result, "float32")

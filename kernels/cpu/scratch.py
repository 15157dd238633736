"""Keeps a kernel's scratch buffers on the stack.

Enters: TVM's lowering pipeline. Leaves: one, registered under the name `PIPELINE`, that is the same
but for buffers of a known size up to `STACK_BYTES`: by default TVM asks a thread's pool for each
of them over 1 KiB and for each "local" one, every time around the loop that needs it. That costs
as much as a small tile, and the pools of two threads share cache lines.
"""

from __future__ import annotations

from typing import Any

PIPELINE = "whitebox_cpu"
STACK_BYTES = 128 * 1024


def register_pipeline() -> str:
    """Make `PIPELINE` known to TVM; returns the name, for `tvm.compile(…, tir_pipeline=name)`."""
    import tvm
    from tvm.s_tir.pipeline import default_s_tir_pipeline
    from tvm.tirx import compilation_pipeline

    def pipeline() -> Any:
        lower, finalize_host, finalize_device = default_s_tir_pipeline()

        def finalize_with_stack() -> Any:
            return tvm.ir.transform.Sequential([_keep_on_stack(), finalize_host()])

        return lower, finalize_with_stack, finalize_device

    compilation_pipeline.PIPELINE_MAP[PIPELINE] = pipeline
    return PIPELINE


def _keep_on_stack() -> Any:
    """A pass that exempts small allocations from becoming calls of the workspace pool."""
    from tvm import tirx

    def rewrite(function: Any, module: Any, context: Any) -> Any:
        return function.with_body(_mark(function.body))

    return tirx.transform.prim_func_pass(rewrite, opt_level=0, name="KeepScratchOnStack")


def _mark(statement: Any) -> Any:
    """The statement with every small allocation in it marked."""
    from tvm import tirx

    match statement:
        case tirx.AllocBuffer():
            size = _nbytes(statement.buffer)
            if size is None or size > STACK_BYTES:
                return statement
            annotations = {
                **dict(statement.annotations),
                "disable_lower_builtin": tirx.const(1, "int32"),
            }
            return tirx.AllocBuffer(statement.buffer, annotations)
        case tirx.SeqStmt():
            return tirx.SeqStmt([_mark(inner) for inner in statement.seq])
        case tirx.AttrStmt():
            body = _mark(statement.body)
            return tirx.AttrStmt(statement.node, statement.attr_key, statement.value, body)
        case tirx.IfThenElse():
            otherwise = None if statement.else_case is None else _mark(statement.else_case)
            return tirx.IfThenElse(statement.condition, _mark(statement.then_case), otherwise)
        case tirx.For():
            return tirx.For(
                statement.loop_var,
                statement.min,
                statement.extent,
                statement.kind,
                _mark(statement.body),
                statement.thread_binding,
                statement.annotations,
                statement.step,
            )
        case _:
            return statement


def _nbytes(buffer: Any) -> int | None:
    """The size of a buffer, None when it is not known."""
    from tvm import DataType, tirx

    size = 1
    for extent in buffer.shape:
        if not isinstance(extent, tirx.IntImm):
            return None
        size *= int(extent)
    dtype = DataType(buffer.dtype)
    return size * int(dtype.lanes) * -(-int(dtype.bits) // 8)

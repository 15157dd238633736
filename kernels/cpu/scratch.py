"""Where a kernel's memory is: its scratch buffers on the stack, its arguments at any numpy address.

Enters: TVM's lowering pipeline. Leaves: one, registered under the name `PIPELINE`, that is the same
but for two things. Buffers of a known size up to `STACK_BYTES` are on the stack: by default TVM
asks a thread's pool for each of them over 1 KiB and for each "local" one, every time around the
loop that needs it. That costs as much as a small tile, and the pools of two threads share cache
lines. And arguments are taken to be aligned no better than an allocator aligns them: vector loads
that do not ask for more cost nothing where the data happens to be aligned, and copying a large
input to where it is aligned would cost as much as many a kernel.
"""

from __future__ import annotations

from typing import Any

from whitebox.kernels.host.interpreter import ALIGNMENT

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
            return tvm.ir.transform.Sequential([_place_memory(), finalize_host()])

        return lower, finalize_with_stack, finalize_device

    compilation_pipeline.PIPELINE_MAP[PIPELINE] = pipeline
    return PIPELINE


def idle_passes(module: Any) -> list[str]:
    """TVM's passes that find nothing to do in a module, and take long to find it.

    Loop nests written by hand have no blocks: these passes are half of TVM's time on them.
    """
    scheduled = any(function.attrs.get("s_tir", False) for function in module.functions.values())
    return [] if scheduled else ["s_tir.CompactBufferAllocation", "s_tir.InjectSoftwarePipeline"]


def _place_memory() -> Any:
    """A pass: small allocations do not become calls of the workspace pool; arguments' alignment."""
    from tvm import tirx

    def rewrite(function: Any, module: Any, context: Any) -> Any:
        return function.with_body(_mark(function.body))

    return tirx.transform.prim_func_pass(rewrite, opt_level=0, name="PlaceMemory")


def _mark(statement: Any) -> Any:
    """The statement with every small allocation in it marked, and arguments' alignment lowered."""
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
            body, value = _mark(statement.body), statement.value
            if statement.attr_key == "storage_alignment":
                value = tirx.const(ALIGNMENT, "int32")
            return tirx.AttrStmt(statement.node, statement.attr_key, value, body)
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

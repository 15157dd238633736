"""The plan interpreter: a loop that calls one kernel after another, in one native call.

A plan is a table with a row a step: the address of the kernel's function object, the address of
its argument array (TVMFFIAny[]), and the number of arguments. The loop stops at the first kernel
that fails. Because a plan is data, building or changing one compiles nothing.
"""

from __future__ import annotations

from typing import Any

# Layout of a table row and of the state array, in 64-bit words; the runtime uses both.
ROW_WORDS = 4
STATE_WORDS = 4


def interpreter_module(name: str) -> Any:
    """`name(table: int64[n, 4], state: int64[4])`, a module with one function.

    Afterwards state[0] is the number of steps begun and state[1] is 0, or the code of the failure
    in step state[0] - 1. state[2:4] receives the kernels' (unused) results.
    """
    import tvm
    from tvm.script import tirx as T

    @T.prim_func(s_tir=True, check_well_formed=False)  # type: ignore[untyped-decorator]
    def interpret(table: T.handle, state: T.handle) -> None:
        steps = T.int64()
        rows = T.match_buffer(table, (steps, 4), "int64")
        status = T.match_buffer(state, (4,), "int64")
        status[0] = T.int64(0)
        status[1] = T.int64(0)
        while status[0] < steps and status[1] == T.int64(0):
            status[1] = T.Cast(
                "int64",
                T.call_extern(
                    "int32",
                    "TVMFFIFunctionCall",
                    T.reinterpret("handle", rows[status[0], 0]),
                    T.reinterpret("handle", rows[status[0], 1]),
                    T.Cast("int32", rows[status[0], 2]),
                    T.address_of(status[2]),
                ),
            )
            status[0] = status[0] + T.int64(1)

    return tvm.IRModule({name: interpret.with_attr("global_symbol", name)})

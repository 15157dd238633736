"""The plan interpreter: a loop that calls one kernel after another, in one native call.

A plan is one array of 64-bit words, a *program*: a head, then rows of three kinds. It takes inputs
and outputs as addresses of array objects, so that a call costs Python one word an array; data
pointers are read here, and data that is not aligned is copied to a place of its own first. Because
a plan is data, building or changing one compiles nothing.
"""

from __future__ import annotations

from typing import Any

# The words of a program's head.
BEGUN = 0  # out: steps begun
FAILURE = 1  # out: 0, or the code of the failure in step BEGUN - 1
RESULT = 2  # two words that receive the kernels' (unused) results
POINTER_AT = 4  # the byte of an array object at which its data pointer is
BINDINGS = 5  # the word after the array rows, where the bindings begin
STEPS = 6  # the word after the bindings, where the steps begin
ROW = 7  # the row at hand
HEAD_WORDS = 8

ARRAY_WORDS = 4  # address of the object; out: data pointer; place for a copy, bytes
BINDING_WORDS = 2  # word of an array row's data pointer, address of a tensor's data pointer
STEP_WORDS = 3  # function object, arguments (TVMFFIAny[]), how many

# How kernels take their arguments to be aligned. Allocators promise as much on most platforms, so
# that hardly any array has to be copied.
ALIGNMENT = 16


def interpreter_module(name: str) -> Any:
    """`name(program: int64[n]) -> int64`, a module with one function; the result is FAILURE."""
    import tvm
    from tvm.script import tirx as T

    @T.prim_func(s_tir=True, check_well_formed=False)  # type: ignore[untyped-decorator]
    def interpret(program: T.handle) -> T.int64:
        words = T.int64()
        word = T.match_buffer(program, (words,), "int64")
        word[BEGUN] = T.int64(0)
        word[FAILURE] = T.int64(0)
        word[ROW] = T.int64(HEAD_WORDS)
        while word[ROW] < word[BINDINGS]:
            T.evaluate(
                T.call_extern(
                    "handle",
                    "memcpy",
                    T.address_of(word[word[ROW] + 1]),
                    T.reinterpret("handle", word[word[ROW]] + word[POINTER_AT]),
                    T.int64(8),
                )
            )
            if T.bitwise_and(word[word[ROW] + 1], T.int64(ALIGNMENT - 1)) != T.int64(0):
                T.evaluate(
                    T.call_extern(
                        "handle",
                        "memcpy",
                        T.reinterpret("handle", word[word[ROW] + 2]),
                        T.reinterpret("handle", word[word[ROW] + 1]),
                        word[word[ROW] + 3],
                    )
                )
                word[word[ROW] + 1] = word[word[ROW] + 2]
            word[ROW] = word[ROW] + ARRAY_WORDS
        while word[ROW] < word[STEPS]:
            T.evaluate(
                T.call_extern(
                    "handle",
                    "memcpy",
                    T.reinterpret("handle", word[word[ROW] + 1]),
                    T.address_of(word[word[word[ROW]]]),
                    T.int64(8),
                )
            )
            word[ROW] = word[ROW] + BINDING_WORDS
        while word[ROW] < words and word[FAILURE] == T.int64(0):
            word[BEGUN] = word[BEGUN] + T.int64(1)
            word[FAILURE] = T.Cast(
                "int64",
                T.call_extern(
                    "int32",
                    "TVMFFIFunctionCall",
                    T.reinterpret("handle", word[word[ROW]]),
                    T.reinterpret("handle", word[word[ROW] + 1]),
                    T.Cast("int32", word[word[ROW] + 2]),
                    T.address_of(word[RESULT]),
                ),
            )
            word[ROW] = word[ROW] + STEP_WORDS
        return word[FAILURE]

    return tvm.IRModule({name: interpret.with_attr("global_symbol", name)})

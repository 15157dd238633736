"""Instructions that this machine may lack, emulated: kernels that use them run anywhere.

`emulated(module)` is a scheduled module in which tile instructions are calls of Python functions
over a register file of numpy arrays, one a thread, and the dot product of bfloat16 pairs is
arithmetic. All else (indices, padding, loops) is the kernel's own.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import tvm
from tvm import ir, tirx
from tvm.s_tir import SBlock, SBlockRealize

from whitebox.kernels.cpu import bf16

DOT_LLVM = f"""
define linkonce_odr <16 x float> @{bf16.DOT}(<16 x float> %sum, ptr %a, ptr %w) {{
  %pair = load i32, ptr %a, align 4
  %one = insertelement <16 x i32> poison, i32 %pair, i64 0
  %all = shufflevector <16 x i32> %one, <16 x i32> poison, <16 x i32> zeroinitializer
  %w32 = load <16 x i32>, ptr %w, align 4
  %a0 = shl <16 x i32> %all, splat (i32 16)
  %w0 = shl <16 x i32> %w32, splat (i32 16)
  %a1 = and <16 x i32> %all, splat (i32 -65536)
  %w1 = and <16 x i32> %w32, splat (i32 -65536)
  %fa0 = bitcast <16 x i32> %a0 to <16 x float>
  %fw0 = bitcast <16 x i32> %w0 to <16 x float>
  %fa1 = bitcast <16 x i32> %a1 to <16 x float>
  %fw1 = bitcast <16 x i32> %w1 to <16 x float>
  %p0 = fmul <16 x float> %fa0, %fw0
  %p1 = fmul <16 x float> %fa1, %fw1
  %s0 = fadd <16 x float> %sum, %p0
  %s1 = fadd <16 x float> %s0, %p1
  ret <16 x float> %s1
}}
"""


class _Registers(threading.local):
    """The tile unit of a thread: a layout, and eight registers, or nothing when not configured."""

    def __init__(self) -> None:
        self.layout: np.ndarray | None = None
        self.tiles: list[np.ndarray] = []


_registers = _Registers()


def _bytes(address: Any, size: int) -> np.ndarray:
    value = address.value if isinstance(address, ctypes.c_void_p) else int(address)
    return np.frombuffer((ctypes.c_uint8 * size).from_address(value), np.uint8)


def _configure(layout: Any) -> None:
    raw = _bytes(layout, 64).copy()
    assert raw[0] == 1 and not raw[1:16].any()
    rows, row_bytes = raw[48:56], raw[16:32].view(np.uint16)
    assert (rows <= 16).all() and (row_bytes <= 64).all()
    _registers.layout = raw
    _registers.tiles = [np.zeros((r, b), np.uint8) for r, b in zip(rows, row_bytes, strict=True)]


def _release() -> None:
    _registers.layout = None
    _registers.tiles = []


def _zero(tile: int) -> None:
    _registers.tiles[tile][:] = 0


def _rows(tile: int, start: Any, stride: int) -> list[np.ndarray]:
    """The memory of each row of a register."""
    rows, width = _registers.tiles[tile].shape
    memory = _bytes(start, (rows - 1) * stride + width)
    return [memory[row * stride : row * stride + width] for row in range(rows)]


def _load(tile: int, start: Any, stride: int) -> None:
    for row, memory in enumerate(_rows(tile, start, stride)):
        _registers.tiles[tile][row] = memory


def _store(tile: int, start: Any, stride: int) -> None:
    for row, memory in enumerate(_rows(tile, start, stride)):
        memory[:] = _registers.tiles[tile][row]


def _multiply(sums: int, left: int, right: int) -> None:
    """sums[m, n] += left[m, 2k] * right[k, 2n] + left[m, 2k + 1] * right[k, 2n + 1]"""
    total = _registers.tiles[sums].view(np.float32)
    a = _registers.tiles[left].view(ml_dtypes.bfloat16).astype(np.float32)
    w = _registers.tiles[right].view(ml_dtypes.bfloat16).astype(np.float32)
    assert a.shape[0] == total.shape[0] and a.shape[1] == 2 * w.shape[0]
    for half in (0, 1):
        total += a[:, half::2] @ w[:, half::2]


_TILE_INSTRUCTIONS: dict[str, Callable[..., None]] = {
    "llvm.x86.ldtilecfg": _configure,
    "llvm.x86.tilerelease": _release,
    "llvm.x86.tilezero": _zero,
    "llvm.x86.tileloadd64": _load,
    "llvm.x86.tilestored64": _store,
    "llvm.x86.tdpbf16ps": _multiply,
}
for _name, _function in _TILE_INSTRUCTIONS.items():
    tvm.register_global_func(f"emulated.{_name}", _function, override=True)


def emulated(module: tvm.IRModule) -> tvm.IRModule:
    """The module with every instruction of kernels/cpu/bf16 emulated."""
    functions = {
        name.name_hint: function.with_body(_mapped(function.body))
        for name, function in module.functions.items()
    }
    return tvm.IRModule(functions)


def _mapped(statement: Any) -> Any:
    match statement:
        case SBlockRealize():
            block = statement.block
            fresh = SBlock(
                block.iter_vars, block.reads, block.writes, block.name_hint, _mapped(block.body),
                None if block.init is None else _mapped(block.init), block.alloc_buffers,
                block.match_buffers, block.annotations,
            )  # fmt: skip
            return SBlockRealize(statement.iter_values, statement.predicate, fresh)
        case tirx.SeqStmt():
            return tirx.SeqStmt([_mapped(inner) for inner in statement.seq])
        case tirx.For():
            return tirx.For(
                statement.loop_var, statement.min, statement.extent, statement.kind,
                _mapped(statement.body), statement.thread_binding, statement.annotations,
            )  # fmt: skip
        case tirx.AttrStmt():
            value = statement.value
            if statement.attr_key == "pragma_import_llvm":
                value = ir.StringImm(DOT_LLVM)
            return tirx.AttrStmt(statement.node, statement.attr_key, value, _mapped(statement.body))
        case tirx.Evaluate():
            return _instruction(statement)
    return statement


def _instruction(statement: Any) -> Any:
    call = statement.value
    if getattr(getattr(call, "op", None), "name", "") != "tirx.call_llvm_intrin":
        return statement
    number, *arguments = call.args
    name = tvm.target.codegen.llvm_get_intrinsic_name(int(number))
    assert name in _TILE_INSTRUCTIONS, name
    return tirx.Evaluate(tirx.call_packed(f"emulated.{name}", *arguments))

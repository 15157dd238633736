"""Sums over the n-grams of texts: each that a dictionary knows adds its row of a table.

Enters: the buffers of texts, dictionary, table and result. Leaves: TIR statements. A text is given
as where its code points are and how many; one more follows them, so that reading ahead is safe.
The dictionary is a hash table with open addressing over the n-grams' code points, which are
compared before a match counts. Knows no Graph.

    for row:  for part:  for token, the first of an n-gram:
        for n:  hash on over the next token;  from the least n on: look it up, add its row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import tirx
from tvm.ir import PointerType

from whitebox.ir.ngrams import (
    COLUMN,
    CONTENT,
    END,
    HASH_FACTOR,
    HASH_FOLD,
    HASH_START,
    SCALE,
    SEPARATOR,
    SPACES,
)
from whitebox.ir.sizes import Extent
from whitebox.kernels.cpu.nest import loop_over, new_var, sequence


@dataclass(frozen=True)
class Part:
    """One way to cut a text into tokens (words between spaces, or characters), and its n."""

    number: int
    words: bool
    least: int
    most: int


@dataclass(frozen=True)
class Buffers:
    """Flat arrays; `slots` and `pool` are a dictionary as `ir.ngrams` lays it out."""

    texts: Any
    table: Any
    slots: Any
    pool: Any
    result: Any


class NgramSums:
    """The statements for `rows` texts and a table `width` wide; `slots` is a power of two."""

    def __init__(
        self,
        buffers: Buffers,
        rows: Extent,
        width: int,
        slots: int,
        parts: Sequence[Part],
        case: str,
    ) -> None:
        self.to, self.rows, self.width, self.parts = buffers, rows, width, parts
        self.mask = _u32(slots - 1)
        self.case = case
        self.text = tirx.Var("text", PointerType(tvm.ir.PrimType("int32"), "global"))
        self.codes = tirx.decl_buffer((1 << 30,), "int32", name="codes", data=self.text)
        # First code point of an n-gram, the next to read, the end of the first token and of the
        # n-gram; how many tokens; and while comparing: n-gram, places in pool and text, verdict.
        names = ("begin", "at", "second", "end", "n", "gram", "place", "last", "read", "same")
        self.vars = {name: _variable(name, "int32") for name in names}
        self.hash, self.slot = _variable("hash", "uint32"), _variable("slot", "uint32")

    def statements(self) -> list[Any]:
        """Fill the result."""
        row, column = new_var("row"), new_var("column")
        place = row * _i32(self.width) + column
        clear = tirx.BufferStore(self.to.result, tirx.const(0, "float32"), [place])
        address, self.length = (
            tirx.BufferLoad(self.to.texts, [row * _i32(2) + _i32(k)]) for k in (0, 1)
        )
        self.length = tirx.Cast("int32", self.length)
        self.row = row
        body = [
            loop_over(column, self.width, clear),
            tirx.Bind(self.text, tirx.reinterpret(self.text.ty, address)),
            tirx.DeclBuffer(self.codes, data=self.text),
            *(statement for part in self.parts for statement in self._part(part)),
        ]
        own = [*self.vars.values(), self.hash, self.slot]
        return [*map(tirx.AllocBuffer, own), loop_over(row, self.rows, sequence(body))]

    def _part(self, part: Part) -> list[Any]:
        """All n-grams of one part, by their first tokens."""
        at, n = self._get("at"), self._get("n")
        skip = [self._skip_spaces("at")] if part.words else []
        separate = [tirx.IfThenElse(n > 0, self._mix(_i32(SEPARATOR)), None)] if part.words else []
        second = tirx.IfThenElse(tirx.EQ(n, _i32(1)), self._set("second", at), None)
        token = [
            *separate,
            *self._token(part),
            self._set("n", n + 1),
            second,
            self._set("end", at),
            tirx.IfThenElse(n >= part.least, sequence(self._look_up(part)), None),
            *skip,
        ]
        more = tirx.And(n < part.most, at < self.length)
        ngrams = [
            self._set("begin", at),
            self._set("n", _i32(0)),
            tirx.BufferStore(self.hash, _u32(HASH_START + part.number), [_i32(0)]),
            tirx.While(more, sequence(token)),
            self._set("at", self._get("second")),
            *skip,
        ]
        return [
            self._set("at", _i32(0)),
            *skip,
            tirx.While(at < self.length, sequence(ngrams)),
        ]

    def _token(self, part: Part) -> list[Any]:
        """Hash on over one token."""
        at = self._get("at")
        step = [self._mix(self._code(at)), self._set("at", at + 1)]
        if not part.words:
            return step
        inside = tirx.And(at < self.length, tirx.Not(_is_space(self._raw(at))))
        return [*step, tirx.While(inside, sequence(step))]

    def _look_up(self, part: Part) -> list[Any]:
        """Add the rows of what the slots of the hash have that is the same as in the text."""
        slot = tirx.BufferLoad(self.slot, [_i32(0)])
        known = tirx.BufferLoad(self.hash, [_i32(0)])
        pair = tirx.Cast("int32", slot) * _i32(2)
        stored = tirx.reinterpret("uint32", tirx.BufferLoad(self.to.slots, [pair]))
        found = tirx.BufferLoad(self.to.slots, [pair + 1])

        def to_slot(value: Any) -> Any:
            return tirx.BufferStore(self.slot, tirx.bitwise_and(value, self.mask), [_i32(0)])

        check = [
            self._set("gram", found),
            *self._compare(part),
            tirx.IfThenElse(tirx.EQ(self._get("same"), _i32(1)), self._add(), None),
        ]
        return [
            to_slot(tirx.bitwise_xor(known, tirx.shift_right(known, _u32(HASH_FOLD)))),
            tirx.While(
                tirx.NE(found, _i32(0)),
                sequence(
                    [
                        tirx.IfThenElse(tirx.EQ(stored, known), sequence(check), None),
                        to_slot(slot + 1),
                    ]
                ),
            ),
        ]

    def _add(self) -> Any:
        """Add the row of the n-gram `gram`."""
        column = new_var("column")
        scale = tirx.reinterpret("float32", self._of_gram(SCALE))
        source = self._of_gram(COLUMN) * _i32(self.width) + column
        target = self.row * _i32(self.width) + column
        total = tirx.BufferLoad(self.to.result, [target])
        total = total + scale * tirx.BufferLoad(self.to.table, [source])
        return loop_over(column, self.width, tirx.BufferStore(self.to.result, total, [target]))

    def _of_gram(self, place: int) -> Any:
        return tirx.BufferLoad(self.to.pool, [self._get("gram") + place])

    def _compare(self, part: Part) -> list[Any]:
        """Whether the n-gram `gram` is what the text has from `begin` to `end`."""
        gram, place, read, end = (self._get(name) for name in ("gram", "place", "read", "end"))
        same_part = tirx.EQ(self._of_gram(CONTENT), _i32(part.number))
        wanted = tirx.BufferLoad(self.to.pool, [place])
        same = tirx.And(read < end, tirx.EQ(self._code(read), wanted))
        step = [
            self._set("same", tirx.Cast("int32", same)),
            self._set("read", read + 1),
        ]
        if part.words:
            space = tirx.And(read < end, _is_space(self._raw(read)))
            between = [self._set("same", tirx.Cast("int32", space)), self._skip_spaces("read")]
            step = [
                tirx.IfThenElse(tirx.EQ(wanted, _i32(SEPARATOR)), sequence(between), sequence(step))
            ]
        going = tirx.And(tirx.EQ(self._get("same"), _i32(1)), place < self._get("last"))
        return [
            self._set("place", gram + (CONTENT + 1)),
            self._set("last", self._of_gram(END)),
            self._set("read", self._get("begin")),
            self._set("same", tirx.Cast("int32", same_part)),
            tirx.While(going, sequence([*step, self._set("place", place + 1)])),
            tirx.IfThenElse(tirx.NE(read, end), self._set("same", _i32(0)), None),
        ]

    def _skip_spaces(self, name: str) -> Any:
        at = self._get(name)
        inside = tirx.And(at < self.length, _is_space(self._raw(at)))
        return tirx.While(inside, self._set(name, at + 1))

    def _mix(self, code: Any) -> Any:
        """The hash with one more code point."""
        known = tirx.BufferLoad(self.hash, [_i32(0)])
        mixed = tirx.bitwise_xor(known, tirx.reinterpret("uint32", code)) * _u32(HASH_FACTOR)
        return tirx.BufferStore(self.hash, mixed, [_i32(0)])

    def _raw(self, at: Any) -> Any:
        return tirx.BufferLoad(self.codes, [at])

    def _code(self, at: Any) -> Any:
        """A code point in the case that the dictionary has."""
        raw = self._raw(at)
        if self.case == "NONE":
            return raw
        first, shift = ("A", 32) if self.case == "LOWER" else ("a", -32)
        inside = tirx.And(raw >= ord(first), raw < ord(first) + 26)
        return tirx.Select(inside, raw + shift, raw)

    def _get(self, name: str) -> Any:
        return tirx.BufferLoad(self.vars[name], [_i32(0)])

    def _set(self, name: str, value: Any) -> Any:
        return tirx.BufferStore(self.vars[name], value, [_i32(0)])


def _is_space(code: Any) -> Any:
    """Whether Python would split a text here."""

    def between(ranges: Sequence[tuple[int, int]]) -> Any:
        tests = [
            tirx.EQ(code, _i32(low)) if low == high else tirx.And(code >= low, code <= high)
            for low, high in ranges
        ]
        found = tests[0]
        for test in tests[1:]:
            found = tirx.Or(found, test)
        return found

    ascii = [(low, high) for low, high in SPACES if high < 128]
    rest = [(low, high) for low, high in SPACES if low >= 128]
    return tirx.if_then_else(code < 128, between(ascii), between(rest))


def _variable(name: str, dtype: str) -> Any:
    return tirx.decl_buffer((1,), dtype, name=name, scope="local")


def _i32(value: int) -> Any:
    return tirx.const(value, "int32")


def _u32(value: int) -> Any:
    return tirx.const(value & 0xFFFFFFFF, "uint32")

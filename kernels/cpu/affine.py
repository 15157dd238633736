"""Index arithmetic over loops: sums of loop variables with integer coefficients.

What enters: loop variables with known extents, and the arithmetic that operators do on indices
(add, multiply by a constant, divide, take a remainder, compare). What leaves: exact affine
indices, so that strides are read off and no division is left in a kernel's inner loop. Where an
index is not affine in the loops at hand, `Refine` says how to cut or split a loop so that it
becomes so; a loop that may not be refined gives an opaque term instead, which is always right and
merely slower. Knows no graph; touches TVM only to print an index as an expression.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any


class Loop:
    """A loop from 0 to `extent`. A `fixed` loop is never refined."""

    __slots__ = ("_var", "extent", "fixed", "name")

    def __init__(self, extent: int, name: str, *, fixed: bool = False, var: Any = None) -> None:
        self.extent = extent
        self.name = name
        self.fixed = fixed
        self._var = var

    @property
    def var(self) -> Any:
        """The TVM variable of this loop."""
        if self._var is None:
            from tvm import tirx

            self._var = tirx.Var(self.name, "int32")
        return self._var

    def bind(self, value: Any) -> None:
        """Let this loop's position be the given expression from now on."""
        self._var = value

    def __repr__(self) -> str:
        return f"{self.name}<{self.extent}"


class Opaque:
    """A number known only at run time, within [low, high], which depends on `loops`."""

    __slots__ = ("expr", "high", "loops", "low")

    def __init__(self, expr: Any, low: int, high: int, loops: frozenset[Loop]) -> None:
        self.expr = expr
        self.low = low
        self.high = high
        self.loops = loops


class Refine(Exception):
    """Ask for `loop` to be cut in two at `cut`, or split into an outer and an inner of `factor`."""

    def __init__(self, loop: Loop, *, cut: int = 0, factor: int = 0) -> None:
        super().__init__(loop, cut, factor)
        self.loop = loop
        self.cut = cut
        self.factor = factor


class Index:
    """An integer: a constant plus loops (or opaque numbers) times coefficients. Immutable."""

    __slots__ = ("const", "terms")

    def __init__(self, terms: Mapping[Loop | Opaque, int], const: int = 0) -> None:
        self.terms = {atom: coef for atom, coef in terms.items() if coef and _spans(atom)}
        self.const = const + sum(
            coef * atom.low
            for atom, coef in terms.items()
            if isinstance(atom, Opaque) and not _spans(atom)
        )

    @staticmethod
    def of(value: Index | Loop | Opaque | int) -> Index:
        """A loop, an opaque number or an integer as an index."""
        if isinstance(value, Index):
            return value
        return Index({}, int(value)) if isinstance(value, int) else Index({value: 1})

    def __add__(self, other: Index | int) -> Index:
        if isinstance(other, int):
            return Index(self.terms, self.const + other)
        terms = dict(self.terms)
        for atom, coef in other.terms.items():
            terms[atom] = terms.get(atom, 0) + coef
        return Index(terms, self.const + other.const)

    def __sub__(self, other: Index | int) -> Index:
        return self + (-other if isinstance(other, int) else other * -1)

    def __mul__(self, factor: int) -> Index:
        return Index({a: c * factor for a, c in self.terms.items()}, self.const * factor)

    __radd__ = __add__
    __rmul__ = __mul__

    @property
    def bounds(self) -> tuple[int, int]:
        """The least and the greatest value (inclusive)."""
        low = high = self.const
        for atom, coef in self.terms.items():
            first, last = _range(atom)
            low += coef * (first if coef > 0 else last)
            high += coef * (last if coef > 0 else first)
        return low, high

    @property
    def is_const(self) -> bool:
        return not self.terms

    @property
    def loops(self) -> frozenset[Loop]:
        """All loops this index depends on, also through opaque terms."""
        found: set[Loop] = set()
        for atom in self.terms:
            found |= {atom} if isinstance(atom, Loop) else atom.loops
        return frozenset(found)

    @property
    def opaque_loops(self) -> frozenset[Loop]:
        """The loops on which this index depends in an unknown way."""
        found: set[Loop] = set()
        for atom in self.terms:
            if isinstance(atom, Opaque):
                found |= atom.loops
        return frozenset(found)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for equal indices (while their loops live)."""
        return (self.const, *sorted((id(atom), coef) for atom, coef in self.terms.items()))

    @property
    def expr(self) -> Any:
        """This index as a TVM expression (int32)."""
        from tvm import tirx

        total: Any = None
        for atom, coef in self.terms.items():
            var = atom.var if isinstance(atom, Loop) else atom.expr
            term = var if coef == 1 else var * tirx.const(coef, "int32")
            total = term if total is None else total + term
        if total is None:
            return tirx.const(self.const, "int32")
        return total + tirx.const(self.const, "int32") if self.const else total

    def substitute(self, values: Mapping[Loop, Index]) -> Index:
        """This index with loops replaced by indices."""
        result = Index({}, self.const)
        for atom, coef in self.terms.items():
            value = values.get(atom) if isinstance(atom, Loop) else None
            result = result + (Index({atom: coef}) if value is None else value * coef)
        return result

    def __floordiv__(self, divisor: int) -> Index:
        return self.divmod(divisor)[0]

    def __mod__(self, divisor: int) -> Index:
        return self.divmod(divisor)[1]

    def divmod(self, divisor: int) -> tuple[Index, Index]:
        """Quotient (rounded down) and remainder by a positive constant."""
        whole, part = {}, {}
        for atom, coef in self.terms.items():
            if coef % divisor:
                part[atom] = coef
            else:
                whole[atom] = coef // divisor
        quotient, const = divmod(self.const, divisor)
        rest = Index(part, const)
        low, high = rest.bounds
        if low // divisor == high // divisor:
            return Index(whole, quotient + low // divisor), rest - low // divisor * divisor
        rest._refine(divisor)
        from tvm import tirx

        inner = Opaque(
            tirx.floordiv(rest.expr, tirx.const(divisor, "int32")),
            low // divisor,
            high // divisor,
            rest.loops,
        )
        return Index({**whole, inner: 1}, quotient), rest - Index({inner: divisor})

    def _refine(self, divisor: int) -> None:
        """Raise Refine when cutting or splitting a loop makes division by `divisor` exact."""
        found = self._leading()
        if found is None:
            return
        loop, coef, low, high = found
        if divisor % coef or low // coef != high // coef:
            factor = divisor // math.gcd(coef, divisor)
            if factor < loop.extent and loop.extent % factor == 0:
                raise Refine(loop, factor=factor)
            return
        factor = divisor // coef
        # The loop steps through quotients of `factor` values each, the first one cut short.
        head = -(low // coef) % factor
        if 0 < head < loop.extent:
            raise Refine(loop, cut=head)
        if factor < loop.extent:
            tail = loop.extent % factor
            raise Refine(loop, cut=loop.extent - tail) if tail else Refine(loop, factor=factor)

    def _leading(self) -> tuple[Loop, int, int, int] | None:
        """The refinable loop of the largest positive coefficient, and the bounds of the rest."""
        loops = [(coef, atom) for atom, coef in self.terms.items() if isinstance(atom, Loop)]
        if len(loops) != len(self.terms) or not loops:
            return None
        coef, loop = max(loops, key=lambda pair: pair[0])
        if coef <= 0 or loop.fixed:
            return None
        low, high = (self - Index({loop: coef})).bounds
        return loop, coef, low, high

    def less_than(self, limit: int) -> Any:
        """Whether this index is below `limit`: True, False, or a TVM condition."""
        low, high = self.bounds
        if high < limit:
            return True
        if low >= limit:
            return False
        self._cut_at(limit)
        (self * -1)._cut_at(1 - limit)
        from tvm import tirx

        return self.expr < tirx.const(limit, "int32")

    def _cut_at(self, limit: int) -> None:
        """Raise Refine when cutting a loop makes `self < limit` more certain."""
        found = self._leading()
        if found is None:
            return
        loop, coef, low, high = found
        # Below the first cut the condition surely holds, from the second on it surely does not.
        for cut in ((limit - 1 - high) // coef + 1, -((low - limit) // coef)):
            if 0 < cut < loop.extent:
                raise Refine(loop, cut=cut)

    def __repr__(self) -> str:
        parts = [f"{coef}*{atom!r}" for atom, coef in self.terms.items()]
        return " + ".join([*parts, str(self.const)])


def _range(atom: Loop | Opaque) -> tuple[int, int]:
    return (0, atom.extent - 1) if isinstance(atom, Loop) else (atom.low, atom.high)


def _spans(atom: Loop | Opaque) -> bool:
    low, high = _range(atom)
    return high > low


def flatten(indices: Iterable[Index], shape: Iterable[int]) -> Index:
    """The position in memory (C order) of the element at `indices`."""
    offset = Index({})
    for index, dim in zip(indices, shape, strict=True):
        offset = offset * dim + index
    return offset


def unflatten(offset: Index, shape: tuple[int, ...]) -> tuple[Index, ...]:
    """The indices of the element at position `offset` (C order)."""
    indices: list[Index] = []
    inner = math.prod(shape)
    for dim in shape:
        inner //= max(dim, 1)
        if dim == 1:
            indices.append(Index({}))
            continue
        index, offset = offset.divmod(inner) if inner > 1 else (offset, Index({}))
        indices.append(index)
    return tuple(indices)

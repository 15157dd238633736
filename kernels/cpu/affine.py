"""Index arithmetic over loops: sums of loop variables with integer coefficients.

What enters: loop variables and their extents (numbers, or sizes known only when the kernel runs),
and the arithmetic that operators do on indices (add, multiply by a constant, divide, take a
remainder, compare). What leaves: exact affine indices, so that strides are read off and no division
is left in a kernel's inner loop. Where an index is not affine in the loops at hand, `Refine` says
how to cut or split a loop so that it becomes so; a loop that may not be refined, or whose extent is
a symbol, gives an opaque term instead, which is always right and merely slower. Knows no graph;
touches TVM only to print an index as an expression.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from whitebox.ir.sizes import Extent, Size, at_least, exact_quotient, least, product


@cache
def symbol_variable(name: str) -> Any:
    """The TVM variable of a symbol; the shapes of a kernel's arguments bind it."""
    from tvm import tirx

    return tirx.Var(name, "int32")


def expression(size: Extent, dtype: str = "int32") -> Any:
    """A size as a TVM expression."""
    from tvm import tirx

    if isinstance(size, int):
        return tirx.const(size, dtype)
    total: Any = None
    for monomial, coef in size.terms:
        factors = [symbol_variable(name).astype(dtype) for name in monomial]
        if coef != 1 or not factors:
            factors.append(tirx.const(coef, dtype))
        term = math.prod(factors[1:], start=factors[0])
        total = term if total is None else total + term
    return total


class Loop:
    """A loop from 0 to `extent`. A `fixed` loop is never refined."""

    __slots__ = ("_var", "extent", "fixed", "name")

    def __init__(self, extent: Extent, name: str, *, fixed: bool = False, var: Any = None) -> None:
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

    def __init__(self, expr: Any, low: Extent, high: Extent, loops: frozenset[Loop]) -> None:
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

    def __init__(self, terms: Mapping[Loop | Opaque, Extent], const: Extent = 0) -> None:
        self.terms = {a: coef for a, coef in terms.items() if coef != 0 and _spans(a)}
        for atom, coef in terms.items():
            if isinstance(atom, Opaque) and not _spans(atom):
                const = const + coef * atom.low
        self.const = const

    @staticmethod
    def of(value: Index | Loop | Opaque | Extent) -> Index:
        """A loop, an opaque number or a size as an index."""
        if isinstance(value, Index):
            return value
        return Index({}, value) if isinstance(value, int | Size) else Index({value: 1})

    def __add__(self, other: Index | Extent) -> Index:
        if not isinstance(other, Index):
            return Index(self.terms, self.const + other)
        terms = dict(self.terms)
        for atom, coef in other.terms.items():
            terms[atom] = terms.get(atom, 0) + coef
        return Index(terms, self.const + other.const)

    def __sub__(self, other: Index | Extent) -> Index:
        return self + other * -1

    def __mul__(self, factor: Extent) -> Index:
        return Index({a: c * factor for a, c in self.terms.items()}, self.const * factor)

    __radd__ = __add__
    __rmul__ = __mul__

    @property
    def bounds(self) -> tuple[Extent, Extent]:
        """The least and the greatest value (inclusive)."""
        low = high = self.const
        for atom, coef in self.terms.items():
            first, last = _range(atom)
            if not at_least(coef, 0):
                if not at_least(0, coef):
                    raise ValueError(f"whether the stride {coef!r} is negative is not known")
                first, last = last, first
            low = low + coef * first
            high = high + coef * last
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
        order = sorted(self.terms.items(), key=lambda term: id(term[0]))
        return (self.const, *((id(atom), coef) for atom, coef in order))

    @property
    def expr(self) -> Any:
        """This index as a TVM expression (int32)."""
        total: Any = None
        for atom, coef in self.terms.items():
            var = atom.var if isinstance(atom, Loop) else atom.expr
            term = var if coef == 1 else var * expression(coef)
            total = term if total is None else total + term
        if total is None:
            return expression(self.const)
        return total + expression(self.const) if self.const != 0 else total

    def substitute(self, values: Mapping[Loop, Index]) -> Index:
        """This index with loops replaced by indices."""
        result = Index({}, self.const)
        for atom, coef in self.terms.items():
            value = values.get(atom) if isinstance(atom, Loop) else None
            result = result + (Index({atom: coef}) if value is None else value * coef)
        return result

    def __floordiv__(self, divisor: Extent) -> Index:
        return self.divmod(divisor)[0]

    def __mod__(self, divisor: Extent) -> Index:
        return self.divmod(divisor)[1]

    def divmod(self, divisor: Extent) -> tuple[Index, Index]:
        """Quotient (rounded down) and remainder by a positive constant."""
        whole, part = {}, {}
        for atom, coef in self.terms.items():
            exact = exact_quotient(coef, divisor)
            if exact is None:
                part[atom] = coef
            else:
                whole[atom] = exact
        quotient, const = _split(self.const, divisor)
        rest = Index(part, const)
        low, high = rest.bounds
        if at_least(low, 0) and at_least(divisor - 1, high):
            return Index(whole, quotient), rest
        least, most = _quotient_bounds(low, high, divisor)
        if least == most:
            return Index(whole, quotient + least), rest - least * divisor
        rest._refine(divisor)
        from tvm import tirx

        # TVM cannot tell that a symbol is positive, and would handle both signs.
        divide = tirx.truncdiv if at_least(low, 0) else tirx.floordiv
        result = divide(rest.expr, expression(divisor))
        inner = Opaque(result, least, most, rest.loops)
        return Index({**whole, inner: 1}, quotient), rest - Index({inner: divisor})

    def _refine(self, divisor: Extent) -> None:
        """Raise Refine when cutting or splitting a loop makes division by `divisor` exact."""
        found = self._leading()
        if found is None or not isinstance(divisor, int):
            return
        loop, extent, coef, low, high = found
        if divisor % coef or low // coef != high // coef:
            factor = divisor // math.gcd(coef, divisor)
            if factor < extent and extent % factor == 0:
                raise Refine(loop, factor=factor)
            return
        factor = divisor // coef
        # The loop steps through quotients of `factor` values each, the first one cut short.
        head = -(low // coef) % factor
        if 0 < head < extent:
            raise Refine(loop, cut=head)
        if factor < extent:
            tail = extent % factor
            raise Refine(loop, cut=extent - tail) if tail else Refine(loop, factor=factor)

    def _leading(self) -> tuple[Loop, int, int, int, int] | None:
        """The refinable loop of the largest positive coefficient: (loop, extent, coefficient) and
        the bounds of the rest. None when any of these is no plain number."""
        loops = [
            (coef, atom)
            for atom, coef in self.terms.items()
            if isinstance(atom, Loop) and isinstance(coef, int)
        ]
        if len(loops) != len(self.terms) or not loops:
            return None
        coef, loop = max(loops, key=lambda pair: pair[0])
        if coef <= 0 or loop.fixed:
            return None
        low, high = (self - Index({loop: coef})).bounds
        if isinstance(loop.extent, Size) or isinstance(low, Size) or isinstance(high, Size):
            return None
        return loop, loop.extent, coef, low, high

    def less_than(self, limit: Extent) -> Any:
        """Whether this index is below `limit`: True, False, or a TVM condition."""
        low, high = self.bounds
        if at_least(limit - 1, high):
            return True
        if at_least(low, limit):
            return False
        self._cut_at(limit)
        (self * -1)._cut_at(1 - limit)
        return self.expr < expression(limit)

    def _cut_at(self, limit: Extent) -> None:
        """Raise Refine when cutting a loop makes `self < limit` more certain."""
        found = self._leading()
        if found is None or not isinstance(limit, int):
            return
        loop, extent, coef, low, high = found
        # Below the first cut the condition surely holds, from the second on it surely does not.
        for cut in ((limit - 1 - high) // coef + 1, -((low - limit) // coef)):
            if 0 < cut < extent:
                raise Refine(loop, cut=cut)

    def __repr__(self) -> str:
        parts = [f"{coef}*{atom!r}" for atom, coef in self.terms.items()]
        return " + ".join([*parts, str(self.const)])


def _range(atom: Loop | Opaque) -> tuple[Extent, Extent]:
    return (0, atom.extent - 1) if isinstance(atom, Loop) else (atom.low, atom.high)


def _spans(atom: Loop | Opaque) -> bool:
    low, high = _range(atom)
    return not at_least(low, high)


def _split(size: Extent, divisor: Extent) -> tuple[Extent, Extent]:
    """Some quotient and remainder of a size; the remainder of numbers is the least."""
    if isinstance(size, int) and isinstance(divisor, int):
        return divmod(size, divisor)
    exact = exact_quotient(size, divisor)
    return (0, size) if exact is None else (exact, 0)


def _quotient_bounds(low: Extent, high: Extent, divisor: Extent) -> tuple[Extent, Extent]:
    """Bounds of the rounded-down quotient of a number within [low, high]; sizes give loose ones."""
    if isinstance(divisor, int) and isinstance(low, int) and isinstance(high, int):
        return low // divisor, high // divisor
    rows = exact_quotient(high + 1, divisor)  # the last index of a whole number of rows
    if rows is not None:
        return 0 if at_least(low, 0) else low, rows - 1
    lowest = least(high)
    if lowest is None:
        raise ValueError(f"whether {high!r} is negative is not known")
    return 0 if at_least(low, 0) else low, high if lowest >= 0 else high - lowest


def flatten(indices: Iterable[Index], shape: Iterable[Extent]) -> Index:
    """The position in memory (C order) of the element at `indices`."""
    offset = Index({})
    for index, dim in zip(indices, shape, strict=True):
        offset = offset * dim + index
    return offset


def unflatten(offset: Index, shape: tuple[Extent, ...]) -> tuple[Index, ...]:
    """The indices of the element at position `offset` (C order)."""
    indices: list[Index] = []
    for k, dim in enumerate(shape):
        inner = product(size for size in shape[k + 1 :] if size != 0)
        if dim == 1:
            indices.append(Index({}))
            continue
        index, offset = (offset, Index({})) if inner == 1 else offset.divmod(inner)
        indices.append(index)
    return tuple(indices)

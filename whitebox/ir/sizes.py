"""Sizes that are known only when a kernel runs: polynomials over symbols.

A symbol is a dimension that is at least 1 and otherwise unknown. What enters: symbols and
integers. What leaves: sums, products and exact quotients in a normal form, so that equal sizes
compare equal, and bounds that hold whatever the symbols are. A `Size` has no order: which of two is
larger may be unknown, and code that decides by a size must ask `at_least`, or it fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import TypeAlias

Monomial: TypeAlias = tuple[str, ...]


class Size:
    """A polynomial with integer coefficients that is not a plain integer. Immutable."""

    __slots__ = ("terms",)

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        self.terms = terms

    @staticmethod
    def symbol(name: str) -> Size:
        """The size that a symbol stands for."""
        return Size((((name,), 1),))

    @property
    def symbols(self) -> frozenset[str]:
        """The symbols that it depends on."""
        return frozenset(name for monomial, _ in self.terms for name in monomial)

    def __add__(self, other: Extent) -> Extent:
        terms = dict(self.terms)
        for monomial, coef in _terms(other):
            terms[monomial] = terms.get(monomial, 0) + coef
        return _normal(terms)

    def __sub__(self, other: Extent) -> Extent:
        return self + other * -1

    def __rsub__(self, other: int) -> Extent:
        return self * -1 + other

    def __mul__(self, other: Extent) -> Extent:
        terms: dict[Monomial, int] = {}
        for a, x in self.terms:
            for b, y in _terms(other):
                monomial = tuple(sorted(a + b))
                terms[monomial] = terms.get(monomial, 0) + x * y
        return _normal(terms)

    __radd__ = __add__
    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Size) and self.terms == other.terms

    def __hash__(self) -> int:
        return hash(self.terms)

    def __repr__(self) -> str:
        return " + ".join("*".join((str(coef), *monomial)) for monomial, coef in self.terms)


Extent: TypeAlias = int | Size


def product(sizes: Iterable[Extent]) -> Extent:
    """The product of sizes; 1 when there are none."""
    result: Extent = 1
    for size in sizes:
        result = result * size
    return result


def known(size: Extent) -> int:
    """The number that a size is. Raises TypeError when it depends on a symbol."""
    if isinstance(size, Size):
        raise TypeError(f"the size {size!r} is not known, and decides what is computed")
    return size


def all_known(shape: Iterable[Extent]) -> tuple[int, ...]:
    """The numbers that sizes are. Raises TypeError when one depends on a symbol."""
    return tuple(map(known, shape))


def exact_quotient(size: Extent, divisor: Extent) -> Extent | None:
    """`size / divisor` where it leaves no remainder for any value of the symbols, else None."""
    if size == divisor:
        return 1
    divisors = list(_terms(divisor))
    if len(divisors) != 1:
        return None
    (monomial, factor) = divisors[0]
    quotient: dict[Monomial, int] = {}
    for own, coef in _terms(size):
        rest = list(own)
        for name in monomial:
            if name not in rest:
                return None
            rest.remove(name)
        if coef % factor:
            return None
        quotient[tuple(rest)] = coef // factor
    return _normal(quotient)


def at_least(size: Extent, bound: Extent) -> bool:
    """Whether `size >= bound` whatever the symbols are (each at least 1)."""
    lowest = least(size - bound)
    return lowest is not None and lowest >= 0


def least(size: Extent) -> int | None:
    """The least that a size can be, which is where all symbols are 1; None when it is not known."""
    if isinstance(size, int):
        return size
    # Each symbol is 1 + something that is not negative: no term of these may be negative.
    shifted: dict[Monomial, int] = {}
    for monomial, coef in _terms(size):
        for part in _parts(monomial):
            shifted[part] = shifted.get(part, 0) + coef
    lowest = shifted.pop((), 0)
    return lowest if all(coef >= 0 for coef in shifted.values()) else None


def _parts(monomial: Monomial) -> Iterator[Monomial]:
    """The monomials of the product of (1 + symbol)."""
    for count in range(len(monomial) + 1):
        yield from combinations(monomial, count)


def _terms(size: Extent) -> tuple[tuple[Monomial, int], ...]:
    return size.terms if isinstance(size, Size) else (((), size),)


def _normal(terms: Mapping[Monomial, int]) -> Extent:
    kept = tuple(sorted((monomial, coef) for monomial, coef in terms.items() if coef))
    if not kept:
        return 0
    return kept[0][1] if len(kept) == 1 and not kept[0][0] else Size(kept)

"""Dictionaries of n-grams as arrays: what `whitebox.NgramSum` looks texts up in.

Enter: n-grams (tokens and the part of the text's features that they belong to), each with its
column and weight. Leave: two arrays, which kernels and numpy read alike. `slots` is a hash table
with open addressing: pairs of a hash and a place in `pool`, 0 if free. In the pool an n-gram is the
place after its end, its column, its weight (a float32's bits), and its content: its part's number,
then the code points of its tokens, words with a separator between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

SEPARATOR = -1  # no code point
END, COLUMN, SCALE, CONTENT = range(4)  # of an n-gram in the pool
# Fowler, Noll and Vo's hash of 32 bits, over code points; the low bits are mixed before use.
HASH_START, HASH_FACTOR, HASH_FOLD = 0x811C9DC5, 0x01000193, 15
# Where Python splits a text: first and last code point of each range.
SPACES = (
    (9, 13), (28, 32), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A),
    (0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000),
)  # fmt: skip


@dataclass(frozen=True)
class Gram:
    """An n-gram of a part: characters or words."""

    part: int
    words: bool
    tokens: tuple[str, ...]
    column: int
    weight: float

    @property
    def content(self) -> tuple[int, ...]:
        """How it is stored."""
        codes = [self.part]
        for number, token in enumerate(self.tokens):
            if number and self.words:
                codes.append(SEPARATOR)
            codes += map(ord, token)
        return tuple(codes)


def dictionary(grams: Sequence[Gram]) -> tuple[np.ndarray, np.ndarray]:
    """(slots, pool) of a dictionary; slots are at most half full."""
    slots = np.zeros((1 << max(2 * len(grams) - 1, 1).bit_length(), 2), np.int32)
    pool = [0]  # no n-gram is at 0, which marks a free slot
    for gram in grams:
        content = gram.content
        hashed = gram_hash(content)
        slot = (hashed ^ hashed >> HASH_FOLD) & len(slots) - 1
        while slots[slot, 1]:
            slot = (slot + 1) & len(slots) - 1
        slots[slot] = np.uint32(hashed).view(np.int32), len(pool)
        scale = int(np.float32(gram.weight).view(np.int32))
        pool += [len(pool) + CONTENT + len(content), gram.column, scale, *content]
    return slots, np.array(pool, np.int32)


def gram_hash(content: Sequence[int]) -> int:
    """The hash of an n-gram; its part is where it starts from."""
    hashed = HASH_START + content[0]
    for code in content[1:]:
        hashed = ((hashed ^ (code & 0xFFFFFFFF)) * HASH_FACTOR) & 0xFFFFFFFF
    return hashed


def grams_of(pool: np.ndarray) -> Iterator[tuple[tuple[int, ...], int, np.float32]]:
    """(content, column, scale) of each n-gram in a pool."""
    at = 1
    while at < len(pool):
        end, column, scale = pool[at : at + CONTENT]
        yield tuple(pool[at + CONTENT : end].tolist()), int(column), scale.view(np.float32)
        at = int(end)

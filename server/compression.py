"""HTTP content codings gzip and deflate, over whole bodies.

Enters: a body and the value of a Content-Encoding or Accept-Encoding header. Leaves: the body
decoded within a limit, or encoded when that is worth it. Never does I/O.
"""

from __future__ import annotations

import zlib

from whitebox.errors import InvalidInput, RequestTooLarge

_WINDOW_BITS = {"gzip": 31, "deflate": zlib.MAX_WBITS}
_MIN_BYTES = 1024
_SAMPLE_BYTES = 16 * 1024
_WORTH_RATIO = 0.8
_LEVEL = 1


def decompress(body: bytes, coding: str, limit: int) -> bytes:
    """The body that `coding` encodes. Never makes more than `limit` bytes of it."""
    coding = coding.strip().lower().removeprefix("x-")
    if coding in ("", "identity"):
        return body
    if coding not in _WINDOW_BITS:
        raise InvalidInput(
            f"Content-Encoding {coding[:40]!r} is not offered; send gzip, deflate or neither"
        )
    bits = _WINDOW_BITS[coding]
    if coding == "deflate" and not _has_zlib_header(body):
        bits = -zlib.MAX_WBITS  # some clients take the name literally and send it bare
    stream = zlib.decompressobj(bits)
    try:
        decoded = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidInput(f"the body is not {coding} data ({error}); send it whole") from None
    if len(decoded) > limit:
        raise too_large(limit, "decompressed ")
    if not stream.eof or stream.unused_data:
        fault = "goes on after" if stream.eof else "stops before"
        raise InvalidInput(f"the body {fault} the end of its {coding} data; send one stream")
    return decoded


def too_large(limit: int, adjective: str = "") -> RequestTooLarge:
    """The error for a body over `limit` bytes."""
    return RequestTooLarge(
        f"the {adjective}body is over the limit of {limit} bytes; send less at once, or send "
        "binary tensor data, which is shorter"
    )


def choose_coding(accept: str) -> str | None:
    """The coding to answer with, given an Accept-Encoding header; None for no coding."""
    weights: dict[str, float] = {}
    for part in accept.lower().split(","):
        coding, _, parameter = part.partition(";")
        key, _, value = parameter.partition("=")
        try:
            weights[coding.strip()] = float(value) if key.strip() == "q" else 1.0
        except ValueError:
            continue
    offers = {coding: weights.get(coding, weights.get("*", 0.0)) for coding in _WINDOW_BITS}
    best = max(offers, key=lambda coding: offers[coding])
    return best if offers[best] > 0 else None


def is_worth(body: bytes) -> bool:
    """Whether the body is large enough and, going by its first part, shrinks enough.

    JSON does; the bytes of float tensors hardly do, and most clients offer gzip by default.
    """
    if len(body) < _MIN_BYTES:
        return False
    sample = body[:_SAMPLE_BYTES]
    return len(zlib.compress(sample, _LEVEL)) < _WORTH_RATIO * len(sample)


def compress(body: bytes, coding: str) -> bytes:
    """The body encoded by gzip or deflate, for speed rather than for size."""
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS[coding])
    return stream.compress(body) + stream.flush()


def _has_zlib_header(body: bytes) -> bool:
    return len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0

"""HTTP handlers of the Open Inference Protocol v2, one a route, and what goes around them all.

Enters: HTTP requests. Leaves: JSON or binary answers; every failure is `{"error": "..."}` with a
4xx or 5xx status. Never interprets tensors (wire.py does) and never decides (data_plane.py does).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import ClientError, web
from aiohttp.http_exceptions import HttpProcessingError

from whitebox.errors import InvalidInput, Overloaded, WhiteboxError
from whitebox.server import compression, wire
from whitebox.server.data_plane import DataPlane, InferResponse
from whitebox.server.metrics import UNKNOWN_MODEL, Metrics

_HEADER_LENGTH = "Inference-Header-Content-Length"
_OFFLOAD_BYTES = 64 * 1024
_CLIENT_GONE = 499  # in the metrics, as others have it; nobody is there to read it

_log = logging.getLogger("whitebox.server")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class _Count:
    """An infer request for the metrics: when its body was there, and the models it names."""

    begin: float
    models: Sequence[str] = (UNKNOWN_MODEL,)


class Handlers:
    """One handler a route."""

    def __init__(self, plane: DataPlane, max_body_bytes: int) -> None:
        self._plane = plane
        self._max_body_bytes = max_body_bytes
        self._metrics = Metrics(plane.runtime.stats, plane.is_registered)

    async def server_metadata(self, request: web.Request) -> web.Response:
        return _json(self._plane.server_metadata())

    async def live(self, request: web.Request) -> web.Response:
        return _json({"live": True})

    async def ready(self, request: web.Request) -> web.Response:
        self._plane.check_ready()
        return _json({"ready": True})

    async def model_metadata(self, request: web.Request) -> web.Response:
        return _json(self._plane.model_metadata(*_model_of(request)))

    async def model_ready(self, request: web.Request) -> web.Response:
        info = self._plane.model(*_model_of(request))
        return _json({"name": info.name, "ready": True})

    async def repository_index(self, request: web.Request) -> web.Response:
        return _json(self._plane.repository_index())

    async def metrics(self, request: web.Request) -> web.Response:
        body, content_type = await asyncio.to_thread(
            self._metrics.render, request.headers.get("Accept", "")
        )
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def infer(self, request: web.Request) -> web.Response:
        with self._counted() as count:
            info = self._plane.model(*_model_of(request))
            count.models = [info.name]
            body = await self._read(request)
            count.begin = time.perf_counter()
            decoded = await self._decode(request, body)
            answer = await self._plane.infer(info, decoded)
            return await _encode(decoded, [answer])

    async def infer_together(self, request: web.Request) -> web.Response:
        """Several models on one input: as `infer`, the models named in the body."""
        with self._counted() as count:
            body = await self._read(request)
            count.begin = time.perf_counter()
            decoded = await self._decode(request, body)
            infos = self._plane.several(decoded)
            count.models = [info.name for info in infos]
            answers = await self._plane.infer_together(infos, decoded)
            return await _encode(decoded, answers)

    @contextmanager
    def _counted(self) -> Iterator[_Count]:
        """Count an infer request for each of its models, however it ends."""
        count, status = _Count(time.perf_counter()), 500
        try:
            with self._metrics.in_flight.track_inprogress():
                yield count
            status = 200
        except WhiteboxError as error:
            status = error.http_status
            raise
        except asyncio.CancelledError:
            status = _CLIENT_GONE
            raise
        finally:
            seconds = time.perf_counter() - count.begin
            for model in dict.fromkeys(count.models):
                self._metrics.record(model, status, seconds)

    async def _read(self, request: web.Request) -> bytes:
        """The body as sent, of at most the allowed length."""
        limit = self._max_body_bytes
        if (request.content_length or 0) > limit:
            raise compression.too_large(limit)
        pieces: list[bytes] = []
        size = 0
        try:
            async for piece in request.content.iter_any():
                size += len(piece)
                if size > limit:
                    raise compression.too_large(limit)
                pieces.append(piece)
        except (ClientError, HttpProcessingError, web.RequestPayloadError) as error:
            raise InvalidInput(
                f"the body broke off or is malformed ({type(error).__name__}); send it again"
            ) from None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _decode(self, request: web.Request, body: bytes) -> wire.InferRequest:
        header_length = wire.parse_header_length(request.headers.get(_HEADER_LENGTH))
        coding = request.headers.get("Content-Encoding", "")
        if not coding and wire.decodes_quickly(body, header_length):
            return wire.decode_request(body, header_length)

        def work() -> wire.InferRequest:
            plain = compression.decompress(body, coding, self._max_body_bytes)
            return wire.decode_request(plain, header_length)

        return await asyncio.to_thread(work)


async def _encode(request: wire.InferRequest, answers: Sequence[InferResponse]) -> web.Response:
    def work() -> tuple[bytes, int | None]:
        if request.models:
            return wire.encode_responses(request, [a.as_tuple() for a in answers])
        return wire.encode_response(request, *answers[0].as_tuple())

    quick = all(wire.encodes_quickly(request, answer.results) for answer in answers)
    body, header_length = work() if quick else await asyncio.to_thread(work)
    if header_length is None:
        return web.Response(body=body, content_type="application/json")
    return web.Response(
        body=body,
        content_type="application/octet-stream",
        headers={_HEADER_LENGTH: str(header_length)},
    )


@web.middleware
async def answer_failures(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Make every failure a JSON body; what nobody foresaw is logged and told to no client."""
    try:
        return await handler(request)
    except WhiteboxError as error:
        # "Not now" is an answer like any other; load balancers ask for it all the time.
        if error.http_status >= 500 and not isinstance(error, Overloaded):
            _log.error("%s %s: %s", request.method, request.path, error)
        return _failure(error.http_status, str(error), _retry_after(error))
    except web.HTTPNotFound:
        return _failure(404, f"there is nothing at {request.path}; the API begins at /v2")
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        text = f"{request.path} does not take {request.method}; use {allowed}"
        return _failure(405, text, {"Allow": allowed})
    except web.HTTPException as error:
        return _failure(error.status, error.reason)
    except Exception:
        _log.exception("%s %s", request.method, request.path)
        return _failure(500, "internal error; the log of the server says more")


@web.middleware
async def compress_answers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Compress an answer where the client takes that and it gains something."""
    response = await handler(request)
    accept = request.headers.get("Accept-Encoding")
    if accept is None or not isinstance(response, web.Response):
        return response
    coding = compression.choose_coding(accept)
    body = response.body
    if coding is None or not isinstance(body, bytes) or not compression.is_worth(body):
        return response
    if len(body) > _OFFLOAD_BYTES:
        response.body = await asyncio.to_thread(compression.compress, body, coding)
    else:
        response.body = compression.compress(body, coding)
    response.headers["Content-Encoding"] = coding
    response.headers["Vary"] = "Accept-Encoding"
    return response


def _model_of(request: web.Request) -> tuple[str, str | None]:
    return request.match_info["name"], request.match_info.get("version")


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value), status=status, content_type="application/json"
    )


def _retry_after(error: WhiteboxError) -> dict[str, str]:
    if isinstance(error, Overloaded) and error.retry_after_s is not None:
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    return {}


def _failure(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    # A name from a client may hold what UTF-8 cannot: escape it.
    safe = text.encode("utf-8", "backslashreplace").decode()
    response = _json({"error": safe}, status)
    response.headers.update(headers or {})
    return response

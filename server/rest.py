"""The REST server: its routes, and the life of a serving process.

Enters: a runtime and an address. Leaves: nothing, when SIGINT or SIGTERM has come and the requests
in flight are answered; a `WhiteboxError` when it cannot start. What a route does is in handlers.py.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from aiohttp import web

from whitebox.errors import WhiteboxError
from whitebox.server.data_plane import DataPlane
from whitebox.server.handlers import Handler, Handlers, answer_failures, compress_answers

if TYPE_CHECKING:
    from whitebox.runtime.runtime import Runtime

DEFAULT_MAX_BODY_BYTES = 64 * 1024 * 1024

_REFRESH_SECONDS = 0.25
_MAX_DRAIN_SECONDS = 30.0  # for requests in flight to end by themselves
_MAX_ABORT_SECONDS = 1.0  # for what is left after that

_log = logging.getLogger("whitebox.server")


class Traffic:
    """Counts the requests in flight, and lets them end before the server does.

    aiohttp's own shutdown throws away what still arrives of a request's body.
    """

    def __init__(self) -> None:
        self._in_flight = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @web.middleware
    async def count(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count a request while it lasts; when draining, its connection serves no other one."""
        self._in_flight += 1
        self._idle.clear()
        try:
            response = await handler(request)
            if self._draining:
                response.force_close()
            return response
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    async def drain(self, seconds: float) -> None:
        """Wait until nothing is in flight, for so long at most."""
        self._draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except asyncio.TimeoutError:
            _log.warning("%d requests are cut off by the shutdown", self._in_flight)


TRAFFIC = web.AppKey("traffic", Traffic)


def create_app(
    data_plane: DataPlane, *, max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
) -> web.Application:
    """The routes over a data plane. Run it through `create_runner`."""
    traffic = Traffic()
    app = web.Application(
        middlewares=[traffic.count, answer_failures, compress_answers],
        client_max_size=max_body_bytes,
    )
    app[TRAFFIC] = traffic
    handlers = Handlers(data_plane, max_body_bytes)
    model = "/v2/models/{name:[^/]+}"
    app.router.add_get("/v2", handlers.server_metadata)
    app.router.add_get("/v2/health/live", handlers.live)
    app.router.add_get("/v2/health/ready", handlers.ready)
    for path in (model, model + "/versions/{version:[^/]+}"):
        app.router.add_get(path, handlers.model_metadata)
        app.router.add_get(path + "/ready", handlers.model_ready)
        app.router.add_post(path + "/infer", handlers.infer)
    app.router.add_post("/v2/infer", handlers.infer_together)
    app.router.add_post("/v2/repository/index", handlers.repository_index)
    app.router.add_get("/metrics", handlers.metrics)
    return app


def create_runner(app: web.Application) -> web.AppRunner:
    """The runner of `create_app`'s application: bodies arrive as they were sent."""
    # aiohttp would decompress by itself, but not within the limit on the whole body.
    return web.AppRunner(
        app,
        access_log=None,
        auto_decompress=False,
        handler_cancellation=True,  # when the client has gone
        shutdown_timeout=_MAX_ABORT_SECONDS,
    )


def serve(
    runtime: Runtime,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
    announce: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; a second one ends the process at once.

    `announce` receives one line with the address when the server is ready (default: print it).
    Port 0 is any free port.
    """
    plane = DataPlane(runtime)
    app = create_app(plane, max_body_bytes=max_body_bytes)
    _run_loop(_serve(plane, app, host, port, announce or _print))


async def _serve(
    plane: DataPlane,
    app: web.Application,
    host: str,
    port: int,
    announce: Callable[[str], None],
) -> None:
    stop = _stop_signal()
    runner = create_runner(app)
    await runner.setup()
    watching: asyncio.Task[None] | None = None
    try:
        await _bind(runner, host, port)
        await asyncio.to_thread(plane.load)
        watching = asyncio.create_task(_watch(plane))
        announce(_ready_line(runner, plane.runtime.stats()["models"]))
        await stop.wait()
        plane.drain()
        for site in runner.sites:
            await site.stop()
        await app[TRAFFIC].drain(_MAX_DRAIN_SECONDS)
    finally:
        if watching is not None:
            watching.cancel()
        await runner.cleanup()


async def _watch(plane: DataPlane) -> None:
    """Take up what other processes register, for as long as the server runs."""
    failing = False
    while True:
        await asyncio.sleep(_REFRESH_SECONDS)
        try:
            await asyncio.to_thread(plane.refresh)
            failing = False
        except Exception as error:
            if not failing:  # say it once: what is loaded is served on
                _log.error("cannot look for new models, trying on: %s", error)
            failing = True


def _stop_signal() -> asyncio.Event:
    """An event that the first SIGINT or SIGTERM sets; the next has its usual effect."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal() -> None:
        stop.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, on_signal)
        except NotImplementedError:  # Windows: Ctrl-C ends the loop as it is
            break
    return stop


async def _bind(runner: web.AppRunner, host: str, port: int) -> None:
    if not 0 <= port <= 65535:  # uvloop would take it modulo 65536
        raise WhiteboxError(f"there is no port {port}; give a --port from 0 to 65535")
    try:
        await web.TCPSite(runner, host, port).start()
    except socket.gaierror as error:
        raise WhiteboxError(
            f"no address of this machine is called {host} ({error.strerror}); give another --host"
        ) from None
    except OSError as error:
        raise WhiteboxError(_why_not_bound(error, host, port)) from None


def _why_not_bound(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} of {host} is in use; stop the server that has it, or give another --port"
        )
    if error.errno == errno.EACCES:
        return f"port {port} of {host} is not allowed to this user; give a --port above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine; give another --host"
    return f"cannot listen on port {port} of {host} ({error}); give another --host or --port"


def _ready_line(runner: web.AppRunner, models: int) -> str:
    host, port = runner.addresses[0][:2]
    shown = f"[{host}]" if ":" in host else host
    count = "1 model" if models == 1 else f"{models} models"
    return f"whitebox: ready on http://{shown}:{port} with {count}"


def _print(line: str) -> None:
    print(line, flush=True)


def _run_loop(main: Coroutine[Any, Any, None]) -> None:
    if sys.platform == "win32":
        asyncio.run(main)
    else:
        import uvloop

        uvloop.run(main)

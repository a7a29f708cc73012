"""`tallow serve`: listens, drains when it is told to end, and ends."""

from __future__ import annotations

import asyncio
import errno
import gc
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp

from tallow.console import is_main_process, say
from tallow.errors import UsageError
from tallow.models.store import resolve
from tallow.serve import torchrun
from tallow.serve.app import make_app
from tallow.serve.connection import BoundedProtocol
from tallow.serve.http import Keys, is_loopback
from tallow.serve.ray_cluster import start_ray
from tallow.serve.service import Service
from tallow.serve.settings import ServeSettings

if TYPE_CHECKING:
    from tallow.serve.replicas import Front

KEEP_ALIVE_S = 75
ENDING_S = 3
"""That clients have for taking the rest of their answers, once the requests have been drained."""

HURRIED_ENDING_S = 0.5
"""The same, when the server has been told a second time."""

BACKLOG = 2048


class _Server(uvicorn.Server):
    """uvicorn, but for signals, which are ours: while it drains it still says so; and nobody who does not read holds up
    its end."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(ENDING_S, self.leave_clients)
        await super().shutdown(sockets)

    def leave_clients(self) -> None:
        """Close what connections there are, and those who wait at them see that their clients have left."""
        for connection in list(self.server_state.connections):
            assert isinstance(connection, BoundedProtocol)
            connection.transport.abort()


def serve(settings: ServeSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        UsageError: The port is taken, or the host is open to others and no keys are set.
        DataError, UsageError, CapacityError: A file of keys or a model is missing, or the first model cannot be loaded.
        TallowError: The process of the first model has ended while it was loaded, or replicas do not start.
    """
    if torchrun.num_processes() > 1:
        settings = torchrun.spread(settings)
        if not is_main_process():
            torchrun.follow(settings)
    keys = Keys.read(settings.keys_file, settings.admin_key_file)
    if not keys.are_wanted and not is_loopback(settings.host):
        raise UsageError(
            f"{settings.host} can be reached by others, and no keys are set",
            "name a file of keys with --keys-file, or listen on 127.0.0.1",
        )
    if settings.replicas == 1:  # else other machines must have them
        for model in settings.models.values():
            resolve(model.path)  # one that is not there is told at once
    service, app = _replicated(settings, keys) if settings.replicas > 1 else _single(settings, keys)
    bounds = {"limits": settings.limits, "count_error": service.metrics.count_error}
    with _listen(settings.host, settings.port) as listening:
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=2 * ENDING_S,
            http=type("Protocol", (BoundedProtocol,), bounds),
            ws="none",
            server_header=False,
        )
        server = _Server(config)
        host, port = listening.getsockname()[:2]
        say(f"serving {', '.join(service.names)} at http://{f'[{host}]' if ':' in host else host}:{port}")
        gc.freeze()  # what there is by now stays: the collector need not look through it again and again
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(_run(server, service, listening))


def _single(settings: ServeSettings, keys: Keys) -> tuple[Service, ASGIApp]:
    service = Service(settings)
    return service, make_app(service, keys)


def _replicated(settings: ServeSettings, keys: Keys) -> tuple[Front, ASGIApp]:
    start_ray(settings.replicas)
    from tallow.serve.replicas import Front, make_front_app  # imports Ray, which not everybody has

    front = Front(settings)
    return front, make_front_app(front, keys)


async def _run(server: _Server, service: Service | Front, listening: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ending: asyncio.Task[None] | None = None

    async def end() -> None:
        say("draining: requests that are being answered are finished, new ones refused")
        with suppress(asyncio.CancelledError):
            await service.drain()
        server.should_exit = True

    def on_signal() -> None:
        nonlocal ending
        if ending is None:
            ending = asyncio.create_task(end())
            return
        ending.cancel()  # what is being answered is broken off
        loop.call_later(HURRIED_ENDING_S, server.leave_clients)

    def end_if_failed(loading: asyncio.Task[None]) -> None:
        if not loading.cancelled() and loading.exception() is not None:
            server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    loading = loop.create_task(service.load())
    loading.add_done_callback(end_if_failed)
    await server.serve([listening])
    if loading.done():
        loading.result()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        option = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise UsageError(f"cannot listen at {host}:{port}: {error.strerror}", f"choose another {option}") from error
    return listening

"""How an HTTP server lives in somebody else's event loop, and tells of every answer it gave."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from wva_adapter.emulator.http_page import HttpAnswer
from wva_adapter.errors import ConfigError

# Longer than a client keeps an idle connection, so that no request meets one just being closed.
_KEEP_ALIVE_S = 75

_SHUTDOWN_S = 5


def listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address; port 0 takes any free one.

    Raises:
        ConfigError: The address cannot be listened on.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as found:
        listening.close()
        raise ConfigError(f"{host}:{port}: cannot be listened on: {found.strerror}") from None
    return listening


class GuestServer(uvicorn.Server):
    """A server that leaves signals to the program around it.

    Attributes:
        ready: Set once it accepts connections.
    """

    def __init__(self, app: FastAPI, on_answer: Callable[[HttpAnswer], None]) -> None:
        super().__init__(
            uvicorn.Config(
                _Counted(app, on_answer),
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_SHUTDOWN_S,
            )
        )
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections."""
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    def cut_connections(self) -> None:
        """End every connection at once, as when a process is killed."""
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()


class _Counted:
    """Tells of every answer when it has been given."""

    def __init__(self, app: FastAPI, on_answer: Callable[[HttpAnswer], None]) -> None:
        self._app = app
        self._paths = {path for route in app.routes if (path := getattr(route, "path", None))}
        self._on_answer = on_answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        status, announced = 500, 0

        async def noting(message: Message) -> None:
            nonlocal status, announced
            if message["type"] == "http.response.start":
                status = message["status"]
                announced = _length(message["headers"])
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            self._on_answer(
                HttpAnswer(
                    handler=scope["path"] if scope["path"] in self._paths else "none",
                    method=scope["method"],
                    status=status,
                    request_bytes=_length(scope["headers"]),
                    response_bytes=announced,
                    duration_s=loop.time() - begun_s,
                )
            )


def _length(headers: list[tuple[bytes, bytes]]) -> int:
    return next((int(value) for name, value in headers if name == b"content-length"), 0)

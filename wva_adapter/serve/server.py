"""Where the HTTP port listens, and how it starts and stops inside a running event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
import ssl
from collections.abc import Iterator
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from wva_adapter.errors import ConfigError
from wva_adapter.serve.peer import PeerProtocol

# Clients of Kubernetes keep an idle connection for 90 s; one that closes earlier races them.
_KEEP_ALIVE_S: Final = 120
_BACKLOG: Final = 2048


class Server:
    """One HTTPS port; it holds the port from its construction on.

    Args:
        port: 0 takes a free one, which ``port`` then tells.
        listen_anywhere: Callers are authenticated, or need not be: listen on other addresses than
            loopback too.

    Raises:
        ConfigError: The address is not loopback, does not exist, or its port is in use.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str,
        port: int,
        ssl_context: ssl.SSLContext,
        listen_anywhere: bool = False,
    ) -> None:
        self._socket = _listen(host, port, anywhere=listen_anywhere)
        self._address: str = self._socket.getsockname()[0]
        self._port: int = self._socket.getsockname()[1]
        self._config = uvicorn.Config(
            app,
            http=PeerProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            # A forwarded address is the word of whoever connects; nothing here believes it.
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            backlog=_BACKLOG,
            ssl_context_factory=lambda _config, _default: ssl_context,
        )
        self._uvicorn = _Uvicorn(self._config)
        self._serving: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port that it holds."""
        return self._port

    @property
    def url(self) -> str:
        """Where it answers."""
        host = f"[{self._address}]" if ":" in self._address else self._address
        return f"https://{host}:{self._port}"

    async def start(self) -> None:
        """Return once requests are answered."""
        self._serving = asyncio.create_task(self._uvicorn.serve(sockets=[self._socket]))
        listening = asyncio.create_task(self._uvicorn.listening.wait())
        try:
            await asyncio.wait((self._serving, listening), return_when=asyncio.FIRST_COMPLETED)
        finally:
            listening.cancel()
        if self._serving.done():
            self._socket.close()
            self._serving.result()

    async def stop(self, grace_s: float = 10.0) -> None:
        """Close the port, let requests in flight end for ``grace_s`` at most, and return."""
        if self._serving is None:
            self._socket.close()
            return
        # uvicorn takes whole seconds.
        self._config.timeout_graceful_shutdown = max(1, round(grace_s))
        self._uvicorn.should_exit = True
        await self._serving


class _Uvicorn(uvicorn.Server):
    """uvicorn that says when it listens and leaves the process's signals to the runtime."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(host: str, port: int, *, anywhere: bool) -> socket.socket:
    """Return a listening socket, so that the port is ours before anything else starts."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host!r}: {error.strerror}; want an address of this machine"
        ) from error
    if not anywhere and not ipaddress.ip_address(str(address[0])).is_loopback:
        raise ConfigError(
            f"{host} is not a loopback address: nobody can be authenticated without cluster or "
            "authentication.client_ca_file, so want one of them, or 127.0.0.1 or ::1"
        )
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A port whose last connections still linger can be taken again; one in use cannot.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(_why_not(error, host, port)) from error
    listener.setblocking(False)
    return listener


def _why_not(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use by another process: want a free one"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} is reserved for root: want one of 1024 or above"
    return f"cannot listen on {host} port {port}: {error.strerror}"

"""Where the HTTP port listens, and how it starts and stops inside a running event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
import ssl
from collections.abc import Iterator
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp

from wva_adapter.errors import ConfigError
from wva_adapter.serve.protocol import PortProtocol, PortState

# Clients of Kubernetes keep an idle connection for 90 s; one that closes earlier races them.
_KEEP_ALIVE_S: Final = 120
_BACKLOG: Final = 2048
# Who connects at the last moment may shake hands for two seconds.
_LAST_HANDSHAKE_S: Final = (0.02,) * 100


class Server:
    """One HTTPS port; it holds the port from its construction on.

    Args:
        port: 0 takes a free one, which ``port`` then tells.
        listen_anywhere: Callers are authenticated, or need not be: listen on other addresses than
            loopback too.
        reuse_port: Share the port with other processes that say so too, so that the next one can
            listen before this one ends; it listens from ``start`` on.

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
        reuse_port: bool = False,
    ) -> None:
        self._socket = _listen(host, port, anywhere=listen_anywhere, reuse_port=reuse_port)
        self._address: str = self._socket.getsockname()[0]
        self._port: int = self._socket.getsockname()[1]
        self._config = uvicorn.Config(
            app,
            http=PortProtocol,
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

    def enter_lame_duck(self) -> None:
        """Serve on, but end every connection with its next answer: callers go elsewhere."""
        self._uvicorn.server_state.lame_duck = True
        for connection in self._uvicorn.connections:
            connection.enter_lame_duck()

    async def stop(self, grace_s: float = 10.0) -> None:
        """Close the port, let requests in flight end for ``grace_s`` at most, and return."""
        if self._serving is None:
            self._socket.close()
            return
        self.enter_lame_duck()
        if self._uvicorn.listening.is_set() and not self._serving.done():
            await self._close_port()
        # uvicorn takes whole seconds.
        self._config.timeout_graceful_shutdown = max(1, round(grace_s))
        self._uvicorn.should_exit = True
        await self._serving
        for connection in self._uvicorn.connections:
            connection.transport.abort()

    async def _close_port(self) -> None:
        """Close it once nobody waits at it: the kernel resets who is not let in by then."""
        loop = asyncio.get_running_loop()
        last = set[asyncio.Task[Any]]()
        while (connection := _next_waiting(self._socket)) is not None:
            accepting = loop.connect_accepted_socket(
                self._uvicorn.new_connection, connection, ssl=self._config.ssl
            )
            last.add(asyncio.create_task(accepting))
        for listener in self._uvicorn.servers:
            listener.close()
        for pause_s in _LAST_HANDSHAKE_S:
            if not self._uvicorn.server_state.arriving:
                break
            await asyncio.sleep(pause_s)
        for task in last:
            task.cancel()
        await asyncio.gather(*last, return_exceptions=True)


def _next_waiting(listener: socket.socket) -> socket.socket | None:
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return None
        except OSError:  # it went away while it waited
            continue
        connection.setblocking(False)
        return connection


class _Uvicorn(uvicorn.Server):
    """uvicorn that says when it listens and leaves the process's signals to the runtime."""

    server_state: PortState

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.server_state = PortState()
        self.listening = asyncio.Event()

    @property
    def connections(self) -> list[PortProtocol]:
        """The connections that are open."""
        return list(self.server_state.connections)  # type: ignore[arg-type]

    def new_connection(self) -> PortProtocol:
        """Return what speaks on one more connection."""
        return PortProtocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(host: str, port: int, *, anywhere: bool, reuse_port: bool) -> socket.socket:
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
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        if not reuse_port:
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

"""What the cluster's DNS and network do for a pod: a Service's name leads to who serves it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress


class ServiceProxy:
    """A tunnel for programs that honour ``HTTPS_PROXY``, such as those that are written in Go.

    TLS goes through it untouched, so whoever asks still checks the certificate by the name.

    Args:
        services: Ports of this machine by what a pod would connect to: ``name.namespace.svc:443``.
    """

    def __init__(self, services: Mapping[str, int]) -> None:
        self._services = services
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """What ``HTTPS_PROXY`` must be."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def stop(self) -> None:
        """Stop listening; open tunnels end with the event loop."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            method, place, _ = head.decode("latin-1").split(" ", 2)
            port = self._services.get(place) if method == "CONNECT" else None
            if port is None:
                writer.write(b"HTTP/1.1 502 no such service\r\n\r\n")
            else:
                await _tunnel(reader, writer, port)
        writer.close()


async def _tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    try:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        writer.write(b"HTTP/1.1 502 connection refused\r\n\r\n")
        return
    writer.write(b"HTTP/1.1 200 connected\r\n\r\n")
    try:
        await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))
    finally:
        inner_writer.close()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while chunk := await source.read(65536):
            sink.write(chunk)
            await sink.drain()
    finally:
        # The other direction ends too, as it does where one process holds both ends.
        sink.close()

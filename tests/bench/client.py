"""A client that asks one thing over and over on kept connections, and what that cost the server."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Question:
    """One request, and the connection it goes over.

    Attributes:
        context: TLS with the caller's certificate, if it has one.
    """

    port: int
    context: ssl.SSLContext
    path: str
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> bytes:
        """The request as it goes over the wire."""
        lines = [f"GET {self.path} HTTP/1.1", f"host: localhost:{self.port}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


@dataclass(frozen=True, slots=True)
class Asked:
    """How a load went.

    Attributes:
        cpu_s: What the server's process used for it, its kernel time included.
        latencies_s: One per request, sorted.
    """

    requests: int
    cpu_s: float
    latencies_s: tuple[float, ...]

    @property
    def per_core_s(self) -> float:
        """Requests per second of one busy core of the server."""
        return self.requests / self.cpu_s

    @property
    def p99_s(self) -> float:
        """The latency that one request in a hundred exceeds."""
        return self.latencies_s[int(0.99 * (len(self.latencies_s) - 1))]


def flood(question: Question, pid: int, *, for_s: float, connections: int = 8) -> Asked:
    """Ask on all connections at once, again as soon as all have answered, and return how it went.

    Blocking and in step, since a client that costs as much as the server would leave it idle.

    Raises:
        ValueError: An answer was not 200.
    """
    links = []
    for _ in range(connections):
        plain = socket.create_connection(("127.0.0.1", question.port))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        links.append(question.context.wrap_socket(plain))
    head, latencies = question.head, []
    before_s, began_s = cpu_s(pid), time.perf_counter()
    while time.perf_counter() < began_s + for_s:
        asked_s = time.perf_counter()
        for link in links:
            link.send(head)
        for link in links:
            _read(link)
            latencies.append(time.perf_counter() - asked_s)
    used_s = cpu_s(pid) - before_s
    for link in links:
        link.close()
    return Asked(len(latencies), used_s, tuple(sorted(latencies)))


def _read(link: ssl.SSLSocket) -> None:
    answer = b""
    while True:
        answer += link.recv(65536)
        head, separator, body = answer.partition(b"\r\n\r\n")
        if not separator:
            continue
        if not head.startswith(b"HTTP/1.1 200"):
            raise ValueError(f"answered {head[:200]!r}")
        length = head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
        if len(body) >= int(length):
            return


async def ask(
    question: Question, pid: int, *, for_s: float, rate_per_s: float, connections: int = 8
) -> Asked:
    """Ask at a steady rate, spread over the connections, and return how it went.

    Raises:
        ValueError: An answer was not 200.
    """
    latencies: list[float] = []
    links = [
        await asyncio.open_connection("127.0.0.1", question.port, ssl=question.context)
        for _ in range(connections)
    ]
    pause_s = connections / rate_per_s

    async def work(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        due_s = began_s + pause_s * number / connections
        while due_s < began_s + for_s:
            await asyncio.sleep(due_s - time.perf_counter())
            due_s += pause_s
            asked_s = time.perf_counter()
            writer.write(question.head)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise ValueError(f"port {question.port} answered {head[:200]!r}")
            length = head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
            await reader.readexactly(int(length))
            latencies.append(time.perf_counter() - asked_s)

    before_s, began_s = cpu_s(pid), time.perf_counter()
    await asyncio.gather(*(work(number, *link) for number, link in enumerate(links)))
    used_s = cpu_s(pid) - before_s
    for _, writer in links:
        writer.close()
    return Asked(len(latencies), used_s, tuple(sorted(latencies)))


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S

"""Requests as bytes, since no client would send them like this."""

from __future__ import annotations

import asyncio
import re
import ssl
from pathlib import Path

from tests.serve.cluster import trusting
from tests.serve.door import Door

_ANSWERS_WITHIN_S = 2.0
_QUIET_S = 0.05
_STATUS = re.compile(rb"(?:^|\n)HTTP/1\.[01] (\d{3})")


async def say(
    door: Door, raw: bytes, pair: tuple[Path, Path] | None = None, *, responses: int = 1
) -> bytes:
    """Return all that comes back until the connection ends or, that many came, falls quiet."""
    answer = b""
    try:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", door.server.port, ssl=trusting(door.ca_file, pair)
        )
    except (OSError, ssl.SSLError):
        return answer
    try:
        writer.write(raw)
        while chunk := await asyncio.wait_for(
            reader.read(65536), _ANSWERS_WITHIN_S if len(statuses(answer)) < responses else _QUIET_S
        ):
            answer += chunk
    except (TimeoutError, OSError, ssl.SSLError):
        pass
    finally:
        writer.close()
    return answer


def statuses(answer: bytes) -> list[int]:
    """Return the status of each response."""
    return [int(found) for found in _STATUS.findall(answer)]


def request(
    path: str | bytes = "/metrics",
    *headers: str | bytes,
    method: str = "GET",
    version: str = "HTTP/1.1",
    body: bytes = b"",
) -> bytes:
    """Return a request of exactly these lines."""
    target = path if isinstance(path, bytes) else path.encode()
    lines = [header if isinstance(header, bytes) else header.encode() for header in headers]
    first = method.encode() + b" " + target + b" " + version.encode()
    return b"\r\n".join([first, b"Host: adapter", *lines, b"", body])


def as_user(name: str, *groups: str) -> tuple[str, ...]:
    return (f"X-Remote-User: {name}", *(f"X-Remote-Group: {group}" for group in groups))

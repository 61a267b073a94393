"""Whether anybody notices that the certificate changes: 100 pairs and 10 authorities under load."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path

import uvloop

from tests.bench import Row
from tests.pki import Authority
from tests.serve.fixture import AT_S, NAMESPACE, Fixture, an_app
from wva_adapter.serve.app import in_front
from wva_adapter.serve.hot import MetricReads
from wva_adapter.serve.pair import ServingPair
from wva_adapter.serve.server import Server
from wva_adapter.serve.tls import ServingTls

PAIRS = 100
AUTHORITIES = 10
RATE_PER_S = 200.0
EVERY_S = 0.2
WORKERS = 4


def rows() -> list[Row]:
    """Rotate while every request comes over a connection of its own."""
    return uvloop.run(_measure())


async def _measure() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="wva-bench-") as name:
        folder = Path(name)
        authority, pair = _pair(folder, 0, None)
        tls = ServingTls(lambda: pair)
        reads = MetricReads(Fixture(), clock=lambda: AT_S)
        server = Server(
            in_front(an_app(), reads), host="127.0.0.1", port=0, ssl_context=tls.context
        )
        await server.start()
        trusted = authority.file.read_text()
        outcomes: list[str] = []
        done = asyncio.Event()
        clients = asyncio.gather(
            *(_ask(server.port, lambda: trusted, outcomes, done) for _ in range(WORKERS))
        )
        for number in range(1, PAIRS + 1):
            if number % (PAIRS // AUTHORITIES) == 0:
                # Callers learn of an authority before it signs, as caBundle has both.
                authority, pair = _pair(folder, number, None)
                trusted += authority.file.read_text()
            else:
                _, pair = _pair(folder, number, authority)
            await tls.look()
            await asyncio.sleep(EVERY_S)
        done.set()
        await clients
        await server.stop(1)
    failed = [outcome for outcome in outcomes if outcome != "200"]
    return [
        {
            "name": f"failed of {len(outcomes)} requests, {PAIRS} pairs by {AUTHORITIES} CAs",
            "value": len(failed),
            "unit": "requests",
            "against": None,
            "ratio": None,
            "target": "0",
            "ok": not failed and len(outcomes) > 0.9 * RATE_PER_S * PAIRS * EVERY_S,
        }
    ]


def _pair(folder: Path, number: int, authority: Authority | None) -> tuple[Authority, ServingPair]:
    authority = authority or Authority(folder, f"ca-{number}")
    cert_file, key_file = authority.issue(f"serving-{number}", hosts=["localhost", "127.0.0.1"])
    return authority, ServingPair.read(cert_file, key_file)


async def _ask(
    port: int, trusted: Callable[[], str], outcomes: list[str], done: asyncio.Event
) -> None:
    """Ask at the rate, ten requests to a connection, each connection trusting what is known then."""
    head = f"GET {NAMESPACE}/m1 HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    due_s = loop.time()
    while not done.is_set():
        context = ssl.create_default_context(cadata=trusted())
        try:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=context, server_hostname="localhost"
            )
            for _ in range(10):
                writer.write(head)
                answer = await reader.readuntil(b"\r\n\r\n")
                length = answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
                await reader.readexactly(int(length))
                outcomes.append(answer.split(b" ")[1].decode())
                due_s += WORKERS / RATE_PER_S
                await asyncio.sleep(due_s - loop.time())
            writer.close()
        except (OSError, ssl.SSLError, EOFError) as error:
            outcomes.append(repr(error))

"""A connection is held to its bounds, and a request carries its head's headers and no others."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from tests.serve.cluster import Certificates, trusting
from tests.serve.fixture import own_tls
from wva_adapter.serve import peer
from wva_adapter.serve.identity import Peer
from wva_adapter.serve.server import Server

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("pki"))


class Port:
    """A server whose application shows what it was given."""

    def __init__(self, folder: Path, certificates: Certificates) -> None:
        self.ca_file = folder / "serving" / "ca.crt"
        tls = own_tls(folder / "serving")
        authorities = (certificates.client_ca, certificates.proxy_ca)
        tls.trust_clients(b"".join(authority.file.read_bytes() for authority in authorities))
        self.scopes: list[Scope] = []
        self.server = Server(self, host="127.0.0.1", port=0, ssl_context=tls.context)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/read":
            while (await receive()).get("more_body"):
                pass
        self.scopes.append(scope)
        body = json.dumps([name.decode() for name, _ in scope["headers"]]).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def connect(
        self, pair: tuple[Path, Path] | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = trusting(self.ca_file, pair)
        return await asyncio.open_connection("127.0.0.1", self.server.port, ssl=context)

    async def say(self, raw: bytes, pair: tuple[Path, Path] | None = None) -> bytes:
        """Return all that comes back until the connection ends, or for half a second."""
        reader, writer = await self.connect(pair)
        writer.write(raw)
        answer = await until_quiet(reader)
        writer.close()
        return answer


async def until_quiet(reader: asyncio.StreamReader) -> bytes:
    answer = b""
    try:
        while chunk := await asyncio.wait_for(reader.read(65536), 0.5):
            answer += chunk
    except (TimeoutError, ConnectionError, ssl.SSLError):
        pass
    return answer


@pytest.fixture
async def port(tmp_path: Path, certificates: Certificates) -> AsyncIterator[Port]:
    port = Port(tmp_path, certificates)
    await port.server.start()
    yield port
    await port.server.stop(1)


def peer_of(scope: Scope) -> Any:
    return scope["extensions"]["tls"]["peer"]


async def test_requests_carry_the_verified_peer_of_their_connection(
    port: Port, certificates: Certificates
) -> None:
    await port.say(b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n", certificates.alice)
    first, second = (peer_of(scope) for scope in port.scopes)
    assert first is second
    assert isinstance(first, Peer)
    assert (first.common_name, first.organizations) == ("alice", ("staff",))
    der = ssl.PEM_cert_to_DER_cert(certificates.client_ca.file.read_text())
    assert first.root == der
    assert len(first.chain) == 2


async def test_a_connection_without_a_certificate_has_no_peer(port: Port) -> None:
    await port.say(b"GET / HTTP/1.1\r\n\r\n")
    assert peer_of(port.scopes[0]) is None


async def test_trailer_fields_are_no_headers(port: Port) -> None:
    answer = await port.say(
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTrailer: X-Remote-Group\r\n\r\n"
        b"1\r\nx\r\n0\r\nX-Remote-Group: system:masters\r\n\r\n"
    )
    assert b" 200 " in answer
    names = [name for name, _ in port.scopes[0]["headers"]]
    assert names == [b"transfer-encoding", b"trailer"]


@pytest.mark.parametrize("part", [b"GET / HTTP/1.1\r\nX: ", b"GET /", b"GET / HTTP/1.1\r\n"])
async def test_an_endless_head_is_cut_off(port: Port, part: bytes) -> None:
    # Without an end to the line, with none to the path, and with many short lines.
    more = b"X: y\r\n" if part.endswith(b"\n") else b"a"
    reader, writer = await port.connect()
    writer.write(part + more * (peer.MOST_HEAD_BYTES // len(more)))
    await writer.drain()
    writer.write(more * 10_000)
    answer = await until_quiet(reader)
    assert b" 431 " in answer
    assert reader.at_eof()
    writer.close()
    assert port.scopes == []


async def test_a_large_head_within_the_bound_is_read(port: Port) -> None:
    head = b"GET / HTTP/1.1\r\nX: " + b"a" * (peer.MOST_HEAD_BYTES - 1000) + b"\r\n\r\n"
    assert b" 200 " in await port.say(head)


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost:"])
async def test_a_head_that_does_not_arrive_is_not_waited_for(
    port: Port, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(peer, "HEAD_TIMEOUT_S", 0.2)
    reader, writer = await port.connect()
    writer.write(said)
    for _ in range(10):  # a byte now and then keeps nothing alive
        await asyncio.sleep(0.05)
        if said:
            writer.write(b"a")
    assert await asyncio.wait_for(reader.read(), 1) == b""
    writer.close()


async def test_an_idle_connection_stays_open_between_requests(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "HEAD_TIMEOUT_S", 0.1)
    reader, writer = await port.connect()
    for _ in range(2):
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert b" 200 " in await until_quiet(reader)
        await asyncio.sleep(0.2)
    writer.close()
    assert len(port.scopes) == 2


async def test_a_body_that_nobody_reads_ends_the_connection(port: Port) -> None:
    reader, writer = await port.connect()
    writer.write(b"POST / HTTP/1.1\r\nContent-Length: 50\r\n\r\nGET /smuggled HTTP/1.1\r\n")
    assert b" 200 " in await until_quiet(reader)
    assert reader.at_eof()
    writer.close()
    assert [scope["path"] for scope in port.scopes] == ["/"]


async def test_a_body_that_is_read_leaves_the_connection_open(port: Port) -> None:
    reader, writer = await port.connect()
    for _ in range(2):
        writer.write(b"POST /read HTTP/1.1\r\nContent-Length: 3\r\n\r\n")
        await asyncio.sleep(0.05)
        writer.write(b"abc")
        assert b" 200 " in await until_quiet(reader)
    writer.close()
    assert len(port.scopes) == 2

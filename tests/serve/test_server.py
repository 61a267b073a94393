"""The port is real: TLS, one process, no leftovers."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.serve.fixture import NAMESPACE, an_app, own_tls
from wva_adapter.errors import ConfigError
from wva_adapter.serve.server import Server

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls")
    own_tls(path, "wva.default.svc")
    return path


def a_server(
    directory: Path, app: ASGIApp | None = None, *, host: str = "127.0.0.1", port: int = 0
) -> Server:
    context = own_tls(directory, "wva.default.svc").context
    return Server(app or an_app(), host=host, port=port, ssl_context=context)


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[Server]:
    await server.start()
    try:
        yield server
    finally:
        await server.stop(1)


def trusting(directory: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(directory / "ca.crt"))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
async def test_answers_over_tls_with_a_certificate_by_the_own_authority(
    directory: Path, host: str
) -> None:
    async with (
        running(a_server(directory, host=host)) as server,
        httpx.AsyncClient(verify=trusting(directory), trust_env=False) as client,
    ):
        answer = await client.get(f"{server.url}{NAMESPACE}/m1")
    assert answer.status_code == 200
    assert len(answer.json()["items"]) == 3
    assert answer.http_version == "HTTP/1.1"
    assert "server" not in answer.headers


async def test_the_aggregator_reaches_it_under_the_name_of_its_service(directory: Path) -> None:
    async with (
        running(a_server(directory)) as server,
        httpx.AsyncClient(verify=trusting(directory), trust_env=False) as client,
    ):
        answer = await client.get(
            f"{server.url}/healthz", extensions={"sni_hostname": "wva.default.svc"}
        )
    assert answer.text == "ok"


async def test_the_group_list_names_the_port_that_is_listened_on(directory: Path) -> None:
    async with (
        running(a_server(directory)) as server,
        httpx.AsyncClient(verify=trusting(directory), trust_env=False) as client,
    ):
        groups = (await client.get(f"{server.url}/apis")).json()["groups"]
    address = groups[0]["serverAddressByClientCIDRs"][0]["serverAddress"]
    assert address == f":{server.port}"


async def test_head_gets_headers_only(directory: Path) -> None:
    async with (
        running(a_server(directory)) as server,
        httpx.AsyncClient(verify=trusting(directory), trust_env=False) as client,
    ):
        answer = await client.head(f"{server.url}{NAMESPACE}/m1")
    assert (answer.status_code, answer.content) == (405, b"")


async def test_a_client_that_does_not_trust_the_authority_gets_nothing(directory: Path) -> None:
    async with (
        running(a_server(directory)) as server,
        httpx.AsyncClient(trust_env=False) as client,
    ):
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await client.get(f"{server.url}/healthz")


async def test_a_port_in_use_is_refused_before_anything_starts(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is in use"):
            a_server(directory, port=port)


async def test_the_port_is_held_from_the_construction_on(directory: Path) -> None:
    first = a_server(directory)
    with pytest.raises(ConfigError, match="is in use"):
        a_server(directory, port=first.port)
    await first.stop()  # it never started: only the port is given back
    again = a_server(directory, port=first.port)
    await again.stop()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_other_addresses_than_loopback_are_refused_where_nobody_is_authenticated(
    directory: Path, host: str
) -> None:
    with pytest.raises(
        ConfigError,
        match=r"is not a loopback address: nobody can be authenticated without cluster or "
        r"authentication\.client_ca_file, so want one of them, or 127\.0\.0\.1 or ::1",
    ):
        a_server(directory, host=host)


async def test_a_port_that_authenticates_listens_anywhere(directory: Path) -> None:
    context = own_tls(directory, "wva.default.svc").context
    server = Server(an_app(), host="0.0.0.0", port=0, ssl_context=context, listen_anywhere=True)
    async with (
        running(server),
        httpx.AsyncClient(verify=trusting(directory), trust_env=False) as client,
    ):
        assert (await client.get(f"https://127.0.0.1:{server.port}/healthz")).text == "ok"


async def test_an_address_that_is_none_is_refused(directory: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"cannot listen on '127\.0\.0\.1\.1': .*; want an address"
    ):
        a_server(directory, host="127.0.0.1.1")


async def test_an_address_of_another_machine_is_refused(directory: Path) -> None:
    context = own_tls(directory, "wva.default.svc").context
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1 port 0: Cannot assign"):
        Server(an_app(), host="192.0.2.1", port=0, ssl_context=context, listen_anywhere=True)


async def test_signals_stay_with_the_runtime(directory: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    async with running(a_server(directory)):
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


async def test_a_request_in_flight_ends_before_the_server_does(directory: Path) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        asked.set()
        await go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    server = a_server(directory, slow)
    await server.start()
    async with httpx.AsyncClient(verify=trusting(directory), trust_env=False) as client:
        request = asyncio.create_task(client.get(server.url))
        await asked.wait()
        stop = asyncio.create_task(server.stop(5))
        await asyncio.sleep(0.2)
        assert not stop.done()
        go_on.set()
        assert (await request).text == "done"
        await stop
        with pytest.raises(httpx.ConnectError):
            await client.get(server.url)

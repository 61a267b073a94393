from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
from aiohttp import web

from tests.emulator.servers import MODEL, an_engine, free_port, running, until
from wva_adapter.emulator.gateway import Backend, Gateway
from wva_adapter.errors import ConfigError

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def a_gateway(*backends: Backend, patience_s: float = 5.0) -> AsyncIterator[Gateway]:
    gateway = Gateway("127.0.0.1", 0, patience_s=patience_s)
    gateway.set_backends(backends)
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop()


@asynccontextmanager
async def a_server(handler: object) -> AsyncIterator[str]:
    """Serve one handler for every path; yield its URL."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)  # type: ignore[arg-type]
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def completion(*, prompt: int = 10, tokens: int = 10, stream: bool = False) -> dict[str, object]:
    return {"model": MODEL, "prompt": [1] * prompt, "max_tokens": tokens, "stream": stream}


async def ask(gateway: Gateway, body: dict[str, object]) -> httpx.Response:
    async with httpx.AsyncClient(timeout=10) as client:
        return await client.post(f"{gateway.url}/v1/completions", json=body)


async def test_requests_and_refusals_pass_through() -> None:
    async with running(an_engine()) as engine, a_gateway(Backend(engine.url)) as gateway:
        answer = await ask(gateway, completion(tokens=7))
        assert answer.json()["usage"]["completion_tokens"] == 7
        stream = await ask(gateway, completion(tokens=7, stream=True))
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert stream.text.count("token") == 7
        assert stream.text.endswith("data: [DONE]\n\n")
        unknown = await ask(gateway, completion() | {"model": "other"})
        assert unknown.status_code == 404
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            assert (await client.get("/v1/models")).json()["data"][0]["id"] == MODEL
        assert gateway.tokens_in_flight(engine.url) == 0


async def test_a_request_goes_where_the_fewest_tokens_are_for_the_capacity() -> None:
    async with AsyncExitStack() as stack:
        small = await stack.enter_async_context(running(an_engine(speed=1)))
        large = await stack.enter_async_context(running(an_engine(speed=1)))
        gateway = await stack.enter_async_context(
            a_gateway(Backend(small.url, 1.0), Backend(large.url, 3.0))
        )
        requests = [
            asyncio.create_task(ask(gateway, completion(prompt=100, tokens=100))) for _ in range(8)
        ]
        await until(lambda: len(small.replica.present()) + len(large.replica.present()) == 8)
        # One in four: with k and 8 - k of 200 tokens each, loads k and (8 - k)/3 are equal at 2.
        assert len(small.replica.present()) == 2
        assert gateway.tokens_in_flight(large.url) == 6 * 200
        await asyncio.gather(*requests)


async def test_one_that_refuses_connections_is_passed_over() -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    async with (
        running(an_engine()) as engine,
        a_gateway(Backend(nobody, 100.0), Backend(engine.url)) as gateway,
    ):
        answers = await asyncio.gather(*(ask(gateway, completion()) for _ in range(5)))
        assert [answer.status_code for answer in answers] == [200] * 5


async def test_one_that_hangs_up_before_it_answers_is_passed_over() -> None:
    async def hang_up(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with (
        a_server(hang_up) as rude,
        running(an_engine()) as engine,
        a_gateway(Backend(rude, 100.0), Backend(engine.url)) as gateway,
    ):
        assert (await ask(gateway, completion())).status_code == 200


async def test_a_stream_that_breaks_off_does_not_look_whole() -> None:
    async def break_off(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data: {}\n\n")
        assert request.transport is not None
        request.transport.abort()
        return response

    async with (
        a_server(break_off) as rude,
        a_gateway(Backend(rude)) as gateway,
    ):
        with pytest.raises(httpx.RemoteProtocolError):
            await ask(gateway, completion(stream=True))


async def test_without_a_backend_a_request_waits_for_one() -> None:
    async with running(an_engine()) as engine, a_gateway() as gateway:
        waiting = asyncio.create_task(ask(gateway, completion()))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        gateway.set_backends([Backend(engine.url)])
        assert (await waiting).status_code == 200


async def test_one_that_comes_up_late_is_tried_again() -> None:
    engine = an_engine(port=free_port())
    async with a_gateway(Backend(engine.url)) as gateway:
        waiting = asyncio.create_task(ask(gateway, completion()))
        await asyncio.sleep(0.1)
        async with running(engine):
            assert (await waiting).status_code == 200


async def test_without_a_backend_a_request_gets_503_in_the_end() -> None:
    async with a_gateway(patience_s=0.1) as gateway:
        answer = await ask(gateway, completion())
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == "no backend answered in 0.1 s"


async def test_a_backend_taken_out_finishes_its_stream_and_gets_nothing_new() -> None:
    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(running(an_engine(speed=2)))
        new = await stack.enter_async_context(running(an_engine(speed=2)))
        gateway = await stack.enter_async_context(a_gateway(Backend(old.url)))
        stream = asyncio.create_task(ask(gateway, completion(tokens=50, stream=True)))
        await until(lambda: len(old.replica.present()) == 1)
        gateway.set_backends([Backend(new.url)])
        await asyncio.gather(*(ask(gateway, completion()) for _ in range(3)))
        assert (await stream).text.count("token") == 50
        assert new.replica.counters.finished == 3
        assert old.replica.counters.finished == 1


async def test_what_is_under_way_to_a_backend_just_taken_out_goes_to_another() -> None:
    taken_out = asyncio.Event()
    arrived = asyncio.Event()

    async def refuse(_: web.Request) -> web.Response:
        arrived.set()
        await taken_out.wait()
        return web.Response(status=500)

    async with (
        a_server(refuse) as leaving,
        running(an_engine()) as engine,
        a_gateway(Backend(leaving)) as gateway,
    ):
        asked = asyncio.create_task(ask(gateway, completion()))
        await arrived.wait()
        gateway.set_backends([Backend(engine.url)])
        taken_out.set()
        assert (await asked).status_code == 200


async def test_a_client_that_leaves_ends_its_request_at_the_engine() -> None:
    async with running(an_engine(speed=1)) as engine, a_gateway(Backend(engine.url)) as gateway:
        asked = asyncio.create_task(ask(gateway, completion(tokens=5000, stream=True)))
        await until(lambda: len(engine.replica.present()) == 1)
        asked.cancel()
        await until(lambda: not engine.replica.present())
        assert gateway.tokens_in_flight(engine.url) == 0


async def test_a_port_in_use_is_refused_by_name() -> None:
    async with a_gateway() as gateway:
        port = int(gateway.url.rsplit(":", 1)[1])
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: cannot be listened on"):
            await Gateway("127.0.0.1", port).start()

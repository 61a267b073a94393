from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.emulator.servers import MODEL, an_engine, free_port, running, until
from wva_adapter.emulator.engine import Engine
from wva_adapter.errors import ConfigError

pytestmark = pytest.mark.anyio


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with running(an_engine()) as engine:
        yield engine


@pytest.fixture
async def client(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=engine.url, timeout=10) as client:
        yield client


def events(text: str) -> list[str]:
    """Return what the events of a stream carry."""
    assert text.endswith("\n\n")
    return [event.removeprefix("data: ") for event in text.removesuffix("\n\n").split("\n\n")]


async def test_a_completion_is_answered_whole(client: httpx.AsyncClient) -> None:
    body = {"model": MODEL, "prompt": "four words of prompt", "max_tokens": 7}
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 200
    answer = response.json()
    assert answer["object"] == "text_completion"
    assert answer["model"] == MODEL
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["text"].split() == ["token"] * 7
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 7, "total_tokens": 11}


async def test_a_completion_has_16_tokens_unless_told_otherwise(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/completions", json={"model": MODEL, "prompt": [1, 2, 3]})
    usage = response.json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, 16)


async def test_a_stream_carries_every_token_and_the_count_of_them(
    client: httpx.AsyncClient,
) -> None:
    body = {
        "model": MODEL,
        "prompt": "a b",
        "max_tokens": 60,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    response = await client.post("/v1/completions", json=body)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, usage, done = events(response.text)
    assert done == "[DONE]"
    choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
    assert sum(len(choice["text"].split()) for choice in choices) == 60
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1]["finish_reason"] == "length"
    assert len(choices) > 2  # at 20 times the speed 60 tokens take 40 ms: some chunks of 10 ms
    assert json.loads(usage)["usage"]["completion_tokens"] == 60
    assert json.loads(usage)["choices"] == []


async def test_a_chat_is_streamed_in_deltas_that_begin_with_the_role(
    client: httpx.AsyncClient,
) -> None:
    body = {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "hello there"}]},
        ],
        "max_completion_tokens": 5,
        "stream": True,
    }
    response = await client.post("/v1/chat/completions", json=body)
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    assert {json.loads(chunk)["object"] for chunk in chunks} == {"chat.completion.chunk"}
    deltas = [json.loads(chunk)["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert sum(len(delta["content"].split()) for delta in deltas) == 5


async def test_a_chat_without_a_bound_ends_by_itself(client: httpx.AsyncClient) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello there"}]}
    answer = (await client.post("/v1/chat/completions", json=body)).json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    # Two words and the role; what is usual for an answer.
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 256, "total_tokens": 259}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "other", "prompt": "a"}, 404, "The model `other` does not exist."),
        (
            {"model": MODEL, "prompt": [1] * 16000, "max_tokens": 500},
            400,
            "16000 prompt tokens and 500 of output, want at most 16384 in all",
        ),
        ({"model": MODEL, "prompt": ""}, 400, "the prompt is empty"),
        ({"model": MODEL, "prompt": ["a", "b"]}, 400, "2 prompts in one request, want one"),
        ({"model": MODEL, "prompt": "a", "n": 2}, 400, "Input should be 1"),
        ({"model": MODEL, "prompt": "a", "max_tokens": 0}, 400, "greater than or equal to 1"),
    ],
)
async def test_what_cannot_be_served_is_refused_as_openai_would(
    client: httpx.AsyncClient, body: object, status: int, message: str
) -> None:
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["code"] == status
    assert message in error["message"]


async def test_a_server_tells_its_models_health_and_version(client: httpx.AsyncClient) -> None:
    (model,) = (await client.get("/v1/models")).json()["data"]
    assert (model["id"], model["max_model_len"]) == (MODEL, 16384)
    assert (await client.get("/health")).status_code == 200
    assert (await client.get("/version")).json() == {"version": "0.32.0"}


async def test_the_longest_request_is_what_the_kv_cache_holds() -> None:
    async with (
        running(an_engine(kv_cache_tokens=1616)) as engine,
        httpx.AsyncClient(base_url=engine.url) as client,
    ):
        (model,) = (await client.get("/v1/models")).json()["data"]
    assert model["max_model_len"] == 1584  # 101 blocks of 16, less one; 99 % of the rest


async def test_the_page_shows_model_seconds_and_http_answers(client: httpx.AsyncClient) -> None:
    body = {"model": MODEL, "prompt": "a b", "max_tokens": 101}
    await client.post("/v1/completions", json=body)
    await client.get("/nowhere")
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=1.0.0")
    values = dict(line.rsplit(" ", 1) for line in response.text.splitlines() if line[0] != "#")
    labels = f'{{engine="0",model_name="{MODEL}"}}'
    # 100 steps of one token: 12.34 ms each and a little for the cache, whatever the speed.
    assert float(values[f"vllm:request_decode_time_seconds_sum{labels}"]) == pytest.approx(
        1.234, rel=0.01
    )
    assert values['http_requests_total{handler="/v1/completions",method="POST",status="2xx"}'] == (
        "1.0"
    )
    assert values['http_requests_total{handler="none",method="GET",status="4xx"}'] == "1.0"
    assert 'handler="/metrics"' not in response.text
    assert (await client.get("/metrics")).text.count('handler="/metrics"') == 0


async def test_a_client_that_leaves_ends_its_request() -> None:
    async with running(an_engine(speed=1.0)) as engine:
        body = {"model": MODEL, "prompt": "a", "max_tokens": 10_000, "stream": True}
        async with (
            httpx.AsyncClient(base_url=engine.url) as client,
            client.stream("POST", "/v1/completions", json=body) as response,
        ):
            await anext(response.aiter_bytes())
            assert len(engine.replica.present()) == 1
        await until(lambda: not engine.replica.present())
        # As on a real page, such a request is counted nowhere but among the first tokens.
        async with httpx.AsyncClient(base_url=engine.url) as client:
            page = (await client.get("/metrics")).text
        labels = f'engine="0",model_name="{MODEL}"'
        assert f"vllm:time_to_first_token_seconds_count{{{labels}}} 1.0" in page
        assert f"vllm:e2e_request_latency_seconds_count{{{labels}}} 0.0" in page


async def test_a_draining_server_finishes_what_it_has_and_refuses_the_rest() -> None:
    engine = an_engine(speed=2.0, max_num_seqs=1)
    await engine.start()
    async with httpx.AsyncClient(base_url=engine.url, timeout=20) as client:
        body = {"model": MODEL, "prompt": "a", "max_tokens": 50}
        # One runs and two wait, 0.3 s each.
        accepted = [asyncio.create_task(client.post("/v1/completions", json=body)) for _ in "123"]
        await until(lambda: len(engine.replica.present()) == 3)
        draining = asyncio.create_task(engine.drain(10))
        await asyncio.sleep(0.05)
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/metrics")).status_code == 200
        late = await client.post("/v1/completions", json=body)
        assert late.status_code == 500
        assert "shutting down" in late.json()["error"]["message"]
        for response in await asyncio.gather(*accepted):
            assert response.json()["usage"]["completion_tokens"] == 50
        assert await draining
        with pytest.raises(httpx.ConnectError):
            await client.get("/health")


async def test_a_drain_that_takes_too_long_cuts_what_is_left() -> None:
    engine = an_engine(speed=1.0)
    await engine.start()
    async with httpx.AsyncClient(base_url=engine.url, timeout=20) as client:
        body = {"model": MODEL, "prompt": "a", "max_tokens": 10_000}
        asked = [
            asyncio.create_task(client.post("/v1/completions", json=body | {"stream": stream}))
            for stream in (True, False)
        ]
        await until(lambda: len(engine.replica.present()) == 2)
        assert not await engine.drain(0.1)
        for answer in asked:
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                await answer


async def test_before_its_start_the_port_refuses_connections() -> None:
    engine = an_engine(port=free_port())
    async with httpx.AsyncClient(base_url=engine.url) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("/health")
        async with running(engine):
            assert (await client.get("/health")).status_code == 200


async def test_a_port_in_use_is_refused_by_name(engine: Engine) -> None:
    port = int(engine.url.rsplit(":", 1)[1])
    with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: cannot be listened on: Address"):
        await an_engine(port=port).start()


async def test_a_broken_page_does_not_touch_the_model(
    engine: Engine, client: httpx.AsyncClient
) -> None:
    response = await client.post("/emulator/fault", json={"fault": "garbage"})
    assert response.json() == {"fault": "garbage"}
    page = (await client.get("/metrics")).content
    assert b'vllm:num_requests_running{engine="0",model_name="tiny"} \xff?!\n' in page
    engine.fault = "hang"
    with pytest.raises(httpx.ReadTimeout):
        await client.get("/metrics", timeout=0.2)
    assert (await client.post("/v1/completions", json={"model": MODEL, "prompt": "a"})).is_success
    engine.fault = "none"
    assert b"vllm:num_requests_running" in (await client.get("/metrics")).content
    refused = await client.post("/emulator/fault", json={"fault": "fire"})
    assert refused.status_code == 400


async def test_a_page_that_hangs_ends_with_the_server(engine: Engine) -> None:
    engine.fault = "hang"
    async with httpx.AsyncClient(base_url=engine.url, timeout=10) as client:
        scrape = asyncio.create_task(client.get("/metrics"))
        await asyncio.sleep(0.1)
        await engine.stop()
        assert (await scrape).status_code == 503


async def test_as_a_program_it_ends_well_on_sigterm() -> None:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "wva_adapter.emulator.engine", "--port", str(port)),
        *("--startup", "200ms", "--speed", "5"),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    assert await process.stderr.readline() == f"serving demo at http://127.0.0.1:{port}\n".encode()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
        body = {"model": "demo", "prompt": "a", "max_tokens": 100, "stream": True}
        async with client.stream("POST", "/v1/completions", json=body) as response:
            parts = response.aiter_text()
            text = await anext(parts)
            os.kill(process.pid, signal.SIGTERM)
            text += "".join([part async for part in parts])
    assert text.endswith("data: [DONE]\n\n")
    assert text.count("token") == 100
    assert await process.wait() == 0
    assert await process.stderr.read() == b""


async def test_as_a_program_it_refuses_unknown_hardware() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "wva_adapter.emulator.engine", "--hardware", "llama3-8b/a100"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, told = await process.communicate()
    assert process.returncode == 2
    assert b"did you mean llama3-8b/a100/tp1?" in told

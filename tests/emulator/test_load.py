from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest
from aiohttp import web

from tests.emulator.servers import MODEL, an_engine, free_port, running
from tests.emulator.test_gateway import a_gateway, a_server
from wva_adapter.emulator.gateway import Backend
from wva_adapter.emulator.load import (
    Load,
    LoadResult,
    Outcome,
    Workload,
)

pytestmark = pytest.mark.anyio


def seeded(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def an_outcome(
    *, ttft_s: float | None = 0.5, itl_s: float | None = 0.02, failure: str | None = None
) -> Outcome:
    return Outcome(
        arrived_s=0, prompt_tokens=10, ttft_s=ttft_s, itl_s=itl_s, output_tokens=9, failure=failure
    )


def test_a_request_is_in_slo_if_both_latencies_are() -> None:
    assert an_outcome().in_slo(0.5, 0.02)
    assert not an_outcome().in_slo(0.4, 0.02)
    assert not an_outcome().in_slo(0.5, 0.01)
    assert an_outcome(itl_s=None).in_slo(0.5, 0.01)  # a single token has no next one
    assert not an_outcome(failure="timeout").in_slo(0.5, 0.02)


def test_the_share_in_slo_is_of_all_that_arrived() -> None:
    result = LoadResult((an_outcome(), an_outcome(ttft_s=9), an_outcome(failure="cut")))
    assert result.in_slo(1, 1) == pytest.approx(1 / 3)
    assert result.failures == {"cut": 1}
    assert LoadResult(()).in_slo(1, 1) is None


def test_percentiles_take_a_failed_request_as_never_answered() -> None:
    served = [an_outcome(ttft_s=0.1 * n) for n in range(1, 10)]
    result = LoadResult((*served, an_outcome(ttft_s=None, failure="timeout")))
    assert result.ttft_percentile_s(50) == pytest.approx(0.5)
    assert result.ttft_percentile_s(90) == pytest.approx(0.9)
    assert result.ttft_percentile_s(99) == math.inf
    assert result.itl_percentile_s(99) == 0.02
    assert LoadResult(()).ttft_percentile_s(50) is None


async def test_clients_see_what_the_replica_did() -> None:
    async with running(an_engine(speed=10)) as engine:
        workload = Workload(
            schedule=[(0, 3), (8, 3)], prompt_tokens=200, output_tokens=60, variation=0.5
        )
        result = await Load(engine.url, MODEL, workload, seeded(), speed=10).run()
        counters = engine.replica.counters
    assert result.requests == counters.finished > 10
    assert result.failed == 0
    outcomes = result.outcomes
    assert sum(outcome.output_tokens for outcome in outcomes) == counters.generation_tokens
    assert sum(outcome.prompt_tokens for outcome in outcomes) == counters.prompt_tokens
    # A client cannot see a token before it is there; at 10 times the speed 30 ms late is 0.3 s.
    mean_ttft_s = np.mean([outcome.ttft_s or 0 for outcome in outcomes])
    replica_ttft_s = counters.ttft_sum_s / counters.ttft_count
    assert replica_ttft_s < mean_ttft_s < replica_ttft_s + 0.5
    assert [outcome.arrived_s for outcome in outcomes] == sorted(o.arrived_s for o in outcomes)


async def test_a_client_gives_up_at_its_deadline() -> None:
    async with running(an_engine(speed=10, max_num_seqs=1)) as engine:
        # 2000 tokens are 25 s: one is served alone, and not in 5 s.
        workload = Workload(
            schedule=[(0, 20), (1, 20)],
            output_tokens=2000,
            variation=0.01,
            deadline_s=5,
            most_requests=3,
        )
        result = await Load(engine.url, MODEL, workload, seeded(), speed=10).run()
        assert result.failures == {"timeout": 3}
        await asyncio.sleep(0.05)
        assert engine.replica.present() == ()


async def test_a_failure_is_told_by_its_kind() -> None:
    workload = Workload(schedule=[(0, 50), (0.1, 50)], most_requests=2, output_tokens=20)
    nobody = Load(f"http://127.0.0.1:{free_port()}", MODEL, workload, seeded())
    assert set((await nobody.run()).failures) == {"refused"}
    async with running(an_engine()) as engine:
        unknown = await Load(engine.url, "other", workload, seeded()).run()
        assert set(unknown.failures) == {"HTTP 404"}
        long = Workload(schedule=workload.schedule, most_requests=2, output_tokens=8000)
        engine_stops = Load(engine.url, MODEL, long, seeded())
        run = asyncio.create_task(engine_stops.run())
        await asyncio.sleep(0.3)
        await engine.stop()
        assert (await run).failures == {"cut": 2}


async def test_an_error_in_a_stream_is_a_failure() -> None:
    async def fail_midway(_: web.Request) -> web.Response:
        text = 'data: {"choices": []}\n\ndata: {"error": {"message": "oh"}}\n\ndata: [DONE]\n\n'
        return web.Response(text=text, content_type="text/event-stream")

    async def end_midway(_: web.Request) -> web.Response:
        return web.Response(text='data: {"choices": []}\n\n', content_type="text/event-stream")

    workload = Workload(schedule=[(0, 50), (0.1, 50)], most_requests=1)
    async with a_server(fail_midway) as url:
        result = await Load(url, MODEL, workload, seeded()).run()
        assert result.failures == {"error in the stream": 1}
    async with a_server(end_midway) as url:
        result = await Load(url, MODEL, workload, seeded()).run()
        assert result.failures == {"cut": 1}


async def test_a_load_that_is_cancelled_ends_what_is_in_flight() -> None:
    async with running(an_engine(speed=1)) as engine:
        load = Load(
            engine.url, MODEL, Workload(schedule=[(0, 50), (60, 50)], output_tokens=2000), seeded()
        )
        run = asyncio.create_task(load.run())
        await asyncio.sleep(0.3)
        assert load.in_flight > 5
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert load.in_flight == 0
        await asyncio.sleep(0.1)
        assert engine.replica.present() == ()


async def test_replicas_come_and_go_under_load_and_no_request_is_lost() -> None:
    speed = 20.0
    first, second, third = (an_engine(speed=speed) for _ in range(3))
    async with running(first), running(second), a_gateway() as gateway:
        gateway.set_backends([Backend(first.url), Backend(second.url)])
        # 12 requests per second for 60 s: two A100 replicas carry 14. In 3 s on the clock.
        workload = Workload(schedule=[(0, 12), (60, 12)], prompt_tokens=512, output_tokens=128)
        run = asyncio.create_task(Load(gateway.url, MODEL, workload, seeded(), speed=speed).run())
        await asyncio.sleep(0.8)
        async with running(third):
            gateway.set_backends([Backend(first.url), Backend(second.url), Backend(third.url)])
            async with asyncio.timeout(5):
                while not first.replica.present():  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            # It is answering something at this very moment.
            gateway.set_backends([Backend(second.url), Backend(third.url)])
            assert await first.drain(10)
            await asyncio.sleep(0.5)
            gateway.set_backends([Backend(third.url)])
            assert await second.drain(10)
            result = await run
    assert result.requests == pytest.approx(720, abs=4 * math.sqrt(720))
    assert result.failures == {}

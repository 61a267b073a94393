"""From a saturation onset in an emulated engine to the changed value in the external metrics API.

Each of several engines is one variant. Again and again, at a moment drawn over the scrape period,
requests flood one of them until some must wait; the time from the first moment in which the engine
is saturated to the first answer of the API with a larger value is one delay. All real: the
engine's port and page, the adapter's default periods, HTTPS.
"""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import httpx
import numpy as np
import uvloop

from tests.bench import Row
from wva_adapter.core.policy import Policy
from wva_adapter.emulator.engine import Engine
from wva_adapter.runtime import Adapter
from wva_adapter.settings import parse_settings
from wva_adapter.sim.files import hardware

PERIOD_S = 5.0
ENGINES = 6
ONSETS_EACH = 6
SEQS = 4
# A flood waits behind a full batch: more than the threshold of 5 for as long as it lasts.
FLOOD = SEQS + 12
_LONGEST_S = 60.0

# Windows of nothing let a variant fall back at once, so that the next onset starts from calm.
SETTINGS = f"""
listen: {{port: 0}}
tls: {{directory: certificates}}
shutdown: {{lame_duck: 0s}}
static_file: fleet.yaml
scrape_period: {PERIOD_S:g}s
cycle: {PERIOD_S:g}s
policy: {{analysis: saturation, peak_window: 0s, scale_down_window: 0s, down_period: 0s}}
"""


async def _measure() -> list[float]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wva-bench-")))
        engines = []
        for _ in range(ENGINES):
            engine = Engine(
                hardware=hardware("llama3-8b/a100/tp1"),
                model="m",
                host="127.0.0.1",
                port=0,
                max_num_seqs=SEQS,
            )
            await engine.start()
            stack.push_async_callback(engine.stop)
            engines.append(engine)
        entries = ", ".join(
            f"{{namespace: bench, name: v{i}, model_id: m{i}, replicas: ['{engine.url}']}}"
            for i, engine in enumerate(engines)
        )
        (folder / "fleet.yaml").write_text(f"variants: [{entries}]")
        adapter = Adapter(parse_settings(SETTINGS, "bench"), folder=folder)
        stop = asyncio.Event()
        running = asyncio.create_task(adapter.run(stop))

        async def end() -> None:
            stop.set()
            await running

        stack.push_async_callback(end)
        context = ssl.create_default_context(cafile=folder / "certificates" / "ca.crt")
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=adapter.server.url, verify=context)
        )
        session = await stack.enter_async_context(aiohttp.ClientSession())
        delays = await asyncio.gather(
            *(
                _onsets(engine, f"v{i}", client, session, np.random.default_rng(i))
                for i, engine in enumerate(engines)
            )
        )
        return [delay for of_engine in delays for delay in of_engine]


async def _onsets(
    engine: Engine,
    name: str,
    client: httpx.AsyncClient,
    session: aiohttp.ClientSession,
    generator: np.random.Generator,
) -> list[float]:
    loop, delays = asyncio.get_running_loop(), []
    for _ in range(ONSETS_EACH):
        await _until(client, name, "1", every_s=0.05)
        await asyncio.sleep(generator.uniform(0, PERIOD_S))
        flood = [asyncio.create_task(_ask(session, engine.url)) for _ in range(FLOOD)]
        async with asyncio.timeout(_LONGEST_S):
            while engine.replica.waiting < Policy().queue_length_threshold:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        onset_s = loop.time()
        await _until(client, name, "2", every_s=0.01)
        delays.append(loop.time() - onset_s)
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
    return delays


async def _until(client: httpx.AsyncClient, name: str, value: str, *, every_s: float) -> None:
    async with asyncio.timeout(_LONGEST_S):
        while await _value(client, name) != value:  # noqa: ASYNC110
            await asyncio.sleep(every_s)


async def _value(client: httpx.AsyncClient, name: str) -> str | None:
    response = await client.get(
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/bench/wva_desired_replicas",
        params={"labelSelector": f"variant_name={name}"},
    )
    if response.status_code != 200:
        return None
    (item,) = response.json()["items"]
    return str(item["value"])


async def _ask(session: aiohttp.ClientSession, url: str) -> None:
    body = {"model": "m", "prompt": "word " * 100, "max_tokens": 4000, "ignore_eos": True}
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        await answer.read()


def rows() -> list[Row]:
    """Return median and 99th percentile of the delay, in seconds."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        delays = runner.run(_measure())
    median, p99 = (float(np.percentile(delays, share)) for share in (50, 99))
    what = f"saturation onset to changed value, {len(delays)} onsets, scrapes every {PERIOD_S:g} s"
    return [
        Row(
            name=f"{what}: median",
            value=median,
            unit="s",
            against=PERIOD_S,
            ratio=PERIOD_S / median,
            target=f"<= {PERIOD_S + 0.2:g} s",
            ok=median <= PERIOD_S + 0.2,
        ),
        Row(
            name=f"{what}: p99",
            value=p99,
            unit="s",
            against=PERIOD_S,
            ratio=PERIOD_S / p99,
            target=f"<= {2 * PERIOD_S:g} s",
            ok=p99 <= 2 * PERIOD_S,
        ),
    ]

"""A queue of real requests: the page says so, the adapter reads it, the decision follows."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from tests.engine import Figure, tell
from tests.engine.adapter import Adapter
from tests.engine.engine import MAX_NUM_SEQS, MODEL, Engine
from tests.engine.phases import undisturbed
from wva_adapter.emulator.load import Load, Workload

ONSET_PER_S, ONSET_S = 4.0, 30.0
"""More than the engine serves, for longer than a queue that goes by itself would last."""

READ = {
    "running_requests": "vllm:num_requests_running",
    "queued_requests": "vllm:num_requests_waiting",
    "kv_cache_usage": "vllm:kv_cache_usage_perc",
    "prompt_tokens_total": "vllm:prompt_tokens_total",
    "computed_prompt_tokens_total": "vllm:prompt_tokens_total",
    "generation_tokens_total": "vllm:generation_tokens_total",
    "successes_total": "vllm:request_success_total",
    "preemptions_total": "vllm:num_preemptions_total",
    "rejections_total": "vllm:admission_rejections_total",
    "ttft_sum_s": "vllm:time_to_first_token_seconds_sum",
    "ttft_count": "vllm:time_to_first_token_seconds_count",
    "itl_sum_s": "vllm:inter_token_latency_seconds_sum",
    "itl_count": "vllm:inter_token_latency_seconds_count",
    "prefill_sum_s": "vllm:request_prefill_time_seconds_sum",
    "input_tokens_sum": "vllm:request_prompt_tokens_sum",
    "input_tokens_count": "vllm:request_prompt_tokens_count",
    "output_tokens_sum": "vllm:request_generation_tokens_sum",
    "output_tokens_count": "vllm:request_generation_tokens_count",
}
"""By field, the series whose sum it is where nothing waits for another reason than capacity, nothing
was aborted and no prompt was cached."""


def sums(page: str) -> Mapping[str, float]:
    """Return the sum of each series of a page, read by Prometheus' own parser and not by ours."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def differences(said: Mapping[str, Any], page: str) -> list[str]:
    """Return in which fields what the adapter says differs from the page."""
    there = sums(page)
    differ = [
        f"{field}: {said[field]}, the page has {there[series]}"
        for field, series in READ.items()
        if said[field] is None or abs(said[field] - there[series]) > 1e-9 * abs(there[series])
    ]
    return [*differ, *(f"{name}: null" for name in ("awake", "kv_cache_tokens") if not said[name])]


async def measure(engine: Engine) -> AsyncIterator[Figure]:
    """Let a queue build up and go, and follow page, adapter and count."""
    policy = {"assumed_start": "30s", "scale_down_window": "30s", "down_period": "5s"}
    with tempfile.TemporaryDirectory(prefix="wva-engine-") as name:
        adapter = Adapter(Path(name), policy=policy, max_replicas=4, model=MODEL)
        adapter.deploy({"one": engine.url})
        async with undisturbed():
            before = engine.core_time()
            await adapter.start()
            try:
                counts, queues, differ, why = await _story(engine, adapter)
            finally:
                adapter.stop()
            waited = engine.core_time().waited_since(before)
    tell(f"counts {counts}, queues {queues}")
    tell(f"at the largest count: {why}")
    for line in differ:
        tell(f"differs: {line}")
    largest = max(counts)
    yield {
        "name": f"count while {max(queues):.0f} requests waited, from {counts[0]}",
        "value": float(largest),
        "unit": "replicas",
        "runs": [float(count) for count in counts],
        "target": "more than before, and back",
        "ok": largest > counts[0] == counts[-1] and max(queues) > MAX_NUM_SEQS,
        "waited": waited,
    }
    yield {
        "name": f"of {len(READ) + 2} fields that differ from the page",
        "value": float(len(differ)),
        "unit": "fields",
        "runs": [],
        "target": "0",
        "ok": not differ,
        "waited": waited,
    }


async def _story(engine: Engine, adapter: Adapter) -> tuple[list[int], list[float], list[str], str]:
    """Return counts and queues as they changed, differing fields, and the trail at the largest."""
    workload = Workload(
        schedule=((0.0, ONSET_PER_S), (ONSET_S, ONSET_PER_S)),
        prompt_tokens=200,
        output_tokens=100,
        variation=0.0,
    )
    load = Load(engine.url, MODEL, workload, np.random.default_rng(3))
    await asyncio.sleep(12)
    counts, queues, why = [await adapter.desired()], [0.0], ""
    sent = asyncio.create_task(load.run())
    quiet_since = time.monotonic()
    while not sent.done() or (counts[-1] != counts[0] and time.monotonic() < quiet_since + 120):
        if not sent.done():
            quiet_since = time.monotonic()
        said = await adapter.explain()
        count = said["decision"]["desired"]
        if count != counts[-1]:
            counts.append(count)
            if count == max(counts):
                why = "; ".join(step["why"] for step in said["decision"]["trail"])
        if (queue := said["replicas"][0]["queued_requests"]) != queues[-1]:
            queues.append(queue)
        await asyncio.sleep(1)
    result = await sent
    tell(f"{result.requests} requests, {result.failed} failed")
    # Nothing moves any more, so the last page that the adapter read is the page of now.
    await asyncio.sleep(12)
    said = (await adapter.explain())["replicas"][0]
    async with aiohttp.ClientSession() as session, session.get(f"{engine.url}/metrics") as answer:
        return counts, queues, differences(said, await answer.text()), why

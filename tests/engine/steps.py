"""What single steps of the engine take: batches that decode, prompts alone, and prompts beside them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from operator import attrgetter

import aiohttp

from tests.engine.engine import MAX_NUM_SEQS, MODEL, Engine
from tests.engine.phases import page
from tests.engine.table import Step, fitted, step_s
from wva_adapter.core.interval import interval
from wva_adapter.core.snapshot import ReplicaSample
from wva_adapter.sim.hardware import Hardware

BATCHES = ((1, 50), (2, 50), (4, 50), (6, 50), (8, 50), (12, 50), (16, 50), (4, 800), (12, 400))
"""Decoding requests, and prompt tokens of each."""

PROMPTS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Prompt tokens of a request that comes alone."""

MIXED = ((4, 128), (4, 256), (10, 128), (10, 256))
"""Decoding requests, and prompt tokens of a request that comes while they decode."""

KNOTS = (1, 2, 4, 8, 16, 64, 256, 1024, 2048)
"""Sizes of steps, in tokens, between which the table is straight."""

_ANSWER_TOKENS = 60
_SHORT_PROMPT, _LONG_ANSWER_TOKENS = 50, 120
_EACH_PROMPT = 3
_STARTED, _ENDED = attrgetter("ttft_count"), attrgetter("successes_total")
_EVERY_S = 0.25
_FEWEST_GAPS = 20


async def measured(engine: Engine) -> list[Step]:
    """Return the mean time of each kind of step, from the engine's own counters."""
    found: list[Step] = []
    async with aiohttp.ClientSession() as session:
        for prompt_tokens in PROMPTS:
            found.append(await _prompt(session, engine.url, prompt_tokens))
        for decoding, prompt_tokens in BATCHES:
            found += await _batch(session, engine.url, decoding, prompt_tokens)
        for decoding, prompt_tokens in MIXED:
            found += await _mixed(session, engine.url, decoding, prompt_tokens)
    return found


def table_of(steps: Sequence[Step]) -> Hardware:
    """Return the engine as the simulator knows one."""
    return fitted("llama-random/cpu/tp1", steps, KNOTS, kv_cache_tokens=65_536)


def saturated_per_s(hardware: Hardware, prompt_tokens: float, output_tokens: float) -> float:
    """Return the rate of such requests at which a full batch could just keep up."""
    held = MAX_NUM_SEQS * (prompt_tokens + output_tokens / 2)
    decode_s = step_s(hardware, Step(MAX_NUM_SEQS, 0.0, held, 0.0)) / MAX_NUM_SEQS
    prompt_s = step_s(hardware, Step(0.0, prompt_tokens, 0.0, 0.0))
    return 1 / (output_tokens * decode_s + prompt_s)


async def _prompt(session: aiohttp.ClientSession, url: str, prompt_tokens: int) -> Step:
    before = await page(session, url)
    for _ in range(_EACH_PROMPT):
        await _ask(session, url, prompt_tokens, 1)
    after = await _counted(session, url, before, _EACH_PROMPT)
    prefill_s = (after.prefill_sum_s or 0.0) - (before.prefill_sum_s or 0.0)
    return Step(0.0, prompt_tokens, 0.0, prefill_s / _EACH_PROMPT)


async def _counted(
    session: aiohttp.ClientSession,
    url: str,
    before: ReplicaSample,
    requests: int,
    counter: Callable[[ReplicaSample], float | None] = _ENDED,
) -> ReplicaSample:
    """Return the first page on which so many more requests have ended, or what else is counted."""
    while True:
        after = await page(session, url)
        if (counter(after) or 0) - (counter(before) or 0) >= requests:
            return after
        await asyncio.sleep(0.05)


async def _batch(
    session: aiohttp.ClientSession, url: str, decoding: int, prompt_tokens: int
) -> Sequence[Step]:
    """Return the steps in which all of them decoded, while the batch was full."""
    pages: list[ReplicaSample] = []
    before = await page(session, url)
    async with _asking(session, url, decoding, prompt_tokens, _ANSWER_TOKENS) as asked:
        while not asked.done():
            pages.append(await page(session, url))
            await asyncio.sleep(_EVERY_S)
    await _counted(session, url, before, decoding)
    full = [
        one
        for one in pages
        if (one.ttft_count or 0) - (before.ttft_count or 0) == decoding
        and (one.successes_total or 0) == (before.successes_total or 0)
    ]
    if len(full) < 2:
        return []
    whole = interval(full[0], full[-1])
    if whole is None or whole.itl_s is None or whole.itl_count < _FEWEST_GAPS:
        return []
    began = before.generation_tokens_total or 0.0
    generated = [(one.generation_tokens_total or 0.0) - began for one in (full[0], full[-1])]
    held = decoding * prompt_tokens + sum(generated) / 2
    return [Step(decoding, 0.0, held, whole.itl_s)]


async def _mixed(
    session: aiohttp.ClientSession, url: str, decoding: int, prompt_tokens: int
) -> Sequence[Step]:
    """Return the step in which one prompt is computed while others decode."""
    start = await page(session, url)
    async with _asking(session, url, decoding, _SHORT_PROMPT, _LONG_ANSWER_TOKENS):
        before = await _counted(session, url, start, decoding, _STARTED)
        for _ in range(_EACH_PROMPT):
            await _ask(session, url, prompt_tokens, 1)
        after = await _counted(session, url, before, _EACH_PROMPT)
    if (after.successes_total or 0) - (before.successes_total or 0) != _EACH_PROMPT:
        return []  # some of those that decoded have ended
    prefill_s = (after.prefill_sum_s or 0.0) - (before.prefill_sum_s or 0.0)
    began = start.generation_tokens_total or 0.0
    generated = [(one.generation_tokens_total or 0.0) - began for one in (before, after)]
    held = decoding * _SHORT_PROMPT + sum(generated) / 2
    return [Step(decoding, prompt_tokens, held, prefill_s / _EACH_PROMPT)]


@asynccontextmanager
async def _asking(
    session: aiohttp.ClientSession, url: str, requests: int, prompt_tokens: int, output_tokens: int
) -> AsyncIterator[asyncio.Future[list[None]]]:
    asked = asyncio.gather(
        *(_ask(session, url, prompt_tokens, output_tokens) for _ in range(requests))
    )
    yield asked
    await asked


async def _ask(
    session: aiohttp.ClientSession, url: str, prompt_tokens: int, output_tokens: int
) -> None:
    body = {
        "model": MODEL,
        "prompt": "word " * prompt_tokens,
        "max_tokens": output_tokens,
        "ignore_eos": True,
        # As clients ask: who sends each token on its own takes time from the engine's scheduler.
        "stream": True,
    }
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        answer.raise_for_status()
        await answer.read()

"""One engine under known loads: what its pages and its clients say of each phase."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import aiohttp
import numpy as np

from tests.engine import tell
from tests.engine.engine import MODEL, Engine
from wva_adapter.collect.engines import inspect_page
from wva_adapter.core.interval import Interval, interval
from wva_adapter.core.snapshot import ReplicaSample
from wva_adapter.emulator.load import Load, LoadResult, Workload
from wva_adapter.sim.workload import arrivals, lengths

VARIATION = 0.5
"""Coefficient of variation of prompts and answers."""

LONGEST = 3500
"""Longest prompt, and longest answer: both fit the model's length."""

KEPT = Path(__file__).parent.parent.parent / "build" / "engine-pages"

_NEAR, _TRIED = 0.05, 5000


@asynccontextmanager
async def undisturbed() -> AsyncIterator[None]:
    """Hold the lock that those who share the machine agreed on, if ``WVA_ENGINE_LOCK`` names one.

    Whoever else runs for long holds it meanwhile.
    """
    name = os.environ.get("WVA_ENGINE_LOCK")
    if not name:
        yield
        return
    began = time.monotonic()
    held = await asyncio.to_thread(_locked, name)
    tell(f"waited {time.monotonic() - began:.0f} s for the machine")
    try:
        yield
    finally:
        os.close(held)


def _locked(name: str) -> int:
    """Return the file once it is ours; closing it gives it back."""
    held = os.open(name, os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    return held


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What was seen of one load.

    Attributes:
        result: What each client got.
        whole: What the engine's counters grew by, from the end of the settling to the end of the
            arrivals.
        samples: The pages, the first at the beginning.
        waited: For which share of the time it wanted a core the engine got none.
    """

    result: LoadResult
    whole: Interval
    samples: Sequence[ReplicaSample]
    waited: float

    @property
    def rate_per_s(self) -> float:
        """Requests that began per second, as they came in this phase."""
        return (self.whole.started or 0.0) / self.whole.span_s

    @property
    def itl_s(self) -> float:
        """Mean inter-token latency."""
        assert self.whole.itl_s is not None
        return self.whole.itl_s

    @property
    def ttft_s(self) -> float:
        """Mean time to first token, as the engine counted it."""
        first, last = self.settled[0], self.settled[-1]
        sums = (last.ttft_sum_s or 0.0) - (first.ttft_sum_s or 0.0)
        return sums / max(1.0, (last.ttft_count or 0.0) - (first.ttft_count or 0.0))

    @property
    def settled(self) -> Sequence[ReplicaSample]:
        """The pages that ``whole`` is from."""
        begin_s = self.samples[-1].at_s - self.whole.span_s
        return [sample for sample in self.samples if sample.at_s >= begin_s - 1e-3]

    def intervals(self) -> list[Interval]:
        """Return what happened between each two pages."""
        pairs = pairwise(self.samples)
        return [one for before, now in pairs if (one := interval(before, now)) is not None]


async def page(session: aiohttp.ClientSession, url: str) -> ReplicaSample:
    """Return what the engine's page says now, read as the adapter reads it."""
    async with session.get(f"{url}/metrics") as answer:
        body = await answer.read()
    return inspect_page(body, None, at_s=time.time(), source=url).total


async def run(
    engine: Engine,
    rate_per_s: float,
    span_s: float,
    *,
    prompt_tokens: float,
    output_tokens: float,
    seed: int,
    settle_s: float = 15.0,
    every_s: float = 5.0,
) -> Phase:
    """Return what a constant rate of Poisson arrivals gives; what is in flight is let end.

    Args:
        rate_per_s: Arrivals per second, closely so after the settling.
        seed: The first one to try: some minutes of a Poisson process may bring half as many again.
        settle_s: Seconds from the beginning that ``whole`` leaves out.
        every_s: How often the page is read.
    """
    workload = Workload(
        schedule=((0.0, rate_per_s), (span_s, rate_per_s)),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        variation=VARIATION,
        most_tokens=LONGEST,
    )
    load = Load(engine.url, MODEL, workload, _typical(workload, settle_s, seed))
    samples: list[ReplicaSample] = []
    before = engine.core_time()

    async def watch() -> None:
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        async with aiohttp.ClientSession() as session:
            for tick in range(int(span_s / every_s) + 1):
                await asyncio.sleep(max(0.0, begin_s + tick * every_s - loop.time()))
                samples.append(await page(session, engine.url))

    async with asyncio.TaskGroup() as group:
        group.create_task(watch())
        running = group.create_task(load.run())
    waited = engine.core_time().waited_since(before)
    _keep(samples, f"{rate_per_s:.2f}-of-{prompt_tokens:.0f}-{output_tokens:.0f}")
    since = next(i for i, s in enumerate(samples) if s.at_s - samples[0].at_s >= settle_s - 1e-3)
    whole = interval(samples[since], samples[-1])
    assert whole is not None
    phase = Phase(result=running.result(), whole=whole, samples=samples, waited=waited)
    tell(
        f"{rate_per_s:.2f}/s of {prompt_tokens:.0f}/{output_tokens:.0f}: came {phase.rate_per_s:.2f}/s, "
        f"ITL {1000 * phase.itl_s:.1f} ms, TTFT {phase.ttft_s:.2f} s, {phase.result.failed} failed, "
        f"waited for a core {waited:.0%}"
    )
    return phase


def _keep(samples: Sequence[ReplicaSample], name: str) -> None:
    """Keep the pages of a phase under ``build/``, a line each: to look at afterwards."""
    KEPT.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(asdict(sample)) + "\n" for sample in samples]
    at = time.strftime("%H%M%S", time.localtime(samples[0].at_s))
    KEPT.joinpath(f"{at}-{name}.jsonl").write_text("".join(lines))


def _typical(workload: Workload, settle_s: float, seed: int) -> np.random.Generator:
    """Return a generator that gives about the mean number of arrivals and of tokens.

    Of arrivals at a constant rate.
    """
    (_, rate_per_s), (span_s, _) = workload.schedule
    for tried in range(seed, seed + _TRIED):
        generator = np.random.default_rng(1000 * seed + tried)
        at_s = arrivals(workload.schedule, generator)
        shape = (workload.variation, workload.most_tokens, len(at_s), generator)
        prompts = lengths(workload.prompt_tokens, *shape)[at_s >= settle_s]
        answers = lengths(workload.output_tokens, *shape)[at_s >= settle_s]
        came = len(prompts) / max(1.0, rate_per_s * (span_s - settle_s))
        near = (
            came,
            prompts.mean() / workload.prompt_tokens if len(prompts) else 0.0,
            answers.mean() / workload.output_tokens if len(answers) else 0.0,
        )
        if all(abs(ratio - 1) <= _NEAR for ratio in near):
            return np.random.default_rng(1000 * seed + tried)
    raise ValueError(f"none of {_TRIED} draws is within {_NEAR:.0%} of {workload}")


def worst(shares: Sequence[float]) -> float | None:
    """Return the largest share that the engine waited."""
    return max(shares, default=None)

"""One engine under known loads: what its pages and its clients say of each phase."""

from __future__ import annotations

import asyncio
import fcntl
import json
import math
import os
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import aiohttp
import numpy as np

from tests.engine import tell
from tests.engine.engine import MODEL, CoreTime, Engine
from wva_adapter.collect.engines import inspect_page
from wva_adapter.core.interval import Interval, interval
from wva_adapter.core.service_rate import Shape
from wva_adapter.core.snapshot import ReplicaSample
from wva_adapter.emulator.load import Load, LoadResult, Workload
from wva_adapter.sim.workload import arrivals, lengths

VARIATION = 0.5
"""Coefficient of variation of prompts and answers."""

LONGEST = 3500
"""Longest prompt, and longest answer: both fit the model's length."""

KEPT = Path(__file__).parent.parent.parent / "build" / "engine-pages"

_NEAR, _TRIED = 0.06, 20_000
_SAME_S = 1e-3


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
    held = os.open(name, os.O_RDWR | os.O_CREAT)
    await _locked(held)
    tell(f"waited {time.monotonic() - began:.0f} s for the machine")
    try:
        yield
    finally:
        os.close(held)


async def _locked(held: int) -> None:
    """Return once the file is locked; who waits in line may still be told to end."""
    loop, locked = asyncio.get_running_loop(), asyncio.Event()

    def wait() -> None:
        fcntl.flock(held, fcntl.LOCK_EX)
        loop.call_soon_threadsafe(locked.set)

    threading.Thread(target=wait, daemon=True).start()
    await locked.wait()


class Segment(NamedTuple):
    """Poisson arrivals at one rate for a while."""

    rate_per_s: float
    span_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What was seen of one rate, which may have come and gone several times.

    Attributes:
        asked_per_s: The rate.
        intervals: What happened between each two pages, once the rate had settled.
        ttft_sum_s: Sum of the times to first token in them.
        waited: For which share of the time it was ready to run the engine had no core in them.
    """

    asked_per_s: float
    intervals: Sequence[Interval]
    ttft_sum_s: float
    waited: float

    @property
    def started(self) -> float:
        """Requests that got their first token."""
        return math.fsum(one.started or 0.0 for one in self.intervals)

    @property
    def rate_per_s(self) -> float:
        """Requests that came per second: more than began where a queue grows."""
        came = math.fsum(one.arrivals or 0.0 for one in self.intervals)
        return came / math.fsum(one.span_s for one in self.intervals)

    @property
    def itl_s(self) -> float:
        """Mean inter-token latency, over tokens."""
        sums = math.fsum((one.itl_s or 0.0) * one.itl_count for one in self.intervals)
        return sums / math.fsum(one.itl_count for one in self.intervals)

    @property
    def ttft_s(self) -> float:
        """Mean time to first token, as the engine counted it."""
        return self.ttft_sum_s / self.started

    @property
    def shape(self) -> Shape:
        """Mean lengths of the requests."""
        finished = math.fsum(one.finished or 0.0 for one in self.intervals)
        return Shape(
            math.fsum(one.input_tokens or 0.0 for one in self.intervals) / self.started,
            math.fsum(one.output_tokens or 0.0 for one in self.intervals) / finished,
        )

    def __str__(self) -> str:
        return (
            f"{self.asked_per_s:.2f}/s: came {self.rate_per_s:.2f}/s, ITL {1000 * self.itl_s:.1f} ms, "
            f"TTFT {self.ttft_s:.2f} s, waited for a core {self.waited:.0%}"
        )


class Seen(NamedTuple):
    """What was seen of a load.

    ``pages`` are all of them, ``at_s`` when each was asked for, in seconds of the load, and
    ``cores`` the engine's core time then.
    """

    result: LoadResult
    segments: Sequence[Segment]
    pages: Sequence[ReplicaSample]
    at_s: Sequence[float]
    cores: Sequence[CoreTime]

    def phases(self, settle_s: float) -> list[Phase]:
        """Return what was seen of each rate, in the order in which they first came.

        Args:
            settle_s: Seconds from each change of the rate that are left out.
        """
        begin_s = 0.0
        found: dict[float, list[int]] = {}
        for rate_per_s, span_s in self.segments:
            found.setdefault(rate_per_s, []).extend(
                index
                for index, (before_s, now_s) in enumerate(pairwise(self.at_s))
                if before_s >= begin_s + settle_s - _SAME_S and now_s <= begin_s + span_s + _SAME_S
            )
            begin_s += span_s
        return [self._phase(rate_per_s, places) for rate_per_s, places in found.items()]

    def _phase(self, rate_per_s: float, places: Sequence[int]) -> Phase:
        ends = [(self.pages[i], self.pages[i + 1]) for i in places]
        cores = [(self.cores[i], self.cores[i + 1]) for i in places]
        ran_s = math.fsum(now.ran_s - before.ran_s for before, now in cores)
        waited_s = math.fsum(now.waited_s - before.waited_s for before, now in cores)
        return Phase(
            asked_per_s=rate_per_s,
            intervals=[one for before, now in ends if (one := interval(before, now)) is not None],
            ttft_sum_s=math.fsum(
                (now.ttft_sum_s or 0.0) - (before.ttft_sum_s or 0.0) for before, now in ends
            ),
            waited=waited_s / max(1e-9, ran_s + waited_s),
        )


async def page(session: aiohttp.ClientSession, url: str) -> ReplicaSample:
    """Return what the engine's page says now, read as the adapter reads it."""
    async with session.get(f"{url}/metrics") as answer:
        body = await answer.read()
    return inspect_page(body, None, at_s=time.time(), source=url).total


async def run(
    engine: Engine,
    segments: Sequence[Segment],
    *,
    prompt_tokens: float,
    output_tokens: float,
    seed: int,
    every_s: float = 5.0,
) -> Seen:
    """Return what these arrivals give; what is in flight at their end is let end.

    Args:
        seed: The first one to try: some minutes of a Poisson process may bring half as many again.
        every_s: How often the page is read.
    """
    ends_s = np.cumsum([span_s for _, span_s in segments])
    schedule: list[tuple[float, float]] = []
    for (rate_per_s, span_s), end_s in zip(segments, ends_s, strict=True):
        schedule += [(float(end_s) - span_s, rate_per_s), (float(end_s), rate_per_s)]
    workload = Workload(
        schedule=schedule,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        variation=VARIATION,
        most_tokens=LONGEST,
    )
    load = Load(engine.url, MODEL, workload, _typical(workload, segments, seed))
    pages: list[ReplicaSample] = []
    at_s: list[float] = []
    cores: list[CoreTime] = []

    async def watch() -> None:
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        async with aiohttp.ClientSession() as session:
            for tick in range(int(ends_s[-1] / every_s) + 1):
                await asyncio.sleep(max(0.0, begin_s + tick * every_s - loop.time()))
                at_s.append(tick * every_s)
                cores.append(engine.core_time())
                pages.append(await page(session, engine.url))

    async with asyncio.TaskGroup() as group:
        group.create_task(watch())
        running = group.create_task(load.run())
    _keep(pages, f"{prompt_tokens:.0f}-{output_tokens:.0f}")
    seen = Seen(running.result(), tuple(segments), pages, at_s, cores)
    if seen.result.failed:
        tell(f"failed: {dict(seen.result.failures)}")
    return seen


def _keep(samples: Sequence[ReplicaSample], name: str) -> None:
    """Keep the pages of a phase under ``build/``, a line each: to look at afterwards."""
    KEPT.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(asdict(sample)) + "\n" for sample in samples]
    at = time.strftime("%H%M%S", time.localtime(samples[0].at_s))
    KEPT.joinpath(f"{at}-{name}.jsonl").write_text("".join(lines))


def _typical(workload: Workload, segments: Sequence[Segment], seed: int) -> np.random.Generator:
    """Return a generator that gives about the mean arrivals of each rate, and mean lengths."""
    means: dict[float, float] = {}
    for rate_per_s, span_s in segments:
        means[rate_per_s] = means.get(rate_per_s, 0.0) + rate_per_s * span_s
    edges = np.cumsum([span_s for _, span_s in segments])
    for tried in range(_TRIED):
        generator = np.random.default_rng([seed, tried])
        at_s = arrivals(workload.schedule, generator)
        shape = (workload.variation, workload.most_tokens, len(at_s), generator)
        prompts = lengths(workload.prompt_tokens, *shape)
        answers = lengths(workload.output_tokens, *shape)
        came = dict.fromkeys(means, 0.0)
        for place in np.searchsorted(edges, at_s):
            came[segments[min(int(place), len(segments) - 1)].rate_per_s] += 1
        ratios = [came[rate] / mean for rate, mean in means.items()]
        ratios += [prompts.mean() / workload.prompt_tokens, answers.mean() / workload.output_tokens]
        if all(abs(ratio - 1) <= _NEAR for ratio in ratios):
            return np.random.default_rng([seed, tried])
    raise ValueError(f"none of {_TRIED} draws is within {_NEAR:.0%} of {workload}")

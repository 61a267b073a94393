"""Prompts become four times as long: how soon the capacity is right again, and what it costs meanwhile.

The engine stands for each replica of a fleet that follows the adapter's count: of all arrivals it
gets one replica's share, and every replica's page is its page.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.engine import Figure, tell
from tests.engine.adapter import Adapter
from tests.engine.capacity import SLO, breaking_rate, raised
from tests.engine.engine import MODEL, Engine
from tests.engine.phases import LONGEST, VARIATION, undisturbed
from tests.engine.steps import measured, saturated_per_s, table_of
from wva_adapter.emulator.load import Load, Outcome, Workload

LOADED = 0.25
"""The fleet's arrivals, of the rate of short prompts at which one batch would grow without end: one
replica is just full with the long ones. With more none could help before it has started."""

PROMPT_TOKENS, OUTPUT_TOKENS, LONGER = 200.0, 100.0, 4
BEFORE_S, AFTER_S = 90.0, 300.0
START_S = 20.0
"""From the order of a replica until it serves."""

SLICE_S = 10.0
WITHIN = 0.20


@dataclass(slots=True)
class Fleet:
    """Replicas that one engine stands for.

    Attributes:
        ready: How many serve.
        ordered: When each of those on their way was ordered, in the loop's time.
    """

    adapter: Adapter
    url: str
    ready: int = 1
    ordered: list[float] = field(default_factory=list)

    def deploy(self) -> None:
        """Tell the adapter what there is."""
        names = {f"r{number}": self.url for number in range(self.ready)}
        self.adapter.deploy(names, starting=len(self.ordered))

    async def follow(self) -> None:
        """Do what an HPA and a node do: order what is wanted, and start or end it."""
        now_s = asyncio.get_running_loop().time()
        while self.ordered and now_s - self.ordered[0] >= START_S:
            self.ordered.pop(0)
            self.ready += 1
        desired = await self.adapter.desired()
        while self.ready + len(self.ordered) < desired:
            self.ordered.append(now_s)
        while self.ready + len(self.ordered) > desired and self.ordered:
            self.ordered.pop()
        self.ready = min(self.ready, max(1, desired))
        self.deploy()


async def measure(engine: Engine) -> AsyncIterator[Figure]:
    """Lengthen the prompts, follow capacity and SLO, then measure the true capacity."""
    with tempfile.TemporaryDirectory(prefix="wva-engine-") as name:
        policy = {"assumed_start": f"{START_S:.0f}s"}
        adapter = Adapter(Path(name), policy=policy, max_replicas=12, model=MODEL)
        fleet = Fleet(adapter, engine.url)
        fleet.deploy()
        waits = []
        try:
            async with undisturbed():
                before = engine.core_time()
                table = table_of(await measured(engine))
                rate = LOADED * saturated_per_s(table, PROMPT_TOKENS, OUTPUT_TOKENS)
                tell(f"{rate:.2f}/s arrive")
                await adapter.start()
                settled, _ = await _driven(engine, fleet, rate, PROMPT_TOKENS, BEFORE_S, 31)
                shifted, capacities = await _driven(
                    engine, fleet, rate, LONGER * PROMPT_TOKENS, AFTER_S, 32
                )
                waits.append(engine.core_time().waited_since(before))
            async with undisturbed():
                before = engine.core_time()
                phases = await raised(
                    engine,
                    prompt_tokens=LONGER * PROMPT_TOKENS,
                    saturated_per_s=saturated_per_s(table, LONGER * PROMPT_TOKENS, OUTPUT_TOKENS),
                    seed=300,
                    passes=1,
                )
                waits.append(engine.core_time().waited_since(before))
        finally:
            adapter.stop()
    tell(f"capacity by {SLICE_S:.0f} s: {', '.join(f'{c:.2f}' for c in capacities)}")
    broke = breaking_rate(phases)
    error = capacities[-1] / broke - 1
    yield {
        "name": f"capacity {AFTER_S / 60:.0f} min after prompts grew {LONGER}x, off by",
        "value": abs(error),
        "unit": f"of {broke:.2f}/s",
        "runs": [capacity / broke - 1 for capacity in capacities],
        "target": f"<= {WITHIN:.0%}",
        "ok": abs(error) <= WITHIN,
        "waited": max(waits),
    }
    by_minute = [
        [o for o in shifted if 60 * m <= o.arrived_s < 60 * (m + 1)]
        for m in range(int(AFTER_S / 60))
    ]
    latency = _over_slo(shifted)
    yield {
        "name": f"mean latency by its SLO in those minutes, {_over_slo(settled):.2f} before them",
        "value": latency,
        "unit": "of it",
        "runs": [_over_slo(minute) for minute in by_minute],
        "target": "<= 1",
        "ok": latency <= 1,
        "waited": max(waits),
    }
    share, was = _in_slo(shifted), _in_slo(settled)
    minutes = [_in_slo(minute) for minute in by_minute]
    yield {
        "name": f"in SLO in those minutes, {was:.0%} before them",
        "value": share,
        "unit": "of requests",
        "runs": minutes,
        "target": ">= 90%",
        "ok": share >= 0.9,
        "waited": max(waits),
    }


def _over_slo(outcomes: list[Outcome]) -> float:
    """Return the mean latency over the SLO, which bounds means: the worse of both kinds."""
    first = [o.ttft_s for o in outcomes if o.ttft_s is not None]
    each = [(o.itl_s, o.output_tokens) for o in outcomes if o.itl_s is not None]
    itl_s = sum(itl_s * tokens for itl_s, tokens in each) / sum(tokens for _, tokens in each)
    return max(sum(first) / len(first) / SLO.ttft_s, itl_s / SLO.itl_s)


def _in_slo(outcomes: list[Outcome]) -> float:
    return sum(o.in_slo(SLO.ttft_s, SLO.itl_s) for o in outcomes) / max(1, len(outcomes))


async def _driven(
    engine: Engine,
    fleet: Fleet,
    arrivals_per_s: float,
    prompt_tokens: float,
    span_s: float,
    seed: int,
) -> tuple[list[Outcome], list[float]]:
    """Send one replica's share of the arrivals, which changes with the fleet.

    Returns:
        What became of the requests, by when they came; and the capacity after each slice.
    """
    outcomes: list[Outcome] = []
    capacities: list[float] = []
    generator = np.random.default_rng(seed)
    loop = asyncio.get_running_loop()
    begin_s = loop.time()

    async def slice_of(number: int, rate_per_s: float) -> None:
        workload = Workload(
            schedule=((0.0, rate_per_s), (SLICE_S, rate_per_s)),
            prompt_tokens=prompt_tokens,
            output_tokens=OUTPUT_TOKENS,
            variation=VARIATION,
            most_tokens=LONGEST,
        )
        result = await Load(engine.url, MODEL, workload, generator).run()
        outcomes.extend(
            Outcome(
                arrived_s=number * SLICE_S + one.arrived_s,
                prompt_tokens=one.prompt_tokens,
                ttft_s=one.ttft_s,
                itl_s=one.itl_s,
                output_tokens=one.output_tokens,
                failure=one.failure,
            )
            for one in result.outcomes
        )

    async with asyncio.TaskGroup() as group:
        for number in range(round(span_s / SLICE_S)):
            group.create_task(slice_of(number, arrivals_per_s / fleet.ready))
            while loop.time() < begin_s + (number + 1) * SLICE_S:
                await fleet.follow()
                await asyncio.sleep(1)
            capacity = (await fleet.adapter.explain())["capacity"]
            capacities.append(capacity["per_s"])
            tell(
                f"{(number + 1) * SLICE_S:.0f} s: {fleet.ready} ready, {len(fleet.ordered)} on "
                f"their way, {capacity['per_s']:.2f}/s each, {capacity['bound']}"
            )
    return sorted(outcomes, key=lambda one: one.arrived_s), capacities

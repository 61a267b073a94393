"""The capacity that the adapter finds, against the load at which the SLO breaks."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

from tests.engine import Figure, tell
from tests.engine.adapter import Adapter
from tests.engine.engine import MODEL, Engine
from tests.engine.phases import Phase, run, undisturbed
from wva_adapter.core.service_rate import Slo

RUNS = 2
SLO = Slo()
PROMPT_TOKENS, OUTPUT_TOKENS = 200.0, 100.0
FIRST_PER_S, NEXT = 0.7, 1.2
LEVEL_S = 75.0
MOST_LEVELS = 8
LEAST, MOST = 0.85, 1.05


def load_of(phase: Phase) -> float:
    """Return how much of its SLO a phase takes: above 1 it breaks it."""
    return max(phase.itl_s / SLO.itl_s, phase.ttft_s / SLO.ttft_s)


def breaking_rate(phases: Sequence[Phase]) -> float:
    """Return the rate at which the SLO breaks: straight between the levels around it.

    Raises:
        ValueError: No level keeps it, or none breaks it.
    """
    points = sorted((phase.rate_per_s, load_of(phase)) for phase in phases)
    for (rate, load), (next_rate, next_load) in pairwise(points):
        if load <= 1 < next_load:
            return rate + (next_rate - rate) * (1 - load) / (next_load - load)
    raise ValueError(f"{points}, want a level that keeps the SLO below one that breaks it")


async def raised(
    engine: Engine, adapter: Adapter, *, prompt_tokens: float, first_per_s: float, seed: int
) -> tuple[float, list[tuple[float, float, str]]]:
    """Raise the load until the SLO breaks.

    Returns:
        The rate at which it broke; and after each level its rate, and the adapter's capacity with
        what bounds it.
    """
    phases: list[Phase] = []
    found: list[tuple[float, float, str]] = []
    rate = first_per_s
    for level in range(MOST_LEVELS):
        phase = await run(
            engine,
            rate,
            LEVEL_S,
            prompt_tokens=prompt_tokens,
            output_tokens=OUTPUT_TOKENS,
            seed=seed + level,
        )
        phases.append(phase)
        capacity = (await adapter.explain())["capacity"]
        found.append((phase.rate_per_s, capacity["per_s"], capacity["bound"]))
        tell(f"adapter: {capacity['per_s']:.2f}/s, {capacity['bound']}")
        if load_of(phase) > 1 and level:
            break
        rate *= NEXT
    return breaking_rate(phases), found


async def measure(engine: Engine) -> AsyncIterator[Figure]:
    """Raise the load, compare the capacity before it broke with where it did."""
    ratios, afterwards, waits = [], [], []
    for number in range(RUNS):
        with tempfile.TemporaryDirectory(prefix="wva-engine-") as name:
            adapter = Adapter(Path(name), policy={}, max_replicas=8, model=MODEL)
            adapter.deploy({"one": engine.url})
            async with undisturbed():
                before = engine.core_time()
                await adapter.start()
                try:
                    broke, found = await raised(
                        engine,
                        adapter,
                        prompt_tokens=PROMPT_TOKENS,
                        first_per_s=FIRST_PER_S,
                        seed=100 + 20 * number,
                    )
                finally:
                    adapter.stop()
                waits.append(engine.core_time().waited_since(before))
        kept = [capacity for rate, capacity, _ in found if rate < broke]
        ratios.append(kept[-1] / broke)
        afterwards.append(found[-1][1] / broke)
        tell(f"run {number + 1}: broke at {broke:.2f}/s, found {kept[-1]:.2f}/s before that")
    for when, runs in (("before the SLO broke", ratios), ("after it", afterwards)):
        value = median(runs)
        yield {
            "name": f"capacity found {when}, by the one measured",
            "value": value,
            "unit": "of it",
            "runs": runs,
            "target": f"{LEAST:g} to {MOST:g}",
            "ok": LEAST <= value <= MOST,
            "waited": max(waits),
        }

"""The capacity that the adapter finds, against the load at which the SLO breaks."""

from __future__ import annotations

import math
import tempfile
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

from tests.engine import Figure, tell
from tests.engine.adapter import Adapter
from tests.engine.engine import MODEL, Engine
from tests.engine.phases import Phase, Segment, run, undisturbed
from tests.engine.steps import measured, saturated_per_s, table_of
from wva_adapter.core.service_rate import Slo

RUNS = 2
SLO = Slo()
PROMPT_TOKENS, OUTPUT_TOKENS = 200.0, 100.0
FIRST_SHARE, NEXT = 0.4, 1.2
"""The first level, of the rate at which the batch would grow without end, and each by the one before."""

LEVELS, PASSES, LEVEL_S, SETTLE_S = 7, 2, 35.0, 10.0
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
    engine: Engine,
    *,
    prompt_tokens: float,
    saturated_per_s: float,
    seed: int,
    passes: int = PASSES,
) -> list[Phase]:
    """Return what each level of a load gave that was raised until the SLO broke, more than once.

    Between the times the queue is let go.
    """
    rates = [FIRST_SHARE * saturated_per_s * NEXT**level for level in range(LEVELS)]
    found: dict[float, list[Phase]] = {}
    for again in range(passes):
        for level, rate in enumerate(rates):
            seen = await run(
                engine,
                [Segment(rate, LEVEL_S)],
                prompt_tokens=prompt_tokens,
                output_tokens=OUTPUT_TOKENS,
                seed=seed + LEVELS * again + level,
            )
            (phase,) = seen.phases(SETTLE_S)
            found.setdefault(rate, []).append(phase)
            if load_of(phase) > 1.2:
                break
    levels = [joined(phases) for phases in found.values()]
    for phase in levels:
        tell(str(phase))
    return levels


def joined(phases: Sequence[Phase]) -> Phase:
    """Return what several times of one rate gave together."""
    spans = [math.fsum(one.span_s for one in phase.intervals) for phase in phases]
    return Phase(
        asked_per_s=phases[0].asked_per_s,
        intervals=[one for phase in phases for one in phase.intervals],
        ttft_sum_s=math.fsum(phase.ttft_sum_s for phase in phases),
        waited=math.fsum(p.waited * s for p, s in zip(phases, spans, strict=True)) / sum(spans),
    )


async def measure(engine: Engine) -> AsyncIterator[Figure]:
    """Raise the load, compare the capacity before it broke with where it did."""
    ratios, waits = [], []
    for number in range(RUNS):
        with tempfile.TemporaryDirectory(prefix="wva-engine-") as name:
            adapter = Adapter(Path(name), policy={}, max_replicas=8, model=MODEL)
            adapter.deploy({"one": engine.url})
            async with undisturbed():
                # A machine that others use is half as fast in some minutes.
                table = table_of(await measured(engine))
                await adapter.start()
                try:
                    phases = await raised(
                        engine,
                        prompt_tokens=PROMPT_TOKENS,
                        saturated_per_s=saturated_per_s(table, PROMPT_TOKENS, OUTPUT_TOKENS),
                        seed=100 + 20 * number,
                    )
                    capacity = (await adapter.explain())["capacity"]
                finally:
                    adapter.stop()
        broke = breaking_rate(phases)
        ratios.append(capacity["per_s"] / broke)
        waits += [phase.waited for phase in phases]
        tell(f"run {number + 1}: broke at {broke:.2f}/s; {capacity}")
    value = median(ratios)
    yield {
        "name": "capacity found, by the one measured",
        "value": value,
        "unit": "of it",
        "runs": ratios,
        "target": f"{LEAST:.0%} to {MOST:.0%}",
        "ok": LEAST <= value <= MOST,
        "waited": max(waits),
    }

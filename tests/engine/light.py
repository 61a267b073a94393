"""What times learned on light load say of twice the load."""

from __future__ import annotations

from collections.abc import AsyncIterator
from statistics import median

from tests.engine import Figure, tell
from tests.engine.engine import Engine
from tests.engine.phases import Phase, Segment, run, undisturbed
from wva_adapter.core.capacity import Fit, fresh_fit
from wva_adapter.core.priors import generic_prior
from wva_adapter.core.service_rate import expected_itl_s

RUNS = 3
LIGHT_PER_S = 0.6
PROMPT_TOKENS, OUTPUT_TOKENS = 200.0, 100.0
TURNS, TURN_S, SETTLE_S = 2, 35.0, 10.0
WITHIN = 0.15


async def measure(engine: Engine) -> AsyncIterator[Figure]:
    """Learn of light load, predict twice the load, compare; three times.

    The two take turns, so that an episode in which the machine is slower meets both.
    """
    errors, waits = [], []
    turns = [Segment(LIGHT_PER_S, TURN_S), Segment(2 * LIGHT_PER_S, TURN_S)] * TURNS
    async with undisturbed():
        runs = [
            await run(
                engine,
                turns,
                prompt_tokens=PROMPT_TOKENS,
                output_tokens=OUTPUT_TOKENS,
                seed=10 + number,
            )
            for number in range(RUNS)
        ]
    for number, seen in enumerate(runs, start=1):
        light, twice = seen.phases(SETTLE_S)
        fit = learned(light)
        expected_s = expected_itl_s(
            fit.times, twice.shape, twice.rate_per_s, context_tokens=fit.context_tokens
        )
        error = expected_s / twice.itl_s - 1
        tell(f"light {light}")
        tell(f"twice {twice}")
        tell(f"run {number}: {1000 * expected_s:.1f} ms predicted ({error:+.0%}); {fit.times}")
        errors.append(error)
        waits += [light.waited, twice.waited]
    value = median(abs(error) for error in errors)
    yield {
        "name": "inter-token time at twice the load, off by",
        "value": value,
        "unit": "of it",
        "runs": errors,
        "target": f"median <= {WITHIN:.0%}",
        "ok": value <= WITHIN,
        "waited": max(waits),
    }


def learned(phase: Phase) -> Fit:
    """Return the times that the adapter would have learned from a phase, beginning at its prior."""
    fit = fresh_fit(generic_prior("CPU", 1))
    for one in phase.intervals:
        fit = fit.learn([one])
    return fit

"""What times learned on light load say of twice the load."""

from __future__ import annotations

from collections.abc import AsyncIterator
from statistics import median

from tests.engine import Figure, tell
from tests.engine.engine import Engine
from tests.engine.phases import Phase, run, undisturbed, worst
from wva_adapter.core.capacity import Fit, fresh_fit
from wva_adapter.core.priors import generic_prior
from wva_adapter.core.service_rate import Shape, expected_itl_s

RUNS = 3
LIGHT_PER_S = 0.6
PROMPT_TOKENS, OUTPUT_TOKENS = 200.0, 100.0
LEARNED_FOR_S, MEASURED_FOR_S = 130.0, 85.0
WITHIN = 0.15


def learned(phase: Phase) -> Fit:
    """Return the times that the adapter would have learned from a phase, beginning at its prior."""
    fit = fresh_fit(generic_prior("CPU", 1))
    for one in phase.intervals():
        fit = fit.learn([one])
    return fit


def shape_of(phase: Phase) -> Shape:
    """Return the mean lengths of the requests of a phase."""
    whole = phase.whole
    return Shape(
        (whole.input_tokens or 0.0) / max(1.0, whole.started or 0.0),
        (whole.output_tokens or 0.0) / max(1.0, whole.finished or 0.0),
    )


async def measure(engine: Engine) -> AsyncIterator[Figure]:
    """Learn, double the load, compare; three times."""
    errors, waits = [], []
    for number in range(RUNS):
        async with undisturbed():
            light = await run(
                engine,
                LIGHT_PER_S,
                LEARNED_FOR_S,
                prompt_tokens=PROMPT_TOKENS,
                output_tokens=OUTPUT_TOKENS,
                seed=10 + number,
            )
            twice = await run(
                engine,
                2 * LIGHT_PER_S,
                MEASURED_FOR_S,
                prompt_tokens=PROMPT_TOKENS,
                output_tokens=OUTPUT_TOKENS,
                seed=20 + number,
            )
        fit = learned(light)
        expected_s = expected_itl_s(
            fit.times, shape_of(twice), twice.rate_per_s, context_tokens=fit.context_tokens
        )
        error = expected_s / twice.itl_s - 1
        tell(
            f"run {number + 1}: {1000 * expected_s:.1f} ms predicted, "
            f"{1000 * twice.itl_s:.1f} ms measured ({error:+.0%}); {fit.times}"
        )
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
        "waited": worst(waits),
    }

"""The same arrivals through the engine and through the simulator's replica with its fitted table."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.engine import Figure, tell
from tests.engine.curves import drawn
from tests.engine.engine import MAX_NUM_SEQS, Engine
from tests.engine.phases import Seen, Segment, run, undisturbed
from tests.engine.steps import measured, saturated_per_s, table_of
from tests.engine.table import document, step_s
from wva_adapter.emulator.load import Outcome
from wva_adapter.sim.hardware import Hardware
from wva_adapter.sim.replica import Replica
from wva_adapter.sim.request import Request

RUNS = 3
SPAN_S = 90.0
PROMPT_TOKENS, OUTPUT_TOKENS = 200.0, 100.0
LOADED = 0.7
"""The share of the rate at which the batch would grow without end."""

WITHIN = 0.15
EVERY_S = 1.0
OUT = Path(__file__).parent.parent.parent / "build"


class Twin(NamedTuple):
    """What the simulator says of a phase: means, and requests present by the seconds since."""

    ttft_s: float
    itl_s: float
    present: Sequence[float]


def simulated(hardware: Hardware, outcomes: Sequence[Outcome], times_s: Sequence[float]) -> Twin:
    """Return what the same requests at the same times give; means over all that finished.

    Args:
        times_s: When to count who is present, rising.
    """
    replica = Replica(hardware, max_num_seqs=MAX_NUM_SEQS)
    waiting = sorted(outcomes, key=lambda outcome: outcome.arrived_s)
    present: list[float] = []
    for at_s in times_s:
        while waiting and waiting[0].arrived_s <= at_s:
            _submit(replica, waiting.pop(0))
        replica.advance(at_s)
        present.append(replica.running + replica.queued)
    for outcome in waiting:
        _submit(replica, outcome)
    replica.advance(replica.now_s + 3600)
    did = replica.counters
    return Twin(did.ttft_sum_s / did.ttft_count, did.itl_sum_s / did.itl_count, present)


def _submit(replica: Replica, outcome: Outcome) -> None:
    request = Request(outcome.prompt_tokens, outcome.output_tokens)
    replica.submit(request, max(replica.now_s, outcome.arrived_s))


async def measure(engine: Engine) -> AsyncIterator[Figure]:
    """Measure steps, fit, send the same arrivals through both; three times."""
    ttft, itl, waits, told = [], [], [], []
    for number in range(RUNS):
        async with undisturbed():
            before = engine.core_time()
            steps = await measured(engine)
            rate = LOADED * saturated_per_s(table_of(steps), PROMPT_TOKENS, OUTPUT_TOKENS)
            seen = await run(
                engine,
                [Segment(rate, SPAN_S)],
                prompt_tokens=PROMPT_TOKENS,
                output_tokens=OUTPUT_TOKENS,
                seed=50 + number,
                every_s=EVERY_S,
            )
            # Once more: the machine may have been faster or slower while they were measured.
            steps += await measured(engine)
            waits.append(engine.core_time().waited_since(before))
        table = table_of(steps)
        one, curves = _compared(table, seen)
        told.append({**one, "rate_per_s": rate, "waited": waits[-1], "table": document(table)})
        told[-1]["table_error"] = float(
            np.mean([abs(step_s(table, step) / step.seconds - 1) for step in steps])
        )
        ttft.append(one["simulated_ttft_s"] / one["ttft_s"] - 1)
        itl.append(one["simulated_itl_s"] / one["itl_s"] - 1)
        tell(f"run {number + 1}: TTFT {ttft[-1]:+.0%}, ITL {itl[-1]:+.0%}; {one}")
        OUT.joinpath(f"engine-queue-{number + 1}.svg").write_text(curves)
    OUT.joinpath("engine-twin-runs.json").write_text(json.dumps(told, indent=1) + "\n")
    for name, runs in (("mean TTFT", ttft), ("mean inter-token time", itl)):
        value = float(np.median(np.abs(runs)))
        yield {
            "name": f"simulator's {name}, off by",
            "value": value,
            "unit": "of the engine's",
            "runs": runs,
            "target": f"median <= {WITHIN:.0%}",
            "ok": value <= WITHIN,
            "waited": max(waits),
        }


def _compared(table: Hardware, seen: Seen) -> tuple[dict[str, float], str]:
    answered = [outcome for outcome in seen.result.outcomes if outcome.failure is None]
    times_s = seen.at_s
    present = [(one.running_requests or 0.0) + (one.queued_requests or 0.0) for one in seen.pages]
    twin = simulated(table, answered, times_s)
    lasting = [one for one in answered if one.itl_s is not None and one.output_tokens > 1]
    gaps = sum(one.output_tokens - 1 for one in lasting)
    found = {
        "requests": float(len(answered)),
        "failed": float(seen.result.failed),
        # Over the same requests as the simulator's: those in flight at the end included.
        "ttft_s": float(np.mean([one.ttft_s for one in answered if one.ttft_s is not None])),
        "simulated_ttft_s": twin.ttft_s,
        "itl_s": sum((one.itl_s or 0.0) * (one.output_tokens - 1) for one in lasting) / gaps,
        "simulated_itl_s": twin.itl_s,
        "present": float(np.mean(present)),
        "simulated_present": float(np.mean(twin.present)),
        "present_correlation": float(np.corrcoef(present, twin.present)[0, 1]),
    }
    return found, drawn(times_s, {"engine": present, "simulator": twin.present})

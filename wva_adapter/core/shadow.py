"""What a variant would have cost had its counts been served."""

from __future__ import annotations

from dataclasses import replace

from wva_adapter.core.decision import Decision
from wva_adapter.core.memory import Bill

LONGEST_CYCLE_S = 60.0
"""Of a longer time between two decisions nobody knows what ran."""


def reckon(past: Bill | None, decision: Decision, at_s: float) -> Bill:
    """Return the bill up to now: both counts of the last decision, for as long as they held."""
    if past is None:
        return Bill(at_s, at_s, decision.desired, decision.current)
    hours = min(max(0.0, at_s - past.at_s), LONGEST_CYCLE_S) / 3600
    return replace(
        past,
        at_s=at_s,
        desired=decision.desired,
        ran=decision.current,
        would_usd=past.would_usd + hours * past.desired * decision.cost_per_h,
        ran_usd=past.ran_usd + hours * past.ran * decision.cost_per_h,
    )

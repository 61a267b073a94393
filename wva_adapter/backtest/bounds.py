"""Which way the counts of a policy are off, since the replicas that ran were not its own."""

from __future__ import annotations

from wva_adapter.sim.hindsight import RECORDED, Judged

_NEGLIGIBLE = 0.05
BOUNDS = {None: "", "at least": "≥ ", "at most": "≤ ", "either": "~ "}
"""The signs of what ``bound`` returns."""


def bound(judged: Judged) -> str | None:
    """Return which way counts are off, where a law follows what is in flight; ``None`` if not.

    The adapter's ``demand`` follows arrivals, which are the same with any replicas.
    """
    if judged.policy == RECORDED or judged.policy.startswith("demand"):
        return None
    little_s = _NEGLIGIBLE * (judged.enough_s + judged.short_s + judged.unknown_s)
    fewer, more = judged.fewer_s > little_s, judged.more_s > little_s
    if fewer and more:
        return "either"
    return "at least" if fewer else "at most" if more else None

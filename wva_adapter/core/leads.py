"""How long a replica takes from its order until it serves."""

from __future__ import annotations

import math
from collections.abc import Sequence

from wva_adapter.core.memory import VariantMemory
from wva_adapter.core.policy import Policy
from wva_adapter.core.snapshot import Phase, VariantState

_REMEMBERED = 20
_SHORTEST_S = 1.0


def remember_starts(past: VariantMemory, state: VariantState) -> tuple[tuple[float, float], ...]:
    """Return the starts with those of replicas that became ready since the latest of them."""
    latest = past.starts[-1][0] if past.starts else -math.inf
    found = sorted(
        (replica.ready_at_s, replica.ready_at_s - replica.created_at_s)
        for replica in state.ready
        if replica.ready_at_s is not None
        and replica.created_at_s is not None
        and replica.ready_at_s > latest
        # A pod that was ready as soon as it was created is a stand-in, or its clock is another.
        and replica.ready_at_s - replica.created_at_s >= _SHORTEST_S
    )
    return (*past.starts, *found)[-_REMEMBERED:]


def start_s(starts: Sequence[tuple[float, float]], policy: Policy) -> float:
    """Return how long nine of ten replicas take from creation to ready."""
    if not starts:
        return policy.assumed_start_s
    ordered = sorted(took_s for _, took_s in starts)
    return ordered[math.ceil(0.9 * len(ordered)) - 1]


def coming(state: VariantState, start: float, at_s: float) -> Sequence[tuple[float, float]]:
    """Return when each replica on its way is expected, and the share of it that still counts.

    A replica later than ``start`` fades out until it is twice as late: one that vanished at once
    would be ordered again at once.

    Returns:
        Seconds from now, at least 0, and a share from 0 to 1; one entry per replica on its way.
    """
    pods = sorted(
        replica.created_at_s or at_s
        for replica in state.replicas
        if replica.phase is Phase.STARTING
    )[: state.starting]
    expected = []
    for created_at_s in pods:
        age_s = max(0.0, at_s - created_at_s)
        share = 1.0 if age_s <= start else max(0.0, 2.0 - age_s / max(start, _SHORTEST_S))
        expected.append((max(0.0, start - age_s), share))
    # Those without a pod were asked for just now.
    expected += [(start, 1.0)] * (state.starting - len(pods))
    return expected

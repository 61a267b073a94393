"""How long a replica takes from its order until it serves."""

from __future__ import annotations

import math
from collections.abc import Sequence

from wva_adapter.core.memory import VariantMemory
from wva_adapter.core.policy import Policy
from wva_adapter.core.snapshot import Phase, ReplicaState, VariantState

_REMEMBERED = 20
_SHORTEST_S = 1.0


def remember_starts(past: VariantMemory, state: VariantState) -> tuple[tuple[float, float], ...]:
    """Return the starts with those of replicas that became ready since the latest of them."""
    latest = past.starts[-1][0] if past.starts else -math.inf
    for replica in state.ready:
        if replica.ready_at_s is not None and replica.ready_at_s > latest:
            break
    else:
        return past.starts
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


def why_blocked(replica: ReplicaState, start: float, at_s: float) -> str | None:
    """Return why a replica on its way is not expected any more; ``None`` where it still is.

    One that is gated waits for somebody else's permission. One that has no node after the time in
    which others serve will not get one soon.
    """
    if replica.phase is not Phase.STARTING or replica.unscheduled is None:
        return None
    if replica.gated:
        return f"pod {replica.name} is gated"
    since_s = replica.created_at_s
    if replica.unscheduled_since_s is not None:
        since_s = replica.unscheduled_since_s
    if since_s is None or at_s - since_s <= start:
        return None
    return (
        f"pod {replica.name} {replica.unscheduled} for {at_s - since_s:.0f} s, "
        f"others take {start:.0f} s to serve"
    )


def coming(
    state: VariantState, start: float, at_s: float, past: VariantMemory | None = None
) -> Sequence[tuple[float, float]]:
    """Return when each replica on its way is expected, and the share of it that still counts.

    A replica later than ``start`` fades out until it is twice as late: one that vanished at once
    would be ordered again at once. One that is blocked does not count.

    Args:
        start: How long replicas take.
        past: Since when pods that were asked for are not there, and whether they get no place;
            ``None`` where nothing is remembered.

    Returns:
        Seconds from now, at least 0, and a share from 0 to 1; one entry per replica on its way.
    """
    if not state.starting:
        return ()
    pods = sorted(
        (
            at_s if replica.created_at_s is None else replica.created_at_s,
            why_blocked(replica, start, at_s) is not None,
        )
        for replica in state.replicas
        if replica.phase is Phase.STARTING
    )[: state.starting]
    asked_at_s = at_s if past is None or past.missing_since_s is None else past.missing_since_s
    blocked_now = past is not None and past.setback is not None and past.setback.blocked > 0
    refused = state.refused is not None and (blocked_now or at_s - asked_at_s > start)
    pods += [(asked_at_s, refused)] * (state.starting - len(pods))
    expected = []
    for since_s, blocked in pods:
        age_s = max(0.0, at_s - since_s)
        share = 1.0 if age_s <= start else max(0.0, 2.0 - age_s / max(start, _SHORTEST_S))
        expected.append((max(0.0, start - age_s), 0.0 if blocked else share))
    return expected


def on_their_way(state: VariantState, past: VariantMemory, at_s: float, policy: Policy) -> float:
    """Return how many replicas on their way count, late ones in part."""
    start = start_s(past.starts, policy)
    return math.fsum(share for _, share in coming(state, start, at_s, past))

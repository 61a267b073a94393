"""How long a replica takes from its order until it serves."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from operator import itemgetter

from wva_adapter.core.change import replace
from wva_adapter.core.memory import ReplicaMemory, Start, VariantMemory
from wva_adapter.core.policy import Policy
from wva_adapter.core.snapshot import Phase, ReplicaState, StartKind, VariantState

_REMEMBERED = 20
_SHORTEST_S = 1.0

_LONGEST_S = 3600.0
"""Who became ready later than that after its creation had been ready before."""


def remember_starts(
    past: VariantMemory, state: VariantState, served: Mapping[str, ReplicaMemory]
) -> tuple[Start, ...]:
    """Return the starts with those of replicas that became ready since the latest of them.

    Kubernetes tells since when a pod is ready, not since when first: a probe that fails once makes
    it look as if the pod had just started, hours after its creation.

    Args:
        past: Those that were seen before, and who served before and was unready lately.
        state: The variant now.
        served: By name, what is remembered of replicas that served in the cycle before.
    """
    latest = past.starts[-1].at_s if past.starts else -math.inf
    for replica in state.ready:
        if replica.ready_at_s is not None and replica.ready_at_s > latest:
            break
    else:
        return past.starts
    found = [
        Start(
            replica.ready_at_s,
            replica.ready_at_s - replica.created_at_s,
            replica.start_kind(replica.ready_at_s),
        )
        for replica in state.ready
        if replica.ready_at_s is not None
        and replica.created_at_s is not None
        and replica.ready_at_s > latest
        # A pod that was ready as soon as it was created is a stand-in, or its clock is another.
        and _SHORTEST_S <= replica.ready_at_s - replica.created_at_s <= _LONGEST_S
        and not _served_before(replica, past, served)
    ]
    return (*past.starts, *sorted(found, key=itemgetter(0, 1)))[-_REMEMBERED:]


def remember_unready(
    past: VariantMemory, state: VariantState, served: Mapping[str, ReplicaMemory]
) -> tuple[str, ...]:
    """Return who served before, in the cycle before or earlier, and does not now but may again."""
    if len(state.ready) == len(state.replicas):
        return ()
    return tuple(
        replica.uid or replica.name
        for replica in state.replicas
        if replica.phase is Phase.STARTING and _served_before(replica, past, served)
    )


def _served_before(
    replica: ReplicaState, past: VariantMemory, served: Mapping[str, ReplicaMemory]
) -> bool:
    if (replica.uid or replica.name) in past.unready:
        return True
    if replica.name not in served:
        return False
    # In a StatefulSet another pod may have had the name.
    page, created_at_s = served[replica.name].page, replica.created_at_s
    return page is None or created_at_s is None or created_at_s <= page.at_s


def remember_wakes(past: VariantMemory, woke_s: Sequence[float]) -> VariantMemory:
    """Return the past with what engines that slept took to wake, in seconds."""
    return replace(past, wakes_s=(*past.wakes_s, *woke_s)[-_REMEMBERED:])


def start_s(starts: Sequence[Start], policy: Policy, kind: StartKind | None = None) -> float:
    """Return how long nine of ten replicas take from creation to ready.

    Args:
        starts: Those that were seen.
        policy: What is assumed before any was.
        kind: Only those of this kind count, where there are any; ``None`` counts all.
    """
    if not starts:
        return policy.assumed_start_s
    took_s = [start.took_s for start in starts]
    if kind is not None:
        took_s = [start.took_s for start in starts if start.kind == kind] or took_s
    return _most_take_s(took_s)


def starts_by_kind(past: VariantMemory) -> Mapping[str, tuple[int, float]]:
    """Return by what starts began with how many were seen, and within how many seconds nine of ten
    of them served; that of engines that slept is how long they took to wake.
    """
    took_s: dict[str, list[float]] = defaultdict(list)
    for start in past.starts:
        took_s[start.kind or "unknown"].append(start.took_s)
    if past.wakes_s:
        took_s["sleeping"] = [*past.wakes_s]
    return {kind: (len(each), _most_take_s(each)) for kind, each in sorted(took_s.items())}


def _most_take_s(took_s: Sequence[float]) -> float:
    return sorted(took_s)[math.ceil(0.9 * len(took_s)) - 1]


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
    state: VariantState, past: VariantMemory, at_s: float, policy: Policy
) -> Sequence[tuple[float, float]]:
    """Return when each replica on its way is expected, and the share of it that still counts.

    A replica later than others of its kind fades out until it is twice as late: one that vanished
    at once would be ordered again at once. One that is blocked does not count.

    Args:
        past: How long replicas took, since when pods that were asked for are not there, and whether
            they get no place.

    Returns:
        Seconds from now, at least 0, and a share from 0 to 1; one entry per replica on its way.
    """
    if not state.starting:
        return ()
    usual = start_s(past.starts, policy)
    pods = sorted(
        (
            at_s if replica.created_at_s is None else replica.created_at_s,
            why_blocked(replica, usual, at_s) is not None,
            start_s(past.starts, policy, replica.start_kind(at_s)),
        )
        for replica in state.replicas
        if replica.phase is Phase.STARTING
    )[: state.starting]
    asked_at_s = at_s if past.missing_since_s is None else past.missing_since_s
    blocked_now = past.setback is not None and past.setback.blocked > 0
    refused = state.refused is not None and (blocked_now or at_s - asked_at_s > usual)
    pods += [(asked_at_s, refused, usual)] * (state.starting - len(pods))
    expected = []
    for since_s, blocked, start in pods:
        age_s = max(0.0, at_s - since_s)
        share = 1.0 if age_s <= start else max(0.0, 2.0 - age_s / max(start, _SHORTEST_S))
        expected.append((max(0.0, start - age_s), 0.0 if blocked else share))
    return expected


def on_their_way(state: VariantState, past: VariantMemory, at_s: float, policy: Policy) -> float:
    """Return how many replicas on their way count, late ones in part."""
    return math.fsum(share for _, share in coming(state, past, at_s, policy))

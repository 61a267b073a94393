"""Whether more replicas of a variant would get a place, as the fate of its pods tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from wva_adapter.core.change import replace
from wva_adapter.core.inventory import ResourceQuota
from wva_adapter.core.leads import remember_starts, remember_unready, start_s, why_blocked
from wva_adapter.core.memory import ReplicaMemory, Setback, VariantMemory
from wva_adapter.core.policy import Policy
from wva_adapter.core.snapshot import Phase, VariantState

SHORTEST_WAIT_S = 60.0
"""For so long at least nothing is added to a variant whose pods got no place."""

LONGEST_WAIT_S = 3600.0
"""However often that happened, it is tried again after so long."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a variant has, and whether it may have more.

    Attributes:
        current: The count its scale target asks for.
        exists: Those of them that are there or will be: all but the ones without a place.
        asked: Those that exist, and what was published last beyond the target's count: who reads it
            has not looked since.
        infeasible: Why nothing is added; ``None`` where it may be.
    """

    current: int
    exists: int
    asked: int
    infeasible: str | None


def notice(
    past: VariantMemory,
    state: VariantState,
    at_s: float,
    policy: Policy,
    quotas: Sequence[ResourceQuota] = (),
    served: Mapping[str, ReplicaMemory] = MappingProxyType({}),
) -> VariantMemory:
    """Return the past with how pods of this cycle started, and whether they got a place.

    Pods that are gated or refused by a quota that is used up, and pods without a node or refused
    for longer than the others take to serve, set a variant back: for a while that doubles with
    each further try. The first replica that serves ends it.

    Args:
        quotas: What ResourceQuota objects bound, as far as they could be read.
        served: By name, what is remembered of replicas that served in the cycle before.
    """
    starts = remember_starts(past, state, served)
    unready = remember_unready(past, state, served)
    if starts != past.starts or unready != past.unready:
        past = replace(past, starts=starts, unready=unready)
    if state.spec_replicas is None:
        return past
    missing = state.missing
    if (
        not missing
        and past.missing_since_s is None
        and past.setback is None
        and len(state.ready) == len(state.replicas)
    ):
        return past
    since_s = None
    if missing:
        since_s = at_s if past.missing_since_s is None else past.missing_since_s
    start = start_s(past.starts, policy)
    reasons = [
        why for replica in state.replicas if (why := why_blocked(replica, start, at_s)) is not None
    ]
    blocked = len(reasons)
    if state.refused is not None and since_s is not None:
        # What a pod that terminates holds of a quota comes back in a moment.
        ending = any(replica.phase is Phase.TERMINATING for replica in state.replicas)
        full = not ending and any(q.left < q.uses(state.variant) for q in quotas)
        if full or at_s - since_s > start:
            blocked += missing
            reasons.append(f"{missing} pods refused for {at_s - since_s:.0f} s: {state.refused}")
    return replace(
        past,
        missing_since_s=since_s,
        setback=_setback(past.setback, state, blocked, reasons, start, at_s),
    )


def standing(past: VariantMemory, state: VariantState, at_s: float) -> Standing:
    """Return what a variant has, whose count is known, and whether it may have more."""
    current, setback = state.spec_replicas or 0, past.setback
    exists = current if setback is None else max(0, current - setback.blocked)
    published = past.published.entries[-1][1] if past.published.entries else current
    return Standing(
        current,
        exists,
        exists + max(0, int(published) - current),
        None if setback is None else setback.infeasible(at_s),
    )


def _setback(
    past: Setback | None,
    state: VariantState,
    blocked: int,
    reasons: list[str],
    start: float,
    at_s: float,
) -> Setback | None:
    if past is not None and any((r.ready_at_s or 0.0) > past.at_s for r in state.ready):
        past = None
    if not blocked:
        return None if past is None else replace(past, blocked=0)
    why = reasons[0] if len(reasons) == 1 else f"{reasons[0]}, and {len(reasons) - 1} more"
    if past is None:
        return Setback(at_s, max(start, SHORTEST_WAIT_S), blocked, why)
    if past.infeasible(at_s) is None:
        return Setback(at_s, min(2 * past.wait_s, LONGEST_WAIT_S), blocked, why)
    return replace(past, blocked=blocked, why=why)

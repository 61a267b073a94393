"""Whether a model may go without any replica, and when it has to come back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wva_adapter.core.change import replace
from wva_adapter.core.fleet import VariantKey
from wva_adapter.core.leads import on_their_way
from wva_adapter.core.memory import UNSEEN_VARIANT, Quiet, VariantMemory
from wva_adapter.core.pages import Pages
from wva_adapter.core.policy import Policy
from wva_adapter.core.saturation import blind_reason
from wva_adapter.core.snapshot import GatewayState, VariantState


@dataclass(frozen=True, slots=True)
class Rest:
    """What is known of a model's rest.

    Attributes:
        wakes: Why one replica has to come, where there is none; ``None`` where none has to.
        waking: Whether that one is on its way.
        sleeps: Whether all replicas may go, or stay away.
        why: Why they may, or may not.
        complete: Whether the counts of all its variants are known.
    """

    wakes: str | None
    waking: bool
    sleeps: bool
    why: str
    complete: bool


def rest(
    past: Quiet,
    states: Sequence[VariantState],
    variants: Mapping[VariantKey, VariantMemory],
    pages: Pages,
    gateway: GatewayState | None,
    at_s: float,
    policy: Policy,
) -> tuple[Rest, Quiet]:
    """Return what is known of one model's rest, and what to remember of it.

    Args:
        past: What this returned for the model the last time.
        states: Its variants, at least one.
        variants: Their past.
        pages: What their pages say.
        gateway: What the gateway in front of it reports; ``None`` where there is none.
        at_s: Unix time now.
        policy: Whether it may sleep, and after how long.
    """
    fresh = gateway is not None and at_s - gateway.at_s <= policy.stale_after_s
    held = gateway.queued_requests if fresh and gateway is not None else None
    quiet, unproven = _listen(past, states, pages, gateway if fresh else None, at_s, policy)
    if held:
        unproven = f"{held:g} requests wait in the gateway"
        quiet = replace(quiet, since_s=None, asked_at_s=at_s)
    complete = all(state.spec_replicas is not None for state in states)
    serving = any(state.ready for state in states)
    empty = not serving and not any(state.spec_replicas for state in states)
    wakes = None
    if empty and held:
        wakes = f"{held:g} requests wait in the gateway and there is no replica"
    elif empty and quiet.asked_at_s is not None and at_s - quiet.asked_at_s < policy.retention_s:
        wakes = f"a request came {at_s - quiet.asked_at_s:.0f} s ago and there is no replica"
    waking = (past.woken and not serving and not empty) and any(
        on_their_way(state, variants.get(state.variant.key, UNSEEN_VARIANT), at_s, policy) > 0
        for state in states
    )
    sleeps, why = _may_sleep(quiet, empty and wakes is None, unproven, complete, at_s, policy)
    woken = wakes is not None or waking
    return Rest(wakes, waking, sleeps, why, complete), replace(quiet, woken=woken)


def _may_sleep(
    quiet: Quiet, empty: bool, unproven: str | None, complete: bool, at_s: float, policy: Policy
) -> tuple[bool, str]:
    if not policy.scale_to_zero:
        return False, "scale_to_zero is off"
    if not complete:
        return False, "the count of one of its variants is unknown"
    if empty:
        return True, "nobody asks for it" if unproven is None else f"asleep, and {unproven}"
    if unproven is not None:
        return False, unproven
    if quiet.since_s is None:
        return False, "no counter says yet that nobody asks"
    still_s = at_s - quiet.since_s
    if still_s < policy.retention_s:
        return False, (f"no request for {still_s:.0f} s, retention is {policy.retention_s:g} s")
    return True, f"no request for {still_s:.0f} s, retention is {policy.retention_s:g} s"


def _listen(
    past: Quiet,
    states: Sequence[VariantState],
    pages: Pages,
    gateway: GatewayState | None,
    at_s: float,
    policy: Policy,
) -> tuple[Quiet, str | None]:
    """Return for how long nobody asked, and why that is not known now; ``None`` where it is.

    A counter that did not grow over a gap in which nobody looked proves the gap as well.
    """
    if gateway is None:
        return past, "no gateway says that nothing waits"
    total, before = gateway.arrivals_total, past.arrivals_total
    quiet = replace(past, arrivals_total=before if total is None else total)
    if total is not None and before is not None and total != before:
        # One that fell was restarted: what came before that is not known.
        asked_at_s = at_s if total > before else past.asked_at_s
        quiet = replace(quiet, since_s=None, asked_at_s=asked_at_s)
        if total > before:
            return quiet, f"{total - before:g} requests came since the last look"
    if gateway.queued_requests is None:
        return quiet, "the gateway's queue is unknown"
    for state in states:
        for replica in state.ready:
            unseen = blind_reason(replica, at_s, policy)
            if unseen is not None:
                return quiet, f"replica {replica.name} unseen: {unseen}"
            page = replica.sample
            if page is None or (page.running_requests is None and not page.unused):
                return quiet, f"replica {replica.name} does not say what it runs"
            if page.running_requests or page.queued_requests or page.deferred_requests:
                return replace(quiet, since_s=None, asked_at_s=at_s), (
                    f"replica {replica.name} has requests"
                )
            came = pages.of(state, replica).arrivals_per_s
            if total is None and came != 0:
                asked_at_s = at_s if came else quiet.asked_at_s
                return replace(quiet, since_s=None, asked_at_s=asked_at_s), (
                    f"replica {replica.name} "
                    + ("got requests" if came else "did not say yet what came")
                )
    return replace(quiet, since_s=at_s if quiet.since_s is None else quiet.since_s), None

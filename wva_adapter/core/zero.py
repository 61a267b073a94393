"""Whether a model may go without any replica, and when it has to come back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from wva_adapter.core.change import replace
from wva_adapter.core.fleet import LoadKey, VariantKey
from wva_adapter.core.leads import on_their_way
from wva_adapter.core.memory import UNSEEN_VARIANT, Quiet, VariantMemory
from wva_adapter.core.pages import Pages
from wva_adapter.core.policy import Policy
from wva_adapter.core.saturation import blind_reason
from wva_adapter.core.snapshot import GatewayState, Phase, VariantState


@dataclass(frozen=True, slots=True)
class Rest:
    """What is known of a model's rest, and what follows for one of its roles.

    Attributes:
        wakes: Why one replica of the role has to come, where there is none; ``None`` where none
            has to.
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


def rests(
    past: Quiet,
    roles: Mapping[LoadKey, Sequence[VariantState]],
    variants: Mapping[VariantKey, VariantMemory],
    pages: Pages,
    gateway: GatewayState | None,
    at_s: float,
    policy: Policy,
) -> tuple[Mapping[LoadKey, Rest], Quiet]:
    """Return what is known of one model's rest, by load, and what to remember of it.

    Where some replicas prefill and others decode, neither serves anybody alone: what is asked of
    one wakes both, and they sleep when neither has work.

    Args:
        past: What this returned for the model the last time.
        roles: By load, the variants of the model that share it, at least one.
        variants: Their past.
        pages: What their pages say.
        gateway: What the gateway in front of it reports; ``None`` where there is none.
        at_s: Unix time now.
        policy: Whether it may sleep, and after how long.
    """
    fresh = gateway is not None and at_s - gateway.at_s <= policy.stale_after_s
    held = gateway.queued_requests if fresh and gateway is not None else None
    states = tuple(chain.from_iterable(roles.values()))
    quiet, unproven = _listen(past, states, pages, gateway if fresh else None, at_s, policy)
    if held:
        unproven = f"{held:g} requests wait in the gateway"
        quiet = replace(quiet, since_s=None, asked_at_s=at_s)
    # Where somebody is known to have asked anyway, nobody needs to look for more.
    unanswered = None if quiet.since_s is None else _unanswered(states)
    if unanswered is not None:
        unproven = unanswered
        # No request that came: this one has its replica, and wakes no other.
        quiet = replace(quiet, since_s=None)
    complete = all(state.spec_replicas is not None for state in states)
    asked = None
    if held:
        asked = f"{held:g} requests wait in the gateway"
    elif quiet.asked_at_s is not None and at_s - quiet.asked_at_s < policy.retention_s:
        asked = f"a request came {at_s - quiet.asked_at_s:.0f} s ago"
    wakes = {
        key: f"{asked} and there is no {'' if key.role == 'both' else f'{key.role} '}replica"
        if asked is not None and _is_empty(members)
        else None
        for key, members in roles.items()
    }
    waking = {
        key: past.woken and _is_coming(members, variants, at_s, policy)
        for key, members in roles.items()
    }
    empty = all(_is_empty(members) for members in roles.values())
    stays = _one_sided(roles)
    sleeps, why = _may_sleep(quiet, empty and asked is None, unproven, complete, at_s, policy)
    if sleeps and stays is not None:
        sleeps, why = False, stays
    woken = any(waking.values()) or any(why is not None for why in wakes.values())
    found = {key: Rest(wakes[key], waking[key], sleeps, why, complete) for key in roles}
    return found, replace(quiet, woken=woken)


def _unanswered(states: Sequence[VariantState]) -> str | None:
    """Return which replica has requests that its page may not show, in words; ``None`` if none has.

    One that terminates answers those that it has whether others stay or not.
    """
    for state in states:
        for replica in state.replicas:
            if replica.in_flight_requests and replica.phase is not Phase.TERMINATING:
                count = replica.in_flight_requests
                return f"{count:g} requests are in flight at replica {replica.name}"
    return None


def _is_empty(states: Sequence[VariantState]) -> bool:
    return not any(state.ready or state.spec_replicas for state in states)


def _is_coming(
    states: Sequence[VariantState],
    variants: Mapping[VariantKey, VariantMemory],
    at_s: float,
    policy: Policy,
) -> bool:
    """Return whether none serves yet, and one is on its way."""
    return not any(state.ready for state in states) and any(
        on_their_way(state, variants.get(state.variant.key, UNSEEN_VARIANT), at_s, policy) > 0
        for state in states
    )


def _one_sided(roles: Mapping[LoadKey, Sequence[VariantState]]) -> str | None:
    """Return why no role may go without replicas: the minimum of another would stay alone."""
    kept = {
        key.role: sum(state.variant.min_replicas for state in members)
        for key, members in roles.items()
    }
    staying = [role for role, least in kept.items() if least]
    if not staying or len(staying) == len(kept):
        return None
    return f"min_replicas keeps {kept[staying[0]]} of role {staying[0]}, useless alone"


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

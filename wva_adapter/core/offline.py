"""Which requests nobody waits for, and how many of them are not done."""

from __future__ import annotations

from collections.abc import Sequence

from wva_adapter.core.change import replace
from wva_adapter.core.owed import Owed
from wva_adapter.core.pages import Pages
from wva_adapter.core.policy import Policy
from wva_adapter.core.service_rate import Slo
from wva_adapter.core.snapshot import GatewayState, VariantState

NO_SLO = Slo(1e6, 1e6)
"""Latency that no request reaches: what a replica serves is bounded by its batch and its memory."""


def online(gateway: GatewayState | None) -> GatewayState | None:
    """Return what a gateway says of requests that somebody waits for."""
    if gateway is None:
        return None
    offline = gateway.offline_queued_requests
    if offline is None and gateway.offline_arrivals_total is None:
        return gateway
    queued, size = gateway.queued_requests, gateway.queued_bytes
    waiting = _less(queued, offline)
    if size is not None and queued and waiting is not None:
        # Sizes are not told apart.
        size *= waiting / queued
    return replace(
        gateway,
        queued_requests=waiting,
        queued_bytes=size,
        arrivals_total=_less(gateway.arrivals_total, gateway.offline_arrivals_total),
        offline_queued_requests=None,
        offline_arrivals_total=None,
    )


def _less(all_of_them: float | None, offline: float | None) -> float | None:
    if all_of_them is None or offline is None:
        return all_of_them
    return max(0.0, all_of_them - offline)


def owed_now(
    past: Owed | None,
    states: Sequence[VariantState],
    pages: Pages,
    gateway: GatewayState | None,
    arrivals: float | None,
    at_s: float,
    policy: Policy,
) -> Owed | None:
    """Return what is owed to a model's offline requests; ``None`` where there never were any.

    Of a model that is offline as a whole these are all that wait and run; of another one those
    that its gateway holds back at a negative priority.

    Args:
        past: What this returned the last time.
        states: The variants of the model.
        pages: What their pages say.
        gateway: What the gateway in front of them reports.
        arrivals: Requests that came since the last time; ``None`` where nothing tells.
        at_s: Unix time now.
        policy: Of which class the model is, and how long its requests have.
    """
    known = past or Owed()
    if policy.request_class == "offline":
        waiting: float | None = _present(states, pages, gateway)
        came, total = arrivals or 0.0, None
    else:
        waiting = None if gateway is None else gateway.offline_queued_requests
        total = None if gateway is None else gateway.offline_arrivals_total
        before = known.arrivals_total
        came = 0.0 if total is None or before is None else max(0.0, total - before)
    after = replace(known.after(at_s, waiting, came, policy.deadline_s), arrivals_total=total)
    return None if past is None and after == Owed() else after


def _present(states: Sequence[VariantState], pages: Pages, gateway: GatewayState | None) -> float:
    total = 0.0 if gateway is None else gateway.queued_requests or 0.0
    for state in states:
        for memory in pages.replicas[state.variant.key].values():
            if memory.page is not None:
                total += memory.page.queued_requests or 0.0
                total += memory.page.running_requests or 0.0
    return total

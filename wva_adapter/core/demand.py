"""Requests per second that may come before help is there, against what replicas serve within the SLO."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import median

from wva_adapter.core.capacity import Fit, Times, fresh_fit
from wva_adapter.core.change import replace
from wva_adapter.core.fleet import Role, Variant, VariantKey
from wva_adapter.core.forecast import Forecast, forecast
from wva_adapter.core.interval import Interval, unusable
from wva_adapter.core.leads import coming, start_s
from wva_adapter.core.load import ModelLoad, figure
from wva_adapter.core.memory import UNSEEN_VARIANT, Memory, ModelMemory, VariantMemory
from wva_adapter.core.offline import NO_SLO, online, owed_now
from wva_adapter.core.pages import Pages, is_stuck
from wva_adapter.core.parts import (
    against_one,
    in_prompt_tokens,
    learn,
    part_rate,
    prompt_tokens,
    slo_of,
)
from wva_adapter.core.policy import Policy
from wva_adapter.core.priors import generic_prior, scaled_prior
from wva_adapter.core.saturation import blind_reason
from wva_adapter.core.service_rate import ServiceRate, Shape, Slo
from wva_adapter.core.snapshot import GatewayState, VariantState
from wva_adapter.core.strain import strained

PATIENCE_S = 100.0
"""Who has waited for so long gives up, so no backlog is longer than what arrives in it."""

REMOVAL_MARGIN = 1.05
"""After a removal the fleet carries so many times the largest demand of the window."""

SHORTEST_LEAD_S = 1.0
"""No replica is there the moment it is asked for, whatever is assumed."""

_CHANCE_DEVIATIONS = 2.0
"""Standard deviations of a Poisson number that surprise nobody."""

_GUESSED_BELOW = 60.0
"""With fewer whole samples, five minutes of one replica, its speed is a guess more than learned."""

_SHORTEST_CYCLE_S = 4.0
"""Cycles that an onset brought forward are too short to count arrivals in."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What replicas of one model did and hold now.

    Attributes:
        arrivals: Requests since the arrivals were counted last; ``None`` where nothing tells.
        span_s: How long that is.
        waiting: Requests in the queues of engines and gateway.
        stuck: Replicas in which requests wait and nothing moves.
        asleep: Replicas whose engine sleeps.
        sent: Requests in flight at replicas whose own pages say nothing now, as gateways tell.
    """

    arrivals: float | None
    span_s: float
    waiting: float
    stuck: frozenset[tuple[VariantKey, str]]
    asleep: frozenset[tuple[VariantKey, str]]
    sent: Mapping[tuple[VariantKey, str], float]


def analyze_demand(
    states: Sequence[VariantState],
    pages: Pages,
    gateway: GatewayState | None,
    at_s: float,
    policy: Policy,
    memory: Memory,
    past: ModelMemory,
    *,
    part: Role = "both",
    before: Sequence[VariantState] = (),
) -> tuple[ModelLoad, ModelMemory, Mapping[VariantKey, VariantMemory]]:
    """Return the load of one model, in requests per second, and what it taught.

    Args:
        states: The variants of one model, at least one.
        pages: What their pages say, and said.
        gateway: What the gateway in front of them reports; ``None`` where there is none.
        at_s: Unix time now.
        policy: SLO, service level, windows.
        memory: The past of variants.
        past: The past of the model.
        part: What these variants do for a request.
        before: Variants that requests pass before they come to these.
    """
    offline = policy.request_class == "offline"
    whole, gateway = gateway, online(gateway)
    seen = _look(states, pages, gateway, past, at_s, policy, before)
    owed = owed_now(past.owed, states, pages, whole, seen.arrivals, at_s, policy)
    if offline:
        # Who waits is what is owed, and is owed no place in a queue.
        seen = replace(seen, waiting=0.0)
    learned = (
        replace(past, owed=owed)
        if seen.arrivals is None
        else replace(past, owed=owed, arrivals=past.arrivals.add(at_s, seen.arrivals, seen.span_s))
    )
    news = [done for state in states for done in pages.news[state.variant.key].values()]
    # A report whose arrivals were not counted yet is counted from with the next one.
    counted = seen.arrivals is not None or past.gateway is None or gateway is None
    learned = replace(
        learned, gateway=gateway if counted else past.gateway, shape=past.shape.learn(news)
    )
    usable = {state.variant.key: _usable(state, pages, memory) for state in states}
    variants = _learn(states, pages, usable, memory, part)
    slo = NO_SLO if offline else slo_of(part, Slo(policy.slo_ttft_s, policy.slo_itl_s))
    rates = {
        state.variant.key: _rate(state, variants[state.variant.key], learned.shape, slo, part)
        for state in states
    }
    less = past.strain.at(at_s)
    capacity = {key: (1 - less) * rate.rate_per_s for key, rate in rates.items()}
    level = policy.level
    utilization = level.utilization
    cheapest = min(
        states, key=lambda s: (s.variant.cost_per_h / capacity[s.variant.key], s.variant.key)
    ).variant.key
    lead_s = max(SHORTEST_LEAD_S, start_s(variants[cheapest].starts, policy) + policy.hpa_sync_s)
    expected = forecast(learned.arrivals, at_s, lead_s=lead_s, attainment=level.attainment)
    ready, on_their_way = _supply(states, variants, capacity, seen, at_s, policy)
    present = ready + sum(rate * share for _, rate, share in on_their_way)
    replicas = sum(state.spec_replicas or 0 for state in states)
    base = expected.base(
        level.spare_replicas * capacity[cheapest] * utilization.of(replicas), level.familiar_leads
    )
    arriving = max(expected.level_per_s, expected.rate_per_s)
    owed_per_s = 0.0 if owed is None else owed.rate_per_s(at_s, policy.deadline_s, lead_s)
    # What is owed goes where nobody may come after all, into half of that room: what was sent
    # cannot be taken back when somebody does.
    room = max(0.0, base - expected.rate_per_s)
    base = owed_per_s if offline else max(base, base - room / 2 + owed_per_s)
    crowd = backlog = 0.0
    if not offline:
        crowd = _crowd(states, pages, rates, seen)
        backlog = _carried(seen.waiting + crowd, arriving, ready, on_their_way, lead_s)
    need = base + backlog / level.drain_s
    supply = present * utilization.of(replicas)
    held = _held(seen.waiting, crowd, bool(on_their_way))
    if held:
        # What is on its way is credited for the backlog: taken literally, that would cancel it.
        need = max(need, supply)
    ratio = strained(
        chain.from_iterable(usable.values()),
        slo.ttft_s,
        slo.itl_s,
    )
    fits = seen.waiting < 1 and need <= ready * utilization.of(replicas)
    learned = replace(learned, strain=past.strain.after(at_s, ratio, fits=fits))
    known = learned.arrivals.at_s is not None
    load = ModelLoad(
        namespace=states[0].variant.key.namespace,
        model_id=states[0].variant.model_id,
        role=states[0].variant.role,
        analysis="demand",
        unit="req/s",
        demand=expected.rate_per_s if known else None,
        need=need if known else supply,
        keep=REMOVAL_MARGIN * base + expected.sigma_per_s if known else supply,
        present=present,
        replicas=replicas,
        capacity=capacity,
        window_s=policy.window_s(expected.confidence),
        utilization=utilization,
        binding="",
        whole_fleet=True,
        forecast=expected,
        bounds={key: rate.binding for key, rate in rates.items()},
    )
    unit = 1.0
    if part == "prefill":
        unit = prompt_tokens(learned.shape)
        load = in_prompt_tokens(load, unit)
    load = replace(
        load,
        binding=_binding(base * unit, backlog, level.drain_s, load, held, less),
        notes=(
            *_notes(expected, load, {k: r.rate_per_s * unit for k, r in rates.items()}, seen),
            *([owed.words(at_s, owed_per_s)] if owed is not None and owed.dues else ()),
        ),
    )
    return load, learned, variants


def contradictions(learned: Mapping[VariantKey, VariantMemory]) -> str:
    """Return of which variants no times explain what was seen, in words; empty where of none."""
    found = [
        f"{key.name} answers {memory.fit.relative_error:.0%} off what its learned times say"
        for key, memory in sorted(learned.items())
        if memory.fit is not None and memory.fit.contradictory
    ]
    return "; ".join(found)


def _look(
    states: Sequence[VariantState],
    pages: Pages,
    gateway: GatewayState | None,
    past: ModelMemory,
    at_s: float,
    policy: Policy,
    before: Sequence[VariantState],
) -> Seen:
    waiting = 0.0
    rate: float | None = None
    stuck, asleep = set(), set()
    for state in states:
        for name, memory in pages.replicas[state.variant.key].items():
            page, came = memory.page, memory.arrivals_per_s
            if page is not None and page.awake is False:
                asleep.add((state.variant.key, name))
            if is_stuck(memory):
                stuck.add((state.variant.key, name))
            elif page is not None:
                waiting += page.queued_requests or 0.0
            if came is not None:
                rate = (rate or 0.0) + came
    if before and rate is not None:
        # What they cannot do in time is not less asked for.
        passing = (m.arrivals_per_s for s in before for m in pages.replicas[s.variant.key].values())
        rate = max(rate, math.fsum(each or 0.0 for each in passing))
    since_s = past.arrivals.at_s
    # The first cycle that sees arrivals counts those of the interval between its pages.
    span_s = _SHORTEST_CYCLE_S if since_s is None else at_s - since_s
    fresh = any(pages.news[state.variant.key] for state in states)
    arrivals = rate * span_s if rate is not None and fresh else None
    sent: Mapping[tuple[VariantKey, str], float] = {}
    if gateway is not None:
        sent = _sent(states, at_s, policy)
        waiting += gateway.queued_requests or 0.0
        arrivals, span_s = _through(gateway, past.gateway, arrivals, span_s)
    if span_s < _SHORTEST_CYCLE_S:
        arrivals = None
    return Seen(arrivals, span_s, waiting, frozenset(stuck), frozenset(asleep), sent)


def _sent(
    states: Sequence[VariantState], at_s: float, policy: Policy
) -> Mapping[tuple[VariantKey, str], float]:
    """Return what gateways tell of unseen replicas, which is newer than these ones' pages."""
    return {
        (state.variant.key, replica.name): replica.in_flight_requests
        for state in states
        for replica in state.ready
        if replica.in_flight_requests and blind_reason(replica, at_s, policy) is not None
    }


def _through(
    now: GatewayState, before: GatewayState | None, arrivals: float | None, span_s: float
) -> tuple[float | None, float]:
    """Return the arrivals that a gateway counted; those of the replicas where it does not."""
    if now.arrivals_total is None or before is None or before.arrivals_total is None:
        # What it holds back has reached no replica yet.
        held = (
            0.0
            if before is None
            else (now.queued_requests or 0.0) - (before.queued_requests or 0.0)
        )
        return None if arrivals is None else max(0.0, arrivals + held), span_s
    grown = now.arrivals_total - before.arrivals_total
    if grown < 0 or now.at_s <= before.at_s:
        return (None, span_s) if grown >= 0 else (arrivals, span_s)
    return grown, now.at_s - before.at_s


def _usable(state: VariantState, pages: Pages, memory: Memory) -> list[Interval]:
    """Return what a variant's new pages say of its speed.

    A queue that others left says less than an own one, but more than a guess: replicas of a fleet
    that is short from its first minute never have another, and it would stay short.
    """
    key = state.variant.key
    fit = memory.variants.get(key, UNSEEN_VARIANT).fit
    guessed = fit is None or fit.weight < _GUESSED_BELOW
    news, past = pages.news[key], pages.replicas[key]
    return [
        done
        for replica in state.ready
        if (done := news.get(replica.name)) is not None
        and unusable(done, replica, caught_up=guessed or past[replica.name].caught_up) is None
    ]


def _learn(
    states: Sequence[VariantState],
    pages: Pages,
    usable: Mapping[VariantKey, Sequence[Interval]],
    memory: Memory,
    part: Role,
) -> Mapping[VariantKey, VariantMemory]:
    """Return what is remembered of the variants, with what their new pages teach."""
    learned: dict[VariantKey, VariantMemory] = {}
    for state in states:
        key = state.variant.key
        past = memory.variants.get(key, UNSEEN_VARIANT)
        fit = past.fit
        if fit is None or (fit.samples == 0 and not usable[key]):
            fit = fresh_fit(_prior(state, states, memory))
        sizes = [
            page.kv_cache_tokens
            for remembered in pages.replicas[key].values()
            if (page := remembered.page) and page.kv_cache_tokens
        ]
        learned[key] = replace(
            past,
            fit=learn(part, fit, usable[key]),
            kv_cache_tokens=median(sizes) if sizes else past.kv_cache_tokens,
        )
    return learned


def _prior(state: VariantState, states: Sequence[VariantState], memory: Memory) -> Times:
    """Return what to believe of a variant's speed before anything was seen of it."""
    variant = state.variant
    best: tuple[Fit, Variant] | None = None
    for other in states:
        fit = memory.variants.get(other.variant.key, UNSEEN_VARIANT).fit
        if fit is not None and fit.samples > (0 if best is None else best[0].samples):
            best = fit, other.variant
    if best is not None:
        fit, sibling = best
        return scaled_prior(
            fit.times,
            sibling.accelerator,
            variant.accelerator,
            from_devices=sibling.accelerators_per_replica,
            to_devices=variant.accelerators_per_replica,
        )
    return generic_prior(variant.accelerator, variant.accelerators_per_replica).scaled(
        memory.prior_scale
    )


def _rate(
    state: VariantState, memory: VariantMemory, shape: Shape, slo: Slo, part: Role
) -> ServiceRate:
    fit = memory.fit
    assert fit is not None  # every variant that was looked at has one
    places = state.variant.max_num_seqs
    if places is None and fit.full_batch is not None:
        places = round(fit.full_batch)
    return part_rate(
        part, fit, shape, slo, max_num_seqs=places, kv_cache_tokens=memory.kv_cache_tokens
    )


def _supply(
    states: Sequence[VariantState],
    variants: Mapping[VariantKey, VariantMemory],
    capacity: Mapping[VariantKey, float],
    seen: Seen,
    at_s: float,
    policy: Policy,
) -> tuple[float, Sequence[tuple[float, float, float]]]:
    """Return what ready replicas can serve, and of each on its way: when, how much, what counts."""
    ready = 0.0
    later: list[tuple[float, float, float]] = []
    for state in states:
        key = state.variant.key
        idle = seen.stuck | seen.asleep
        serving = sum((key, r.name) not in idle for r in state.ready) if idle else len(state.ready)
        # More are ready than asked for while some are about to leave.
        ready += capacity[key] * min(serving, state.spec_replicas or 0)
        later += [
            (after, capacity[key], share)
            for after, share in coming(state, variants[key], at_s, policy)
        ]
    return ready, sorted(later)


def _crowd(
    states: Sequence[VariantState],
    pages: Pages,
    rates: Mapping[VariantKey, ServiceRate],
    seen: Seen,
) -> float:
    """Return how many requests run beyond what batches hold within the SLO.

    An engine with places left lets everybody in and grows slow: who is too many there must be
    worked off before others are served in time again, as who waits in a queue. So is who is too
    many at an unseen replica by what a gateway sent there, who waited on its last page aside, since
    the queue has them. Where fewer are there than ran on that page, others may send there too.
    """
    crowd, sent = 0.0, seen.sent
    for state in states:
        batch = rates[state.variant.key].batch
        # Chance alone brings a batch so far above its mean.
        most = batch + _CHANCE_DEVIATIONS * math.sqrt(batch)
        for name, memory in pages.replicas[state.variant.key].items():
            page = memory.page
            if seen.stuck and (state.variant.key, name) in seen.stuck:
                continue
            running = None if page is None else page.running_requests
            if sent and (state.variant.key, name) in sent:
                queued = 0.0 if page is None else page.queued_requests or 0.0
                running = max(running or 0.0, sent[state.variant.key, name] - queued)
            if running is not None and running > most:
                crowd += running - most
    return crowd


def _held(waiting: float, crowd: float, some_are_coming: bool) -> str:
    """Return why no replica may go, in words; empty where they may.

    Batches that are too full forbid it only until help has come: with the help there, a batch that
    never empties would say that its replicas are slower than was learned.
    """
    if waiting >= 1:
        return f"{waiting:g} wait"
    if crowd >= 1 and some_are_coming:
        return f"batches hold {crowd:.0f} more than the SLO allows"
    return ""


def _carried(
    waiting: float,
    arriving: float,
    ready: float,
    on_their_way: Sequence[tuple[float, float, float]],
    lead_s: float,
) -> float:
    """Return the backlog at the moment when a replica that is ordered now would be ready."""
    backlog, now_s, rate = waiting, 0.0, ready
    for after_s, more, share in on_their_way:
        if after_s >= lead_s:
            break
        backlog = max(0.0, backlog + (arriving - rate) * (after_s - now_s))
        now_s, rate = after_s, rate + more * share
    backlog = max(0.0, backlog + (arriving - rate) * (lead_s - now_s))
    return min(backlog, arriving * PATIENCE_S)


def _binding(
    base: float,
    backlog: float,
    drain_s: float,
    load: ModelLoad,
    held: str,
    less: float,
) -> str:
    parts = f"{figure(base)} {load.unit} to be ready for"
    if load.role != "both":
        parts += f" {against_one(load.capacity)}"
    if backlog >= 1:
        parts += f" and {backlog:.0f} waiting to be served within {drain_s:.0f} s"
    verb = ">" if load.need > load.supply else "≤"
    words = (
        f"{parts}: {figure(load.need)} {verb} {figure(load.supply)} {load.unit} that replicas "
        f"carry at {load.utilization.of(load.replicas):.0%}"
    )
    if held:
        words += f"; {held}, so none goes"
    if less:
        words += f"; replicas count for {less:.0%} less, since clients waited longer than the SLO"
    return words


def _notes(
    expected: Forecast, load: ModelLoad, each: Mapping[VariantKey, float], seen: Seen
) -> tuple[str, ...]:
    notes = [expected.why]
    notes += [
        f"{key.name}: {figure(each[key])} {load.unit} per replica, {bound}"
        for key, bound in load.bounds.items()
    ]
    if seen.sent:
        named = ", ".join(f"{count:g} at {name}" for (_, name), count in sorted(seen.sent.items()))
        notes.append(f"unseen, so what the gateway tells to be in flight counts: {named}")
    for word, which in (("stuck", seen.stuck), ("asleep", seen.asleep)):
        if which:
            named = ", ".join(name for _, name in sorted(which))
            notes.append(f"{word}, so neither supply nor demand: {named}")
    return tuple(notes)

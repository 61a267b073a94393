"""The ordered rules, each with its reason; a later one has the last word over an earlier one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

from wva_adapter.core.case import Case, Decisions, Rule
from wva_adapter.core.change import replace
from wva_adapter.core.decision import Decision
from wva_adapter.core.fleet import VariantKey
from wva_adapter.core.freeing import Counts, Ground, Removal, Tenant, exchange, gain
from wva_adapter.core.guards import Budget, Freeze, Hours, MaxChange, Pin, exceeds
from wva_adapter.core.limits import limit_accelerators
from wva_adapter.core.load import figure
from wva_adapter.core.policy import Policy
from wva_adapter.core.power import price_per_h
from wva_adapter.core.removal import removal_order
from wva_adapter.core.roles import pair_roles
from wva_adapter.core.saturation import blind_reason
from wva_adapter.core.shadow import reckon
from wva_adapter.core.signal import smallest_seen
from wva_adapter.core.snapshot import Phase, VariantState

_MOST_NAMED = 3

_ROUNDING = 1e-9
"""By this share sums of floats differ."""

HIDDEN_CYCLES = 4
"""So many cycles a step up that the reader ignores must be needed before a larger one is served."""


def blind_reasons(state: VariantState, at_s: float, policy: Policy) -> tuple[str, ...]:
    """Return why the variant's load is not wholly known, one reason each; empty where it is."""
    reasons = [] if state.problem is None else [state.problem]
    for replica in state.ready:
        why = blind_reason(replica, at_s, policy)
        if why is not None:
            sent = replica.in_flight_requests
            known = "" if sent is None else f", {sent:g} in flight there by the gateway"
            reasons.append(f"replica {replica.name} unseen: {why}{known}")
    return tuple(reasons)


def follow_demand(decisions: Decisions, case: Case) -> Decisions:
    """Take the counts of the allocation."""
    followed = {}
    for key, decision in decisions.items():
        load, wanted = case.loads[key], case.wanted[key]
        why = load.binding
        variant, there = case.states[key].variant, case.standings[key]
        if there.infeasible is not None:
            why += f": none can be added, {there.infeasible}"
            if there.exists < there.current:
                why += f"; {there.exists} of {there.current} have a place"
            if wanted > there.exists:
                why += (
                    f", {wanted - there.exists} go on waiting for one, since nothing else can "
                    "carry what is missing"
                )
        elif wanted > decision.current:
            why += f": +{wanted - decision.current} at {variant.cost_per_h:g} $/h each, the cheapest with room"
        elif wanted < decision.current:
            why += f": −{decision.current - wanted} at {variant.cost_per_h:g} $/h each, the dearest that can go"
        elif load.shortage > 0:
            if variant.max_replicas is not None and wanted >= variant.max_replicas:
                why += f": limited, already at max_replicas {variant.max_replicas}"
            else:
                why += ": another variant covers it at less cost"
        decision = decision.to(wanted, rule="follow_demand", why=why)
        limited = case.limits.get(key)
        followed[key] = decision if limited is None else replace(decision, limited=limited)
    return followed


def wake_from_zero(decisions: Decisions, case: Case) -> Decisions:
    """Bring one replica where requests wait and there is none, and no second one meanwhile."""
    woken = dict(decisions)
    for model, members in case.by_load(decisions):
        found = case.rests[model]
        chosen = case.cheapest(members) if found.wakes is not None else None
        for decision in members:
            if found.wakes is not None and chosen is not None:
                count, why = 0, f"{found.wakes}; one comes on {chosen.key.name}, the cheapest"
                if decision is chosen:
                    count, why = 1, f"{found.wakes}: one on the cheapest that gets a place"
            elif found.waking:
                count = min(decision.desired, decision.current)
                why = "the replica that was woken is on its way"
            else:
                continue
            if count or decision.desired:
                woken[decision.key] = decision.to(count, rule="wake_from_zero", why=why)
    return woken


def sleep_to_zero(decisions: Decisions, case: Case) -> Decisions:
    """Take a model's last replica only where nobody asks for it, as counters prove."""
    slept = dict(decisions)
    for model, members in case.by_load(decisions):
        found = case.rests[model]
        if found.wakes is not None:
            continue
        if found.sleeps:
            for decision in members:
                if decision.desired or decision.current:
                    slept[decision.key] = decision.to(0, rule="sleep_to_zero", why=found.why)
            continue
        chosen, enabled = case.cheapest(members), case.policies[members[0].key].scale_to_zero
        if chosen is None:
            continue
        if not any(decision.desired for decision in members) and found.complete:
            why = f"one stays: {found.why}"
            slept[chosen.key] = chosen.to(1, rule="sleep_to_zero", why=why)
        elif enabled:
            last = max(members, key=lambda d: (d.desired > 0, -d.cost_per_h, d.key))
            why = f"not to zero: {found.why}"
            slept[last.key] = last.to(last.desired, rule="sleep_to_zero", why=why)
    return slept


def hold_when_blind(decisions: Decisions, case: Case) -> Decisions:
    """Do not remove replicas from a variant while any ready replica is unseen."""
    held = {}
    for key, decision in decisions.items():
        reasons = blind_reasons(case.states[key], case.at_s, case.policies[key])
        if reasons:
            named = "; ".join(reasons[:_MOST_NAMED])
            if len(reasons) > _MOST_NAMED:
                named += f"; and {len(reasons) - _MOST_NAMED} more"
            floor = max(decision.current, decision.desired)
            verb = "held at" if floor > decision.desired else "not below"
            decision = decision.to(
                floor, rule="hold_when_blind", why=f"{verb} {decision.current}: {named}"
            )
        held[key] = decision
    return held


def settle_down(decisions: Decisions, case: Case) -> Decisions:
    """Go down only to the largest need of the window, and by bounded steps."""
    settled = {}
    for key, decision in decisions.items():
        reasons = []
        floor = decision.desired
        if case.floors[key] > floor:
            floor = case.floors[key]
            load = case.loads[key]
            kept = case.models[load.key].kept
            most = kept.largest(case.at_s, span_s=load.window_s)
            reasons.append(
                f"{floor} needed within the last {load.window_s:.0f} s (scale_down_window): "
                f"{figure(load.keep if most is None else most)} {load.unit}"
            )
        if key in case.stays:
            reasons.append(case.stays[key])
        pace = _pace(decision, case)
        if pace is not None and pace[0] > floor:
            floor = pace[0]
            reasons.append(pace[1])
        if reasons:
            decision = decision.to(floor, rule="settle_down", why="; ".join(reasons))
        settled[key] = decision
    return settled


def _pace(decision: Decision, case: Case) -> tuple[int, str] | None:
    """Return the fewest replicas that one step down may leave, and why; ``None`` for no bound."""
    policy, there = case.policies[decision.key], case.standings[decision.key]
    published = case.memory[decision.key].published.largest(case.at_s, span_s=policy.down_period_s)
    if published is None:
        return None
    step = max(1, int(published * policy.max_down_share))
    least = int(published - step)
    if there.exists < there.current:
        # What has no place serves nobody: all of that may go at once.
        least = min(least, there.exists)
    return least, f"at most {step} of {published:g} fewer per {policy.down_period_s:g} s"


def free_nodes(decisions: Decisions, case: Case) -> Decisions:
    """Of removals that save the same, take those that free a block that is waited for, or a node.

    The adapter chooses the variant, its controller the pod. Where nothing is known of the nodes,
    names go on deciding.
    """
    if case.nodes is None:
        return decisions
    shrinking = [
        members
        for _, members in case.by_load(decisions)
        if len(members) > 1 and any(d.desired < d.current for d in members)
    ]
    if not shrinking:
        return decisions
    # A variant whose count is unknown keeps what it has.
    counts = {state.variant.key: len(state.replicas) for state in case.unknown}
    counts |= {key: decision.desired for key, decision in decisions.items()}
    states = (*case.states.values(), *case.unknown)
    ground = Ground(case.nodes, [_tenant(state, case.at_s) for state in states], counts)
    freed = dict(decisions)
    for members in shrinking:
        freed |= _freeing(members, freed, ground, case)
    return freed


def _freeing(
    members: Sequence[Decision], decisions: Decisions, ground: Ground, case: Case
) -> Decisions:
    """Return the decisions on one model whose removals free more, or would have."""
    counts = {decision.key: decision.desired for decision in members}
    capacity = case.loads[members[0].key].capacity
    removals = [_removal(decision, case) for decision in members if decision.key in capacity]
    against = partial(_against, decisions, members, case)
    objections: list[str] = []

    def allowed(other: Counts) -> bool:
        why = against(other)
        objections.extend([] if why is None else [why])
        return why is None

    best, refused = exchange(removals, counts, ground, allowed), None
    if best == counts and objections:
        best = exchange(removals, counts, ground, lambda _: True)
        refused = against(best)
    if best == counts:
        return {}
    changes = {key: count - counts[key] for key, count in best.items() if count != counts[key]}
    went = ", ".join(f"{-n} of {key.name}" for key, n in changes.items() if n < 0)
    stay = ", ".join(f"{n} of {key.name}" for key, n in changes.items() if n > 0)
    words = gain(ground.freed(counts), ground.freed(best), ground, members[0].key.namespace)
    why = f"removing {went} frees {words}, and saves as much as {stay}"
    if refused is not None:
        why = f"removing {went} would free {words}, not {stay}: {refused}"
        best = counts
    ground.settle(best)
    return {key: decisions[key].to(best[key], rule="free_nodes", why=why) for key in changes}


def _tenant(state: VariantState, at_s: float) -> Tenant:
    variant, order = state.variant, removal_order(state, at_s)
    return Tenant(
        variant.key,
        variant.accelerator,
        variant.accelerators_per_replica,
        ending=tuple(r.node for r in state.replicas if r.phase is Phase.TERMINATING),
        order=tuple(replica.node for replica in order),
        gated=sum(replica.gated for replica in order),
        tolerations=variant.tolerations,
    )


def _removal(decision: Decision, case: Case) -> Removal:
    """Return how few and how many of a variant may stay, by what holds it."""
    key, count = decision.key, decision.desired
    state, policy, load = case.states[key], case.policies[key], case.loads[key]
    pace = _pace(decision, case)
    lowest = max(state.variant.min_replicas, 0 if pace is None else pace[0])
    if count > decision.current or blind_reasons(state, case.at_s, policy):
        lowest = count
    watts = case.watts(key, load.utilization.highest)
    return Removal(
        key,
        price_per_h(policy.objective, decision.cost_per_h, watts, policy.power_price_per_kwh),
        min(lowest, count),
        # What has no place is no saving that another removal could make instead.
        max(count, min(decision.current, case.standings[key].exists)),
    )


def _against(
    decisions: Decisions, members: Sequence[Decision], case: Case, counts: Counts
) -> str | None:
    """Return why a model cannot have other counts: too little is carried, or a later rule objects."""
    load = case.loads[members[0].key]
    there = {d.key: case.standings[d.key].exists for d in members}
    decided = load.carried({d.key: d.desired for d in members}, there)
    kept = case.models[load.key].kept.largest(case.at_s, span_s=load.window_s)
    needed = min(decided, max(load.need, load.keep, kept or 0.0))
    carried = load.carried({d.key: counts[d.key] for d in members}, there)
    if needed - carried > _ROUNDING * abs(needed):
        return f"{figure(carried)} {load.unit} would be carried, {figure(needed)} are needed"
    tried = dict(decisions)
    tried |= {d.key: replace(d, desired=counts[d.key]) for d in members}
    after = stay_in_bounds(apply_guards(tried, case), case)
    changed = [after[d.key] for d in members if after[d.key].desired != counts[d.key]]
    return changed[0].trail[-1].why if changed else None


def stay_in_bounds(decisions: Decisions, case: Case) -> Decisions:
    """Keep each count within the operator's minimum and maximum."""
    bounded = {}
    for key, decision in decisions.items():
        variant = case.states[key].variant
        count = variant.clamp(decision.desired)
        if count > decision.desired:
            why = f"min_replicas is {variant.min_replicas}"
            decision = decision.to(count, rule="stay_in_bounds", why=why)
        elif count < decision.desired:
            why = f"{decision.desired} wanted, max_replicas is {variant.max_replicas}"
            decision = decision.to(count, rule="stay_in_bounds", why=f"limited: {why}")
            decision = replace(decision, limited=decision.limited or why)
        bounded[key] = decision
    return bounded


def needed_to_be_seen(desired: int, state: VariantState) -> int | None:
    """Return the smallest count that the variant's reader does not ignore, where it ignores this one.

    Only steps up are looked at; ``None`` where nothing is hidden.
    """
    reader, spec = state.variant.reader, state.spec_replicas or 0
    if reader is None or desired <= spec:
        return None
    status = spec if state.status_replicas is None else state.status_replicas
    return smallest_seen(desired, status_replicas=status, reader=reader)


def escape_tolerance(decisions: Decisions, case: Case) -> Decisions:
    """Get a step up past a reader that ignores it.

    Another variant takes it where that costs no more; else it becomes large enough to be seen once
    it was needed for a while.
    """
    escaped = dict(decisions)
    for key in sorted(decisions):
        decision, state = escaped[key], case.states[key]
        needed = needed_to_be_seen(decision.desired, state)
        if needed is None or state.variant.reader is None:
            continue
        name, wanted = state.variant.reader.name, decision.desired
        words = f"{name} ignores the step from {decision.current} to {wanted}"
        other = _instead(decision, escaped, case)
        if other is not None:
            more = other.desired - escaped[other.key].desired
            escaped[key] = decision.to(
                decision.current,
                rule="escape_tolerance",
                why=f"{words}: {more} more of {other.key.name} carry as much at no more cost",
            )
            escaped[other.key] = other
            continue
        waited, highest = case.memory[key].hidden_cycles, state.variant.max_replicas
        if waited < HIDDEN_CYCLES:
            count, why = wanted, f"{words}: {needed} once that lasted {HIDDEN_CYCLES} cycles"
        elif highest is not None and needed > highest:
            count, why = (
                wanted,
                f"{words}, and max_replicas {highest} is below the {needed} it sees",
            )
        elif case.standings[key].infeasible is not None:
            count, why = wanted, f"{words}; none can be added"
        else:
            count, why = needed, f"{words} for {waited} cycles: {needed} is the next that it sees"
        escaped[key] = decision.to(count, rule="escape_tolerance", why=why)
    return escaped


def _instead(decision: Decision, decisions: Decisions, case: Case) -> Decision | None:
    """Return the decision on a sibling that carries a hidden step at no more cost, if one can."""
    load, step = case.loads[decision.key], decision.desired - decision.current
    if decision.key not in load.capacity:
        return None
    missing, price = load.capacity[decision.key] * step, decision.cost_per_h * step
    found = []
    for key, sibling in decisions.items():
        state = case.states[key]
        if key == decision.key or case.loads[key] is not load or key not in load.capacity:
            continue
        more = math.ceil(missing / load.capacity[key] - 1e-9)
        count, highest = sibling.desired + more, state.variant.max_replicas
        cost = more * sibling.cost_per_h
        if (
            case.standings[key].infeasible is None
            and sibling.desired >= sibling.current
            and (highest is None or count <= highest)
            and not exceeds(cost, price)
            and needed_to_be_seen(count, state) is None
        ):
            found.append((cost, key, count))
    if not found:
        return None
    _, key, count = min(found)
    why = f"{count - decisions[key].desired} instead of {step} of {decision.key.name}, whose reader ignores the step"
    return decisions[key].to(count, rule="escape_tolerance", why=why)


def apply_guards(decisions: Decisions, case: Case) -> Decisions:
    """Do what the operator said: pace, hours, budget, freeze and pin, each over the one before."""
    guarded = dict(decisions)
    for kind in (MaxChange, Hours, Budget, Freeze, Pin):
        for guard in sorted(
            (g for g in case.guards if isinstance(g, kind)), key=lambda g: (g.name, repr(g))
        ):
            if isinstance(guard, Budget):
                _spend(guarded, guard, case)
                continue
            for key in sorted(guarded):
                if guard.scope.covers(key, guarded[key].model_id):
                    _obey(guarded, key, guard, case)
    return guarded


def _obey(
    decisions: dict[VariantKey, Decision],
    key: VariantKey,
    guard: MaxChange | Hours | Freeze | Pin,
    case: Case,
) -> None:
    """Change one count as a guard says; one that agrees with the count says nothing."""
    decision, at_s = decisions[key], case.at_s
    count = decision.desired
    if isinstance(guard, Pin):
        if at_s >= guard.until_s:
            return
        count = guard.replicas
        why = f"pinned to {count} for {guard.until_s - at_s:.0f} s more"
    elif isinstance(guard, Freeze):
        if not guard.from_s <= at_s < guard.until_s:
            return
        count = decision.current
        why = f"frozen at {count} for {guard.until_s - at_s:.0f} s more"
    elif isinstance(guard, Hours):
        if not guard.from_s <= at_s < guard.until_s:
            return
        if guard.min_replicas is not None:
            count = max(count, guard.min_replicas)
        if guard.max_replicas is not None:
            count = min(count, guard.max_replicas)
        low = 0 if guard.min_replicas is None else guard.min_replicas
        high = "more" if guard.max_replicas is None else guard.max_replicas
        why = f"{low} to {high} replicas for {guard.until_s - at_s:.0f} s more"
    else:
        past, span_s = case.memory[key], guard.window_s
        most = past.most.largest(at_s, span_s=span_s)
        fewest = past.fewest.largest(at_s, span_s=span_s)
        most = decision.current if most is None else int(most)
        fewest = decision.current if fewest is None else int(-fewest)
        ends = sorted((max(0, most - guard.replicas), fewest + guard.replicas))
        count = min(max(count, ends[0]), ends[1])
        span = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        why = f"at most {guard.replicas} changed per {span_s:g} s, {span} published in the last"
    if count == decision.desired:
        return
    limited = decision.limited
    if count < decision.desired and count >= decision.current:
        limited = limited or f"{decision.desired} wanted, guard {guard.name} allows {count}"
    named = decision.to(count, rule="apply_guards", why=f"guard {guard.name}: {why}")
    decisions[key] = replace(named, limited=limited)


def _spend(decisions: dict[VariantKey, Decision], guard: Budget, case: Case) -> None:
    """Take replicas until a namespace's counts fit its budget: added ones first, none below min."""
    here = sorted(key for key in decisions if key.namespace == guard.namespace)
    counts = {key: decisions[key].desired for key in here}
    prices = {key: decisions[key].cost_per_h for key in here}

    def bill() -> float:
        return math.fsum(prices[key] * counts[key] for key in here)

    asked = bill()
    if not exceeds(asked, guard.usd_per_h):
        return
    least = {key: min(counts[key], case.states[key].variant.min_replicas) for key in here}
    added = {key: max(least[key], min(counts[key], decisions[key].current)) for key in here}
    for floors in (added, least):
        while exceeds(bill(), guard.usd_per_h):
            able = [key for key in here if counts[key] > floors[key] and prices[key] > 0]
            able = [key for key in able if not _is_last(key, counts, case)]
            if not able:
                break
            # Whoever has most above its floor gives first, so that no model pays for all.
            dearest = max(able, key=lambda k: (prices[k] * (counts[k] - floors[k]), k))
            counts[dearest] -= 1
    words = f"{asked:.4g} $/h wanted in {guard.namespace}, at most {guard.usd_per_h:g}"
    if exceeds(bill(), guard.usd_per_h):
        words += f"; the fewest replicas cost {bill():.4g}"
    for key in here:
        decision = decisions[key]
        if counts[key] < decision.desired:
            why = f"guard {guard.name}: {words}"
            limited = decision.limited or f"{decision.desired} wanted, {why}"
            named = decision.to(counts[key], rule="apply_guards", why=why)
            decisions[key] = replace(named, limited=limited)


def _is_last(key: VariantKey, counts: Mapping[VariantKey, int], case: Case) -> bool:
    """Return whether this is the only replica that its load has."""
    if counts[key] != 1:
        return False
    load = case.loads[key]
    return not any(counts[o] for o in counts if o != key and case.loads[o].key == load.key)


def shadow(decisions: Decisions, case: Case) -> Decisions:
    """Tell what a variant in shadow would have cost: its count is decided and not served."""
    shadowed = dict(decisions)
    for key, decision in decisions.items():
        if not case.policies[key].shadow:
            continue
        bill = reckon(case.memory[key].bill, decision, case.at_s)
        saved = bill.ran_usd - bill.would_usd
        why = (
            f"not served; in {bill.at_s - bill.since_s:.0f} s it would have cost "
            f"{bill.would_usd:.2f} $ instead of {bill.ran_usd:.2f} $: {abs(saved):.2f} $ "
            f"{'less' if saved >= 0 else 'more'}"
        )
        shadowed[key] = replace(decision.to(decision.desired, rule="shadow", why=why), bill=bill)
    return shadowed


RULES: tuple[Rule, ...] = (
    follow_demand,
    wake_from_zero,
    sleep_to_zero,
    hold_when_blind,
    settle_down,
    free_nodes,
    escape_tolerance,
    limit_accelerators,
    pair_roles,
    apply_guards,
    stay_in_bounds,
    shadow,
)
"""The order is the policy: a later rule has the last word over an earlier one."""

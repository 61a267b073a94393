"""The decision as a whole: analyses, allocation, rules and signal, composed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, groupby
from operator import itemgetter
from typing import NamedTuple

from wva_adapter.core.allocation import Cover, Option
from wva_adapter.core.case import Case, Decisions
from wva_adapter.core.change import replace
from wva_adapter.core.decision import Decision, Plan
from wva_adapter.core.demand import analyze_demand, contradictions
from wva_adapter.core.feasibility import Standing, notice, standing
from wva_adapter.core.fleet import LoadKey, Role, VariantKey
from wva_adapter.core.guards import pace_window_s
from wva_adapter.core.leads import remember_wakes
from wva_adapter.core.limits import Scarcity, limit_accelerators, scarcity
from wva_adapter.core.load import ModelLoad, figure
from wva_adapter.core.memory import (
    UNSEEN_MODEL,
    UNSEEN_VARIANT,
    Memory,
    ModelMemory,
    Quiet,
    ReplicaMemory,
    VariantMemory,
    Window,
)
from wva_adapter.core.offline import online
from wva_adapter.core.pages import Pages, take_pages
from wva_adapter.core.policies import Policies
from wva_adapter.core.policy import Policy
from wva_adapter.core.power import Draw, draw_of, price_per_h
from wva_adapter.core.roles import part_of
from wva_adapter.core.rules import RULES, needed_to_be_seen
from wva_adapter.core.saturation import analyze_saturation, remember_peaks
from wva_adapter.core.signal import shape
from wva_adapter.core.snapshot import GatewayState, Snapshot, VariantState
from wva_adapter.core.tokens import analyze_tokens
from wva_adapter.core.zero import Rest, rests

Standings = Mapping[VariantKey, Standing]
Draws = Mapping[str, Draw]

_ROUNDING = 1e-9
"""By this share sums of floats differ."""


def plan(snapshot: Snapshot, policy: Policy | Policies, memory: Memory) -> tuple[Plan, Memory]:
    """Decide the desired replicas of every variant in the fleet.

    The adapter and the simulator both call this function, once per cycle. It reads no
    clock, draws no random numbers and does no IO: equal arguments give equal results.

    Args:
        snapshot: The fleet now.
        policy: How to decide: one policy for all, or one per model and variant.
        memory: What the last call returned; a fresh one at first.

    Returns:
        The plan, and the memory to hand in with the next snapshot.
    """
    policies = policy if isinstance(policy, Policies) else Policies(policy)
    sharing = _by_load(snapshot.variants)
    states = tuple(chain.from_iterable(sharing.values()))
    of_variant = {s.variant.key: policies.of(*_model(s), s.variant.key.name) for s in states}
    gateways = {(g.namespace, g.model_id): g for g in snapshot.gateways}
    loads: list[ModelLoad] = []
    load_of: dict[VariantKey, ModelLoad] = {}
    wanted: dict[VariantKey, int] = {}
    floors: dict[VariantKey, int] = {}
    models: dict[LoadKey, ModelMemory] = {}
    variants: dict[VariantKey, VariantMemory] = {}
    replicas: dict[VariantKey, Mapping[str, ReplicaMemory]] = {}
    standings: dict[VariantKey, Standing] = {}
    limits: dict[VariantKey, str] = {}
    resting: dict[LoadKey, Rest] = {}
    stays: dict[VariantKey, str] = {}
    undecided: dict[VariantKey, str] = {}
    decidable: dict[VariantKey, VariantState] = {}
    for look in _looks(sharing, snapshot, memory, gateways, policies, of_variant):
        load_key, members, policy = look.key, look.members, look.policy
        model, noticed, pages = load_key[:2], look.noticed, look.pages
        past = memory.models.get(load_key, UNSEEN_MODEL)
        variants |= {state.variant.key: noticed[state.variant.key] for state in members}
        replicas |= pages.replicas
        resting[load_key] = look.rest
        if policy.analysis == "demand":
            part = load_key.role
            before: Sequence[VariantState] = ()
            if part == "decode":
                before = sharing.get(load_key._replace(role="prefill"), ())
                part = part_of(part, look.roles)
            load, past, learned = analyze_demand(
                members,
                pages,
                gateways.get(model),
                snapshot.at_s,
                policy,
                replace(memory, variants=noticed),
                past,
                part=part,
                before=before,
            )
            variants |= learned
            doubts = contradictions(learned)
            if doubts:
                load, tokens = analyze_tokens(
                    members,
                    past.tokens,
                    online(gateways.get(model)),
                    snapshot.at_s,
                    replace(policy, analysis="tokens", request_class="online"),
                    noticed,
                )
                past = replace(past, tokens=tokens)
                load = replace(load, binding=f"{doubts}, so tokens decide: {load.binding}")
        elif policy.analysis == "tokens":
            load, tokens = analyze_tokens(
                members, past.tokens, online(gateways.get(model)), snapshot.at_s, policy, noticed
            )
            past = replace(past, tokens=tokens)
        else:
            load = analyze_saturation(members, pages.replicas, snapshot.at_s, policy, noticed)
        if load.role != "both":
            load = replace(load, binding=f"{load.role}: {load.binding}")
        loads.append(load)
        remembered = _remember_kept(load, snapshot.at_s, past, policy.window_s())
        models[load_key] = replace(remembered, quiet=look.quiet)
        standings |= {
            s.variant.key: standing(noticed[s.variant.key], s, snapshot.at_s) for s in members
        }
        existing = {s.variant.key: standings[s.variant.key].exists for s in members}
        wanted |= existing
        known = [
            state
            for state in members
            if state.spec_replicas is not None and state.variant.key in load.capacity
        ]
        draws = snapshot.inventory.draws
        lowering = _Lowering(load, known, standings, policy, draws)
        found = _wanted(load, known, standings, lowering, policy, of_variant, draws)
        wanted |= found
        limits |= _limits(load, found, known, standings)
        kept = models[load_key].kept.largest(snapshot.at_s, span_s=load.window_s)
        if resting[load_key].sleeps:
            floors |= dict.fromkeys(existing, 0)
        else:
            floors |= existing
            floors |= lowering.to(load.keep if kept is None else kept)
            stays |= lowering.stays
        for state in members:
            key = state.variant.key
            load_of[key] = load
            if state.spec_replicas is None:
                undecided[key] = state.problem or f"the count of {state.variant.target} is unknown"
            else:
                decidable[key] = state

    case = Case(
        at_s=snapshot.at_s,
        policies=of_variant,
        states=decidable,
        loads=load_of,
        wanted=wanted,
        floors=floors,
        models=models,
        memory=variants,
        standings=standings,
        limits=limits,
        rests=resting,
        stays=stays,
        guards=snapshot.guards,
        inventory=snapshot.inventory,
        nodes=snapshot.nodes,
        unknown=tuple(s for s in states if s.spec_replicas is None),
        proposal=snapshot.proposal,
        quotas=snapshot.quotas or (),
    )
    decisions = _undisputed_all(case)
    for rule in RULES:
        decisions = rule(decisions, case)
    shares = _load_shares(decisions, case)
    decisions = {
        key: _signalled(d, decidable[key], d.desired * case.watts(key, shares[case.loads[key].key]))
        for key, d in decisions.items()
    }
    after = Memory(
        variants=_remember_published(variants, decisions, case),
        models=models,
        replicas=replicas,
        prior_scale=memory.prior_scale,
    )
    return Plan(snapshot.at_s, decisions, undecided, tuple(loads), case), after


def _model(state: VariantState) -> tuple[str, str]:
    return state.variant.key.namespace, state.variant.model_id


def _by_load(states: Sequence[VariantState]) -> Mapping[LoadKey, Sequence[VariantState]]:
    """Return who shares each load, both in the order of their keys."""
    groups: dict[tuple[str, str, Role], list[VariantState]] = defaultdict(list)
    for state in sorted(states, key=lambda s: s.variant.key):
        variant = state.variant
        groups[variant.key.namespace, variant.model_id, variant.role].append(state)
    return {LoadKey(*key): tuple(groups[key]) for key in sorted(groups)}


class _Look(NamedTuple):
    """What is known of those who share a load, and of its whole model, before it is analysed.

    Attributes:
        roles: Those that variants of the model have.
        noticed: What is remembered of the model's variants, how their pods started taken in.
        pages: Those of the model's replicas.
        rest: Whether these may go without replicas.
        quiet: For how long nobody has asked the model.
    """

    key: LoadKey
    members: Sequence[VariantState]
    roles: Collection[Role]
    policy: Policy
    noticed: Mapping[VariantKey, VariantMemory]
    pages: Pages
    rest: Rest
    quiet: Quiet


def _looks(
    sharing: Mapping[LoadKey, Sequence[VariantState]],
    snapshot: Snapshot,
    memory: Memory,
    gateways: Mapping[tuple[str, str], GatewayState],
    policies: Policies,
    of_variant: Mapping[VariantKey, Policy],
) -> Iterator[_Look]:
    """Look at one model after the other, where it is its turn."""
    for model, group in groupby(sharing, key=itemgetter(0, 1)):
        roles = {key: sharing[key] for key in group}
        whole = tuple(chain.from_iterable(roles.values()))
        policy = policies.of(*model)
        noticed = {
            s.variant.key: notice(
                memory.variants.get(s.variant.key, UNSEEN_VARIANT),
                s,
                snapshot.at_s,
                of_variant[s.variant.key],
                snapshot.quotas or (),
                memory.replicas.get(s.variant.key, {}),
            )
            for s in whole
        }
        seen = memory.replicas
        if policy.analysis == "saturation":
            seen = remember_peaks(whole, seen, policy)
        pages = take_pages(whole, seen)
        for woken, woke_s in pages.woke_s.items():
            noticed[woken] = remember_wakes(noticed[woken], woke_s)
        known = memory.models.get(next(iter(roles)), UNSEEN_MODEL).quiet
        its_rests, quiet = rests(
            known, roles, noticed, pages, gateways.get(model), snapshot.at_s, policy
        )
        theirs = [key.role for key in roles]
        for key, members in roles.items():
            yield _Look(key, members, theirs, policy, noticed, pages, its_rests[key], quiet)


def _wanted(
    load: ModelLoad,
    states: Sequence[VariantState],
    standings: Standings,
    lowering: _Lowering,
    policy: Policy,
    of_variant: Mapping[VariantKey, Policy],
    draws: Draws,
) -> Mapping[VariantKey, int]:
    """Return the counts that the load asks for now, moving by its step at most."""
    if load.shortage > 0:
        need = load.need if load.step is None else min(load.need, load.supply + load.step)
        return _raised(load, need, states, standings, policy, of_variant, draws)
    if load.surplus > 0:
        keep = max(load.need, load.keep)
        if load.step is not None:
            keep = max(keep, load.supply - load.step)
        return lowering.to(keep)
    return {state.variant.key: standings[state.variant.key].exists for state in states}


def _raised(
    load: ModelLoad,
    need: float,
    states: Sequence[VariantState],
    standings: Standings,
    policy: Policy,
    of_variant: Mapping[VariantKey, Policy],
    draws: Draws,
) -> Mapping[VariantKey, int]:
    """Return the cheapest counts that carry a need, none below what there is.

    Nothing is added where it would get no place: others carry that need. Where they cannot, those
    that were asked for go on waiting for a place. Where the load asks for the cheapest fleet, what
    is added leads there, and what is then too much goes when it is ready: the cheapest next replica
    may be one of a variant that is dear for what it carries.
    """

    def covering(*, waiting: bool) -> Mapping[VariantKey, int]:
        bounds, ideal = [], []
        for state in states:
            there, highest = standings[state.variant.key], state.variant.max_replicas
            ceiling = there.exists
            if there.infeasible is None:
                ceiling = there.asked + of_variant[state.variant.key].max_up_step
            elif waiting:
                ceiling = there.current
            if highest is not None:
                ceiling = min(ceiling, highest)
            bounds.append((there.exists, max(there.exists, ceiling)))
            ideal.append((min(there.exists, state.variant.min_replicas), bounds[-1][1]))
        if load.whole_fleet:
            cheapest = _cover(load, states, ideal, standings, policy, draws).counts(need)
            return {key: max(count, standings[key].exists) for key, count in cheapest.items()}
        return _cover(load, states, bounds, standings, policy, draws).counts(need)

    counts = covering(waiting=False)
    some_wait = any(there.exists < there.current for there in map(standings.__getitem__, counts))
    if some_wait and _bounded(load, need, counts, states, standings) is not None:
        counts = covering(waiting=True)
    return counts


class _Lowering:
    """The cheapest counts that still carry so much, none above what there is.

    A model's last replica stays: only the rule that lets it sleep takes that one. And none that
    serves goes for one of another variant that is still on its way: until that one is there, the
    others would be short.

    Attributes:
        stays: By variant, why more of it stay than carry what has to be carried, in words.
    """

    def __init__(
        self,
        load: ModelLoad,
        states: Sequence[VariantState],
        standings: Standings,
        policy: Policy,
        draws: Draws,
    ) -> None:
        self.stays: dict[VariantKey, str] = {}
        self._load, self._standings, self._states = load, standings, states
        bounds = []
        for state in states:
            there = standings[state.variant.key].exists
            bounds.append((min(there, state.variant.min_replicas), there))
        self._some = any(there for _, there in bounds)
        self._cover = _cover(load, states, bounds, standings, policy, draws)
        self._serving = self._of_ready(
            {s.variant.key: standings[s.variant.key].exists for s in states}
        )

    def _of_ready(self, counts: Mapping[VariantKey, int]) -> float:
        """Return what those carry that are ready now and stay; of a variant they go last."""
        keys = ((s.variant.key, len(s.ready)) for s in self._states)
        return sum(self._load.capacity[key] * min(ready, counts[key]) for key, ready in keys)

    def to(self, keep: float) -> Mapping[VariantKey, int]:
        """Return the counts for what has to be carried."""
        counts = self._cover.counts(keep)
        share = self._load.utilization.of(self._load.replicas)
        stay = self._of_ready(counts)
        if stay < self._serving and share * stay < keep:
            coming = max(0.0, self._load.present - self._serving)
            more = self._cover.counts(min(keep + share * coming, self._load.supply))
            why = (
                f"until those on their way serve, without which others would carry "
                f"{figure(share * stay)} of {figure(keep)} {self._load.unit}"
            )
            for key, count in more.items():
                if count > counts[key]:
                    self.stays[key] = f"{count - counts[key]} more stay {why}"
            counts = more
        if any(counts.values()) or not self._some:
            return counts
        load, standings = self._load, self._standings
        there = (s.variant.key for s in self._states if standings[s.variant.key].exists)
        least = min(load.capacity[key] for key in there)
        return self._cover.counts(least * load.utilization.lowest / 2)


def _price(state: VariantState, load: ModelLoad, policy: Policy, draws: Draws) -> float:
    """Return what one replica counts for by the objective, at the load that it is decided for."""
    variant = state.variant
    if policy.objective == "cost":
        return variant.cost_per_h
    each_w = draw_of(variant.accelerator, draws).at(load.utilization.highest)
    watts = variant.accelerators_per_replica * each_w
    return price_per_h(policy.objective, variant.cost_per_h, watts, policy.power_price_per_kwh)


def _cover(
    load: ModelLoad,
    states: Sequence[VariantState],
    bounds: Sequence[tuple[int, int]],
    standings: Standings,
    policy: Policy,
    draws: Draws,
) -> Cover:
    options = [
        Option(
            key=state.variant.key,
            capacity=load.capacity[state.variant.key],
            cost_per_h=_price(state, load, policy, draws),
            current=standings[state.variant.key].exists,
            lowest=lowest,
            highest=highest,
        )
        for state, (lowest, highest) in zip(states, bounds, strict=True)
    ]
    return Cover(
        options,
        utilization=load.utilization,
        absent=_absent(load, states, standings),
        change_penalty=policy.change_penalty,
    )


def _absent(load: ModelLoad, states: Sequence[VariantState], standings: Standings) -> float:
    """Return the capacity of replicas that exist, or will, and carry nothing."""
    counted = sum(load.capacity[s.variant.key] * standings[s.variant.key].exists for s in states)
    return counted - load.present


def _limits(
    load: ModelLoad,
    counts: Mapping[VariantKey, int],
    states: Sequence[VariantState],
    standings: Standings,
) -> Mapping[VariantKey, str]:
    """Return why there can be no more of each variant, where all of them carry less than is needed."""
    if load.shortage <= 0 or not counts:
        return {}
    return _bounded(load, load.need, counts, states, standings) or {}


def _bounded(
    load: ModelLoad,
    need: float,
    counts: Mapping[VariantKey, int],
    states: Sequence[VariantState],
    standings: Standings,
) -> Mapping[VariantKey, str] | None:
    """Return by variant why no more of it can carry a need; ``None`` where the need can be carried."""
    placed = {
        key: count if standings[key].infeasible is None else min(count, standings[key].exists)
        for key, count in counts.items()
    }
    carried = load.carried(placed, {key: standings[key].exists for key in counts})
    if carried >= need * (1 - _ROUNDING):
        return None
    found = {}
    for state in states:
        variant, there = state.variant, standings[state.variant.key]
        if there.infeasible is not None:
            found[variant.key] = there.infeasible
        elif variant.max_replicas is not None and counts[variant.key] >= variant.max_replicas:
            found[variant.key] = f"max_replicas is {variant.max_replicas}"
        else:
            # One that can still grow does so with the next decision.
            return None
    words = f"{figure(need)} {load.unit} needed, {figure(max(0.0, carried))} can be carried"
    return {key: f"{words}: {why}" for key, why in found.items()}


def _remember_kept(load: ModelLoad, at_s: float, past: ModelMemory, span_s: float) -> ModelMemory:
    """Return the model's past with what its load has to keep now.

    A model seen for the first time keeps what it has: what is not known never looks like a small
    need later.
    """
    if past.analysis != load.analysis:
        kept = Window().add(at_s, max(load.keep, load.supply), span_s=span_s)
        return replace(past, analysis=load.analysis, kept=kept)
    return replace(past, kept=past.kept.add(at_s, load.keep, span_s=span_s))


def scarce(plan: Plan) -> Scarcity | None:
    """Return what all models want together, where a plan could not grant it all.

    A slower method may find a better plan for it, which is judged when it arrives as the
    ``proposal`` of a later snapshot. ``None`` where nothing was scarce.
    """
    case = plan.case
    if case is None or not any(
        step.rule == limit_accelerators.__name__
        for decision in plan.decisions.values()
        for step in decision.trail
    ):
        return None
    decisions = _undisputed_all(case)
    for rule in RULES[: RULES.index(limit_accelerators)]:
        decisions = rule(decisions, case)
    return scarcity(decisions, case)


def _undisputed_all(case: Case) -> Decisions:
    return {key: _undisputed(state) for key, state in sorted(case.states.items())}


def _undisputed(state: VariantState) -> Decision:
    variant, current = state.variant, state.spec_replicas or 0
    return Decision(
        key=variant.key,
        model_id=variant.model_id,
        accelerator=variant.accelerator,
        cost_per_h=variant.cost_per_h,
        current=current,
        ready=len(state.ready),
        desired=current,
    )


def _load_shares(decisions: Decisions, case: Case) -> Mapping[LoadKey, float]:
    """Return by load which share of what its desired replicas can carry the demand takes."""
    shares = {}
    for key, members in case.by_load(decisions):
        load = case.loads[members[0].key]
        carried = sum(load.capacity.get(d.key, 0.0) * d.desired for d in members)
        unknown = load.demand is None or carried <= 0
        shares[key] = 1.0 if unknown else min(1.0, (load.demand or 0.0) / carried)
    return shares


def _signalled(decision: Decision, state: VariantState, power_w: float) -> Decision:
    reader, spec = state.variant.reader, state.spec_replicas or 0
    if reader is None:
        return replace(decision, value_milli=1000 * decision.desired, power_w=power_w)
    signal = shape(
        decision.desired,
        spec_replicas=spec,
        status_replicas=spec if state.status_replicas is None else state.status_replicas,
        ready_replicas=len(state.ready),
        reader=reader,
    )
    if signal.why is not None:
        decision = decision.to(decision.desired, rule="signal", why=signal.why)
    return replace(decision, value_milli=signal.value_milli, power_w=power_w)


def _remember_published(
    variants: Mapping[VariantKey, VariantMemory], decisions: Decisions, case: Case
) -> Mapping[VariantKey, VariantMemory]:
    """Return the past of the variants; one whose count could not be read keeps the one it had."""
    after = dict(sorted(variants.items()))
    at_s, pace_s = case.at_s, pace_window_s(case.guards)
    for key, decision in decisions.items():
        past = after[key]
        hidden = any(
            step.rule == "escape_tolerance"
            and needed_to_be_seen(step.before, case.states[key]) is not None
            for step in decision.trail
        )
        after[key] = replace(
            past,
            published=past.published.add(
                at_s, decision.desired, span_s=case.policies[key].down_period_s
            ),
            most=_paced(past.most, decision.current, decision.desired, at_s, pace_s),
            fewest=_paced(past.fewest, -decision.current, -decision.desired, at_s, pace_s),
            hidden_cycles=past.hidden_cycles + 1 if hidden else 0,
            bill=decision.bill,
        )
    return after


_NO_PACE = Window()


def _paced(past: Window, before: int, now: int, at_s: float, span_s: float) -> Window:
    """Return the window for a pace with this count; empty where no guard asks for it."""
    if not span_s:
        return _NO_PACE
    if not past.entries:
        past = past.add(at_s, before, span_s=span_s)
    return past.add(at_s, now, span_s=span_s)

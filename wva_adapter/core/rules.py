"""The ordered rules, each with its reason; a later one has the last word over an earlier one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wva_adapter.core.decision import Decision
from wva_adapter.core.fleet import VariantKey
from wva_adapter.core.load import ModelLoad
from wva_adapter.core.memory import ModelKey, ModelMemory, VariantMemory
from wva_adapter.core.policy import Policy
from wva_adapter.core.saturation import blind_reason
from wva_adapter.core.snapshot import VariantState

_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Case:
    """What the rules may look at.

    Attributes:
        at_s: Unix time now.
        policies: By variant, windows and steps.
        states: The variants as they stand.
        loads: Per variant, the load of its model.
        wanted: Counts of the allocation, one step at most.
        floors: Counts that carry what had to be kept within the scale-down window.
        models: Per namespace and model, its past with this cycle in it.
        memory: Per variant, its past.
    """

    at_s: float
    policies: Mapping[VariantKey, Policy]
    states: Mapping[VariantKey, VariantState]
    loads: Mapping[VariantKey, ModelLoad]
    wanted: Mapping[VariantKey, int]
    floors: Mapping[VariantKey, int]
    models: Mapping[ModelKey, ModelMemory]
    memory: Mapping[VariantKey, VariantMemory]


Decisions = Mapping[VariantKey, Decision]
Rule = Callable[[Decisions, Case], Decisions]


def blind_reasons(state: VariantState, at_s: float, policy: Policy) -> tuple[str, ...]:
    """Return why the variant's load is not wholly known, one reason each; empty where it is."""
    reasons = [] if state.problem is None else [state.problem]
    for replica in state.ready:
        why = blind_reason(replica, at_s, policy)
        if why is not None:
            reasons.append(f"replica {replica.name} unseen: {why}")
    return tuple(reasons)


def follow_demand(decisions: Decisions, case: Case) -> Decisions:
    """Take the counts of the allocation."""
    followed = {}
    for key, decision in decisions.items():
        load, wanted = case.loads[key], case.wanted[key]
        why = load.binding
        variant = case.states[key].variant
        if wanted > decision.current:
            why += f": +{wanted - decision.current} at {variant.cost_per_h:g} $/h each, the cheapest with room"
        elif wanted < decision.current:
            why += f": −{decision.current - wanted} at {variant.cost_per_h:g} $/h each, the dearest that can go"
        elif load.shortage > 0:
            if variant.max_replicas is not None and wanted >= variant.max_replicas:
                why += f": limited, already at max_replicas {variant.max_replicas}"
            else:
                why += ": another variant covers it at less cost"
        followed[key] = decision.to(wanted, rule="follow_demand", why=why)
    return followed


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
        policy, memory = case.policies[key], case.memory[key]
        reasons = []
        floor = decision.desired
        if case.floors[key] > floor:
            floor = case.floors[key]
            load = case.loads[key]
            kept = case.models[load.namespace, load.model_id].kept
            most = kept.largest(case.at_s, span_s=load.window_s)
            reasons.append(
                f"{floor} needed within the last {load.window_s:.0f} s (scale_down_window): "
                f"{most:.4g} {load.unit}"
            )
        published = memory.published.largest(case.at_s, span_s=policy.down_period_s)
        if published is not None:
            step = max(1, int(published * policy.max_down_share))
            if published - step > floor:
                floor = int(published - step)
                reasons.append(
                    f"at most {step} of {published:g} fewer per {policy.down_period_s:g} s"
                )
        if reasons:
            decision = decision.to(floor, rule="settle_down", why="; ".join(reasons))
        settled[key] = decision
    return settled


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
            why = f"limited: {decision.desired} wanted, max_replicas is {variant.max_replicas}"
            decision = decision.to(count, rule="stay_in_bounds", why=why)
        bounded[key] = decision
    return bounded


RULES: tuple[Rule, ...] = (follow_demand, hold_when_blind, settle_down, stay_in_bounds)
"""The order is the policy: a later rule has the last word over an earlier one."""

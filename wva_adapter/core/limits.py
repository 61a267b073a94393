"""What can be added of each variant where accelerators, quotas or nodes are scarce."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wva_adapter.core.allocation import Option
from wva_adapter.core.case import Case, Decisions
from wva_adapter.core.change import replace
from wva_adapter.core.decision import Decision
from wva_adapter.core.fleet import LoadKey
from wva_adapter.core.inventory import NamespaceQuota
from wva_adapter.core.power import price_per_h
from wva_adapter.core.room import Quota, Supply
from wva_adapter.core.sharing import Counts, Grants, ModelRequest, share
from wva_adapter.core.snapshot import Phase, VariantState


@dataclass(frozen=True, slots=True)
class Scarcity:
    """The common problem of all models that want more than there is.

    Attributes:
        requests: What each model asks for, the counts that it would like with it.
        supply: What replicas can be added on.
        change_penalty: Share of a replica's cost that a change must save.
    """

    requests: tuple[ModelRequest, ...]
    supply: Supply
    change_penalty: float


def limit_accelerators(decisions: Decisions, case: Case) -> Decisions:
    """Grant what is added as far as inventory, quotas and nodes go; what runs is never bounded.

    Who is worst served of the highest priority comes first. What one variant cannot get, another
    one of its model may.
    """
    if not _asks(decisions, case):
        return decisions
    problem = scarcity(decisions, case)
    if not problem.supply.bounded:
        return decisions
    grants = share(
        problem.requests,
        problem.supply,
        change_penalty=problem.change_penalty,
        previous=_previous(decisions, case),
        proposal=_in_bounds(case.proposal, problem.requests),
    )
    granted = dict(decisions)
    for request in problem.requests:
        for option in request.options:
            decision, count = decisions[option.key], grants.counts[option.key]
            if count != decision.desired:
                granted[option.key] = _granted(decision, count, request, grants)
    return granted


def scarcity(decisions: Decisions, case: Case) -> Scarcity:
    """Return what all models ask for together, as these decisions have it."""
    requests = tuple(_request(key, members, case) for key, members in case.by_load(decisions))
    # The penalty of changes is one for all; where models differ, the smallest hinders nobody.
    penalty = min((case.policies[key].change_penalty for key in decisions), default=0.0)
    return Scarcity(requests, _supply(decisions, case), penalty)


def _asks(decisions: Decisions, case: Case) -> bool:
    bounded = case.inventory.bounded or bool(case.quotas)
    return bounded and any(d.desired > d.current for d in decisions.values())


def _request(key: LoadKey, members: Sequence[Decision], case: Case) -> ModelRequest:
    load = case.loads[members[0].key]
    rises = any(decision.desired > decision.current for decision in members)
    options = []
    for decision in members:
        state, standing = case.states[decision.key], case.standings[decision.key]
        variant, highest = state.variant, decision.desired
        policy, watts = (
            case.policies[decision.key],
            case.watts(decision.key, load.utilization.highest),
        )
        if rises and standing.infeasible is None:
            # What a sibling does not get it may take over.
            highest = max(highest, standing.asked + policy.max_up_step)
            if variant.max_replicas is not None:
                highest = max(decision.desired, min(highest, variant.max_replicas))
        options.append(
            Option(
                key=decision.key,
                capacity=load.capacity.get(decision.key, 1.0),
                cost_per_h=price_per_h(
                    policy.objective, decision.cost_per_h, watts, policy.power_price_per_kwh
                ),
                current=decision.current,
                lowest=min(decision.desired, decision.current),
                highest=highest,
                accelerator=decision.accelerator,
                devices=variant.accelerators_per_replica,
                pending=_without_devices(state),
                tolerations=variant.tolerations,
                power_w=watts,
                resource=variant.resource,
            )
        )
    wanted = {decision.key: decision.desired for decision in members}
    need = sum(option.capacity * wanted[option.key] for option in options)
    priority = case.policies[members[0].key].priority
    return ModelRequest(
        key.namespace, key.model_id, need, tuple(options), priority, wanted, key.role
    )


def _without_devices(state: VariantState) -> int:
    """Return how many replicas that were asked for hold no device yet."""
    placed = sum(
        replica.phase is Phase.READY
        or (replica.phase is Phase.STARTING and replica.node is not None)
        for replica in state.replicas
    )
    return max(0, (state.spec_replicas or 0) - placed)


def _supply(decisions: Decisions, case: Case) -> Supply:
    inventory = case.inventory
    # A variant whose count is unknown holds what its pods hold.
    elsewhere = [
        (
            state.variant.key.namespace,
            state.variant.accelerator,
            state.variant.accelerators_per_replica * len(state.replicas),
        )
        for state in case.unknown
    ]
    limits = {
        accelerator: devices - sum(n for _, other, n in elsewhere if other == accelerator)
        for accelerator, devices in inventory.accelerators.items()
    }

    def left(quota: NamespaceQuota) -> int:
        held = sum(
            case.states[key].variant.accelerators_per_replica * decision.current
            for key, decision in decisions.items()
            if key.namespace == quota.namespace
            and quota.accelerator in (None, decision.accelerator)
        )
        held += sum(
            devices
            for namespace, accelerator, devices in elsewhere
            if namespace == quota.namespace and quota.accelerator in (None, accelerator)
        )
        return max(0, quota.devices - held)

    return Supply(
        nodes=case.nodes if inventory.fixed_nodes else None,
        limits=limits,
        quotas=tuple(
            Quota(
                quota.namespace,
                f"of {quota.devices} {quota.accelerator or 'devices'}",
                left(quota),
                quota.accelerator,
            )
            for quota in inventory.quotas
        )
        + _of_objects(case),
    )


def _of_objects(case: Case) -> tuple[Quota, ...]:
    """Return the ResourceQuotas that bound some variant, as the objects have them now."""
    found = []
    for quota in sorted(case.quotas, key=lambda q: (q.namespace, q.name, q.key)):
        takers = [s for s in case.states.values() if quota.uses(s.variant)]
        if takers:
            # What was asked for and is not there yet will take of it what it needs.
            due = sum(quota.uses(state.variant) * state.missing for state in takers)
            left = max(0, quota.left - due)
            found.append(Quota(quota.namespace, str(quota), left, resource=quota.resource))
    return tuple(found)


def _previous(decisions: Decisions, case: Case) -> Counts | None:
    """Return the counts that were published last; ``None`` where one is not known."""
    found = {}
    for key in decisions:
        entries = case.memory[key].published.entries
        if not entries:
            return None
        found[key] = int(entries[-1][1])
    return found


def _in_bounds(proposal: Counts | None, requests: Sequence[ModelRequest]) -> Counts | None:
    """Return a proposal that was made some cycles ago within the bounds of today."""
    if proposal is None:
        return None
    return {
        option.key: min(max(proposal[option.key], option.lowest), option.highest)
        for request in requests
        for option in request.options
        if option.key in proposal
    }


def _granted(decision: Decision, count: int, request: ModelRequest, grants: Grants) -> Decision:
    why = grants.limited.get(decision.key)
    if why is None:
        instead = [o.key.name for o in request.options if o.key in grants.limited]
        verb = "more" if count > decision.desired else "fewer"
        why = f"{abs(count - decision.desired)} {verb}"
        why += f" in place of {', '.join(instead)}" if instead else ", as all models need least"
    if grants.method == "proposal":
        why += "; the plan that was worked out beside the cycle is worth more than one by turns"
    limited = decision.to(count, rule="limit_accelerators", why=why)
    if count < decision.desired:
        limited = replace(limited, limited=limited.limited or why)
    return limited

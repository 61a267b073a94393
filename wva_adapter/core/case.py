"""What the rules may look at, and what a rule is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from wva_adapter.core.decision import Decision
from wva_adapter.core.feasibility import Standing
from wva_adapter.core.fleet import LoadKey, NodeState, VariantKey
from wva_adapter.core.guards import Guard
from wva_adapter.core.inventory import Inventory, ResourceQuota
from wva_adapter.core.load import ModelLoad
from wva_adapter.core.memory import ModelMemory, VariantMemory
from wva_adapter.core.policy import Policy
from wva_adapter.core.power import draw_of
from wva_adapter.core.snapshot import VariantState
from wva_adapter.core.zero import Rest


@dataclass(frozen=True, slots=True)
class Case:
    """What the rules may look at.

    Attributes:
        at_s: Unix time now.
        policies: By variant, windows and steps.
        states: The variants as they stand.
        loads: Per variant, the load of its model, or of its role's part of it.
        wanted: Counts of the allocation, one step at most.
        floors: Counts that carry what had to be kept within the scale-down window.
        models: Per load, its past with this cycle in it.
        memory: Per variant, its past.
        standings: Per variant, what exists of it and whether more would get a place.
        limits: Per variant, why there can be no more, where its model needs more than all carry.
        rests: Per load, whether it may go without replicas.
        stays: Per variant, why more of it stay than carry what has to be carried.
        guards: What the operator holds counts by.
        inventory: What replicas may be put on.
        nodes: The nodes with accelerators; ``None`` where they could not be read.
        unknown: Variants whose count could not be read.
        proposal: Counts that a slower method found for an earlier cycle; ``None`` without one.
        quotas: What ResourceQuota objects bound, as far as they could be read.
    """

    at_s: float
    policies: Mapping[VariantKey, Policy]
    states: Mapping[VariantKey, VariantState]
    loads: Mapping[VariantKey, ModelLoad]
    wanted: Mapping[VariantKey, int]
    floors: Mapping[VariantKey, int]
    models: Mapping[LoadKey, ModelMemory]
    memory: Mapping[VariantKey, VariantMemory]
    standings: Mapping[VariantKey, Standing]
    limits: Mapping[VariantKey, str]
    rests: Mapping[LoadKey, Rest]
    stays: Mapping[VariantKey, str] = field(default_factory=dict)
    guards: tuple[Guard, ...] = ()
    inventory: Inventory = field(default_factory=Inventory)
    nodes: tuple[NodeState, ...] | None = None
    unknown: tuple[VariantState, ...] = ()
    proposal: Mapping[VariantKey, int] | None = None
    quotas: tuple[ResourceQuota, ...] = ()

    def watts(self, key: VariantKey, share: float) -> float:
        """Return what one replica of a variant draws at a share of what it can carry."""
        variant = self.states[key].variant
        each = draw_of(variant.accelerator, self.inventory.draws).at(share)
        return variant.accelerators_per_replica * each

    def by_load(self, decisions: Decisions) -> Iterator[tuple[LoadKey, Sequence[Decision]]]:
        """Yield each load with the decisions on those who share it, in the order of their keys."""
        groups: dict[int, list[Decision]] = defaultdict(list)
        for key in sorted(decisions):
            groups[id(self.loads[key])].append(decisions[key])
        found = ((self.loads[its[0].key].key, its) for its in groups.values())
        yield from sorted(found, key=itemgetter(0))

    def cheapest(self, decisions: Sequence[Decision]) -> Decision | None:
        """Return the cheapest that may have a replica, of those that get a place if there are any."""
        able = [d for d in decisions if self.states[d.key].variant.max_replicas != 0]
        placed = [d for d in able if self.standings[d.key].infeasible is None]
        return min(placed or able, key=lambda d: (d.cost_per_h, d.key), default=None)


Decisions = Mapping[VariantKey, Decision]
Rule = Callable[[Decisions, Case], Decisions]

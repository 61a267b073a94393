"""What the sources know of the fleet, joined with what its replicas said, as one Snapshot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

from wva_adapter.core.fleet import Variant, VariantKey
from wva_adapter.core.guards import Guard, budget_problems
from wva_adapter.core.snapshot import (
    Phase,
    ReplicaSample,
    ReplicaState,
    Snapshot,
    VariantState,
)


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """A replica as its source knows it.

    Attributes:
        uid: Unique over the replica's life and all sources; a restarted one gets a new uid.
        name: Pod name, or the replica's name in a static file.
        url: Where its metrics page is; ``None`` where that could not be worked out.
        problem: Why ``url`` is ``None``.
        unscheduled: Why it has no node, as the scheduler puts it; ``None`` where nothing says.
        unscheduled_since_s: Unix time since when it has none; ``None`` where nothing says.
        node: The node that it runs on; ``None`` where it has none yet, or nothing says.
        deletion_cost: The lower, the sooner its controller removes it; ``None`` where nothing says.
        ordinal: Its place in a StatefulSet, whose highest goes first; ``None`` in any other.
        pulling_since_s: Unix time from which its image was pulled, if it was; ``None`` where nothing
            says.
        began_at_s: Unix time at which its engine's container began, for the first time; ``None``
            where it has not yet, or nothing says.
    """

    uid: str
    name: str
    url: str | None
    phase: Phase
    created_at_s: float | None = None
    ready_at_s: float | None = None
    problem: str | None = None
    unscheduled: str | None = None
    unscheduled_since_s: float | None = None
    node: str | None = None
    deletion_cost: int | None = None
    ordinal: int | None = None
    pulling_since_s: float | None = None
    began_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class VariantView:
    """A variant as its source knows it; the counts are ``None`` where they could not be read."""

    variant: Variant
    spec_replicas: int | None
    status_replicas: int | None
    replicas: tuple[ReplicaView, ...]
    problem: str | None = None
    refused: str | None = None


class Source(Protocol):
    """Where variants come from: the cluster, or a static file."""

    @property
    def name(self) -> str:
        """What a person would call it: ``cluster``, or the file's name."""
        ...

    def view(self) -> Sequence[VariantView]:
        """Return the variants as known now, without waiting."""
        ...


@dataclass(frozen=True, slots=True)
class Scraped:
    """What is known of one replica's page.

    Attributes:
        sample: The last page that could be read; ``None`` if there never was one.
        problem: Why the latest scrape brought nothing; ``None`` if it brought a page.
    """

    sample: ReplicaSample | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class InFlight:
    """What gateways sent somewhere that is not answered yet; ``None`` is unknown.

    Attributes:
        requests: Until their answer ends.
        tokens: Those to compute for them, as ``ReplicaState.in_flight_tokens`` counts them.
    """

    requests: float | None = None
    tokens: float | None = None


def assemble(
    views: Sequence[VariantView],
    scraped: Mapping[str, Scraped],
    at_s: float,
    guards: Sequence[Guard] = (),
    in_flight: Mapping[str, InFlight] = MappingProxyType({}),
) -> tuple[Snapshot, tuple[str, ...]]:
    """Return the fleet as one snapshot, and what contradicts itself in it.

    Args:
        views: Of all sources, the sources in the order in which they take precedence.
        scraped: By replica uid; what is not listed was not asked yet.
        at_s: Unix time now.
        guards: What the operator holds counts by now.
        in_flight: By replica uid; of what is not listed no gateway tells.

    Returns:
        The snapshot, sorted by variant, and a sentence per conflict: a variant that two sources
        name is taken from the first one and never silently, and a budget that does not pay the
        fewest replicas takes no more than what is above them.
    """
    states: dict[VariantKey, VariantState] = {}
    conflicts = []
    for view in views:
        key = view.variant.key
        if key in states:
            conflicts.append(
                f"{key}: named twice; the first one ({states[key].variant.target}) counts"
            )
            continue
        states[key] = VariantState(
            variant=view.variant,
            spec_replicas=view.spec_replicas,
            status_replicas=view.status_replicas,
            replicas=tuple(
                _replica(r, scraped.get(r.uid, Scraped()), in_flight.get(r.uid, _UNTOLD))
                for r in view.replicas
            ),
            problem=view.problem,
            refused=view.refused,
        )
    conflicts += budget_problems(guards, [state.variant for state in states.values()])
    variants = tuple(states[key] for key in sorted(states))
    return Snapshot(at_s, variants, guards=tuple(guards)), tuple(conflicts)


_UNTOLD = InFlight()


def _replica(view: ReplicaView, scraped: Scraped, sent: InFlight) -> ReplicaState:
    sample = scraped.sample
    if sample is not None and sample.replica != view.name:
        sample = replace(sample, replica=view.name)
    return ReplicaState(
        name=view.name,
        phase=view.phase,
        created_at_s=view.created_at_s,
        ready_at_s=view.ready_at_s,
        sample=sample,
        problem=view.problem or scraped.problem,
        node=view.node,
        unscheduled=view.unscheduled,
        unscheduled_since_s=view.unscheduled_since_s,
        uid=view.uid,
        deletion_cost=view.deletion_cost,
        ordinal=view.ordinal,
        pulling_since_s=view.pulling_since_s,
        began_at_s=view.began_at_s,
        in_flight_requests=sent.requests,
        in_flight_tokens=sent.tokens,
    )

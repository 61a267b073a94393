"""Pods: when they are created, become ready, drain and go, and what they cost meanwhile."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from wva_adapter.core.fleet import Role
from wva_adapter.core.snapshot import Phase
from wva_adapter.sim.agenda import PODS, Agenda
from wva_adapter.sim.hardware import Hardware
from wva_adapter.sim.replica import Replica
from wva_adapter.sim.request import Counters
from wva_adapter.sim.scaler import PodView, VariantView

if TYPE_CHECKING:
    from wva_adapter.sim.router import Gateway

RemovalOrder = Literal["newest", "random", "deletion-cost"]

STARTUP_SPREAD = 0.15
"""A start takes up to this share longer or shorter than its mean."""

SERVED_BEFORE_S = 3600.0
"""For so long the replicas that are there at the beginning have served."""

_DRAWN_AT_ONCE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """One variant as its operator deployed it.

    Attributes:
        hardware: What one replica is.
        usd_per_h: Price of one replica, billed from a pod's creation to its end.
        start_replicas: Replicas that are ready at the beginning.
        startup_s: Mean time from a pod's creation to Ready.
        max_num_seqs: Most requests in one replica's batch.
        role: What its replicas do; where some prefill, others decode.
    """

    name: str
    hardware: Hardware
    usd_per_h: float
    min_replicas: int = 1
    max_replicas: int = 20
    start_replicas: int = 2
    startup_s: float = 120.0
    max_num_seqs: int = 256
    role: Role = "both"


class Pod:
    """One pod and its engine.

    Attributes:
        name: Unique over the run.
        ordinal: How many of its variant were created before it.
        created_s: From when it is billed.
        told_created_s: When it was created, as its API object tells.
        ready_at_s: From when it serves; infinite before.
        ended_s: When it was gone; infinite before.
        due_s: When its engine has something to tell; infinite while it is idle.
        slot: Its place at the gateway; -1 while it has none.
        in_flight: Requests that the gateway sent there and that have not ended.
        unprefilled_tokens: Prompt tokens, those in the prefix cache aside, of those of them without a
            first token.
        removal: Rank among equals when pods are removed at random.
        scheduled: Whether a node has room for it; a pod without one is not billed.
        startup_s: From a node to Ready.
        gateway: Who sends it requests, once it serves.
        past: What its engines did that ended before the one that it has.
    """

    __slots__ = (
        "created_s",
        "due_s",
        "ended_s",
        "gateway",
        "group",
        "in_flight",
        "name",
        "ordinal",
        "past",
        "phase",
        "ready_at_s",
        "removal",
        "replica",
        "scheduled",
        "slot",
        "startup_s",
        "told_created_s",
        "unprefilled_tokens",
    )

    def __init__(self, group: Group, ordinal: int, created_s: float, removal: float) -> None:
        self.group = group
        self.ordinal = ordinal
        self.name = f"{group.deployed.name}-{ordinal}"
        self.created_s = created_s
        self.told_created_s = created_s
        self.ready_at_s = math.inf
        self.ended_s = math.inf
        self.phase = Phase.STARTING
        self.replica: Replica | None = None
        self.due_s = math.inf
        self.slot = -1
        self.in_flight = 0
        self.unprefilled_tokens = 0
        self.removal = removal
        self.scheduled = True
        self.startup_s = 0.0
        self.gateway: Gateway | None = None
        self.past: list[Counters] = []


class Change(NamedTuple):
    """A count that was asked for, and why as far as the law tells."""

    at_s: float
    replicas: int
    why: str = ""


class Group:
    """The pods of one variant.

    Attributes:
        deployed: What the variant is.
        spec_replicas: The count that was asked for last.
        pods: Those that exist, oldest first.
        gone: Those that existed.
        changes: Counts that were asked for.
        room: Most pods that nodes have room for; ``None`` for as many as are asked for.
        sent: Requests that its pods got.
        ttfts_s: Times to first token since the last scrape.
        itls_s: Mean inter-token times of what finished since the last scrape.

    Args:
        deployed: What the variant is.
        generator: Of start-up times.
        leap: Whether its engines take equal steps at once.
    """

    def __init__(
        self, deployed: Deployed, generator: np.random.Generator, *, leap: bool = True
    ) -> None:
        self.deployed = deployed
        self.spec_replicas = 0
        self.pods: list[Pod] = []
        self.gone: list[Pod] = []
        self.changes: list[Change] = []
        self.room: int | None = None
        self.sent = 0
        self.ttfts_s: list[float] = []
        self.itls_s: list[float] = []
        self.leap = leap
        self._generator = generator
        self._drawn: list[tuple[float, float]] = []
        self._created = 0

    def create(self, at_s: float) -> Pod:
        """Return a new pod.

        How long it takes to start, and its rank, come from the pod's ordinal alone, so the n-th pod of a variant starts as fast
        whichever law asks for it, and whenever.
        """
        while self._created >= len(self._drawn):
            drawn = self._generator.random((_DRAWN_AT_ONCE, 2))
            self._drawn.extend((float(a), float(b)) for a, b in drawn)
        spread, removal = self._drawn[self._created]
        pod = Pod(self, self._created, at_s, removal)
        self._created += 1
        self.pods.append(pod)
        pod.startup_s = self.deployed.startup_s * (1 + STARTUP_SPREAD * (2 * spread - 1))
        return pod

    def view(self) -> VariantView:
        """Return what the API server tells of it."""
        deployed = self.deployed
        pods = [
            PodView(
                pod.name,
                pod.phase,
                pod.told_created_s,
                pod.ready_at_s if pod.phase is not Phase.STARTING else None,
                pod.scheduled,
            )
            for pod in self.pods
        ]
        return VariantView(
            deployed.name, self.spec_replicas, deployed.min_replicas, deployed.max_replicas, pods
        )

    def serving(self) -> list[Pod]:
        """Return the pods that are ready, oldest first."""
        return [pod for pod in self.pods if pod.phase is Phase.READY]


class Cluster:
    """Keeps as many pods of each variant as are asked for.

    Args:
        agenda: Where pods put down what will happen to them.
        groups: One per variant.
        removal_order: Which of the ready ones go first; those that are not ready always do.
        grace_s: How long a pod may go on with what it has.
        on_ready: Told of a pod that serves from now on.
        on_leaving: Told of a pod that is to take no more requests, while it may finish its own.
        on_killed: Told of a pod whose grace is over; what it still has is lost.
    """

    def __init__(
        self,
        agenda: Agenda,
        groups: Sequence[Group],
        *,
        removal_order: RemovalOrder,
        grace_s: float,
        on_ready: Callable[[Pod, float], None],
        on_leaving: Callable[[Pod, float], None],
        on_killed: Callable[[Pod, float], None],
    ) -> None:
        self._agenda = agenda
        self.groups = groups
        self._removal_order = removal_order
        self._grace_s = grace_s
        self._on_ready = on_ready
        self._on_leaving = on_leaving
        self._on_killed = on_killed

    def begin(self) -> None:
        """Let the replicas that are there from the beginning be ready."""
        for group in self.groups:
            group.spec_replicas = group.deployed.start_replicas
            group.changes.append(Change(0.0, group.spec_replicas))
            for _ in range(group.spec_replicas):
                pod = group.create(0.0)
                self._ready(pod, 0.0)
                # They are billed from the beginning, and have served for longer.
                pod.ready_at_s = -SERVED_BEFORE_S
                pod.told_created_s = pod.ready_at_s - pod.startup_s

    def set_count(self, group: Group, count: int, at_s: float, why: str = "") -> None:
        """Ask for so many pods of a variant; its bounds are kept."""
        deployed = group.deployed
        count = min(max(count, deployed.min_replicas), deployed.max_replicas)
        if count == group.spec_replicas:
            return
        group.spec_replicas = count
        group.changes.append(Change(at_s, count, why))
        self._reconcile(group, at_s)

    def _reconcile(self, group: Group, at_s: float) -> None:
        kept = [pod for pod in group.pods if pod.phase is not Phase.TERMINATING]
        for _ in range(group.spec_replicas - len(kept)):
            pod = group.create(at_s)
            pod.scheduled = False
        self._schedule(group, at_s)
        excess = len(kept) - group.spec_replicas
        if excess > 0:
            for pod in sorted(kept, key=self._removal_key)[:excess]:
                self._remove(pod, at_s)

    def _schedule(self, group: Group, at_s: float) -> None:
        """Give pods to nodes, the oldest first, as far as there is room."""
        placed = sum(pod.scheduled for pod in group.pods)
        for pod in group.pods:
            if pod.scheduled or pod.phase is not Phase.STARTING:
                continue
            if group.room is not None and placed >= group.room:
                break
            placed += 1
            pod.scheduled = True
            self._agenda.push(at_s + pod.startup_s, self._ready, pod, PODS)

    def lose(self, group: Group, count: int, at_s: float, *, back_s: float) -> None:
        """Let the oldest ``count`` ready pods be gone with their nodes, which come back later.

        What they had is lost. New ones take their place at once, and wait for a node.
        """
        lost = group.serving()[:count]
        group.room = None if back_s <= 0 else len(group.pods) - len(lost)
        for pod in lost:
            pod.phase = Phase.TERMINATING
            self._kill(pod, at_s)
        self._reconcile(group, at_s)
        if group.room is not None:
            self._agenda.push(at_s + back_s, self._back, group, PODS)

    def restart(self, group: Group, count: int, at_s: float) -> None:
        """Let the engines of the oldest ``count`` ready pods end and start again in their pods.

        What they had is lost; the pods stay, and are billed.
        """
        for pod in group.serving()[:count]:
            pod.phase = Phase.STARTING
            self._on_killed(pod, at_s)
            assert pod.replica is not None
            pod.past.append(pod.replica.counters)
            pod.replica = None
            pod.ready_at_s = math.inf
            self._agenda.push(at_s + pod.startup_s, self._ready, pod, PODS)

    def _back(self, group: Group, at_s: float) -> None:
        group.room = None
        self._schedule(group, at_s)

    def _removal_key(self, pod: Pod) -> tuple[bool, float, float]:
        """Return what sorts first what goes first."""
        ready = pod.phase is Phase.READY
        rank = 0.0
        if ready and self._removal_order == "random":
            rank = pod.removal
        elif ready and self._removal_order == "deletion-cost":
            rank = pod.in_flight
        return ready, rank, -(pod.ready_at_s if ready else pod.created_s)

    def _ready(self, pod: Pod, at_s: float) -> None:
        if pod.phase is not Phase.STARTING:
            return
        deployed = pod.group.deployed
        pod.phase = Phase.READY
        pod.ready_at_s = at_s
        pod.replica = Replica(
            deployed.hardware, max_num_seqs=deployed.max_num_seqs, leap=pod.group.leap
        )
        pod.replica.advance(at_s)
        self._on_ready(pod, at_s)

    def _remove(self, pod: Pod, at_s: float) -> None:
        if pod.phase is Phase.STARTING:
            pod.phase = Phase.TERMINATING
            self.end(pod, at_s)
            return
        pod.phase = Phase.TERMINATING
        self._on_leaving(pod, at_s)
        if pod.ended_s == math.inf:
            self._agenda.push(at_s + self._grace_s, self._kill, pod, PODS)

    def _kill(self, pod: Pod, at_s: float) -> None:
        if pod.ended_s == math.inf:
            self._on_killed(pod, at_s)
            # It may have had its last answer in this very moment.
            if pod.ended_s == math.inf:
                self.end(pod, at_s)

    def end(self, pod: Pod, at_s: float) -> None:
        """Let a pod be gone; it costs nothing from now on."""
        pod.ended_s = at_s
        pod.group.pods.remove(pod)
        pod.group.gone.append(pod)

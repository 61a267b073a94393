"""What is new on replicas' pages: how they served since the page before, and whether they move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wva_adapter.core.fleet import VariantKey
from wva_adapter.core.interval import Interval, has_caught_up, interval
from wva_adapter.core.memory import ReplicaKey, ReplicaMemory
from wva_adapter.core.snapshot import ReplicaState, VariantState

STUCK_AFTER_S = 120.0
"""A replica in which requests wait and nothing moved for so long serves nobody."""


@dataclass(frozen=True, slots=True)
class Pages:
    """The pages of one cycle.

    Attributes:
        replicas: What is remembered of every ready replica, these pages taken in.
        news: By variant, each replica with a new page and what it did since the one before.
        ready: By variant, each ready replica with what is remembered of it.
    """

    replicas: Mapping[ReplicaKey, ReplicaMemory] = field(default_factory=dict)
    news: Mapping[VariantKey, Sequence[tuple[ReplicaState, Interval]]] = field(default_factory=dict)
    ready: Mapping[VariantKey, Sequence[tuple[ReplicaState, ReplicaMemory]]] = field(
        default_factory=dict
    )

    def of(self, state: VariantState, replica: ReplicaState) -> ReplicaMemory:
        """Return what is remembered of a ready replica."""
        return self.replicas[state.variant.key, replica.name]


def take_pages(states: Sequence[VariantState], memory: Mapping[ReplicaKey, ReplicaMemory]) -> Pages:
    """Return what the pages of ``states`` add to what is remembered.

    Args:
        states: Every variant.
        memory: Of every replica that was ready before, its past.
    """
    replicas: dict[ReplicaKey, ReplicaMemory] = {}
    ready: dict[VariantKey, list[tuple[ReplicaState, ReplicaMemory]]] = {}
    news: dict[VariantKey, list[tuple[ReplicaState, Interval]]] = {}
    for state in states:
        key = state.variant.key
        seen = ready[key] = []
        for replica in state.ready:
            place = (key, replica.name)
            past = memory.get(place, _UNSEEN)
            page, before = replica.sample, past.page
            if page is None or (before is not None and page.at_s <= before.at_s):
                replicas[place] = past
                seen.append((replica, past))
                continue
            done = None if before is None else interval(before, page)
            arrivals, moved_at_s = past.arrivals_per_s, past.moved_at_s
            if done is not None:
                news.setdefault(key, []).append((replica, done))
                if done.arrivals is not None:
                    arrivals = done.arrivals / done.span_s
            if moved_at_s is None or not page.queued_requests or _moved(done):
                moved_at_s = page.at_s
            now = ReplicaMemory(
                past.kv_cache_usage,
                past.queued_requests,
                past.read_at_s,
                page,
                arrivals,
                moved_at_s,
                past.caught_up or has_caught_up(page, replica),
            )
            replicas[place] = now
            seen.append((replica, now))
    return Pages(replicas, news, ready)


_UNSEEN = ReplicaMemory()


def _moved(done: Interval | None) -> bool:
    # A counter that was reset says that the engine came back to life.
    return done is None or done.itl_count > 0 or bool(done.started) or bool(done.finished)


def is_stuck(memory: ReplicaMemory, at_s: float) -> bool:
    """Return whether requests wait in a replica in which nothing moves."""
    return memory.moved_at_s is not None and at_s - memory.moved_at_s >= STUCK_AFTER_S

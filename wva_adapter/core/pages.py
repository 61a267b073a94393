"""What is new on replicas' pages: how they served since the page before, and whether they move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wva_adapter.core.fleet import VariantKey
from wva_adapter.core.interval import Interval, has_caught_up, interval
from wva_adapter.core.memory import UNSEEN_REPLICA, ReplicaMemory
from wva_adapter.core.snapshot import ReplicaState, VariantState

STUCK_AFTER_S = 120.0
"""A replica in which requests wait and nothing moved for so long serves nobody."""


@dataclass(frozen=True, slots=True)
class Pages:
    """The pages of one cycle.

    Attributes:
        replicas: By variant and name, what is remembered of every ready replica, these pages
            taken in; in the order of ``VariantState.ready``.
        news: By variant and name, what each replica with a new page did since the one before.
        woke_s: By variant, what engines that slept on the page before took to wake, at most.
    """

    replicas: Mapping[VariantKey, Mapping[str, ReplicaMemory]] = field(default_factory=dict)
    news: Mapping[VariantKey, Mapping[str, Interval]] = field(default_factory=dict)
    woke_s: Mapping[VariantKey, Sequence[float]] = field(default_factory=dict)

    def of(self, state: VariantState, replica: ReplicaState) -> ReplicaMemory:
        """Return what is remembered of a ready replica."""
        return self.replicas[state.variant.key][replica.name]


def take_pages(
    states: Sequence[VariantState], memory: Mapping[VariantKey, Mapping[str, ReplicaMemory]]
) -> Pages:
    """Return what the pages of ``states`` add to what is remembered.

    Args:
        states: The variants to look at.
        memory: By variant and name, of every replica that was ready before, its past.
    """
    replicas: dict[VariantKey, Mapping[str, ReplicaMemory]] = {}
    news: dict[VariantKey, Mapping[str, Interval]] = {}
    woke_s: dict[VariantKey, list[float]] = {}
    for state in states:
        key = state.variant.key
        past_of = memory.get(key, {})
        now_of: dict[str, ReplicaMemory] = {}
        done_of: dict[str, Interval] = {}
        for replica in state.ready:
            name = replica.name
            past = past_of.get(name, UNSEEN_REPLICA)
            page, before = replica.sample, past.page
            if page is None or (before is not None and page.at_s <= before.at_s):
                now_of[name] = past
                continue
            done = None if before is None else interval(before, page)
            if before is not None and before.awake is False and page.awake:
                woke_s.setdefault(key, []).append(page.at_s - before.at_s)
            arrivals, moved_at_s = past.arrivals_per_s, past.moved_at_s
            if done is not None:
                done_of[name] = done
                if done.arrivals is not None:
                    arrivals = done.arrivals / done.span_s
            if moved_at_s is None or not page.queued_requests or _moved(done):
                moved_at_s = page.at_s
            now_of[name] = ReplicaMemory(
                past.kv_cache_usage,
                past.queued_requests,
                past.read_at_s,
                page,
                arrivals,
                moved_at_s,
                past.caught_up or has_caught_up(page, replica),
            )
        replicas[key], news[key] = now_of, done_of
    return Pages(replicas, news, woke_s)


def _moved(done: Interval | None) -> bool:
    # A counter that was reset says that the engine came back to life.
    return done is None or done.itl_count > 0 or bool(done.started) or bool(done.finished)


def is_stuck(memory: ReplicaMemory) -> bool:
    """Return whether requests wait in a replica in which nothing moves, as its last page has it.

    One that cannot be read is not known to be.
    """
    page, moved_at_s = memory.page, memory.moved_at_s
    return page is not None and moved_at_s is not None and page.at_s - moved_at_s >= STUCK_AFTER_S

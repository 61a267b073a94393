"""A restart, as decisions see it: the same fleet looked at with one memory, and with a kept one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings

from tests.builders import a_state, decide
from tests.core.test_remembered import arrivals, with_days
from tests.core.test_rules import POLICIES, histories
from wva_adapter.core.fleet import VariantKey
from wva_adapter.core.memory import Memory
from wva_adapter.core.planner import plan
from wva_adapter.core.policy import Policy
from wva_adapter.core.remembered import bounded, from_document, resumed, to_document
from wva_adapter.core.snapshot import Snapshot
from wva_adapter.sim import files
from wva_adapter.sim.adapter import AdapterScaler
from wva_adapter.sim.scaler import VariantView
from wva_adapter.sim.scenarios import scenario
from wva_adapter.sim.world import Stage, run

Counts = dict[VariantKey, int]

RESTARTS = (60, 240, 420)
"""Cycles before which the adapter is restarted: after 5, 20 and 35 minutes."""


@cache
def watched(name: str) -> tuple[Policy, Sequence[Snapshot]]:
    """Return how a simulated fleet is decided on, and what was seen of it each 5 s for 40 minutes."""
    setting = replace(scenario(name, files), horizon_s=2400.0)
    policy = Policy(slo_ttft_s=setting.slo.ttft_s, slo_itl_s=setting.slo.itl_s)
    seen: list[Snapshot] = []

    class Watching(AdapterScaler):
        def _snapshot(self, now_s: float, fleet: Sequence[VariantView]) -> Snapshot:
            seen.append(super()._snapshot(now_s, fleet))
            return seen[-1]

    def make(stage: Stage) -> Watching:
        return Watching(stage.scenario, stage.observatory, policy)

    run(setting, make, 0)
    return policy, seen


@cache
def undisturbed(name: str) -> tuple[Sequence[Counts], Sequence[Memory]]:
    """Return what is decided in each cycle without a restart, and the memory before it."""
    return played(name)


def played(
    name: str, *, start: int = 0, memory: Memory | None = None
) -> tuple[list[Counts], list[Memory]]:
    policy, seen = watched(name)
    counts, memories = [], [memory or Memory()]
    for snapshot in seen[start:]:
        planned, after = plan(snapshot, policy, memories[-1])
        counts.append({key: one.desired for key, one in planned.decisions.items()})
        memories.append(after)
    return counts, memories


def changed_by(name: str, restart: Callable[[Memory], Memory]) -> list[int]:
    """Return by how many replicas counts after a restart differ, where they do."""
    without, memories = undisturbed(name)
    found = []
    for start in RESTARTS:
        counts, _ = played(name, start=start, memory=restart(memories[start]))
        found += differences(without[start:], counts)
    return found


def over_a_restart(memory: Memory) -> Memory:
    text = json.dumps(to_document(bounded(memory)), allow_nan=False)
    return resumed(from_document(json.loads(text)), gap_s=15.0)


def differences(one: Sequence[Counts], other: Sequence[Counts]) -> list[int]:
    """Return by how many replicas each count that differs does."""
    return [
        abs(count - also[key])
        for counts, also in zip(one, other, strict=True)
        for key, count in counts.items()
        if count != also[key]
    ]


@pytest.mark.parametrize("name", ["S1b", "S3"])
def test_a_restart_changes_no_decision_by_more_than_a_replica_for_more_than_a_moment(
    name: str,
) -> None:
    """One page of each replica is missed, and arrivals are kept within 3 %: seldom a count."""
    found = changed_by(name, over_a_restart)

    decided = sum(len(watched(name)[1]) - start for start in RESTARTS)
    assert max(found, default=0) <= 1
    assert len(found) <= 0.005 * decided  # at most 3 of 717


def test_a_restart_that_forgets_does_change_them() -> None:
    found = changed_by("S1b", lambda _: Memory())

    assert len(found) > 10 * 0.005 * sum(len(watched("S1b")[1]) - start for start in RESTARTS)


def test_after_a_long_gap_no_count_falls_before_a_full_window_was_seen() -> None:
    policy = Policy(analysis="saturation")
    _, memory = decide(a_state(usage=0.5, ready=4, at_s=0.0), at_s=0.0, policy=policy)

    # An hour later hardly anything is left of the load; 4 replicas served it meanwhile, or more.
    gap_s = 3600.0
    memory = resumed(over_a_restart(memory), gap_s)
    counts = []
    for at_s in range(3600, 3600 + 310, 5):
        state = a_state(usage=0.01, ready=4, at_s=float(at_s))
        planned, memory = decide(state, at_s=float(at_s), policy=policy, memory=memory)
        counts.append(planned.decisions[state.variant.key].desired)

    assert counts[:60] == [4] * 60  # 300 s
    assert counts[-1] == 3


def test_after_a_short_gap_the_windows_go_on() -> None:
    policy = Policy(analysis="saturation", peak_window_s=0.0)
    memory = Memory()
    counts = []
    for at_s in range(0, 310, 5):
        if at_s == 200:
            memory = over_a_restart(memory)
        state = a_state(usage=0.01, ready=4, at_s=float(at_s))
        planned, memory = decide(state, at_s=float(at_s), policy=policy, memory=memory)
        counts.append(planned.decisions[state.variant.key].desired)

    assert counts[60] == 4
    assert counts[61] == 3  # 300 s after the first look, and not after the restart


def test_what_is_kept_of_a_fleet_is_below_a_megabyte_per_hundred_variants() -> None:
    """A variant that was learned, with a model of its own that was seen for eight days."""
    memory = undisturbed("S3")[1][-1]
    days = with_days(arrivals(20.0), 20.0)
    models = {key: replace(model, arrivals=days) for key, model in memory.models.items()}

    size = len(json.dumps(to_document(bounded(replace(memory, models=models)))))

    assert all(variant.fit is not None for variant in memory.variants.values())
    assert len(models) == len(memory.variants) == 1
    assert size * 100 <= 2**20  # 0.42 MiB


@settings(max_examples=500, deadline=None)
@given(histories(), POLICIES)
def test_every_memory_comes_back_equal_and_decides_the_same(
    history: list[Snapshot], policy: Policy
) -> None:
    memory, back = Memory(), Memory()
    for snapshot in history:
        planned, memory = plan(snapshot, policy, memory)
        again, back = plan(snapshot, policy, back)
        assert again.decisions == planned.decisions
        back = from_document(json.loads(json.dumps(to_document(memory), allow_nan=False)))
        assert back == memory
        kept = bounded(memory)
        assert from_document(json.loads(json.dumps(to_document(kept)))) == bounded(kept) == kept

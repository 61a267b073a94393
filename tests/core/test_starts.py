"""How long replicas take to start, by what their pods begin with: an image to pull, or one there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.builders import a_replica, a_state, a_variant
from wva_adapter.core.leads import coming, start_s, starts_by_kind
from wva_adapter.core.memory import Memory, Start, VariantMemory
from wva_adapter.core.planner import plan
from wva_adapter.core.policy import Policy
from wva_adapter.core.snapshot import Phase, ReplicaState, Snapshot, VariantState

POLICY = Policy()
SEEN = VariantMemory(
    starts=(
        *(Start(1000.0 + i, 60.0, "warm") for i in range(3)),
        *(Start(2000.0 + i, 300.0, "cold") for i in range(3)),
    )
)


def a_pod(name: str, *, scheduled_s: float | None, began_s: float | None = None) -> ReplicaState:
    """Return one that was created at 0, and is on its way."""
    return ReplicaState(name, Phase.STARTING, 0.0, pulling_since_s=scheduled_s, began_at_s=began_s)


@pytest.mark.parametrize(
    ("scheduled_s", "began_s", "at_s", "kind"),
    [
        (None, None, 500.0, None),  # no node yet, or nothing says
        (10.0, None, 25.0, None),  # 15 s tell nothing: the image may be there
        (10.0, None, 31.0, "cold"),  # 21 s, and its container has not begun
        (10.0, 200.0, 500.0, "cold"),  # the image took 190 s
        (10.0, 12.0, 500.0, "warm"),  # 2 s
    ],
)
def test_a_pod_shows_whether_its_image_was_there(
    scheduled_s: float | None, began_s: float | None, at_s: float, kind: str | None
) -> None:
    assert a_pod("p", scheduled_s=scheduled_s, began_s=began_s).start_kind(at_s) == kind


def test_each_pod_on_its_way_is_expected_after_what_others_of_its_kind_took() -> None:
    cold = a_pod("cold", scheduled_s=1.0)
    warm = a_pod("warm", scheduled_s=1.0, began_s=3.0)
    state = a_state(replicas=[cold, warm], spec=2)

    # at 90 s: the cold one in 300 - 90 s; the warm one is 30 s late of 60, so half of it counts
    assert sorted(coming(state, SEEN, 90.0, POLICY)) == [(0.0, 0.5), (210.0, 1.0)]


def test_where_no_start_of_its_kind_was_seen_all_count() -> None:
    state = a_state(replicas=[a_pod("warm", scheduled_s=1.0, began_s=3.0)], spec=1)
    only_cold = replace(SEEN, starts=SEEN.starts[3:])

    assert coming(state, only_cold, 90.0, POLICY) == [(210.0, 1.0)]
    assert coming(state, VariantMemory(), 90.0, POLICY) == [(POLICY.assumed_start_s - 90.0, 1.0)]


def test_an_order_is_expected_after_what_nine_of_ten_took_whatever_they_began_with() -> None:
    assert start_s(SEEN.starts, POLICY) == 300.0


def test_starts_are_remembered_with_what_they_began_with() -> None:
    pods = [
        ReplicaState("warm", Phase.READY, 0.0, 70.0, pulling_since_s=5.0, began_at_s=6.0),
        ReplicaState("cold", Phase.READY, 0.0, 310.0, pulling_since_s=5.0, began_at_s=250.0),
        ReplicaState("untold", Phase.READY, 0.0, 320.0),
    ]

    _, memory = plan(Snapshot(400.0, (a_state(replicas=pods),)), POLICY, Memory())

    assert memory.variants[a_variant().key].starts == (
        Start(70.0, 70.0, "warm"),
        Start(310.0, 310.0, "cold"),
        Start(320.0, 320.0, None),
    )


def test_who_was_unready_for_a_while_did_not_start_again() -> None:
    def seen(at_s: float, phase: Phase, ready_s: float) -> VariantState:
        flapping = ReplicaState("r0", phase, created_at_s=0.0, ready_at_s=ready_s)
        steady = ReplicaState("r1", Phase.READY, created_at_s=0.0, ready_at_s=90.0)
        return a_state(replicas=[flapping, steady])

    memory = Memory()
    for at_s, phase, ready_s in (
        (100.0, Phase.READY, 80.0),
        (1000.0, Phase.STARTING, 990.0),  # its probe failed: not ready since 990 s
        (1005.0, Phase.STARTING, 990.0),
        (1010.0, Phase.READY, 1008.0),
        (1020.0, Phase.READY, 1018.0),  # and once more, for less than a cycle
    ):
        _, memory = plan(Snapshot(at_s, (seen(at_s, phase, ready_s),)), POLICY, memory)

    starts = memory.variants[a_variant().key].starts
    assert [start.took_s for start in starts] == [80.0, 90.0]


def test_the_pod_of_a_stateful_set_that_takes_anothers_name_starts() -> None:
    def seen(at_s: float, uid: str, phase: Phase, created_s: float, ready_s: float) -> VariantState:
        page = a_replica("llama-0", at_s=at_s).sample if phase is Phase.READY else None
        pod = ReplicaState("llama-0", phase, created_s, ready_s, page, uid=uid)
        return a_state(replicas=[pod], spec=1)

    memory = Memory()
    for at_s, uid, phase, created_s, ready_s in (
        (100.0, "a", Phase.READY, 0.0, 80.0),
        (200.0, "b", Phase.STARTING, 150.0, 150.0),
        (230.0, "b", Phase.READY, 150.0, 225.0),
    ):
        state = seen(at_s, uid, phase, created_s, ready_s)
        _, memory = plan(Snapshot(at_s, (state,)), POLICY, memory)

    starts = memory.variants[a_variant().key].starts
    assert [start.took_s for start in starts] == [80.0, 75.0]


def test_a_pod_that_was_ready_hours_after_its_creation_did_not_start_then() -> None:
    old = ReplicaState("old", Phase.READY, created_at_s=0.0, ready_at_s=3 * 3600.0)

    _, memory = plan(Snapshot(4 * 3600.0, (a_state(replicas=[old]),)), POLICY, Memory())

    assert memory.variants[a_variant().key].starts == ()


def test_what_an_engine_that_slept_took_to_wake_is_remembered_apart() -> None:
    memory = Memory()
    for at_s, awake in ((0.0, False), (5.0, False), (9.0, True), (14.0, True)):
        replica = a_replica("r0", at_s=at_s, awake=awake)
        replica = replace(replica, created_at_s=-500.0, ready_at_s=-400.0)
        _, memory = plan(Snapshot(at_s, (a_state(replicas=[replica]),)), POLICY, memory)

    past = memory.variants[a_variant().key]
    assert starts_by_kind(past) == {"sleeping": (1, 4.0), "unknown": (1, 100.0)}
    # a new pod takes no less for it
    assert start_s(past.starts, POLICY) == 100.0

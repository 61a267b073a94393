"""How long replicas take to start, by what their pods begin with: an image to pull, or one there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.builders import a_replica, a_state, a_variant
from wva_adapter.core.leads import coming, start_s, starts_by_kind
from wva_adapter.core.memory import Memory, Start, VariantMemory
from wva_adapter.core.planner import plan
from wva_adapter.core.policy import Policy
from wva_adapter.core.snapshot import Phase, ReplicaState, Snapshot

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

"""Where new replicas fit."""

from __future__ import annotations

from typing import Any

import pytest

from tests.builders import a_key
from wva_adapter.core.allocation import Option
from wva_adapter.core.fleet import NodeState, Taint, Toleration
from wva_adapter.core.room import Quota, Room, Supply


def an_option(
    name: str = "v",
    *,
    devices: int = 1,
    current: int = 0,
    pending: int = 0,
    accelerator: str | None = "A100",
    namespace: str = "chat",
    tolerations: tuple[Toleration, ...] = (),
) -> Option:
    return Option(
        a_key(name, namespace),
        1.0,
        1.0,
        current,
        0,
        99,
        accelerator=accelerator,
        devices=devices,
        pending=pending,
        tolerations=tolerations,
    )


def a_node(
    name: str = "n", allocatable: int | None = 8, requested: int | None = 0, **said: Any
) -> NodeState:
    return NodeState(name, "A100", allocatable, requested, **said)


def taken(supply: Supply, option: Option, *others: Option) -> tuple[int, str | None]:
    """How many replicas of the option fit, and why no more do."""
    room = Room(supply, (option, *others))
    for count in range(100):
        why = room.take(option)
        if why is not None:
            return count, why
    return 100, None


def test_free_is_what_no_pod_has_requested() -> None:
    assert taken(Supply((a_node(requested=5),)), an_option()) == (3, "0 A100 free, 1 needed")


def test_eight_nodes_with_one_free_each_are_no_room_for_a_replica_of_eight() -> None:
    nodes = tuple(a_node(f"n{i}", 8, 7) for i in range(8))
    assert taken(Supply(nodes), an_option(devices=8)) == (
        0,
        "8 A100 free, but no node has 8 together",
    )
    assert taken(Supply(nodes), an_option(devices=1))[0] == 8


@pytest.mark.parametrize(
    "unusable",
    [
        a_node("x", ready=False),
        a_node("x", cordoned=True),
        a_node("x", allocatable=None),
        a_node("x", requested=None),
        a_node("x", requested=9),
        NodeState("x", "H100", 8, 0),
    ],
)
def test_what_takes_no_pods_is_no_room(unusable: NodeState) -> None:
    assert taken(Supply((a_node(requested=7), unusable)), an_option())[0] == 1


def test_a_taint_keeps_out_whoever_does_not_tolerate_it() -> None:
    tainted = a_node(taints=(Taint("team", "search"),))
    assert taken(Supply((tainted,)), an_option()) == (
        0,
        "0 A100 free, 1 needed (8 more on nodes whose taints it does not tolerate)",
    )
    for toleration in (
        Toleration("team", "search"),
        Toleration("team"),
        Toleration(),
        Toleration("team", "search", "NoSchedule"),
    ):
        assert taken(Supply((tainted,)), an_option(tolerations=(toleration,)))[0] == 8
    for toleration in (Toleration("team", "chat"), Toleration("team", "search", "NoExecute")):
        assert taken(Supply((tainted,)), an_option(tolerations=(toleration,)))[0] == 0


def test_small_replicas_fill_the_nodes_that_are_begun() -> None:
    supply = Supply((a_node("a", 8, 0), a_node("b", 8, 6)))
    small, large = an_option("small", devices=2), an_option("large", devices=8)
    room = Room(supply, (small, large))
    assert room.take(small) is None
    assert room.take(large) is None  # the whole node was left to it


def test_replicas_on_their_way_have_their_devices_first() -> None:
    waiting = an_option("waiting", devices=2, current=3, pending=2)
    assert taken(Supply((a_node(requested=3),)), an_option(), waiting)[0] == 1  # 5 − 2 × 2


def test_an_accelerator_that_no_node_has_is_named() -> None:
    assert taken(Supply((a_node(),)), an_option(accelerator="H100")) == (0, "no node has H100")
    assert taken(Supply(()), an_option()) == (0, "no node has A100")


def test_without_nodes_nothing_is_bounded_by_them() -> None:
    assert taken(Supply(), an_option())[0] == 100
    assert not Supply().bounded
    assert Supply(()).bounded


def test_what_needs_no_device_or_no_known_one_fits_everywhere() -> None:
    full = Supply((a_node(requested=8),))
    assert taken(full, an_option(devices=0))[0] == 100
    assert taken(full, an_option(accelerator=None))[0] == 100


def test_a_limit_counts_what_all_variants_hold() -> None:
    supply = Supply(limits={"A100": 10})
    other = an_option("other", devices=2, current=3)
    assert taken(supply, an_option(devices=2, current=1), other) == (
        1,
        "A100 limited to 10 devices, 10 in use, 2 needed",
    )
    assert taken(supply, an_option(accelerator="H100"), other)[0] == 100


def test_a_quota_bounds_its_namespace_and_its_accelerator() -> None:
    supply = Supply(quotas=(Quota("chat", "gpus", 5), Quota("chat", "h100", 1, "H100")))
    assert taken(supply, an_option(devices=2)) == (
        2,
        "quota gpus of namespace chat has 1 devices left, 2 needed",
    )
    assert taken(supply, an_option(accelerator="H100"))[0] == 1
    assert taken(supply, an_option(namespace="search"))[0] == 100


def test_a_quota_of_pods_counts_replicas_without_devices_too() -> None:
    supply = Supply(quotas=(Quota("chat", "few", 3, resource="pods"),))
    assert taken(supply, an_option(devices=0)) == (
        3,
        "ResourceQuota few of namespace chat has 0 pods left, 1 needed",
    )
    assert taken(supply, an_option(devices=0, namespace="search"))[0] == 100


def test_a_refusal_takes_nothing() -> None:
    supply = Supply((a_node(requested=7),), limits={"A100": 4}, quotas=(Quota("chat", "q", 9),))
    large, small = an_option("large", devices=2), an_option("small")
    room = Room(supply, (large, small))
    assert room.take(large) is not None
    assert room.take(small) is None


def test_negative_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="node n: requested -1, want at least 0"):
        a_node(requested=-1)

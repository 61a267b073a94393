"""What nodes have and what is free on them, as the API server shows it."""

from __future__ import annotations

from typing import Any

import msgspec

from wva_adapter.collect.nodes import NodeReader, read_tolerations
from wva_adapter.collect.objects import Node, Pod, PodSpec
from wva_adapter.core.fleet import NodeState, Taint, Toleration
from wva_adapter.kube.meta import ObjectKey

GPU = "nvidia.com/gpu"


def a_node(
    name: str = "n0",
    *,
    devices: str | None = "8",
    ready: str = "True",
    spec: dict[str, Any] | None = None,
) -> Node:
    document = {
        "metadata": {
            "name": name,
            "labels": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"} if devices else {},
        },
        "spec": spec or {},
        "status": {
            "allocatable": {"cpu": "96", "memory": "1Ti", **({GPU: devices} if devices else {})},
            "conditions": [{"type": "Ready", "status": ready}],
        },
    }
    return msgspec.convert(document, Node)


def a_pod(name: str, node: str = "n0", devices: int = 1, phase: str = "Running") -> Pod:
    document = {
        "metadata": {"name": name, "namespace": "other", "uid": name},
        "spec": {
            "nodeName": node,
            "containers": [{"resources": {"limits": {GPU: str(devices)}}}, {"name": "sidecar"}],
        },
        "status": {"phase": phase},
    }
    return msgspec.convert(document, Pod)


def read(
    nodes: list[Node], pods: list[Pod], reader: NodeReader | None = None
) -> tuple[NodeState, ...]:
    def by_place(things: list[Any]) -> dict[ObjectKey, Any]:
        return {thing.metadata.key: thing for thing in things}

    return (reader or NodeReader()).read(by_place(nodes), by_place(pods))


def test_what_any_pod_requested_is_not_free() -> None:
    (node,) = read(
        [a_node()], [a_pod("a", devices=4), a_pod("b", devices=2), a_pod("c", node="", devices=8)]
    )
    assert node == NodeState("n0", "H100", 8, 6)
    assert node.free == 2


def test_what_was_read_once_is_read_again_where_it_changed() -> None:
    reader, pods = NodeReader(), [a_pod("a", devices=4), a_pod("b", devices=2)]
    assert read([a_node()], pods, reader)[0].free == 2
    assert read([a_node()], [pods[0], a_pod("b", devices=3)], reader)[0].free == 1
    assert read([a_node()], [a_pod("a", node="n1", devices=4), pods[1]], reader)[0].free == 6
    assert read([a_node()], pods[:1], reader)[0].free == 4


def test_pods_that_ended_hold_nothing() -> None:
    (node,) = read([a_node()], [a_pod("a", phase="Succeeded"), a_pod("b", phase="Failed")])
    assert node.free == 8


def test_a_node_that_is_not_ready_or_cordoned_has_nothing_free() -> None:
    nodes = read(
        [
            a_node("cordoned", spec={"unschedulable": True}),
            a_node("lost", ready="Unknown"),
            a_node("well"),
        ],
        [],
    )
    assert [(node.name, node.free) for node in nodes] == [("cordoned", 0), ("lost", 0), ("well", 8)]


def test_nodes_without_accelerators_are_none_of_ours() -> None:
    assert read([a_node(devices=None)], [a_pod("a", devices=0)]) == ()


def test_taints_that_only_advise_keep_nobody_off() -> None:
    taints = [
        {"key": GPU, "value": "present", "effect": "NoSchedule"},
        {"key": "slow", "effect": "PreferNoSchedule"},
    ]
    (node,) = read([a_node(spec={"taints": taints})], [])
    assert node.taints == (Taint(GPU, "present", "NoSchedule"),)


def test_tolerations_are_those_of_the_template_and_of_its_pods() -> None:
    template = msgspec.convert(
        {"tolerations": [{"key": "team", "operator": "Equal", "value": "chat"}]}, PodSpec
    )
    pod = msgspec.convert(
        {"tolerations": [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]}, PodSpec
    )
    found = read_tolerations([template, pod, pod])
    assert set(found) == {Toleration("team", "chat", ""), Toleration(GPU, None, "NoSchedule")}
    assert len(found) == 2
    node = NodeState("n0", "H100", 8, 0, taints=(Taint(GPU, "present"),))
    assert node.admits(found)
    assert not node.admits(read_tolerations([template]))

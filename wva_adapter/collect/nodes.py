"""Which devices nodes have, and how many of them pods have requested."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from wva_adapter.collect.accelerators import (
    accelerator_of_nodes,
    accelerators_per_replica,
    devices_of,
)
from wva_adapter.collect.objects import Node, Pod, PodSpec
from wva_adapter.core.fleet import NodeState, Taint, Toleration
from wva_adapter.kube.meta import ObjectKey

_ENDED = ("Succeeded", "Failed")
_KEEPS_OFF = ("NoSchedule", "NoExecute")


class NodeReader:
    """Reads the nodes again and again; what a pod requests is worked out once."""

    def __init__(self) -> None:
        self._devices: dict[ObjectKey, tuple[PodSpec, int]] = {}

    def read(
        self, nodes: Mapping[ObjectKey, Node], pods: Mapping[ObjectKey, Pod]
    ) -> tuple[NodeState, ...]:
        """Return the nodes that have accelerators, in the order of their names.

        Args:
            nodes: Every node of the cluster.
            pods: Every pod of the cluster, whoever owns it: what it requested is not free.
        """
        known, self._devices = self._devices, {}
        requested: dict[str, int] = {}
        for place, pod in pods.items():
            spec = pod.spec
            if not spec.node_name or pod.status.phase in _ENDED:
                continue
            entry = known.get(place)
            if entry is None or entry[0] is not spec:
                entry = spec, accelerators_per_replica(spec)
            self._devices[place] = entry
            requested[spec.node_name] = requested.get(spec.node_name, 0) + entry[1]
        return _states(nodes, requested)


def _states(nodes: Mapping[ObjectKey, Node], requested: Mapping[str, int]) -> tuple[NodeState, ...]:
    found = []
    for node in nodes.values():
        name, devices = node.metadata.name, devices_of(node.status.allocatable)
        if devices == 0 and not requested.get(name):
            continue
        found.append(
            NodeState(
                name,
                accelerator_of_nodes([node]),
                devices,
                requested.get(name, 0),
                ready=any(c.type == "Ready" and c.status == "True" for c in node.status.conditions),
                cordoned=node.spec.unschedulable,
                taints=tuple(
                    Taint(taint.key, taint.value, taint.effect)
                    for taint in node.spec.taints
                    if taint.effect in _KEEPS_OFF
                ),
            )
        )
    return tuple(sorted(found, key=lambda node: node.name))


def read_tolerations(specs: Iterable[PodSpec]) -> tuple[Toleration, ...]:
    """Return what pods of these shapes tolerate, each once.

    Admission gives pods more than their template has, so those that exist are worth asking.
    """
    found = {
        Toleration(one.key, None if one.operator == "Exists" else one.value, one.effect)
        for spec in specs
        for one in spec.tolerations
    }
    return tuple(sorted(found, key=repr))

"""Which accelerator a workload runs on, and how many of them one replica occupies."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from wva_adapter.collect.objects import Node, PodSpec

LABEL = "inference.optimization/acceleratorName"
"""Says the accelerator's name outright, on the HPA, the workload or its pods."""

PRODUCT_LABELS = (
    "nvidia.com/gpu.product",
    "amd.com/gpu.product-name",
    "cloud.google.com/gke-accelerator",
    "karpenter.k8s.aws/instance-gpu-name",
)
"""Node labels that name the product, from the vendors' feature discovery and from two clouds."""

_RESOURCES = re.compile(r"nvidia\.com/gpu|amd\.com/gpu|gpu\.intel\.com/.+|habana\.ai/gaudi")
_VENDORS = {"AMD", "GEFORCE", "INSTINCT", "INTEL", "NVIDIA", "TESLA"}
# What follows the device in a product's name: its connection, its memory, how it is shared.
_FORM = re.compile(r"PCIE?|SXM\d*|NVL|OAM|HBM\d\w*|\d+GI?B|SHARED|GENERATION", re.IGNORECASE)


@lru_cache(256)
def normalise(product: str) -> str:
    """Return the device type that a product name stands for.

    ``NVIDIA-A100-PCIE-80GB`` is an ``A100``, ``NVIDIA-GeForce-RTX-4090`` an ``RTX-4090``. A MIG
    slice stays a device of its own: ``A100-MIG-1g.5gb``.
    """
    words = [word for word in re.split(r"[-_ ]+", product) if word]
    slices = [i for i, word in enumerate(words) if word.upper() == "MIG"]
    head, tail = (words[: slices[0]], words[slices[0] :]) if slices else (words, [])
    while head and head[0].upper() in _VENDORS:
        head = head[1:]
    for index, word in enumerate(head):
        if index > 0 and _FORM.fullmatch(word):
            head = head[:index]
            break
    # One cloud writes its labels in small letters: nvidia-h100-80gb.
    head = [word.upper() if word.islower() else word for word in head]
    return "-".join([*head, *tail]) or product


def accelerator_asked_for(spec: PodSpec) -> str | None:
    """Return the accelerator that pods of this shape insist on; ``None`` where several would do."""
    for label in PRODUCT_LABELS:
        if label in spec.node_selector:
            return normalise(spec.node_selector[label])
    wanted = {
        normalise(value)
        for term in spec.affinity.node_affinity.required_during_scheduling_ignored_during_execution.node_selector_terms
        for expression in term.match_expressions
        if expression.key in PRODUCT_LABELS and expression.operator == "In"
        for value in expression.values
    }
    return wanted.pop() if len(wanted) == 1 else None


def accelerator_of_nodes(nodes: Iterable[Node]) -> str | None:
    """Return the accelerator of these nodes; ``None`` where they have none, or not all the same."""
    found = {
        normalise(node.metadata.labels[label])
        for node in nodes
        for label in PRODUCT_LABELS
        if label in node.metadata.labels
    }
    return found.pop() if len(found) == 1 else None


def accelerators_per_replica(spec: PodSpec) -> int:
    """Return how many devices the containers of one pod request together.

    For these resources a limit alone is a request too.
    """
    return sum(
        devices_of(container.resources.limits | container.resources.requests)
        for container in spec.containers
    )


def device_resource(spec: PodSpec) -> str | None:
    """Return the name under which one pod requests its devices; ``None`` for none or several."""
    names = {
        name
        for container in spec.containers
        for name in (container.resources.limits | container.resources.requests)
        if is_device(name)
    }
    return names.pop() if len(names) == 1 else None


def is_device(resource: str) -> bool:
    """Return whether this is a name under which pods request accelerators."""
    return _RESOURCES.fullmatch(resource) is not None


def devices_of(resources: Mapping[str, str | int]) -> int:
    """Return how many devices these amounts of resources are."""
    return sum(
        int(amount)
        for resource, amount in resources.items()
        if is_device(resource) and str(amount).isdecimal()
    )

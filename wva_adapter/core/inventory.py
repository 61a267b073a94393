"""What there is to put replicas on: devices by type, quotas, and whether nodes are all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from wva_adapter.core.fleet import Variant
from wva_adapter.core.power import Draw


@dataclass(frozen=True, slots=True)
class NamespaceQuota:
    """The most devices that the variants of one namespace may hold together.

    Attributes:
        accelerator: The type that it counts; ``None`` where it counts all.

    Raises:
        ValueError: The number of devices is negative.
    """

    namespace: str
    devices: int
    accelerator: str | None = None

    def __post_init__(self) -> None:
        if self.devices < 0:
            raise ValueError(f"quota of {self.namespace}: {self.devices} devices, want at least 0")


PODS = "pods"
"""What a quota counts that bounds pods."""


def taken(counted: str, resource: str | None, devices: int) -> int:
    """Return what one replica takes of what is counted.

    Args:
        counted: Devices by the name under which pods request them, or pods.
        resource: The name under which this one requests its devices; ``None`` where nothing says.
        devices: How many those are.
    """
    if counted == PODS:
        return 1
    return devices if counted == resource else 0


@dataclass(frozen=True, slots=True)
class ResourceQuota:
    """One bound of a ResourceQuota object on what pods of its namespace request together.

    Attributes:
        name: The object's.
        key: What it bounds, as the object has it: ``requests.nvidia.com/gpu``, ``pods``.
        hard: The most.
        used: What pods that exist hold of it, those that terminate too.

    Raises:
        ValueError: A number is negative.
    """

    namespace: str
    name: str
    key: str
    hard: int
    used: int

    def __post_init__(self) -> None:
        for quantity in ("hard", "used"):
            value = getattr(self, quantity)
            if value < 0:
                raise ValueError(
                    f"ResourceQuota {self.namespace}/{self.name}: {quantity} {value} of {self.key}, "
                    "want at least 0"
                )

    @property
    def resource(self) -> str:
        """What it counts: the name under which pods request devices, or ``pods``."""
        return PODS if self.key == f"count/{PODS}" else self.key.removeprefix("requests.")

    @property
    def left(self) -> int:
        """What is left of it."""
        return max(0, self.hard - self.used)

    def uses(self, variant: Variant) -> int:
        """Return what one replica of a variant takes of it."""
        if variant.key.namespace != self.namespace:
            return 0
        return taken(self.resource, variant.resource, variant.accelerators_per_replica)

    def __str__(self) -> str:
        return f"{self.name} ({self.used} of {self.hard} {self.key} used)"


@dataclass(frozen=True, slots=True)
class Inventory:
    """The bounds on what may be added; an empty one bounds nothing.

    Attributes:
        accelerators: By type, the most devices that all variants together may hold.
        quotas: Per namespace.
        fixed_nodes: Whether the nodes that there are now are all that there will be. Where they
            are not, a pod that finds no place makes a cluster autoscaler bring one.
        draws: What devices draw, by type, where that is not what data sheets say.

    Raises:
        ValueError: A number of devices is negative.
    """

    accelerators: Mapping[str, int] = field(default_factory=dict)
    quotas: tuple[NamespaceQuota, ...] = ()
    fixed_nodes: bool = False
    draws: Mapping[str, Draw] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for accelerator, devices in self.accelerators.items():
            if devices < 0:
                raise ValueError(f"limit on {accelerator}: {devices} devices, want at least 0")

    @property
    def bounded(self) -> bool:
        """Whether it bounds anything."""
        return bool(self.accelerators) or bool(self.quotas) or self.fixed_nodes

"""What the operator says there is to put replicas on: devices by type, quotas, and whether nodes are all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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

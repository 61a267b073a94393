"""How loaded one model is: demand against supply, and what one replica of each variant adds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from wva_adapter.core.fleet import LoadKey, Role, VariantKey
from wva_adapter.core.forecast import Forecast


@dataclass(frozen=True, slots=True)
class Utilization:
    """Which share of its capacity a model's replicas may be loaded with.

    A larger fleet pools its noise, so the share grows with the count: 1 − ``slack`` / √n, between
    ``lowest`` and ``highest``. References: W. Whitt, "Understanding the efficiency of multi-server
    service systems", 1992 (square-root staffing).

    Attributes:
        slack: The share that one replica keeps free.
        lowest: Never less than this, however small the fleet.
        highest: Never more than this, however large.
    """

    slack: float = 0.0
    lowest: float = 1.0
    highest: float = 1.0

    def of(self, replicas: int) -> float:
        """Return the share for a fleet of so many replicas."""
        share = 1.0 - self.slack / math.sqrt(replicas) if replicas > 0 else self.lowest
        return min(max(share, self.lowest), self.highest)


FULL = Utilization()
"""The capacity as it is: thresholds already leave what must stay free."""


def figure(amount: float) -> str:
    """Return an amount in three digits as people write it: 0.123, 45.6, 12,300."""
    return f"{float(f'{amount:.3g}'):,.0f}" if amount >= 1000 else f"{amount:.3g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLoad:
    """Demand and supply of one model in one unit, as one analysis sees them.

    Where some replicas prefill and others decode, each role has a load of its own.

    Attributes:
        namespace: Where the model's variants live.
        model_id: The model.
        role: Of which part of the model's work it is.
        analysis: Which analysis made this.
        unit: What all quantities count.
        demand: What the load takes; ``None`` while nothing was seen.
        need: What must be carried: more replicas are ordered until the supply reaches it.
        keep: What must still be carried when replicas leave; ``need`` without its backlog part,
            and the margin of a removal.
        present: What the replicas that count could carry at full use: ready ones and those on
            their way.
        replicas: How many replicas the model is asked to have.
        utilization: Which share of their capacity they may be loaded with.
        capacity: By variant, what one replica carries at full use; positive.
        step: Most capacity to add or remove in one decision; ``None`` for no bound.
        window_s: ``keep`` is the largest of so many seconds.
        binding: The test that decided, with its numbers, in words.
        notes: Where those numbers come from, a sentence each.
        whole_fleet: Whether the capacities are good enough to aim at the cheapest fleet of all
            instead of the cheapest next replica.
        forecast: What ``demand`` comes from; ``None`` where the analysis makes none.
        bounds: By variant, what keeps its capacity from being larger; empty where the analysis
            does not say.
    """

    namespace: str
    model_id: str
    analysis: str
    unit: str
    demand: float | None
    need: float
    keep: float
    present: float
    replicas: int
    capacity: Mapping[VariantKey, float]
    window_s: float
    binding: str
    utilization: Utilization = FULL
    step: float | None = None
    notes: tuple[str, ...] = ()
    whole_fleet: bool = False
    forecast: Forecast | None = None
    bounds: Mapping[VariantKey, str] = field(default_factory=dict)
    role: Role = "both"

    @property
    def key(self) -> LoadKey:
        """Whose load it is."""
        return LoadKey(self.namespace, self.model_id, self.role)

    @property
    def supply(self) -> float:
        """What ready replicas and those on their way may be loaded with."""
        return self.present * self.utilization.of(self.replicas)

    @property
    def shortage(self) -> float:
        """What is missing now; 0 where there is enough."""
        return max(0.0, self.need - self.supply)

    @property
    def surplus(self) -> float:
        """What could leave, and the load would still fit; 0 where nothing could."""
        return max(0.0, self.supply - max(self.need, self.keep))

    @property
    def saturation(self) -> float | None:
        """Demand over supply; ``None`` where either is unknown or there is no supply."""
        if self.demand is None or self.supply <= 0:
            return None
        return self.demand / self.supply

    def carried(
        self, counts: Mapping[VariantKey, int], existing: Mapping[VariantKey, int]
    ) -> float:
        """Return what these counts may be loaded with once all of them serve that count.

        Args:
            counts: By variant; those without a capacity carry nothing.
            existing: The counts that ``present`` is of.
        """
        absent = self._whole(existing) - self.present
        return self.utilization.of(sum(counts.values())) * (self._whole(counts) - absent)

    def _whole(self, counts: Mapping[VariantKey, int]) -> float:
        return math.fsum(self.capacity.get(key, 0.0) * count for key, count in counts.items())

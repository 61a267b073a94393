"""How loaded one model is: demand against supply, and what one replica of each variant adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wva_adapter.core.fleet import VariantKey


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLoad:
    """Demand and supply of one model in one unit, as one analysis sees them.

    Attributes:
        namespace: Where the model's variants live.
        model_id: The model.
        analysis: Which analysis made this.
        unit: What ``demand``, ``supply``, ``capacity``, ``shortage`` and ``surplus`` count.
        demand: What the load takes; ``None`` while nothing was seen.
        supply: What ready replicas and those on their way can carry.
        capacity: By variant, what one replica carries; positive.
        shortage: Capacity to add now; 0 where there is enough.
        surplus: Capacity that could leave and the load would still fit; 0 where none could.
        step: Most capacity to add or remove in one decision; ``None`` for no bound.
        binding: The test that decided, with its numbers, in words.
    """

    namespace: str
    model_id: str
    analysis: str
    unit: str
    demand: float | None
    supply: float
    capacity: Mapping[VariantKey, float]
    shortage: float
    surplus: float
    step: float | None
    binding: str

    @property
    def saturation(self) -> float | None:
        """Demand over supply; ``None`` where either is unknown or there is no supply."""
        if self.demand is None or self.supply <= 0:
            return None
        return self.demand / self.supply

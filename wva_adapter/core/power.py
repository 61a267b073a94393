"""What accelerators draw, and what a replica's hour is worth by cost, power or both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Objective = Literal["cost", "power", "weighted"]


@dataclass(frozen=True, slots=True)
class Draw:
    """What one device draws.

    Attributes:
        idle_w: With a model loaded and nothing to do.
        full_w: At most: its thermal design power.

    Raises:
        ValueError: Not 0 ≤ ``idle_w`` ≤ ``full_w``, or not finite.
    """

    idle_w: float
    full_w: float

    def __post_init__(self) -> None:
        if not 0 <= self.idle_w <= self.full_w < float("inf"):
            raise ValueError(
                f"want 0 <= idle_w <= tdp_w, got idle_w={self.idle_w:g}, tdp_w={self.full_w:g}"
            )

    @classmethod
    def of_tdp(cls, full_w: float) -> Draw:
        """Return what is typical of a device with this thermal design power."""
        return cls(_IDLE_SHARE * full_w, full_w)

    def at(self, share: float) -> float:
        """Return the watts at a share of the load that it can carry, 0 to 1.

        Linear in between. References: X. Fan, W.-D. Weber, L. A. Barroso, "Power provisioning for
        a warehouse-sized computer", 2007.
        """
        return self.idle_w + (self.full_w - self.idle_w) * min(max(share, 0.0), 1.0)


_IDLE_SHARE = 0.2
"""Of its thermal design power a device draws so much while it waits with a model loaded: an
estimate, 80 of 400 W on an A100."""

_FULL_W = {
    "A10": 150.0,
    "A10G": 300.0,
    "A100": 400.0,
    "B200": 1000.0,
    "GAUDI2": 600.0,
    "GAUDI3": 900.0,
    "GH200": 900.0,
    "H100": 700.0,
    "H200": 700.0,
    "L4": 72.0,
    "L40": 300.0,
    "L40S": 350.0,
    "MI210": 300.0,
    "MI250X": 560.0,
    "MI300X": 750.0,
    "MI325X": 1000.0,
    "MI355X": 1400.0,
    "RTX-4090": 450.0,
    "RTX-5090": 575.0,
    "T4": 70.0,
    "V100": 300.0,
}
"""Thermal design power by the data sheets of NVIDIA (the SXM form where there are several), AMD
and Intel."""

DRAWS: Mapping[str, Draw] = {name: Draw.of_tdp(full_w) for name, full_w in _FULL_W.items()}
"""What devices draw where the operator does not say."""

UNKNOWN = DRAWS["A100"]
"""What a device of any other name is taken for."""


def draw_of(accelerator: str | None, own: Mapping[str, Draw]) -> Draw:
    """Return what one device draws; a slice of one (``A100-MIG-1g.5gb``) is its share of sevenths.

    Args:
        own: What the operator says, by type.
    """
    if accelerator is None:
        return UNKNOWN
    if accelerator in own:
        return own[accelerator]
    device, _, part = accelerator.upper().partition("-MIG-")
    whole = own.get(device) or DRAWS.get(device, UNKNOWN)
    sevenths = part.partition("G.")[0]
    if not (sevenths.isdecimal() and 0 < int(sevenths) <= 7):
        return whole
    share = int(sevenths) / 7
    return Draw(whole.idle_w * share, whole.full_w * share)


def price_per_h(objective: Objective, cost_per_h: float, watts: float, per_kwh: float) -> float:
    """Return what one replica's hour counts for.

    Args:
        objective: $ for ``cost``, kWh for ``power``, and both in $ for ``weighted``.
        cost_per_h: What it costs.
        watts: What it draws.
        per_kwh: $ per kWh, where both count.
    """
    if objective == "cost":
        return cost_per_h
    if objective == "power":
        return watts / 1000
    return cost_per_h + per_kwh * watts / 1000

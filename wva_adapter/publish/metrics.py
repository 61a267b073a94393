"""Which metrics are served, and the value of each for one variant."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from wva_adapter.core.decision import Decision
from wva_adapter.core.load import ModelLoad


@dataclass(frozen=True, slots=True)
class Published:
    """The last valid decision of a variant that exists.

    Attributes:
        at_s: Unix time of the plan that it is from; older than the last plan where that one left
            the variant undecided.
        load: Its model's load; ``None`` where the plan has none.
        labels: What selectors match against.
    """

    decision: Decision
    at_s: float
    load: ModelLoad | None
    labels: Mapping[str, str]


def in_shadow(published: Published) -> bool:
    """Return whether the count is decided and not served."""
    return published.decision.bill is not None


def shadow_count(published: Published) -> int | None:
    """Return the count that is not served, in thousandths; ``None`` where it is served."""
    return 1000 * published.decision.desired if in_shadow(published) else None


def _desired(published: Published) -> int | None:
    return None if in_shadow(published) else published.decision.value_milli


def _count(published: Published) -> int | None:
    return None if in_shadow(published) else 1000 * published.decision.desired


def _current(published: Published) -> int:
    return 1000 * published.decision.current


def _ratio(published: Published) -> int | None:
    if in_shadow(published):
        return None
    decision = published.decision
    # From zero the ratio is the count itself. Rounded down: a reader that multiplies by its
    # replicas and rounds up arrives at the count, and never above it.
    return 1000 * decision.desired // max(1, decision.current)


def _saturation(published: Published) -> int | None:
    saturation = None if published.load is None else published.load.saturation
    return None if saturation is None else round(1000 * saturation)


def _shortage(published: Published) -> int | None:
    load, key = published.load, published.decision.key
    if load is None or key not in load.capacity:
        return None
    return math.ceil(round(1000 * load.shortage / load.capacity[key], 6))


def _cost(published: Published) -> int:
    return round(1000 * published.decision.cost_per_h)


METRICS: Final[Mapping[str, Callable[[Published], int | None]]] = {
    "wva_desired_replicas": _desired,
    "wva_current_replicas": _current,
    "wva_desired_ratio": _ratio,
    "wva_saturation": _saturation,
    "wva_shortage_replicas": _shortage,
    "wva_variant_cost": _cost,
}
"""The served metrics: each in thousandths, ``None`` where it is unknown."""

PLAIN: Final[Mapping[str, Callable[[Published], int | None]]] = {
    **METRICS,
    "wva_desired_replicas": _count,
}
"""The same for who multiplies nothing and rounds nothing: the count is not shaped for an HPA."""

WITHHELD: Final = ("wva_desired_replicas", "wva_desired_ratio")
"""What a variant in shadow does not have."""

SHADOW: Final = "wva_shadow_desired_replicas"
PLAN_AGE: Final = "wva_plan_age_seconds"
SCRAPE_PROBLEMS: Final = "wva_scrape_problems"

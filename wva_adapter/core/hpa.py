"""What the HorizontalPodAutoscaler will do with a value: autoscaling/v2's arithmetic for External metrics.

Values and targets are integers in thousandths, as the controller computes with them.

References:
    kubernetes, ``pkg/controller/podautoscaler/replica_calculator.go`` (formulae and the order of
    their operands) and ``horizontal.go`` (bounds).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

OperandOrder = Literal["distance", "interval"]
"""How the tolerance is tested: ``distance`` is |1 − ratio| ≤ t (Kubernetes up to 1.32),
``interval`` is 1 − t ≤ ratio ≤ 1 + t (1.33 and newer). They differ at the very edge, in floats."""

MOST_REPLICAS = 2**31 - 1
MOST_MILLI = 2**63 - 1


def usage_milli(values_milli: Iterable[int]) -> int:
    """Return what the controller makes of the items that it got: their sum, saturating."""
    return min(sum(values_milli), MOST_MILLI)


def average_value_replicas(
    status_replicas: int,
    usage: int,
    target: int = 1000,
    *,
    tolerance_up: float = 0.1,
    tolerance_down: float = 0.1,
    order: OperandOrder = "interval",
) -> int:
    """Return the count proposed for an ``AverageValue`` target.

    Args:
        status_replicas: The scale target's ``status.replicas``.
        usage: Sum of the items, in thousandths.
        target: The target, in thousandths; positive.
        tolerance_up: Relative change upwards that is ignored.
        tolerance_down: The same downwards.
        order: Which release's operand order.
    """
    if status_replicas:
        ratio = usage / (float(target) * status_replicas)
    else:
        # Go divides by zero: +Inf with any usage, NaN without.
        ratio = math.inf if usage else math.nan
    if _within(ratio, tolerance_up, tolerance_down, order):
        return status_replicas
    return min(math.ceil(usage / float(target)), MOST_REPLICAS)


def value_replicas(
    spec_replicas: int,
    ready_replicas: int,
    usage: int,
    target: int,
    *,
    tolerance_up: float = 0.1,
    tolerance_down: float = 0.1,
    order: OperandOrder = "interval",
) -> int:
    """Return the count proposed for a ``Value`` target.

    Args:
        spec_replicas: The scale target's ``spec.replicas``.
        ready_replicas: Its pods that are running and ready.
        usage: Sum of the items, in thousandths.
        target: The target, in thousandths; positive.
        tolerance_up: Relative change upwards that is ignored.
        tolerance_down: The same downwards.
        order: Which release's operand order.
    """
    ratio = usage / float(target)
    if spec_replicas == 0:
        return min(math.ceil(ratio), MOST_REPLICAS)
    if _within(ratio, tolerance_up, tolerance_down, order):
        return spec_replicas
    return min(math.ceil(ratio * ready_replicas), MOST_REPLICAS)


def _within(ratio: float, up: float, down: float, order: OperandOrder) -> bool:
    if order == "interval":
        return (1.0 - down) <= ratio <= (1.0 + up)
    # Go asks !(|1 − ratio| > t), which NaN passes.
    return not abs(1.0 - ratio) > up

"""What the HorizontalPodAutoscaler will do with a value: autoscaling/v2's arithmetic for External metrics.

Values and targets are integers in thousandths, as the controller computes with them.

References:
    kubernetes, ``pkg/controller/podautoscaler/replica_calculator.go`` (formulae and the order of
    their operands) and ``horizontal.go`` (bounds).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

OperandOrder = Literal["distance", "interval"]
"""How the tolerance is tested: ``distance`` is |1 − ratio| ≤ t (Kubernetes up to 1.32),
``interval`` is 1 − t ≤ ratio ≤ 1 + t (1.33 and newer). They differ at the very edge, in floats."""

MOST_REPLICAS = 2**31 - 1
MOST_MILLI = 2**63 - 1


@dataclass(frozen=True, slots=True)
class HpaPod:
    """A pod as the controller sees it.

    Attributes:
        phase: ``pending`` until its containers run; ``terminating`` once it is to go.
        ready: Whether its Ready condition is true.
        started_at_s: When it was given to a node; ``None`` before.
        ready_changed_at_s: When its Ready condition last changed; ``None`` where it has none.
    """

    name: str
    phase: Literal["pending", "running", "failed", "terminating"] = "running"
    ready: bool = True
    started_at_s: float | None = None
    ready_changed_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Scale:
    """What the controller reads of its target before it looks at a metric.

    Attributes:
        spec_replicas: The count asked for.
        status_replicas: Pods that the target says it has.
        ready_replicas: Its pods that run and are ready.
        pods: Its pods one by one, which metrics per pod need.
    """

    spec_replicas: int
    status_replicas: int
    ready_replicas: int
    pods: Sequence[HpaPod] = ()


class Tolerances(NamedTuple):
    """Relative changes that are ignored."""

    up: float = 0.1
    down: float = 0.1


class Proposal(NamedTuple):
    """What one metric asks for.

    Attributes:
        replicas: ``None`` where the metric can't be had.
        why: The metric with its numbers, or what is wrong with it.
    """

    replicas: int | None
    why: str


class Metric(Protocol):
    """One entry of ``spec.metrics``, with what was read for it."""

    @property
    def from_zero(self) -> bool:
        """Whether it can be read without pods, so that it may scale to zero and back."""
        ...

    def propose(self, now_s: float, scale: Scale, tolerances: Tolerances) -> Proposal:
        """Return the count that this metric asks for."""
        ...


@dataclass(frozen=True, slots=True)
class External:
    """A metric of type External, or Object, whose arithmetic is the same.

    Attributes:
        values_milli: The items read, in thousandths; empty is an error, as it is there.
        problem: Why nothing could be read, in place of values.
        target_milli: The target in thousandths; positive.
    """

    name: str
    values_milli: Sequence[int]
    target_milli: int = 1000
    target_type: Literal["AverageValue", "Value"] = "AverageValue"
    problem: str | None = None

    @property
    def from_zero(self) -> bool:
        return True

    def propose(self, now_s: float, scale: Scale, tolerances: Tolerances) -> Proposal:
        if self.problem is not None or not self.values_milli:
            return Proposal(None, f"{self.name}: {self.problem or 'no items'}")
        usage = usage_milli(self.values_milli)
        if self.target_type == "AverageValue":
            replicas = average_value_replicas(
                scale.status_replicas,
                usage,
                self.target_milli,
                tolerance_up=tolerances.up,
                tolerance_down=tolerances.down,
            )
        else:
            replicas = value_replicas(
                scale.spec_replicas,
                scale.ready_replicas,
                usage,
                self.target_milli,
                tolerance_up=tolerances.up,
                tolerance_down=tolerances.down,
            )
            none = not (scale.status_replicas or scale.ready_replicas)
            if none and scale.spec_replicas and replicas != scale.spec_replicas:
                return Proposal(None, f"{self.name}: the target has no pods to multiply by")
        return Proposal(
            replicas,
            f"{self.name} {usage / 1000:g} of {self.target_type} {self.target_milli / 1000:g}",
        )


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


def within(tolerances: Tolerances, ratio: float) -> bool:
    """Return whether a usage of ``ratio`` times its target is near enough to be left alone."""
    return _within(ratio, tolerances.up, tolerances.down, "interval")


def _within(ratio: float, up: float, down: float, order: OperandOrder) -> bool:
    if order == "interval":
        return (1.0 - down) <= ratio <= (1.0 + up)
    # Go asks !(|1 − ratio| > t), which NaN passes.
    return not abs(1.0 - ratio) > up

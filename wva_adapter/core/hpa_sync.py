"""What one look of the HorizontalPodAutoscaler controller does: windows, rates and bounds over time.

The controller takes the largest of its metrics' proposals, holds it against what it proposed
lately (stabilization), against how much changed lately (policies), and against the bounds.

References:
    kubernetes v1.37, ``pkg/controller/podautoscaler/horizontal.go``; defaults in
    ``pkg/apis/autoscaling/v2/defaults.go`` and ``cmd/kube-controller-manager``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from wva_adapter.core.hpa import Metric, Scale, Tolerances

TOLERANCE = 0.1
"""What a controller ignores unless ``behavior`` or its flag says otherwise."""
DOWN_WINDOW_S = 300.0
"""The down window where ``behavior`` has none: the controller's flag, as shipped."""
SYNC_S = 15.0
"""How often the controller looks, as shipped."""


Select = Literal["Max", "Min", "Disabled"]


@dataclass(frozen=True, slots=True)
class Rate:
    """A scaling policy: how much may change within a period.

    Attributes:
        kind: Whether ``value`` is a number of pods or a percentage of those at the period's start.
        period_s: Seconds; above 0.
    """

    kind: Literal["Pods", "Percent"]
    value: int
    period_s: float


@dataclass(frozen=True, slots=True)
class Direction:
    """``behavior.scaleUp`` or ``behavior.scaleDown``.

    Attributes:
        window_s: Stabilization window; ``None`` takes the controller's down window, and 0 up.
        rates: The policies.
        select: Whether the policy that allows the largest or the smallest change counts.
        tolerance: Relative change that is ignored; ``None`` takes the controller's.

    Raises:
        ValueError: There is no policy, or a period is not above 0.
    """

    window_s: float | None
    rates: tuple[Rate, ...]
    select: Select = "Max"
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if not self.rates or any(rate.period_s <= 0 for rate in self.rates):
            raise ValueError(f"policies {self.rates}, want at least one, with periods above 0 s")


UP = Direction(0.0, (Rate("Pods", 4, 15.0), Rate("Percent", 100, 15.0)))
"""What a behaviour that leaves ``scaleUp`` out gets."""
DOWN = Direction(None, (Rate("Percent", 100, 15.0),))
"""What a behaviour that leaves ``scaleDown`` out gets."""


@dataclass(frozen=True, slots=True)
class Behavior:
    """The ``behavior`` of an autoscaler.

    A ``None`` in place of it is not the same: without the field the controller at most doubles or
    goes to 4, whichever is more, in each look, and keeps no account of earlier changes.
    """

    up: Direction = UP
    down: Direction = DOWN


RECOMMENDED = Behavior(
    Direction(0.0, (Rate("Percent", 100, 15.0), Rate("Pods", 20, 15.0)), tolerance=0.0),
    Direction(0.0, (Rate("Percent", 100, 15.0),), tolerance=0.0),
)
"""What suits a reader of this adapter, which settles by itself and knows no tolerance."""


class Bounds(NamedTuple):
    """``minReplicas`` and ``maxReplicas``."""

    minimum: int
    maximum: int


class Stamp(NamedTuple):
    """A count proposed, or a number of replicas added or removed, and when."""

    at_s: float
    replicas: int


@dataclass(frozen=True, slots=True)
class HpaState:
    """What the controller remembers of one autoscaler between two looks.

    Attributes:
        recommendations: Counts proposed, before windows, rates and bounds.
        added: Replicas added by its changes.
        removed: Replicas removed by its changes.
        scaled_to_zero: Whether it was its own change that left no replica.
    """

    recommendations: tuple[Stamp, ...] = ()
    added: tuple[Stamp, ...] = ()
    removed: tuple[Stamp, ...] = ()
    scaled_to_zero: bool = False


class Synced(NamedTuple):
    """What a look came to.

    Attributes:
        replicas: The count that the target is to have now.
        why: What decided it, in words.
    """

    replicas: int
    state: HpaState
    why: str


def sync(
    now_s: float,
    scale: Scale,
    metrics: Sequence[Metric],
    bounds: Bounds,
    behavior: Behavior | None,
    state: HpaState,
    *,
    tolerance: float = TOLERANCE,
    down_window_s: float = DOWN_WINDOW_S,
) -> Synced:
    """Return what the controller makes of its target in one look.

    Args:
        now_s: When it looks.
        scale: The target as it stands.
        metrics: What it was told to read, with what was read; at least one.
        bounds: Fewest and most replicas.
        behavior: ``None`` where the autoscaler has none.
        state: What it remembered from the look before; a fresh one at first.
        tolerance: The controller's own.
        down_window_s: The controller's own.
    """
    if not state.recommendations:
        # Without it the first look after a start would collapse a fleet that is idle for a moment.
        state = replace(state, recommendations=(Stamp(now_s, scale.spec_replicas),))
    current = scale.spec_replicas
    from_zero = any(metric.from_zero for metric in metrics)
    if current == 0:
        if not state.scaled_to_zero or (bounds.minimum == 0 and not from_zero):
            return Synced(0, state, "scaling is off: somebody else left the target at 0 replicas")
    elif current > bounds.maximum:
        return _changed(now_s, current, bounds.maximum, "above its maximum", state, behavior)
    elif current < bounds.minimum:
        return _changed(now_s, current, bounds.minimum, "below its minimum", state, behavior)

    desired, why = _largest(now_s, scale, metrics, _tolerances(behavior, tolerance))
    if desired is None:
        return Synced(current, state, why)
    if behavior is None:
        count, kept, words = _plain(now_s, current, desired, bounds, state, down_window_s)
    else:
        count, kept, words = _behaved(
            now_s, current, desired, bounds, behavior, state, down_window_s
        )
    if current == 0:
        count = max(count, bounds.minimum)
    why = f"{why}: {words}" if words else why
    state = replace(state, recommendations=kept)
    if count == current:
        return Synced(count, state, why)
    to_zero = count == 0 == bounds.minimum and from_zero
    return _changed(now_s, current, count, why, state, behavior, to_zero=to_zero)


def _tolerances(behavior: Behavior | None, tolerance: float) -> Tolerances:
    up = behavior.up.tolerance if behavior else None
    down = behavior.down.tolerance if behavior else None
    return Tolerances(tolerance if up is None else up, tolerance if down is None else down)


def _largest(
    now_s: float, scale: Scale, metrics: Sequence[Metric], tolerances: Tolerances
) -> tuple[int | None, str]:
    """Return the largest proposal; ``None`` where a metric that fails forbids to act."""
    largest, why, failed = 0, "", ""
    failures = 0
    for metric in metrics:
        proposal = metric.propose(now_s, scale, tolerances)
        if proposal.replicas is None:
            failures += 1
            failed = failed or proposal.why
        elif not why or proposal.replicas > largest:
            largest, why = proposal.replicas, f"{proposal.why} asks for {proposal.replicas}"
    if failures == len(metrics) or (failures and largest < scale.spec_replicas):
        return None, f"held at {scale.spec_replicas}, {failures} of {len(metrics)} fail: {failed}"
    return largest, why


def _plain(
    now_s: float,
    current: int,
    desired: int,
    bounds: Bounds,
    state: HpaState,
    down_window_s: float,
) -> tuple[int, tuple[Stamp, ...], str]:
    """Return the count without a behaviour, what is kept of the proposals, and what limited it."""
    kept = tuple(s for s in state.recommendations if s.at_s >= now_s - down_window_s)
    stable = max(desired, max((s.replicas for s in kept), default=desired))
    most = min(bounds.maximum, max(2 * current, 4))
    count = bounds.minimum if stable < bounds.minimum else min(stable, most)
    return count, (*kept, Stamp(now_s, desired)), _limited(desired, stable, count)


def _behaved(
    now_s: float,
    current: int,
    desired: int,
    bounds: Bounds,
    behavior: Behavior,
    state: HpaState,
    down_window_s: float,
) -> tuple[int, tuple[Stamp, ...], str]:
    """Return the same with a behaviour."""
    up_after_s = now_s - (behavior.up.window_s or 0.0)
    down_s = down_window_s if behavior.down.window_s is None else behavior.down.window_s
    down_after_s = now_s - down_s
    lowest = min(
        (s.replicas for s in state.recommendations if s.at_s > up_after_s), default=desired
    )
    highest = max(
        (s.replicas for s in state.recommendations if s.at_s > down_after_s), default=desired
    )
    stable = min(max(current, min(lowest, desired)), max(highest, desired))
    oldest_s = min(up_after_s, down_after_s)
    kept = tuple(s for s in state.recommendations if s.at_s >= oldest_s)

    count = stable
    if stable > current:
        limit = _limit(now_s, current, behavior.up, state, 1)
        count = min(stable, bounds.maximum, max(limit, current))
    elif stable < current:
        limit = _limit(now_s, current, behavior.down, state, -1)
        count = max(stable, bounds.minimum, min(limit, current))
    return count, (*kept, Stamp(now_s, desired)), _limited(desired, stable, count)


def _limit(now_s: float, current: int, direction: Direction, state: HpaState, sign: int) -> int:
    """Return the furthest count that the policies allow in a direction (1 up, -1 down)."""
    if direction.select == "Disabled":
        return current
    reached = []
    for rate in direction.rates:
        after_s = now_s - rate.period_s
        start = current - _sum(state.added, after_s) + _sum(state.removed, after_s)
        if rate.kind == "Pods":
            reached.append(start + sign * rate.value)
        elif sign > 0:
            reached.append(math.ceil(start * (1 + rate.value / 100)))
        else:
            # Go's conversion cuts the fraction off.
            reached.append(int(start * (1 - rate.value / 100)))
    return max(reached) if (direction.select == "Max") == (sign > 0) else min(reached)


def _sum(stamps: Sequence[Stamp], after_s: float) -> int:
    return sum(stamp.replicas for stamp in stamps if stamp.at_s > after_s)


def _limited(desired: int, stable: int, count: int) -> str:
    words = []
    if stable != desired:
        words.append(f"{stable} by what was proposed within the window")
    if count != stable:
        words.append(f"{count} by rate or bounds")
    return ", ".join(words)


def _changed(
    now_s: float,
    current: int,
    count: int,
    why: str,
    state: HpaState,
    behavior: Behavior | None,
    *,
    to_zero: bool = False,
) -> Synced:
    """Return the change with its event on record; without a behaviour no events are kept."""
    added, removed = state.added, state.removed
    if behavior is not None and count > current:
        added = _recorded(added, behavior.up, Stamp(now_s, count - current))
    elif behavior is not None:
        removed = _recorded(removed, behavior.down, Stamp(now_s, current - count))
    return Synced(count, HpaState(state.recommendations, added, removed, to_zero), why)


def _recorded(events: tuple[Stamp, ...], direction: Direction, event: Stamp) -> tuple[Stamp, ...]:
    oldest_s = event.at_s - max(rate.period_s for rate in direction.rates)
    return (*(old for old in events if old.at_s >= oldest_s), event)

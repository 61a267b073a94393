"""Which value makes the reader's arithmetic arrive at the desired count.

A reader ignores small changes (its tolerance) and rounds up, so a plain count does not always
get through; ``shape`` serves the value that does, and says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from wva_adapter.core.fleet import Reader
from wva_adapter.core.hpa import average_value_replicas, value_replicas


@dataclass(frozen=True, slots=True)
class Signal:
    """A value to serve.

    Attributes:
        value_milli: The value in thousandths.
        arrives_at: The count that the reader's arithmetic makes of it now.
        why: What was shaped and why; ``None`` where the plain count is served.
    """

    value_milli: int
    arrives_at: int
    why: str | None


def shape(
    desired: int, *, spec_replicas: int, status_replicas: int, ready_replicas: int, reader: Reader
) -> Signal:
    """Return the value from which ``reader`` arrives at ``desired``, or as near as it can get.

    Where the tolerance hides the step, the nearest reachable count that is not below ``desired``
    is taken on the way down; on the way up the plain count is served, which the reader ignores
    until the step is large enough.

    Args:
        desired: The count to arrive at, at least 0.
        spec_replicas: The scale target's ``spec.replicas``.
        status_replicas: Its ``status.replicas``, which an ``AverageValue`` target compares with.
        ready_replicas: Its ready pods, which a ``Value`` target multiplies by.
        reader: Who reads, with its target and tolerances.
    """
    if reader.target_type == "AverageValue":
        return _for_average_value(desired, status_replicas, reader)
    return _for_value(desired, spec_replicas, ready_replicas, reader)


def smallest_seen(desired: int, *, status_replicas: int, reader: Reader) -> int | None:
    """Return the smallest count above ``desired`` that the reader does not ignore.

    Returns:
        ``None`` where it does not ignore ``desired`` itself, or takes it for a step down. A
        ``Value`` target is never asked: any count above is shaped so that it is not ignored.
    """
    if reader.target_type != "AverageValue" or desired <= status_replicas:
        return None
    target = round(reader.target * 1000)
    count = desired
    while (
        average_value_replicas(
            status_replicas,
            target * count,
            target,
            tolerance_up=reader.tolerance_up,
            tolerance_down=reader.tolerance_down,
        )
        < count
    ):
        count += 1
    return None if count == desired else count


def _for_average_value(desired: int, status_replicas: int, reader: Reader) -> Signal:
    target = round(reader.target * 1000)

    def arrives(value: int) -> int:
        return average_value_replicas(
            status_replicas,
            value,
            target,
            tolerance_up=reader.tolerance_up,
            tolerance_down=reader.tolerance_down,
        )

    plain = target * desired
    if arrives(plain) == desired or desired >= status_replicas or desired == 0 or not reader.shaped:
        # Zero is never shaved, and no value can carry a small step up through the tolerance.
        return Signal(plain, arrives(plain), _ignored(desired, arrives(plain), reader))
    # Just above the step below: it still rounds up to the count and lies outside the tolerance.
    shaved = target * (desired - 1) + max(1, target // 1000)
    reached = arrives(shaved)
    if reached != desired:
        return Signal(plain, arrives(plain), _ignored(desired, arrives(plain), reader))
    return Signal(
        shaved,
        reached,
        f"{shaved / 1000:g} served for {desired}: {reader.name} ignores {plain / 1000:g} "
        f"at {status_replicas} replicas (tolerance {reader.tolerance_down:g}) "
        f"and rounds this up to {desired}",
    )


def _for_value(desired: int, spec_replicas: int, ready_replicas: int, reader: Reader) -> Signal:
    target = round(reader.target * 1000)

    def arrives(value: int) -> int:
        return value_replicas(
            spec_replicas,
            ready_replicas,
            value,
            target,
            tolerance_up=reader.tolerance_up,
            tolerance_down=reader.tolerance_down,
        )

    if spec_replicas == 0:
        return Signal(target * desired, arrives(target * desired), None)
    if desired == spec_replicas or ready_replicas == 0:
        return Signal(
            target,
            arrives(target),
            f"the target itself is served: {reader.name} then holds its {spec_replicas} replicas",
        )
    if desired == 0:
        return Signal(0, arrives(0), None)
    # The reader multiplies by its ready pods. Counts from desired upwards: the first one that a
    # value strictly inside its step, outside the tolerance, leads to. On the way down the count
    # it has is the last resort (the target itself holds it); beyond the band upwards, every
    # count can be reached.
    furthest = max(desired, spec_replicas, math.ceil(ready_replicas * (1 + reader.tolerance_up)))
    for count in range(desired, furthest + 2):
        if count == spec_replicas:
            break
        value = _inside_step(count, ready_replicas, target, reader)
        if value is not None and arrives(value) == count:
            nearest = "" if count == desired else f", the nearest it can reach to {desired}"
            return Signal(
                value,
                count,
                f"{value / 1000:g} served: {reader.name} multiplies it by its "
                f"{ready_replicas} ready replicas and arrives at {count}{nearest}",
            )
    return Signal(target, arrives(target), _ignored(desired, spec_replicas, reader))


def _inside_step(count: int, ready: int, target: int, reader: Reader) -> int | None:
    """Return thousandths strictly inside the step that rounds up to ``count``, outside the band."""
    lowest, highest = (count - 1) * target / ready, count * target / ready
    band_low, band_high = (1 - reader.tolerance_down) * target, (1 + reader.tolerance_up) * target
    for low, high in (
        (lowest, min(highest, band_low)),
        (max(lowest, band_high), highest),
    ):
        value = math.floor((low + high) / 2)
        if low < value < high:
            return value
    return None


def _ignored(desired: int, reached: int, reader: Reader) -> str | None:
    if reached == desired:
        return None
    return (
        f"{reader.name} stays at {reached}: the step to {desired} is inside its tolerance "
        "(set behavior.scaleUp.tolerance and scaleDown.tolerance to 0 where the cluster knows them)"
    )

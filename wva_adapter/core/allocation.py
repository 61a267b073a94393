"""Which counts carry a need at least cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wva_adapter.core.fleet import Toleration, VariantKey
from wva_adapter.core.load import FULL, Utilization

ENUMERATED = 5
"""Up to so many variants every plan that could be the cheapest is looked at."""

# Money is compared to this share of the largest price: below it, sums of floats differ by rounding.
_MONEY_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Option:
    """One variant as the allocation sees it.

    Attributes:
        capacity: What one replica carries, in the unit of the need; positive.
        cost_per_h: What one replica costs, at least 0.
        current: Its replicas now.
        lowest: Fewest replicas to consider.
        highest: Most replicas to consider, at least ``lowest``.
        accelerator: Type of the devices; ``None`` where nothing says.
        devices: Devices that one replica occupies, on one node.
        pending: How many of ``current`` have no devices yet.
        tolerations: Taints of nodes that its pods tolerate.
        power_w: What one replica draws at the decided load; ``None`` where nothing says.
    """

    key: VariantKey
    capacity: float
    cost_per_h: float
    current: int
    lowest: int
    highest: int
    accelerator: str | None = None
    devices: int = 0
    pending: int = 0
    tolerations: tuple[Toleration, ...] = ()
    power_w: float | None = None


def allocate(
    need: float, options: Sequence[Option], *, change_penalty: float = 0.0
) -> Mapping[VariantKey, int]:
    """Return the cheapest counts whose capacity covers the need.

    What is minimised is the whole model's cost, not that of the next replica: Σ cost · count,
    plus ``change_penalty`` · cost for each replica by which a count changes. Equal costs are
    decided by least capacity, then by larger counts for smaller keys. This order of plans does
    not depend on the need, so a larger need never gets less capacity.

    Args:
        need: Capacity to reach.
        options: Variants with unique keys.
        change_penalty: Share of a replica's cost, at least 0 and below 1.

    Returns:
        A count per variant. Where even the highest counts do not cover the need: the highest.
    """
    ordered = sorted(options, key=lambda option: option.key)
    if math.fsum(o.capacity * o.highest for o in ordered) <= need:
        return {o.key: o.highest for o in ordered}
    unit = max((o.cost_per_h for o in ordered), default=0.0) or 1.0
    prices = [o.cost_per_h / unit for o in ordered]
    search = _enumerate if len(ordered) <= ENUMERATED else _solve
    counts = search(need, ordered, prices, change_penalty)
    return {option.key: count for option, count in zip(ordered, counts, strict=True)}


def cover(
    need: float,
    options: Sequence[Option],
    *,
    utilization: Utilization = FULL,
    absent: float = 0.0,
    change_penalty: float = 0.0,
) -> Mapping[VariantKey, int]:
    """Return the cheapest counts that carry the need at the share that their own number allows.

    Args:
        need: What must be carried.
        options: As ``allocate`` takes them.
        utilization: Which share of its capacity a fleet of so many replicas may be loaded with.
        absent: Capacity of replicas that are counted and carry nothing.
        change_penalty: As ``allocate`` takes it.
    """

    def at(replicas: int) -> Mapping[VariantKey, int]:
        share = utilization.of(replicas)
        return allocate(absent + need / share, options, change_penalty=change_penalty)

    counts = at(sum(option.highest for option in options))
    fewest = sum(counts.values())
    # More replicas may be loaded more, each: the plan for the largest share may be too small for
    # the share that it allows itself, and is the right one where it is not.
    for replicas in range(fewest, sum(option.highest for option in options) + 1):
        counts = at(replicas)
        if sum(counts.values()) <= replicas or utilization.of(replicas) == utilization.highest:
            break
    return counts


def _price(option: Option, price: float, count: int, penalty: float) -> float:
    return price * (count + penalty * abs(count - option.current))


def _enumerate(
    need: float, options: Sequence[Option], prices: Sequence[float], penalty: float
) -> tuple[int, ...]:
    """Return the best plan of all, skipping branches that cannot beat the best one found."""
    size = len(options)
    # The dearest capacity first, from its lowest count upwards: the first plan found is then
    # nearly the best one, and cuts most of the others.
    dearest = sorted(range(size), key=lambda i: -prices[i] / options[i].capacity)
    place = sorted(range(size), key=dearest.__getitem__)
    options = [options[i] for i in dearest]
    prices = [prices[i] for i in dearest]
    # Of the variants from i on: what they carry at most and at least, and what the least costs.
    reach, base, floor = ([0.0] * (size + 1) for _ in range(3))
    for i in range(size - 1, -1, -1):
        option = options[i]
        reach[i] = reach[i + 1] + option.capacity * option.highest
        base[i] = base[i + 1] + option.capacity * option.lowest
        floor[i] = floor[i + 1] + _price(option, prices[i], option.lowest, penalty)
    # Per variant, the cheapest first: what it carries beyond its least, and the lowest price of
    # one unit of that.
    beyond = [
        (i, o.capacity * (o.highest - o.lowest), (1 - penalty) * prices[i] / o.capacity)
        for i, o in reversed(tuple(enumerate(options)))
    ]

    def least_price(first: int, missing: float) -> float:
        """Return what the variants from ``first`` on cost at least, parts of replicas allowed."""
        price = floor[first]
        missing -= base[first]
        for i, room, rate in beyond:
            if missing <= 0 or i < first:
                break
            price += min(room, missing) * rate
            missing -= room
        return price

    best: tuple[tuple[float, float, tuple[int, ...]], tuple[int, ...]] | None = None

    def visit(index: int, counts: tuple[int, ...], price: float, capacity: float) -> None:
        nonlocal best
        if index == size:
            order = (
                round(price, _MONEY_DIGITS),
                round(capacity, _MONEY_DIGITS),
                tuple(-counts[i] for i in place),
            )
            if best is None or order < best[0]:
                best = (order, counts)
            return
        option = options[index]
        fewest = math.ceil(_exact((need - capacity - reach[index + 1]) / option.capacity))
        lowest = max(option.lowest, min(fewest, option.highest))
        highest = lowest if index + 1 == size else option.highest
        for count in range(lowest, highest + 1):
            carried = capacity + option.capacity * count
            paid = price + _price(option, prices[index], count, penalty)
            if best is not None:
                least = paid + least_price(index + 1, need - carried)
                if round(least, _MONEY_DIGITS) > best[0][0]:
                    # One more of the dearest capacity never lowers the least that is left to pay.
                    break
            visit(index + 1, (*counts, count), paid, carried)

    visit(0, (), 0.0, 0.0)
    assert best is not None  # the caller has checked that the highest counts suffice
    return tuple(best[1][i] for i in place)


def _exact(quotient: float) -> float:
    """Return the quotient without the rounding that would push a whole number to the next one."""
    nearest = round(quotient)
    return nearest if math.isclose(quotient, nearest, rel_tol=0, abs_tol=1e-9) else quotient


def _solve(
    need: float, options: Sequence[Option], prices: Sequence[float], penalty: float
) -> tuple[int, ...]:
    """Return the best plan by mixed-integer programming, where enumeration would take too long."""
    # Imported here: they take half a second and 60 MB, and most fleets never come here.
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    size = len(options)
    capacity = np.array([o.capacity for o in options])
    current = np.array([o.current for o in options], dtype=float)
    price = np.array(prices)
    # A millionth of the dearest price per place in the order of keys decides between equal plans.
    ranked = price + 1e-6 * np.arange(1, size + 1) / size
    # Variables: the counts, then the change of each count, which is at least its absolute value.
    identity = np.eye(size)
    constraints = [
        LinearConstraint(np.hstack([capacity[None, :], np.zeros((1, size))]), lb=need),
        LinearConstraint(np.hstack([-identity, identity]), lb=-current),
        LinearConstraint(np.hstack([identity, identity]), lb=current),
    ]
    lowest = np.array([o.lowest for o in options], dtype=float)
    highest = np.array([o.highest for o in options], dtype=float)
    result = milp(
        np.concatenate([ranked, penalty * price]),
        constraints=constraints,
        bounds=Bounds(
            np.concatenate([lowest, np.zeros(size)]),
            np.concatenate([highest, np.full(size, np.inf)]),
        ),
        integrality=np.concatenate([np.ones(size), np.zeros(size)]),
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        raise ValueError(f"no plan found for a need of {need}: {result.message}")
    return tuple(round(float(count)) for count in result.x[:size])

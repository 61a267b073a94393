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
        resource: The name under which pods request the devices; ``None`` where nothing says.
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
    resource: str | None = None


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
    return _Search(options, change_penalty).best(need)


class Cover:
    """The cheapest counts that carry one need or another, at the share their own number allows.

    Args:
        options: As ``allocate`` takes them.
        utilization: Which share of its capacity a fleet of so many replicas may be loaded with.
        absent: Capacity of replicas that are counted and carry nothing.
        change_penalty: As ``allocate`` takes it.
    """

    def __init__(
        self,
        options: Sequence[Option],
        *,
        utilization: Utilization = FULL,
        absent: float = 0.0,
        change_penalty: float = 0.0,
    ) -> None:
        self._search = _Search(options, change_penalty)
        self._most = sum(option.highest for option in options)
        self._utilization, self._absent = utilization, absent

    def counts(self, need: float) -> Mapping[VariantKey, int]:
        """Return the counts for what must be carried."""
        utilization = self._utilization
        largest = utilization.of(self._most)
        counts = smallest = self._search.best(self._absent + need / largest)
        fewest = sum(counts.values())
        # More replicas may be loaded more, each: the plan for the largest share may be too small
        # for the share that it allows itself, and is the right one where it is not.
        for replicas in range(fewest, self._most + 1):
            share = utilization.of(replicas)
            if share == largest:
                counts = smallest
            else:
                counts = self._search.best(self._absent + need / share)
            if sum(counts.values()) <= replicas or share == utilization.highest:
                break
        return counts


def _price(option: Option, price: float, count: int, penalty: float) -> float:
    return price * (count + penalty * abs(count - option.current))


class _Search:
    """Options made ready for one need after another."""

    def __init__(self, options: Sequence[Option], penalty: float) -> None:
        self._options = ordered = sorted(options, key=lambda option: option.key)
        self._penalty = penalty
        self._highest = {o.key: o.highest for o in ordered}
        self._reach = math.fsum(o.capacity * o.highest for o in ordered)
        unit = max((o.cost_per_h for o in ordered), default=0.0) or 1.0
        self._prices = [o.cost_per_h / unit for o in ordered]
        self._tree = _Tree(ordered, self._prices, penalty) if len(ordered) <= ENUMERATED else None

    def best(self, need: float) -> Mapping[VariantKey, int]:
        """Return what ``allocate`` says of a need."""
        if self._reach <= need:
            return dict(self._highest)
        if self._tree is None:
            counts = _solve(need, self._options, self._prices, self._penalty)
        else:
            counts = self._tree.best(need)
        return {o.key: count for o, count in zip(self._options, counts, strict=True)}


class _Tree:
    """Every plan that could be the cheapest, as branches of which most are never walked."""

    def __init__(self, options: Sequence[Option], prices: Sequence[float], penalty: float) -> None:
        self._size = size = len(options)
        self._penalty = penalty
        # The dearest capacity first, from its lowest count upwards: the first plan found is then
        # nearly the best one, and cuts most of the others.
        dearest = sorted(range(size), key=lambda i: -prices[i] / options[i].capacity)
        self._place = sorted(range(size), key=dearest.__getitem__)
        self._options = options = [options[i] for i in dearest]
        self._prices = prices = [prices[i] for i in dearest]
        # Of the variants from i on: what they carry at most and at least, and what the least costs.
        self._reach, self._base, self._floor = ([0.0] * (size + 1) for _ in range(3))
        for i in range(size - 1, -1, -1):
            option = options[i]
            self._reach[i] = self._reach[i + 1] + option.capacity * option.highest
            self._base[i] = self._base[i + 1] + option.capacity * option.lowest
            self._floor[i] = self._floor[i + 1] + _price(option, prices[i], option.lowest, penalty)
        # Per variant, the cheapest first: what it carries beyond its least, and the lowest price
        # of one unit of that.
        self._beyond = [
            (i, o.capacity * (o.highest - o.lowest), (1 - penalty) * prices[i] / o.capacity)
            for i, o in reversed(tuple(enumerate(options)))
        ]
        self._need = 0.0
        self._best: tuple[tuple[float, float, tuple[int, ...]], tuple[int, ...]] | None = None

    def best(self, need: float) -> tuple[int, ...]:
        """Return the best plan of all, skipping branches that cannot beat the best one found.

        Args:
            need: No more than the highest counts carry.
        """
        if not self._options:
            return ()
        self._need, self._best = need, None
        self._visit(0, (), 0.0, 0.0)
        found = self._best
        assert found is not None  # the highest counts suffice
        return tuple(found[1][i] for i in self._place)

    def _least_price(self, first: int, missing: float) -> float:
        """Return what the variants from ``first`` on cost at least, parts of replicas allowed."""
        price = self._floor[first]
        missing -= self._base[first]
        for i, room, rate in self._beyond:
            if missing <= 0 or i < first:
                break
            price += min(room, missing) * rate
            missing -= room
        return price

    def _offer(self, counts: tuple[int, ...], price: float, capacity: float) -> None:
        order = (
            round(price, _MONEY_DIGITS),
            round(capacity, _MONEY_DIGITS),
            tuple([-counts[i] for i in self._place]),
        )
        if self._best is None or order < self._best[0]:
            self._best = (order, counts)

    def _visit(self, index: int, counts: tuple[int, ...], price: float, capacity: float) -> None:
        option, each = self._options[index], self._prices[index]
        size, current, penalty = option.capacity, option.current, self._penalty
        missing = self._need - capacity - self._reach[index + 1]
        fewest = math.ceil(_exact(missing / size))
        lowest = max(option.lowest, min(fewest, option.highest))
        if index + 1 == self._size:
            paid = price + _price(option, each, lowest, penalty)
            self._offer((*counts, lowest), paid, capacity + size * lowest)
            return
        for count in range(lowest, option.highest + 1):
            carried = capacity + size * count
            # As _price says; written out, since most of the search is spent here.
            paid = price + each * (count + penalty * abs(count - current))
            best = self._best
            if best is not None:
                least = paid + self._least_price(index + 1, self._need - carried)
                if round(least, _MONEY_DIGITS) > best[0][0]:
                    # One more of the dearest capacity never lowers the least that is left to pay.
                    break
            self._visit(index + 1, (*counts, count), paid, carried)


def _exact(quotient: float) -> float:
    """Return the quotient without the rounding that would push a whole number to the next one."""
    nearest = round(quotient)
    return nearest if abs(quotient - nearest) <= 1e-9 else quotient


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

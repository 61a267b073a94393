"""A better plan for scarce accelerators, for which a cycle has no time: exact, or by columns.

References:
    G. B. Dantzig and P. Wolfe, "Decomposition principle for linear programs", *Operations
    Research* 8, 1960: plans of parts as columns of a common program, priced by its duals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wva_adapter.core.room import Bound, Room, Supply
from wva_adapter.core.sharing import (
    UNMET_SLOPES,
    Counts,
    ModelRequest,
    Objective,
    feasible,
    price,
    share,
    unmet_prices,
    value,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

EXACT_MODELS = 20
"""Up to so many models the whole program is solved; more are solved by columns."""

_ROUNDS = 6
_REOPENED = 30
"""So many models with a whole plan are decided again beside those without one."""
_PLANS_EACH = 25
"""Among so many plans each."""
# A program ends within such a share of its bound, or after so many branches: a bound on the time
# that is the same on every machine.
_WHOLE = {"mip_rel_gap": 1e-6, "node_limit": 5000}
_REST = {"mip_rel_gap": 1e-3, "node_limit": 500}


def propose(
    requests: Sequence[ModelRequest],
    supply: Supply,
    *,
    change_penalty: float = 0.0,
    objective: Objective | None = None,
) -> Counts:
    """Return counts whose objective is no worse than the greedy plan's, and mostly better.

    Takes from some hundredths of a second to seconds: it is meant to run beside the cycle, whose
    ``share`` then judges it on the numbers of that moment.

    Args:
        requests: Every model once.
        supply: What replicas can be added on.
        change_penalty: As ``allocate`` has it.
        objective: What a plan is judged by; cost if not said.
    """
    objective = objective or Objective()
    greedy = share(requests, supply, change_penalty=change_penalty, objective=objective).counts
    if not supply.bounded or not requests:
        return greedy
    priced = price(requests, objective)
    options = [o for r in priced for o in r.options]
    bounds = Room(supply, options).bounds(options)
    found = [greedy, Columns(priced, bounds, greedy, change_penalty).solve()]
    if len(priced) <= EXACT_MODELS:
        found += _solve_whole(priced, bounds, change_penalty)
    possible = [counts for counts in found if feasible(counts, priced, supply)]
    # The first of the best: greedy is possible always, whatever it is worth.
    return min(
        possible or [greedy],
        key=lambda counts: value(priced, counts, change_penalty=change_penalty).objective,
    )


def _solve_whole(
    requests: Sequence[ModelRequest], bounds: Sequence[Bound], penalty: float
) -> list[Counts]:
    """Return the best counts by mixed-integer programming, or none where none were found."""
    # Imported here: they take half a second and 60 MB, and most fleets never come here.
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import lil_array

    options = [o for r in requests for o in r.options]
    place = {o.key: i for i, o in enumerate(options)}
    size, slopes = len(options), len(UNMET_SLOPES)
    unit = max((o.cost_per_h for o in options), default=0.0) or 1.0
    prices = unmet_prices(requests)
    needy = [r for r in requests if r.need > 0]
    # Variables: replicas kept of those that run, replicas added, and the unmet share of each
    # model by quarters.
    kept, added, unmet = 0, size, 2 * size
    total = 2 * size + slopes * len(needy)
    cost, low, high = np.zeros(total), np.zeros(total), np.zeros(total)
    for i, o in enumerate(options):
        cost[kept + i] = (1 - penalty) * o.cost_per_h / unit
        cost[added + i] = (1 + penalty) * o.cost_per_h / unit
        low[kept + i], high[kept + i] = min(o.lowest, o.current), min(o.highest, o.current)
        low[added + i] = max(0, o.lowest - o.current)
        high[added + i] = max(0, o.highest - o.current)
    rows = lil_array((len(needy) + len(bounds), total))
    least = np.full(len(needy) + len(bounds), -np.inf)
    most = np.full(len(needy) + len(bounds), np.inf)
    for row, request in enumerate(needy):
        for o in request.options:
            for start in (kept, added):
                rows[row, start + place[o.key]] = o.capacity / request.need
        for part, slope in enumerate(UNMET_SLOPES):
            column = unmet + slopes * row + part
            rows[row, column] = 1.0
            cost[column] = prices[request.key] * slope / unit
            high[column] = 1.0 / slopes
        least[row] = 1.0
    for row, bound in enumerate(bounds, len(needy)):
        for key, uses in bound.uses.items():
            rows[row, added + place[key]] = uses
        most[row] = bound.most
    result = milp(
        cost,
        constraints=LinearConstraint(rows.tocsr(), least, most),
        bounds=Bounds(low, high),
        integrality=np.concatenate([np.ones(2 * size), np.zeros(total - 2 * size)]),
        options=_WHOLE,
    )
    if result.x is None:
        return []
    return [{o.key: round(result.x[i]) + round(result.x[size + i]) for i, o in enumerate(options)}]


@dataclass(frozen=True, slots=True)
class _Pool:
    """Plans of single models that may be worth while, one after another.

    Attributes:
        counts: Shape (plans, most variants of a model): replicas; 0 where there is no variant.
        added: The same shape: how many of them are new.
        cost: Shape (plans,): price, changes and the penalty of what stays unmet.
        model: Shape (plans,): which model each is for, rising.
        starts: Shape (models,): the first plan of each.
    """

    counts: Ints
    added: Ints
    cost: Floats
    model: Ints
    starts: Ints


class Columns:
    """The common program over plans of single models, solved by pricing them.

    Each model takes one plan of its pool, or parts of several that add up to one. The duals of
    the bounds say what a device is worth to the others; priced by them, each model names its best
    plan, which joins the program. After some rounds all but a few models have one whole plan;
    those few are decided by a small integer program.

    Attributes:
        worth: What one unit of each bound is worth to all models, in the largest price.
    """

    def __init__(
        self,
        requests: Sequence[ModelRequest],
        bounds: Sequence[Bound],
        greedy: Counts,
        penalty: float,
    ) -> None:
        import numpy as np

        self._requests = requests
        options = [o for r in requests for o in r.options]
        self._unit = max((o.cost_per_h for o in options), default=0.0) or 1.0
        self._most = np.array([bound.most for bound in bounds], dtype=float)
        self._width = max(len(r.options) for r in requests)
        # What one added replica of each variant of each model uses of each bound.
        self._uses = np.zeros((len(requests), self._width, len(bounds)))
        place = {o.key: (m, v) for m, r in enumerate(requests) for v, o in enumerate(r.options)}
        for b, bound in enumerate(bounds):
            for key, uses in bound.uses.items():
                self._uses[(*place[key], b)] = uses
        self.worth: Floats = np.zeros(len(bounds))
        self._pool = self._make_pool(greedy, penalty)

    def _make_pool(self, greedy: Counts, penalty: float) -> _Pool:
        import numpy as np

        prices = unmet_prices(self._requests)
        parts, costs, added = [], [], []
        for request in self._requests:
            plans = _plans(request, self._width)
            own = np.zeros((1, self._width), dtype=np.int64)
            own[0, : len(request.options)] = [greedy[o.key] for o in request.options]
            # The greedy plan comes first: with it the program has a solution from the start.
            plans = np.concatenate([own, plans])
            pad = self._width - len(request.options)
            current = np.array([o.current for o in request.options] + [0] * pad)
            money = np.array([o.cost_per_h for o in request.options] + [0.0] * pad) / self._unit
            capacity = np.array([o.capacity for o in request.options] + [0.0] * pad)
            cost = plans @ money + penalty * (np.abs(plans - current) @ money)
            if request.need > 0:
                unmet = np.clip(1.0 - plans @ capacity / request.need, 0.0, 1.0)
                part = 1.0 / len(UNMET_SLOPES)
                penalties = sum(
                    slope * np.clip(unmet - i * part, 0.0, part)
                    for i, slope in enumerate(UNMET_SLOPES)
                )
                cost = cost + prices[request.key] / self._unit * penalties
            parts.append(plans)
            costs.append(cost)
            added.append(np.maximum(0, plans - current))
        sizes = np.array([len(part) for part in parts])
        return _Pool(
            counts=np.concatenate(parts),
            added=np.concatenate(added),
            cost=np.concatenate(costs),
            model=np.repeat(np.arange(len(parts)), sizes),
            starts=np.concatenate([[0], np.cumsum(sizes)[:-1]]),
        )

    def _reduced(self, worth: Floats) -> Floats:
        """Return the cost of each plan of the pool where devices cost what they are worth."""
        import numpy as np

        pool = self._pool
        reduced: Floats = pool.cost + np.einsum(
            "pv,pv->p", pool.added, (self._uses @ worth)[pool.model]
        )
        return reduced

    def _best(self, worth: Floats) -> Ints:
        """Return each model's best plan, where devices cost what they are worth."""
        import numpy as np

        pool, reduced = self._pool, self._reduced(worth)
        least = np.minimum.reduceat(reduced, pool.starts)
        hits = np.flatnonzero(reduced <= least[pool.model])
        firsts = np.unique(pool.model[hits], return_index=True)[1]
        best: Ints = hits[firsts]
        return best

    def _usage(self, plans: Ints) -> Floats:
        """Return what these plans use: shape (bounds, plans)."""
        import numpy as np

        usage: Floats = np.einsum(
            "pv,pvb->bp", self._pool.added[plans], self._uses[self._pool.model[plans]]
        )
        return usage

    def _relax(self, plans: Ints) -> tuple[Floats, Floats]:
        """Return the parts that the models take of these plans, and the duals of the bounds."""
        import numpy as np
        from scipy.optimize import linprog
        from scipy.sparse import csr_array

        model = self._pool.model[plans]
        one_each = csr_array(
            (np.ones(len(plans)), (model, np.arange(len(plans)))),
            shape=(len(self._requests), len(plans)),
        )
        result = linprog(
            self._pool.cost[plans],
            A_ub=csr_array(self._usage(plans)),
            b_ub=self._most,
            A_eq=one_each,
            b_eq=np.ones(len(self._requests)),
            method="highs",
        )
        if result.x is None:
            raise ValueError(f"the program over plans has no solution: {result.message}")
        return result.x, -result.ineqlin.marginals

    def solve(self) -> Counts:
        """Return the counts of the plans that were chosen."""
        import numpy as np

        worth = self.worth
        plans = np.unique(np.concatenate([self._pool.starts, self._best(worth)]))
        for _ in range(_ROUNDS):
            self.worth = worth = self._relax(plans)[1]
            grown = np.unique(
                np.concatenate(
                    [plans, *(self._best(worth * f) for f in (0.5, 0.8, 1.0, 1.25, 2.0))]
                )
            )
            if len(grown) == len(plans):
                break
            plans = grown
        chosen = self._settle(plans, self._relax(plans)[0])
        return {
            o.key: int(self._pool.counts[plan, v])
            for plan, request in zip(chosen, self._requests, strict=True)
            for v, o in enumerate(request.options)
        }

    def _settle(self, plans: Ints, parts: Floats) -> Ints:
        """Return one plan for each model: most keep their whole ones, the others are decided.

        Decided together are the models with parts of several plans and those to which another
        plan is worth nearly as much, each among its best plans.
        """
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp

        pool, reduced = self._pool, self._reduced(self.worth)
        # By model, its plans from the best to the worst.
        order = np.lexsort((reduced, pool.model))
        rank = np.arange(len(order)) - pool.starts[pool.model[order]]
        chosen = np.full(len(self._requests), -1)
        whole = parts > 1 - 1e-6
        chosen[pool.model[plans[whole]]] = plans[whole]
        firsts, seconds = order[rank == 0], order[rank == 1]
        regret = np.full(len(chosen), np.inf)
        regret[pool.model[seconds]] = reduced[seconds] - reduced[firsts[pool.model[seconds]]]
        regret[chosen < 0] = -1.0
        open_ = np.sort(np.argsort(regret, kind="stable")[: (chosen < 0).sum() + _REOPENED])
        closed = np.setdiff1d(np.arange(len(chosen)), open_)
        left = self._most - self._usage(chosen[closed]).sum(axis=1)
        near = np.isin(pool.model[order], open_) & (rank < _PLANS_EACH)
        # The plan that needs nothing new is always possible.
        idle = np.isin(pool.model, open_) & ~pool.added.any(axis=1)
        among = np.unique(np.concatenate([order[near], np.flatnonzero(idle)]))
        rows = np.searchsorted(open_, pool.model[among])
        one_each = np.zeros((len(open_), len(among)))
        one_each[rows, np.arange(len(among))] = 1
        result = milp(
            pool.cost[among],
            constraints=[
                LinearConstraint(self._usage(among), ub=left + 1e-6),
                LinearConstraint(one_each, 1, 1),
            ],
            bounds=Bounds(0, 1),
            integrality=np.ones(len(among)),
            options=_REST,
        )
        if result.x is None:
            return pool.starts
        taken = among[result.x > 0.5]
        chosen[pool.model[taken]] = taken
        return chosen


def _plans(request: ModelRequest, width: int) -> Ints:
    """Return counts that may be worth while for one model: shape (plans, width).

    One variant has any count, another one covers what is missing, rounded up and rounded down,
    and the others have their lowest counts.
    """
    import numpy as np

    options = request.options
    lowest = np.array([o.lowest for o in options])
    highest = np.array([o.highest for o in options])
    capacity = np.array([o.capacity for o in options])
    base = float(lowest @ capacity)
    found = []
    for v, first in enumerate(options):
        counts = np.arange(first.lowest, first.highest + 1)
        missing = request.need - base - (counts - first.lowest) * first.capacity
        alone = np.tile(lowest, (len(counts), 1))
        alone[:, v] = counts
        found.append(alone)
        for u in range(len(options)):
            if u == v:
                continue
            more = np.maximum(0.0, missing / capacity[u])
            for rounded in (np.floor(more + 1e-9), np.ceil(more - 1e-9)):
                both = alone.copy()
                both[:, u] = np.minimum(highest[u], lowest[u] + rounded.astype(np.int64))
                found.append(both)
    plans = np.unique(np.concatenate(found), axis=0)
    padded = np.zeros((len(plans), width), dtype=np.int64)
    padded[:, : len(options)] = plans
    return padded

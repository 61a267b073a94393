"""How good and how quick plans are where accelerators are scarce."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence

from scipy.optimize import Bounds, LinearConstraint, milp

from tests.bench import Row
from wva_adapter.core.allocation import Option
from wva_adapter.core.fleet import NodeState, VariantKey
from wva_adapter.core.proposal import Columns, propose
from wva_adapter.core.room import Room, Supply
from wva_adapter.core.sharing import (
    UNMET_SLOPES,
    ModelRequest,
    Objective,
    price,
    share,
    unmet_prices,
    value,
)

# Accelerators and what one costs per hour.
PRICES = {"L4": 0.5, "L40S": 0.9, "A100": 1.8, "H100": 3.2, "MI300X": 3.6, "H200": 4.2}
SCARCE = 0.7
GREEDY_TIMES = 5
"""The least of so many is told: one takes so short that whatever else runs lengthens it."""
LIMITS_S = {100: 0.5, 500: 2.0, 1000: 5.0}


def a_scarce_fleet(models: int, seed: int) -> tuple[list[ModelRequest], Supply]:
    """Models on two to five types, and nodes of eight for 70 % of the devices that they want."""
    rng = random.Random(seed)
    requests = []
    for m in range(models):
        devices = rng.choice([1, 1, 1, 2, 4, 8])
        options = tuple(
            Option(
                VariantKey(f"team-{m % 20}", f"m{m:04d}-{accelerator}"),
                capacity=devices * rng.uniform(1, 3) * PRICES[accelerator],
                cost_per_h=devices * PRICES[accelerator],
                current=0,
                lowest=0,
                highest=12,
                accelerator=accelerator,
                devices=devices,
            )
            for accelerator in rng.sample(list(PRICES), rng.randint(2, 5))
        )
        need = rng.uniform(1, 8) * max(o.capacity for o in options)
        requests.append(ModelRequest(f"team-{m % 20}", f"m{m:04d}", need, options))
    wanted = share(requests, Supply()).counts
    total = sum(wanted[o.key] * o.devices for r in requests for o in r.options)
    each = int(total * SCARCE / len(PRICES) / 8)
    return requests, Supply(
        tuple(NodeState(f"{a}-{i}", a, 8, 0) for a in PRICES for i in range(each))
    )


def lower_bound(requests: Sequence[ModelRequest], supply: Supply) -> float:
    """Return what no plan can be better than: the program over plans of single models, relaxed.

    By duality: each model alone at its best where devices cost what they are worth, less what
    all devices are worth together. That holds for any worths; the best ones give the bound of
    the relaxed program.
    """
    priced = price(requests, Objective())
    options = [o for r in priced for o in r.options]
    bounds = Room(supply, options).bounds(options)
    columns = Columns(priced, bounds, share(requests, supply).counts, 0.0)
    columns.solve()
    unit = max(o.cost_per_h for o in options)
    worth = dict(enumerate(unit * columns.worth))
    penalties = unmet_prices(priced)
    total = -sum(worth[i] * bound.most for i, bound in enumerate(bounds))
    parts = len(UNMET_SLOPES)
    for request in priced:
        size = len(request.options)
        cost = [
            o.cost_per_h + sum(worth[i] * b.uses.get(o.key, 0) for i, b in enumerate(bounds))
            for o in request.options
        ]
        shares = [o.capacity / request.need for o in request.options]
        alone = milp(
            cost + [penalties[request.key] * slope for slope in UNMET_SLOPES],
            constraints=LinearConstraint([shares + [1.0] * parts], lb=1),
            bounds=Bounds(0, [o.highest for o in request.options] + [1 / parts] * parts),
            integrality=[1] * size + [0] * parts,
            options={"mip_rel_gap": 1e-9},
        )
        total += alone.mip_dual_bound
    return float(total)


def rows() -> list[Row]:
    """Return, per size of fleet, times and the distance to the bound, beside the greedy plan's."""
    propose(*a_scarce_fleet(30, 0))  # what is imported once is no part of a plan's time
    found = []
    for models, limit_s in LIMITS_S.items():
        requests, supply = a_scarce_fleet(models, seed=3)
        greedy_s = math.inf
        for _ in range(GREEDY_TIMES):
            started = time.process_time()
            greedy = share(requests, supply)
            greedy_s = min(greedy_s, time.process_time() - started)
        started = time.process_time()
        counts = propose(requests, supply)
        proposal_s = time.process_time() - started
        bound = lower_bound(requests, supply)
        gap = value(requests, counts).objective / bound - 1
        greedy_gap = greedy.value.objective / bound - 1
        found += [
            Row(
                name=f"greedy sharing of {models:,} models",
                value=1000 * greedy_s,
                unit="ms CPU",
                against=None,
                ratio=None,
                target="<= 100 ms at 1,000",
                ok=greedy_s <= 0.1 * max(1.0, models / 1000),
            ),
            Row(
                name=f"proposal for {models:,} models, against greedy",
                value=proposal_s,
                unit="s CPU",
                against=greedy_s,
                ratio=proposal_s / greedy_s,
                target=f"<= {limit_s:g} s",
                ok=proposal_s <= limit_s,
            ),
            Row(
                name=f"objective above the bound, {models:,} models, against greedy",
                value=100 * gap,
                unit="%",
                against=100 * greedy_gap,
                ratio=None,
                target="<= 2 %",
                ok=gap <= 0.02 and gap <= greedy_gap,
            ),
        ]
    return found

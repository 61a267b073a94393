"""The cheapest counts that carry a need."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from tests.builders import a_key
from wva_adapter.core.allocation import ENUMERATED, Option, allocate


def an_option(
    name: str,
    *,
    capacity: float = 1.0,
    cost: float = 1.0,
    current: int = 0,
    lowest: int = 0,
    highest: int = 10,
) -> Option:
    return Option(a_key(name), capacity, cost, current, lowest, highest)


def options(count: int = 3) -> st.SearchStrategy[list[Option]]:
    def build(index: int) -> st.SearchStrategy[Option]:
        return st.builds(
            lambda capacity, cost, current, lowest, span: an_option(
                f"v{index}",
                capacity=capacity,
                cost=cost,
                current=current,
                lowest=lowest,
                highest=lowest + span,
            ),
            # Eighths: sums of them are exact, so whether a plan covers a need is never in doubt.
            capacity=st.integers(1, 80).map(lambda n: n / 8),
            cost=st.floats(0, 20),
            current=st.integers(0, 6),
            lowest=st.integers(0, 3),
            span=st.integers(0, 4),
        )

    return st.integers(1, count).flatmap(lambda n: st.tuples(*map(build, range(n))).map(list))


def capacity_of(counts: dict[str, int], fleet: list[Option]) -> float:
    return sum(o.capacity * counts[o.key.name] for o in fleet)


def allocated(need: float, fleet: list[Option], penalty: float = 0.05) -> dict[str, int]:
    return {k.name: n for k, n in allocate(need, fleet, change_penalty=penalty).items()}


def price_of(counts: dict[str, int], fleet: list[Option], penalty: float) -> float:
    return sum(
        o.cost_per_h * (counts[o.key.name] + penalty * abs(counts[o.key.name] - o.current))
        for o in fleet
    )


def test_the_variant_that_is_cheaper_per_capacity_grows() -> None:
    # 1.80 / 7 = 0.257 $/h per req/s against 3.20 / 18 = 0.178: the dearer card is the cheaper one
    a100 = an_option("a100", capacity=7, cost=1.8)
    h100 = an_option("h100", capacity=18, cost=3.2)
    assert allocated(36, [a100, h100]) == {"a100": 0, "h100": 2}


def test_the_whole_fleet_is_priced_not_the_next_replica() -> None:
    # 20: one H100 and one A100 (25, 5.00 $/h) are cheaper than two H100 (36, 6.40 $/h)
    a100 = an_option("a100", capacity=7, cost=1.8)
    h100 = an_option("h100", capacity=18, cost=3.2)
    assert allocated(20, [a100, h100]) == {"a100": 1, "h100": 1}


def test_at_its_maximum_the_next_variant_takes_over() -> None:
    cheap = an_option("cheap", cost=1, highest=2)
    dear = an_option("dear", cost=3)
    assert allocated(4, [cheap, dear]) == {"cheap": 2, "dear": 2}


def test_a_need_beyond_every_maximum_gets_all_there_is() -> None:
    fleet = [an_option("a", highest=2), an_option("b", highest=3)]
    assert allocated(99, fleet) == {"a": 2, "b": 3}


def test_equal_plans_are_decided_by_the_name() -> None:
    fleet = [an_option("b", current=1, lowest=1), an_option("a", current=1, lowest=1)]
    assert allocated(3, fleet) == {"a": 2, "b": 1}  # up: the first name grows
    shrinking = [an_option("b", current=2, highest=2), an_option("a", current=2, highest=2)]
    assert allocated(3, shrinking) == {"a": 2, "b": 1}  # down: the last name goes


def test_a_change_must_save_more_than_its_penalty() -> None:
    # moving the one replica from b to a saves 0.04 and costs 0.05 + 0.048 in penalty
    fleet = [an_option("a", cost=0.96), an_option("b", cost=1.0, current=1)]
    assert allocated(1, fleet, penalty=0.05) == {"a": 0, "b": 1}
    assert allocated(1, fleet, penalty=0.0) == {"a": 1, "b": 0}


@settings(max_examples=500, deadline=None)
@given(options(), st.integers(0, 480).map(lambda n: n / 8), st.floats(0, 0.5))
def test_no_other_plan_is_cheaper(fleet: list[Option], need: float, penalty: float) -> None:
    counts = allocated(need, fleet, penalty)
    ranges = [range(o.lowest, o.highest + 1) for o in fleet]
    plans = [dict(zip((o.key.name for o in fleet), plan, strict=True)) for plan in product(*ranges)]
    feasible = [plan for plan in plans if capacity_of(plan, fleet) >= need]
    if not feasible:
        assert counts == {o.key.name: o.highest for o in fleet}
        return
    assert capacity_of(counts, fleet) >= need
    cheapest = min(price_of(plan, fleet, penalty) for plan in feasible)
    assert price_of(counts, fleet, penalty) == pytest.approx(cheapest, abs=1e-6)


@settings(max_examples=500, deadline=None)
@given(options(), st.floats(0, 40), st.floats(0, 40), st.floats(0, 0.5))
def test_a_larger_need_never_gets_less_capacity(
    fleet: list[Option], need: float, more: float, penalty: float
) -> None:
    less = capacity_of(allocated(need, fleet, penalty), fleet)
    assert capacity_of(allocated(need + more, fleet, penalty), fleet) >= less - 1e-9


@settings(max_examples=500, deadline=None)
@given(options(), st.floats(0, 40), st.randoms(use_true_random=False))
def test_the_order_of_variants_changes_nothing(
    fleet: list[Option], need: float, random: object
) -> None:
    shuffled = list(reversed(fleet))
    assert allocated(need, shuffled) == allocated(need, fleet)


def test_it_costs_what_mixed_integer_programming_finds() -> None:
    rng = np.random.default_rng(7)
    for size in [2, 3, 4, ENUMERATED, ENUMERATED + 1, ENUMERATED + 3] * 50:
        fleet = [
            an_option(
                f"v{i}",
                capacity=float(rng.uniform(1, 10)),
                cost=float(rng.uniform(0.5, 10)),
                highest=int(rng.integers(1, 5)),
            )
            for i in range(size)
        ]
        need = float(rng.uniform(0, sum(o.capacity * o.highest for o in fleet)))
        oracle = milp(
            [o.cost_per_h for o in fleet],
            constraints=LinearConstraint([[o.capacity for o in fleet]], lb=need),
            bounds=Bounds([0] * size, [o.highest for o in fleet]),
            integrality=[1] * size,
            options={"mip_rel_gap": 0.0},
        )
        found = allocated(need, fleet, penalty=0.0)
        # a millionth of the dearest price decides ties in large models
        assert price_of(found, fleet, 0.0) == pytest.approx(oracle.fun, abs=2e-4)


@settings(max_examples=500, deadline=None)
@given(need=st.integers(0, 200).map(lambda n: n / 8), fleet=options(), unit=st.integers(-20, 20))
def test_the_unit_of_time_changes_no_count(need: float, fleet: list[Option], unit: int) -> None:
    # Requests per second, minute or day; powers of two, so that no sum is rounded differently.
    per = 2.0**unit
    slower = [replace(option, capacity=option.capacity * per) for option in fleet]
    assert allocated(need * per, slower) == allocated(need, fleet)

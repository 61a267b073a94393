"""What accelerators draw, and plans that spend least of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.builders import a_key, a_state, a_variant
from wva_adapter.core.decision import Plan
from wva_adapter.core.inventory import Inventory
from wva_adapter.core.memory import Memory
from wva_adapter.core.planner import plan
from wva_adapter.core.policy import Policy
from wva_adapter.core.power import DRAWS, Draw, draw_of, price_per_h
from wva_adapter.core.priors import SPEEDS
from wva_adapter.core.snapshot import Snapshot


def test_every_device_of_known_speed_has_a_known_draw() -> None:
    assert set(SPEEDS) == set(DRAWS)


def test_a_device_draws_in_proportion_between_idle_and_full() -> None:
    assert Draw(80, 400).at(0.5) == 240  # 80 + 0.5 x 320
    assert Draw(80, 400).at(7) == 400


def test_a_slice_draws_its_share_and_the_operators_word_counts_most() -> None:
    assert draw_of("A100-MIG-1g.5gb", {}).full_w == pytest.approx(400 / 7)
    assert draw_of("A100", {"A100": Draw(50, 250)}) == Draw(50, 250)
    assert draw_of("a thing", {}) == DRAWS["A100"]


def test_a_weighted_price_is_the_sum_of_both() -> None:
    assert price_per_h("cost", 2.0, 700, 0.2) == 2.0
    assert price_per_h("power", 2.0, 700, 0.2) == 0.7  # kWh
    assert price_per_h("weighted", 2.0, 700, 0.2) == pytest.approx(2.14)  # 2 $ + 0.7 kWh x 0.2 $


def decided(policy: Policy, inventory: Inventory | None = None) -> Plan:
    """One replica on each of two variants, both full: one more is needed."""
    states = (
        a_state(replace(a_variant("cheap", cost=1.0), accelerator="H100"), usage=0.95, ready=1),
        a_state(replace(a_variant("frugal", cost=1.5), accelerator="L4"), usage=0.95, ready=1),
    )
    return plan(Snapshot(0.0, states, inventory=inventory or Inventory()), policy, Memory())[0]


def added(made: Plan) -> list[str]:
    return [key.name for key, one in made.decisions.items() if one.desired > one.current]


def test_by_cost_the_cheaper_one_grows_and_by_power_the_one_that_draws_less() -> None:
    assert added(decided(Policy(analysis="saturation"))) == ["cheap"]
    assert added(decided(Policy(analysis="saturation", objective="power"))) == ["frugal"]


def test_a_weighted_sum_turns_with_the_price_of_power() -> None:
    def at(price: float) -> list[str]:
        return added(
            decided(Policy(analysis="saturation", objective="weighted", power_price_per_kwh=price))
        )

    assert at(0.1) == ["cheap"]  # 1.07 against 1.51 $/h
    assert at(1.0) == ["frugal"]  # 1.70 against 1.57 $/h


def test_both_are_told_whatever_counts() -> None:
    one = decided(Policy(analysis="saturation")).decisions[a_key("cheap")]
    assert one.cost_per_h == 1.0
    # Two H100, each drawing between idle and full.
    assert one.power_w is not None
    assert 2 * 140 < one.power_w <= 2 * 700


def test_what_the_operator_says_of_a_device_counts() -> None:
    cold = Inventory(draws={"H100": Draw(5, 50)})
    assert added(decided(Policy(analysis="saturation", objective="power"), cold)) == ["cheap"]


def test_a_draw_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="idle_w=500, tdp_w=400"):
        Draw(500, 400)

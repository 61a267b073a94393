"""Why a count is not another one, told as an operator asks it."""

from __future__ import annotations

import pytest

from tests.builders import a_key, a_replica, a_state, a_variant, decide
from tests.core.test_demand import Fleet
from wva_adapter.core.decision import Plan
from wva_adapter.core.policy import Policy
from wva_adapter.core.whynot import WhyNot, alternatives, why_not


def asked(plan: Plan, count: int, name: str = "llama-a100") -> WhyNot:
    assert plan.case is not None
    return why_not(a_key(name), count, plan.decisions, plan.case)


def said(plan: Plan, count: int, name: str = "llama-a100") -> str:
    return "; ".join(asked(plan, count, name).sentences)


@pytest.fixture(scope="module")
def busy() -> Plan:
    fleet = Fleet()
    fleet.cycles(4.0, 300)
    return fleet.cycle(40.0)


def test_the_decided_count_is_said_to_be_it(busy: Plan) -> None:
    decided = busy.decisions[a_key()].desired
    assert said(busy, decided) == f"{decided} is what was decided"


def test_fewer_are_short_of_what_is_needed(busy: Plan) -> None:
    decided = busy.decisions[a_key()].desired
    answer = asked(busy, decided - 2)
    assert any("short by" in one and "req/s" in one for one in answer.breaks)
    assert answer.carried < answer.needed
    assert answer.more_per_h == pytest.approx(-2 * 1.2)


def test_more_cost_more_and_break_nothing() -> None:
    calm = Fleet().cycles(4.0, 300)
    answer = asked(calm, calm.decisions[a_key()].desired + 2)
    assert answer.breaks == ()
    assert answer.more_per_h == pytest.approx(2 * 1.2)
    assert "it costs 2.40 $/h more" in answer.sentences


def test_more_at_once_than_a_decision_may_add_says_so(busy: Plan) -> None:
    assert "at most 8 more than 2 per decision (max_up_step)" in said(busy, 12)


def test_more_than_the_maximum_breaks_it() -> None:
    plan, _ = decide(a_state(a_variant(maximum=3), usage=[0.3] * 2))
    assert "max_replicas" in said(plan, 5)


def test_fewer_than_the_minimum_breaks_it() -> None:
    plan, _ = decide(a_state(a_variant(minimum=2), usage=[0.3] * 2))
    assert "min_replicas" in said(plan, 1)


def test_fewer_while_blind_says_who_is_unseen() -> None:
    gone = a_replica("r2", usage=0.1, problem="timed out after 2 s")
    seen = [a_replica(f"r{i}", usage=0.1) for i in range(2)]
    plan, _ = decide(a_state(replicas=[*seen, gone]))
    assert "r2 unseen: timed out after 2 s" in said(plan, 2)


def test_fewer_within_the_window_says_how_long_it_is() -> None:
    fleet = Fleet(ready=8, spec=8)
    fleet.cycles(40.0, 200)
    plan = fleet.cycles(2.0, 60)
    assert "scale_down_window" in said(plan, 1)


def test_a_negative_count_is_refused(busy: Plan) -> None:
    with pytest.raises(ValueError, match="count -1, want at least 0"):
        asked(busy, -1)


def test_alternatives_have_their_cost_the_cheapest_possible_first() -> None:
    a100, h100 = a_variant("llama-a100", cost=1.2), a_variant("llama-h100", cost=3.9)
    plan, _ = decide(
        a_state(a100, usage=[0.75]),
        a_state(h100, usage=[0.75]),
        policy=Policy(analysis="saturation"),
    )
    assert plan.case is not None
    found = alternatives(a_key("llama-a100"), plan.decisions, plan.case)
    feasible = [one.cost_per_h for one in found if one.feasible]
    assert feasible == sorted(feasible)
    assert any(not one.feasible for one in found)
    decided = {key: d.desired for key, d in plan.decisions.items()}
    assert any(dict(one.counts) == decided for one in found)

"""Requests that nobody waits for: throughput by their deadline, in the room that others leave."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.test_demand import Fleet, only
from wva_adapter.core.decision import Plan
from wva_adapter.core.load import ModelLoad
from wva_adapter.core.offline import online
from wva_adapter.core.owed import Owed
from wva_adapter.core.planner import plan
from wva_adapter.core.policy import Policy
from wva_adapter.core.snapshot import GatewayState, Snapshot, VariantState

HOUR_S = 3600.0


def owed(waiting: float, *, deadline_s: float = 2 * HOUR_S) -> Owed:
    return Owed().after(0.0, waiting, waiting, deadline_s)


def test_a_backlog_is_owed_what_is_left_of_it_by_its_deadline() -> None:
    assert owed(20_000).rate_per_s(0.0, 2 * HOUR_S, 0.0) == pytest.approx(
        20_000 / (7200 - 72)
    )  # 1 % early


def test_the_rate_stays_while_it_is_served_and_rises_where_it_is_not() -> None:
    known = owed(7200)
    half = known.after(HOUR_S, 3600, 0.0, 2 * HOUR_S)
    assert half.rate_per_s(HOUR_S, 2 * HOUR_S, 0.0) == pytest.approx(1.0, rel=0.03)
    late = known.after(HOUR_S, 7200, 0.0, 2 * HOUR_S)
    assert late.rate_per_s(HOUR_S, 2 * HOUR_S, 0.0) == pytest.approx(2.0, rel=0.03)


def test_what_comes_later_is_due_later_and_who_came_first_is_served_first() -> None:
    known = owed(100, deadline_s=1000).after(500, 200, 100, 1000)
    # 100 due in 500 s and 200 in 1,000 s ask for 0.2/s each, 10 s early for a bit more
    assert known.dues == ((1000, 100), (1500, 100))
    assert known.rate_per_s(500, 1000, 0.0) == pytest.approx(100 / 490)
    assert known.after(600, 100, 0.0, 1000).dues == ((1500, 100),)


def test_a_queue_that_is_always_as_long_is_not_always_late() -> None:
    known, at_s = owed(10, deadline_s=1000), 0.0
    for _ in range(500):
        at_s += 5
        known = known.after(at_s, 10, 5.0, 1000)
    # one per second goes through: the ten that wait have just come
    assert known.rate_per_s(at_s, 1000, 0.0) <= 10 / 950
    assert len(known.dues) <= 3


def test_a_lead_time_is_no_time_to_serve_in_and_what_is_late_asks_for_no_infinity() -> None:
    assert owed(100, deadline_s=1000).rate_per_s(0, 1000, 500) == pytest.approx(100 / 490)
    assert owed(100, deadline_s=1000).rate_per_s(2000, 1000, 0) == pytest.approx(100 / 10)


def test_where_nothing_tells_the_debt_stays() -> None:
    assert owed(100).after(5.0, None, 0.0, HOUR_S) == owed(100)


@given(batches=st.lists(st.tuples(st.integers(0, 200), st.floats(1, 1000)), min_size=1, max_size=8))
def test_who_serves_the_rate_that_is_owed_has_all_but_the_last_drops_done_in_time(
    batches: list[tuple[int, float]],
) -> None:
    deadline_s, step_s = 500.0, 1.0
    coming: dict[int, float] = {}
    for at, count in batches:
        coming[at] = coming.get(at, 0.0) + count
    known, waiting, done, rate = Owed(), 0.0, 0.0, 0.0
    asked: list[tuple[float, float]] = []
    for tick in range(720):
        at_s, came = tick * step_s, coming.get(tick, 0.0)
        served = min(waiting, rate * step_s)
        done += served
        waiting += came - served
        if came:
            asked.append((at_s + deadline_s, came))
        known = known.after(at_s, waiting, came, deadline_s)
        due = sum(count for due_s, count in asked if due_s <= at_s)
        # a fluid is never quite done: of its last hundredth a part of e^2 is left
        assert done >= 0.998 * due - 1e-6
        rate = known.rate_per_s(at_s, deadline_s, 0.0)


# --- in the plan ---------------------------------------------------------------------------------


def load_of(decided: Plan) -> ModelLoad:
    return decided.loads[0]


def with_offline(fleet: Fleet, rate: float, held: float, total: float = 0.0) -> Plan:
    """Decide with so many requests of a negative priority held back, and ``total`` that came."""
    fleet.cycle(rate)
    state = fleet.memory
    gateway = GatewayState(
        namespace="chat",
        model_id="llama",
        at_s=fleet.at_s,
        queued_requests=held,
        arrivals_total=1000.0 + held,
        offline_queued_requests=held,
        offline_arrivals_total=held + total,
    )
    replicas = tuple(fleet._replica(f"r{i}", False) for i in range(fleet.ready))
    variant = VariantState(fleet.variant, fleet.spec, fleet.spec, replicas)
    decided, _ = plan(Snapshot(fleet.at_s, (variant,), (gateway,)), fleet.policy, state)
    return decided


def test_offline_requests_fill_the_room_that_is_kept_for_others_before_they_order_any() -> None:
    fleet = Fleet(policy=Policy(deadline_s=2 * HOUR_S))
    fleet.cycles(4.0, 300)
    without = load_of(fleet.cycle(4.0))
    assert without.demand is not None
    room = without.need - without.demand
    few = load_of(with_offline(fleet, 4.0, held=0.5 * room * 7000))
    assert few.need == pytest.approx(without.need, rel=0.05)
    many = load_of(with_offline(fleet, 4.0, held=4 * room * 7000))
    # 4 req/s arrive, and what is owed is due in 7,200 s, 1 % and a start and a look earlier
    owed_per_s = 4 * room * 7000 / (7200 - 72 - 135)
    assert many.need == pytest.approx(4 + room / 2 + owed_per_s, rel=0.02)
    assert "offline requests, the last due in 7,200 s" in " ".join(many.notes)


@cache
def _warm() -> Fleet:
    fleet = Fleet()
    fleet.cycles(4.0, 60)
    return fleet


@settings(max_examples=500, deadline=None)
@given(held=st.floats(0, 1e6), rate=st.floats(0, 30))
def test_offline_requests_never_take_from_what_online_ones_need(held: float, rate: float) -> None:
    fleet, other = deepcopy(_warm()), deepcopy(_warm())
    with_, without = load_of(with_offline(fleet, rate, held)), load_of(with_offline(other, rate, 0))
    assert with_.need >= without.need * (1 - 1e-9)
    assert with_.keep >= without.keep * (1 - 1e-9)


def test_a_queue_of_offline_requests_is_no_reason_for_none_to_go() -> None:
    fleet = Fleet(ready=6, spec=6)
    fleet.cycles(1.0, 600)
    decided = with_offline(fleet, 1.0, held=10)
    assert "so none goes" not in " ".join(s.why for s in only(decided).trail)
    assert load_of(decided).surplus > 0


def test_a_model_that_is_offline_as_a_whole_is_owed_its_backlog_and_no_latency() -> None:
    policy = Policy(request_class="offline", deadline_s=HOUR_S)
    offline, waited_for = Fleet(policy=policy, waiting=700), Fleet(waiting=700)
    load = load_of(offline.cycles(4.0, 60))
    # 700 wait and 16 run; what arrives is replaced as fast as it is served
    assert load.need == pytest.approx(716 / (HOUR_S - 36 - 135 - 60), rel=0.1)
    assert load.need < load_of(waited_for.cycles(4.0, 60)).need
    # no latency bounds what a replica does
    assert next(iter(load.capacity.values())) >= next(
        iter(load_of(waited_for.cycle(4.0)).capacity.values())
    )


def test_of_what_a_gateway_holds_only_the_part_counts_for_which_somebody_waits() -> None:
    told = GatewayState(
        namespace="chat",
        model_id="llama",
        at_s=0.0,
        queued_requests=40.0,
        queued_bytes=8000.0,
        arrivals_total=100.0,
    )
    assert online(told) is told
    part = online(replace(told, offline_queued_requests=30.0, offline_arrivals_total=60.0))
    assert part == replace(told, queued_requests=10.0, queued_bytes=2000.0, arrivals_total=40.0)


def test_the_other_analyses_do_not_hurry_for_offline_requests() -> None:
    fleet = Fleet(policy=Policy(analysis="tokens"))
    fleet.cycles(4.0, 60)
    assert only(with_offline(fleet, 4.0, held=20_000)).desired <= 2

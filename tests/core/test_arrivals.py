"""What arrived at one model, as it is remembered."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wva_adapter.core.arrivals import MINUTES, SLOTS, ArrivalHistory


def rates(history: ArrivalHistory) -> list[float]:
    return list(struct.unpack(f"<{len(history.rates) // 8}d", history.rates))


def minutes(history: ArrivalHistory) -> list[float]:
    return list(struct.unpack(f"<{len(history.minutes) // 2}e", history.minutes))


def test_a_regular_cycle_fills_one_slot() -> None:
    history = ArrivalHistory().add(1003.0, 10.0, 5.0).add(1008.0, 20.0, 5.0)

    assert rates(history) == [2.0, 4.0]
    assert history.at_s == 1008.0


def test_irregular_cycles_are_spread_over_the_slots_they_cover() -> None:
    history = ArrivalHistory().add(7.0, 14.0, 7.0).add(10.0, 12.0, 3.0)

    # Slot 0-5 at 2 req/s; slot 5-10 holds 2 s of 2 and 3 s of 4 req/s.
    assert rates(history) == pytest.approx([2.0, (2 * 2 + 3 * 4) / 5])


def test_a_missed_cycle_is_made_up_for_by_the_next_one() -> None:
    history = ArrivalHistory().add(5.0, 10.0, 5.0).add(15.0, 40.0, 10.0)

    assert rates(history) == [2.0, 4.0, 4.0]


def test_what_nobody_saw_is_unknown_and_never_zero() -> None:
    history = ArrivalHistory().add(5.0, 10.0, 5.0)

    assert history.add(10.0, None, 5.0) is history
    after = history.add(20.0, 10.0, 5.0)
    assert rates(after)[0] == 2.0
    assert [math.isnan(rate) for rate in rates(after)] == [False, True, True, False]
    assert after.level_per_s == pytest.approx(2.0)


def test_a_slot_of_which_less_than_half_was_seen_is_unknown() -> None:
    history = ArrivalHistory().add(5.0, 10.0, 5.0)

    assert math.isnan(rates(history.add(10.0, 4.0, 2.0))[1])
    assert rates(history.add(10.0, 6.0, 3.0))[1] == pytest.approx(2.0)


def test_the_same_cycle_counts_once() -> None:
    history = ArrivalHistory().add(5.0, 10.0, 5.0)

    assert history.add(5.0, 10.0, 5.0) is history


def test_a_cycle_that_overlaps_the_one_before_counts_from_its_end() -> None:
    history = ArrivalHistory().add(5.0, 10.0, 5.0).add(10.0, 40.0, 10.0)

    assert rates(history) == [2.0, 4.0]


def test_the_past_moves_with_a_clock_that_goes_back() -> None:
    history = ArrivalHistory().add(5000.0, 10.0, 5.0).add(1000.0, 20.0, 5.0)

    assert rates(history) == [2.0, 4.0]
    assert history.at_s == 1000.0


def test_after_a_clock_that_jumps_by_more_than_the_record_it_begins_anew() -> None:
    history = ArrivalHistory().add(5.0, 10.0, 5.0).add(1e9, 20.0, 5.0)

    assert history == ArrivalHistory().add(1e9, 20.0, 5.0)


@pytest.mark.parametrize("requests", [math.nan, math.inf, -1.0, 1e300])
def test_what_is_no_count_is_unknown(requests: float) -> None:
    history = ArrivalHistory().add(5.0, 10.0, 5.0)

    assert history.add(10.0, requests, 5.0) is history


@pytest.mark.parametrize(
    ("at_s", "span_s"), [(math.nan, 5.0), (10.0, 0.0), (10.0, math.inf), (5.0001, 5.0)]
)
def test_a_cycle_without_a_time_is_unknown(at_s: float, span_s: float) -> None:
    history = ArrivalHistory().add(5.0, 10.0, 5.0)

    assert history.add(at_s, 3.0, span_s) is history


def test_a_drop_carries_the_level_to_what_is_left_and_no_further() -> None:
    history = ArrivalHistory()
    levels = []
    for number in range(60):
        history = history.add(5.0 * number, 500.0 if number < 30 else 20.0, 5.0)
        levels.append(history.level_per_s)

    assert min(levels) == pytest.approx(4.0)
    assert levels[31] == pytest.approx(4.0)


def test_a_minute_is_the_mean_of_its_twelve_slots() -> None:
    history = ArrivalHistory()
    for number in range(25):
        history = history.add(5.0 * number, 10.0 * number, 5.0)

    # Rates 0, 2, ..., 22 and 24, ..., 46; one more slot waits.
    assert minutes(history) == [11.0, 35.0]
    assert history.minute_slots == 1


def test_a_minute_of_which_most_was_not_seen_is_unknown() -> None:
    history = ArrivalHistory()
    for number in range(1, 49):
        history = history.add(5.0 * number, 10.0 if number < 20 or number > 40 else None, 5.0)

    # Slots 20 to 40 are unknown: 5 of the second minute and all but none of the third.
    assert [math.isnan(minute) for minute in minutes(history)] == [False, False, True, False]


def test_it_holds_two_hours_of_slots_and_eight_days_of_minutes_in_60_kb() -> None:
    history = ArrivalHistory()
    for number in range(1, 1500):
        history = history.add(600.0 * number, 600.0 * 7, 600.0)

    assert len(rates(history)) == SLOTS == 1440
    assert len(minutes(history)) == MINUTES == 11_520
    assert set(minutes(history)) == {7.0}
    assert len(history.rates) + len(history.presents) + len(history.minutes) <= 60_000


@settings(max_examples=200, deadline=None)
@given(
    spans=st.lists(st.floats(0.01, 40.0), min_size=1, max_size=60),
    rate=st.floats(0.0, 1000.0),
)
def test_a_constant_rate_is_that_rate_in_whatever_cycles(spans: list[float], rate: float) -> None:
    history, at_s = ArrivalHistory(), 100.0
    for span_s in spans:
        at_s += span_s
        history = history.add(at_s, rate * span_s, span_s)

    assert rates(history) == pytest.approx([rate] * len(rates(history)))
    assert len(rates(history)) == pytest.approx(sum(spans) / 5, abs=1)
    assert history.level_per_s == pytest.approx(rate)


@settings(max_examples=200, deadline=None)
@given(
    cycles=st.lists(
        st.tuples(st.floats(-20.0, 60.0), st.none() | st.floats(0, 500), st.floats(0.0, 30.0)),
        max_size=80,
    )
)
def test_no_order_of_cycles_is_too_odd(
    cycles: list[tuple[float, float | None, float]],
) -> None:
    history, at_s = ArrivalHistory(), 1e6
    for step_s, requests, span_s in cycles:
        at_s += step_s
        history = history.add(at_s, requests, span_s)

        assert 0 <= history.level_per_s < math.inf
        assert len(history.rates) == len(history.presents)
        assert len(history.rates) // 8 - history.minute_slots == 12 * len(minutes(history))
        assert all(math.isnan(value) or value >= 0 for value in rates(history))

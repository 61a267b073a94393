"""One look after another, as the real controller goes about it; times in seconds."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wva_adapter.core.hpa import External, Metric, Proposal, Scale, Tolerances
from wva_adapter.core.hpa_sync import (
    DOWN,
    RECOMMENDED,
    UP,
    Behavior,
    Bounds,
    Direction,
    HpaState,
    Rate,
    Select,
    Stamp,
    sync,
)

WIDE = Bounds(1, 100)
STILL = Direction(0.0, (Rate("Percent", 100, 15.0),))
"""Down at once."""


def asks(*counts: int) -> tuple[Metric, ...]:
    """Metrics that propose these counts, one each, whatever the tolerance."""
    return tuple(
        External(f"m{i}", [1000 * count], target_type="AverageValue")
        for i, count in enumerate(counts)
    )


class Fails:
    """A metric that cannot be read."""

    from_zero = True

    def propose(self, now_s: float, scale: Scale, tolerances: Tolerances) -> Proposal:
        return Proposal(None, "no metrics returned")


def run(
    steps: Sequence[tuple[float, int]],
    behavior: Behavior | None,
    *,
    start: int = 1,
    bounds: Bounds = WIDE,
    tolerance: float = 0.0,
) -> list[int]:
    """Return the counts after each look at ``(time, count asked for)``."""
    state, counts = HpaState(), []
    replicas = start
    for now_s, asked in steps:
        scale = Scale(replicas, replicas, replicas)
        replicas, state, _ = sync(
            now_s, scale, asks(asked), bounds, behavior, state, tolerance=tolerance
        )
        counts.append(replicas)
    return counts


def test_the_count_at_the_first_look_is_its_first_recommendation() -> None:
    # An idle moment at the start: 5 replicas, 0 asked. The 5 of t = 0 holds for 300 s.
    looks = [(15.0 * i, 1) for i in range(22)]
    assert run(looks, Behavior(), start=5) == [5] * 20 + [1, 1]  # 20 x 15 = 300 s: no longer after
    assert run(looks, None, start=5) == [5] * 21 + [1]  # without a behaviour the edge still counts


def test_without_a_behaviour_each_look_doubles_or_goes_to_four() -> None:
    # max(2 x 1, 4) = 4, then 8, 16, 32: no account of how long ago the last change was
    assert run([(0, 40), (1, 40), (2, 40), (3, 40), (4, 40)], None) == [4, 8, 16, 32, 40]


def test_the_default_up_policies_add_four_or_double_per_period() -> None:
    # t=0: max(1 + 4, 2 x 1) = 5. t=14: the period began with 5 - 4 = 1: still 5.
    # t=15: the event of t=0 is 15 s old and out: max(5 + 4, 2 x 5) = 10; t=30: 20; t=45: 40.
    looks = [(0, 40), (14, 40), (15, 40), (30, 40), (45, 40)]
    assert run(looks, Behavior()) == [5, 5, 10, 20, 40]


def test_the_default_down_policy_lets_all_go_once_the_window_has_passed() -> None:
    looks = [(0, 10), (15, 2), (300, 2), (301, 2)]
    # At 300 s the 10 of t = 0 is no longer younger than the window.
    assert run(looks, Behavior(), start=10) == [10, 10, 2, 2]


def test_an_up_window_takes_the_smallest_of_what_was_proposed() -> None:
    slow = Behavior(up=Direction(60.0, UP.rates), down=STILL)
    # the 2 of t = 0 (and the initial 2) hold until they are 60 s old
    assert run([(0, 2), (15, 6), (45, 5), (60, 6), (75, 6)], slow, start=2) == [2, 2, 2, 5, 5]


@pytest.mark.parametrize(
    ("select", "reached"),
    [
        ("Max", 15),  # max(10 + 2, ceil(10 x 1.5))
        ("Min", 12),
        ("Disabled", 10),
    ],
)
def test_the_select_policy_decides_between_rates_upwards(select: Select, reached: int) -> None:
    up = Direction(0.0, (Rate("Pods", 2, 15.0), Rate("Percent", 50, 15.0)), select)
    assert run([(0, 50)], Behavior(up=up), start=10) == [reached]


@pytest.mark.parametrize(
    ("select", "reached"),
    [
        ("Max", 5),  # the larger change: min(10 - 2, 10 x 0.5)
        ("Min", 8),
        ("Disabled", 10),
    ],
)
def test_the_select_policy_decides_between_rates_downwards(select: Select, reached: int) -> None:
    down = Direction(0.0, (Rate("Pods", 2, 15.0), Rate("Percent", 50, 15.0)), select)
    assert run([(0, 1)], Behavior(down=down), start=10) == [reached]


def test_percentages_round_up_on_the_way_up_and_keep_fewer_on_the_way_down() -> None:
    tenth = (Rate("Percent", 10, 60.0),)
    # up: ceil(5 x 1.1) = 6; down: 5 x 0.9 = 4.5, cut to 4
    assert run([(0, 50)], Behavior(up=Direction(0.0, tenth)), start=5) == [6]
    assert run([(0, 1)], Behavior(down=Direction(0.0, tenth)), start=5) == [4]


def test_what_was_removed_lately_may_be_added_again_at_once() -> None:
    # 10 -> 4 at t = 0. At t = 5 the period began with 4 + 6 = 10: 10 + 1 = 11 may be reached.
    behavior = Behavior(Direction(0.0, (Rate("Pods", 1, 60.0),)), STILL)
    assert run([(0, 4), (5, 30)], behavior, start=10) == [4, 11]


def test_one_pod_per_minute_up_is_one_pod_per_minute() -> None:
    behavior = Behavior(Direction(0.0, (Rate("Pods", 1, 60.0),)), STILL)
    looks = [(15.0 * i, 30) for i in range(9)]
    # up at t = 0, 60 and 120 (the event of t = 0 is out when it is 60 s old)
    assert run(looks, behavior, start=2) == [3, 3, 3, 3, 4, 4, 4, 4, 5]


@pytest.mark.parametrize(
    ("replicas", "asked", "default", "zero"),
    [
        (11, 12, 11, 12),  # 12/11 = 1.09
        (9, 10, 10, 10),  # 10/9 = 1.11
        (10, 11, 10, 11),  # 1.1 <= 1.1: exactly the tolerance stays
        (10, 9, 10, 9),  # 0.9 >= 0.9
        (9, 8, 8, 8),  # 8/9 = 0.889
    ],
)
def test_a_tolerance_of_a_tenth_hides_single_steps_of_larger_fleets(
    replicas: int, asked: int, default: int, zero: int
) -> None:
    one_step = [(0.0, asked)]
    own = Behavior(UP, STILL)
    assert run(one_step, own, start=replicas, tolerance=0.1) == [default]
    assert run(one_step, RECOMMENDED, start=replicas, tolerance=0.1) == [zero]


def test_each_direction_has_a_tolerance_of_its_own() -> None:
    up_only = Behavior(Direction(0.0, UP.rates, tolerance=0.0), STILL)
    assert run([(0, 21)], up_only, start=20, tolerance=0.1) == [21]
    assert run([(0, 19)], up_only, start=20, tolerance=0.1) == [20]


def test_the_largest_metric_wins() -> None:
    count, _, why = sync(0, Scale(3, 3, 3), asks(2, 6, 4), WIDE, Behavior(), HpaState())
    assert count == 6
    assert why == "m1 6 of AverageValue 1 asks for 6"


def test_a_metric_that_fails_forbids_to_go_down_but_not_up() -> None:
    behavior = Behavior(UP, STILL)
    for metrics, reached in (
        ((*asks(6), Fails()), 6),
        ((*asks(2), Fails()), 4),
        ((Fails(), *asks(4)), 4),
        ((Fails(), Fails()), 4),
    ):
        count, state, why = sync(0, Scale(4, 4, 4), metrics, WIDE, behavior, HpaState())
        assert count == reached
        if "fail" in why:
            assert state.recommendations == ((0, 4),)  # only the first one: nothing was proposed
    assert why == "held at 4, 2 of 2 fail: no metrics returned"


@pytest.mark.parametrize(("replicas", "reached"), [(30, 20), (1, 2)])
def test_a_count_outside_the_bounds_moves_there_whatever_the_metrics_say(
    replicas: int, reached: int
) -> None:
    scale = Scale(replicas, replicas, replicas)
    slow = Behavior(
        Direction(600.0, (Rate("Pods", 1, 600.0),)), Direction(600.0, (Rate("Pods", 1, 600.0),))
    )
    assert sync(0, scale, (Fails(),), Bounds(2, 20), slow, HpaState()).replicas == reached
    assert sync(0, scale, (Fails(),), Bounds(2, 20), None, HpaState()).replicas == reached


def test_it_wakes_only_what_it_put_to_sleep_itself() -> None:
    bounds, behavior = Bounds(0, 10), Behavior(UP, STILL)
    asleep = sync(0, Scale(1, 1, 1), asks(0), bounds, behavior, HpaState())
    assert asleep.replicas == 0
    assert sync(15, Scale(0, 0, 0), asks(3), bounds, behavior, asleep.state).replicas == 3
    by_hand = sync(15, Scale(0, 0, 0), asks(3), bounds, behavior, HpaState())
    assert by_hand.replicas == 0
    assert "somebody else" in by_hand.why


def test_a_minimum_raised_over_a_sleeping_target_wakes_it() -> None:
    asleep = HpaState(scaled_to_zero=True)
    woken = sync(15, Scale(0, 0, 0), asks(0), Bounds(2, 10), Behavior(), asleep)
    assert woken.replicas == 2
    assert not woken.state.scaled_to_zero


def test_a_percentage_alone_never_leaves_zero() -> None:
    up = Behavior(Direction(0.0, (Rate("Percent", 900, 15.0),)), STILL)
    asleep = HpaState(scaled_to_zero=True)
    assert sync(0, Scale(0, 0, 0), asks(5), Bounds(0, 10), up, asleep).replicas == 0


def test_average_value_compares_with_the_pods_there_are_not_with_the_count_asked_for() -> None:
    # 5 asked for, 3 pods made so far; 3 wanted: inside the tolerance of status, so 3 is proposed.
    scale = Scale(5, 3, 3)
    assert (
        sync(0, scale, asks(3), WIDE, Behavior(UP, STILL), HpaState((Stamp(-99, 5),))).replicas == 3
    )


def test_a_value_target_without_any_pod_is_an_error_and_holds() -> None:
    metric = External("m", [4000], target_type="Value")
    gone, unready = Scale(3, 0, 0), Scale(3, 3, 0)
    held = sync(0, gone, (metric,), WIDE, Behavior(UP, STILL), HpaState((Stamp(-99, 3),)))
    assert (held.replicas, "no pods" in held.why) == (3, True)
    # Pods that are not ready count as none: 4 x 0 = 0, and the bound holds.
    assert sync(0, unready, (metric,), WIDE, Behavior(UP, STILL), HpaState()).replicas == 1


def test_directions_without_policies_are_refused() -> None:
    with pytest.raises(ValueError, match="want at least one, with periods above 0 s"):
        Direction(0.0, ())
    with pytest.raises(ValueError, match=r"period_s=0.*above 0 s"):
        Direction(0.0, (Rate("Pods", 1, 0),))


rates = st.lists(
    st.builds(
        Rate,
        st.sampled_from(["Pods", "Percent"]),
        st.integers(1, 200),
        st.integers(1, 120).map(float),
    ),
    min_size=1,
    max_size=3,
).map(tuple)
directions = st.builds(
    Direction,
    st.integers(0, 300).map(float),
    rates,
    st.sampled_from(["Max", "Min", "Disabled"]),
    st.sampled_from([None, 0.0, 0.05, 0.3]),
)
behaviors = st.none() | st.builds(Behavior, directions, directions)
histories = st.lists(st.tuples(st.integers(1, 90), st.integers(0, 60)), min_size=1, max_size=30)


@given(behaviors, histories, st.integers(1, 10), st.integers(0, 40), st.integers(1, 50))
def test_after_the_first_look_counts_stay_in_their_bounds(
    behavior: Behavior | None, history: list[tuple[int, int]], low: int, more: int, start: int
) -> None:
    bounds = Bounds(low, low + more)
    now, looks = 0.0, []
    for pause, asked in history:
        now += pause
        looks.append((now, asked))
    counts = run(looks, behavior, start=start, bounds=bounds)
    assert all(bounds.minimum <= count <= bounds.maximum for count in counts)


@given(
    behaviors, histories, st.integers(1, 30), st.integers(0, 60), st.integers(0, 60), st.integers(0)
)
def test_a_larger_value_never_gets_a_smaller_count(
    behavior: Behavior | None,
    history: list[tuple[int, int]],
    start: int,
    asked: int,
    more: int,
    milli: int,
) -> None:
    state, replicas, now = HpaState(), start, 0.0
    for pause, value in history:
        now += pause
        replicas, state, _ = sync(
            now, Scale(replicas, replicas, replicas), asks(value), WIDE, behavior, state
        )
    scale = Scale(replicas, replicas, replicas)

    def after(value_milli: int) -> int:
        metric = External("m", [value_milli])
        return sync(now + 15, scale, (metric,), WIDE, behavior, state).replicas

    assert after(1000 * asked + milli % 1000 + 1000 * more) >= after(1000 * asked + milli % 1000)


@given(behaviors, histories, st.integers(1, 30))
def test_up_never_passes_what_is_asked_nor_down_what_the_window_remembers(
    behavior: Behavior | None, history: list[tuple[int, int]], start: int
) -> None:
    state, replicas, now, asked_before = HpaState(), start, 0.0, [start]
    for pause, asked in history:
        now += pause
        before = replicas
        replicas, state, _ = sync(
            now,
            Scale(replicas, replicas, replicas),
            asks(asked),
            WIDE,
            behavior,
            state,
            tolerance=0.0,
        )
        asked_before.append(asked)
        if replicas > before:
            assert replicas <= max(asked_before)
        if replicas < before:
            assert replicas >= max(1, min(asked_before))


def test_the_down_default_is_the_controllers_flag() -> None:
    assert DOWN.window_s is None
    scale, state = Scale(5, 5, 5), HpaState()
    state = sync(0, scale, asks(5), WIDE, Behavior(), state, down_window_s=60).state
    assert sync(59, scale, asks(1), WIDE, Behavior(), state, down_window_s=60).replicas == 5
    assert sync(61, scale, asks(1), WIDE, Behavior(), state, down_window_s=60).replicas == 1

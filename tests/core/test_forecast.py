"""What the past says about the demand of the next lead time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wva_adapter.core.arrivals import ArrivalHistory
from wva_adapter.core.forecast import Forecast, forecast

CYCLE_S = 5.0
LEAD_S = 135.0  # a start of 120 s and one HPA sync
REPLICA_PER_S = 6.5
UTILIZATION = 0.85


def remembered(
    requests: Sequence[float | None], *, start_s: float = 0.0, cycle_s: float = CYCLE_S
) -> ArrivalHistory:
    """A history with one cycle per entry."""
    history = ArrivalHistory()
    for number, count in enumerate(requests, start=1):
        history = history.add(start_s + number * cycle_s, count, cycle_s)
    return history


def expected(
    requests: Sequence[float | None], *, lead_s: float = LEAD_S, attainment: float = 0.98
) -> Forecast:
    return forecast(
        remembered(requests), len(requests) * CYCLE_S, lead_s=lead_s, attainment=attainment
    )


def base(seen: Forecast) -> float:
    return seen.base(REPLICA_PER_S * UTILIZATION)


def poisson(rates_per_s: Sequence[float], *, seed: int = 7) -> list[float | None]:
    generator = np.random.default_rng(seed)
    return [float(generator.poisson(rate * CYCLE_S)) for rate in rates_per_s]


def cycles(seconds: float) -> int:
    return int(seconds / CYCLE_S)


def test_without_any_history_there_is_headroom_of_one_replica() -> None:
    seen = forecast(ArrivalHistory(), 0.0, lead_s=LEAD_S, attainment=0.98)

    assert (seen.rate_per_s, seen.covered_per_s, seen.confidence) == (0.0, None, 0.0)
    assert base(seen) == REPLICA_PER_S * UTILIZATION
    assert seen.why == "no arrivals seen yet, so headroom of one replica"


def test_constant_load_needs_no_headroom_once_it_is_known() -> None:
    seen = expected(poisson([20.0] * cycles(7200)))

    assert seen.confidence == 1.0
    assert seen.ramp_per_s is None
    # Chance alone makes 30 s means of 20 req/s vary by 4 %; covering 98 % of them stays near
    # one standard deviation of the level, sqrt(20 / 43) = 0.7.
    assert base(seen) == pytest.approx(seen.rate_per_s + seen.sigma_per_s, rel=0.02)
    assert base(seen) == pytest.approx(20.7, abs=2.0)


def test_the_first_jump_counts_at_once() -> None:
    calm = [4.0 * CYCLE_S] * cycles(1800)

    before, after = expected(calm), expected([*calm, 40.0 * CYCLE_S])

    assert before.rate_per_s == pytest.approx(4.0)
    # 40 less twice sqrt(40 / 5): what chance could add to one cycle.
    assert after.rate_per_s == pytest.approx(40 - 2 * math.sqrt(8))
    # The level has only begun to follow: 4 + (1 - 0.5 ** (5 / 15)) * 36.
    assert after.level_per_s == pytest.approx(4 + (1 - 0.5 ** (1 / 3)) * 36)


@pytest.mark.parametrize(("low", "high"), [(4.0, 40.0), (40.0, 4.0), (2.0, 8.0), (8.0, 2.0)])
def test_a_step_is_there_after_two_cycles_and_never_overshot(low: float, high: float) -> None:
    calm = [low * CYCLE_S] * cycles(600)

    levels = [
        expected([*calm, *[high * CYCLE_S] * count]).level_per_s for count in range(1, cycles(180))
    ]

    assert levels[1] == pytest.approx(high, rel=0.1)
    assert all(min(low, high) <= level <= max(low, high) for level in levels)


def test_a_level_is_as_sure_as_what_it_comes_from() -> None:
    calm = [20.0 * CYCLE_S] * cycles(600)

    settled, stepped = expected(calm), expected([*calm, *[60.0 * CYCLE_S] * 2])

    # A mean that loses half its weight in 15 s varies as a plain one over 43 s does; after a step
    # there are 10 s.
    assert settled.sigma_per_s == pytest.approx(math.sqrt(20 / 43.5), rel=0.01)
    assert stepped.sigma_per_s == pytest.approx(math.sqrt(60 / 10))


def test_one_odd_cycle_is_no_step() -> None:
    calm = [20.0 * CYCLE_S] * cycles(600)

    seen = expected([*calm, 60.0 * CYCLE_S, 20.0 * CYCLE_S])

    # 20 + 40 * 0.206 after the odd one, and a fifth of that is gone after the next.
    assert seen.level_per_s == pytest.approx(26.55, abs=0.01)


def test_a_square_wave_is_covered_before_its_third_jump() -> None:
    period = [2.0] * cycles(600) + [8.0] * cycles(600)
    calm = [2.0] * cycles(600 - 90)

    first = expected(poisson(calm))
    learned = expected(poisson(period * 3 + calm))

    # 90 s before the jump nothing but headroom stands ready the first time ...
    assert first.covered_per_s is not None
    assert first.covered_per_s < 3
    # ... and what followed moments like this one is expected, up to 4 times the present rate.
    assert learned.covered_per_s is not None
    assert learned.covered_per_s > 6.5
    assert learned.base(REPLICA_PER_S * UTILIZATION) > 6.5
    assert learned.confidence == 1.0


def test_a_steady_rise_is_followed_to_the_end_of_the_lead_time() -> None:
    rise = [10.0 + 0.02 * k * CYCLE_S for k in range(cycles(180))]

    seen = expected([rate * CYCLE_S for rate in rise])

    # 10 + 0.02 * (177.5 + 135) req/s on the line; the level is behind it.
    assert seen.ramp_per_s == pytest.approx(10 + 0.02 * (177.5 + LEAD_S) + seen.sigma_per_s)
    assert base(seen) >= (seen.ramp_per_s or 0.0)
    assert "a steady rise leads to 16.2 req/s by then" in seen.why


def test_a_steep_rise_is_not_followed_beyond_half_above_the_level() -> None:
    seen = expected([(1.0 + 0.3 * k * CYCLE_S) * CYCLE_S for k in range(cycles(180))])

    assert seen.ramp_per_s == pytest.approx(1.5 * seen.level_per_s + seen.sigma_per_s)


def test_a_step_is_no_rise() -> None:
    seen = expected([20.0] * cycles(90) + [60.0] * cycles(90))

    assert seen.ramp_per_s is None


def test_a_fall_is_no_rise() -> None:
    seen = expected([(40.0 - 0.1 * k * CYCLE_S) * CYCLE_S for k in range(cycles(180))])

    assert seen.ramp_per_s is None


def test_two_minutes_are_the_least_for_a_rise() -> None:
    rise = [(1.0 + 0.01 * k) * CYCLE_S for k in range(cycles(120))]

    assert expected(rise).ramp_per_s is not None
    assert expected(rise[3:]).ramp_per_s is None


def test_the_sentence_tells_the_moments_and_the_demand() -> None:
    # The first 30 s of every 150 s are at twice the rate of the rest, and one lead is 135 s.
    wave = ([8.0 * CYCLE_S] * 6 + [4.0 * CYCLE_S] * 24) * 24

    seen = expected(wave)

    assert seen.analogs > 100
    assert seen.why == (
        f"4.02 req/s arrive; in {seen.analogs} similar moments of the last hour "
        "demand reached 6.63 req/s within 135 s"
    )


def test_the_forecast_of_the_last_known_moment_stands_while_arrivals_are_unknown() -> None:
    known = poisson([20.0] * 300 + [5.0] * 100)
    history = remembered(known)
    blind = history
    for number in range(400, 500):
        blind = blind.add((number + 1) * CYCLE_S, None, CYCLE_S)

    before = forecast(history, 2000.0, lead_s=LEAD_S, attainment=0.98)
    later = forecast(blind, 2500.0, lead_s=LEAD_S, attainment=0.98)

    assert base(later) == base(before)
    assert later.confidence == before.confidence
    assert "arrived when last seen, 500 s ago" in later.why


@pytest.mark.parametrize(
    ("lead_s", "attainment", "message"),
    [
        (0.0, 0.98, "lead_s 0.0, want a finite number above 0"),
        (math.nan, 0.98, "lead_s nan, want a finite number above 0"),
        (135.0, 0.0, "attainment 0.0, want above 0 and below 1"),
        (135.0, 1.0, "attainment 1.0, want above 0 and below 1"),
    ],
)
def test_a_lead_time_or_a_share_out_of_range_is_refused(
    lead_s: float, attainment: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        forecast(ArrivalHistory(), 0.0, lead_s=lead_s, attainment=attainment)


# ---- The formula, transcribed without arrays, slots or steps of Newton's. ----


class Transcript:
    """Section by section what the formula says, on cycles of 5 s; ``None`` is unknown."""

    def __init__(self, requests: Sequence[float | None], lead_s: float, attainment: float) -> None:
        self.x: list[float | None] = []
        self.present: list[float] = []
        level = known_s = rate = before = 0.0
        blind = 0
        for count in requests:
            if count is None:
                blind += 1
                continue
            rate = count / CYCLE_S
            if not self.present:
                level, known_s = rate, CYCLE_S
            else:
                elapsed = (blind + 1) * CYCLE_S
                chance = math.sqrt(max(level, 1 / CYCLE_S) / CYCLE_S)
                off, off_before = (rate - level) / chance, (before - level) / chance
                if (off > 3 and off_before > 3) or (off < -3 and off_before < -3):
                    level, known_s = (before + rate) / 2, 2 * CYCLE_S
                else:
                    known_s += elapsed
                    alpha = max(1 - 0.5 ** (elapsed / 15), elapsed / known_s)
                    level = alpha * rate + (1 - alpha) * level
                self.x += [None] * blind
                self.present += [self.present[-1]] * blind
            before = rate
            blind = 0
            self.x.append(rate)
            self.present.append(max(level, rate - 2 * math.sqrt(rate / CYCLE_S)))
        self.x, self.present = self.x[-1440:], self.present[-1440:]
        self.level = level
        alpha = 1 - 0.5 ** (CYCLE_S / 15)
        averaged = min(CYCLE_S * (2 - alpha) / alpha, max(known_s, CYCLE_S))
        self.sigma = math.sqrt(level / averaged)
        self.covered: float | None = None
        self.allowed = 0.0
        self.confidence = 0.0
        self.now = self.present[-1] if self.present else 0.0
        self.ramp: float | None = None
        if self.present:
            self._look_up(lead_s, attainment)
            self._rise(lead_s)

    def _look_up(self, lead_s: float, attainment: float) -> None:
        floored = [max(0.05, value) for value in self.present]
        newest = len(floored) - 1
        growth = [math.log(v / floored[max(0, i - 12)]) for i, v in enumerate(floored)]
        largest = 1.1 * max(value for value in self.x if value is not None)
        futures: list[tuple[float, float]] = []
        evidence = 0.0
        for i, value in enumerate(floored):
            if (newest - i) * CYCLE_S < lead_s or self.x[i] is None:
                continue
            weight = math.exp(
                -((math.log(value / floored[newest]) / 0.25) ** 2)
                - ((growth[i] - growth[newest]) / 0.35) ** 2
            ) * 0.5 ** ((newest - i) * CYCLE_S / 3600)
            found = False
            start = i + 1
            while (start + 5 - i) * CYCLE_S <= max(lead_s, 60):
                window = self.x[start : start + 6]
                seen = [rate for rate in window if rate is not None]
                if len(window) == 6 and len(seen) >= 3:
                    mean = sum(seen) / len(seen)
                    futures.append((min(largest, mean * floored[newest] / value), weight))
                    found = True
                start += 3
            evidence += weight if found else 0.0
        if evidence * CYCLE_S / lead_s < 1e-6:
            return
        self.confidence = min(1.0, evidence * CYCLE_S / lead_s / 2)
        allowed = self.allowed = (1 - attainment) * sum(f * w for f, w in futures)
        # From the largest demand down: below each one, one more future is uncovered.
        futures.sort(reverse=True)
        weights = demands = 0.0
        covered = futures[0][0]
        for demand, weight in futures:
            if demands - weights * demand > allowed:
                break
            weights, demands = weights + weight, demands + weight * demand
            covered = (demands - allowed) / weights if weights else demand
        self.covered = min(max(0.0, covered), 4 * floored[newest])

    def _rise(self, lead_s: float) -> None:
        means: list[tuple[float, float]] = []
        for group in range(12):
            window = self.x[max(0, len(self.x) - 3 * group - 3) : len(self.x) - 3 * group]
            seen = [rate for rate in window if rate is not None]
            if len(window) == 3 and seen:
                means.append((-7.5 - 15 * group, sum(seen) / len(seen)))
        if len(means) < 8:
            return
        means.reverse()
        t, v = np.array(means).T
        slope, at_zero = np.polyfit(t, v, 1)
        errors = float(((v - at_zero - slope * t) ** 2).sum())
        error_of_slope = math.sqrt(errors / (len(t) - 2) / float(((t - t.mean()) ** 2).sum()))
        steps = [
            float(((v[:k] - v[:k].mean()) ** 2).sum() + ((v[k:] - v[k:].mean()) ** 2).sum())
            for k in range(1, len(v))
        ]
        if slope > 3 * error_of_slope + 1e-12 and errors < min(steps):
            self.ramp = min(at_zero + slope * lead_s, 1.5 * self.level) + self.sigma

    def base(self) -> float:
        headroom = (1 - self.confidence) * REPLICA_PER_S * UTILIZATION
        return max(
            self.now + self.sigma + headroom,
            self.confidence * (self.covered or 0.0),
            self.ramp or 0.0,
        )


@st.composite
def arrivals(draw: st.DrawFn) -> list[float | None]:
    """Phases of constant, rising or empty load with chance and gaps: some hundred cycles."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    requests: list[float | None] = []
    for _ in range(draw(st.integers(1, 5))):
        length = draw(st.integers(1, 90))
        low, high = draw(st.floats(0, 60)), draw(st.floats(0, 60))
        for rate in np.linspace(low, high, length):
            requests.append(float(generator.poisson(rate * CYCLE_S)))
        for _ in range(draw(st.integers(0, 2))):
            begin = draw(st.integers(0, len(requests) - 1))
            end = begin + draw(st.integers(1, 20))
            requests[begin:end] = [None] * len(requests[begin:end])
    return requests


leads = st.sampled_from([7.0, 22.0, 61.0, 135.0, 300.0])


@settings(max_examples=400, deadline=None)
@given(requests=arrivals(), lead_s=leads, attainment=st.sampled_from([0.9, 0.98, 0.995]))
def test_it_is_what_the_formula_says(
    requests: list[float | None], lead_s: float, attainment: float
) -> None:
    seen = expected(requests, lead_s=lead_s, attainment=attainment)
    formula = Transcript(requests, lead_s, attainment)

    assert seen.rate_per_s == pytest.approx(formula.now, rel=1e-9, abs=1e-9)
    assert seen.level_per_s == pytest.approx(formula.level, rel=1e-9, abs=1e-9)
    assert seen.confidence == pytest.approx(formula.confidence, rel=1e-9, abs=1e-12)
    if formula.covered is None or seen.covered_per_s is None:
        assert seen.covered_per_s == formula.covered
    else:
        assume(not 0 < formula.allowed < 1e-300)  # what moments count for has hardly a digit left
        # Moments that hardly count decide where next to nothing comes: there sums round.
        assert seen.covered_per_s == pytest.approx(formula.covered, rel=1e-9, abs=1e-6)
    assert base(seen) == pytest.approx(formula.base(), rel=1e-9, abs=1e-6)


def test_moments_that_hardly_count_are_not_outweighed_by_rounded_nothings() -> None:
    requests = [22.0, 1.0] + [0.0] * 40
    seen, formula = expected(requests, lead_s=135, attainment=0.9), Transcript(requests, 135, 0.9)
    assert seen.covered_per_s == pytest.approx(formula.covered, rel=1e-9)


# ---- Laws ----


@settings(max_examples=100, deadline=None)
@given(requests=arrivals(), hours=st.integers(-50_000, 500_000))
def test_another_time_changes_nothing(requests: list[float | None], hours: int) -> None:
    moved_s = 3600.0 * hours
    later = remembered(requests, start_s=moved_s)
    end_s = moved_s + len(requests) * CYCLE_S

    assert forecast(later, end_s, lead_s=LEAD_S, attainment=0.98) == expected(requests)


@settings(max_examples=100, deadline=None)
@given(requests=arrivals())
def test_equal_arguments_give_equal_results(requests: list[float | None]) -> None:
    assert expected(requests) == expected(requests)


@settings(max_examples=100, deadline=None)
@given(
    changes=st.lists(st.floats(-0.01, 0.01), min_size=30, max_size=200),
    factor=st.floats(1.0, 10.0),
    lead_s=leads,
)
def test_demand_has_no_scale(changes: list[float], factor: float, lead_s: float) -> None:
    # Chance has one: it explains less of a jump at a higher rate. These changes it explains at
    # any: 1 % per cycle of at most 10 * 10 * 1.01 ** 200 = 730 req/s, where 2 sigma are 24 req/s.
    rates = np.cumprod([10.0, *(1 + change for change in changes)])

    one = expected([float(rate) * CYCLE_S for rate in rates], lead_s=lead_s)
    other = expected([factor * float(rate) * CYCLE_S for rate in rates], lead_s=lead_s)

    assert other.rate_per_s == pytest.approx(factor * one.rate_per_s)
    assert other.confidence == pytest.approx(one.confidence)
    assert (one.covered_per_s is None) == (other.covered_per_s is None)
    assert other.covered_per_s == pytest.approx(factor * (one.covered_per_s or 0.0)) or (
        other.covered_per_s is None
    )


@settings(max_examples=100, deadline=None)
@given(requests=arrivals(), blind=st.integers(1, 100))
def test_a_gap_never_lowers_it(requests: list[float | None], blind: int) -> None:
    seen = expected(requests)
    unseen = expected([*requests, *[None] * blind])

    assert base(unseen) == base(seen)

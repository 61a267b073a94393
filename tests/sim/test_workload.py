from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wva_adapter.sim.workload import arrivals, lengths


def seeded(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_arrivals_follow_the_schedule() -> None:
    # 0 to 100/s in 10 s, 100/s for 10 s, nothing for 10 s: 500 + 1000 on average.
    at_s = arrivals([(0, 0), (10, 100), (20, 100), (20, 0), (30, 0)], seeded())
    ramp, plateau = at_s[at_s < 10], at_s[at_s >= 10]
    assert len(ramp) == pytest.approx(500, abs=4 * math.sqrt(500))
    assert len(plateau) == pytest.approx(1000, abs=4 * math.sqrt(1000))
    assert at_s.max() < 20
    # Along a ramp from 0 the mean time is two thirds of it, ± 10 s/√18 for one.
    assert ramp.mean() == pytest.approx(20 / 3, abs=4 * 10 / math.sqrt(18 * 500))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(0, 40)), min_size=2, max_size=6),
    st.integers(0, 2**32),
)
def test_arrivals_rise_and_stay_within_the_schedule(
    points: list[tuple[float, float]], seed: int
) -> None:
    schedule = sorted(points)
    at_s = arrivals(schedule, seeded(seed))
    assert (np.diff(at_s) >= 0).all()
    assert not len(at_s) or schedule[0][0] <= at_s[0] <= at_s[-1] <= schedule[-1][0]


def test_a_schedule_out_of_order_is_refused() -> None:
    with pytest.raises(ValueError, match="want times in order and rates of at least 0"):
        arrivals([(10, 1), (0, 1)], seeded())


def test_lengths_have_the_mean_and_the_variation_asked_for() -> None:
    drawn = lengths(1024, 0.8, 100_000, 20_000, seeded())
    assert drawn.mean() == pytest.approx(1024, rel=0.03)
    assert drawn.std() / drawn.mean() == pytest.approx(0.8, rel=0.1)


def test_lengths_stay_within_their_bounds() -> None:
    drawn = lengths(2, 3.0, 5, 1000, seeded())
    assert (drawn.min(), drawn.max()) == (1, 5)

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wva_adapter.emulator.histogram import Histogram, tokens_of_request


def test_a_value_counts_in_every_bucket_that_reaches_it() -> None:
    histogram = Histogram([1.0, 2.0])
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    assert histogram.buckets() == ((1.0, 2), (2.0, 3), (math.inf, 4))
    assert histogram.sum == 12.0


@given(
    first=st.integers(0, 40),
    growth=st.integers(0, 16),
    count=st.integers(1, 50),
    times=st.integers(1, 5),
)
def test_rising_values_at_once_count_as_one_by_one(
    first: int, growth: int, count: int, times: int
) -> None:
    # Eighths are exact, so that both ways put a value on a bound into the same bucket.
    together, singly = Histogram([1.0, 2.5, 5.0, 40.0]), Histogram([1.0, 2.5, 5.0, 40.0])
    together.observe_rising(first / 8, growth / 8, count, times)
    for step in range(count):
        singly.observe((first + growth * step) / 8, times)
    assert together.buckets() == singly.buckets()
    assert together.sum == pytest.approx(singly.sum)


@pytest.mark.parametrize(
    ("longest", "bounds"), [(1, (1,)), (50, (1, 2, 5, 10, 20, 50)), (49, (1, 2, 5, 10, 20))]
)
def test_token_bounds_go_up_to_the_longest_request(longest: int, bounds: tuple[int, ...]) -> None:
    assert tokens_of_request(longest) == bounds

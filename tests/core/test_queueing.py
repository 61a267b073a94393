from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wva_adapter.core.queueing import mean_wait_s, occupancy

RATES = st.floats(0.01, 100)


@given(RATES, RATES, st.integers(1, 60))
def test_a_batch_of_one_is_the_textbook_queue_with_one_server(
    arrivals: float, completions: float, capacity: int
) -> None:
    # M/M/1/K: p_n is proportional to ρⁿ.
    load = arrivals / completions
    weights = np.array([math.exp(n * math.log(load)) for n in range(capacity + 1)])
    found = occupancy(arrivals, np.array([completions]), capacity)
    assert found == pytest.approx(weights / weights.sum(), rel=1e-9, abs=1e-12)


@given(RATES, RATES, st.integers(1, 12), st.integers(0, 30))
def test_constant_rates_are_the_textbook_queue_with_many_servers(
    arrivals: float, each: float, servers: int, room: int
) -> None:
    # M/M/c/K: aⁿ/n! up to c, then geometric with a/c.
    offered, capacity = arrivals / each, servers + room
    weights = np.array(
        [
            offered**n / math.factorial(n)
            if n <= servers
            else offered**servers / math.factorial(servers) * (offered / servers) ** (n - servers)
            for n in range(capacity + 1)
        ]
    )
    found = occupancy(arrivals, np.array([each * n for n in range(1, servers + 1)]), capacity)
    assert found == pytest.approx(weights / weights.sum(), rel=1e-9, abs=1e-12)


@given(RATES, st.lists(RATES, min_size=1, max_size=30), st.integers(0, 50))
def test_as_many_get_in_as_are_completed(arrivals: float, rates: list[float], room: int) -> None:
    capacity = len(rates) + room
    share = occupancy(arrivals, np.array(rates), capacity)
    assert share.sum() == pytest.approx(1)
    completed = sum(share[n] * rates[min(n, len(rates)) - 1] for n in range(1, capacity + 1))
    assert completed == pytest.approx(arrivals * (1 - share[-1]), rel=1e-6, abs=1e-9)


def test_a_half_busy_server_keeps_its_callers_waiting_for_one_service() -> None:
    # M/M/1 at ρ = 1/2 with room enough: the wait is ρ/(μ − λ) = 0.5/(2 − 1) s.
    assert mean_wait_s(1.0, np.array([2.0]), 200) == pytest.approx(0.5)


def test_hundreds_of_requests_do_not_overflow() -> None:
    share = occupancy(1e6, np.full(500, 1e-6), 2000)
    assert share[-1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("arrivals", "rates", "capacity", "message"),
    [
        (0.0, [1.0], 1, "arrival rate 0.0, want a positive number"),
        (math.nan, [1.0], 1, "arrival rate nan"),
        (1.0, [1.0, 0.0], 2, "completion rates: want positive numbers only"),
        (1.0, [1.0, 1.0], 1, "room for 1 with a batch of 2"),
    ],
)
def test_what_no_queue_has_is_refused(
    arrivals: float, rates: list[float], capacity: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        occupancy(arrivals, np.array(rates), capacity)

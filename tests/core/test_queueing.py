"""The queue in front of a batch, against textbooks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wva_adapter.core.queueing import mean_wait_s, occupancy

rates = st.floats(0.01, 100)


@given(rates, rates, st.integers(1, 60))
def test_a_batch_of_one_is_the_textbook_queue(arrive: float, serve: float, room: int) -> None:
    shares = occupancy(arrive, np.array([serve]), room)
    ratio = arrive / serve
    weights = np.array([ratio**n if ratio <= 1 else ratio ** (n - room) for n in range(room + 1)])
    assert shares == pytest.approx(weights / weights.sum(), rel=1e-6, abs=1e-12)


@given(st.floats(0.1, 20), st.floats(0.1, 5), st.integers(1, 12), st.integers(0, 40))
def test_servers_at_constant_rates_are_the_textbook_queue_too(
    arrive: float, serve: float, servers: int, queue: int
) -> None:
    room = servers + queue
    shares = occupancy(arrive, serve * np.arange(1.0, servers + 1), room)
    offered = arrive / serve
    logs = [
        n * math.log(offered)
        - math.lgamma(min(n, servers) + 1)
        - max(0, n - servers) * math.log(servers)
        for n in range(room + 1)
    ]
    weights = np.exp(np.array(logs) - max(logs))
    assert shares == pytest.approx(weights / weights.sum(), rel=1e-6, abs=1e-12)


def test_the_mean_wait_is_erlangs() -> None:
    # M/M/2 with a long queue: arrivals 1.5/s, service 1/s each: Wq = C(2, 1.5) / (2 - 1.5)
    probability = (1.5**2 / 2 / (1 - 0.75)) / (1 + 1.5 + 1.5**2 / 2 / (1 - 0.75))
    waited_s = mean_wait_s(1.5, np.array([1.0, 2.0]), 400)
    assert waited_s == pytest.approx(probability / 0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("arrive", "serve", "room", "message"),
    [
        (0.0, [1.0], 4, "arrival rate 0.0, want a positive number"),
        (1.0, [1.0, 2.0], 1, "room for 1 with a batch of 2"),
        (1.0, [1.0, 0.0], 4, "completion rates: want positive numbers only"),
    ],
)
def test_what_is_no_queue_is_refused(
    arrive: float, serve: list[float], room: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        occupancy(arrive, np.array(serve), room)

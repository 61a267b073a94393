"""How often a quantity fell where: a histogram that takes many equal or rising values at once."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

LATENCY_OF_FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
LATENCY_PER_TOKEN_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
LATENCY_OF_REQUEST_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0),
    *(240.0, 480.0, 960.0, 1920.0, 7680.0),
)
TOKENS_OF_STEP = tuple(float(tokens) for tokens in (1, *(2**n for n in range(3, 15))))
COMPLETIONS_OF_REQUEST = (1.0, 2.0, 5.0, 10.0, 20.0)
PREEMPTIONS_OF_REQUEST = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)


def tokens_of_request(max_model_len: int) -> tuple[float, ...]:
    """Return the bounds 1, 2, 5, 10, 20, 50 … up to the longest request."""
    digits = len(str(max_model_len))
    bounds = (step * 10**power for power in range(digits) for step in (1, 2, 5))
    return tuple(float(bound) for bound in bounds if bound <= max_model_len)


class Histogram:
    """Counts of values by upper bound.

    Args:
        bounds: Upper bounds, rising, each one part of its bucket; a last one without bound is added.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, as often as it occurred."""
        self._counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times

    def observe_rising(self, first: float, growth: float, count: int, times: int) -> None:
        """Count ``first``, ``first + growth`` and so on, ``count`` values, each ``times`` times.

        Args:
            growth: At least 0.
            count: At least 1.
        """
        self.sum += times * (count * first + growth * (count * (count - 1) / 2))
        low = bisect_left(self._bounds, first)
        high = bisect_left(self._bounds, first + growth * (count - 1))
        below = 0
        for bucket in range(low, high):
            within = min(count, math.floor((self._bounds[bucket] - first) / growth) + 1)
            self._counts[bucket] += (within - below) * times
            below = within
        self._counts[high] += (count - below) * times

    def buckets(self) -> tuple[tuple[float, int], ...]:
        """Return each upper bound with the values up to it; the last bound is infinite."""
        return tuple(zip((*self._bounds, math.inf), accumulate(self._counts), strict=True))

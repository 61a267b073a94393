"""When requests arrive and how long they are, drawn from a generator that is handed in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


def arrivals(
    schedule: Sequence[tuple[float, float]], generator: np.random.Generator
) -> NDArray[np.float64]:
    """Return the times of Poisson arrivals whose rate follows the schedule, rising.

    Raises:
        ValueError: The schedule's times do not rise, or a rate is negative.
    """
    times: list[NDArray[np.float64]] = []
    for (begin_s, before), (end_s, after) in pairwise(schedule):
        span_s = end_s - begin_s
        if span_s < 0 or before < 0 or after < 0:
            raise ValueError(
                f"schedule from ({begin_s:g} s, {before:g}/s) to ({end_s:g} s, {after:g}/s), "
                "want times in order and rates of at least 0"
            )
        mean = span_s * (before + after) / 2
        # Given their number, arrivals are independent with a density like the rate: a straight
        # line, whose distribution function is a parabola. Written so that it holds without slope.
        share = generator.random(generator.poisson(mean)) * (before + after)
        root = np.sqrt(before**2 + (after - before) * share)
        times.append(begin_s + span_s * share / np.maximum(before + root, 1e-300))
    return np.sort(np.concatenate(times)) if times else np.empty(0)


def lengths(
    mean: float, variation: float, most: int, count: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Return ``count`` lognormal lengths in tokens, from 1 to ``most``."""
    spread = math.log(1 + variation**2)
    drawn = generator.lognormal(math.log(mean) - spread / 2, math.sqrt(spread), count)
    return np.clip(np.rint(drawn), 1, most).astype(np.int64)

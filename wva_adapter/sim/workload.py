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


def modulated(
    states: Sequence[tuple[float, float]], span_s: float, generator: np.random.Generator
) -> list[tuple[float, float]]:
    """Return a schedule that jumps between rates, each held for a while that nobody knows.

    Args:
        states: Rates per second, and mean seconds for which each is held; it begins with the
            first, and each of the others may come next.
        span_s: How long it is.
        generator: Of holds and of what comes next.
    """
    schedule: list[tuple[float, float]] = []
    at_s, state = 0.0, 0
    while at_s < span_s:
        rate, mean_s = states[state]
        end_s = min(span_s, at_s + float(generator.exponential(mean_s)))
        schedule += [(at_s, rate), (end_s, rate)]
        others = [index for index in range(len(states)) if index != state]
        at_s, state = end_s, others[int(generator.integers(len(others)))]
    return schedule


def wave(
    mean: float, swing: float, period_s: float, span_s: float, *, step_s: float = 10.0
) -> list[tuple[float, float]]:
    """Return the schedule ``mean − swing · cos(2πt/period)``, straight between steps."""
    count = math.ceil(span_s / step_s)
    times = [min(span_s, index * step_s) for index in range(count + 1)]
    return [(t, mean - swing * math.cos(2 * math.pi * t / period_s)) for t in times]


def normal_lengths(
    mean: float,
    deviation: float,
    least: int,
    most: int,
    count: int,
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """Return ``count`` normally distributed lengths in tokens, moved into the bounds."""
    drawn = generator.normal(mean, deviation, count)
    return np.clip(np.rint(drawn), least, most).astype(np.int64)


def lengths(
    mean: float, variation: float, most: int, count: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Return ``count`` lognormal lengths in tokens, from 1 to ``most``."""
    spread = math.log(1 + variation**2)
    drawn = generator.lognormal(math.log(mean) - spread / 2, math.sqrt(spread), count)
    return np.clip(np.rint(drawn), 1, most).astype(np.int64)

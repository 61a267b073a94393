"""How scenarios come to their requests: arrivals by schedule, by chance or from a trace, and lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from wva_adapter.sim.clients import Traffic
from wva_adapter.sim.workload import arrivals, lengths, modulated, normal_lengths

Draw = Callable[[np.random.Generator, np.random.Generator], Traffic]
"""Makes the requests, from a stream for times and one for lengths."""

Lengths = Callable[[int, np.random.Generator], tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Makes so many lengths of prompts and answers."""


def scheduled(schedule: Sequence[tuple[float, float]], of_lengths: Lengths) -> Draw:
    """Return what makes Poisson arrivals whose rate follows a schedule."""

    def draw(times: np.random.Generator, sizes: np.random.Generator) -> Traffic:
        arrived_s = arrivals(schedule, times)
        return Traffic(arrived_s, *of_lengths(len(arrived_s), sizes))

    return draw


def bursts(states: Sequence[tuple[float, float]], span_s: float, of_lengths: Lengths) -> Draw:
    """Return what makes arrivals whose rate jumps between states, anew for each seed."""

    def draw(times: np.random.Generator, sizes: np.random.Generator) -> Traffic:
        arrived_s = arrivals(modulated(states, span_s, times), times)
        return Traffic(arrived_s, *of_lengths(len(arrived_s), sizes))

    return draw


def copies(trace: Traffic, count: int, span_s: float) -> Draw:
    """Return what lays ``count`` copies of a trace over each other, each shifted around the span."""

    def draw(times: np.random.Generator, _: np.random.Generator) -> Traffic:
        shifts_s = times.random(count) * span_s
        arrived_s = np.concatenate([(trace.arrived_s + shift) % span_s for shift in shifts_s])
        order = np.argsort(arrived_s, kind="stable")
        return Traffic(
            arrived_s[order],
            np.tile(trace.prompt_tokens, count)[order],
            np.tile(trace.output_tokens, count)[order],
        )

    return draw


def lognormal(prompt: float, output: float, variation: float = 0.8, most: int = 32768) -> Lengths:
    """Return what makes lognormal lengths with these means."""

    def make(
        count: int, generator: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return (
            lengths(prompt, variation, most, count, generator),
            lengths(output, variation, most, count, generator),
        )

    return make


def normal(prompt: tuple[float, float, int, int], output: tuple[float, float, int, int]) -> Lengths:
    """Return what makes normal lengths: mean, deviation, least and most of prompts and answers."""

    def make(
        count: int, generator: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return (
            normal_lengths(*prompt, count, generator),
            normal_lengths(*output, count, generator),
        )

    return make

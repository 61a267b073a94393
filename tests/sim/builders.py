"""Requests for replicas, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wva_adapter.sim.hardware import Hardware
from wva_adapter.sim.replica import Replica
from wva_adapter.sim.request import Request

Arrival = tuple[float, int, int]
"""When, prompt tokens, output tokens."""


def a_hardware(
    *,
    tokens: tuple[float, ...] = (1, 100),
    iteration_s: tuple[float, ...] = (0.010, 0.010),
    kv_read_s_per_token: float = 0.0,
    attention_s: float = 0.0,
    kv_cache_tokens: int = 100_000,
) -> Hardware:
    """Return hardware on which, unless told otherwise, every step takes 10 ms."""
    return Hardware(
        name="test/chip/tp1",
        tokens=tokens,
        iteration_s=iteration_s,
        kv_read_s_per_token=kv_read_s_per_token,
        attention_s=attention_s,
        kv_cache_tokens=kv_cache_tokens,
        idle_w=100,
        tdp_w=400,
        usd_per_h=1,
    )


def serve(replica: Replica, arrivals: Sequence[Arrival]) -> list[Request]:
    """Let requests arrive in the order given, and time pass until all have ended."""
    requests = []
    for at_s, prompt_tokens, output_tokens in arrivals:
        request = Request(prompt_tokens, output_tokens)
        replica.submit(request, at_s)
        requests.append(request)
    finish(replica)
    return requests


def finish(replica: Replica) -> list[Request]:
    """Let time pass until nothing is left; return who finished."""
    finished = []
    while (event_s := replica.next_event_s()) is not None:
        finished += replica.advance(event_s).finished
    return finished


def lognormal(
    mean: float, variation: float, count: int, generator: np.random.Generator
) -> list[int]:
    """Return lengths in tokens, at least 1."""
    spread = np.log(1 + variation**2)
    drawn = generator.lognormal(np.log(mean) - spread / 2, np.sqrt(spread), count)
    return [max(1, round(length)) for length in drawn.tolist()]

"""A simulated replica under Poisson traffic, seen as an engine's pages would show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np

from wva_adapter.core.capacity import Times
from wva_adapter.core.interval import Interval, interval
from wva_adapter.core.service_rate import (
    BATCH_SHARE,
    ITL_SHARE,
    KV_SHARE,
    Slo,
)
from wva_adapter.core.snapshot import ReplicaSample
from wva_adapter.sim.hardware import Hardware
from wva_adapter.sim.replica import Replica
from wva_adapter.sim.request import Request
from wva_adapter.sim.workload import lengths

VARIATION = 0.8
"""Coefficient of variation of prompts and answers."""


@dataclass(frozen=True)
class Traffic:
    """Mean lengths of requests."""

    prompt_tokens: int
    output_tokens: int


def page(replica: Replica, at_s: float) -> ReplicaSample:
    """Return what an engine in this state would report."""
    did = replica.counters
    return ReplicaSample(
        replica="r0",
        at_s=at_s,
        awake=True,
        kv_cache_usage=replica.kv_tokens / replica.kv_cache_tokens,
        kv_cache_tokens=replica.kv_cache_tokens,
        running_requests=replica.running,
        queued_requests=replica.waiting,
        prompt_tokens_total=did.prompt_tokens,
        computed_prompt_tokens_total=did.prompt_tokens,
        generation_tokens_total=did.generation_tokens,
        successes_total=did.finished,
        preemptions_total=did.preemptions,
        ttft_sum_s=did.ttft_sum_s,
        ttft_count=did.ttft_count,
        itl_sum_s=did.itl_sum_s,
        itl_count=did.itl_count,
        prefill_sum_s=did.prefill_sum_s,
        output_tokens_sum=did.finished_output_tokens,
        output_tokens_count=did.finished,
    )


def pages(
    hardware: Hardware,
    traffic: Callable[[float], Traffic],
    rate_per_s: float,
    *,
    until_s: float,
    seed: int,
    every_s: float = 5.0,
    max_num_seqs: int = 256,
) -> Iterator[ReplicaSample]:
    """Yield a page every so often, the first at 0.

    The same seed gives the same draws at any rate, so that rates can be compared.
    """
    generator = np.random.default_rng(seed)
    count = int(rate_per_s * until_s * 1.5) + 50
    times = np.cumsum(generator.exponential(size=count)) / rate_per_s
    sizes = np.random.default_rng(seed + 1)
    units = [lengths(1000, VARIATION, 20_000, count, sizes) / 1000 for _ in range(2)]
    replica = Replica(hardware, max_num_seqs=max_num_seqs)
    following = iter(zip(times, *units, strict=True))
    at_s, prompt, output = next(following)
    for scrape in range(int(until_s / every_s) + 1):
        while at_s <= scrape * every_s:
            kind = traffic(at_s)
            prompt_tokens = max(1, round(prompt * kind.prompt_tokens))
            output_tokens = max(1, round(output * kind.output_tokens))
            replica.submit(Request(prompt_tokens, output_tokens), float(at_s))
            at_s, prompt, output = next(following)
        replica.advance(scrape * every_s)
        yield page(replica, scrape * every_s)


def intervals(samples: Sequence[ReplicaSample]) -> list[Interval]:
    """Return what happened between each two that follow each other."""
    found = [interval(a, b) for a, b in pairwise(samples)]
    return [one for one in found if one is not None]


@cache
def true_rate(hardware: Hardware, traffic: Traffic, slo: Slo) -> float:
    """Return the largest rate at which a replica was seen to keep what the service rate promises.

    The replica is run for a long time at each rate, and its own means are compared with the
    bounds: nothing here knows of times per step.
    """

    def keeps(rate_per_s: float) -> bool:
        until_s = max(600.0, 3000 / rate_per_s)
        seen = list(
            pages(hardware, lambda _: traffic, rate_per_s, until_s=until_s, seed=7, every_s=10)
        )
        seen = seen[len(seen) // 6 :]
        whole = interval(seen[0], seen[-1])
        assert whole is not None
        assert whole.itl_s is not None
        first_s = (seen[-1].ttft_sum_s or 0) - (seen[0].ttft_sum_s or 0)
        usage = float(np.mean([sample.kv_cache_usage or 0.0 for sample in seen]))
        return (
            whole.itl_s <= ITL_SHARE * slo.itl_s
            and first_s / (whole.started or 1) <= slo.ttft_s
            and whole.batch <= BATCH_SHARE * 256
            and usage <= KV_SHARE
        )

    lowest, highest = 0.2, 60.0
    while highest > 1.02 * lowest:
        middle = (lowest * highest) ** 0.5
        lowest, highest = (middle, highest) if keeps(middle) else (lowest, middle)
    return float((lowest * highest) ** 0.5)


def table_times(hardware: Hardware) -> Times:
    """Return the times read off the hardware's table: slopes at small and at large steps."""
    steps = hardware.step_times_s(4096)
    return Times(
        a_s=steps[1],
        b_s=(steps[128] - steps[1]) / 127,
        c_s=hardware.kv_read_s_per_token,
        d_s=(steps[4096] - steps[512]) / (4096 - 512),
    )

"""How fast the simulated fleet is, what it weighs, and how both grow."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

from tests.bench import Row
from wva_adapter.sim import files
from wva_adapter.sim.draws import lognormal, scheduled
from wva_adapter.sim.foresight import Still
from wva_adapter.sim.scenarios import scenario
from wva_adapter.sim.world import run

_MANY = 10_000_000


def _run(rate_per_s: float, replicas: int, span_s: float) -> tuple[int, float, float]:
    """Return the requests of a steady load, the CPU seconds they took, and the process' MB."""
    base = scenario("S1", files)
    (deployed,) = base.fleet
    setting = replace(
        base,
        horizon_s=span_s,
        fleet=(replace(deployed, start_replicas=replicas, max_replicas=replicas),),
        draw=scheduled([(0, rate_per_s), (span_s, rate_per_s)], lognormal(1024, 256)),
    )
    started = time.process_time()
    outcome = run(setting, lambda stage: Still(), 0)
    took_s = time.process_time() - started
    return outcome.requests, took_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rows() -> list[Row]:
    """Return the cost of an hour of 100 requests/s, and what ten million requests would take."""
    cases: Mapping[str, Sequence[float]] = {"hour": (100, 50, 3600), "many": (2778, 1000, 120)}
    found = {}
    for name, (rate_per_s, replicas, span_s) in cases.items():
        # Each in a process of its own, whose weight is the run's alone.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            found[name] = pool.submit(_run, rate_per_s, int(replicas), span_s).result()
    requests, hour_s, weight_mb = found["hour"]
    many, many_s, _ = found["many"]
    each_us, each_of_many_us = 1e6 * hour_s / requests, 1e6 * many_s / many
    all_s = many_s / many * _MANY
    return [
        Row(
            name=f"simulate one hour of 100 req/s over 50 replicas ({requests:,} requests)",
            value=hour_s,
            unit="s CPU",
            against=None,
            ratio=None,
            target="<= 15 s",
            ok=hour_s <= 15,
        ),
        Row(
            name="its process",
            value=weight_mb,
            unit="MB",
            against=None,
            ratio=None,
            target="<= 400 MB",
            ok=weight_mb <= 400,
        ),
        Row(
            name="10 million requests over 1,000 replicas, from two minutes of them",
            value=all_s,
            unit="s CPU",
            against=None,
            ratio=None,
            target="<= 600 s",
            ok=all_s <= 600,
        ),
        Row(
            name="one request over 1,000 replicas, against over 50",
            value=each_of_many_us,
            unit="us CPU",
            against=each_us,
            ratio=each_of_many_us / each_us,
            target="no target",
            ok=True,
        ),
    ]

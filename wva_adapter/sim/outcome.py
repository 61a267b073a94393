"""What a run came to: share in SLO, effective throughput, failures, money, energy, latency."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from wva_adapter.sim.clients import Fate, Fates, Traffic
from wva_adapter.sim.cluster import Change, Group, Pod
from wva_adapter.sim.request import Counters

_JOULES_PER_KWH = 3.6e6
_DECODE_SHARE, _DECODE_LOAD_SHARE, _PREFILL_SHARE = 0.40, 0.35, 0.95
"""Shares of the highest power: of decoding at all, with a full batch more, and of prefill."""


@dataclass(frozen=True, slots=True)
class Slo:
    """The latency that a request should have.

    Attributes:
        ttft_s: Longest time to the first token.
        itl_s: Longest mean time from token to token.
    """

    ttft_s: float = 2.0
    itl_s: float = 0.060


@dataclass(frozen=True, slots=True)
class Moment:
    """The fleet at one scrape.

    Attributes:
        spec: Per variant, the count that was asked for.
        ready: Per variant, replicas that served.
        existing: Per variant, pods that were billed.
    """

    at_s: float
    spec: tuple[int, ...]
    ready: tuple[int, ...]
    existing: tuple[int, ...]
    arrivals_per_s: float
    in_flight: int
    waiting: int
    queued: int
    ttft_p90_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run came to.

    Attributes:
        requests: How many came before the horizon; what is said of requests is of the online ones.
        offline: How many offline requests there were.
        offline_in_time: How many of them were done when they were due.
        failures: How many of them failed, by kind.
        goodput_tokens_per_s: Output tokens per second of requests that finished inside the SLO.
        ttft_s: Percentiles of the time to the first token; a request that failed counts as
            infinite.
        usd: What pods cost from creation to end, within the horizon.
        mean_replicas: Replicas that existed, on average.
        mean_ready: Replicas that served, on average.
        turns_per_h: Changes of direction of the counts asked for, per hour.
        digest: Hash of what became of every request, and when.
        variants: Names, in the order that timelines have.
    """

    horizon_s: float
    requests: int
    offline: int
    offline_in_time: int
    in_slo: int
    failures: Mapping[str, int]
    goodput_tokens_per_s: float
    ttft_s: Mapping[str, float]
    usd: float
    kwh: float
    replica_hours: float
    mean_replicas: float
    mean_ready: float
    turns_per_h: float
    digest: str
    variants: tuple[str, ...]
    changes: Mapping[str, tuple[Change, ...]]
    timeline: tuple[Moment, ...]

    @property
    def in_slo_pct(self) -> float:
        """Share of all requests, failed ones too, that were served inside the SLO."""
        return 100 * self.in_slo / self.requests if self.requests else math.nan

    @property
    def failed_pct(self) -> float:
        """Share of requests that failed."""
        failed = sum(self.failures.values())
        return 100 * failed / self.requests if self.requests else math.nan


@dataclass(frozen=True, slots=True)
class Bill:
    """What one variant's pods took until the horizon."""

    replica_s: float
    usd: float
    joules: float


def bill(group: Group, until_s: float) -> Bill:
    """Add up a variant's pods; the engines must be up to date."""
    deployed = group.deployed
    seconds = joules = 0.0
    for pod in (*group.gone, *group.pods):
        if not pod.scheduled:
            continue
        life_s = max(0.0, min(pod.ended_s, until_s) - pod.created_s)
        seconds += life_s
        joules += deployed.hardware.idle_w * life_s
        if pod.replica is not None:
            joules += _work_joules(pod, pod.replica.counters)
        joules += sum(_work_joules(pod, counters) for counters in pod.past)
    return Bill(seconds, seconds / 3600 * deployed.usd_per_h, joules)


def _work_joules(pod: Pod, counters: Counters) -> float:
    """Return what work drew beyond an idle replica."""
    hardware = pod.group.deployed.hardware
    decoding = _DECODE_SHARE * counters.decode_steps_s + _DECODE_LOAD_SHARE * counters.decode_load_s
    working = hardware.tdp_w * (decoding + _PREFILL_SHARE * counters.prefill_steps_s)
    idle = hardware.idle_w * (counters.decode_steps_s + counters.prefill_steps_s)
    return working - idle


def in_slo(fates: Fates, output_tokens: NDArray[np.int64], slo: Slo) -> NDArray[np.bool_]:
    """Return for each request whether it finished inside the SLO."""
    ttft_s = fates.first_token_s - fates.sent_s
    itl_s = (fates.ended_s - fates.first_token_s) / np.maximum(1, output_tokens - 1)
    finished = fates.fates == Fate.FINISHED
    with np.errstate(invalid="ignore"):
        within: NDArray[np.bool_] = finished & (ttft_s <= slo.ttft_s) & (itl_s <= slo.itl_s)
    return within


def summarise(
    traffic: Traffic,
    fates: Fates,
    groups: Sequence[Group],
    bills: Sequence[Bill],
    timeline: Sequence[Moment],
    *,
    horizon_s: float,
    slo: Slo,
    offline: NDArray[np.bool_],
) -> Outcome:
    """Return what a run came to."""
    # Who had to wait for others of its client and was never sent asked for nothing.
    counted = (traffic.arrived_s <= horizon_s) & ~np.isnan(fates.sent_s) & ~offline
    good = in_slo(fates, traffic.output_tokens, slo) & counted
    kinds = fates.fates[counted]
    ttft_s = (fates.first_token_s - fates.sent_s)[counted]
    ttft_s = np.where(kinds == Fate.FINISHED, ttft_s, np.inf)
    replica_s = sum(b.replica_s for b in bills)
    return Outcome(
        horizon_s=horizon_s,
        requests=int(counted.sum()),
        offline=int(offline.sum()),
        offline_in_time=int((fates.fates[offline] == Fate.FINISHED).sum()),
        in_slo=int(good.sum()),
        failures={
            fate.name.lower(): int((kinds == fate).sum()) for fate in Fate if fate > Fate.FINISHED
        },
        goodput_tokens_per_s=float(traffic.output_tokens[good].sum()) / horizon_s,
        ttft_s={f"p{share}": _percentile(ttft_s, share) for share in (50, 90, 95, 99)},
        usd=sum(b.usd for b in bills),
        kwh=sum(b.joules for b in bills) / _JOULES_PER_KWH,
        replica_hours=replica_s / 3600,
        mean_replicas=replica_s / horizon_s,
        mean_ready=fmean(sum(moment.ready) for moment in timeline),
        turns_per_h=sum(_turns(group) for group in groups) * 3600 / horizon_s,
        digest=digest(fates),
        variants=tuple(group.deployed.name for group in groups),
        changes={group.deployed.name: tuple(group.changes) for group in groups},
        timeline=tuple(timeline),
    )


def digest(fates: Fates) -> str:
    """Return a hash of what became of every request, and when."""
    hashed = hashlib.sha256()
    for values in (fates.fates, fates.sent_s, fates.first_token_s, fates.ended_s):
        hashed.update(values.tobytes())
    return hashed.hexdigest()[:16]


def _percentile(values: NDArray[np.float64], share: int) -> float:
    if not len(values):
        return math.nan
    return float(np.quantile(values, share / 100, method="inverted_cdf"))


def _turns(group: Group) -> int:
    """Return how often the count asked for went the other way than the time before."""
    counts = [change.replicas for change in group.changes]
    rises = [after > before for before, after in pairwise(counts)]
    return sum(a != b for a, b in pairwise(rises))

"""Fleets by who knows what will come and what a replica can do: bounds to hold a law against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from wva_adapter.sim.clients import Traffic
from wva_adapter.sim.cluster import Deployed
from wva_adapter.sim.outcome import Slo
from wva_adapter.sim.replica import Replica
from wva_adapter.sim.request import Request
from wva_adapter.sim.scaler import Metrics, VariantView
from wva_adapter.sim.scenarios import Scenario
from wva_adapter.sim.world import CAPACITY

STATIC_SHARE = 0.85
"""How full a fleet that is sized for the peak is at the peak."""

SERVED_SHARE = 0.95
"""A replica can do what it does with this share of the requests inside the SLO."""

_MEAN_S = 30
_AHEAD_S = 60
_MEASURED_S = 400.0
_BISECTIONS = 6


def sustained_rate(
    deployed: Deployed, lengths: Traffic, slo: Slo, generator: np.random.Generator
) -> float:
    """Return the requests per second that one replica serves inside the SLO, by trying.

    Args:
        deployed: What the replica is.
        lengths: Whose lengths its requests have, in turn.
        slo: What ``SERVED_SHARE`` of them must get.
        generator: Of the times of arrival.
    """
    gaps = generator.exponential(1.0, 1 << 15)
    high = 0.25
    while _serves(deployed, lengths, slo, gaps, high):
        high *= 2
    low = high / 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _serves(deployed, lengths, slo, gaps, middle):
            low = middle
        else:
            high = middle
    return low


def _serves(
    deployed: Deployed, lengths: Traffic, slo: Slo, gaps: NDArray[np.float64], rate: float
) -> bool:
    count = min(len(gaps), max(50, int(rate * _MEASURED_S)))
    replica = Replica(deployed.hardware, max_num_seqs=deployed.max_num_seqs)
    requests = []
    for index, at_s in enumerate((np.cumsum(gaps[:count]) / rate).tolist()):
        turn = index % len(lengths.prompt_tokens)
        request = Request(int(lengths.prompt_tokens[turn]), int(lengths.output_tokens[turn]))
        while (due_s := replica.next_event_s()) is not None and due_s <= at_s:
            replica.advance(due_s)
        replica.submit(request, at_s)
        requests.append(request)
    while (due_s := replica.next_event_s()) is not None:
        replica.advance(due_s)
    return sum(_within(request, slo) for request in requests) >= SERVED_SHARE * count


def _within(request: Request, slo: Slo) -> bool:
    first_s, last_s = request.first_token_s, request.finished_s
    if first_s is None or last_s is None or first_s - request.arrived_s > slo.ttft_s:
        return False
    return last_s - first_s <= slo.itl_s * max(1, request.output_tokens - 1)


def peak_rates(traffic: Traffic, horizon_s: float) -> NDArray[np.float64]:
    """Return, per second, the largest mean rate over 30 s that begins or ends soon.

    Entry t is the largest of the windows within [t − 30 s, t + 60 s].
    """
    seconds = int(np.ceil(horizon_s))
    counts = np.bincount(traffic.arrived_s.astype(np.int64), minlength=seconds)[:seconds]
    total = np.concatenate(([0], np.cumsum(counts)))
    last = len(total) - 1
    begins = np.arange(-_MEAN_S, seconds + _AHEAD_S)
    ends = np.clip(begins + _MEAN_S, 0, last)
    means = (total[ends] - total[np.clip(begins, 0, last)]) / _MEAN_S
    span = _MEAN_S + _AHEAD_S - _MEAN_S + 1
    windows = np.lib.stride_tricks.sliding_window_view(means, span)
    largest: NDArray[np.float64] = windows.max(axis=1)[:seconds]
    return largest


@dataclass(frozen=True, slots=True)
class Capacity:
    """What each variant's replica can do, and what it costs.

    Attributes:
        rates_per_s: Requests per second inside the SLO, in the order of the fleet.
    """

    fleet: tuple[Deployed, ...]
    rates_per_s: tuple[float, ...]

    def cheapest(self, rate_per_s: float, share: float) -> tuple[int, ...]:
        """Return the cheapest counts that carry a rate, each replica filled to ``share``.

        The largest counts where none do.
        """
        best: tuple[float, tuple[int, ...]] | None = None
        ranges = [range(d.min_replicas, d.max_replicas + 1) for d in self.fleet]
        for counts in product(*ranges):
            carried = sum(n * r for n, r in zip(counts, self.rates_per_s, strict=True)) * share
            if carried < rate_per_s:
                continue
            usd = sum(n * d.usd_per_h for n, d in zip(counts, self.fleet, strict=True))
            if best is None or (usd, counts) < best:
                best = (usd, counts)
        return tuple(d.max_replicas for d in self.fleet) if best is None else best[1]


def measure(scenario: Scenario, traffic: Traffic, seed: int) -> Capacity:
    """Return what each variant of a scenario can do with its own requests."""
    # The same gaps between arrivals for each, so that the ratio of two variants is theirs.
    rates = [
        sustained_rate(
            deployed,
            traffic,
            scenario.slo,
            np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, CAPACITY]))),
        )
        for deployed in scenario.fleet
    ]
    return Capacity(scenario.fleet, tuple(rates))


def sized_for_peak(scenario: Scenario, traffic: Traffic, seed: int) -> Scenario:
    """Return the scenario with a fleet that carries its largest rate from the beginning."""
    peak = float(peak_rates(traffic, scenario.horizon_s).max())
    counts = measure(scenario, traffic, seed).cheapest(peak, STATIC_SHARE)
    fleet = [
        replace(deployed, start_replicas=count)
        for deployed, count in zip(scenario.fleet, counts, strict=True)
    ]
    return replace(scenario, fleet=tuple(fleet))


class Still:
    """Leaves every count as it is."""

    period_s = 3600.0

    def act(
        self, now_s: float, fleet: Sequence[VariantView], metrics: Metrics
    ) -> Mapping[str, int]:
        """Return nothing."""
        return {}


class Clairvoyant:
    """Has at each moment the cheapest fleet for what comes, ordered one start ahead.

    Args:
        scenario: Whose fleet it is.
        traffic: What will come.
        capacity: What replicas can do.
        share: How full they are at the largest rate.
    """

    period_s = 5.0

    def __init__(
        self, scenario: Scenario, traffic: Traffic, capacity: Capacity, share: float
    ) -> None:
        self._rates = peak_rates(traffic, scenario.horizon_s)
        self._ahead_s = int(max(deployed.startup_s for deployed in scenario.fleet))
        self._capacity = capacity
        self._share = share

    def act(
        self, now_s: float, fleet: Sequence[VariantView], metrics: Metrics
    ) -> Mapping[str, int]:
        """Return the counts for the largest need until what is ordered now would be ready."""
        now = int(now_s)
        need = float(self._rates[now : now + self._ahead_s + 1].max(initial=0.0))
        counts = self._capacity.cheapest(need, self._share)
        return {view.name: count for view, count in zip(fleet, counts, strict=True)}

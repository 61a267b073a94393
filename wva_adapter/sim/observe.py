"""What a monitoring system has scraped of the fleet: series over time, and the replicas' pages."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from wva_adapter.core.snapshot import ReplicaSample
from wva_adapter.sim.cluster import Group, Pod
from wva_adapter.sim.router import KV_FULL, QUEUE_FULL, Gateway
from wva_adapter.sim.series import SERIES

SCRAPE_PERIOD_S = 5.0

_KEPT = 240
_LATENCY_SCRAPES = 12
_BUSY_SCRAPES = 3
_CPU_IDLE, _CPU_BUSY = 0.05, 0.22

_PERCENTILES = {"ttft_p90_1m_s": 0, "itl_p90_1m_s": 1}

_GAUGES = (
    "ready",
    "running",
    "waiting",
    "in_flight",
    "queue",
    "kv_tokens",
    "kv_capacity_tokens",
    "in_flight_prompt_tokens",
    "arrivals_per_s",
    "kv_usage",
    "gpu_busy",
    "cpu",
    "saturation",
    "kv_load_max",
)
_SOURCES = {
    "gateway": ("in_flight", "queue", "in_flight_prompt_tokens", "arrivals_per_s", "kv_load_max"),
    "engines": ("running", "waiting", "kv_tokens", "kv_capacity_tokens", "kv_usage", "saturation"),
}
"""What each source tells; pods and their use of CPU and GPU are always known."""

_COLUMN = {name: column for column, name in enumerate(_GAUGES)}


class _Track:
    """The samples of one variant, or of the model.

    Attributes:
        at_s: Times of the scrapes.
        rows: The gauges of each.
        latencies: Times to first token, and mean inter-token times, of what came since the scrape
            before.
    """

    def __init__(self) -> None:
        self.at_s: deque[float] = deque(maxlen=_KEPT)
        self.rows: deque[tuple[float | None, ...]] = deque(maxlen=_KEPT)
        self.latencies: deque[tuple[NDArray[np.float64], NDArray[np.float64]]] = deque(maxlen=_KEPT)

    def add(
        self,
        at_s: float,
        row: tuple[float | None, ...],
        latencies: tuple[NDArray[np.float64], NDArray[np.float64]],
    ) -> None:
        self.at_s.append(at_s)
        self.rows.append(row)
        self.latencies.append(latencies)

    def sample(self, series: str, index: int) -> float | None:
        """Return what a series was at the scrape of this index."""
        column = _COLUMN.get(series)
        if column is not None:
            return self.rows[index][column]
        which = _PERCENTILES[series]
        first = max(0, index - _LATENCY_SCRAPES + 1)
        recent = [self.latencies[i][which] for i in range(first, index + 1)]
        values = np.concatenate(recent)
        if not len(values):
            return None
        return float(np.quantile(values, 0.9, method="inverted_cdf"))


class Observatory:
    """The metric store (``scaler.Metrics``), and what the adapter scrapes itself.

    Everything is scraped every ``SCRAPE_PERIOD_S``. Who reads with a delay asks for an earlier
    time.

    Attributes:
        pages: Each serving replica's last page, by pod name.
        pages_wanted: Whether anybody reads pages.
        blind: What could not be scraped the last time.
        offline_waiting: Offline requests that were not sent yet.
        lost: Names of pods whose page could not be read the last time.
    """

    def __init__(self, groups: Sequence[Group], gateway: Gateway) -> None:
        self._groups = groups
        self._gateway = gateway
        self._tracks: dict[str | None, _Track] = {
            None: _Track(),
            **{group.deployed.name: _Track() for group in groups},
        }
        self._arrivals: dict[str | None, int] = dict.fromkeys(self._tracks, 0)
        self._busy: dict[str, deque[float]] = {}
        self.pages: Mapping[str, ReplicaSample] = {}
        self.pages_wanted = False
        self.blind: Collection[str] = ()
        self.lost: Collection[str] = ()
        self.offline_waiting = 0
        self._offline = 0

    @property
    def arrivals_total(self) -> int:
        """Requests that had come to the gateway at the last scrape."""
        return self._arrivals[None]

    @property
    def offline_total(self) -> int:
        """Those of them that nobody waits for."""
        return self._offline

    def value(self, series: str, now_s: float, variant: str | None = None) -> float | None:
        """Return the newest sample that can be seen now; ``None`` where there is none.

        Raises:
            KeyError: No series has this name.
        """
        track = self._track(series, variant)
        index = bisect_right(track.at_s, now_s) - 1
        return None if index < 0 else track.sample(series, index)

    def window(
        self, series: str, now_s: float, span_s: float, variant: str | None = None
    ) -> Sequence[float]:
        """Return the samples of the last ``span_s`` seconds that can be seen now, oldest first.

        Raises:
            KeyError: No series has this name.
        """
        track = self._track(series, variant)
        first = bisect_right(track.at_s, now_s - span_s)
        last = bisect_right(track.at_s, now_s)
        samples = (track.sample(series, index) for index in range(first, last))
        return [sample for sample in samples if sample is not None]

    def _track(self, series: str, variant: str | None) -> _Track:
        if series not in _COLUMN and series not in _PERCENTILES:
            raise KeyError(f"series {series!r}, want one of: {', '.join(SERIES)}")
        return self._tracks[variant]

    def scrape(
        self,
        at_s: float,
        blind: Collection[str] = (),
        lost_share: float = 0.0,
        chances: np.random.Generator | None = None,
    ) -> None:
        """Take a sample of everything; the engines must be up to date.

        Args:
            at_s: Model seconds now.
            blind: What cannot be scraped: ``gateway``, ``engines``.
            lost_share: Share of the pages that cannot be read.
            chances: Of which; the n-th number is the n-th pod's.
        """
        self.blind = blind
        every: list[Pod] = []
        ttfts, itls = [], []
        for group in self._groups:
            name = group.deployed.name
            pods = group.serving()
            every += pods
            latencies = (np.array(group.ttfts_s), np.array(group.itls_s))
            group.ttfts_s.clear()
            group.itls_s.clear()
            ttfts.append(latencies[0])
            itls.append(latencies[1])
            in_flight = sum(pod.in_flight for pod in group.pods)
            row = self._row(name, pods, in_flight, 0, group.sent)
            self._tracks[name].add(at_s, _seen(row, blind), latencies)
        in_flight = sum(pod.in_flight for group in self._groups for pod in group.pods)
        gateway = self._gateway
        self._offline = gateway.offline_total
        row = self._row(None, every, in_flight, gateway.queued, gateway.arrivals_total)
        everything = (np.concatenate(ttfts), np.concatenate(itls))
        self._tracks[None].add(at_s, _seen(row, blind), everything)
        self._remember_busy(every)
        if self.pages_wanted and "engines" not in blind:
            lost: Collection[str] = ()
            if chances is not None and every:
                drawn = chances.random(max(pod.ordinal for pod in every) + 1)
                lost = {pod.name for pod in every if drawn[pod.ordinal] < lost_share}
            self.lost = lost
            pages = {}
            for pod in every:
                before = self.pages.get(pod.name)
                if pod.name not in lost:
                    pages[pod.name] = _page(pod, at_s, before)
                elif before is not None:
                    pages[pod.name] = before
            self.pages = pages

    def _row(
        self, name: str | None, pods: Sequence[Pod], in_flight: int, queued: int, arrivals: int
    ) -> tuple[float | None, ...]:
        running = waiting = kv_tokens = capacity = prompt_tokens = 0
        usage = saturation = busy = load = 0.0
        for pod in pods:
            replica = pod.replica
            assert replica is not None
            share = replica.kv_tokens / replica.kv_cache_tokens
            running += replica.running
            waiting += replica.waiting
            kv_tokens += replica.kv_tokens
            capacity += replica.kv_cache_tokens
            prompt_tokens += pod.unprefilled_tokens
            usage += share
            saturation += max(replica.waiting / QUEUE_FULL, share / KV_FULL)
            busy += self._busy_share(pod)
            assert pod.gateway is not None
            load = max(load, pod.gateway.load(pod))
        count = len(pods)
        rate = (arrivals - self._arrivals[name]) / SCRAPE_PERIOD_S
        self._arrivals[name] = arrivals
        counts = (count, running, waiting, in_flight, queued, kv_tokens, capacity, prompt_tokens)
        if not count:
            return (*counts, rate, None, None, None, None, None)
        cpu = _CPU_IDLE + _CPU_BUSY * busy / count
        return (*counts, rate, usage / count, busy / count, cpu, saturation / count, load)

    def _busy_share(self, pod: Pod) -> float:
        past = self._busy.get(pod.name)
        if not past:
            return 1.0 if pod.in_flight else 0.0
        share = (_busy_s(pod) - past[0]) / (len(past) * SCRAPE_PERIOD_S)
        return min(1.0, share)

    def _remember_busy(self, pods: Sequence[Pod]) -> None:
        self._busy = {
            pod.name: self._busy.get(pod.name, deque(maxlen=_BUSY_SCRAPES)) for pod in pods
        }
        for pod in pods:
            self._busy[pod.name].append(_busy_s(pod))


def _seen(row: tuple[float | None, ...], blind: Collection[str]) -> tuple[float | None, ...]:
    """Return the gauges without those whose source cannot be scraped."""
    if not blind:
        return row
    lost = {name for what in blind for name in _SOURCES[what]}
    return tuple(None if name in lost else value for name, value in zip(_GAUGES, row, strict=True))


def _busy_s(pod: Pod) -> float:
    assert pod.replica is not None
    counters = pod.replica.counters
    return counters.prefill_steps_s + counters.decode_steps_s


def _page(pod: Pod, at_s: float, before: ReplicaSample | None) -> ReplicaSample:
    """Return what the engine's page says, with the fields that vLLM has."""
    replica = pod.replica
    assert replica is not None
    counters = replica.counters
    tokens, count = counters.finished_prompt_tokens, counters.finished
    mean_input_tokens = tokens / count if count else None
    if (
        before is not None
        and before.input_tokens_sum is not None
        # A smaller one is of an engine that has begun again.
        and 0 < (before.input_tokens_count or 0) <= count
    ):
        finished = count - (before.input_tokens_count or 0)
        mean_input_tokens = (
            (tokens - before.input_tokens_sum) / finished if finished else before.mean_input_tokens
        )
    return ReplicaSample(
        replica=pod.name,
        at_s=at_s,
        kv_cache_usage=replica.kv_tokens / replica.kv_cache_tokens,
        kv_cache_tokens=replica.kv_cache_tokens,
        running_requests=replica.running,
        queued_requests=replica.waiting,
        prompt_tokens_total=counters.prompt_tokens,
        computed_prompt_tokens_total=counters.prompt_tokens - counters.cached_prompt_tokens,
        generation_tokens_total=counters.generation_tokens,
        successes_total=counters.finished,
        # A request whose client went away is counted nowhere.
        aborts_total=0,
        preemptions_total=counters.preemptions,
        ttft_sum_s=counters.ttft_sum_s,
        ttft_count=counters.ttft_count,
        itl_sum_s=counters.itl_sum_s,
        itl_count=counters.itl_count,
        prefill_sum_s=counters.prefill_sum_s,
        input_tokens_sum=counters.finished_prompt_tokens,
        input_tokens_count=counters.finished,
        output_tokens_sum=counters.finished_output_tokens,
        output_tokens_count=counters.finished,
        mean_input_tokens=mean_input_tokens,
        model_names=("model",),
    )

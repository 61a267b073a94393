"""What is counted of every request, under the names by which dashboards know an API server."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from wva_adapter.serve.discovery import VERSION_PATH
from wva_adapter.serve.wire import GROUP, VERSION

_METRICS_BELOW: Final = f"{VERSION_PATH}/namespaces/"
_VERBS: Final = {
    "GET": "GET",
    "HEAD": "GET",
    "POST": "POST",
    "PUT": "PUT",
    "PATCH": "PATCH",
    "DELETE": "DELETE",
}
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LABELS: Final = (
    "component",
    "dry_run",
    "group",
    "resource",
    "scope",
    "subresource",
    "verb",
    "version",
)
_BYTES: Final = (1e3, 1e4, 1e5, 1e6, 1e7)


class _Seen:
    """Requests of one kind: how many, how long, how large."""

    __slots__ = ("body_bytes", "count", "duration_s", "seconds", "sizes")

    def __init__(self) -> None:
        self.count = 0
        self.duration_s = 0.0
        self.body_bytes = 0
        self.seconds = [0] * (len(_SECONDS) + 1)
        self.sizes = [0] * (len(_BYTES) + 1)


class RequestMetrics(Collector):
    """The series by which dashboards know every Kubernetes API server.

    Counted in plain numbers and made into series when somebody looks: the library's own counters
    cost as much per request as all of the read path.

    References:
        ``k8s.io/apiserver/pkg/endpoints/metrics`` for names and labels.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self._seen: dict[tuple[str, bool, int], _Seen] = {}

    def observe(
        self, method: str, path: str, code: int, duration_s: float, body_bytes: int
    ) -> None:
        """Count one answered request."""
        key = (_VERBS.get(method, "other"), path.startswith(_METRICS_BELOW), code)
        seen = self._seen.get(key)
        if seen is None:
            seen = self._seen[key] = _Seen()
        seen.count += 1
        seen.duration_s += duration_s
        seen.body_bytes += body_bytes
        seen.seconds[bisect_left(_SECONDS, duration_s)] += 1
        seen.sizes[bisect_left(_BYTES, body_bytes)] += 1

    def collect(self) -> Iterable[Metric]:
        """Yield the series as they stand."""
        total = CounterMetricFamily(
            "apiserver_request",
            "Requests, by what they asked for and how they were answered.",
            labels=(*_LABELS, "code"),
        )
        merged: dict[tuple[str, ...], _Seen] = {}
        for (verb, is_metric, code), seen in sorted(self._seen.items()):
            labels = _label_values(verb, is_metric)
            total.add_metric((*labels, str(code)), seen.count)
            _add(merged.setdefault(labels, _Seen()), seen)
        yield total
        durations = HistogramMetricFamily(
            "apiserver_request_duration_seconds",
            "Time from the head of a request to the end of its answer.",
            labels=_LABELS,
        )
        sizes = HistogramMetricFamily(
            "apiserver_response_sizes", "Size of the bodies of answers.", labels=_LABELS
        )
        for labels, seen in merged.items():
            durations.add_metric(labels, _buckets(_SECONDS, seen.seconds), seen.duration_s)
            sizes.add_metric(labels, _buckets(_BYTES, seen.sizes), seen.body_bytes)
        yield durations
        yield sizes
        in_flight = GaugeMetricFamily(
            "apiserver_current_inflight_requests",
            "Requests being answered.",
            labels=("request_kind",),
        )
        in_flight.add_metric(("readOnly",), self.in_flight)
        yield in_flight


def _label_values(verb: str, is_metric: bool) -> tuple[str, ...]:
    group, version = (GROUP, VERSION) if is_metric else ("", "")
    whole = "*" if is_metric else ""
    if is_metric and verb == "GET":
        verb = "LIST"
    scope = "namespace" if is_metric else ""
    return ("external-metrics", "", group, whole, scope, whole, verb, version)


def _add(total: _Seen, seen: _Seen) -> None:
    total.duration_s += seen.duration_s
    total.body_bytes += seen.body_bytes
    total.seconds = [a + b for a, b in zip(total.seconds, seen.seconds, strict=True)]
    total.sizes = [a + b for a, b in zip(total.sizes, seen.sizes, strict=True)]


def _buckets(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    named = [*map(floatToGoString, bounds), "+Inf"]
    return list(zip(named, accumulate(counts), strict=True))

"""What a recording holds of one model, as the series that laws read."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from wva_adapter.core.snapshot import GatewayState, ReplicaSample, VariantState
from wva_adapter.errors import ConfigError
from wva_adapter.sim.router import KV_FULL, QUEUE_FULL

_KEPT = 512

_SHARED = ("kv_usage", "saturation")
"""Means over replicas: as much load on other replicas than there were gives other means."""

HELD = (
    "ready",
    "running",
    "waiting",
    "in_flight",
    "queue",
    "kv_tokens",
    "kv_capacity_tokens",
    "arrivals_per_s",
    *_SHARED,
)
"""The series that a recording can hold."""

Row = Mapping[str, float | None]


class History:
    """The series of one model as they were recorded, the newest few hundred samples."""

    def __init__(self) -> None:
        self._at_s: deque[float] = deque(maxlen=_KEPT)
        self._rows: deque[Mapping[str | None, Row]] = deque(maxlen=_KEPT)

    def add(
        self,
        at_s: float,
        states: Sequence[VariantState],
        gateway: GatewayState | None,
        arrivals_per_s: float | None,
    ) -> None:
        """Append one cycle.

        Args:
            arrivals_per_s: Requests per second of the model; ``None`` where nothing tells.
        """
        rows: dict[str | None, Row] = {
            state.variant.key.name: _row(_samples([state]), None, None) for state in states
        }
        queued = None if gateway is None else gateway.queued_requests
        rows[None] = _row(_samples(states), queued, arrivals_per_s)
        self._at_s.append(at_s)
        self._rows.append(rows)

    def samples(
        self, series: str, from_s: float, to_s: float, variant: str | None
    ) -> list[tuple[float | None, float]]:
        """Return what a series was in a span, its end included, and how many replicas told it."""
        first, last = bisect_right(self._at_s, from_s), bisect_right(self._at_s, to_s)
        found = (self._rows[index].get(variant, {}) for index in range(first, last))
        return [(row.get(series), row.get("ready") or 0.0) for row in found]


class Spread:
    """The recorded load, spread over the replicas that a policy has asked for (``Metrics``).

    Sums are as recorded. Means over replicas are the recorded total by as many as there would have
    been, capacities those of so many: what else would have been otherwise, nobody knows.

    Args:
        history: What was recorded.
        policy: Who reads, for messages.
        ready: Returns how many replicas would serve now, of a variant or of all.
    """

    def __init__(self, history: History, policy: str, ready: Callable[[str | None], int]) -> None:
        self._history = history
        self._policy = policy
        self._ready = ready

    def value(self, series: str, now_s: float, variant: str | None = None) -> float | None:
        """Return the newest sample that can be seen now; ``None`` where there is none.

        Raises:
            ConfigError: A recording does not hold this series.
        """
        values = self._values(series, float("-inf"), now_s, variant)
        return values[-1] if values else None

    def window(
        self, series: str, now_s: float, span_s: float, variant: str | None = None
    ) -> Sequence[float]:
        """Return the samples of the last ``span_s`` seconds, oldest first.

        Raises:
            ConfigError: A recording does not hold this series.
        """
        values = self._values(series, now_s - span_s, now_s, variant)
        return [value for value in values if value is not None]

    def _values(
        self, series: str, from_s: float, to_s: float, variant: str | None
    ) -> list[float | None]:
        if series not in HELD:
            raise ConfigError(
                f"policy {self._policy!r}: it reads {series}, which no recording holds; "
                f"those are {', '.join(HELD)}"
            )
        ready = self._ready(variant)
        if series == "ready":
            return [float(ready)]
        found = self._history.samples(series, from_s, to_s, variant)
        return [_spread(series, value, told, ready) for value, told in found]


def _spread(series: str, value: float | None, told: float, ready: int) -> float | None:
    if value is None or told == ready:
        return value
    if series in _SHARED:
        return value * told / ready if ready else None
    if series == "kv_capacity_tokens":
        return value / told * ready if told else None
    return value


def _samples(states: Sequence[VariantState]) -> list[ReplicaSample]:
    return [r.sample for state in states for r in state.ready if r.sample is not None]


def _row(
    samples: Sequence[ReplicaSample], queued: float | None, arrivals_per_s: float | None
) -> Row:
    running = [s.running_requests for s in samples if s.running_requests is not None]
    waiting = [s.queued_requests for s in samples if s.queued_requests is not None]
    usages = [s.kv_cache_usage for s in samples if s.kv_cache_usage is not None]
    sizes = [s.kv_cache_tokens for s in samples if s.kv_cache_tokens is not None]
    held = [
        s.kv_cache_usage * s.kv_cache_tokens
        for s in samples
        if s.kv_cache_usage is not None and s.kv_cache_tokens is not None
    ]
    full = [
        max((s.queued_requests or 0.0) / QUEUE_FULL, s.kv_cache_usage / KV_FULL)
        for s in samples
        if s.kv_cache_usage is not None
    ]
    return {
        "ready": float(len(samples)),
        "running": sum(running) if running else None,
        "waiting": sum(waiting) if waiting else None,
        "in_flight": sum(running) + sum(waiting) if running else None,
        "queue": queued,
        "kv_tokens": sum(held) if held else None,
        "kv_capacity_tokens": float(sum(sizes)) if sizes else None,
        "kv_usage": sum(usages) / len(usages) if usages else None,
        "saturation": sum(full) / len(full) if full else None,
        "arrivals_per_s": arrivals_per_s,
    }

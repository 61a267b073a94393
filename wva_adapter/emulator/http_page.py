"""What vLLM's metrics page says of the answers on its port; it knows nothing of models."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """One answer on the server's port.

    Attributes:
        handler: Its route, or ``none`` for a path that there is not.
        request_bytes: What the request's headers announced, 0 if nothing.
        response_bytes: What the answer's headers announced, 0 if nothing.
        duration_s: Seconds from the request to the last byte of the answer.
    """

    handler: str
    method: str
    status: int
    request_bytes: int
    response_bytes: int
    duration_s: float


class HttpFamilies:
    """Counts answers; a series appears when its first answer has been given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "http_requests",
            "Answers by route, method and class of status.",
            ("method", "status", "handler"),
            registry=registry,
        )
        self._request_bytes = Summary(
            "http_request_size_bytes", "Announced length.", ("handler",), registry=registry
        )
        self._response_bytes = Summary(
            "http_response_size_bytes", "Announced length.", ("handler",), registry=registry
        )
        self._fine_s = Histogram(
            "http_request_duration_highr_seconds",
            "Duration in many buckets.",
            buckets=(
                *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4),
                *(4.5, 5, 7.5, 10, 30, 60),
            ),
            registry=registry,
        )
        self._coarse_s = Histogram(
            "http_request_duration_seconds",
            "Duration by route.",
            ("handler", "method"),
            buckets=(0.1, 0.5, 1),
            registry=registry,
        )

    def answer(self, answer: HttpAnswer) -> None:
        """Count an answer."""
        handler, method = answer.handler, answer.method
        self._requests.labels(method, f"{answer.status // 100}xx", handler).inc()
        self._request_bytes.labels(handler).observe(answer.request_bytes)
        self._response_bytes.labels(handler).observe(answer.response_bytes)
        self._fine_s.observe(answer.duration_s)
        self._coarse_s.labels(handler, method).observe(answer.duration_s)

"""The series that a law may read, with their units: what a monitoring system has of a fleet."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

SERIES: Mapping[str, str] = MappingProxyType(
    {
        "ready": "replicas that serve",
        "running": "requests in the engines' batches",
        "waiting": "requests in the engines' queues",
        "in_flight": "requests that the gateway has sent and that are not finished",
        "queue": "requests that the gateway holds back (flow control)",
        "kv_usage": "KV cache in use, a share of 0 to 1, mean over endpoints",
        "kv_tokens": "KV cache in use, tokens",
        "kv_capacity_tokens": "KV cache there is, tokens",
        "kv_load_max": "largest over endpoints of the prompt and answer tokens of its running and "
        "waiting requests, as a share of its KV cache",
        "in_flight_prompt_tokens": "prompt tokens sent to engines and not prefilled yet",
        "ttft_p90_1m_s": "90th percentile of the time to first token over a minute, seconds",
        "itl_p90_1m_s": "the same of requests' mean inter-token time, seconds",
        "gpu_busy": "share of the last 15 s in which any request ran, mean over endpoints",
        "cpu": "CPU in use as a share of what a pod requests, mean over endpoints",
        "saturation": "mean over endpoints of max(waiting/5, KV usage/0.8)",
        "arrivals_per_s": "requests that arrived per second",
    }
)
"""Meaning by name. Of a variant, or of the model: then counts and tokens are the sum over variants,
shares the mean over all endpoints, maxima the maximum."""

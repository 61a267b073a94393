"""The past of vLLM replicas as a Prometheus has it, read in pages, as the snapshots of a recording."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx

from wva_adapter.core.fleet import Variant, VariantKey
from wva_adapter.core.policy import Policy
from wva_adapter.core.snapshot import Phase, ReplicaSample, ReplicaState, Snapshot, VariantState
from wva_adapter.errors import CollectError

STEP_S = 15.0
"""The past is looked at so often; Prometheus' usual scrapes are not more frequent."""

PAGE_S = 4 * 3600.0
"""So much is read in one answer: 961 samples of a series, of the 11,000 that a Prometheus allows."""

_BY = "sum by (namespace, pod, model_name)"

_QUERIES: Mapping[str, str] = {
    "running_requests": f"{_BY} (vllm:num_requests_running)",
    "queued_requests": f"{_BY} (vllm:num_requests_waiting)",
    "kv_cache_usage": "avg by (namespace, pod, model_name) "
    "(vllm:kv_cache_usage_perc or vllm:gpu_cache_usage_perc)",
    "prompt_tokens_total": f"{_BY} (vllm:prompt_tokens_total)",
    "generation_tokens_total": f"{_BY} (vllm:generation_tokens_total)",
    "successes_total": f"{_BY} (vllm:request_success_total)",
    "ttft_sum_s": f"{_BY} (vllm:time_to_first_token_seconds_sum)",
    "ttft_count": f"{_BY} (vllm:time_to_first_token_seconds_count)",
    "itl_sum_s": f"{_BY} (vllm:inter_token_latency_seconds_sum "
    "or vllm:time_per_output_token_seconds_sum)",
    "itl_count": f"{_BY} (vllm:inter_token_latency_seconds_count "
    "or vllm:time_per_output_token_seconds_count)",
    "prefill_sum_s": f"{_BY} (vllm:request_prefill_time_seconds_sum)",
    "input_tokens_sum": f"{_BY} (vllm:request_prompt_tokens_sum)",
    "input_tokens_count": f"{_BY} (vllm:request_prompt_tokens_count)",
    "output_tokens_sum": f"{_BY} (vllm:request_generation_tokens_sum)",
    "output_tokens_count": f"{_BY} (vllm:request_generation_tokens_count)",
}

_OF_WORKLOAD = re.compile(r"(?P<name>.+?)(?:-[a-z0-9]{6,10}-[a-z0-9]{5}|-[0-9]+)")
"""A pod's name by its Deployment's and ReplicaSet's, or its StatefulSet's."""

_TIMEOUT_S = 60.0

Pod = tuple[str, str, str]
"""Namespace, name, and the model that it serves."""

Values = dict[Pod, dict[str, float]]


def of_prometheus(
    url: str,
    *,
    from_s: float,
    to_s: float,
    on_share: Callable[[float], None],
    transport: httpx.BaseTransport | None = None,
) -> Iterator[tuple[Snapshot, Policy]]:
    """Yield the fleet each 15 s, in order of time, under the default policy.

    A pod is ready while it has samples. The pods of one Deployment or StatefulSet are a variant.
    Prices, bounds and accelerators are in no Prometheus: each replica costs 1 $/h.

    Args:
        url: Where its API is.
        from_s: Unix time of the first look.
        to_s: Unix time of the last.
        on_share: Told how much has been read, 0 to 1.
        transport: In place of the network.

    Raises:
        CollectError: It cannot be reached, refuses, or has no vLLM of that time.
    """
    seen = False
    since_s: dict[Pod, float] = {}
    with httpx.Client(
        base_url=url, timeout=_TIMEOUT_S, trust_env=False, transport=transport
    ) as client:
        begin_s = from_s
        while begin_s <= to_s:
            end_s = min(to_s, begin_s + PAGE_S)
            for at_s, values in _page(client, url, begin_s, end_s):
                seen = True
                yield _snapshot(at_s, values, since_s), Policy()
            on_share(min(1.0, (end_s - from_s) / max(STEP_S, to_s - from_s)))
            begin_s = end_s + STEP_S
    if not seen:
        span = f"the {to_s - from_s:.0f} s before {to_s:.0f}"
        raise CollectError(url, f"no vllm:num_requests_running in {span}; want vLLM's metrics")


def _page(
    client: httpx.Client, url: str, begin_s: float, end_s: float
) -> Iterator[tuple[float, Values]]:
    """Yield the values of all pods by time; a time without any pod is left out."""
    times: dict[float, Values] = {}
    for field, query in _QUERIES.items():
        for series in _range(client, url, query, begin_s, end_s):
            labels = series["metric"]
            pod = tuple(labels.get(name, "") for name in ("namespace", "pod", "model_name"))
            for at_s, text in series["values"]:
                value = float(text)
                if math.isfinite(value) and value >= 0:
                    times.setdefault(float(at_s), {}).setdefault(pod, {})[field] = value
    for at_s in sorted(times):
        # Without its gauges a pod was not scraped, whatever else there is of it.
        values = {pod: its for pod, its in times[at_s].items() if "running_requests" in its}
        if values:
            yield at_s, values


def _range(
    client: httpx.Client, url: str, query: str, begin_s: float, end_s: float
) -> list[dict[str, Any]]:
    asked = {"query": query, "start": begin_s, "end": end_s, "step": STEP_S}
    try:
        answer = client.post("api/v1/query_range", data=asked)
    except httpx.TimeoutException:
        raise CollectError(url, f"{query}: timed out after {_TIMEOUT_S:.0f} s") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CollectError(url, str(error) or type(error).__name__) from None
    try:
        document = answer.json()
        if document["status"] == "success":
            found: list[dict[str, Any]] = document["data"]["result"]
            return found
        problem = str(document["error"])
    except (ValueError, KeyError, TypeError):
        problem = "no answer of a Prometheus, want its address up to /api/v1"
    raise CollectError(url, f"HTTP {answer.status_code}: {problem}")


def _snapshot(at_s: float, values: Values, since_s: dict[Pod, float]) -> Snapshot:
    groups: dict[tuple[VariantKey, str], list[ReplicaState]] = {}
    for pod in sorted(values):
        namespace, name, model_id = pod
        found = _OF_WORKLOAD.fullmatch(name)
        key = VariantKey(namespace, found["name"] if found else name)
        its = values[pod]
        usage = its.get("kv_cache_usage")
        sample = ReplicaSample(
            replica=name,
            at_s=at_s,
            model_names=(model_id,),
            **{**its, **({} if usage is None else {"kv_cache_usage": min(1.0, usage)})},  # type: ignore[arg-type]
        )
        ready_s = since_s.setdefault(pod, at_s)
        groups.setdefault((key, model_id), []).append(
            ReplicaState(name, Phase.READY, None, ready_s, sample)
        )
    return Snapshot(
        at_s,
        tuple(
            VariantState(
                Variant(key=key, model_id=model_id, cost_per_h=1.0),
                spec_replicas=len(replicas),
                status_replicas=len(replicas),
                replicas=tuple(replicas),
            )
            for (key, model_id), replicas in groups.items()
        ),
    )

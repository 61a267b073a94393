"""What vLLM 0.32 writes on its metrics page, for a replica that is only computed.

One API server and one engine, as ``vllm serve`` starts them by default: every series but those of
HTTP and LoRA is there from the first scrape. Times are the replica's, so at ten times the speed a
second of the page passes in a tenth of one on the clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from wva_adapter.emulator import histogram
from wva_adapter.emulator.histogram import Histogram
from wva_adapter.emulator.http_page import HttpAnswer, HttpFamilies
from wva_adapter.sim.replica import Replica
from wva_adapter.sim.request import Request

BLOCK_TOKENS = 16
"""Tokens of one KV-cache block."""

FinishedReason = Literal["stop", "length"]


class MetricsPage(Collector):
    """The page of one engine.

    Feed it what happens: as the observer of its replica's steps, and with ``start``, ``finish``
    and ``answer``.

    Args:
        replica: Whose gauges and counters are shown; it must be brought up to date before.
        model: Name under which the model is served.
        max_model_len: Longest request in tokens; gives the bounds of token histograms.
        created_s: Unix time of the engine's start.
    """

    def __init__(
        self, replica: Replica, *, model: str, max_model_len: int, created_s: float
    ) -> None:
        self._labels = {"model_name": model, "engine": "0"}
        self._model = model
        self._max_model_len = max_model_len
        self._created_s = created_s
        self._replica = replica
        self._finished: dict[str, int] = dict.fromkeys(
            ("stop", "length", "abort", "error", "repetition"), 0
        )
        tokens = histogram.tokens_of_request(max_model_len)
        self._prompt_tokens = Histogram(tokens)
        self._generation_tokens = Histogram(tokens)
        self._iteration_tokens = Histogram(histogram.TOKENS_OF_STEP)
        self._max_generation_tokens = Histogram(tokens)
        self._completions = Histogram(histogram.COMPLETIONS_OF_REQUEST)
        self._max_tokens = Histogram(tokens)
        self._ttft_s = Histogram(histogram.LATENCY_OF_FIRST_TOKEN_S)
        self._itl_s = Histogram(histogram.LATENCY_PER_TOKEN_S)
        self._time_per_output_token_s = Histogram(histogram.LATENCY_PER_TOKEN_S)
        self._e2e_s = Histogram(histogram.LATENCY_OF_REQUEST_S)
        self._queue_s = Histogram(histogram.LATENCY_OF_REQUEST_S)
        self._inference_s = Histogram(histogram.LATENCY_OF_REQUEST_S)
        self._prefill_s = Histogram(histogram.LATENCY_OF_REQUEST_S)
        self._decode_s = Histogram(histogram.LATENCY_OF_REQUEST_S)
        self._preemptions = Histogram(histogram.PREEMPTIONS_OF_REQUEST)
        self._prefilled_tokens = Histogram(tokens)
        self._registry = CollectorRegistry()
        GCCollector(self._registry)
        PlatformCollector(self._registry)
        ProcessCollector(registry=self._registry)
        self._registry.register(self)
        self._http = HttpFamilies(self._registry)

    def on_steps(
        self, count: int, decoding: int, first_s: float, growth_s: float, other_tokens: int
    ) -> None:
        """Count steps (``sim.replica.Observer``)."""
        # A step that only works on a part of a prompt gives no output and is not counted.
        if decoding or other_tokens:
            self._iteration_tokens.observe(decoding + other_tokens, count)
        if decoding:
            self._itl_s.observe_rising(first_s, growth_s, count, decoding)

    def on_resume(self, gap_s: float) -> None:
        """Count the gap that a preemption left between two tokens."""
        self._itl_s.observe(gap_s)

    def start(self, request: Request) -> None:
        """Count a first token."""
        assert request.first_token_s is not None
        self._ttft_s.observe(request.first_token_s - request.arrived_s)

    def finish(self, request: Request, reason: FinishedReason, max_tokens: int) -> None:
        """Count a request that got all its tokens.

        Args:
            max_tokens: Most tokens that it would have taken.
        """
        scheduled_s, first_s, last_s = (
            request.scheduled_s,
            request.first_token_s,
            request.finished_s,
        )
        assert scheduled_s is not None
        assert first_s is not None
        assert last_s is not None
        self._finished[reason] += 1
        self._prompt_tokens.observe(request.prompt_tokens)
        self._prefilled_tokens.observe(request.prompt_tokens)
        self._generation_tokens.observe(request.output_tokens)
        self._max_generation_tokens.observe(request.output_tokens)
        self._completions.observe(1)
        self._max_tokens.observe(max_tokens)
        self._e2e_s.observe(last_s - request.arrived_s)
        self._queue_s.observe(scheduled_s - request.arrived_s)
        self._inference_s.observe(last_s - scheduled_s)
        self._prefill_s.observe(first_s - scheduled_s)
        self._decode_s.observe(last_s - first_s)
        self._time_per_output_token_s.observe(
            (last_s - first_s) / max(1, request.output_tokens - 1)
        )
        self._preemptions.observe(request.preemptions)

    def answer(self, answer: HttpAnswer) -> None:
        """Count an HTTP answer."""
        self._http.answer(answer)

    def render(self) -> bytes:
        """Return the page in the text format 1.0.0 that vLLM writes."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the families in the order of the page."""
        replica = self._replica
        did = replica.counters
        usable_blocks = -(-replica.kv_cache_tokens // BLOCK_TOKENS)
        used = min(1.0, replica.kv_blocks(BLOCK_TOKENS) / usable_blocks)
        zero = 0.0
        yield self._counter("estimated_flops_per_gpu", "Floating-point operations.", zero)
        yield self._counter("estimated_read_bytes_per_gpu", "Bytes read from memory.", zero)
        yield self._counter("estimated_write_bytes_per_gpu", "Bytes written to memory.", zero)
        yield self._gauge("num_requests_running", "Requests in the batch.", replica.running)
        yield self._gauge("num_requests_waiting", "Requests in the queue.", replica.waiting)
        yield self._gauge(
            "num_requests_waiting_by_reason",
            "Requests in the queue by what they wait for.",
            {"capacity": replica.waiting, "deferred": zero},
            label="reason",
        )
        yield self._gauge(
            "engine_sleep_state",
            "Which of the states the engine is in.",
            {"awake": 1.0, "weights_offloaded": zero, "discard_all": zero},
            label="sleep_state",
        )
        yield self._gauge("kv_cache_usage_perc", "Share of KV-cache blocks in use.", used)
        yield self._counter("prefix_cache_queries", "Tokens looked up.", did.prompt_tokens)
        yield self._counter("prefix_cache_hits", "Tokens found.", zero)
        yield self._counter("external_prefix_cache_queries", "Tokens looked up elsewhere.", zero)
        yield self._counter("external_prefix_cache_hits", "Tokens found elsewhere.", zero)
        yield self._counter("mm_cache_queries", "Images and the like looked up.", zero)
        yield self._counter("mm_cache_hits", "Images and the like found.", zero)
        yield self._counter("num_preemptions", "Requests preempted.", did.preemptions)
        yield self._counter("prompt_tokens", "Prompt tokens prefilled.", did.prompt_tokens)
        yield self._counter(
            "prompt_tokens_by_source",
            "Prompt tokens by where their keys and values came from.",
            {
                "local_compute": did.prompt_tokens,
                "local_cache_hit": zero,
                "external_kv_transfer": zero,
            },
            label="source",
        )
        yield self._counter("prompt_tokens_cached", "Prompt tokens found in a cache.", zero)
        yield self._counter(
            "prompt_tokens_cached_by_source",
            "Prompt tokens found in a cache, by its tier.",
            dict.fromkeys(("device", "host", "p2p", "disk", "external_unspecified"), zero),
            label="source",
        )
        yield self._counter("generation_tokens", "Tokens generated.", did.generation_tokens)
        yield self._counter(
            "request_success",
            "Requests by how they ended.",
            self._finished,
            label="finished_reason",
        )
        yield self._counter(
            "admission_rejections",
            "Requests turned away by a bound on the queue.",
            dict.fromkeys(("max_num_queued_reqs", "max_num_queued_tokens"), zero),
            label="reason",
            common={"model_name": self._model},
        )
        for name, text, values in self._histograms():
            yield self._histogram(name, text, values)
        # One block more is a placeholder that no request ever gets.
        yield self._cache_config(usable_blocks + 1)

    def _histograms(self) -> Iterable[tuple[str, str, Histogram]]:
        return (
            ("request_prompt_tokens", "Prompt tokens.", self._prompt_tokens),
            ("request_generation_tokens", "Tokens generated.", self._generation_tokens),
            ("iteration_tokens_total", "Tokens of a step.", self._iteration_tokens),
            (
                "request_max_num_generation_tokens",
                "Most tokens of a request's completions.",
                self._max_generation_tokens,
            ),
            ("request_params_n", "Completions asked for.", self._completions),
            ("request_params_max_tokens", "Tokens asked for at most.", self._max_tokens),
            ("time_to_first_token_seconds", "Time to first token.", self._ttft_s),
            ("inter_token_latency_seconds", "Time from token to token.", self._itl_s),
            (
                "request_time_per_output_token_seconds",
                "A request's mean time from token to token.",
                self._time_per_output_token_s,
            ),
            ("e2e_request_latency_seconds", "From arrival to last token.", self._e2e_s),
            ("request_queue_time_seconds", "From arrival to the batch.", self._queue_s),
            ("request_inference_time_seconds", "From the batch to the end.", self._inference_s),
            ("request_prefill_time_seconds", "From the batch to the start.", self._prefill_s),
            ("request_decode_time_seconds", "From first to last token.", self._decode_s),
            ("request_num_preemptions", "How often it was preempted.", self._preemptions),
            (
                "request_prefill_kv_computed_tokens",
                "Prompt tokens not found in a cache.",
                self._prefilled_tokens,
            ),
        )

    def _gauge(
        self, name: str, text: str, value: float | Mapping[str, float], label: str = ""
    ) -> Metric:
        family = Metric(f"vllm:{name}", text, "gauge")
        for extra, number in _by_label(value, label):
            family.add_sample(family.name, self._labels | extra, number)
        return family

    def _counter(
        self,
        name: str,
        text: str,
        value: float | Mapping[str, float],
        label: str = "",
        common: Mapping[str, str] | None = None,
    ) -> Metric:
        family = Metric(f"vllm:{name}", text, "counter")
        labels = self._labels if common is None else dict(common)
        for extra, number in _by_label(value, label):
            family.add_sample(f"{family.name}_total", labels | extra, number)
            family.add_sample(f"{family.name}_created", labels | extra, self._created_s)
        return family

    def _histogram(self, name: str, text: str, values: Histogram) -> Metric:
        family = Metric(f"vllm:{name}", text, "histogram")
        count = 0
        for bound, count in values.buckets():
            labels = self._labels | {"le": floatToGoString(bound)}  # type: ignore[no-untyped-call]
            family.add_sample(f"{family.name}_bucket", labels, count)
        family.add_sample(f"{family.name}_count", self._labels, count)
        family.add_sample(f"{family.name}_sum", self._labels, values.sum)
        family.add_sample(f"{family.name}_created", self._labels, self._created_s)
        return family

    def _cache_config(self, blocks: int) -> Metric:
        tokens = blocks * BLOCK_TOKENS
        family = Metric("vllm:cache_config_info", "How the KV cache is configured.", "gauge")
        labels = _CACHE_CONFIG | {
            "engine": "0",
            "block_size": str(BLOCK_TOKENS),
            "effective_attention_block_size": str(BLOCK_TOKENS),
            "kv_cache_max_concurrency": str(tokens / self._max_model_len),
            "kv_cache_size_tokens": str(tokens),
            "num_gpu_blocks": str(blocks),
        }
        family.add_sample(family.name, labels, 1.0)
        return family


def _by_label(
    value: float | Mapping[str, float], label: str
) -> Iterable[tuple[dict[str, str], float]]:
    if isinstance(value, Mapping):
        return [({label: key}, number) for key, number in value.items()]
    return [({}, value)]


# What a server on one GPU with default flags says of itself.
_CACHE_CONFIG = {
    "_block_size_resolved": "True",
    "cache_dtype": "auto",
    "cache_hit_alignment_tokens": "None",
    "enable_mamba_shared_prefix_checkpoint": "False",
    "enable_prefix_caching": "True",
    "gpu_memory_utilization": "0.92",
    "hash_block_size": "None",
    "is_attention_free": "False",
    "kv_cache_dtype_skip_layers": "[]",
    "kv_cache_layout": "None",
    "kv_cache_memory_bytes": "None",
    "kv_offloading_backend": "native",
    "kv_offloading_size": "None",
    "kv_sharing_fast_prefill": "False",
    "mamba_block_size": "None",
    "mamba_cache_dtype": "auto",
    "mamba_cache_mode": "none",
    "mamba_page_size_padded": "None",
    "mamba_ssm_cache_dtype": "auto",
    "num_cpu_blocks": "None",
    "num_gpu_blocks_override": "None",
    "prefix_cache_retention_interval": "0",
    "prefix_caching_hash_algo": "sha256",
    "prefix_match_unit": "None",
    "replayssm_buffer_len": "16",
    "skip_page_size_padded": "None",
    "sliding_window": "None",
    "swa_bounded_replay": "True",
    "use_kda_recoverssm": "False",
    "use_replayssm": "False",
    "user_specified_block_size": "False",
}

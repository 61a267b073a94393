"""What a page of vLLM says, from 0.8.5 (V0) to 0.32.0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from wva_adapter.collect.engines.reading import Origin, Reading, add_up, known, ratio
from wva_adapter.collect.exposition import Page, Series, Wanted
from wva_adapter.core.snapshot import ReplicaSample
from wva_adapter.errors import CollectError

PREFIX = "vllm:"


@dataclass(frozen=True, slots=True)
class _Pick:
    """Series of one name, all of them or those in which a label has one of some values."""

    name: str
    label: str | None = None
    values: frozenset[str] = frozenset()

    def of(self, page: Page) -> tuple[Series, ...]:
        series = page.of(self.name)
        if self.label is None:
            return series
        return tuple(s for s in series if s.labels.get(self.label) in self.values)


def _pick(name: str, label: str | None = None, *values: str) -> _Pick:
    return _Pick(PREFIX + name, label, frozenset(values))


_SUCCESSES = ("stop", "length", "repetition")
_ABORTS = ("abort", "error")

# Of several names for one value, the first that is on the page counts: 0.10.2 has the old and the
# new one side by side. The simulator of llm-d writes finish_reason for finished_reason.
_FIELDS: Mapping[str, tuple[_Pick, ...]] = {
    "awake": (_pick("engine_sleep_state", "sleep_state", "awake"),),
    "kv_cache_usage": (_pick("kv_cache_usage_perc"), _pick("gpu_cache_usage_perc")),
    "running_requests": (_pick("num_requests_running"),),
    "queued_requests": (
        _pick("num_requests_waiting_by_reason", "reason", "capacity"),
        _pick("num_requests_waiting"),
    ),
    "deferred_requests": (_pick("num_requests_waiting_by_reason", "reason", "deferred"),),
    "prompt_tokens_total": (_pick("prompt_tokens_total"),),
    "computed_prompt_tokens_total": (
        _pick("prompt_tokens_by_source_total", "source", "local_compute"),
    ),
    "generation_tokens_total": (_pick("generation_tokens_total"),),
    "successes_total": (
        _pick("request_success_total", "finished_reason", *_SUCCESSES),
        _pick("request_success_total", "finish_reason", *_SUCCESSES),
    ),
    "aborts_total": (
        _pick("request_success_total", "finished_reason", *_ABORTS),
        _pick("request_success_total", "finish_reason", *_ABORTS),
    ),
    "preemptions_total": (_pick("num_preemptions_total"),),
    "ttft_sum_s": (_pick("time_to_first_token_seconds_sum"),),
    "ttft_count": (_pick("time_to_first_token_seconds_count"),),
    "itl_sum_s": (
        _pick("inter_token_latency_seconds_sum"),
        _pick("time_per_output_token_seconds_sum"),
    ),
    "itl_count": (
        _pick("inter_token_latency_seconds_count"),
        _pick("time_per_output_token_seconds_count"),
    ),
    "prefill_sum_s": (_pick("request_prefill_time_seconds_sum"),),
    "input_tokens_sum": (_pick("request_prompt_tokens_sum"),),
    "input_tokens_count": (_pick("request_prompt_tokens_count"),),
    "output_tokens_sum": (_pick("request_generation_tokens_sum"),),
    "output_tokens_count": (_pick("request_generation_tokens_count"),),
}
_CONFIG = _pick("cache_config_info")
_REJECTIONS = _pick("admission_rejections_total")
_LOCAL_HITS = (_pick("prefix_cache_hits_total"), _pick("gpu_prefix_cache_hits_total"))
_EXTERNAL_HITS = (_pick("external_prefix_cache_hits_total"),)

WANTED = Wanted(
    pick.name
    for picks in (*_FIELDS.values(), _LOCAL_HITS, _EXTERNAL_HITS, (_CONFIG, _REJECTIONS))
    for pick in picks
)


def read(page: Page, *, replica: str, at_s: float) -> Reading:
    """Return what the page says, rank by rank and in total.

    A page without the gauges of an engine that never served is well: they are ``None``, and
    ``ReplicaSample.unused`` tells that the engine is idle.

    Raises:
        CollectError: None of the page's series is one of vLLM's, or a rank is not a number.
    """
    if not page.series:
        raise CollectError(page.source, f"no series of vLLM among those with {PREFIX}")
    origins: dict[str, Origin] = {}
    ranks: dict[int, dict[str, Any]] = {}
    for name, picks in _FIELDS.items():
        if chosen := _choose(page, picks):
            origins[name] = Origin(chosen)
            for rank, values in _by_rank(page, chosen).items():
                ranks.setdefault(rank, {})[name] = _combine(name, values)
    if config := _once(page.of(_CONFIG.name)):
        origins["kv_cache_tokens"] = Origin(tuple(_capacity_labels(s) for s in config))
        for series in config:
            tokens = _capacity_tokens(series.labels)
            ranks.setdefault(_rank(page, series), {})["kv_cache_tokens"] = tokens
    if "computed_prompt_tokens_total" not in origins:
        _subtract_hits(page, ranks, origins)
    rejections = _once(page.of(_REJECTIONS.name))
    if rejections:
        origins["rejections_total"] = Origin(rejections)
    samples = {
        rank: ReplicaSample(replica=replica, at_s=at_s, **ranks[rank]) for rank in sorted(ranks)
    } or {0: ReplicaSample(replica=replica, at_s=at_s)}
    total = add_up(
        tuple(samples.values()),
        rejections_total=_sum(s.value for s in rejections) if rejections else None,
        model_names=_model_names(page),
    )
    return Reading(engine="vllm", ranks=samples, total=total, origins=origins)


def _choose(page: Page, picks: Iterable[_Pick]) -> tuple[Series, ...]:
    for pick in picks:
        if chosen := pick.of(page):
            return _once(chosen)
    return ()


def _once(series: tuple[Series, ...]) -> tuple[Series, ...]:
    """Return each series once: like Prometheus, the first of those with the same labels."""
    if len(series) < 2:
        return series
    firsts: dict[frozenset[tuple[str, str]], Series] = {}
    for one in series:
        firsts.setdefault(frozenset(one.labels.items()), one)
    return tuple(firsts.values())


def _rank(page: Page, series: Series) -> int:
    text = series.labels.get("engine")
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise CollectError(page.source, f"{series}: want a rank number as engine")
    return int(text)


def _by_rank(page: Page, series: Iterable[Series]) -> Mapping[int, list[float]]:
    values: dict[int, list[float]] = {}
    for one in series:
        values.setdefault(_rank(page, one), []).append(one.value)
    return values


def _combine(field: str, values: list[float]) -> float | bool | None:
    """Return what several series say of one field; a number that is none makes it unknown."""
    if field == "awake":
        return {1.0: True, 0.0: False}.get(values[0])
    if field == "kv_cache_usage":
        shares = [share for value in values if (share := ratio(value)) is not None]
        return max(shares) if len(shares) == len(values) else None
    return _sum(values)


def _sum(values: Iterable[float]) -> float | None:
    total = 0.0
    for value in values:
        if known(value) is None:
            return None
        total += value
    return total


def _number(text: str | None) -> int | None:
    # "None" stands where the engine has not decided yet, or never will.
    if text is None or not (text.isascii() and text.isdigit() and len(text) < 16):
        return None
    return int(text)


def _capacity_tokens(labels: Mapping[str, str]) -> int | None:
    """Return the KV cache's size: what the engine says, for hybrid caches are not size x count."""
    tokens = _number(labels.get("kv_cache_size_tokens"))
    if tokens is not None:
        return tokens
    blocks, size = _number(labels.get("num_gpu_blocks")), _number(labels.get("block_size"))
    return None if blocks is None or size is None else blocks * size


def _capacity_labels(series: Series) -> Series:
    """Return the series with the labels that were read, of the dozens that it has."""
    tokens = _number(series.labels.get("kv_cache_size_tokens")) is not None
    read_names = {"kv_cache_size_tokens"} if tokens else {"num_gpu_blocks", "block_size"}
    labels = {k: v for k, v in series.labels.items() if k in read_names | {"engine"}}
    return series._replace(labels=labels)


def _subtract_hits(
    page: Page, ranks: Mapping[int, dict[str, Any]], origins: dict[str, Origin]
) -> None:
    """Fill in the computed prompt tokens where only cache hits are counted.

    Without a counter of local hits nothing says how many were computed. One of external hits is
    missing where the version knows no such tier.
    """
    prompts, local = origins.get("prompt_tokens_total"), _choose(page, _LOCAL_HITS)
    if prompts is None or not local:
        return
    external = _choose(page, _EXTERNAL_HITS)
    origins["computed_prompt_tokens_total"] = Origin(prompts.plus, (*local, *external))
    hits = _by_rank(page, (*local, *external))
    for rank, values in ranks.items():
        prompt_tokens, cached = values.get("prompt_tokens_total"), _sum(hits.get(rank, ()))
        if prompt_tokens is not None and cached is not None and rank in hits:
            # Hits count when a request is scheduled, its tokens when its prefill ends.
            values["computed_prompt_tokens_total"] = max(0.0, prompt_tokens - cached)


def _model_names(page: Page) -> tuple[str, ...]:
    names = dict.fromkeys(
        name
        for series in page.series.values()
        for one in series
        if (name := one.labels.get("model_name"))
    )
    return tuple(names)

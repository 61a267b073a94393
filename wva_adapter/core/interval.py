"""What one replica did between two of its pages."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter, lt

from wva_adapter.core.snapshot import Phase, ReplicaSample, ReplicaState

WARM_UP_S = 60.0
"""So long after it became ready a replica still compiles, fills its caches and takes what waited."""

INHERITED_S = 300.0
"""So long after it became ready a queue in a replica may be one that others left to it."""

CAUGHT_UP_AFTER_S = 30.0
"""A replica in which nothing waits after so long has no queue of others."""

_COUNTERS = (
    "prompt_tokens_total",
    "generation_tokens_total",
    "successes_total",
    "aborts_total",
    "preemptions_total",
    "rejections_total",
    "ttft_sum_s",
    "ttft_count",
    "itl_sum_s",
    "itl_count",
    "prefill_sum_s",
    "input_tokens_sum",
    "output_tokens_sum",
    "output_tokens_count",
)
"""Counters that only a restart makes smaller. Computed prompt tokens are not among them: where an
engine does not count them they are a difference of two counters that move at different times."""

_counts = attrgetter(*_COUNTERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """One replica between two pages; ``None`` is unknown, 0 is zero.

    Attributes:
        replica: Its name.
        at_s: Unix time of the later page.
        span_s: Seconds between the pages, positive.
        batch: Mean number of decoding requests. Each adds a second of inter-token time per second.
        itl_s: Mean inter-token latency; ``None`` where no token followed another.
        itl_count: Inter-token gaps that ended.
        prompt_tokens_per_s: Prompt tokens computed per second, cached ones aside. Where the engine
            does not tell them apart, all of them.
        kv_tokens: Tokens in the KV cache, mean of both ends.
        prefilling: Mean number of requests in prefill; 0 where the engine does not say.
        started: Requests that got their first token.
        input_tokens: Prompt tokens computed for them.
        finished: Requests that got their last token.
        output_tokens: Tokens generated for those.
        arrivals: Requests that came, refused ones too; not below 0.
        running: Largest running count of both ends.
        steady: Whether that count is the same at both ends.
        queued_before: Requests that waited at the earlier page.
        queued: Requests that wait at the later page.
    """

    replica: str
    at_s: float
    span_s: float
    batch: float
    itl_s: float | None
    itl_count: float
    prompt_tokens_per_s: float
    kv_tokens: float | None
    prefilling: float
    started: float | None
    input_tokens: float | None
    finished: float | None
    output_tokens: float | None
    arrivals: float | None
    running: float | None
    steady: bool
    queued_before: float | None
    queued: float | None


def interval(before: ReplicaSample, now: ReplicaSample) -> Interval | None:
    """Return what happened between two pages of one replica.

    ``None`` where that cannot be told: no time passed, the engine restarted in between, or it
    counts no inter-token latencies or no prompt tokens.
    """
    span_s = now.at_s - before.at_s
    if not span_s > 0 or _restarted(before, now):
        return None
    itl_sum_s = _grown(before.itl_sum_s, now.itl_sum_s)
    itl_count = _grown(before.itl_count, now.itl_count)
    prompts = _grown(before.computed_prompt_tokens_total, now.computed_prompt_tokens_total)
    if prompts is None:
        prompts = _grown(before.prompt_tokens_total, now.prompt_tokens_total)
    if itl_sum_s is None or itl_count is None or prompts is None:
        return None
    prompts = max(0.0, prompts)
    prefill_sum_s = _grown(before.prefill_sum_s, now.prefill_sum_s)
    started = _grown(before.ttft_count, now.ttft_count)
    finished = _grown(before.output_tokens_count, now.output_tokens_count)
    running = [n for n in (before.running_requests, now.running_requests) if n is not None]
    return Interval(
        replica=now.replica,
        at_s=now.at_s,
        span_s=span_s,
        batch=itl_sum_s / span_s,
        itl_s=itl_sum_s / itl_count if itl_count > 0 else None,
        itl_count=itl_count,
        prompt_tokens_per_s=prompts / span_s,
        kv_tokens=_kv_tokens(before, now),
        prefilling=(prefill_sum_s or 0.0) / span_s,
        started=started,
        input_tokens=None if started is None else prompts,
        finished=finished,
        output_tokens=_grown(before.output_tokens_sum, now.output_tokens_sum),
        arrivals=_arrivals(before, now, started),
        running=max(running) if running else None,
        steady=len(running) == 2 and running[0] == running[1],
        queued_before=_waiting(before),
        queued=_waiting(now),
    )


def unusable(interval: Interval, state: ReplicaState, *, caught_up: bool = False) -> str | None:
    """Return why nothing should be learned of a replica's speed from an interval, in words.

    ``None`` where it says how fast the replica is. What is not known of the replica is no reason.

    Args:
        caught_up: Whether the replica had nothing waiting once, so that what waits is its own.
    """
    if state.phase is not Phase.READY:
        return f"{state.name} is {state.phase.value}"
    if state.ready_at_s is not None:
        age_s = interval.at_s - interval.span_s - state.ready_at_s
        if age_s < WARM_UP_S:
            return f"{state.name} was ready for {max(0.0, age_s):.0f} s only, want {WARM_UP_S:.0f}"
        if age_s < INHERITED_S and interval.queued_before and not caught_up:
            return f"{state.name} drains the {interval.queued_before:g} that waited when it came"
    if interval.itl_count <= 0 and interval.queued:
        return f"{state.name} is stuck: {interval.queued:g} wait and no token was generated"
    return None


def has_caught_up(page: ReplicaSample, state: ReplicaState) -> bool:
    """Return whether this page shows that a replica has served what waited when it came."""
    return (
        state.ready_at_s is not None
        and page.at_s - state.ready_at_s >= CAUGHT_UP_AFTER_S
        and _waiting(page) == 0
    )


def _restarted(before: ReplicaSample, now: ReplicaSample) -> bool:
    earlier, later = _counts(before), _counts(now)
    if None not in earlier and None not in later:
        return any(map(lt, later, earlier))
    return any(
        a is not None and b is not None and b < a for a, b in zip(earlier, later, strict=True)
    )


def _grown(before: float | None, now: float | None) -> float | None:
    return None if before is None or now is None else now - before


def _kv_tokens(before: ReplicaSample, now: ReplicaSample) -> float | None:
    usages = [u for u in (before.kv_cache_usage, now.kv_cache_usage) if u is not None]
    if now.kv_cache_tokens is None or not usages:
        return None
    return now.kv_cache_tokens * sum(usages) / len(usages)


def _waiting(sample: ReplicaSample) -> float | None:
    if sample.queued_requests is None:
        return None
    return sample.queued_requests + (sample.deferred_requests or 0.0)


def _arrivals(before: ReplicaSample, now: ReplicaSample, started: float | None) -> float | None:
    """Count those that began and those that joined the queue; who gave up is counted nowhere."""
    queue = _grown(_waiting(before), _waiting(now))
    if queue is None:
        return None
    if started is None:
        # Old engines count only who finished: then who came either left or is still present.
        started = _grown(before.successes_total, now.successes_total)
        running = _grown(before.running_requests, now.running_requests)
        if started is None or running is None:
            return None
        started += running
    refused = _grown(before.rejections_total, now.rejections_total) or 0.0
    return max(0.0, started + queue + refused)

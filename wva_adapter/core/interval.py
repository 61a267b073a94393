"""What one replica did between two of its pages."""

from __future__ import annotations

from operator import attrgetter
from typing import NamedTuple

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

# Looked up once: this is asked of every replica in every cycle, and members of enums are found slowly.
_READY = Phase.READY

_counts = attrgetter(*_COUNTERS)
_of_tuple = tuple.__new__


class Interval(NamedTuple):
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
        ttft_sum_s: Sum of the times to first token of those that got theirs.
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
    ttft_sum_s: float | None = None


def interval(before: ReplicaSample, now: ReplicaSample) -> Interval | None:
    """Return what happened between two pages of one replica.

    ``None`` where that cannot be told: no time passed, the engine restarted in between, or it
    counts no inter-token latencies or no prompt tokens.
    """
    span_s = now.at_s - before.at_s
    if not span_s > 0:
        return None
    # Written out, since this runs for every replica in every cycle.
    earlier, later = _counts(before), _counts(now)
    p0, g0, s0, a0, e0, r0, t0, n0, l0, c0, f0, i0, o0, d0 = earlier
    p1, g1, s1, a1, e1, r1, t1, n1, l1, c1, f1, i1, o1, d1 = later
    try:
        if (
            (p1 < p0 or g1 < g0 or s1 < s0 or a1 < a0 or e1 < e0 or r1 < r0 or t1 < t0)
            or (n1 < n0 or l1 < l0 or c1 < c0 or f1 < f0 or i1 < i0 or o1 < o0 or d1 < d0)
        ):  # fmt: skip
            return None
    except TypeError:
        # Something is not counted.
        if _restarted(earlier, later):
            return None
    if l0 is None or l1 is None or c0 is None or c1 is None:
        return None
    x0, x1 = before.computed_prompt_tokens_total, now.computed_prompt_tokens_total
    if x0 is None or x1 is None:
        x0, x1 = p0, p1
        if x0 is None or x1 is None:
            return None
    prompts = x1 - x0 if x1 > x0 else 0.0
    itl_sum_s, itl_count = l1 - l0, c1 - c0
    started = None if n0 is None or n1 is None else n1 - n0
    running0, running1 = before.running_requests, now.running_requests
    if running0 is None or running1 is None:
        running = running0 if running1 is None else running1
    else:
        running = max(running0, running1)
    queued0, queued1 = before.queued_requests, now.queued_requests
    if queued0 is not None and before.deferred_requests:
        queued0 += before.deferred_requests
    if queued1 is not None and now.deferred_requests:
        queued1 += now.deferred_requests
    # Not by its name: its arguments would be put in order first, for every replica in every cycle.
    return _of_tuple(
        Interval,
        (
            now.replica,
            now.at_s,
            span_s,
            itl_sum_s / span_s,
            itl_sum_s / itl_count if itl_count > 0 else None,
            itl_count,
            prompts / span_s,
            _kv_tokens(before, now),
            0.0 if f0 is None or f1 is None else (f1 - f0) / span_s,
            started,
            None if started is None else prompts,
            None if d0 is None or d1 is None else d1 - d0,
            None if o0 is None or o1 is None else o1 - o0,
            _arrivals(before, now, started, queued0, queued1),
            running,
            running0 is not None and running0 == running1,
            queued0,
            queued1,
            None if t0 is None or t1 is None else t1 - t0,
        ),
    )


def unusable(interval: Interval, state: ReplicaState, *, caught_up: bool = False) -> str | None:
    """Return why nothing should be learned of a replica's speed from an interval, in words.

    ``None`` where it says how fast the replica is. What is not known of the replica is no reason.

    Args:
        caught_up: Whether the replica had nothing waiting once, so that what waits is its own.
    """
    if state.phase is not _READY:
        return f"{state.name} is {state.phase.value}"
    if state.ready_at_s is not None:
        age_s = interval.at_s - interval.span_s - state.ready_at_s
        if age_s < WARM_UP_S:
            return f"{state.name} was ready for {max(0.0, age_s):.0f} s only, want {WARM_UP_S:.0f}"
        if age_s < INHERITED_S and interval.queued_before and not caught_up:
            return f"{state.name} drains the {interval.queued_before:g} that waited when it came"
    if interval.itl_count <= 0 and not interval.started and interval.queued:
        return f"{state.name} is stuck: {interval.queued:g} wait and no token was generated"
    return None


def has_caught_up(page: ReplicaSample, state: ReplicaState) -> bool:
    """Return whether this page shows that a replica has served what waited when it came."""
    return (
        state.ready_at_s is not None
        and page.at_s - state.ready_at_s >= CAUGHT_UP_AFTER_S
        and page.queued_requests == 0
        and not page.deferred_requests
    )


def _restarted(earlier: tuple[float | None, ...], later: tuple[float | None, ...]) -> bool:
    return any(
        a is not None and b is not None and b < a for a, b in zip(earlier, later, strict=True)
    )


def _grown(before: float | None, now: float | None) -> float | None:
    return None if before is None or now is None else now - before


def _kv_tokens(before: ReplicaSample, now: ReplicaSample) -> float | None:
    size, one, other = now.kv_cache_tokens, before.kv_cache_usage, now.kv_cache_usage
    if size is None:
        return None
    if one is None or other is None:
        usage = one if other is None else other
        return None if usage is None else size * usage
    return size * (one + other) / 2


def _arrivals(
    before: ReplicaSample,
    now: ReplicaSample,
    started: float | None,
    queued_before: float | None,
    queued: float | None,
) -> float | None:
    """Count those that began and those that joined the queue; who gave up is counted nowhere."""
    if queued_before is None or queued is None:
        return None
    if started is None:
        # Old engines count only who finished: then who came either left or is still present.
        started = _grown(before.successes_total, now.successes_total)
        running = _grown(before.running_requests, now.running_requests)
        if started is None or running is None:
            return None
        started += running
    came = started + (queued - queued_before)
    if now.rejections_total:
        came += _grown(before.rejections_total, now.rejections_total) or 0.0
    return came if came > 0 else 0.0

"""The largest rate of requests that one replica serves within its SLO, and what bounds it.

With λ requests per second of I uncached prompt tokens and O output tokens each, prefill takes the
share φ = λ·I·d of the time. A decoding request holds κ tokens of the KV cache on average, and
B = λ·O·ITL of them are in the batch. A token costs its own request a + b + c·κ. Prompts are
computed one after another, so that a request is in prefill for I·d/(1 − φ) and a step, in which
time other prompts land too, as in what the times were learned from. Then

    ITL = (a + b + c·κ + φ·I·d/((1 − φ)·O)) / (1 − φ·(1 + 1/O) − (b + c·κ)·λ·O)

All bounds but that on the time to first token turn into a largest λ in closed form; that one is
bisected, and only where it binds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from wva_adapter.core.capacity import Times
from wva_adapter.core.interval import Interval
from wva_adapter.core.queueing import mean_wait_s

PREFILL_SHARE = 0.9
"""Largest share of its time that a replica may spend on prompts."""

ITL_SHARE = 0.9
"""The mean inter-token latency stays below this share of its SLO."""

BATCH_SHARE = 0.9
"""Largest mean share of the batch's places."""

KV_SHARE = 0.9
"""Largest mean share of the KV cache."""

LEAST_SHARE = 0.2
"""However short a latency is asked for, a replica serves this share of what it could without: its
requests then take hardly longer than a lone one, and more replicas would not help them."""

SLOWEST, FASTEST = 0.3, 4.0
"""How many times as fast as believed at first a replica can turn out to be at first: what was seen
can be extrapolated to 0 or ∞."""

WIDENING = 30.0
"""After so many whole samples it can be as many times faster or slower again: what was seen for
minutes is no extrapolation, and an engine that nobody guessed would be overloaded for ever."""

_WIDEST = 6.0

DEFAULT_MAX_NUM_SEQS = 256
"""Places in the batch where nothing says."""

TYPICAL_INPUT_TOKENS, TYPICAL_OUTPUT_TOKENS = 1024.0, 256.0
"""Lengths of requests before any was seen."""

LEAST_RATE_PER_S = 1e-6
"""A replica that serves less is none: two requests a month."""

_SHAPE_GAIN = 0.15
_OUTPUT_GAIN = 0.05
"""Slower: who finishes first has a short answer, so while batches fill all answers look short."""

_SHAPE_REQUESTS = 200.0
"""Requests that a mean length comes from where few arrive: lengths vary by 80 % and more."""

_FEW_REQUESTS = 20.0
"""Requests that tell whether lengths have changed: their mean is off by a fifth by chance."""

_CHANGED = 1.6
"""So many times longer or shorter they are of another kind, and what is known is mostly theirs."""

_OUTLIER = 4.0
"""One request that is longer than so many others says no more than that: four of them on end do."""

_LENGTHS = ("input_tokens", "output_tokens", "newest_input_tokens", "newest_output_tokens")

_ROOM = 4
"""Requests that a replica can have, running and queued, in batches."""

_MANY_PLACES = 64

_SHORTEST_STEP_S = 1e-6
_PRECISION = 1e-4


@dataclass(frozen=True, slots=True)
class Shape:
    """Mean lengths of requests; ``None`` before one was seen.

    Attributes:
        input_tokens: Prompt tokens that must be computed; cached ones do not count.
        output_tokens: Tokens generated.
        newest_input_tokens: The same of about the last 20 requests.
        newest_output_tokens: The same of about the last 20 requests.
        inputs: Requests that ``input_tokens`` comes from, at most 200.
        outputs: Requests that ``output_tokens`` comes from, at most 200.

    Raises:
        ValueError: A length is negative or not finite, or comes from no requests.
    """

    input_tokens: float | None = None
    output_tokens: float | None = None
    newest_input_tokens: float | None = None
    newest_output_tokens: float | None = None
    inputs: float = _SHAPE_REQUESTS
    outputs: float = _SHAPE_REQUESTS

    def __post_init__(self) -> None:
        for name in _LENGTHS:
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"shape: {name} {value}, want a finite number of at least 0")
        for name in ("inputs", "outputs"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"shape: {name} {getattr(self, name)}, want a number above 0")

    def learn(self, intervals: Sequence[Interval]) -> Shape:
        """Return the shape after one cycle; without news of a length it stays."""
        began, computed = [], []
        ended, generated = [], []
        for one in intervals:
            started, finished = one.started, one.finished
            if started and (tokens := one.input_tokens) is not None:
                began.append(started)
                computed.append(tokens)
            if finished and (tokens := one.output_tokens) is not None:
                ended.append(finished)
                generated.append(tokens)
        inputs, newest_input, held = _mean(
            self.input_tokens, self.newest_input_tokens, self.inputs, computed, began, _SHAPE_GAIN
        )
        outputs, newest_output, kept = _mean(
            self.output_tokens,
            self.newest_output_tokens,
            self.outputs,
            generated,
            ended,
            _OUTPUT_GAIN,
        )
        return Shape(inputs, outputs, newest_input, newest_output, held, kept)


def _mean(
    before: float | None,
    newest: float | None,
    held: float,
    tokens: Sequence[float],
    requests: Sequence[float],
    most: float,
) -> tuple[float | None, float | None, float]:
    """Return a mean length, that of the newest requests, and how many the former comes from.

    Args:
        before: The mean so far.
        newest: That of the newest requests so far.
        held: How many ``before`` comes from.
        tokens: Sums of lengths.
        requests: Of so many requests each.
        most: The mean moves by no more than this share in one cycle.
    """
    if not requests:
        return before, newest, held
    count = math.fsum(requests)
    mean = math.fsum(tokens) / count
    if before is None:
        return mean, mean, _SHAPE_REQUESTS
    known = before if newest is None else newest
    # Of prompts that were all in the cache nothing is a multiple.
    seen = min(mean, _OUTLIER * max(known, before))
    newest = known + (1 - math.exp(-count / _FEW_REQUESTS)) * (seen - known)
    if not before <= newest * _CHANGED or not newest <= before * _CHANGED:
        held = min(held, _FEW_REQUESTS)
    gain = min(most, 1 - math.exp(-count / held))
    return before + gain * (mean - before), newest, min(_SHAPE_REQUESTS, held + count)


@dataclass(frozen=True, slots=True)
class Slo:
    """The operator's bounds on latency, as means over requests.

    Attributes:
        ttft_s: Time to first token.
        itl_s: Inter-token latency.

    Raises:
        ValueError: A bound is not positive.
    """

    ttft_s: float = 2.0
    itl_s: float = 0.060

    def __post_init__(self) -> None:
        for name in ("ttft_s", "itl_s"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"slo: {name} {value}, want a positive number")


@dataclass(frozen=True, slots=True)
class ServiceRate:
    """What one replica serves within the SLO.

    Attributes:
        rate_per_s: Requests per second, positive.
        binding: Which bound makes it no larger, in words with its numbers.
        itl_s: Mean inter-token latency expected at that rate; infinite where the rate is more
            than the times allow, which only ``clamped`` can make.
        ttft_s: Mean time to first token expected at that rate.
        batch: Mean number of decoding requests expected at that rate.
        clamped: Whether the times say otherwise and the rate was kept near the prior's.
    """

    rate_per_s: float
    binding: str
    itl_s: float
    ttft_s: float
    batch: float
    clamped: bool = False


def service_rate(
    times: Times,
    shape: Shape,
    slo: Slo,
    *,
    max_num_seqs: int | None,
    kv_cache_tokens: float | None,
    context_tokens: float | None,
    prior: Times,
    weight: float = 0.0,
) -> ServiceRate:
    """Return the largest rate at which every bound holds.

    Args:
        times: What the parts of a step take.
        shape: What requests are like.
        slo: What latency is allowed.
        max_num_seqs: Places in the batch; ``None`` where nothing says.
        kv_cache_tokens: Size of the KV cache; ``None`` is no bound.
        context_tokens: KV-cache tokens of a decoding request; ``None`` is a prompt and half an
            answer.
        prior: Times that were believed at first; the rate is that of a replica at most ``FASTEST``
            times as fast, and at least ``SLOWEST`` times, or more as ``weight`` allows.
        weight: Whole samples that ``times`` come from, the prior's aside.
    """
    bounds = _Bounds.of(shape, slo, max_num_seqs, kv_cache_tokens, context_tokens)
    found = bounds.largest(times)
    # Slower times never give a larger rate, so most need no look at what the prior would give.
    fast, slow = _speeds(weight)
    if not times.at_least(prior, 1 / fast):
        highest = bounds.most_per_s(prior.scaled(1 / fast))
        if found.rate_per_s > highest:
            return bounds.at(times, highest, _kept(fast, found))
    if not times.at_most(prior, 1 / slow):
        lowest = bounds.most_per_s(prior.scaled(1 / slow))
        if found.rate_per_s < lowest:
            return bounds.at(times, lowest, _kept(slow, found))
    return found


def believable(seconds: float, prior_s: float, weight: float) -> tuple[float, str | None]:
    """Return one learned time as near to what was believed at first as ``service_rate`` keeps it.

    Args:
        seconds: What was learned.
        prior_s: What was believed at first, positive.
        weight: Whole samples that ``seconds`` comes from.

    Returns:
        The time, and in words what it is that of; ``None`` where it is the learned one.
    """
    fast, slow = _speeds(weight)
    kept_s = min(max(seconds, prior_s / fast), prior_s / slow)
    if kept_s == seconds:
        return seconds, None
    speed = fast if kept_s > seconds else slow
    return kept_s, f"a replica {speed:.3g} times as fast as believed at first"


def _speeds(weight: float) -> tuple[float, float]:
    """Return how many times as fast and as slow as believed a replica may be."""
    widened = min(_WIDEST, 1 + weight / WIDENING)
    return FASTEST**widened, SLOWEST**widened


def expected_itl_s(
    times: Times, shape: Shape, rate_per_s: float, *, context_tokens: float | None
) -> float:
    """Return the mean inter-token latency of a replica that serves so many requests per second.

    Infinite where that is more than the times allow; arguments as of ``service_rate``.
    """
    bounds = _Bounds.of(shape, Slo(), None, None, context_tokens)
    return _Step.of(times, bounds).itl_s(rate_per_s)


def _kept(speed: float, found: ServiceRate) -> str:
    return (
        f"a replica {speed:.3g} times as fast as believed at first: "
        f"learned {found.rate_per_s:.3g}/s, {found.binding}"
    )


@dataclass(frozen=True, slots=True)
class _Bounds:
    """Everything that bounds the rate but the times."""

    input_tokens: float
    output_tokens: float
    slo: Slo
    places: int
    kv_cache_tokens: float | None
    context_tokens: float

    @classmethod
    def of(
        cls,
        shape: Shape,
        slo: Slo,
        max_num_seqs: int | None,
        kv_cache_tokens: float | None,
        context_tokens: float | None,
    ) -> _Bounds:
        inputs = TYPICAL_INPUT_TOKENS if shape.input_tokens is None else shape.input_tokens
        outputs = TYPICAL_OUTPUT_TOKENS if shape.output_tokens is None else shape.output_tokens
        # A request generates at least one token.
        outputs = max(1.0, outputs)
        return cls(
            inputs,
            outputs,
            slo,
            max(1, DEFAULT_MAX_NUM_SEQS if max_num_seqs is None else max_num_seqs),
            kv_cache_tokens,
            inputs + outputs / 2 if context_tokens is None else context_tokens,
        )

    def largest(self, times: Times) -> ServiceRate:
        """Return the largest rate within the bounds."""
        step = _Step.of(times, self)
        rate, bound, ttft_s = self._most(step)
        itl_s = step.itl_s(rate)
        batch = rate * self.output_tokens * itl_s
        return ServiceRate(rate, self._words(bound, itl_s, ttft_s, batch), itl_s, ttft_s, batch)

    def most_per_s(self, times: Times) -> float:
        """Return the largest rate alone."""
        return self._most(_Step.of(times, self))[0]

    def _most(self, step: _Step) -> tuple[float, str, float]:
        """Return the largest rate, what bounds it, and the time to first token at it."""
        rate, bound = step.rate_of_batch(BATCH_SHARE * self.places), "places"
        if self.kv_cache_tokens and self.context_tokens > 0:
            most = step.rate_of_batch(KV_SHARE * self.kv_cache_tokens / self.context_tokens)
            if most < rate:
                rate, bound = most, "kv"
        if step.prefill_s > 0 and (most := PREFILL_SHARE / step.prefill_s) < rate:
            rate, bound = most, "prefill"
        # Numbers too small to be halved would never let the search below end.
        least = max(LEAST_RATE_PER_S, LEAST_SHARE * min(rate, step.saturated_per_s()))
        limit_s = ITL_SHARE * self.slo.itl_s
        if (most := max(least, step.rate_of_itl(limit_s))) < rate:
            rate, bound = most, "itl"
        rate = max(rate, LEAST_RATE_PER_S)
        ttft_s = self._ttft_s(step, rate)
        if ttft_s > self.slo.ttft_s and rate > least:
            rate, bound = self._bisect(step, least, rate), "ttft"
            ttft_s = self._ttft_s(step, rate)
        return rate, bound, ttft_s

    def at(self, times: Times, rate: float, binding: str) -> ServiceRate:
        """Return what is expected at a rate that something else has set."""
        step = _Step.of(times, self)
        itl_s = step.itl_s(rate)
        batch = rate * self.output_tokens * itl_s
        return ServiceRate(rate, binding, itl_s, self._ttft_s(step, rate), batch, clamped=True)

    def _words(self, bound: str, itl_s: float, ttft_s: float, batch: float) -> str:
        if bound == "places":
            return f"{batch:.0f} of {self.places} places in the batch"
        if bound == "kv":
            return (
                f"{batch:.0f} requests of {self.context_tokens:.0f} tokens in a KV cache of "
                f"{self.kv_cache_tokens or 0:.0f}"
            )
        if bound == "prefill":
            return f"prompts take {PREFILL_SHARE:.0%} of the time"
        if bound == "itl":
            return _latency("inter-token", itl_s, self.slo.itl_s, ITL_SHARE, batch)
        return _latency("first-token", ttft_s, self.slo.ttft_s, 1.0, batch)

    def _ttft_s(self, step: _Step, rate: float) -> float:
        """Return the mean time to first token: a place, the step in progress, prompts in line."""
        itl_s = step.itl_s(rate)
        if itl_s == math.inf:
            return math.inf
        return (
            self._place_s(step, rate, itl_s) + itl_s + step.prefill_s / (1 - rate * step.prefill_s)
        )

    def _place_s(self, step: _Step, rate: float, itl_s: float) -> float:
        """Return how long a request waits for a place in the batch."""
        batch = rate * self.output_tokens * itl_s
        if self.places >= _MANY_PLACES and batch + 6 * math.sqrt(batch) < self.places:
            # Six standard deviations of a Poisson number: nobody waits.
            return 0.0
        import numpy as np

        running = np.arange(1, self.places + 1)
        step_s = step.alone_s + (running - 1) * step.grows_s
        rates = running / (running * step.prefill_s + self.output_tokens * step_s)
        return mean_wait_s(rate, rates, _ROOM * self.places)

    def _bisect(self, step: _Step, lowest: float, highest: float) -> float:
        """Return the largest rate between two whose time to first token is within the SLO."""
        while highest - lowest > _PRECISION * highest:
            middle = (lowest + highest) / 2
            if self._ttft_s(step, middle) > self.slo.ttft_s:
                highest = middle
            else:
                lowest = middle
        return lowest


class _Step(NamedTuple):
    """What one step takes with requests of one shape.

    Attributes:
        prefill_s: Seconds that a prompt takes.
        alone_s: Seconds of a lone request's step.
        grows_s: Seconds that one more request adds.
        output_tokens: Steps that a request takes.
        busy_s: Seconds of a busy replica that one request takes, beside what all share.
    """

    prefill_s: float
    alone_s: float
    grows_s: float
    output_tokens: float
    busy_s: float

    @classmethod
    def of(cls, times: Times, bounds: _Bounds) -> _Step:
        grows_s = times.b_s + times.c_s * bounds.context_tokens
        prefill_s, output_tokens = bounds.input_tokens * times.d_s, bounds.output_tokens
        return cls(
            prefill_s,
            # No step takes no time, whatever was learned.
            max(_SHORTEST_STEP_S, times.a_s + grows_s),
            grows_s,
            output_tokens,
            prefill_s * (1 + 1 / output_tokens) + output_tokens * grows_s,
        )

    def saturated_per_s(self) -> float:
        """Return the rate at which the batch grows without end."""
        return 1 / self.busy_s if self.busy_s > 0 else math.inf

    def itl_s(self, rate: float) -> float:
        """Return the mean inter-token latency at a rate; infinite where it is too high."""
        prefilling = rate * self.prefill_s
        idle = 1 - rate * self.busy_s
        if not (prefilling < 1 and idle > 0):
            return math.inf
        queued_s = prefilling * self.prefill_s / ((1 - prefilling) * self.output_tokens)
        return (self.alone_s + queued_s) / idle

    def rate_of_itl(self, limit_s: float) -> float:
        """Return the rate with this inter-token latency; 0 where even a lone request has more."""
        if limit_s <= self.alone_s:
            return 0.0
        # The latency's equation times both denominators is a parabola in the rate.
        p, n, busy = self.prefill_s, self.alone_s, self.busy_s
        return _smaller_root(
            limit_s * busy * p,
            limit_s * busy + (limit_s - n) * p + p * p / self.output_tokens,
            limit_s - n,
        )

    def rate_of_batch(self, batch: float) -> float:
        """Return the rate at which so many requests decode."""
        p, steps_s, busy = self.prefill_s, self.output_tokens * self.alone_s, self.busy_s
        return _smaller_root(
            batch * busy * p + (steps_s - p) * p,
            batch * (busy + p) + steps_s,
            batch,
        )


def _smaller_root(square: float, linear: float, constant: float) -> float:
    """Return the smaller positive x with square·x² − linear·x + constant = 0."""
    if linear <= 0:
        return math.inf
    # Relative to the linear part, so that tiny times do not vanish when squared.
    ratio = 4 * (square / linear) * (constant / linear)
    return 2 * (constant / linear) / (1 + math.sqrt(max(0.0, 1 - ratio)))


def _latency(name: str, expected_s: float, slo_s: float, share: float, batch: float) -> str:
    """Say which latency binds at which batch."""
    if expected_s <= slo_s * share * (1 + 2 * _PRECISION):
        return (
            f"{name} latency of {duration(expected_s)} at a batch of {batch:.0f}, "
            f"SLO {duration(slo_s)}"
        )
    return (
        f"{name} latency of {duration(expected_s)} at a batch of {batch:.0f}: SLO "
        f"{duration(slo_s)} cannot be kept, so {LEAST_SHARE:.0%} of what the "
        "replica could serve without it counts"
    )


def duration(seconds: float) -> str:
    """Return a latency as people write it: 1.25 s, 60 ms."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"

"""How long a replica's steps take, learned from its own counters.

A step of an engine costs ``a + b·B + c·K`` with B requests decoding and K tokens in the KV cache,
and each prompt token that is computed adds d. A decoding request gets one token per step, so over
an interval in which P prompt tokens were computed per second and N requests were in prefill

    ITL = a + b·B + c·K + d·P·ITL·(1 + N/B)

where the last factor says that prompts also land in the steps of requests that came while another
was being prefilled. This is linear in the four times, which are at least 0: least squares over
what the counters say, starting from a guess that may be off as a whole rather than in each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from wva_adapter.core.interval import Interval
from wva_adapter.core.nnls import nonnegative

FEWEST_GAPS = 20
"""An interval with fewer inter-token gaps says too little."""

FULL_GAPS = 200
"""From so many inter-token gaps on an interval weighs as one whole sample."""

MEMORY = 0.9993
"""The share of what is known that one more sample leaves: 1,400 samples, or two replica hours."""

FAST_MEMORY = 0.993
"""The same while lengths are other than those that were learned from: ten times faster."""

RECENT = 0.99
"""The same for the error that is told: about the last 100 samples."""

CONTRADICTORY_ABOVE = 0.5
"""Relative error of recent samples above which no four times explain what the counters say."""

_FEWEST_RECENT = 10.0
"""Whole samples before an error can be told."""

_CONTEXT_GAIN = 0.02
_OUTSIDE = 1.5
"""A mean length this many times above or below what was learned from is another load."""

_NOISE = 0.1
"""How far a sample's inter-token latency typically lies from its times, as a share (measured on a
real engine)."""

_SPEED_DOUBT, _EACH_DOUBT = 1.0, 0.5
"""How far the prior may be off, as shares of its times: by a factor that is common to all, a
machine slower or faster as a whole, and by one of each time's own."""

_TYPICAL = (1.0, 40.0, 48_000.0, 90.0)
_LEAST_PART = 0.05
"""A prior's time counts as no smaller than what makes this part of a typical step, or it could
never be learned."""

Moments = tuple[float, ...]
"""Weighted sums of the products of (1, B, K, prompt tokens per step, ITL): the 15 entries of the
upper triangle, row by row. The last column is what is explained, the others explain it."""

_NOTHING: Moments = (0.0,) * 15


@dataclass(frozen=True, slots=True)
class Times:
    """What the parts of one step take.

    Attributes:
        a_s: Seconds per step, whatever is in it.
        b_s: Seconds per decoding request in it.
        c_s: Seconds per token in the KV cache.
        d_s: Seconds per prompt token computed in it.

    Raises:
        ValueError: A time is negative or not finite.
    """

    a_s: float
    b_s: float
    c_s: float
    d_s: float

    def __post_init__(self) -> None:
        for name in ("a_s", "b_s", "c_s", "d_s"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"times: {name} {value}, want a finite number of at least 0")

    def scaled(self, factor: float) -> Times:
        """Return the times of a machine on which everything takes ``factor`` times as long."""
        return Times(self.a_s * factor, self.b_s * factor, self.c_s * factor, self.d_s * factor)


@dataclass(frozen=True, slots=True)
class Lengths:
    """The mean length of requests, and which means there were while the times were learned.

    Attributes:
        mean: Tokens per request over about the last 100 requests.
        count: Requests that it comes from, at most 100.
        low: Smallest mean that was learned from; ``low > high`` before the first.
        high: Largest mean that was learned from.
    """

    mean: float = 0.0
    count: float = 0.0
    low: float = math.inf
    high: float = 0.0

    @property
    def outside(self) -> bool:
        """Whether the mean is more than half above, or as far below, what was learned from."""
        return self.low <= self.high and not (
            self.low <= self.mean * _OUTSIDE and self.mean <= self.high * _OUTSIDE
        )

    def learn(self, requests: float, tokens: float) -> Lengths:
        """Return them with some more requests, which have so many tokens together."""
        if not (requests > 0 and tokens > 0):
            return self
        mean = self.mean + (tokens / requests - self.mean) * requests / (self.count + requests)
        count = min(_REQUESTS, self.count + requests)
        if count < _FEWEST_REQUESTS:
            return replace(self, mean=mean, count=count)
        if self.low > self.high:
            return Lengths(mean, count, mean, mean)
        return replace(self, mean=mean, count=count)

    def moved(self, gain: float) -> Lengths:
        """Return them after one more sample: the range follows the mean as its memory fades."""
        if self.low > self.high:
            return self
        low = self.low + gain * (self.mean - self.low)
        high = self.high + gain * (self.mean - self.high)
        if not self.outside:
            low, high = min(low, self.mean), max(high, self.mean)
        return replace(self, low=low, high=high)


_REQUESTS = 100.0
_FEWEST_REQUESTS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What is known of one variant's times; a value, made by ``fresh_fit`` and ``learn``.

    Attributes:
        prior: The times that it began with.
        times: The times that explain best what was seen, ``prior`` at first.
        moments: What they come from, the prior's share in it.
        recent: What the last samples alone say.
        recent_weight: Whole samples in ``recent``, at most 100.
        weight: Whole samples in ``moments``, the prior's aside.
        samples: Samples ever learned from.
        context_tokens: KV-cache tokens per decoding request; ``None`` before the first sample.
            Long requests are present longer, so it is more than half of their tokens.
        input_lengths: Prompt tokens computed per request.
        output_lengths: Tokens generated per request.
        full_batch: Running count at which a batch stays while requests wait; ``None`` if none was
            seen to, or if more ran later.
    """

    prior: Times
    times: Times
    moments: Moments
    recent: Moments = _NOTHING
    recent_weight: float = 0.0
    weight: float = 0.0
    samples: int = 0
    context_tokens: float | None = None
    input_lengths: Lengths = Lengths()
    output_lengths: Lengths = Lengths()
    full_batch: float | None = None

    @property
    def relative_error(self) -> float | None:
        """The root mean square of how far recent inter-token latencies are from the times' own.

        A share of the latency; ``None`` before there are enough samples.
        """
        total = self.recent[14]
        if self.recent_weight < _FEWEST_RECENT or total <= 0:
            return None
        return math.sqrt(max(0.0, _residual(self.recent, self.times)) / total)

    @property
    def contradictory(self) -> bool:
        """Whether no times explain what was seen, so that nothing should be concluded from them."""
        error = self.relative_error
        return error is not None and error > CONTRADICTORY_ABOVE

    @property
    def forgetting(self) -> bool:
        """Whether requests are of other lengths than those that the times were learned from."""
        return self.input_lengths.outside or self.output_lengths.outside

    def learn(self, intervals: Sequence[Interval]) -> Fit:
        """Return the fit with what these intervals say, in their order.

        Those with too few tokens, or whose KV cache is unknown, change nothing but what is known
        of requests' lengths.
        """
        started = input_tokens = finished = output_tokens = 0.0
        full_batch, context = self.full_batch, self.context_tokens
        added, samples, weight = [0.0] * 15, 0, 0.0
        for one in intervals:
            full_batch = _full_batch(full_batch, one)
            if one.started is not None and one.input_tokens is not None:
                started, input_tokens = started + one.started, input_tokens + one.input_tokens
            if one.finished is not None and one.output_tokens is not None:
                finished, output_tokens = finished + one.finished, output_tokens + one.output_tokens
            if one.itl_s is None or one.kv_tokens is None or one.itl_count < FEWEST_GAPS:
                continue
            if not (one.batch > 0 and one.itl_s > 0):
                continue
            share = min(1.0, one.itl_count / FULL_GAPS)
            _add_moments(added, one, share / one.itl_s**2)
            samples, weight = samples + 1, weight + share
            held = one.kv_tokens / one.batch
            context = (
                held if context is None else context + _CONTEXT_GAIN * share * (held - context)
            )
        inputs = self.input_lengths.learn(started, input_tokens)
        outputs = self.output_lengths.learn(finished, output_tokens)
        if not samples:
            return replace(
                self, input_lengths=inputs, output_lengths=outputs, full_batch=full_batch
            )
        # Samples of one cycle are of one age: they are added together, and fade together.
        fading = FAST_MEMORY if inputs.outside or outputs.outside else MEMORY
        memory = fading**samples
        # What a memory of this length can hold: entering the fast one forgets at once what it
        # would never have kept.
        kept = memory * min(1.0, 1 / ((1 - fading) * self.weight)) if self.weight > 0 else memory
        recent_kept = RECENT**samples
        moments = tuple(
            kept * m + (1 - kept) * p + n
            for m, p, n in zip(self.moments, _prior_moments(self.prior), added, strict=True)
        )
        return Fit(
            prior=self.prior,
            times=_best_times(moments),
            moments=moments,
            recent=tuple(recent_kept * m + n for m, n in zip(self.recent, added, strict=True)),
            recent_weight=recent_kept * self.recent_weight + weight,
            weight=kept * self.weight + weight,
            samples=self.samples + samples,
            context_tokens=context,
            input_lengths=inputs.moved(1 - memory),
            output_lengths=outputs.moved(1 - memory),
            full_batch=full_batch,
        )


def _full_batch(known: float | None, one: Interval) -> float | None:
    """Return the places in the batch, as far as this interval shows them.

    Requests also wait while many prompts are computed, with places free: then the count moves.
    """
    if one.running is None:
        return known
    if one.steady and one.queued_before and one.queued:
        return max(one.running, known or 0.0)
    return None if known is not None and one.running > known else known


def fresh_fit(prior: Times) -> Fit:
    """Return what is known before anything was seen."""
    return Fit(prior=prior, times=prior, moments=_prior_moments(prior))


@lru_cache(maxsize=4096)
def _prior_moments(prior: Times) -> Moments:
    """Return the moments of samples that leave the prior in as much doubt as it deserves.

    With D the squared doubts in each time and s that in the common factor, the covariance is
    D + s²·θθᵀ, and its inverse by Sherman and Morrison what samples of so much noise add up to.
    """
    theta = (prior.a_s, prior.b_s, prior.c_s, prior.d_s)
    step_s = math.fsum(t * x for t, x in zip(theta, _TYPICAL, strict=True)) or 1e-3
    sure = [
        (_NOISE / (_EACH_DOUBT * max(t, _LEAST_PART * step_s / x))) ** 2
        for t, x in zip(theta, _TYPICAL, strict=True)
    ]
    # In units of the noise: samples count with their relative errors alone.
    spread = (_SPEED_DOUBT / _NOISE) ** 2
    pull = [d * t for d, t in zip(sure, theta, strict=True)]
    share = spread / (1 + spread * math.fsum(p * t for p, t in zip(pull, theta, strict=True)))
    gram = [
        [(sure[i] if i == j else 0.0) - share * pull[i] * pull[j] for j in range(4)]
        for i in range(4)
    ]
    right = [math.fsum(g * t for g, t in zip(line, theta, strict=True)) for line in gram]
    square = math.fsum(r * t for r, t in zip(right, theta, strict=True))
    return (
        *(*gram[0], right[0]),
        *(*gram[1][1:], right[1]),
        *(*gram[2][2:], right[2]),
        *(gram[3][3], right[3]),
        square,
    )


def _add_moments(sums: list[float], one: Interval, weight: float) -> None:
    itl_s, batch, kv = one.itl_s or 0.0, one.batch, one.kv_tokens or 0.0
    prompts = one.prompt_tokens_per_s * itl_s * (1 + one.prefilling / batch)
    wb, wk, wp, wy = weight * batch, weight * kv, weight * prompts, weight * itl_s
    sums[0] += weight
    sums[1] += wb
    sums[2] += wk
    sums[3] += wp
    sums[4] += wy
    sums[5] += wb * batch
    sums[6] += wb * kv
    sums[7] += wb * prompts
    sums[8] += wb * itl_s
    sums[9] += wk * kv
    sums[10] += wk * prompts
    sums[11] += wk * itl_s
    sums[12] += wp * prompts
    sums[13] += wp * itl_s
    sums[14] += wy * itl_s


def _best_times(moments: Moments) -> Times:
    g00, g01, g02, g03, r0, g11, g12, g13, r1, g22, g23, r2, g33, r3, _ = moments
    gram = ((g00, g01, g02, g03), (g01, g11, g12, g13), (g02, g12, g22, g23), (g03, g13, g23, g33))
    return Times(*nonnegative(gram, (r0, r1, r2, r3)))


def _residual(moments: Moments, times: Times) -> float:
    """Return the weighted sum of squares that the times leave unexplained."""
    v = (times.a_s, times.b_s, times.c_s, times.d_s, -1.0)
    places = ((i, j) for i in range(5) for j in range(i, 5))
    return math.fsum(
        (1 if i == j else 2) * m * v[i] * v[j] for (i, j), m in zip(places, moments, strict=True)
    )

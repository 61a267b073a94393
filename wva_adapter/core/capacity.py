"""How long a replica's steps take, learned from its own counters.

A step of an engine costs ``a + b·B + c·K`` with B requests decoding and K tokens in the KV cache,
and each prompt token that is computed adds d. A decoding request gets one token per step, so over
an interval in which P prompt tokens were computed per second and N requests were in prefill

    ITL = a + b·B + c·K + d·P·ITL·(1 + N/B)

where the last factor says that prompts also land in the steps of requests that came while another
was being prefilled. A request of I prompt tokens that is in prefill itself gets its first token
after the step that computes it and those which came with it:

    prefill = a + b·B + c·K + d·I·(1 + N)

Both are linear in the four times, which are at least 0: least squares over what the counters say,
starting from a guess that counts as six typical samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from wva_adapter.core.change import replace
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

_FULL_PROMPTS, _PROMPTS_SHARE = 5.0, 0.1
"""From so many prompts on their mean time in prefill weighs as this share of a whole sample."""

_CONTEXT_GAIN = 0.02
_OUTSIDE = 1.5
"""A mean length this many times above or below what was learned from is another load."""

_NOISE = 0.1
"""How far one sample's inter-token latency typically lies from its times, as a share (measured on
a real engine)."""

_SPEED_DOUBT, _EACH_DOUBT = 1.0, 0.2
"""How far the prior may be off: by a factor common to all times, a machine slower or faster as a
whole, and by one of each time's own; shares of the times."""

_PART_DOUBT = 0.05
"""How far what the prior says of one time may be off, as a share of the steps that were seen."""

_SURE, _SPEED = _NOISE**2, (_SPEED_DOUBT / _NOISE) ** 2
"""Both doubts in units of one sample's noise."""

_TYPICAL = (1.0, 40.0, 48_000.0, 90.0)
_LEAST_PART = 0.05
"""A prior's time counts as no smaller than what makes this part of a typical step, or it could not
be learned."""

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
        # One look where all is well, since every variant's are made anew in every cycle.
        if (
            0 <= self.a_s < math.inf
            and 0 <= self.b_s < math.inf
            and 0 <= self.c_s < math.inf
            and 0 <= self.d_s < math.inf
        ):
            return
        for name in ("a_s", "b_s", "c_s", "d_s"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"times: {name} {value}, want a finite number of at least 0")

    def scaled(self, factor: float) -> Times:
        """Return the times of a machine on which everything takes ``factor`` times as long."""
        return Times(self.a_s * factor, self.b_s * factor, self.c_s * factor, self.d_s * factor)

    def at_least(self, other: Times, factor: float) -> bool:
        """Return whether every part takes ``factor`` times as long as the other's, or longer."""
        return (
            self.a_s >= other.a_s * factor
            and self.b_s >= other.b_s * factor
            and self.c_s >= other.c_s * factor
            and self.d_s >= other.d_s * factor
        )

    def at_most(self, other: Times, factor: float) -> bool:
        """Return whether no part takes longer than ``factor`` times the other's."""
        return (
            self.a_s <= other.a_s * factor
            and self.b_s <= other.b_s * factor
            and self.c_s <= other.c_s * factor
            and self.d_s <= other.d_s * factor
        )


@dataclass(frozen=True, slots=True)
class Lengths:
    """The mean length of requests now, and that of those from which the times were learned.

    Attributes:
        mean: Tokens per request over about the last 100 requests.
        count: Requests that it comes from, at most 100.
        learned: The mean over what the times come from; ``None`` before there were 30 requests.
    """

    mean: float = 0.0
    count: float = 0.0
    learned: float | None = None

    @property
    def outside(self) -> bool:
        """Whether the mean is more than half above, or as far below, what was learned from."""
        return self.learned is not None and not (
            self.learned <= self.mean * _OUTSIDE and self.mean <= self.learned * _OUTSIDE
        )

    def learn(self, requests: float, tokens: float) -> Lengths:
        """Return them with some more requests, which have so many tokens together."""
        if not (requests > 0 and tokens > 0):
            return self
        mean = self.mean + (tokens / requests - self.mean) * requests / (self.count + requests)
        return Lengths(mean, min(_REQUESTS, self.count + requests), self.learned)

    def moved(self, gain: float) -> Lengths:
        """Return them after samples that are so large a part of what is remembered."""
        if self.learned is not None:
            learned = self.learned + gain * (self.mean - self.learned)
        elif self.count >= _FEWEST_REQUESTS:
            learned = self.mean
        else:
            return self
        return Lengths(self.mean, self.count, learned)


_REQUESTS = 100.0
_FEWEST_REQUESTS = 30.0


class Prompts(NamedTuple):
    """What prompts took, one after another, with nothing beside them.

    Attributes:
        requests: How many there were.
        tokens: Tokens computed of each.
        seconds: Time that each took.
    """

    requests: float
    tokens: float
    seconds: float


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
        added = _add_up(intervals, self.full_batch, self.times)
        full_batch = added.full_batch
        inputs = self.input_lengths.learn(added.started, added.input_tokens)
        outputs = self.output_lengths.learn(added.finished, added.output_tokens)
        if not added.samples:
            return replace(
                self, input_lengths=inputs, output_lengths=outputs, full_batch=full_batch
            )
        each = FAST_MEMORY if inputs.outside or outputs.outside else MEMORY
        memory, recent = each**added.samples, RECENT**added.samples
        # No more than a memory of this length can hold: the fast one forgets at once what it
        # would never have kept.
        kept = memory * min(1.0, 1 / max(1.0, (1 - each) * self.weight))
        left = 1 - kept
        first = _prior_moments(self.prior)
        moments = tuple(
            [
                kept * m + left * p + n + t
                for m, p, n, t in zip(
                    self.moments,
                    first,
                    added.moments,
                    _add_up_prompts(intervals, inputs.mean, self.times),
                    strict=True,
                )
            ]
        )
        # A plain mean until there are enough: the first samples are of a batch that fills up.
        gain = max(
            1 - (1 - _CONTEXT_GAIN) ** added.weight, added.weight / (self.weight + added.weight)
        )
        held = self.context_tokens or 0.0
        weight = kept * self.weight + added.weight
        part = max(1 - memory, added.weight / weight)
        return Fit(
            prior=self.prior,
            times=_best_times(_doubted(moments, self.prior, first), self.times),
            moments=moments,
            recent=tuple([recent * m + n for m, n in zip(self.recent, added.moments, strict=True)]),
            recent_weight=recent * self.recent_weight + added.weight,
            weight=weight,
            samples=self.samples + added.samples,
            context_tokens=held + gain * (added.kv_tokens / added.batch - held),
            input_lengths=inputs.moved(part),
            output_lengths=outputs.moved(part),
            full_batch=full_batch,
        )

    def learn_prompts(self, works: Sequence[Prompts]) -> Fit:
        """Return the fit with what prompts alone took, on a replica that does nothing else."""
        if not works:
            return self
        requests = math.fsum(one.requests for one in works)
        inputs = self.input_lengths.learn(
            requests, math.fsum(one.requests * one.tokens for one in works)
        )
        added, weight = _add_up_work(works, self.times.d_s)
        each = FAST_MEMORY if inputs.outside else MEMORY
        kept = each ** len(works) * min(1.0, 1 / max(1.0, (1 - each) * self.weight))
        recent = RECENT ** len(works)
        prior = _prior_moments(self.prior)
        moments = tuple(
            [
                kept * m + (1 - kept) * p + n
                for m, p, n in zip(self.moments, prior, added, strict=True)
            ]
        )
        total = kept * self.weight + weight
        return replace(
            self,
            times=_best_times(moments, self.times),
            moments=moments,
            recent=tuple([recent * m + n for m, n in zip(self.recent, added, strict=True)]),
            recent_weight=recent * self.recent_weight + weight,
            weight=total,
            samples=self.samples + len(works),
            input_lengths=inputs.moved(max(1 - kept, weight / total)),
        )


class _Sums(NamedTuple):
    """What the intervals of one cycle say together."""

    moments: Moments
    samples: int
    weight: float
    batch: float
    kv_tokens: float
    started: float
    input_tokens: float
    finished: float
    output_tokens: float
    full_batch: float | None


def _weight(share: float, seen_s: float, expected_s: float) -> float:
    """Return what a sample counts.

    By its relative error, of what was expected and not of what was seen, or the times would come
    out as short as the fastest samples; but one that took many times as long counts no more than
    one that took twice.
    """
    return share / (expected_s * max(seen_s, expected_s))


def _add_up_work(works: Sequence[Prompts], token_s: float) -> tuple[Moments, float]:
    """Return the moments of what prompts alone took, and how many whole samples that is.

    Args:
        works: What they took.
        token_s: What is believed so far of a token's time.
    """
    m33 = m34 = m44 = total = 0.0
    for requests, tokens, seconds in works:
        share = min(1.0, requests / _FULL_PROMPTS)
        w = _weight(share, seconds, token_s * tokens or seconds)
        m33 += w * tokens * tokens
        m34 += w * tokens * seconds
        m44 += w * seconds * seconds
        total += share
    return (*(0.0,) * 12, m33, m34, m44), total


def _add_up_prompts(intervals: Sequence[Interval], tokens: float, times: Times) -> Moments:
    """Return the moments of one sample: what prompts took whose requests finished in a cycle.

    Engines count the time in prefill when the request ends. What came with a prompt had arrived in
    the step before: one like its own while others are computed, else one that only decodes.

    Args:
        intervals: What replicas of one variant did.
        tokens: Prompt tokens computed per request.
        times: What is believed of the times so far.
    """
    finished = took_s = batch = held = prefilling = 0.0
    count = 0
    for one in intervals:
        kv, ended, share = one.kv_tokens, one.finished, one.prefilling
        if ended and share > 0 and kv is not None:
            count += 1
            finished += ended
            took_s += share * one.span_s
            batch += one.batch
            held += kv
            prefilling += share
    if not (finished and tokens > 0):
        return _NOTHING
    took_s /= finished
    batch, held, prefilling = batch / count, held / count, prefilling / count
    alone_s = times.a_s + times.b_s * batch + times.c_s * held
    busy = min(1.0, prefilling)
    others = prefilling * (busy + (1 - busy) * min(1.0, alone_s / took_s))
    together = tokens * (1 + others)
    expected_s = alone_s + times.d_s * together
    if expected_s <= 0:
        return _NOTHING
    w = _weight(_PROMPTS_SHARE * min(count, finished / _FULL_PROMPTS), took_s, expected_s)
    wb, wk, wp, wy = w * batch, w * held, w * together, w * took_s
    return (
        *(w, wb, wk, wp, wy),
        *(wb * batch, wb * held, wb * together, wb * took_s),
        *(wk * held, wk * together, wk * took_s),
        *(wp * together, wp * took_s),
        wy * took_s,
    )


def _add_up(intervals: Sequence[Interval], full_batch: float | None, times: Times) -> _Sums:
    """Return the sums over those of the intervals from which something can be learned.

    Args:
        intervals: What replicas of one variant did.
        full_batch: The places in the batch as far as they are known before.
        times: What is believed of the times so far.
    """
    m00 = m01 = m02 = m03 = m04 = m11 = m12 = m13 = m14 = 0.0
    m22 = m23 = m24 = m33 = m34 = m44 = 0.0
    a_s, b_s, c_s, d_s = times.a_s, times.b_s, times.c_s, times.d_s
    samples, total, batches, held = 0, 0.0, 0.0, 0.0
    began = input_tokens = ended = output_tokens = 0.0
    # Written out, since this runs for every replica in every cycle.
    for (
        _replica,
        _at_s,
        _span_s,
        batch,
        itl_s,
        itl_count,
        prompt_tokens_per_s,
        kv,
        prefilling,
        started,
        computed,
        finished,
        generated,
        _arrivals,
        running,
        steady,
        queued_before,
        queued,
        _ttft_sum_s,
    ) in intervals:
        if running is not None:
            # Requests also wait while many prompts are computed, with places free: then the
            # count moves.
            if steady and queued_before and queued:
                full_batch = max(running, full_batch or 0.0)
            elif full_batch is not None and running > full_batch:
                full_batch = None
        if started is not None and computed is not None:
            began += started
            input_tokens += computed
        if finished is not None and generated is not None:
            ended += finished
            output_tokens += generated
        if itl_s is None or kv is None or itl_count < FEWEST_GAPS:
            continue
        if not (batch > 0 and itl_s > 0):
            continue
        share = itl_count / FULL_GAPS if itl_count < FULL_GAPS else 1.0
        prompts = prompt_tokens_per_s * itl_s * (1 + prefilling / batch)
        expected_s = (a_s + b_s * batch + c_s * kv + d_s * prompts) or itl_s
        # As _weight says.
        w = share / (expected_s * max(itl_s, expected_s))
        wb, wk, wp, wy = w * batch, w * kv, w * prompts, w * itl_s
        m00 += w
        m01 += wb
        m02 += wk
        m03 += wp
        m04 += wy
        m11 += wb * batch
        m12 += wb * kv
        m13 += wb * prompts
        m14 += wb * itl_s
        m22 += wk * kv
        m23 += wk * prompts
        m24 += wk * itl_s
        m33 += wp * prompts
        m34 += wp * itl_s
        m44 += wy * itl_s
        samples += 1
        total += share
        batches += share * batch
        held += share * kv
    moments = (m00, m01, m02, m03, m04, m11, m12, m13, m14, m22, m23, m24, m33, m34, m44)
    return _Sums(
        moments,
        samples,
        total,
        batches,
        held,
        began,
        input_tokens,
        ended,
        output_tokens,
        full_batch,
    )


def fresh_fit(prior: Times) -> Fit:
    """Return what is known before anything was seen."""
    return Fit(prior=prior, times=prior, moments=_prior_moments(prior))


def _doubted(moments: Moments, prior: Times, first: Moments) -> Moments:
    """Return the moments with each of the prior's times believed no more than what it matters.

    A prior may be of another kind of machine: a CPU takes ten times as long for a prompt and hardly
    longer for a step. Where few requests decode and few prompts come, samples say little of what
    each adds, and would never move what the prior says of it as a share.

    Args:
        moments: What was seen, the prior's share in it.
        prior: The times that were believed at first.
        first: What they count for among the moments.
    """
    weight, itl = moments[0] - first[0], moments[4] - first[4]
    if weight <= 0 or itl <= 0:
        return moments
    seen = (weight, moments[1] - first[1], moments[2] - first[2], moments[3] - first[3])
    units = _units(prior)
    doubts = [
        max(_EACH_DOUBT, _PART_DOUBT * itl / (unit * x)) if x > 0 else _EACH_DOUBT
        for unit, x in zip(units, seen, strict=True)
    ]
    now = _believed(prior, units, doubts)
    return tuple([m - f + n for m, f, n in zip(moments, first, now, strict=True)])


@lru_cache(maxsize=4096)
def _units(prior: Times) -> tuple[float, ...]:
    """Return in which shares the prior's times are doubted: their own, or a part of a step."""
    theta = (prior.a_s, prior.b_s, prior.c_s, prior.d_s)
    typical_s = math.fsum(t * x for t, x in zip(theta, _TYPICAL, strict=True)) or 1e-3
    return tuple(max(t, _LEAST_PART * typical_s / x) for t, x in zip(theta, _TYPICAL, strict=True))


@lru_cache(maxsize=4096)
def _prior_moments(prior: Times) -> Moments:
    """Return the moments that stand for what the prior says, and for how little it is believed."""
    return _believed(prior, _units(prior), (_EACH_DOUBT,) * 4)


def _believed(prior: Times, units: Sequence[float], doubts: Sequence[float]) -> Moments:
    """Return the moments that stand for a prior, each of whose times is doubted by so much.

    The times are believed to be ``prior·(1 + s + e)`` with s common to all and e each one's own,
    both normal. What follows is the inverse of their covariance (Sherman and Morrison's formula),
    in units of one sample's noise, so that samples and prior can be added.
    """
    (ua, ub, uc, ud), (da, db, dc, dd) = units, doubts
    # Written out, since this runs for every variant in every cycle.
    a, b, c, d = (
        _SURE / (ua * da) ** 2,
        _SURE / (ub * db) ** 2,
        _SURE / (uc * dc) ** 2,
        _SURE / (ud * dd) ** 2,
    )
    va, vb, vc, vd = a * prior.a_s, b * prior.b_s, c * prior.c_s, d * prior.d_s
    square = va * prior.a_s + vb * prior.b_s + vc * prior.c_s + vd * prior.d_s
    both = 1 + _SPEED * square
    part = _SPEED / both
    return (
        *(a - part * va * va, -part * va * vb, -part * va * vc, -part * va * vd, va / both),
        *(b - part * vb * vb, -part * vb * vc, -part * vb * vd, vb / both),
        *(c - part * vc * vc, -part * vc * vd, vc / both),
        *(d - part * vd * vd, vd / both),
        square / both,
    )


def _best_times(moments: Moments, before: Times) -> Times:
    """Return the times that explain the moments best.

    Args:
        moments: What was seen, the prior's share in it.
        before: The times that explained them best before the last samples: those of them that were
            0 mostly are again.
    """
    g00, g01, g02, g03, r0, g11, g12, g13, r1, g22, g23, r2, g33, r3, _ = moments
    gram = ((g00, g01, g02, g03), (g01, g11, g12, g13), (g02, g12, g22, g23), (g03, g13, g23, g33))
    parts = before.a_s, before.b_s, before.c_s, before.d_s
    likely = [i for i, part in enumerate(parts) if part > 0]
    return Times(*nonnegative(gram, (r0, r1, r2, r3), likely))


def _residual(moments: Moments, times: Times) -> float:
    """Return the weighted sum of squares that the times leave unexplained."""
    m00, m01, m02, m03, m04, m11, m12, m13, m14, m22, m23, m24, m33, m34, m44 = moments
    a, b, c, d = times.a_s, times.b_s, times.c_s, times.d_s
    # Written out, since this runs for every variant in every cycle.
    return math.fsum(
        (
            *(m00 * a * a, 2 * m01 * a * b, 2 * m02 * a * c, 2 * m03 * a * d, -2 * m04 * a),
            *(m11 * b * b, 2 * m12 * b * c, 2 * m13 * b * d, -2 * m14 * b),
            *(m22 * c * c, 2 * m23 * c * d, -2 * m24 * c),
            *(m33 * d * d, -2 * m34 * d),
            m44,
        )
    )

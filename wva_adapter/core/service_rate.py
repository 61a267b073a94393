"""The largest rate of requests that one replica serves within its SLO, and what bounds it.

With λ requests per second of I uncached prompt tokens and O output tokens each, prefill takes the
share φ = λ·I·d of the time. A decoding request holds κ tokens of the KV cache on average, so
B = λ·O·ITL of them are in the batch, and a step takes as long as

    ITL = (a + b + c·κ) / (1 − φ − (b + c·κ)·λ·O)

where the numerator is what a token costs its own request. All bounds but that on the time to first
token turn into a largest λ in closed form; that one is bisected, and only where it binds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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

LOWEST_OF_PRIOR, HIGHEST_OF_PRIOR = 0.3, 4.0
"""How far from the prior's rate a learned one may be: what was seen can be extrapolated to 0 or ∞."""

DEFAULT_MAX_NUM_SEQS = 256
"""Places in the batch where nothing says."""

TYPICAL_INPUT_TOKENS, TYPICAL_OUTPUT_TOKENS = 1024.0, 256.0
"""Lengths of requests before any was seen."""

_SHAPE_GAIN = 0.15
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

    Raises:
        ValueError: A length is negative or not finite.
    """

    input_tokens: float | None = None
    output_tokens: float | None = None

    def __post_init__(self) -> None:
        for name in ("input_tokens", "output_tokens"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"shape: {name} {value}, want a finite number of at least 0")

    def learn(self, intervals: Sequence[Interval]) -> Shape:
        """Return the shape after one cycle; without news of a length it stays."""
        return Shape(
            _mean(self.input_tokens, [(one.started, one.input_tokens) for one in intervals]),
            _mean(self.output_tokens, [(one.finished, one.output_tokens) for one in intervals]),
        )


def _mean(before: float | None, seen: Sequence[tuple[float | None, float | None]]) -> float | None:
    known = [(count, tokens) for count, tokens in seen if count and tokens is not None]
    if not known:
        return before
    mean = math.fsum(tokens for _, tokens in known) / math.fsum(count for count, _ in known)
    return mean if before is None else before + _SHAPE_GAIN * (mean - before)


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
) -> ServiceRate:
    """Return the largest rate at which every bound holds.

    A lone request has its latency, however few there are: no bound asks for less than a lone
    request's latency over ``ITL_SHARE``, since more replicas would not give it.

    Args:
        times: What the parts of a step take.
        shape: What requests are like.
        slo: What latency is allowed.
        max_num_seqs: Places in the batch; ``None`` where nothing says.
        kv_cache_tokens: Size of the KV cache; ``None`` is no bound.
        context_tokens: KV-cache tokens of a decoding request; ``None`` is a prompt and half an
            answer.
        prior: Times that were believed at first; the rate stays near theirs.
    """
    bounds = _Bounds.of(shape, slo, max_num_seqs, kv_cache_tokens, context_tokens)
    found = bounds.largest(times)
    anchor = found if times == prior else bounds.largest(prior)
    lowest, highest = LOWEST_OF_PRIOR * anchor.rate_per_s, HIGHEST_OF_PRIOR * anchor.rate_per_s
    if lowest <= found.rate_per_s <= highest:
        return found
    # Where the prior barely keeps the SLO, a machine a little faster serves many times as much.
    slower, faster = prior.scaled(1 / LOWEST_OF_PRIOR), prior.scaled(1 / HIGHEST_OF_PRIOR)
    lowest = min(lowest, bounds.largest(slower).rate_per_s)
    highest = max(highest, bounds.largest(faster).rate_per_s)
    if lowest <= found.rate_per_s <= highest:
        return found
    rate = lowest if found.rate_per_s < lowest else highest
    return bounds.at(
        times,
        rate,
        f"kept near what was believed at first ({anchor.rate_per_s:.3g}/s): "
        f"learned {found.rate_per_s:.3g}/s, {found.binding}",
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
        prefill_s, alone_s, grows_s = self._parts(times)
        busy_s = prefill_s + self.output_tokens * grows_s
        itl_limit_s = max(ITL_SHARE * self.slo.itl_s, alone_s / ITL_SHARE)
        ttft_limit_s = max(self.slo.ttft_s, (prefill_s + alone_s) / ITL_SHARE)
        rate, bound = self._within_batch(BATCH_SHARE * self.places, alone_s, busy_s), "places"
        if self.kv_cache_tokens and self.context_tokens > 0:
            batch = KV_SHARE * self.kv_cache_tokens / self.context_tokens
            if (most := self._within_batch(batch, alone_s, busy_s)) < rate:
                rate, bound = most, "kv"
        if busy_s > 0 and (most := (1 - alone_s / itl_limit_s) / busy_s) < rate:
            rate, bound = most, "itl"
        if prefill_s > 0 and (most := PREFILL_SHARE / prefill_s) < rate:
            rate, bound = most, "prefill"
        ttft_s = self._ttft_s(times, rate)
        if ttft_s > ttft_limit_s:
            rate, bound = self._bisect(times, rate, ttft_limit_s), "ttft"
            ttft_s = self._ttft_s(times, rate)
        itl_s = self._itl_s(times, rate)
        batch = rate * self.output_tokens * itl_s
        words = {
            "places": lambda: f"{batch:.0f} of {self.places} places in the batch",
            "kv": lambda: (
                f"{batch:.0f} requests of {self.context_tokens:.0f} tokens in a KV cache of "
                f"{self.kv_cache_tokens or 0:.0f}"
            ),
            "itl": lambda: _latency("inter-token", itl_limit_s, alone_s, self.slo.itl_s, batch),
            "prefill": lambda: f"{PREFILL_SHARE:.0%} of the time goes to prompts",
            "ttft": lambda: _latency(
                "first-token", ttft_limit_s, prefill_s + alone_s, self.slo.ttft_s, batch
            ),
        }
        return ServiceRate(rate, words[bound](), itl_s, ttft_s, batch)

    def at(self, times: Times, rate: float, binding: str) -> ServiceRate:
        """Return what is expected at a rate that something else has set."""
        itl_s = self._itl_s(times, rate)
        batch = rate * self.output_tokens * itl_s
        return ServiceRate(rate, binding, itl_s, self._ttft_s(times, rate), batch, clamped=True)

    def _parts(self, times: Times) -> tuple[float, float, float]:
        """Return a prompt's prefill, a lone request's step, and what one more request adds to it."""
        grows_s = times.b_s + times.c_s * self.context_tokens
        # No step takes no time, whatever was learned.
        return self.input_tokens * times.d_s, max(_SHORTEST_STEP_S, times.a_s + grows_s), grows_s

    def _within_batch(self, batch: float, alone_s: float, busy_s: float) -> float:
        """Return the rate at which so many requests decode."""
        return batch / (self.output_tokens * alone_s + batch * busy_s)

    def _itl_s(self, times: Times, rate: float) -> float:
        prefill_s, alone_s, grows_s = self._parts(times)
        idle = 1 - rate * (prefill_s + self.output_tokens * grows_s)
        return alone_s / idle if idle > 0 else math.inf

    def _ttft_s(self, times: Times, rate: float) -> float:
        """Return the mean time to first token: a place, the step in progress, prompts in line."""
        prefill_s, _, _ = self._parts(times)
        itl_s = self._itl_s(times, rate)
        idle = 1 - rate * prefill_s
        if not (idle > 0 and itl_s < math.inf):
            return math.inf
        return self._place_s(times, rate, itl_s) + itl_s + prefill_s / idle

    def _place_s(self, times: Times, rate: float, itl_s: float) -> float:
        """Return how long a request waits for a place in the batch."""
        batch = rate * self.output_tokens * itl_s
        if self.places >= _MANY_PLACES and batch + 6 * math.sqrt(batch) < self.places:
            # Six standard deviations of a Poisson number: nobody waits.
            return 0.0
        import numpy as np

        prefill_s, alone_s, grows_s = self._parts(times)
        running = np.arange(1, self.places + 1)
        step_s = alone_s + (running - 1) * grows_s
        rates = running / (running * prefill_s + self.output_tokens * step_s)
        return mean_wait_s(rate, rates, _ROOM * self.places)

    def _bisect(self, times: Times, highest: float, limit_s: float) -> float:
        """Return the largest rate whose time to first token is within the limit."""
        lowest = 0.0
        while highest - lowest > _PRECISION * highest:
            middle = (lowest + highest) / 2
            if self._ttft_s(times, middle) > limit_s:
                highest = middle
            else:
                lowest = middle
        return lowest


def _latency(name: str, limit_s: float, alone_s: float, slo_s: float, batch: float) -> str:
    """Say which latency binds at which batch."""
    said = f"{name} latency of {_duration(limit_s)} at a batch of {batch:.0f}"
    if limit_s <= slo_s:
        return f"{said}, SLO {_duration(slo_s)}"
    return f"{said}: SLO {_duration(slo_s)}, but a lone request takes {_duration(alone_s)}"


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"

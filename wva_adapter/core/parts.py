"""What replicas learn and serve that do one part of each request: only prompts, or only answers.

A replica that only prefills is a queue of prompts with one server. It works through P prompt tokens
per second while a share ρ of its time is busy, so a token takes d = ρ/P. Its own counters tell P,
and N, the mean number of requests in prefill; ρ is 1 while requests wait. Else it is N over how
many are computed at once: alone on average where a router gives prompts to whoever is free, and
where arrivals are random, with those that came during the step before. Steps then are generations
of a branching process with ρ children each, begun anew by each arrival that finds nothing to do,
of which N = ρ/(1 − ρ²) follows and (1 + √(1 + 4·N²))/2 at once; what counts is the mean of both.

At a share ρ prompts of I tokens wait ρ/(1 − ρ)·I·d on average (Pollaczek and Khinchine, for lengths
that vary by as much as their mean), which must leave a part of the SLO to those who decode.

A replica that only decodes is one in which prompts take no time.

References:
    L. Kleinrock, *Queueing Systems*, vol. 1, 1975, ch. 5 (the M/G/1 queue).
    T. E. Harris, *The Theory of Branching Processes*, 1963, ch. 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from wva_adapter.core.capacity import Fit, Prompts
from wva_adapter.core.change import replace
from wva_adapter.core.fleet import Role, VariantKey
from wva_adapter.core.interval import Interval
from wva_adapter.core.load import ModelLoad, figure
from wva_adapter.core.service_rate import (
    LEAST_SHARE,
    PREFILL_SHARE,
    TYPICAL_INPUT_TOKENS,
    TYPICAL_OUTPUT_TOKENS,
    ServiceRate,
    Shape,
    Slo,
    believable,
    duration,
    service_rate,
)

WAIT_SHARE = 0.65
"""Prompts wait no longer than this share of what their own computation leaves of the SLO; the rest
is for the way of their KV cache, and for a place where they are decoded."""

PROMPT_TOKENS = "prompt tokens/s"
"""The unit of prefill: tokens that no cache holds."""


def learn(part: Role, fit: Fit, intervals: Sequence[Interval]) -> Fit:
    """Return the fit with what replicas showed that do this part of requests."""
    if part == "prefill":
        works = [work for one in intervals if (work := _work(one)) is not None]
        return fit.learn_prompts(works)
    if part == "decode":
        intervals = [
            one._replace(prompt_tokens_per_s=0.0, prefilling=0.0, input_tokens=None)
            for one in intervals
        ]
    return fit.learn(intervals)


def slo_of(part: Role, slo: Slo) -> Slo:
    """Return what of the SLO is this part's: of the time to first token, what prompts leave."""
    return Slo((1 - WAIT_SHARE) * slo.ttft_s, slo.itl_s) if part == "decode" else slo


def part_rate(
    part: Role,
    fit: Fit,
    shape: Shape,
    slo: Slo,
    *,
    max_num_seqs: int | None,
    kv_cache_tokens: float | None,
) -> ServiceRate:
    """Return the largest rate of requests of which a replica does this part within the SLO.

    Args:
        part: What it does.
        fit: What is known of its times.
        shape: What requests are like.
        slo: What latency is allowed, as ``slo_of`` gives it.
        max_num_seqs: Places in its batch; ``None`` where nothing says.
        kv_cache_tokens: Size of its KV cache; ``None`` is no bound.
    """
    if part == "prefill":
        return _prefill_rate(fit, shape, slo.ttft_s)
    context_tokens = fit.context_tokens
    if part == "decode":
        if context_tokens is None:
            outputs = shape.output_tokens or TYPICAL_OUTPUT_TOKENS
            context_tokens = TYPICAL_INPUT_TOKENS + outputs / 2
        shape = Shape(0.0, shape.output_tokens)
    return service_rate(
        fit.times,
        shape,
        slo,
        max_num_seqs=max_num_seqs,
        kv_cache_tokens=kv_cache_tokens,
        context_tokens=context_tokens,
        prior=fit.prior,
        weight=fit.weight,
    )


def prompt_tokens(shape: Shape) -> float:
    """Return the tokens of a prompt that must be computed, at least 1."""
    known = TYPICAL_INPUT_TOKENS if shape.input_tokens is None else shape.input_tokens
    return max(1.0, known)


def in_prompt_tokens(load: ModelLoad, tokens: float) -> ModelLoad:
    """Return a load in requests of so many prompt tokens each as one in tokens."""
    return replace(
        load,
        unit=PROMPT_TOKENS,
        demand=None if load.demand is None else load.demand * tokens,
        need=load.need * tokens,
        keep=load.keep * tokens,
        present=load.present * tokens,
        capacity={key: each * tokens for key, each in load.capacity.items()},
    )


def against_one(capacity: Mapping[VariantKey, float]) -> str:
    """Say what one replica carries, in the unit of the load."""
    if len(capacity) == 1:
        return f"against {figure(next(iter(capacity.values())))} of one replica"
    each = (f"{figure(one)} of one {key.name}" for key, one in sorted(capacity.items()))
    return f"against {', '.join(each)}"


def _work(one: Interval) -> Prompts | None:
    """Return what prompts took in an interval; ``None`` where it does not tell."""
    if not (one.started and one.finished and one.input_tokens):
        return None
    if one.queued_before and one.queued:
        return Prompts(one.started, one.input_tokens / one.started, one.span_s / one.started)
    if one.prefilling <= 0:
        return None
    crowd = (math.sqrt(1 + 4 * one.prefilling**2) - 1) / 4
    together = max(1 + crowd, one.prefilling)
    return Prompts(
        one.started,
        one.input_tokens / one.started,
        one.prefilling * one.span_s / one.finished / together,
    )


def _prefill_rate(fit: Fit, shape: Shape, slo_ttft_s: float) -> ServiceRate:
    token_s, kept = believable(fit.times.d_s, fit.prior.d_s, fit.weight)
    own_s = token_s * prompt_tokens(shape)
    wait_s = max(0.0, WAIT_SHARE * (slo_ttft_s - own_s))
    share = min(PREFILL_SHARE, max(LEAST_SHARE, wait_s / (wait_s + own_s)))
    took_s = own_s / (1 - share)
    words = f"{figure(1 / token_s)} computed at full use, of which {share:.0%}"
    if share == PREFILL_SHARE:
        words += " at most"
    elif share == LEAST_SHARE:
        words += f" count: SLO {duration(slo_ttft_s)} cannot be kept"
    else:
        words += (
            f" leave prompts waiting for {duration(took_s - own_s)}, SLO {duration(slo_ttft_s)}"
        )
    if kept is not None:
        words += f", as of {kept}"
    rate = share / own_s
    return ServiceRate(rate, words, 0.0, took_s, rate * took_s, clamped=kept is not None)

"""The latency guard: replicas count for less while clients wait longer than the model says.

It only ever asks for more replicas, and for a bounded share: in overload those who finish are the
lucky ones, so latency is no measure of how many replicas could go.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from wva_adapter.core.interval import Interval

MOST = 0.30
"""By no more than this share replicas count for less."""

CYCLES = 2
"""So many cycles on end latency must be above its SLO."""

_HALVES_S = 300.0
_STEP = 0.05
_LEAST = 0.005
_FEWEST_TOKENS, _FEWEST_FIRST = 20.0, 5.0


@dataclass(frozen=True, slots=True)
class Strain:
    """How much less the replicas of one model count for.

    Attributes:
        share: By which share, 0 to ``MOST``, as of ``at_s``.
        at_s: Unix time of the last look.
        above: Cycles on end in which latency was above its SLO and the fleet fitted.
    """

    share: float = 0.0
    at_s: float = -math.inf
    above: int = 0

    def at(self, at_s: float) -> float:
        """Return the share now: it halves every five minutes."""
        share = self.share * 0.5 ** (max(0.0, at_s - self.at_s) / _HALVES_S) if self.share else 0.0
        return share if share >= _LEAST else 0.0

    def after(self, at_s: float, ratio: float | None, *, fits: bool) -> Strain:
        """Return the strain after one more cycle.

        Args:
            at_s: Unix time now.
            ratio: Latency over its SLO; ``None`` where nothing new says.
            fits: Whether the ready replicas carry what is needed, as the model has it. Where they
                do not, more are asked for anyhow.
        """
        share = self.at(at_s)
        if ratio is None:
            return Strain(share, at_s, self.above)
        above = self.above + 1 if ratio > 1 and fits else 0
        if above >= CYCLES:
            share = min(MOST, max(1 - 1 / ratio, share + _STEP))
            above = 0
        return Strain(share, at_s, above)


def strained(intervals: Iterable[Interval], slo_ttft_s: float, slo_itl_s: float) -> float | None:
    """Return the mean latency of what replicas just served, over its SLO: the worse of both kinds.

    Args:
        intervals: Of replicas from which something can be learned.
        slo_ttft_s: Mean time to first token that is allowed.
        slo_itl_s: Mean inter-token latency that is allowed.

    Returns:
        A ratio; ``None`` where too little was served to say.
    """
    tokens = token_s = first = first_s = 0.0
    for one in intervals:
        tokens += one.itl_count
        token_s += one.batch * one.span_s
        if one.started and one.ttft_sum_s is not None:
            first += one.started
            first_s += one.ttft_sum_s
    found = []
    if tokens >= _FEWEST_TOKENS:
        found.append(token_s / tokens / slo_itl_s)
    if first >= _FEWEST_FIRST:
        found.append(first_s / first / slo_ttft_s)
    return max(found, default=None)

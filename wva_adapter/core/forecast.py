"""How much demand may come before a replica that is ordered now would be ready."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from wva_adapter.core.arrivals import SLOT_S, ArrivalHistory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MINUTE = int(60 / SLOT_S)
_FUTURE = int(30 / SLOT_S)
_EVERY = 3
_LEAST_PER_S = 0.05
_LEVEL_WIDTH = 0.25
_GROWTH_WIDTH = 0.35
_HALVES_S = 3600.0
_ABOVE_LARGEST = 1.1
_ABOVE_PRESENT = 4.0
_LEADS_OF_EVIDENCE = 2.0
# Moments that resemble this one less than that all together, in lead times, are no analogs.
_LEAST_EVIDENCE = 1e-6

_RAMP_SLOTS = 3
_RAMP_MEANS = 12
_RAMP_LEAST = 8
_RAMP_ERRORS = 3.0
_RAMP_ABOVE_LEVEL = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The demand that one model may see within its lead time, in requests per second.

    Attributes:
        rate_per_s: The rate that counts now.
        level_per_s: The smoothed rate.
        sigma_per_s: Standard deviation of the smoothed rate by chance alone.
        covered_per_s: The rate that would have covered the wanted share of what followed similar
            moments; ``None`` where there were none.
        evidence: How many independent lead times of similar moments that comes from.
        ramp_per_s: Where a steady rise leads within the lead time; ``None`` without one.
        analogs: Past moments at least half as similar as an equal one.
        lead_s: The lead time.
        why: All that in a sentence.
    """

    rate_per_s: float
    level_per_s: float
    sigma_per_s: float
    covered_per_s: float | None
    evidence: float
    ramp_per_s: float | None
    analogs: int
    lead_s: float
    why: str

    @property
    def confidence(self) -> float:
        """How much evidence that is, 0 to 1; 1 is two independent lead times or more."""
        return min(1.0, self.evidence / _LEADS_OF_EVIDENCE)

    def base(self, spare_per_s: float, familiar_leads: float = _LEADS_OF_EVIDENCE) -> float:
        """Return the rate to be ready for.

        What evidence does not vouch for is covered by headroom.

        Args:
            spare_per_s: The headroom where there is no evidence at all.
            familiar_leads: Evidence with which none is left, above 0.
        """
        headroom = max(0.0, 1 - self.evidence / familiar_leads) * spare_per_s
        seen = self.confidence * (self.covered_per_s or 0.0)
        return max(self.rate_per_s + self.sigma_per_s + headroom, seen, self.ramp_per_s or 0.0)


def forecast(history: ArrivalHistory, at_s: float, *, lead_s: float, attainment: float) -> Forecast:
    """Return what the past says about the demand of the next ``lead_s`` seconds.

    Moments like this one (as high, rising or falling as steeply; recent ones count more) are
    looked up, and what followed each of them within a lead time is taken as what may follow now.
    The base-stock rule of inventory theory then covers a share of that demand, not of its cases.

    Args:
        at_s: Now, Unix time. Where arrivals are unknown since, the forecast of the last known
            moment stands.
        lead_s: From an order to a ready replica, above 0.
        attainment: Share of the demand to cover, above 0 and below 1.

    Raises:
        ValueError: ``lead_s`` or ``attainment`` is out of its range.
    """
    if not 0 < lead_s < math.inf:
        raise ValueError(f"lead_s {lead_s}, want a finite number above 0")
    if not 0 < attainment < 1:
        raise ValueError(f"attainment {attainment}, want above 0 and below 1")
    rate = history.present_per_s
    level = history.level_per_s
    sigma = history.sigma_per_s
    covered, evidence, analogs = _analogs(history, rate, lead_s, attainment)
    ramp = _ramp(history, lead_s)
    return Forecast(
        rate_per_s=rate,
        level_per_s=level,
        sigma_per_s=sigma,
        covered_per_s=covered,
        evidence=evidence,
        ramp_per_s=None if ramp is None else min(ramp, _RAMP_ABOVE_LEVEL * level) + sigma,
        analogs=analogs,
        lead_s=lead_s,
        why=_why(history, at_s, rate, covered, evidence, ramp, analogs, lead_s),
    )


def _analogs(
    history: ArrivalHistory, rate: float, lead_s: float, attainment: float
) -> tuple[float | None, float, int]:
    """Return the covered rate, the evidence for it, and the number of similar moments."""
    import numpy as np

    rates = np.frombuffer(history.rates, "<f8")
    back = math.ceil(lead_s / SLOT_S - 1e-9)
    candidates = len(rates) - back
    if candidates <= 0:
        return None, 0.0, 0
    now = math.log(max(rate, _LEAST_PER_S))
    rises = now - np.log(np.maximum(np.frombuffer(history.presents, "<f8"), _LEAST_PER_S))
    # In the first minute on record, growth is against the first moment.
    minute = min(_MINUTE, candidates)
    before = np.empty(candidates)
    before[:minute], before[minute:] = rises[0], rises[: candidates - minute]
    growth = float(rises[max(0, len(rises) - 1 - _MINUTE)])
    rises = rises[:candidates]
    off_growth = (rises - before + growth) * (_LEVEL_WIDTH / _GROWTH_WIDTH)
    distance = (rises * rises + off_growth * off_growth) * _LEVEL_WIDTH**-2
    weights = np.exp(_faded(len(rates), back) - distance)
    count = max(1, (math.floor(max(lead_s, 60.0) / SLOT_S + 1e-9) - _FUTURE) // _EVERY + 1)
    gaps = np.isnan(rates)
    complete = len(rates) - _FUTURE >= candidates and not np.logical_or.reduce(gaps)
    unknown = None if complete else gaps
    demand, known = _futures(rates, unknown, candidates, count)
    # A moment that was not seen itself, or whose future was not, says nothing.
    if unknown is not None:
        weights[unknown[:candidates] | (known == 0)] = 0.0
    evidence = float(weights.sum()) * SLOT_S / lead_s
    if evidence < _LEAST_EVIDENCE:
        return None, 0.0, 0
    demand *= np.exp(rises)
    np.minimum(demand, _ABOVE_LARGEST * float(np.fmax.reduce(rates)), out=demand)
    return (
        min(
            _cover(demand, weights, known, attainment),
            _ABOVE_PRESENT * max(rate, _LEAST_PER_S),
        ),
        evidence,
        int(np.count_nonzero((distance <= math.log(2)) & (weights > 0))),
    )


@lru_cache(maxsize=64)
def _faded(slots: int, back: int) -> NDArray[np.float64]:
    """Return the logarithm of what age leaves of each of ``slots`` moments but the last ``back``."""
    import numpy as np

    ages_s = SLOT_S * np.arange(slots - 1, back - 1, -1, dtype=np.float64)
    return (-math.log(2) / _HALVES_S) * ages_s


def _futures(
    rates: NDArray[np.float64], unknown: NDArray[np.bool_] | None, candidates: int, count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the 30 s means after each of the first ``candidates`` slots.

    A mean of which less than half was seen is unknown, and so is one that has not ended yet.

    Args:
        unknown: Which slots were not seen; ``None`` where all were and each moment has a future.

    Returns:
        Shape ``(count, candidates)``: row ``k`` has the means that start ``3·k + 1`` slots
        later, 0 where unknown; and shape ``(candidates,)``, how many of them are known.
    """
    import numpy as np

    means = np.zeros(candidates + _EVERY * (count - 1))
    whole = min(max(0, len(rates) - _FUTURE), len(means))
    if unknown is None:
        means[:whole] = _sums(rates, whole) / _FUTURE
        demand = _following(means, candidates, count).copy()
        if whole == len(means):
            return demand, np.full(candidates, float(count))
        ended = (whole - 1 - np.arange(candidates)) // _EVERY + 1
        return demand, np.clip(ended, 0.0, float(count))
    seen = np.zeros(len(means))
    slots = _sums((~unknown).astype(float), whole)
    seen[:whole] = slots >= _FUTURE / 2
    sums = _sums(np.where(unknown, 0.0, rates), whole)
    means[:whole] = seen[:whole] * sums / np.maximum(slots, 1.0)
    demand = _following(means, candidates, count).copy()
    return demand, _following(seen, candidates, count).sum(axis=0)


def _following(means: NDArray[np.float64], candidates: int, count: int) -> NDArray[np.float64]:
    """Return a view of shape ``(count, candidates)``: row ``k`` begins ``3·k`` entries later."""
    import numpy as np

    steps = (_EVERY * means.itemsize, means.itemsize)
    return np.ndarray((count, candidates), means.dtype, means, strides=steps)


def _sums(rates: NDArray[np.float64], whole: int) -> NDArray[np.float64]:
    """Return the sums over the slots of a future that starts after each of the first ``whole``."""
    sums = rates[1 : whole + 1].copy()
    for later in range(2, _FUTURE + 1):
        sums += rates[later : whole + later]
    return sums


def _cover(
    demand: NDArray[np.float64],
    weights: NDArray[np.float64],
    known: NDArray[np.float64],
    attainment: float,
) -> float:
    """Return the smallest rate that covers ``attainment`` of a weighted demand.

    Args:
        demand: Shape ``(futures, moments)``, 0 where unknown.
        weights: Shape ``(moments,)``, of each of a moment's futures.
        known: Shape ``(moments,)``, how many of them are known.
    """
    import numpy as np

    totals = demand.sum(axis=0)
    uncovered = (1 - attainment) * float((weights * totals).sum())
    # The rate that covers each moment's mean demand is a first step that cannot be too far, since
    # means vary less, and there are fewer of them.
    rate = _climb(totals / np.maximum(known, 1.0), weights * known, uncovered, 0.0)
    return _climb(demand, np.broadcast_to(weights, demand.shape), uncovered, rate)


def _climb(
    demand: NDArray[np.float64], weights: NDArray[np.float64], uncovered: float, rate: float
) -> float:
    """Return the smallest rate that leaves ``uncovered`` of the demand, from one not above it.

    What a rate leaves uncovered is convex and piecewise linear in it, so that Newton's steps never
    overshoot and end on the exact rate after finitely many.
    """
    import numpy as np

    before = -1.0
    while True:
        # What a rate covers adds exactly nothing, and a larger one covers it too: its weight may be
        # the largest by far, and a rounded nothing would be taken for demand.
        above = demand > rate
        demand, weights = demand[above], weights[above]
        weight = float(np.add.reduce(weights))
        if weight in (0.0, before):
            return rate
        before = weight
        further = (float(np.add.reduce(weights * (demand - rate))) - uncovered) / weight
        if further <= 0.0:
            return rate
        rate += further


def _ramp(history: ArrivalHistory, lead_s: float) -> float | None:
    """Return where a line through the last three minutes leads, if they are one and rise."""
    most = min(len(history.rates) // 8, _RAMP_SLOTS * _RAMP_MEANS)
    recent = struct.unpack(f"<{most}d", history.rates[len(history.rates) - 8 * most :])
    points: list[tuple[float, float]] = []
    for newest in range(most, _RAMP_SLOTS - 1, -_RAMP_SLOTS):
        known = [x for x in recent[newest - _RAMP_SLOTS : newest] if not math.isnan(x)]
        if known:
            middle_s = (newest - _RAMP_SLOTS / 2 - most) * SLOT_S
            points.append((middle_s, sum(known) / len(known)))
    if len(points) < _RAMP_LEAST:
        return None
    mean_s = sum(t for t, _ in points) / len(points)
    mean = sum(v for _, v in points) / len(points)
    off = [(t - mean_s, v - mean) for t, v in points]
    spread = sum(t * t for t, _ in off)
    slope = sum(t * v for t, v in off) / spread
    # A rise that only rounding sees is none.
    if slope * _RAMP_MEANS * _RAMP_SLOTS * SLOT_S <= 1e-9 * mean:
        return None
    errors = sum((v - slope * t) ** 2 for t, v in off)
    if slope <= _RAMP_ERRORS * math.sqrt(errors / (len(off) - 2) / spread):
        return None
    # The line explains more of the variation than the best single step would.
    if slope * slope * spread <= _best_step([v for _, v in off]):
        return None
    return mean - slope * mean_s + slope * lead_s


def _best_step(values: list[float]) -> float:
    """Return how much of the variation of values about their mean of 0 one step explains."""
    best, left = 0.0, 0.0
    for cut, value in enumerate(values[:-1], start=1):
        left += value
        # The other side sums up to -left.
        best = max(best, left * left / cut + left * left / (len(values) - cut))
    return best


def _why(
    history: ArrivalHistory,
    at_s: float,
    rate: float,
    covered: float | None,
    evidence: float,
    ramp: float | None,
    analogs: int,
    lead_s: float,
) -> str:
    if history.at_s is None:
        return "no arrivals seen yet, so headroom of one replica"
    parts = [f"{_figure(rate)} req/s arrive"]
    if at_s - history.at_s > SLOT_S:
        parts[0] = f"{_figure(rate)} req/s arrived when last seen, {at_s - history.at_s:.0f} s ago"
    if covered is None or not analogs:
        parts.append("no similar moment on record")
    else:
        moments = "similar moment" if analogs == 1 else "similar moments"
        parts.append(
            f"in {analogs} {moments} of the last {_span(history.seen_s)} "
            f"demand reached {_figure(covered)} req/s within {lead_s:.0f} s"
        )
    if ramp is not None:
        parts.append(f"a steady rise leads to {_figure(ramp)} req/s by then")
    if evidence < _LEADS_OF_EVIDENCE:
        parts.append(f"confidence {evidence / _LEADS_OF_EVIDENCE:.2f}, so headroom is kept")
    return "; ".join(parts)


def _figure(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    if 55 <= minutes <= 65:
        return "hour"
    return f"{minutes} min" if minutes < 115 else f"{round(seconds / 3600)} h"

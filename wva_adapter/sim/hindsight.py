"""Whether counts that nobody ran would have done, as far as that can be known.

The load is as it was recorded. How latencies and queues would have been with other replicas than
there were is unknown, and nothing is made up for it: a count is held against what a replica of the
recording has carried within the SLO (enough), and against more than it can be thought to carry
(short). Between the two it is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from wva_adapter.core.fleet import LoadKey, VariantKey

LEARNED_OFF = 1.15
"""What a replica can do was learned to within so much: more than that it does not carry."""

RECORDED = "recorded"
"""The policy whose counts are those that ran."""

LONGEST_GAP_S = 300.0
"""Of a longer time between two cycles nothing is known, and it counts for nothing."""

Verdict = Literal["enough", "short", "unknown"]


@dataclass(frozen=True, slots=True)
class Moment:
    """One model in one recorded cycle.

    Attributes:
        demand_per_s: Requests that came per second; ``None`` where nothing tells.
        waiting: Whether requests waited.
        ran: By variant, the replicas that served.
        asked: By variant, the count that was asked for.
        capacity: By variant, the requests per second that a replica was thought to serve within
            the SLO then.
        usd_per_h: By variant, the price of a replica.
    """

    at_s: float
    demand_per_s: float | None
    waiting: bool
    ran: Mapping[VariantKey, int]
    asked: Mapping[VariantKey, int]
    capacity: Mapping[VariantKey, float]
    usd_per_h: Mapping[VariantKey, float]


@dataclass(frozen=True, slots=True)
class Span:
    """A while in which what a policy asked for would have been short.

    Attributes:
        demand_per_s: The largest demand in it.
        carried_per_s: The most that the fleet could have carried then.
        counts: The replicas that would have served then, by variant.
    """

    from_s: float
    to_s: float
    demand_per_s: float
    carried_per_s: float
    counts: Mapping[VariantKey, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What became of one policy in one model.

    Attributes:
        replica_hours: Replicas asked for, over time.
        usd: Their price.
        enough_s: So long the fleet would have been enough.
        short_s: So long it would have been short for sure.
        unknown_s: So long nobody knows.
        fewer_s: So long fewer replicas would have served than did. With those, more would have
            been in flight, so a law that follows that would have asked for as much or more.
        more_s: So long more would have: it would have asked for as much or less.
        turns: Changes of direction of the counts asked for.
        short: When it would have been short.
        counts: By variant, the count asked for after each cycle.
        ready: By variant, the replicas that would have served in each cycle.
    """

    policy: str
    model: LoadKey
    replica_hours: float
    usd: float
    enough_s: float
    short_s: float
    unknown_s: float
    fewer_s: float
    more_s: float
    turns: int
    short: tuple[Span, ...]
    counts: Mapping[VariantKey, tuple[int, ...]]
    ready: Mapping[VariantKey, tuple[int, ...]]


def judge(
    policy: str,
    model: LoadKey,
    moments: Sequence[Moment],
    carried: Mapping[VariantKey, float],
    counts: Mapping[VariantKey, Sequence[int]],
    ready: Mapping[VariantKey, Sequence[int]],
) -> Judged:
    """Hold what would have been there against what came.

    Args:
        policy: Who asked.
        model: Of which model the cycles are.
        moments: The cycles.
        carried: By variant, what a replica has carried within the SLO.
        counts: By variant, what was asked for in each cycle.
        ready: By variant, what would have served in each.
    """
    last = moments[-1].capacity
    spent = dict.fromkeys(("enough", "short", "unknown", "fewer", "more"), 0.0)
    usd = replica_s = 0.0
    spans: list[Span] = []
    for index, moment in enumerate(moments):
        until_s = moments[index + 1].at_s if index + 1 < len(moments) else moment.at_s
        if until_s - moment.at_s > LONGEST_GAP_S:
            until_s = moment.at_s
        took_s = until_s - moment.at_s
        there = {key: its[index] for key, its in ready.items()}
        most = sum(
            n
            * LEARNED_OFF
            * max(moment.capacity.get(k, math.inf), last.get(k, math.inf), carried.get(k, 0.0))
            for k, n in there.items()
            if n
        )
        verdict = _verdict(moment, there, carried, most)
        spent[verdict] += took_s
        if sum(there.values()) != sum(moment.ran.values()):
            spent["fewer" if sum(there.values()) < sum(moment.ran.values()) else "more"] += took_s
        if verdict == "short":
            assert moment.demand_per_s is not None
            span = Span(moment.at_s, until_s, moment.demand_per_s, most, there)
            if spans and spans[-1].to_s == moment.at_s:
                before = spans.pop()
                worst = max(before, span, key=lambda s: s.demand_per_s - s.carried_per_s)
                span = replace(worst, from_s=before.from_s, to_s=until_s)
            spans.append(span)
        for key, its in counts.items():
            replica_s += its[index] * took_s
            usd += its[index] * took_s / 3600 * moment.usd_per_h.get(key, 0.0)
    return Judged(
        policy=policy,
        model=model,
        replica_hours=replica_s / 3600,
        usd=usd,
        enough_s=spent["enough"],
        short_s=spent["short"],
        unknown_s=spent["unknown"],
        fewer_s=spent["fewer"],
        more_s=spent["more"],
        turns=sum(_turns(its) for its in counts.values()),
        short=tuple(spans),
        counts={key: tuple(its) for key, its in counts.items()},
        ready={key: tuple(its) for key, its in ready.items()},
    )


def _verdict(
    moment: Moment,
    there: Mapping[VariantKey, int],
    carried: Mapping[VariantKey, float],
    most_per_s: float,
) -> Verdict:
    """Say whether replicas would have done; what waited in the recording is no proof of either."""
    demand = moment.demand_per_s
    if demand is None:
        return "unknown"
    if demand > most_per_s:
        return "short"
    if sum(n * carried.get(key, 0.0) for key, n in there.items()) >= demand:
        return "enough"
    as_many = all(n >= moment.ran.get(key, 0) for key, n in there.items())
    return "enough" if as_many and not moment.waiting else "unknown"


def _turns(counts: Sequence[int]) -> int:
    steps = [b - a for a, b in pairwise(counts) if a != b]
    return sum((a > 0) != (b > 0) for a, b in pairwise(steps))

"""What a reader makes of an engine's page: values per rank, their total, and where each is from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from wva_adapter.collect.exposition import Series
from wva_adapter.core.snapshot import LARGEST, ReplicaSample

VALUES: tuple[str, ...] = tuple(
    f.name
    for f in fields(ReplicaSample)
    if f.name not in {"replica", "at_s", "mean_input_tokens", "model_names"}
)
"""The fields of ``ReplicaSample`` that one page tells."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value comes from: series that are added up, and others that are taken away."""

    plus: tuple[Series, ...]
    minus: tuple[Series, ...] = ()

    def __str__(self) -> str:
        return " - ".join([" + ".join(map(str, self.plus)), *map(str, self.minus)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One page of one replica.

    Attributes:
        engine: The engine's name, as in ``ENGINES``.
        version: The engine's version, where its page tells it.
        ranks: What each data-parallel rank reports, in the order of ranks; an engine without
            ranks is one with rank 0.
        total: The replica as a whole.
        origins: By field of the total: the series that it was read from, of all ranks.
    """

    engine: str
    version: str | None = None
    ranks: Mapping[int, ReplicaSample]
    total: ReplicaSample
    origins: Mapping[str, Origin] = field(repr=False)


def inspect_document(reading: Reading) -> dict[str, object]:
    """Return the reading in the shape that ``inspect --json`` prints; unknown is ``None``."""

    def values(sample: ReplicaSample) -> dict[str, object]:
        return {name: getattr(sample, name) for name in VALUES}

    version = {} if reading.version is None else {"version": reading.version}
    return {
        "engine": reading.engine,
        **version,
        "ranks": [{"rank": rank, **values(sample)} for rank, sample in reading.ranks.items()],
        "model_names": list(reading.total.model_names),
        "total": values(reading.total),
        "sources": {name: str(origin) for name, origin in reading.origins.items()},
    }


def known(value: float) -> float | None:
    """Return a number of a page, ``None`` where it cannot be one of what is counted or held."""
    return value if 0 <= value <= LARGEST else None


def ratio(value: float) -> float | None:
    """Return a share of a page, ``None`` where it is none; a rounding error above 1 is 1."""
    return min(value, 1.0) if 0 <= value <= 1 + 1e-9 else None


def add_up(ranks: Sequence[ReplicaSample], **of_replica: Any) -> ReplicaSample:
    """Return the replica that these ranks make together.

    Values are summed, usage is weighted by the capacity of the ranks, and the replica is awake if
    any rank is. A value that one rank does not report makes the sum unknown, with one exception:
    a rank whose token counters stand at zero is idle and may lack its gauges until its first
    request, so it counts as 0 beside ranks that served.

    Args:
        ranks: At least one.
        of_replica: Fields that the page reports for the replica and not for its ranks.
    """
    first = ranks[0]
    if len(ranks) == 1:
        return replace(first, **of_replica)
    total: dict[str, Any] = {}
    for name in VALUES:
        values = [getattr(rank, name) for rank in ranks]
        if name == "awake":
            total[name] = True if True in values else None if None in values else False
        elif name == "kv_cache_tokens":
            total[name] = None if None in values else sum(values)
        elif any(value is not None for value in values):
            filled = [
                0.0 if value is None and _never_served(rank) else value
                for rank, value in zip(ranks, values, strict=True)
            ]
            if None not in filled:
                total[name] = _weigh(filled, ranks) if name == "kv_cache_usage" else sum(filled)
    return ReplicaSample(**{"replica": first.replica, "at_s": first.at_s, **total, **of_replica})


def _never_served(rank: ReplicaSample) -> bool:
    # Zero, not missing: the rank's part of a page that was cut says nothing.
    return rank.prompt_tokens_total == 0 and rank.generation_tokens_total == 0


def _weigh(usage: Sequence[float], ranks: Sequence[ReplicaSample]) -> float:
    """Return the mean usage, weighted by capacity where every rank tells it."""
    weights = [rank.kv_cache_tokens for rank in ranks]
    if None in weights or not any(weights):
        return sum(usage) / len(usage)
    held = sum(share * (weight or 0) for share, weight in zip(usage, weights, strict=True))
    return held / sum(weight or 0 for weight in weights)

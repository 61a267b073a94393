"""Recorded reality through other policies: what is read, and what is shown of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wva_adapter.backtest.bounds import BOUNDS, bound
from wva_adapter.backtest.prometheus import STEP_S, of_prometheus
from wva_adapter.collect.record import open_recording
from wva_adapter.core.memory import Memory
from wva_adapter.core.policy import Policy
from wva_adapter.core.snapshot import Snapshot
from wva_adapter.errors import CollectError, ConfigError
from wva_adapter.sim.backtest import Backtest, backtest, check_policy
from wva_adapter.sim.hindsight import LONGEST_GAP_S, Judged, Span
from wva_adapter.sim.table import of_policies

if TYPE_CHECKING:
    from rich.table import Table

_HOUR_S = 3600.0
_SHOWN_SPANS = 5
_HEADINGS = (
    "replica h",
    "$",
    "enough %",
    "short %",
    "unknown %",
    "fewer %",
    "more %",
    "turns",
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A recording that policies were held against.

    Attributes:
        cycles: How many cycles it had.
        gaps_s: Pauses of more than five minutes in it, in seconds; none of them is counted.
        problem: Why the rest could not be used; ``None`` if all was.
    """

    source: str
    found: Backtest
    cycles: int
    gaps_s: tuple[float, ...]
    problem: str | None

    def document(self) -> dict[str, Any]:
        """Return it as the JSON document of the command."""
        every = [m.at_s for its in self.found.moments.values() for m in its]
        return {
            "from_s": min(every),
            "to_s": max(every),
            "cycles": self.cycles,
            "gaps_s": list(self.gaps_s),
            "problem": self.problem,
            "carried_per_s": {str(key): rate for key, rate in sorted(self.found.carried.items())},
            "policies": [_document(judged) for judged in self.found.judged],
        }


def _document(judged: Judged) -> dict[str, Any]:
    return {
        "policy": judged.policy,
        "namespace": judged.model[0],
        "model_id": judged.model[1],
        "role": judged.model.role,
        "replica_hours": judged.replica_hours,
        "usd": judged.usd,
        "bound": bound(judged),
        "enough_s": judged.enough_s,
        "short_s": judged.short_s,
        "unknown_s": judged.unknown_s,
        "fewer_than_ran_s": judged.fewer_s,
        "more_than_ran_s": judged.more_s,
        "turns": judged.turns,
        "short": [_span(span) for span in judged.short],
    }


def _span(span: Span) -> dict[str, Any]:
    return {
        "from_s": span.from_s,
        "to_s": span.to_s,
        "demand_per_s": span.demand_per_s,
        "carried_per_s": span.carried_per_s,
        "counts": {str(key): count for key, count in sorted(span.counts.items())},
    }


def check(policies: Sequence[str]) -> None:
    """Look the policies up, so that nothing is refused after the first hour was read.

    Raises:
        ConfigError: One is unknown, or cannot be held against a recording.
    """
    for name in policies:
        check_policy(name)


def of_recording(
    path: Path, policies: Sequence[str], *, since_s: float | None, on_share: Callable[[float], None]
) -> Comparison:
    """Hold policies against what ``serve --record`` wrote.

    Args:
        path: The recording.
        policies: Names or paths.
        since_s: Only so many seconds before its end; ``None`` for all of it.
        on_share: Told how much of the file has been read, 0 to 1.

    Raises:
        ConfigError: It is no recording, or a policy cannot be held against it.
        CollectError: No cycle of it could be read.
    """
    recording = open_recording(path)
    size = max(1, path.stat().st_size)
    begin_s = None if since_s is None else _end_s(path) - since_s

    def cycles() -> Iterator[tuple[Snapshot, Policy]]:
        lines = 0
        for cycle in recording.cycles():
            lines = cycle.line
            if lines % 50 == 0:
                on_share(min(1.0, lines * mean_line / size))
            if begin_s is None or cycle.snapshot.at_s >= begin_s:
                yield cycle.snapshot, cycle.policies.default

    with path.open("rb") as file:
        mean_line = max(1, len(file.readline()), len(file.readline()))
    return held_against(str(path), cycles(), recording.memory, policies)


def of_url(
    url: str,
    policies: Sequence[str],
    *,
    since_s: float | None,
    now_s: float,
    on_share: Callable[[float], None],
) -> Comparison:
    """Hold policies against what a Prometheus has of vLLM.

    Args:
        url: Where its API is.
        policies: Names or paths.
        since_s: So many seconds until now; an hour for ``None``.
        now_s: Unix time.
        on_share: Told how much has been read, 0 to 1.

    Raises:
        ConfigError: A policy cannot be held against it.
        CollectError: It cannot be read, or has nothing of that time.
    """
    # On a round moment, so that a page begins where the one before it ended.
    to_s = now_s // STEP_S * STEP_S
    from_s = to_s - (_HOUR_S if since_s is None else since_s)
    cycles = of_prometheus(url, from_s=from_s, to_s=to_s, on_share=on_share)
    return held_against(url, cycles, Memory(), policies)


def _end_s(path: Path) -> float:
    at_s = 0.0
    try:
        for cycle in open_recording(path).cycles():
            at_s = cycle.snapshot.at_s
    except CollectError:
        pass  # told of when it is read for good
    return at_s


def held_against(
    source: str,
    cycles: Iterator[tuple[Snapshot, Policy]],
    memory: Memory,
    policies: Sequence[str],
) -> Comparison:
    """Hold policies against cycles, wherever they come from.

    Raises:
        ConfigError: A policy cannot be held against them.
        CollectError: There are none.
    """
    read = _Read(cycles)
    found = backtest(read, memory, policies)
    if not read.count:
        raise CollectError(source, read.problem or "it holds no cycle of that time")
    if not found.judged:
        raise ConfigError(f"{source}: no variants in {read.count} cycles, want at least one")
    problem = None
    if read.problem is not None:
        problem = f"{read.problem}; the {read.count} cycles before it were used"
    return Comparison(source, found, read.count, tuple(read.gaps_s), problem)


class _Read:
    """Cycles, counted as they are taken, until the end or the first that is damaged."""

    def __init__(self, cycles: Iterator[tuple[Snapshot, Policy]]) -> None:
        self._cycles = cycles
        self.count = 0
        self.gaps_s: list[float] = []
        self.problem: str | None = None

    def __iter__(self) -> Iterator[tuple[Snapshot, Policy]]:
        before_s: float | None = None
        try:
            for snapshot, policy in self._cycles:
                if before_s is not None and snapshot.at_s - before_s > LONGEST_GAP_S:
                    self.gaps_s.append(snapshot.at_s - before_s)
                before_s = snapshot.at_s
                self.count += 1
                yield snapshot, policy
        except CollectError as error:
            self.problem = str(error)


def tables(tested: Comparison) -> Iterator[Table]:
    """Return a table for each model, the counts that really ran first."""
    for model in tested.found.moments:
        table = of_policies(str(model), _HEADINGS)
        for judged in tested.found.judged:
            if judged.model == model:
                table.add_row(judged.policy, *_cells(judged))
        yield table


def _cells(judged: Judged) -> Iterator[str]:
    whole_s = max(1e-9, judged.enough_s + judged.short_s + judged.unknown_s)
    sign = BOUNDS[bound(judged)]
    yield f"{sign}{judged.replica_hours:.2f}"
    yield f"{sign}{judged.usd:.2f}"
    for spent_s in (
        judged.enough_s,
        judged.short_s,
        judged.unknown_s,
        judged.fewer_s,
        judged.more_s,
    ):
        yield f"{100 * spent_s / whole_s:.1f}"
    yield str(judged.turns)


@contextmanager
def shown() -> Iterator[Callable[[float], None]]:
    """Show a bar on stderr while a recording is read, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=1.0)
        yield lambda share: bar.update(task, completed=share)


def remarks(tested: Comparison) -> Iterator[str]:
    """Return what is to be known of the tables, and when counts would have been short."""
    yield (
        "enough: no more came than replicas have carried within the SLO in this recording, or as "
        "many as ran without a queue; short: more came than they can be thought to carry; fewer, "
        "more: than ran, where a law that follows requests in flight would have read more (so its "
        "counts are at least these, ≥) or less (at most, ≤)."
    )
    for key, rate in sorted(tested.found.carried.items()):
        yield f"{key}: a replica carried up to {rate:.3g} req/s for a minute within the SLO"
    for judged in tested.found.judged:
        for span in judged.short[:_SHOWN_SPANS]:
            counts = ", ".join(f"{n} {key.name}" for key, n in sorted(span.counts.items()))
            yield (
                f"{judged.policy} short at {_clock(span.from_s)} for {span.to_s - span.from_s:.0f} "
                f"s: {span.demand_per_s:.3g} req/s came, {counts} carry at most "
                f"{span.carried_per_s:.3g}"
            )
        if len(judged.short) > _SHOWN_SPANS:
            yield f"{judged.policy} short {len(judged.short) - _SHOWN_SPANS} times more"
    if tested.gaps_s:
        yield (
            f"{len(tested.gaps_s)} gaps of {LONGEST_GAP_S:.0f} s and more, "
            f"{sum(tested.gaps_s):.0f} s in all, count for nothing"
        )


def _clock(at_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(at_s))

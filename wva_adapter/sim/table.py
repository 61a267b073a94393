"""Runs on a terminal: a bar while they go on, then a row for each policy, the mean over its seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from statistics import fmean
from typing import TYPE_CHECKING

from wva_adapter.sim.workers import Done, Job, Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.table import Table

_HEADINGS = ("in SLO %", "tok/s", "failed %", "$", "kWh", "pods", "turns/h", "p99 s")


def tables(done: Sequence[Done]) -> Iterator[Table]:
    """Return a table for each scenario, policies in the order in which they were asked for."""
    for name, found in groupby(done, key=lambda d: d.job.scenario):
        runs = list(found)
        seeds = len({run.job.seed for run in runs})
        table = of_policies(f"{name}, {seeds} {'seed' if seeds == 1 else 'seeds'}", _HEADINGS)
        for policy, its in groupby(runs, key=lambda d: d.job.policy):
            table.add_row(policy, *_cells(list(its)))
        if any(run.outcome.offline for run in runs):
            in_time = min(run.outcome.offline_in_time for run in runs)
            table.caption = (
                f"offline: at least {in_time:,} of {runs[0].outcome.offline:,} requests in time"
            )
        yield table


def of_policies(title: str, headings: Sequence[str]) -> Table:
    """Return an empty table whose rows are policies, with a column of figures per heading."""
    from rich.table import Table

    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 0, 0, 1),
        pad_edge=False,
    )
    table.add_column("policy", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _cells(runs: Sequence[Done]) -> Iterator[str]:
    outcomes = [run.outcome for run in runs]
    yield f"{fmean(o.in_slo_pct for o in outcomes):.1f}"
    yield f"{fmean(o.goodput_tokens_per_s for o in outcomes):.0f}"
    yield f"{fmean(o.failed_pct for o in outcomes):.2f}"
    yield f"{fmean(o.usd for o in outcomes):.2f}"
    yield f"{fmean(o.kwh for o in outcomes):.2f}"
    yield f"{fmean(o.mean_replicas for o in outcomes):.2f}"
    yield f"{fmean(o.turns_per_h for o in outcomes):.1f}"
    yield f"{fmean(o.ttft_s['p99'] for o in outcomes):.1f}"


@contextmanager
def shown(jobs: Sequence[Job]) -> Iterator[Progress]:
    """Show a bar on stderr while runs go on, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        yield _Shown(jobs, bar)


class _Shown(Progress):
    def __init__(self, jobs: Sequence[Job], bar: Bar) -> None:
        super().__init__(jobs)
        self._bar = bar
        self._left = len(jobs)
        self._task = bar.add_task(self._words(), total=self.model_s)

    def passed(self, model_s: float) -> None:
        self._bar.advance(self._task, model_s)

    def done(self, done: Done) -> None:
        self._left -= 1
        self._bar.update(self._task, description=self._words())

    def _words(self) -> str:
        return f"{self._left} {'run' if self._left == 1 else 'runs'} to go"

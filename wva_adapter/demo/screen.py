"""What is seen of the demo: how every variant stands, what was decided, and what came of it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from wva_adapter.core.decision import Decision, Plan
from wva_adapter.core.fleet import VariantKey
from wva_adapter.core.policy import Policy
from wva_adapter.core.saturation import read_fill
from wva_adapter.core.snapshot import Phase, VariantState
from wva_adapter.demo.scene import (
    A100,
    H100,
    ITL_SLO_S,
    QWEN,
    SPEED,
    TTFT_SLO_S,
    service_rate_per_s,
    variants,
)
from wva_adapter.emulator.fleet import Fleet
from wva_adapter.emulator.hpa import HpaController
from wva_adapter.emulator.load import Load
from wva_adapter.runtime import Adapter

_SHOWN_DECISIONS = 7
_FRAME_S = 0.25
_PLAIN_S = 5.0
_RECENT_S = 15.0


@dataclass(frozen=True, slots=True)
class Change:
    """A count that the adapter changed, ``t_s`` seconds of the demo after its start."""

    t_s: float
    key: VariantKey
    before: int
    after: int
    why: str

    def words(self) -> str:
        """Return the change as a line for people."""
        return f"{self.t_s:4.0f} s  {self.key}  {self.before} → {self.after}  {self.why}"


@dataclass(slots=True)
class DemoSummary:
    """What came of it.

    Attributes:
        requests: All that arrived.
        in_slo: Those that met both bounds.
        failed: Those that got no whole answer.
        usd: What the fleet cost.
        usd_all_h100: What it would have cost with the A100 replicas' load on H100 ones.
    """

    requests: int = 0
    in_slo: int = 0
    failed: int = 0
    usd: float = 0.0
    usd_all_h100: float = 0.0
    changes: list[Change] = field(default_factory=list)

    @property
    def in_slo_pct(self) -> float | None:
        """Share of all requests that met the SLO; ``None`` where there was none."""
        return 100 * self.in_slo / self.requests if self.requests else None

    def document(self) -> dict[str, object]:
        """Return the shape that ``--json`` writes."""
        return {
            "requests": self.requests,
            "in_slo_pct": self.in_slo_pct,
            "failed": self.failed,
            "usd": self.usd,
            "usd_all_h100": self.usd_all_h100,
            "decisions": [
                {
                    "t_s": change.t_s,
                    "namespace": change.key.namespace,
                    "name": change.key.name,
                    "from": change.before,
                    "to": change.after,
                    "why": change.why,
                }
                for change in self.changes
            ],
        }


class Screen:
    """What runs, and what is seen of it."""

    def __init__(self, length_s: float, adapter: Adapter, fleet: Fleet) -> None:
        self._length_s = length_s
        self._adapter = adapter
        self._fleet = fleet
        self._variants = {variant.key: variant for variant in variants()}
        self._h100_per_a100 = service_rate_per_s(self._variants[A100]) / service_rate_per_s(
            self._variants[H100]
        )
        self._began_s = time.monotonic()
        self._billed_s = 0.0
        self._plan: Plan | None = None
        self._ttft = {key: Recent() for key in self._variants}
        self.controller: HpaController | None = None
        self.loads: tuple[Load, ...] = ()
        self.summary = DemoSummary()

    @property
    def now_s(self) -> float:
        """Seconds of the demo since it began."""
        return (time.monotonic() - self._began_s) * SPEED

    def look(self) -> list[Change]:
        """Take in what changed since the last look; return the counts that did."""
        self._count()
        self._bill()
        plan, snapshot = self._adapter.plan, self._adapter.snapshot
        if plan is None or snapshot is None or plan is self._plan:
            return []
        for state in snapshot.variants:
            self._ttft[state.variant.key].add(state, self.now_s)
        changes = [
            Change(round(self.now_s, 1), key, before, decision.desired, deciding_words(decision))
            for key, decision in plan.decisions.items()
            if (before := _desired(self._plan, decision)) != decision.desired
        ]
        self._plan = plan
        self.summary.changes += changes
        return changes

    def _count(self) -> None:
        results = [load.result() for load in self.loads]
        outcomes = [outcome for result in results for outcome in result.outcomes]
        self.summary.requests = len(outcomes)
        self.summary.failed = sum(result.failed for result in results)
        self.summary.in_slo = sum(outcome.in_slo(TTFT_SLO_S, ITL_SLO_S) for outcome in outcomes)

    def _bill(self) -> None:
        """Add what an H100-only fleet of the same capacity would have cost since the last look."""
        hours = (self.now_s - self._billed_s) / 3600
        self._billed_s = self.now_s
        exists = {key: sum(self._fleet.phases(key).values()) for key in self._variants}
        price = self._variants[H100].cost_per_h
        instead = math.ceil(exists[H100] + exists[A100] * self._h100_per_a100)
        other = exists[QWEN] * self._variants[QWEN].cost_per_h
        self.summary.usd_all_h100 += (instead * price + other) * hours
        self.summary.usd = sum(self._fleet.usd().values())

    def table(self) -> Table:
        """Return how every variant stands now."""
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("variant", no_wrap=True)
        for column in ("now", "starting", "wanted", "saturation", "queue", "$/h", "TTFT"):
            table.add_column(column, justify="right", min_width=6)
        states = self._adapter.snapshot.variants if self._adapter.snapshot else ()
        for state in states:
            key = state.variant.key
            phases = self._fleet.phases(key)
            decision = self._plan.decisions.get(key) if self._plan else None
            alive = phases[Phase.READY] + phases[Phase.STARTING] + phases[Phase.TERMINATING]
            table.add_row(
                str(key),
                str(phases[Phase.READY]),
                str(phases[Phase.STARTING] or ""),
                self._wanted(decision),
                _share(saturation(state)),
                _count_or_unknown(queued(state)),
                f"{alive * state.variant.cost_per_h:.2f}",
                self._ttft[key].words(),
            )
        return table

    def _wanted(self, decision: Decision | None) -> str:
        standing = None
        if self.controller is not None and decision is not None:
            standing = self.controller.standing[decision.key]
        if decision is None or (standing is not None and standing.problem is not None):
            return "<unknown>"
        return str(decision.desired)

    def progress(self) -> str:
        """Return the line above the table."""
        summary = self.summary
        in_flight = sum(load.in_flight for load in self.loads)
        share = "" if summary.in_slo_pct is None else f", {summary.in_slo_pct:.1f} % in SLO"
        return (
            f"{self.now_s:4.0f} of {self._length_s:.0f} s at {SPEED:g}x: "
            f"{summary.requests} requests answered{share}, {summary.failed} failed, "
            f"{in_flight} in flight, {summary.usd:.2f} $"
        )

    def closing_words(self) -> list[str]:
        """Return the summary for people."""
        summary = self.summary
        a100, h100 = self._variants[A100], self._variants[H100]
        bounds = f"TTFT ≤ {TTFT_SLO_S:g} s, inter-token time ≤ {1000 * ITL_SLO_S:g} ms"
        share = "unknown" if summary.in_slo_pct is None else f"{summary.in_slo_pct:.1f} %"
        saved = (
            f" ({100 * (1 - summary.usd / summary.usd_all_h100):.0f} % less)"
            if summary.usd_all_h100
            else ""
        )
        return [
            f"{summary.requests} requests, {share} in SLO ({bounds}), {summary.failed} failed",
            f"{summary.usd:.2f} $; an all-H100 fleet of the same capacity: "
            + f"{summary.usd_all_h100:.2f} ${saved}",
            f"(an A100 replica serves {self._h100_per_a100:.2f} of what an H100 one does here, "
            + f"for {a100.cost_per_h / h100.cost_per_h:.2f} of its price)",
        ]


class Recent:
    """The mean time to first token of one variant's requests of the last seconds."""

    def __init__(self) -> None:
        self._totals: list[tuple[float, Mapping[str, tuple[float, float]]]] = []

    def add(self, state: VariantState, now_s: float) -> None:
        """Take in what the replicas' counters say now."""
        totals = {
            replica.name: (replica.sample.ttft_sum_s, replica.sample.ttft_count)
            for replica in state.ready
            if replica.sample is not None
            and replica.sample.ttft_sum_s is not None
            and replica.sample.ttft_count is not None
        }
        self._totals.append((now_s, totals))
        while len(self._totals) > 2 and now_s - self._totals[0][0] > _RECENT_S:
            self._totals.pop(0)

    def words(self) -> str:
        """Return the mean, or nothing where no request got its first token."""
        if not self._totals:
            return ""
        (_, first), (_, last) = self._totals[0], self._totals[-1]
        grown = [
            (total - first[name][0], count - first[name][1])
            for name, (total, count) in last.items()
            if name in first
        ]
        requests = sum(count for _, count in grown)
        return f"{sum(total for total, _ in grown) / requests:.2f} s" if requests > 0 else ""


def deciding_words(decision: Decision) -> str:
    """Return the reason of the last step that moved the count, or of the last one at all."""
    moving = [step for step in decision.trail if step.before != step.after]
    steps = moving or decision.trail
    return f"{steps[-1].rule}: {steps[-1].why}" if steps else ""


def queued(state: VariantState) -> float | None:
    """Return the requests that wait in a variant's engines; ``None`` while none was seen."""
    queues = [
        replica.sample.queued_requests
        for replica in state.ready
        if replica.sample is not None and replica.sample.queued_requests is not None
    ]
    return sum(queues) if queues else None


def saturation(state: VariantState) -> float | None:
    """Return how full a variant's replicas are on average, 1 at their thresholds."""
    policy = Policy()
    fills = [read_fill(replica.sample) for replica in state.ready]
    shares = [fill.replicas(policy) for fill in fills if fill is not None]
    return fmean(shares) if shares else None


def _desired(plan: Plan | None, decision: Decision) -> int:
    """Return what the earlier plan wanted, or what there was before the first one."""
    earlier = None if plan is None else plan.decisions.get(decision.key)
    return decision.current if earlier is None else earlier.desired


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _count_or_unknown(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


async def show_live(demo: Screen, console: Console) -> None:
    """Draw the demo over and over in one place, until cancelled."""

    def frame() -> RenderableType:
        changes = demo.summary.changes[-_SHOWN_DECISIONS:]
        lines = [escape(change.words()) for change in changes]
        lines += [""] * (_SHOWN_DECISIONS - len(lines))
        return Group(demo.progress(), "", demo.table(), "", "last decisions", *lines)

    with Live(frame(), console=console, auto_refresh=False, transient=False) as live:
        while True:
            demo.look()
            live.update(frame(), refresh=True)
            await asyncio.sleep(_FRAME_S)


async def show_lines(demo: Screen, console: Console) -> None:
    """Print each change as it comes, and every few seconds how all stands, until cancelled."""
    due_s = 0.0
    while True:
        for change in demo.look():
            console.print(change.words(), markup=False, highlight=False, soft_wrap=True)
        if demo.now_s >= due_s:
            due_s = demo.now_s + _PLAIN_S * SPEED
            console.print(demo.progress(), markup=False, highlight=False, soft_wrap=True)
            console.print(demo.table(), highlight=False)
        await asyncio.sleep(_FRAME_S)

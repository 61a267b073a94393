"""The README's table and picture, from what ``make sim`` wrote."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tests.figures.svg import Bar, Figure, Panel
from wva_adapter.sim.contenders import FORESEEING, OURS

SCENARIOS = ("S1", "S1b", "S1c", "S2", "S3", "S4b", "S5", "S6")
PICTURED = {"S1": "a step", "S3": "bursts", "S5": "production arrivals", "S6": "a day's wave"}
POLICIES = (
    "demand-frugal",
    "demand",
    "demand-premium",
    "inflight-8",
    "inflight-16",
    "inflight-24",
    "slo-aware",
    "knative",
    "guard",
    "queue-0",
    "queue-300",
    "hpa-q3kv60",
    "hpa-q3kv60-throttled",
    "static-peak",
    "clairvoyant",
)
_LOWEST_PCT = 70.0
_OURS, _FORESEEING, _RIVAL = "#0072b2", "#8a94a6", "#d55e00"

Means = Mapping[tuple[str, str], tuple[float, float]]
"""Share in SLO and $ by scenario and policy."""


def means(runs: Sequence[Mapping[str, Any]]) -> Means:
    """Return the mean over seeds of each scenario and policy."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for run in runs:
        key = run["scenario"], run["policy"]
        found.setdefault(key, []).append((run["in_slo_pct"], run["usd"]))
    return {key: (fmean(s for s, _ in its), fmean(u for _, u in its)) for key, its in found.items()}


def table(of: Means) -> str:
    """Return the table as Markdown: in SLO % / $."""
    lines = [f"| | {' | '.join(SCENARIOS)} |", f"|---{'|---' * len(SCENARIOS)}|"]
    for policy in POLICIES:
        cells = []
        for scenario in SCENARIOS:
            share, usd = of[scenario, policy]
            cells.append(f"{share:.1f} / {usd:.1f}" if share < 99.95 else f"100 / {usd:.1f}")
        name = f"**{policy}**" if policy in OURS else policy
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(of: Means, seeds: str) -> Figure:
    """Return the picture: a bar for the $ of each policy, with its share in SLO beside it."""
    panels = []
    for scenario, what in PICTURED.items():
        bars = []
        for policy in POLICIES:
            share, usd = of[scenario, policy]
            if share >= _LOWEST_PCT:
                color = _FORESEEING if policy in FORESEEING else _RIVAL
                color = _OURS if policy in OURS else color
                bars.append(Bar(policy, usd, f"{usd:.1f} $, {share:.1f} %", color))
        panels.append(Panel(f"{scenario}, {what}", bars=bars, height=70 + 17 * len(bars)))
    words = (
        "Blue: this adapter, from a guess twice too slow. Orange: what others run. Grey: fleets that know "
        f"what will come. Mean of {seeds}; who is below {_LOWEST_PCT:.0f} % is left out."
    )
    title = "What each autoscaler costs, and its share of requests within the SLO"
    return Figure(title, [panels[:2], panels[2:]], words=[words])


def main() -> None:
    """Print the table, and write the picture to the file that is named last."""
    *sources, target = sys.argv[1:]
    runs = [run for source in sources for run in json.loads(Path(source).read_text())["runs"]]
    found = means(runs)
    print(table(found))
    Path(target).write_text(picture(found, _seeds(runs)).svg(), encoding="utf-8")


def _seeds(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return of how many seeds the means are, in words; of some there may be fewer than of others."""
    counts = Counter((run["scenario"], run["policy"]) for run in runs).values()
    fewest, most = min(counts), max(counts)
    words = f"{most}" if fewest == most else f"{fewest} to {most}"
    return f"{words} {'seed' if most == 1 else 'seeds'}"


if __name__ == "__main__":
    main()

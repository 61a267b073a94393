"""The paper's figures with this product's numbers, and what its authors claim beside them.

"WVA: A Global Optimization Control Plane for llmd", arXiv 2603.09730. Its text claims, against an
HPA: 37 % more effective throughput, a tenth of the failures, less power by cheaper variants first.
The HPA of its authors' benchmark is ``hpa-q3kv60-throttled`` here; ``inflight-16`` is the best
tuned one that people run, which the paper does not look at.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from tests.figures.svg import PALETTE, Bar, Figure, Line, Panel
from wva_adapter.sim.outcome import Outcome
from wva_adapter.sim.workers import Done, Job, Progress, work_all

THEIRS, BEST, OURS = "hpa-q3kv60-throttled", "inflight-16", "demand"
POLICIES = (OURS, THEIRS, BEST)
_COLORS = dict(zip(POLICIES, PALETTE, strict=False))
SCENARIOS = ("S1", "S1b", "S1c", "S2", "S2p", "S2-A100", "S2-H100", "S3", "S4", "S4b")
_CLAIM = (
    "The authors claim against an HPA: +37 % effective throughput and 10x fewer failed requests."
)

_ORDER = (
    "Here the order is by price per capacity: A100s first where they are cheaper by that (S2p), H100s "
    "first at list prices (S2), where ordering by price per replica pays more."
)

Runs = Mapping[tuple[str, str], Sequence[Outcome]]


class _Told(Progress):
    """Tells of each run that is over."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        super().__init__(jobs)
        self._left = len(jobs)

    def done(self, done: Done) -> None:
        self._left -= 1
        print(f"{self._left:3} to go after {done.job.scenario} {done.job.policy}", file=sys.stderr)


def _mean(runs: Runs, scenario: str, policy: str, field: str) -> float:
    return fmean(getattr(outcome, field) for outcome in runs[scenario, policy])


def _replicas(runs: Runs, scenario: str, policies: Sequence[str]) -> Panel:
    lines = []
    for policy in policies:
        moments = runs[scenario, policy][0].timeline
        lines.append(
            Line(
                policy,
                [m.at_s / 60 for m in moments],
                [float(sum(m.ready)) for m in moments],
                _COLORS[policy],
                step=True,
            )
        )
    return Panel(f"{scenario}: replicas that serve", "minutes", "replicas", lines)


def _arrivals(runs: Runs, scenario: str) -> Panel:
    moments = runs[scenario, OURS][0].timeline
    # Means over half a minute: what comes within five seconds is mostly chance.
    ends = range(6, len(moments), 6)
    line = Line(
        "",
        [moments[end].at_s / 60 for end in ends],
        [fmean(m.arrivals_per_s for m in moments[end - 6 : end]) for end in ends],
        "#5d6879",
    )
    return Panel(f"{scenario}: what comes", "minutes", "requests/s", [line])


def _waiting(runs: Runs, scenario: str, policies: Sequence[str]) -> Panel:
    lines = []
    for policy in policies:
        moments = runs[scenario, policy][0].timeline
        lines.append(
            Line(
                policy,
                [m.at_s / 60 for m in moments],
                [float(m.waiting + m.queued) for m in moments],
                _COLORS[policy],
            )
        )
    return Panel(f"{scenario}: requests that wait", "minutes", "requests", lines)


def _compared(runs: Runs, scenarios: Sequence[str]) -> list[list[str]]:
    table = [["", "tokens/s in SLO", "against it", "failed %", "fewer", "$", "turns/h"]]
    for scenario in scenarios:
        for policy in POLICIES:
            tokens, failed, usd, turns = (
                _mean(runs, scenario, policy, field)
                for field in ("goodput_tokens_per_s", "failed_pct", "usd", "turns_per_h")
            )
            against, fewer = "", ""
            if policy != THEIRS:
                base = _mean(runs, scenario, THEIRS, "goodput_tokens_per_s")
                lost = _mean(runs, scenario, THEIRS, "failed_pct")
                against = f"{100 * (tokens / base - 1):+.0f} %"
                fewer = (
                    f"{lost / failed:.{1 if lost < 100 * failed else 0}f}x"
                    if failed
                    else "none failed"
                )
            table.append(
                [
                    f"{scenario} {policy}",
                    f"{tokens:.0f}",
                    against,
                    f"{failed:.2f}",
                    fewer,
                    f"{usd:.2f}",
                    f"{turns:.1f}",
                ]
            )
    return table


def _verdict(runs: Runs, scenarios: Sequence[str]) -> str:
    parts = []
    for scenario in scenarios:
        base = _mean(runs, scenario, THEIRS, "goodput_tokens_per_s")
        gain = 100 * (_mean(runs, scenario, OURS, "goodput_tokens_per_s") / base - 1)
        best = 100 * (_mean(runs, scenario, BEST, "goodput_tokens_per_s") / base - 1)
        parts.append(f"{scenario} {gain:+.0f} % (best tuned HPA {best:+.0f} %)")
    return f"Here: {', '.join(parts)}."


def figures(runs: Runs, seeds: int) -> dict[str, Figure]:
    """Return the figures by the name of their file.

    Args:
        runs: Outcomes by scenario and policy, one per seed.
        seeds: How many seeds the numbers are means of.
    """
    means = f"Numbers are means of {seeds} seeds, curves those of the first; priors twice too slow."
    fleets = []
    for scenario in ("S2p", "S2"):
        moments = runs[scenario, OURS][0].timeline
        minutes = [m.at_s / 60 for m in moments]
        names = runs[scenario, OURS][0].variants
        prices = "1.20 and 3.90" if scenario == "S2p" else "1.80 and 3.20"
        fleets.append(
            Panel(
                f"{scenario}: {OURS}, A100 and H100 at {prices} $/h",
                "minutes",
                "replicas",
                [
                    Line(n, minutes, [float(m.ready[i]) for m in moments], PALETTE[i], step=True)
                    for i, n in enumerate(names)
                ],
            )
        )
    energy = [("A100 and H100", "S2"), ("A100 alone", "S2-A100"), ("H100 alone", "S2-H100")]
    spent = {
        scenario: [_mean(runs, scenario, OURS, field) for field in ("kwh", "usd", "in_slo_pct")]
        for _, scenario in energy
    }

    def bars(index: int, unit: str) -> list[Bar]:
        return [
            Bar(label, spent[s][index], f"{spent[s][index]:.2f} {unit}", PALETTE[i])
            for i, (label, s) in enumerate(energy)
        ]

    kwh = {s: values[0] for s, values in spent.items()}
    return {
        "fig2": Figure(
            "Figure 2, reactivity when a fleet saturates",
            [
                [_arrivals(runs, "S1"), _replicas(runs, "S1", POLICIES)],
                [_waiting(runs, "S1", POLICIES)],
            ],
            _compared(runs, ("S1", "S1b", "S1c")),
            [_CLAIM, _verdict(runs, ("S1", "S1b", "S1c")), means],
        ),
        "fig3": Figure(
            "Figure 3, which variant grows first",
            [fleets, [_arrivals(runs, "S2p"), _replicas(runs, "S2", POLICIES)]],
            _compared(runs, ("S2p", "S2")),
            [
                "The authors claim that cheaper variants are filled first, A100s before H100s.",
                _ORDER,
                means,
            ],
        ),
        "fig4": Figure(
            "Figure 4, stability under bursts",
            [[_arrivals(runs, "S3"), _replicas(runs, "S3", POLICIES)]],
            _compared(runs, ("S3",)),
            [_CLAIM, _verdict(runs, ("S3",)), means],
        ),
        "fig5": Figure(
            "Figure 5, failed requests",
            [[_replicas(runs, s, POLICIES), _waiting(runs, s, POLICIES)] for s in ("S4", "S4b")],
            _compared(runs, ("S4", "S4b")),
            [_CLAIM, _verdict(runs, ("S4", "S4b")), means],
        ),
        "fig6": Figure(
            "Figure 6, energy and money of a mixed fleet",
            [
                [
                    Panel("kWh in 40 minutes of S2", bars=bars(0, "kWh"), height=180),
                    Panel("$ in 40 minutes of S2", bars=bars(1, "$"), height=180),
                ]
            ],
            [
                ["fleet", "kWh", "$", "in SLO %"],
                *[[label, *(f"{value:.2f}" for value in spent[s])] for label, s in energy],
            ],
            [
                "The authors claim that tiering by cost lowers power against a fleet of high-end GPUs.",
                _energy(kwh),
                means,
            ],
        ),
    }


def _energy(kwh: Mapping[str, float]) -> str:
    mixed, a100, h100 = kwh["S2"], kwh["S2-A100"], kwh["S2-H100"]
    holds = "holds" if mixed < h100 else "does not hold"
    return (
        f"Here a mixed fleet takes {mixed / a100:.2f}x the energy of A100s alone and "
        f"{mixed / h100:.2f}x that of H100s alone: against the fleet of H100s the claim {holds}."
    )


def main() -> None:
    """Run what the figures need, and write them under ``build/paper``."""
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
    jobs = [
        Job(scenario, policy, seed, prior_error=2.0)
        for scenario in SCENARIOS
        for policy in (POLICIES if "-" not in scenario else (OURS,))
        for seed in seeds
    ]
    begin_s = time.monotonic()
    done = work_all(jobs, _Told(jobs), processes=2)
    if len(done) < len(jobs):
        sys.exit(f"make paper: interrupted after {len(done)} of {len(jobs)} runs")
    runs: dict[tuple[str, str], list[Outcome]] = {}
    for run in done:
        runs.setdefault((run.job.scenario, run.job.policy), []).append(run.outcome)
    folder = Path("build/paper")
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures(runs, len(seeds)).items():
        (folder / f"{name}.svg").write_text(figure.svg(), encoding="utf-8")
    print(f"{len(jobs)} runs in {time.monotonic() - begin_s:.0f} s: {folder}/fig2.svg to fig6.svg")


if __name__ == "__main__":
    main()

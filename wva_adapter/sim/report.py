"""Runs as one page for a browser that needs nothing else: points, timelines and a table each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from wva_adapter.errors import ConfigError
from wva_adapter.sim.contenders import OURS
from wva_adapter.sim.outcome import Outcome
from wva_adapter.sim.workers import Done, staged

_MEANS = (
    "in_slo_pct",
    "goodput_tokens_per_s",
    "failed_pct",
    "usd",
    "kwh",
    "mean_replicas",
    "turns_per_h",
)
_MOST_MOMENTS = 400


def open_file(option: str, file: Path) -> None:
    """Make sure that a file can be written, and leave what is there as it is.

    Raises:
        ConfigError: It cannot; the message names the option.
    """
    try:
        with file.open("ab"):
            pass
    except OSError as error:
        raise ConfigError(f"{option} {file}: cannot be written: {error.strerror}") from None


def page(done: Sequence[Done]) -> str:
    """Return the page of some runs, which come in the order of scenario, policy and seed."""
    from plotly.offline import get_plotlyjs

    scenarios = [
        {
            "name": name,
            "title": staged(name, runs[0].job.changes).title,
            "policies": [
                _policy(policy, [d.outcome for d in seeds])
                for policy, seeds in groupby(runs, key=lambda d: d.job.policy)
            ],
        }
        for name, runs in ((n, list(r)) for n, r in groupby(done, key=lambda d: d.job.scenario))
    ]
    # A name from a file could end the element that the document stands in.
    data = json.dumps({"scenarios": scenarios}, allow_nan=False).replace("<", "\\u003c")
    template = resources.files("wva_adapter.sim").joinpath("report.html").read_text("utf-8")
    before, _, rest = template.partition("/*PLOTLY*/")
    between, _, after = rest.partition("/*DATA*/")
    return f"{before}{get_plotlyjs()}{between}{data}{after}"


def _policy(name: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    means = {field: fmean(getattr(o, field) for o in outcomes) for field in _MEANS}
    return {"name": name, "ours": name in OURS, **means, "timeline": _timeline(outcomes[0])}


def _timeline(outcome: Outcome) -> dict[str, Any]:
    """Return columns over time, thinned to what a screen can show."""
    every = max(1, len(outcome.timeline) // _MOST_MOMENTS)
    moments = outcome.timeline[::every]
    end_min = outcome.horizon_s / 60
    return {
        "at_min": [round(m.at_s / 60, 2) for m in moments],
        "arrivals_per_s": [m.arrivals_per_s for m in moments],
        "waiting": [m.waiting + m.queued for m in moments],
        "ttft_p90_s": [None if m.ttft_p90_s is None else round(m.ttft_p90_s, 3) for m in moments],
        "variants": outcome.variants,
        "ready": [[m.ready[index] for m in moments] for index in range(len(outcome.variants))],
        "changes": [
            [
                *([round(c.at_s / 60, 2), c.replicas, c.why] for c in outcome.changes[variant]),
                [round(end_min, 2), outcome.changes[variant][-1].replicas, "the end"],
            ]
            for variant in outcome.variants
        ],
    }

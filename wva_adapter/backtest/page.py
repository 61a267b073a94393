"""A backtest as one page for a browser that needs nothing else."""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING, Any

from wva_adapter.backtest.bounds import BOUNDS, bound
from wva_adapter.sim.hindsight import LEARNED_OFF, Judged

if TYPE_CHECKING:
    from wva_adapter.backtest import Comparison
    from wva_adapter.core.fleet import LoadKey

_MOST_MOMENTS = 1500


def page(tested: Comparison) -> str:
    """Return the page: demand against what was asked for, over time, and a table, for each model."""
    from plotly.offline import get_plotlyjs

    models = [_model(tested, model) for model in tested.found.moments]
    # A name from a file could end the element that the document stands in.
    data = json.dumps({"source": tested.source, "models": models}, allow_nan=False)
    data = data.replace("<", "\\u003c")
    template = resources.files("wva_adapter.backtest").joinpath("page.html").read_text("utf-8")
    before, _, rest = template.partition("/*PLOTLY*/")
    between, _, after = rest.partition("/*DATA*/")
    return f"{before}{get_plotlyjs()}{between}{data}{after}"


def _model(tested: Comparison, model: LoadKey) -> dict[str, Any]:
    moments = tested.found.moments[model]
    every = max(1, len(moments) // _MOST_MOMENTS)
    carried = tested.found.carried
    return {
        "name": str(model),
        "at_ms": [round(1000 * m.at_s) for m in moments[::every]],
        "demand_per_s": [m.demand_per_s for m in moments[::every]],
        "policies": [
            {
                "name": judged.policy,
                "replica_hours": judged.replica_hours,
                "usd": judged.usd,
                "bound": BOUNDS[bound(judged)],
                "enough_s": judged.enough_s,
                "short_s": judged.short_s,
                "unknown_s": judged.unknown_s,
                "counts": {key.name: its[::every] for key, its in judged.counts.items()},
                "surely_per_s": _sum(judged, carried)[::every],
                "short": [[round(1000 * s.from_s), round(1000 * s.to_s)] for s in judged.short],
            }
            for judged in tested.found.judged
            if judged.model == model
        ],
        "learned_off": LEARNED_OFF,
    }


def _sum(judged: Judged, carried: Any) -> list[float]:
    """Return what the replicas that would have served have carried for sure, in each cycle."""
    length = len(next(iter(judged.ready.values()), ()))
    return [
        sum(its[index] * carried.get(key, 0.0) for key, its in judged.ready.items())
        for index in range(length)
    ]

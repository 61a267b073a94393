"""A real vLLM on the CPU, measured: what the adapter learns from it, and what the simulator says.

``make e2e-engine`` runs all of it, about an hour on 2 cores; nothing here runs in ``make test``
but what needs no engine.
"""

from __future__ import annotations

import sys
from typing import TypedDict


class Figure(TypedDict):
    """One figure.

    Attributes:
        runs: What the single runs gave, in their order: ``value`` is their median.
        target: What was asked for, in words.
        ok: Whether ``value`` meets it.
        waited: The largest share of the time for which the engine was ready to run and had no core,
            over the runs: at most what others on the machine took, since it also yields while it
            polls for work. ``None`` where nothing tells.
    """

    name: str
    value: float
    unit: str
    runs: list[float]
    target: str
    ok: bool
    waited: float | None


def tell(line: str) -> None:
    """Print a line of progress."""
    print(f"  · {line}", file=sys.stderr, flush=True)

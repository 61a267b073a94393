"""How long one decision takes."""

from __future__ import annotations

import time

from tests.bench import Row
from tests.builders import a_state, a_variant
from wva_adapter.core.memory import Memory
from wva_adapter.core.planner import plan
from wva_adapter.core.policy import Policy
from wva_adapter.core.snapshot import Snapshot


def _fleet(models: int, at_s: float) -> Snapshot:
    return Snapshot(
        at_s,
        tuple(
            a_state(
                a_variant(f"m{model}-v{v}", model_id=f"m{model}", cost=1.0 + v, maximum=20),
                at_s=at_s,
                usage=0.4 + 0.04 * v,
                ready=10,
            )
            for model in range(models)
            for v in range(5)
        ),
    )


def _cycle_s(models: int) -> float:
    """Return the CPU seconds of one cycle, the memory filled by the cycles before it."""
    memory = Memory()
    for cycle in range(3):
        _, memory = plan(_fleet(models, 5.0 * cycle), Policy(), memory)
    snapshot = _fleet(models, 15.0)
    started = time.process_time()
    plan(snapshot, Policy(), memory)
    return time.process_time() - started


def rows() -> list[Row]:
    """Return the CPU time of one cycle over one model of 5 variants of 10 replicas."""
    one = min(_cycle_s(1) for _ in range(20))
    return [
        Row(
            name="plan() over 1 model x 5 variants x 10 replicas",
            value=1000 * one,
            unit="ms CPU",
            against=None,
            ratio=None,
            target="<= 1 ms",
            ok=one <= 0.001,
        )
    ]

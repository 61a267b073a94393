"""A recording of the simulated fleet, as ``serve --record`` would have written it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from wva_adapter.collect.record import Recorder
from wva_adapter.core.memory import Memory
from wva_adapter.core.planner import plan
from wva_adapter.core.policies import Policies
from wva_adapter.core.policy import Policy
from wva_adapter.core.snapshot import Snapshot
from wva_adapter.sim.adapter import AdapterScaler
from wva_adapter.sim.outcome import Outcome
from wva_adapter.sim.scaler import Metrics, VariantView
from wva_adapter.sim.scenarios import Scenario
from wva_adapter.sim.world import Stage, run


class _Taken(AdapterScaler):
    """The adapter, whose snapshots are kept."""

    def __init__(self, stage: Stage, policy: Policy, taken: list[Snapshot]) -> None:
        super().__init__(stage.scenario, stage.observatory, policy)
        self._taken = taken

    def act(
        self, now_s: float, fleet: Sequence[VariantView], metrics: Metrics
    ) -> Mapping[str, int]:
        self._taken.append(self._snapshot(now_s, fleet))
        return super().act(now_s, fleet, metrics)


def record(
    scenario: Scenario,
    path: Path,
    *,
    seed: int = 0,
    policy: Policy | None = None,
    gateway: bool = True,
) -> Outcome:
    """Run a scenario under the adapter, and write down what it saw."""
    policy = policy or Policy()
    taken: list[Snapshot] = []
    outcome = run(scenario, lambda stage: _Taken(stage, policy, taken), seed)
    recorder, memory = Recorder(path), Memory()
    for snapshot in taken:
        seen = snapshot if gateway else replace(snapshot, gateways=())
        before = memory
        planned, memory = plan(seen, policy, memory)
        recorder.record(seen, Policies(policy), before, planned)
    recorder.close()
    return outcome

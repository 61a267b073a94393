"""Whole runs, to the last bit: what became of every request under laws without linear algebra.

A hash that differs means that the model has changed, or that chance has. If that was meant, what the
failure shows is the new one, and the figures of the README and DESIGN.md are to be made again.
"""

from __future__ import annotations

import pytest

from wva_adapter.sim import files
from wva_adapter.sim.contenders import contender
from wva_adapter.sim.scenarios import scenario
from wva_adapter.sim.world import run

HASHES = {
    ("S1b", "inflight-16"): "1ca4f157e0abc20e",
    ("S1b", "guard"): "0daaaec859e87450",
    ("S1b", "knative"): "379cbb5b767f3c5f",
    ("S1b", "slo-aware"): "c521e4a250cde0f4",
    ("S1b", "dynamo-latency"): "82341d00e9993fe0",
    ("S1b", "apa"): "e06d8602c73fc7a3",
    ("S1b", "hpa-cpu80"): "63a20c704b4c24a9",
    ("S1b", "token-aware"): "5fc1176172958589",
    ("S1c", "hpa-q3kv60-throttled"): "1d0260e9cf003674",
    ("S2", "queue-0"): "44f5e852660a1f8f",
    ("S3", "inflight-24"): "20600308da190c7e",
    ("S4", "hpa-q3kv60"): "8aad32bef8e576e5",
    ("S4b", "pool-saturation"): "241a717730a2aa94",
    ("SA", "slo-aware"): "0867ebcdd75c5714",
    ("MIX", "guard"): "a9eb532995d58efa",
    ("SHIFT", "inflight-16"): "34b2e4bf7a4bb831",
    ("BLIND-gateway", "inflight-16"): "8f6e057293745a41",
    ("TWO", "inflight-16"): "03edcebb25f8504c",
    ("LOOP", "knative"): "057f077d76ddbaf6",
    ("NODE", "hpa-gpu80"): "502abb560fe538bc",
    ("SPOT", "inflight-8"): "f17cd5b3a642997e",
    ("RESTART", "guard"): "c51511c3db7ad4bc",
    ("ZERO", "inflight-16"): "e44c0422f2feb189",
    ("PREFIX", "token-aware"): "caf64463786ee46e",
    ("70B", "queue-300"): "8668e0c1dc48018d",
    ("BATCH", "inflight-64"): "33e06563e90ab320",
}


@pytest.mark.parametrize(("of", "policy"), HASHES)
def test_every_request_meets_its_fate_to_the_bit(of: str, policy: str) -> None:
    competes = contender(policy)
    outcome = run(scenario(of, files), competes.tries[0], 7, when_saturated=competes.when_saturated)
    assert outcome.digest == HASHES[of, policy]

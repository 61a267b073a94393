"""How long one decision takes, and how much memory, with news on every page."""

from __future__ import annotations

import math
import resource
import subprocess
import sys
import time

from tests.bench import Row
from wva_adapter import garbage
from wva_adapter.core.fleet import Variant, VariantKey
from wva_adapter.core.memory import Memory
from wva_adapter.core.planner import plan
from wva_adapter.core.policy import Policy
from wva_adapter.core.snapshot import Phase, ReplicaSample, ReplicaState, Snapshot, VariantState

ACCELERATORS = ("A100", "H100", "L40S", "L4", "MI300X")
REPLICAS = 10
CYCLE_S = 5.0
FILLED_CYCLES = {1: 100, 1000: 5, 5000: 5}
"""Cycles before those that are measured, so that there is a past to learn from."""
TURNS = 2
"""Large fleets of both sizes are measured in turns: a machine's speed changes within minutes."""


def _page(name: str, at_s: float, replica: int, slower: float) -> ReplicaSample:
    """Return the page of a replica that serves about two requests per second, now more, now less."""
    since_s = at_s + CYCLE_S
    requests = 2.0 * since_s + 16.0 * (1 - math.cos(since_s / 40 + replica))
    return ReplicaSample(
        replica=name,
        at_s=at_s,
        awake=True,
        kv_cache_usage=0.4 + 0.02 * replica,
        kv_cache_tokens=400_000,
        running_requests=20.0,
        queued_requests=0.0,
        deferred_requests=0.0,
        prompt_tokens_total=600 * requests,
        computed_prompt_tokens_total=500 * requests,
        generation_tokens_total=250 * requests,
        successes_total=requests,
        aborts_total=0.0,
        preemptions_total=0.0,
        rejections_total=0.0,
        ttft_sum_s=0.2 * requests,
        ttft_count=requests,
        itl_sum_s=0.02 * slower * 250 * requests,
        itl_count=250 * requests,
        prefill_sum_s=0.05 * requests,
        input_tokens_sum=600 * requests,
        input_tokens_count=requests,
        output_tokens_sum=250 * requests,
        output_tokens_count=requests,
    )


def _state(name: str, place: int, model: str, at_s: float) -> VariantState:
    return VariantState(
        Variant(
            key=VariantKey("bench", name),
            model_id=model,
            accelerator=ACCELERATORS[place],
            cost_per_h=1.0 + place,
            max_replicas=2 * REPLICAS,
            max_num_seqs=256,
        ),
        REPLICAS,
        REPLICAS,
        tuple(
            ReplicaState(
                f"{name}-{r}",
                Phase.READY,
                created_at_s=-600.0,
                ready_at_s=-500.0,
                sample=_page(f"{name}-{r}", at_s, r, 1 + 0.2 * place),
            )
            for r in range(REPLICAS)
        ),
    )


def a_busy_fleet(models: int, at_s: float) -> Snapshot:
    """Return models of 5 variants of 10 replicas, every page of them new."""
    return Snapshot(
        at_s,
        tuple(
            _state(f"m{model}-v{place}", place, f"m{model}", at_s)
            for model in range(models)
            for place in range(len(ACCELERATORS))
        ),
    )


def _cycles_s(models: int, times: int) -> float:
    """Return the least CPU seconds of some cycles, the memory filled by the cycles before them."""
    memory, policy = Memory(), Policy()
    filled = FILLED_CYCLES[models]
    least_s = math.inf
    for cycle in range(filled + times):
        snapshot = a_busy_fleet(models, CYCLE_S * cycle)
        started = time.process_time()
        _, memory = plan(snapshot, policy, memory)
        if cycle >= filled:
            least_s = min(least_s, time.process_time() - started)
    return least_s


def _in_a_process_of_its_own(models: int) -> tuple[float, float]:
    """Return the CPU seconds of one cycle, and the peak of the resident memory in MB."""
    found = subprocess.run(
        [sys.executable, "-m", __name__, str(models)], check=True, capture_output=True, text=True
    )
    spent_s, peak_mb = found.stdout.split()
    return float(spent_s), float(peak_mb)


def rows() -> list[Row]:
    """Return CPU time and memory of one cycle over models of 5 variants of 10 replicas."""
    one_s = _cycles_s(1, 40)
    found = [(_in_a_process_of_its_own(1000), _in_a_process_of_its_own(5000)) for _ in range(TURNS)]
    thousand_s = min(few[0] for few, _ in found)
    peak_mb = max(few[1] for few, _ in found)
    many_s = min(many[0] for _, many in found)
    growth = many_s / (5 * thousand_s)
    return [
        Row(
            name="plan() over 1 model x 5 variants x 10 replicas, all pages new",
            value=1000 * one_s,
            unit="ms CPU",
            against=None,
            ratio=None,
            target="<= 1 ms",
            ok=one_s <= 0.001,
        ),
        Row(
            name="plan() over 1,000 such models",
            value=thousand_s,
            unit="s CPU",
            against=None,
            ratio=None,
            target="<= 1 s",
            ok=thousand_s <= 1,
        ),
        Row(
            name="memory of a process that plans 1,000 models, its pages with it",
            value=peak_mb,
            unit="MB",
            against=None,
            ratio=None,
            target="<= 300 MB",
            ok=peak_mb <= 300,
        ),
        Row(
            name="plan() over 5,000 models, against five times 1,000",
            value=many_s,
            unit="s CPU",
            against=5 * thousand_s,
            ratio=growth,
            target="<= 1.1x",
            ok=growth <= 1.1,
        ),
    ]


if __name__ == "__main__":
    # As the adapter does.
    garbage.set_aside()
    garbage.pace(int(sys.argv[1]) * len(ACCELERATORS) * REPLICAS)
    spent_s = _cycles_s(int(sys.argv[1]), 3)
    print(spent_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)

"""Laws of whole histories: constant demand comes to rest, and names decide nothing but ties."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import a_variant
from wva_adapter.core.fleet import Variant
from wva_adapter.core.memory import Memory
from wva_adapter.core.planner import plan
from wva_adapter.core.policy import Policy
from wva_adapter.core.snapshot import Phase, ReplicaSample, ReplicaState, Snapshot, VariantState

CYCLE_S = 15.0
BEGAN_S = 1_000_000.0
SETTLED_S = 900.0
PROMPT, OUTPUT = 1000.0, 200.0


class World:
    """Variants that serve a constant rate without noise, each pod ready some time after its order.

    A step takes ``step_s`` and 0.2 ms per request in the batch, on every device.
    """

    def __init__(self, variants: tuple[Variant, ...], start_s: float, policy: Policy) -> None:
        self.variants, self.start_s, self.policy = variants, start_s, policy
        self.at_s = BEGAN_S
        self.memory = Memory()
        self.counts = {v.key: 1 for v in variants}
        self.pods: dict[str, tuple[Variant, float]] = {
            f"{v.key.name}-0": (v, BEGAN_S - 1000) for v in variants
        }
        self.sums: dict[str, tuple[float, float]] = {}
        self.number = 0

    def cycle(self, rate: float) -> None:
        """Let a cycle pass, decide, and do as decided."""
        self.at_s += CYCLE_S
        ready = [p for p, (_, born_s) in self.pods.items() if self.at_s - born_s >= self.start_s]
        for name in ready:
            each = rate / len(ready)
            batch = each * OUTPUT * 0.012 / max(0.1, 1 - each * OUTPUT * 0.0002)
            n, token_s = self.sums.get(name, (0.0, 0.0))
            served = each * CYCLE_S
            self.sums[name] = (n + served, token_s + served * OUTPUT * (0.012 + 0.0002 * batch))
        decided, self.memory = plan(
            Snapshot(self.at_s, tuple(self._state(v, ready) for v in self.variants)),
            self.policy,
            self.memory,
        )
        for key, decision in decided.decisions.items():
            self._scale(key.name, decision.desired)
            self.counts[key] = decision.desired

    def _state(self, variant: Variant, ready: list[str]) -> VariantState:
        replicas = []
        for name, (owner, born_s) in self.pods.items():
            if owner.key != variant.key:
                continue
            if name not in ready:
                replicas.append(ReplicaState(name, Phase.STARTING, born_s))
                continue
            n, token_s = self.sums.get(name, (0.0, 0.0))
            page = ReplicaSample(
                replica=name,
                at_s=self.at_s,
                awake=True,
                kv_cache_usage=0.1,
                kv_cache_tokens=400_000,
                running_requests=8.0,
                queued_requests=0.0,
                prompt_tokens_total=n * PROMPT,
                computed_prompt_tokens_total=n * PROMPT,
                generation_tokens_total=n * OUTPUT,
                ttft_sum_s=0.1 * n,
                ttft_count=n,
                itl_sum_s=token_s,
                itl_count=n * OUTPUT,
                prefill_sum_s=0.05 * n,
                output_tokens_sum=n * OUTPUT,
                output_tokens_count=n,
            )
            replicas.append(ReplicaState(name, Phase.READY, born_s, born_s + self.start_s, page))
        spec = self.counts[variant.key]
        return VariantState(variant, spec, spec, tuple(replicas))

    def _scale(self, variant: str, count: int) -> None:
        mine = [name for name, (owner, _) in self.pods.items() if owner.key.name == variant]
        for name in mine[count:]:
            del self.pods[name]
        owner = next(v for v in self.variants if v.key.name == variant)
        for _ in range(count - len(mine)):
            self.number += 1
            self.pods[f"{variant}-{self.number}"] = (owner, self.at_s)


def a_world(names: tuple[str, ...], costs: tuple[float, ...], start_s: float = 60.0) -> World:
    variants = tuple(
        replace(a_variant(name, cost=cost, maximum=40, minimum=0), max_num_seqs=128)
        for name, cost in zip(names, costs, strict=True)
    )
    return World(variants, start_s, Policy())


@settings(max_examples=500, deadline=None)
@given(st.floats(0.2, 60), st.sampled_from([7.0, 30.0, 96.0, 158.0]))
def test_constant_demand_changes_direction_at_most_once_after_a_quarter_of_an_hour(
    rate: float, start_s: float
) -> None:
    world = a_world(("only",), (1.2,), start_s)
    counts: list[int] = []
    for cycle in range(int(1.25 * SETTLED_S / CYCLE_S)):
        world.cycle(rate)
        if cycle * CYCLE_S >= SETTLED_S:
            counts.append(sum(world.counts.values()))
    moves = [b > a for a, b in pairwise(counts) if a != b]
    assert sum(one != other for one, other in pairwise(moves)) <= 1


@settings(max_examples=500, deadline=None)
@given(
    st.floats(0.2, 60),
    st.permutations(["ann", "bob", "cid"]),
    st.permutations([1.0, 1.7, 3.1]),
    st.integers(2, 6),
)
def test_names_decide_nothing_where_prices_differ(
    rate: float, names: list[str], costs: list[float], cycles: int
) -> None:
    known = a_world(("one", "two", "three"), tuple(costs))
    renamed = a_world(tuple(names), tuple(costs))
    for _ in range(cycles):
        known.cycle(rate)
        renamed.cycle(rate)
        assert list(known.counts.values()) == list(renamed.counts.values())

"""Token demand against token capacity, with the arithmetic beside each case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import a_key, a_sample, a_variant
from wva_adapter.core.fleet import Variant
from wva_adapter.core.load import ModelLoad
from wva_adapter.core.policy import Policy
from wva_adapter.core.snapshot import (
    GatewayState,
    Phase,
    ReplicaSample,
    ReplicaState,
    VariantState,
)
from wva_adapter.core.token_memory import TokenMemory
from wva_adapter.core.tokens import (
    Lengths,
    analyze_tokens,
    derived_bound,
    gateway_tokens,
    prefix_hit_rate,
    read_lengths,
)

POLICY = Policy(analysis="tokens")


def a_page(
    usage: float | None = 0.3,
    *,
    queue: float | None = 0.0,
    size: int | None = 10_000,
    prompt: float | None = 400.0,
    output: float | None = 200.0,
    at_s: float = 0.0,
) -> ReplicaSample:
    return replace(
        a_sample(usage=usage, queue=queue, at_s=at_s),
        kv_cache_tokens=size,
        mean_input_tokens=prompt,
        output_tokens_sum=None if output is None else 10 * output,
        output_tokens_count=None if output is None else 10.0,
    )


def fleet(
    *pages: ReplicaSample | None, variant: Variant | None = None, spec: int | None = None
) -> VariantState:
    """A variant with one replica per page; ``None`` is one that timed out and was never read."""
    replicas = tuple(
        ReplicaState(f"r{i}", sample=page, problem=None if page else "timed out after 2 s")
        for i, page in enumerate(pages)
    )
    return VariantState(
        variant or a_variant(), len(replicas) if spec is None else spec, replicas=replicas
    )


def a_gateway(**said: Any) -> GatewayState:
    return replace(GatewayState(namespace="chat", model_id="llama", at_s=0.0), **said)


def analyzed(
    *states: VariantState,
    memory: TokenMemory | None = None,
    gateway: GatewayState | None = None,
    at_s: float = 0.0,
) -> ModelLoad:
    return analyze_tokens(states, memory or TokenMemory(), gateway, at_s, POLICY)[0]


def learned(
    *states: VariantState, memory: TokenMemory | None = None, at_s: float = 0.0
) -> TokenMemory:
    return analyze_tokens(states, memory or TokenMemory(), None, at_s, POLICY)[1]


def limited(batched: int | None = 60, seqs: int | None = 256, name: str = "llama-a100") -> Variant:
    return replace(a_variant(name), max_num_batched_tokens=batched, max_num_seqs=seqs)


# --- golden cases: usage, queue per replica; on the way; demand, shortage, surplus --------------
# Each replica: 10,000 tokens of cache, so 8000 at 0.80; prompts of 400, outputs of 200 tokens.

GOLDEN = [
    # 3000; 3000/.85 = 3529 < 8000; one replica never goes
    pytest.param([(0.3, 0)], 0, 3000, 0, 0, id="one at ease"),
    # 5000 + 2·400 + 1000 = 6800; 6800/.85 = 8000 < 16,000; 16,000 − 6800/.7 = 6285.71
    pytest.param([(0.5, 2), (0.1, 0)], 0, 6800, 0, 6285.71, id="queued prompts count"),
    # 6800/.85 = 8000: just what one carries; 6800/.7 = 9714 > 8000
    pytest.param([(0.68, 0)], 0, 6800, 0, 0, id="at the upper threshold"),
    # 6885/.85 = 8100 − 8000 = 100
    pytest.param([(0.6885, 0)], 0, 6885, 100, 0, id="just above it"),
    # 7650/.85 = 9000 − 8000 = 1000
    pytest.param([(0.765, 0)], 0, 7650, 1000, 0, id="more above it"),
    # 9000 − 16,000 < 0; only ready ones are surplus: 8000 − 7650/.7 < 0
    pytest.param([(0.765, 0)], 1, 7650, 0, 0, id="what is on its way is supply"),
    # (7650 + 4·400)/.85 = 10,882.35 − 8000
    pytest.param([(0.765, 4)], 0, 9250, 2882.35, 0, id="a queue below five teaches nothing"),
    # (7650 + 4·400 + 7650 + 4·400)/.85 = 21,764.71 − 24,000 < 0
    pytest.param([(0.765, 4)] * 2, 1, 18_500, 0, 0, id="one on its way suffices for two"),
    # 2·6000/.85 = 14,117 < 16,000 < 12,000/.7 = 17,142
    pytest.param([(0.6, 0)] * 2, 0, 12_000, 0, 0, id="between the thresholds"),
    # 16,000 − 7000/.7 = 6000
    pytest.param([(0.35, 0)] * 2, 0, 7000, 0, 6000, id="room for less than one to go"),
    # 16,000 − 5600/.7 = 8000: one goes
    pytest.param([(0.28, 0)] * 2, 0, 5600, 0, 8000, id="room for one to go"),
    # 40,000 − 10,000/.7 = 25,714.29: three go
    pytest.param([(0.2, 0)] * 5, 0, 10_000, 0, 25_714.29, id="room for three to go"),
    # the same with 7 on their way: no surplus of what is not ready
    pytest.param([(0.2, 0)] * 5, 7, 10_000, 0, 25_714.29, id="those on their way are no surplus"),
    # nothing in use: all but one replica
    pytest.param([(0.0, 0)] * 3, 0, 0, 0, 16_000, id="idle"),
    # 9500 + 9500 + 100 = 19,100; /.85 = 22,470.59 < 24,000; /.7 = 27,286 > 24,000
    pytest.param([(0.95, 0), (0.95, 0), (0.01, 0)], 0, 19_100, 0, 0, id="full ones must fit too"),
    # q = 5 at 6000: k2 = 6000 < 8000; (6000 + 5·400)/.85 − 6000
    pytest.param([(0.6, 5)], 0, 8000, 3411.76, 0, id="compute bound seen"),
    # q = 5 at 9000: k2 = 9000, but k1 = 8000 binds; (9000 + 2000)/.85 − 8000
    pytest.param([(0.9, 5)], 0, 11_000, 4941.18, 0, id="memory binds before compute"),
    # (9500 + 30·400)/.85 − 8000 = 25,294.12 − 8000
    pytest.param([(0.95, 30)], 0, 21_500, 17_294.12, 0, id="a backlog at once"),
    # two see 6000 and 4000: k2 = 5000 each; (10,000 + 10·400)/.85 − 10,000
    pytest.param([(0.6, 5), (0.4, 5)], 0, 14_000, 6470.59, 0, id="mean of two bounds"),
    # k2 = 6000 from one holds for the other too: 12,000 − (6000 + 2000 + 500)/.7 < 0;
    # 8500/.85 = 10,000 < 12,000
    pytest.param([(0.6, 5), (0.05, 0)], 0, 8500, 0, 0, id="one's bound is the other's"),
]


@pytest.mark.parametrize(("replicas", "coming", "demand", "shortage", "surplus"), GOLDEN)
def test_it_decides_what_the_formulae_say(
    replicas: Sequence[tuple[float, float]],
    coming: int,
    demand: float,
    shortage: float,
    surplus: float,
) -> None:
    pages = [a_page(usage, queue=queue) for usage, queue in replicas]
    load = analyzed(fleet(*pages, spec=len(pages) + coming))
    assert load.demand == pytest.approx(demand)
    assert load.shortage == pytest.approx(shortage, abs=0.01)
    assert load.surplus == pytest.approx(surplus, abs=0.01)


# --- the gateway ----------------------------------------------------------------------------

GATEWAY = [
    # max(0/4, 10·400) + 10·200
    pytest.param({"queued_requests": 10.0}, 0.0, 6000, id="mean lengths"),
    # max(40,000/4, 4000) + 2000
    pytest.param({"queued_requests": 10.0, "queued_bytes": 40_000.0}, 0.0, 12_000, id="bytes"),
    # max(8000/4, 4000) + 2000
    pytest.param({"queued_requests": 10.0, "queued_bytes": 8000.0}, 0.0, 6000, id="small bytes"),
    # 4000·(1 − .25) + 2000
    pytest.param({"queued_requests": 10.0}, 0.25, 5000, id="a cache holds a quarter"),
    # 10,000·(1 − .5) + 2000
    pytest.param({"queued_requests": 10.0, "queued_bytes": 40_000.0}, 0.5, 7000, id="half of it"),
    pytest.param({"queued_requests": 0.0, "queued_bytes": 999.0}, 0.0, 0, id="none waits"),
]


@pytest.mark.parametrize(("said", "hit_rate", "tokens"), GATEWAY)
def test_what_the_gateway_holds_is_demand(
    said: dict[str, float], hit_rate: float, tokens: float
) -> None:
    assert gateway_tokens(a_gateway(**said), Lengths(400, 200), hit_rate) == (tokens, None)


def test_the_gateways_queue_adds_to_the_engines_demand() -> None:
    # (3000 + 6000)/.85 − 8000; the sample's counters say that no cache held anything
    load = analyzed(fleet(a_page(0.3)), gateway=a_gateway(queued_requests=10.0))
    assert load.demand == 9000
    assert load.shortage == pytest.approx(9000 / 0.85 - 8000)


def test_the_hit_rate_is_the_share_of_prompt_tokens_that_was_not_computed() -> None:
    one = replace(a_page(), prompt_tokens_total=1000.0, computed_prompt_tokens_total=500.0)
    two = replace(a_page(), prompt_tokens_total=3000.0, computed_prompt_tokens_total=2500.0)
    assert prefix_hit_rate([fleet(one, two)]) == 0.25  # 1 − 3000/4000
    assert prefix_hit_rate([fleet(a_page())]) == 0


@pytest.mark.parametrize(
    ("gateway", "why"),
    [
        (a_gateway(), "the gateway's queue is unknown, so none can go"),
        (a_gateway(queued_requests=0.0, at_s=-16.0), "the gateway's queue is unknown"),
    ],
)
def test_a_gateway_that_is_not_read_lets_nothing_go(gateway: GatewayState, why: str) -> None:
    load = analyzed(fleet(*[a_page(0.1)] * 3), gateway=gateway)
    assert load.surplus == 0
    assert why in load.binding


def test_requests_of_unknown_length_in_the_gateway_let_nothing_go() -> None:
    page = a_page(0.1, prompt=None, output=None)
    load = analyzed(fleet(*[page] * 3), gateway=a_gateway(queued_requests=1.0))
    assert load.surplus == 0
    assert "the gateway holds requests of unknown length" in load.binding


def test_a_queue_in_the_gateway_is_a_shortage_where_nothing_runs() -> None:
    memory = learned(fleet(a_page()))
    load = analyzed(
        fleet(), memory=memory, gateway=a_gateway(queued_requests=5.0, queued_bytes=8000.0)
    )
    # no replica tells of lengths: 8000/4 = 2000 tokens at least
    assert load.shortage == pytest.approx(2000 / 0.85)


# --- the capacity of a replica ------------------------------------------------------------------


def test_a_short_queue_observes_nothing() -> None:
    assert analyzed(fleet(a_page(0.6, queue=4.9))).capacity == {a_key(): 8000}


def test_the_observed_bound_is_the_mean_of_the_last_ten() -> None:
    memory = TokenMemory()
    for i in range(12):
        memory = learned(
            fleet(a_page(0.10 + 0.01 * i, queue=5, at_s=i)), memory=memory, at_s=float(i)
        )
    # 0.12 .. 0.21 are the last ten: mean 0.165
    assert memory.capacities[a_key()][1] == pytest.approx(1650)


def test_one_page_is_observed_once() -> None:
    state = fleet(a_page(0.6, queue=5))
    memory = learned(state)
    assert learned(state, memory=memory, at_s=5).observed == memory.observed


def test_a_page_that_was_unseen_for_a_while_is_no_news_when_it_is_back() -> None:
    state = fleet(a_page(0.6, queue=5))
    lost = replace(state, replicas=(replace(state.replicas[0], problem="connection refused"),))
    memory = learned(lost, memory=learned(state), at_s=5)
    assert learned(state, memory=memory, at_s=10).observed == memory.observed


@pytest.mark.parametrize(("first", "second", "shared"), [(99, 50, True), (99, 100, False)])
def test_bounds_are_kept_by_output_class(first: float, second: float, shared: bool) -> None:
    memory = learned(fleet(a_page(0.6, queue=5, output=first)))
    load = analyzed(fleet(a_page(0.1, output=second, at_s=5)), memory=memory, at_s=5)
    assert load.capacity == {a_key(): 6000 if shared else 8000}


def test_output_classes_end_at_100_and_500() -> None:
    assert [Lengths(1, o).output_bucket for o in (99, 100, 499, 500, None)] == [
        "short",
        "medium",
        "medium",
        "long",
        None,
    ]


@pytest.mark.parametrize(
    ("batched", "seqs", "tokens"),
    [
        (60, 256, 10_000),  # 60·200/(400 + 200) = 20 requests of 400 + 100 tokens
        (60, 8, 4000),  # 8 of them at most
        (600, 256, 100_000),  # 200 requests
        (None, 8, None),
        (60, None, None),
    ],
)
def test_the_derived_bound(batched: int | None, seqs: int | None, tokens: float | None) -> None:
    assert derived_bound(limited(batched, seqs), Lengths(400, 200)) == tokens


def test_the_derived_bound_needs_both_lengths() -> None:
    assert derived_bound(limited(), Lengths(None, 200)) is None
    assert derived_bound(limited(), Lengths(400, None)) is None


def test_the_derived_bound_counts_until_one_is_observed() -> None:
    variant = limited(60, 8)
    assert analyzed(fleet(a_page(), variant=variant)).capacity == {a_key(): 4000}
    assert analyzed(fleet(a_page(0.5, queue=5), variant=variant)).capacity == {a_key(): 5000}


def test_a_variants_capacity_is_the_median_of_its_replicas() -> None:
    load = analyzed(fleet(a_page(size=1000), a_page(size=2000), a_page(size=9000)))
    assert load.capacity == {a_key(): 1600}
    load = analyzed(fleet(a_page(size=1000), a_page(size=2000)))
    assert load.capacity == {a_key(): 1200}  # (800 + 1600) / 2


def test_a_variant_at_zero_keeps_what_it_was_seen_to_carry() -> None:
    memory = learned(fleet(a_page(size=5000)))
    load = analyzed(fleet(), fleet(a_page(), variant=a_variant("other")), memory=memory)
    assert load.capacity == {a_key(): 4000, a_key("other"): 8000}


def test_changed_hardware_is_another_capacity() -> None:
    memory = learned(fleet(a_page(size=5000)))
    moved = fleet(variant=replace(a_variant(), accelerators_per_replica=2))
    load = analyzed(moved, memory=memory)
    assert load.capacity == {}
    assert load.binding.startswith("no capacity known")


def test_a_variant_never_seen_carries_what_a_compatible_one_does() -> None:
    load = analyzed(fleet(a_page()), fleet(variant=a_variant("new")))
    assert load.capacity[a_key("new")] == 8000
    assert "assumed" not in load.binding


def test_variants_on_unknown_accelerators_are_compatible_with_none() -> None:
    known = replace(a_variant(), accelerator=None)
    new = replace(limited(60, 8, name="new"), accelerator=None)
    load = analyzed(fleet(a_page(), variant=known), fleet(variant=new))
    assert load.capacity[a_key("new")] == 4000  # derived


def test_without_a_compatible_one_it_is_derived() -> None:
    h100 = replace(limited(name="h100"), accelerator="H100")
    assert analyzed(fleet(a_page()), fleet(variant=h100)).capacity[a_key("h100")] == 10_000


def test_where_nothing_tells_the_smallest_is_assumed_and_named() -> None:
    h100 = replace(a_variant("h100"), accelerator="H100")
    load = analyzed(fleet(a_page()), fleet(variant=h100))
    assert load.capacity[a_key("h100")] == 8000
    assert "h100 never seen, assumed to carry 8,000 like the smallest" in load.binding


def test_a_variant_that_is_gone_leaves_the_memory() -> None:
    memory = learned(fleet(a_page()), fleet(a_page(), variant=a_variant("old")))
    assert set(learned(fleet(a_page(at_s=5)), memory=memory, at_s=5).capacities) == {a_key()}


# --- what is not seen ---------------------------------------------------------------------------


def test_a_silent_replica_counts_as_full_when_room_is_sought() -> None:
    # ready 4 × 8000, load 3000 + 8000 of the silent one: 32,000 − 11,000/.7 = 16,285.71
    load = analyzed(fleet(a_page(0.1), a_page(0.1), a_page(0.1), None))
    assert load.surplus == pytest.approx(32_000 - 11_000 / 0.7)
    assert load.shortage == 0
    assert "1 of 4 ready replicas unseen" in load.binding


def test_an_unseen_replica_counts_with_its_last_page() -> None:
    gone = ReplicaState("r9", sample=a_page(0.2), problem="connection refused")
    state = fleet(a_page(0.1), a_page(0.1))
    load = analyzed(replace(state, replicas=(*state.replicas, gone)))
    assert load.demand == 4000
    assert load.surplus == pytest.approx(16_000)  # 24,000 − max(8000, 4000/.7)


def test_an_unseen_idle_replica_hides_no_shortage_of_the_seen() -> None:
    # seen: 7650/.85 − 8000 = 1000; with the lost one (7650 + 0)/.85 − 16,000 would be none
    lost = ReplicaState("r9", sample=a_page(0.0), problem="connection refused")
    state = fleet(a_page(0.765))
    load = analyzed(replace(state, replicas=(*state.replicas, lost)))
    assert load.shortage == pytest.approx(1000)


def test_an_unseen_full_replica_is_a_shortage() -> None:
    # (7000 + 9000)/.85 − 16,000 = 2823.53; seen alone 7000/.85 − 8000 = 235.29
    lost = ReplicaState("r9", sample=a_page(0.9), problem="connection refused")
    state = fleet(a_page(0.7))
    load = analyzed(replace(state, replicas=(*state.replicas, lost)))
    assert load.shortage == pytest.approx(16_000 / 0.85 - 16_000)


def test_nothing_seen_asks_for_nothing() -> None:
    load = analyzed(fleet(None), memory=learned(fleet(a_page())))
    assert (load.demand, load.shortage, load.surplus) == (None, 0, 0)
    assert load.binding.startswith("no replica seen")


def test_a_replica_that_was_not_asked_yet_is_on_its_way() -> None:
    state = fleet(a_page(0.765))
    new = ReplicaState("new")
    load = analyzed(replace(state, spec_replicas=2, replicas=(*state.replicas, new)))
    assert (load.shortage, load.supply) == (0, 16_000)


def test_a_page_without_the_cache_size_is_unseen() -> None:
    load = analyzed(fleet(a_page(0.1), a_page(0.1, size=None)))
    assert "1 of 2 ready replicas unseen" in load.binding
    assert load.demand == 1000


def test_waiting_requests_of_unknown_length_keep_what_there_is() -> None:
    load = analyzed(fleet(*[a_page(0.0, queue=1, prompt=None) for _ in range(3)]))
    assert load.surplus == 0
    assert "prompt length is unknown" in load.binding


def test_an_unknown_length_is_that_of_the_models_other_replicas() -> None:
    assert analyzed(fleet(a_page(0.0, queue=2, prompt=None), a_page(0.0))).demand == 800


def test_lengths_without_recent_ones_are_those_of_all_the_past() -> None:
    page = replace(a_page(prompt=None), input_tokens_sum=900.0, input_tokens_count=3.0)
    assert read_lengths(page) == Lengths(300, 200)
    assert read_lengths(replace(page, input_tokens_count=0.0)).prompt is None


def test_a_sleeping_engine_is_neither_supply_nor_demand() -> None:
    load = analyzed(fleet(a_page(0.3), replace(a_page(0.9), awake=False)))
    assert (load.demand, load.supply) == (3000, 8000)
    assert "1 asleep" in load.binding


def test_terminating_replicas_count_for_nothing() -> None:
    state = fleet(a_page(0.3))
    ending = ReplicaState("old", Phase.TERMINATING, sample=a_page(0.9))
    load = analyzed(replace(state, replicas=(*state.replicas, ending)))
    assert (load.demand, load.supply) == (3000, 8000)


def test_the_words_have_the_numbers() -> None:
    assert analyzed(fleet(a_page(0.765))).binding == (
        "7,650 tokens / 0.85 exceed the capacity of 8,000 by 1,000"
    )
    assert analyzed(fleet(*[a_page(0.28)] * 2, spec=3)).binding == (
        "5,600 tokens / 0.85 fit the capacity of 16,000 and 8,000 starting; "
        "at 0.7 8,000 tokens could go"
    )


# --- laws -----------------------------------------------------------------------------------

USAGES = st.lists(st.floats(0, 1), min_size=1, max_size=6)


def pages(usages: Sequence[float], unit: int = 1) -> VariantState:
    # Where more than 0.5 is in use as many requests wait as teach a bound.
    return fleet(
        *[
            a_page(u, size=10_000 * unit, prompt=400 * unit, queue=5 if u > 0.5 else 1)
            for u in usages
        ]
    )


@settings(max_examples=500, deadline=None)
@given(USAGES, st.floats(0, 1))
def test_a_larger_demand_never_wants_less_capacity(usages: list[float], more: float) -> None:
    fuller = [min(1.0, usage + more) for usage in usages]
    less, greater = analyzed(pages(usages)), analyzed(pages(fuller))
    assert greater.shortage >= less.shortage - 1e-6
    assert greater.surplus <= less.surplus + 1e-6


@settings(max_examples=500, deadline=None)
@given(USAGES, st.sampled_from([2, 8, 64]))
def test_the_unit_of_tokens_does_not_matter(usages: list[float], unit: int) -> None:
    one, other = analyzed(pages(usages)), analyzed(pages(usages, unit))
    assert other.shortage == pytest.approx(one.shortage * unit, abs=1e-6)
    assert other.surplus == pytest.approx(one.surplus * unit, abs=1e-6)


@settings(max_examples=500, deadline=None)
@given(USAGES, USAGES)
def test_order_changes_nothing(first: list[float], second: list[float]) -> None:
    one, two = pages(first), replace(pages(second), variant=a_variant("other", cost=3))
    flipped = replace(one, replicas=tuple(reversed(one.replicas)))
    load, memory = analyze_tokens([one, two], TokenMemory(), None, 0.0, POLICY)
    again, same = analyze_tokens([two, flipped], TokenMemory(), None, 0.0, POLICY)
    assert memory == same
    assert (load.shortage, load.surplus, load.capacity) == (
        again.shortage,
        again.surplus,
        again.capacity,
    )


@settings(max_examples=500, deadline=None)
@given(USAGES, st.integers(0, 5))
def test_a_replica_that_falls_silent_lets_no_more_go(usages: list[float], index: int) -> None:
    state = pages(usages)
    index %= len(usages)
    lost = replace(state.replicas[index], problem="timed out after 2 s")
    replicas = (*state.replicas[:index], lost, *state.replicas[index + 1 :])
    memory = learned(state)
    seen = analyzed(state, memory=memory)
    assert analyzed(replace(state, replicas=replicas), memory=memory).surplus <= seen.surplus + 1e-6

"""The decision as an operator meets it, told as stories."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import a_key, a_replica, a_state, a_variant, decide
from wva_adapter.core.decision import Decision, Plan
from wva_adapter.core.fleet import Reader
from wva_adapter.core.memory import Memory
from wva_adapter.core.policy import Policy
from wva_adapter.core.snapshot import Phase, ReplicaState, Snapshot, VariantState

SHORT = Policy(analysis="saturation", scale_down_window_s=30, peak_window_s=0, down_period_s=15)


def only(plan: Plan) -> Decision:
    (decision,) = plan.decisions.values()
    return decision


def counts(plan: Plan) -> dict[str, int]:
    return {key.name: decision.desired for key, decision in plan.decisions.items()}


def said(decision: Decision, rule: str) -> str:
    return " | ".join(step.why for step in decision.trail if step.rule == rule)


def test_a_full_fleet_grows_at_once_by_one() -> None:
    plan, _ = decide(a_state(usage=[0.75, 0.75]))
    decision = only(plan)
    assert decision.desired == 3
    assert "spare KV cache 5 % < 10 %" in said(decision, "follow_demand")
    assert "+1 at 1.2 $/h each, the cheapest with room" in said(decision, "follow_demand")


def test_asking_again_before_anything_moved_gives_the_same_count() -> None:
    plan, memory = decide(a_state(usage=[0.75, 0.75]))
    plan, _ = decide(a_state(usage=[0.75, 0.75], at_s=5), at_s=5, memory=memory)
    assert only(plan).desired == 3


def test_the_cheaper_variant_grows_first_and_at_its_max_the_other_one() -> None:
    a100 = a_variant("llama-a100", cost=1.2, maximum=2)
    h100 = a_variant("llama-h100", cost=3.9)
    plan, _ = decide(a_state(a100, usage=[0.75]), a_state(h100, usage=[0.75]))
    assert counts(plan) == {"llama-a100": 2, "llama-h100": 1}
    plan, _ = decide(a_state(a100, usage=[0.75] * 2), a_state(h100, usage=[0.75]))
    assert counts(plan) == {"llama-a100": 2, "llama-h100": 2}
    a100_words = said(plan.decisions[a_key("llama-a100")], "follow_demand")
    assert "limited, already at max_replicas 2" in a100_words


def test_the_dearest_variant_shrinks_first_and_not_below_its_minimum() -> None:
    a100 = a_variant("llama-a100", cost=1.2)
    h100 = a_variant("llama-h100", cost=3.9)
    memory = Memory()
    for at_s in (0, 31):
        states = (
            a_state(a100, usage=[0.1] * 2, at_s=at_s),
            a_state(h100, usage=[0.1] * 2, at_s=at_s),
        )
        plan, memory = decide(*states, at_s=at_s, memory=memory, policy=SHORT)
    assert counts(plan) == {"llama-a100": 2, "llama-h100": 1}
    at_s = 62
    states = (a_state(a100, usage=[0.1] * 2, at_s=at_s), a_state(h100, usage=[0.1], at_s=at_s))
    plan, memory = decide(*states, at_s=at_s, memory=memory, policy=SHORT)
    assert counts(plan) == {"llama-a100": 1, "llama-h100": 1}


def test_counts_fall_only_to_the_largest_need_of_the_window() -> None:
    plan, memory = decide(a_state(usage=[0.5] * 4), policy=SHORT)
    assert only(plan).desired == 4
    plan, memory = decide(a_state(usage=[0.1] * 4, at_s=29), at_s=29, memory=memory, policy=SHORT)
    assert only(plan).desired == 4  # the need of 4 is 29 s old
    assert "4 needed within the last 30 s" in said(only(plan), "settle_down")
    plan, memory = decide(a_state(usage=[0.1] * 4, at_s=31), at_s=31, memory=memory, policy=SHORT)
    assert only(plan).desired == 3  # it has left the window: one step down


def test_after_the_window_each_further_step_waits_only_its_period() -> None:
    memory = Memory()
    history: list[tuple[int, int]] = []
    replicas = 5
    for at_s in range(0, 120, 5):
        state = a_state(usage=[0.05] * replicas, at_s=at_s)
        plan, memory = decide(state, at_s=at_s, memory=memory, policy=SHORT)
        if only(plan).desired != replicas:
            history.append((at_s, only(plan).desired))
            replicas = only(plan).desired
    # 5 x 0.05 fits one replica (0.25, spare 0.55): known from the second look on, at 5 s, and
    # the first look's 5 leaves the window after 30 s; then one replica per 15 s
    assert history == [(35, 4), (50, 3), (65, 2), (80, 1)]


def test_an_unseen_replica_holds_its_variant_and_is_named() -> None:
    memory = Memory()
    for at_s in (0.0, 40.0):
        gone = a_replica("r2", usage=0.1, at_s=at_s, problem="timed out after 2 s")
        seen = [a_replica(f"r{i}", usage=0.1, at_s=at_s) for i in range(2)]
        plan, memory = decide(
            a_state(replicas=[*seen, gone]), at_s=at_s, memory=memory, policy=SHORT
        )
    decision = only(plan)
    assert decision.desired == 3
    (held,) = (step for step in decision.trail if step.rule == "hold_when_blind")
    # 0.1 x 3, the unseen one's last page among them, would fit one replica: 2 by demand
    assert (held.before, held.after) == (2, 3)
    assert held.why == "held at 3: replica r2 unseen: timed out after 2 s, last page 0 s old"


def test_a_stale_page_is_as_good_as_none() -> None:
    memory = Memory()
    for at_s in (0.0, 40.0):
        plan, memory = decide(
            a_state(usage=[0.1] * 3, at_s=0), at_s=at_s, memory=memory, policy=SHORT
        )
    assert only(plan).desired == 3
    assert "last page 40 s old, at most 15 s count" in said(only(plan), "hold_when_blind")


def test_seeing_again_does_not_drop_at_once_what_blindness_held() -> None:
    memory = Memory()
    for at_s in (0.0, 60.0):
        blind = [a_replica(f"r{i}", usage=0.1, at_s=at_s, problem="HTTP 503") for i in range(3)]
        plan, memory = decide(a_state(replicas=blind), at_s=at_s, memory=memory, policy=SHORT)
    plan, memory = decide(a_state(usage=[0.1] * 3, at_s=65), at_s=65, memory=memory, policy=SHORT)
    assert only(plan).desired == 3  # the blind look at 60 s needed what there was
    plan, memory = decide(a_state(usage=[0.1] * 3, at_s=91), at_s=91, memory=memory, policy=SHORT)
    assert only(plan).desired == 2


def test_a_blind_variant_may_still_grow_on_what_is_seen() -> None:
    gone = a_replica("r2", usage=0.1, problem="timed out after 2 s")
    full = [a_replica(f"r{i}", usage=0.95) for i in range(2)]
    plan, _ = decide(a_state(replicas=[*full, gone]))
    assert only(plan).desired == 4
    assert "not below 3: replica r2 unseen" in said(only(plan), "hold_when_blind")


def test_only_the_operators_maximum_lowers_a_blind_variant() -> None:
    blind = [a_replica(f"r{i}", problem="HTTP 503") for i in range(4)]
    plan, _ = decide(a_state(a_variant(maximum=2), replicas=blind))
    assert only(plan).desired == 2
    assert "limited: 4 wanted, max_replicas is 2" in said(only(plan), "stay_in_bounds")


def test_a_raised_minimum_is_obeyed_at_once() -> None:
    plan, _ = decide(a_state(a_variant(minimum=4), usage=[0.3] * 2))
    assert only(plan).desired == 4
    assert "min_replicas is 4" in said(only(plan), "stay_in_bounds")


def test_a_variant_whose_count_is_unknown_is_undecided_with_the_reason() -> None:
    state = VariantState(a_variant(), None, problem="Deployment llama-a100 not found")
    plan, _ = decide(state)
    assert plan.decisions == {}
    assert plan.undecided == {a_key(): "Deployment llama-a100 not found"}


def test_starting_replicas_are_not_ordered_twice() -> None:
    plan, memory = decide(a_state(usage=[0.9, 0.9]))
    assert only(plan).desired == 3
    # the third exists now and loads its weights for a minute
    for at_s in range(5, 65, 5):
        plan, memory = decide(
            a_state(usage=[0.9, 0.9], spec=3, at_s=at_s), at_s=at_s, memory=memory
        )
        assert only(plan).desired == 3


def test_models_do_not_lend_each_other_replicas() -> None:
    other = a_variant("qwen", model_id="qwen", cost=0.1)
    plan, _ = decide(a_state(usage=[0.9, 0.9]), a_state(other, usage=[0.3]))
    assert counts(plan) == {"llama-a100": 3, "qwen": 1}
    assert len(plan.loads) == 2


def test_the_value_is_shaped_for_the_reader_and_says_so() -> None:
    hpa = Reader("HorizontalPodAutoscaler chat/llama-a100")
    memory = Memory()
    for at_s in (0, 31):
        state = a_state(a_variant(maximum=20, reader=hpa), usage=[0.1] * 10, at_s=at_s, status=10)
        plan, memory = decide(state, at_s=at_s, memory=memory, policy=SHORT)
    decision = only(plan)
    # 10 -> 9 is inside the HPA's tolerance; 8.001 is outside and rounds up to 9
    assert (decision.desired, decision.value_milli) == (9, 8001)
    assert "8.001 served for 9" in said(decision, "signal")


def test_the_trail_leads_from_the_current_count_to_the_desired_one() -> None:
    plan, _ = decide(a_state(a_variant(maximum=2), usage=[0.9, 0.9, 0.9]))
    decision = only(plan)
    count = decision.current
    for step in decision.trail:
        assert step.before == count
        count = step.after
    assert count == decision.desired == 2


# --- laws -----------------------------------------------------------------------------------


def replicas() -> st.SearchStrategy[list[ReplicaState]]:
    one = st.builds(
        lambda usage, queue, awake, problem, seen, age: a_replica(
            "",
            at_s=1000 - age,
            usage=usage,
            queue=queue,
            awake=awake,
            problem=problem,
            seen=seen,
        ),
        usage=st.none() | st.floats(0, 1),
        queue=st.none() | st.integers(0, 30).map(float),
        awake=st.none() | st.booleans(),
        problem=st.none() | st.just("timed out after 2 s"),
        seen=st.booleans(),
        age=st.floats(0, 60),
    )
    return st.lists(one, max_size=5).map(
        lambda states: [
            ReplicaState(f"r{i}", s.phase, sample=s.sample, problem=s.problem)
            for i, s in enumerate(states)
        ]
    )


def fleets() -> st.SearchStrategy[tuple[VariantState, ...]]:
    def variant(index: int) -> st.SearchStrategy[VariantState]:
        return st.builds(
            lambda model, cost, low, span, found, spec: a_state(
                a_variant(
                    f"v{index}",
                    model_id=model,
                    cost=cost,
                    minimum=low,
                    maximum=None if span is None else low + span,
                ),
                replicas=found,
                spec=spec,
            ),
            model=st.sampled_from(["llama", "qwen"]),
            cost=st.floats(0, 20),
            low=st.integers(0, 3),
            span=st.none() | st.integers(0, 5),
            found=replicas(),
            spec=st.none() | st.integers(0, 8),
        )

    return st.integers(1, 3).flatmap(lambda n: st.tuples(*map(variant, range(n))))


@settings(max_examples=500, deadline=None)
@given(st.lists(fleets(), min_size=1, max_size=4))
def test_counts_stay_in_bounds_over_every_history(
    history: list[tuple[VariantState, ...]],
) -> None:
    memory = Memory()
    for cycle, states in enumerate(history):
        plan, memory = decide(*states, at_s=1000 + 40 * cycle, memory=memory, policy=SHORT)
        for state in states:
            decision = plan.decisions.get(state.variant.key)
            if decision is None:
                assert state.spec_replicas is None
                continue
            assert decision.desired >= state.variant.min_replicas
            assert decision.desired <= (state.variant.max_replicas or math.inf)
            assert decision.value_milli == 1000 * decision.desired


@settings(max_examples=500, deadline=None)
@given(st.lists(fleets(), min_size=1, max_size=4))
def test_unseen_replicas_never_lower_a_count(history: list[tuple[VariantState, ...]]) -> None:
    memory = Memory()
    for cycle, states in enumerate(history):
        at_s = 1000.0 + 40 * cycle
        plan, memory = decide(*states, at_s=at_s, memory=memory, policy=SHORT)
        for key, decision in plan.decisions.items():
            state = next(s for s in states if s.variant.key == key)
            blind = any(
                r.problem is not None
                or r.sample is None
                or at_s - r.sample.at_s > SHORT.stale_after_s
                for r in state.ready
            )
            if blind:
                highest = state.variant.max_replicas
                current = decision.current if highest is None else min(decision.current, highest)
                assert decision.desired >= current


@settings(max_examples=500, deadline=None)
@given(fleets())
def test_equal_input_gives_equal_output_in_any_order(states: tuple[VariantState, ...]) -> None:
    first, memory = decide(*states, at_s=1000)
    again, same = decide(*states, at_s=1000)
    assert (first, memory) == (again, same)
    other, _ = decide(*reversed(states), at_s=1000)
    assert other.decisions == first.decisions


def test_a_snapshot_refuses_two_variants_of_one_name() -> None:
    with pytest.raises(ValueError, match="chat/llama-a100: two variants have this name"):
        Snapshot(0, (a_state(), a_state()))


def test_terminating_replicas_are_never_counted() -> None:
    leaving = ReplicaState("r9", Phase.TERMINATING, sample=a_replica("r9", usage=0.9).sample)
    plan, _ = decide(a_state(replicas=[a_replica("r0"), a_replica("r1"), leaving], spec=2))
    assert only(plan).ready == 2
    assert only(plan).desired == 2

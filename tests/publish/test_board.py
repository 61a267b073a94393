"""Readers get the last plan while it is valid, and otherwise the sentence that helps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import a_key, a_replica, a_state, a_variant, decide
from wva_adapter.core.answer import Answer, Items, NoPlan, NotFound
from wva_adapter.core.decision import Decision, Plan
from wva_adapter.core.fleet import Reader, VariantKey
from wva_adapter.core.load import ModelLoad
from wva_adapter.core.memory import Bill
from wva_adapter.core.snapshot import Snapshot, VariantState
from wva_adapter.publish.board import Board
from wva_adapter.publish.explain import Explanation
from wva_adapter.publish.metrics import METRICS
from wva_adapter.serve.selector import parse_selector

DESIRED = "wva_desired_replicas"


class Clock:
    """Unix time that a test moves."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def a_decision(
    name: str = "llama-a100",
    *,
    namespace: str = "chat",
    current: int = 2,
    desired: int = 3,
    value_milli: int | None = None,
) -> Decision:
    return Decision(
        key=VariantKey(namespace, name),
        model_id="llama",
        accelerator="A100",
        cost_per_h=1.25,
        current=current,
        ready=current,
        desired=desired,
        value_milli=1000 * desired if value_milli is None else value_milli,
    )


def a_load(keys: Sequence[VariantKey], *, demand: float | None = 3.0) -> ModelLoad:
    return ModelLoad(
        namespace="chat",
        model_id="llama",
        analysis="saturation",
        unit="replicas",
        demand=demand,
        need=3.0,
        keep=3.0,
        present=2.0,
        replicas=1,
        capacity=dict.fromkeys(keys, 2.0),
        window_s=300.0,
        step=1.0,
        binding="spare KV cache 0.05 < 0.10",
    )


def a_board(
    *decisions: Decision,
    undecided: dict[VariantKey, str] | None = None,
    demand: float | None = 3.0,
    clock: Clock | None = None,
) -> Board:
    """A board with one plan, as old as the clock says since 1000 s."""
    board = Board(60.0, clock or Clock())
    post(board, *decisions, undecided=undecided, demand=demand)
    return board


def post(
    board: Board,
    *decisions: Decision,
    undecided: dict[VariantKey, str] | None = None,
    demand: float | None = 3.0,
    at_s: float = 1000.0,
) -> None:
    undecided = undecided or {}
    keys = sorted([*(d.key for d in decisions), *undecided])
    states = [a_state(a_variant(key.name, namespace=key.namespace)) for key in keys]
    plan = Plan(at_s, {d.key: d for d in decisions}, undecided, (a_load(keys, demand=demand),))
    board.post(plan, Snapshot(at_s, tuple(states)))


def ask(
    board: Board, selector: str = "", *, metric: str = DESIRED, namespace: str = "chat"
) -> Answer:
    return board.answer(namespace, metric, parse_selector(selector))


def values(answer: Answer) -> list[int]:
    assert isinstance(answer, Items)
    return [item.value_milli for item in answer.items]


def message(answer: object) -> str:
    assert isinstance(answer, NotFound | NoPlan)
    return answer.message


def test_a_selector_that_names_one_variant_gets_exactly_one_item() -> None:
    board = a_board(a_decision("llama-a100", desired=3), a_decision("llama-h100", desired=5))
    assert values(ask(board, "variant_name=llama-h100")) == [5000]
    assert values(ask(board)) == [3000, 5000]  # in the order of their names


def test_an_item_carries_the_labels_that_readers_select_by() -> None:
    answer = ask(a_board(a_decision()))
    assert isinstance(answer, Items)
    assert answer.items[0].at_s == 1000.0
    assert answer.items[0].labels == {
        "variant_name": "llama-a100",
        "namespace": "chat",
        "exported_namespace": "chat",
        "model_name": "llama",
        "accelerator_type": "A100",
        "controller_instance": "default",
    }


def test_an_unknown_accelerator_is_no_label() -> None:
    board = Board(60.0, Clock(), controller_instance="blue")
    state = a_state(replace(a_variant(), accelerator=None))
    board.post(Plan(1000.0, {a_key(): a_decision()}), Snapshot(1000.0, (state,)))
    assert values(ask(board, "!accelerator_type,controller_instance=blue")) == [3000]


@pytest.mark.parametrize(
    ("metric", "value_milli"),
    [
        ("wva_desired_replicas", 2001),  # what its reader is served, shaved
        ("wva_current_replicas", 2000),
        ("wva_desired_ratio", 1500),  # 3 / 2
        ("wva_saturation", 1500),  # demand 3 of supply 2
        ("wva_shortage_replicas", 500),  # 1 of shortage, 2 per replica
        ("wva_variant_cost", 1250),
    ],
)
def test_every_metric_has_its_value(metric: str, value_milli: int) -> None:
    board = a_board(a_decision(value_milli=2001))
    assert values(ask(board, metric=metric)) == [value_milli]


def test_the_ratio_never_leads_above_the_count() -> None:
    # 7 of 3 is 2.333…: rounded up, 3 × 2.334 = 7.002 would become 8 replicas.
    board = a_board(a_decision(current=3, desired=7))
    assert values(ask(board, metric="wva_desired_ratio")) == [2333]
    # From zero the ratio is the count.
    board = a_board(a_decision(current=0, desired=2))
    assert values(ask(board, metric="wva_desired_ratio")) == [2000]


def test_zero_is_served_as_zero() -> None:
    assert values(ask(a_board(a_decision(desired=0)))) == [0]


def test_before_the_first_plan_there_is_no_value_of_any_variant() -> None:
    board = Board(60.0, Clock())
    for answer in (ask(board), board.desired("chat", "llama-a100"), board.explain()):
        assert isinstance(answer, NoPlan)
        assert answer.message == "no plan yet: the adapter has not finished its first cycle"
    assert board.problem() == "no plan yet: the adapter has not finished its first cycle"
    post(board, a_decision())
    assert board.problem() is None


def test_a_plan_older_than_max_age_is_served_to_nobody() -> None:
    clock = Clock()
    board = a_board(a_decision(), clock=clock)
    clock.now_s = 1060.0
    assert values(ask(board)) == [3000]
    clock.now_s = 1061.0
    for answer in (ask(board), board.desired("chat", "llama-a100")):
        assert isinstance(answer, NoPlan)
        assert answer.message == "chat/llama-a100: the plan is 61 s old, max_age is 60 s"
    assert board.problem() is None  # the process is well: its plan is not


def test_a_plan_from_after_now_is_as_untrusted_as_an_old_one() -> None:
    clock = Clock()
    board = a_board(a_decision(), clock=clock)
    clock.now_s = 900.0  # somebody set the clock back by 100 s
    assert isinstance(ask(board), NoPlan)


def test_an_undecided_variant_has_no_value_and_says_why() -> None:
    key = a_key("llama-h100")
    board = a_board(a_decision(), undecided={key: "the count of Deployment llama-h100 is unknown"})
    expected = "chat/llama-h100 is undecided: the count of Deployment llama-h100 is unknown"
    assert message(ask(board, "variant_name=llama-h100")) == expected
    assert message(board.desired("chat", "llama-h100")) == expected


def test_a_sum_over_several_is_not_served_while_one_has_no_value() -> None:
    # The reader sums: 3 alone would look like a count for both and scale down.
    board = a_board(a_decision(), undecided={a_key("llama-h100"): "no target"})
    assert isinstance(ask(board, "model_name=llama"), NoPlan)
    assert values(ask(board, "variant_name=llama-a100")) == [3000]


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.one_of(st.none(), st.integers(0, 50))),
    st.sets(st.sampled_from("abcdef"), min_size=1),
    st.integers(0, 120),
)
def test_a_sum_is_whole_and_fresh_or_not_served(
    counts: dict[str, int | None], asked: set[str], age_s: int
) -> None:
    clock = Clock(1000.0 + age_s)
    board = a_board(
        *(a_decision(name, desired=count) for name, count in counts.items() if count is not None),
        undecided={a_key(name): "no target" for name, count in counts.items() if count is None},
        clock=clock,
    )
    answer = ask(board, f"variant_name in ({','.join(sorted(asked))})")
    found = [counts[name] for name in sorted(asked & counts.keys())]
    if not found:
        assert isinstance(answer, NotFound)
    elif None in found or age_s > 60:
        assert isinstance(answer, NoPlan)
    else:
        assert values(answer) == [1000 * count for count in found if count is not None]


def test_a_saturation_that_nobody_knows_is_no_number() -> None:
    board = a_board(a_decision(), demand=None)
    answer = ask(board, metric="wva_saturation")
    assert isinstance(answer, NoPlan)
    assert "wva_saturation is unknown: no replica of its model was seen" in answer.message


def test_a_metric_that_does_not_exist_is_answered_with_those_that_do() -> None:
    answer = ask(a_board(a_decision()), metric="wva_desire")
    assert isinstance(answer, NotFound)
    assert answer.message == (
        "the server could not find the metric wva_desire for wva_desire.external.metrics.k8s.io; "
        f"there are: {', '.join(METRICS)}"
    )


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (
            "variant_name=llama-x",
            (
                "no variant in namespace chat has variant_name=llama-x; "
                "there variant_name is one of: llama-a100, llama-h100"
            ),
        ),
        (
            "model_name=llama,variant_name in (x,y)",
            (
                "no variant in namespace chat has variant_name in (x,y); "
                "there variant_name is one of: llama-a100, llama-h100"
            ),
        ),
        (
            "variant=llama-a100",
            (
                "no variant in namespace chat has variant=llama-a100; there labels are: "
                "accelerator_type, controller_instance, exported_namespace, model_name, namespace, "
                "variant_name"
            ),
        ),
        (
            "variant_name=llama-a100,variant_name=llama-h100",
            (
                "no variant in namespace chat has all of variant_name=llama-a100,"
                "variant_name=llama-h100; each matches one, and there are: llama-a100, llama-h100"
            ),
        ),
    ],
)
def test_a_selector_that_matches_nothing_is_told_which_label_and_what_exists(
    selector: str, expected: str
) -> None:
    board = a_board(a_decision("llama-a100"), a_decision("llama-h100"))
    answer = ask(board, selector)
    assert isinstance(answer, NotFound)
    assert answer.message == expected


def test_a_namespace_without_variants_is_told_no_names_of_others() -> None:
    board = a_board(a_decision(), a_decision("code", namespace="dev"))
    expected = (
        "namespace prod has no variants: none of its HPAs and ScaledObjects is annotated, "
        "and the static file names none there"
    )
    assert message(ask(board, namespace="prod")) == expected
    assert message(board.desired("prod", "x")) == f"no variant prod/x: {expected}"
    assert message(ask(a_board())).startswith("namespace chat has no variants: ")


def test_of_many_names_only_the_first_are_listed() -> None:
    board = a_board(*(a_decision(f"v{i:02}") for i in range(23)))
    assert message(board.desired("chat", "x")).endswith("v18, v19 and 3 more")


def test_the_plain_count_is_not_shaped_for_any_reader() -> None:
    board = a_board(a_decision(desired=9, value_milli=8001))
    assert values(board.desired("chat", "llama-a100")) == [9000]
    assert (
        message(board.desired("chat", "x")) == "no variant chat/x; namespace chat has: llama-a100"
    )


def test_a_removed_variant_is_gone_and_an_undecided_one_keeps_its_last_count() -> None:
    board = a_board(a_decision("llama-a100"), a_decision("llama-h100", desired=5))
    post(board, undecided={a_key("llama-h100"): "no target"}, at_s=1010.0)
    assert [(p.decision.key.name, p.decision.desired, p.at_s) for p in board.published] == [
        ("llama-h100", 5, 1000.0)
    ]
    assert isinstance(ask(board, "variant_name=llama-a100"), NotFound)
    assert isinstance(ask(board, "variant_name=llama-h100"), NoPlan)


HPA = Reader("HorizontalPodAutoscaler chat/llama-a100")


def explained(*states: VariantState, at_s: float = 0.0, now_s: float = 1.0) -> Board:
    """A board with what the planner really decides on these states."""
    plan, _ = decide(*states, at_s=at_s)
    board = Board(60.0, Clock(now_s))
    board.post(plan, Snapshot(at_s, states))
    return board


def explanation(board: Board, name: str | None = "llama-a100") -> Explanation:
    answer = board.explain(None if name is None else "chat", name)
    assert isinstance(answer, Explanation)
    return answer


def test_an_explanation_has_the_trail_the_pages_and_what_the_reader_does() -> None:
    board = explained(a_state(a_variant(reader=HPA), usage=[0.75, 0.78], queue=1.0))
    document = explanation(board).document
    decision = document["decision"]
    # Two replicas with 0.035 of spare KV cache on average: below 0.10, so one more.
    assert (decision["current"], decision["desired"]) == (2, 3)
    assert decision["trail"][0]["rule"] == "follow_demand"
    assert (decision["trail"][0]["from"], decision["trail"][0]["to"]) == (2, 3)
    assert "spare KV cache" in decision["trail"][0]["why"]
    assert [r["kv_cache_usage"] for r in document["replicas"]] == [0.75, 0.78]
    assert document["replicas"][0]["queued_requests"] == 1.0
    assert document["replicas"][0]["ttft_count"] is None  # the page did not say
    assert document["replicas"][0]["age_s"] == 0.0
    assert document["reader"] == {
        "kind": "HorizontalPodAutoscaler",
        "name": "chat/llama-a100",
        "target_type": "AverageValue",
        "target": 1.0,
        "shaped": True,
        "served": 3.0,
        "will_set": 3,
    }
    assert document["next"] == f"{HPA.name} sets 3 at its next look, now 2"
    assert document["model"]["unit"] == "replicas"
    assert document["problem"] is None
    # This analysis counts replicas: it knows no rate, and forecasts nothing.
    assert document["capacity"]["per_replica"] == 1.0
    assert (document["capacity"]["per_s"], document["demand"]) == (None, None)
    assert document["allocations"][0] == {
        "counts": {"llama-a100": 3},
        "cost_per_h": 3 * 1.2,
        "feasible": True,
        "why": "decided",
    }
    json.dumps(document)  # it is what is sent


def test_an_explanation_names_the_replica_that_is_not_seen_and_why() -> None:
    replicas = [a_replica("r0"), a_replica("r1", problem="HTTP 500"), a_replica("r2", seen=False)]
    board = explained(a_state(replicas=replicas))
    document, text = explanation(board).document, explanation(board).text
    assert [r["seen"] for r in document["replicas"]] == [True, False, False]
    assert document["replicas"][1]["problem"] == "HTTP 500, last page 0 s old"
    assert document["replicas"][2]["age_s"] is None
    assert document["replicas"][2]["kv_cache_usage"] is None
    assert "r1  unseen: HTTP 500, last page 0 s old" in text
    assert "r2  unseen: no page read yet" in text


def test_an_explanation_for_people_reads_from_top_to_bottom() -> None:
    board = explained(a_state(a_variant(reader=HPA), usage=[0.75, 0.78]), now_s=2.0)
    lines = explanation(board).text.splitlines()
    assert lines[0] == "chat/llama-a100  Deployment llama-a100, llama on A100, 1.2 $/h per replica"
    assert lines[1] == "  desired 3, now 2, ready 2 (plan 2 s old)"
    assert lines[2].startswith("    follow_demand  2 → 3  spare KV cache")
    assert "  llama-a100-1  KV-cache usage 0.78, queue 0, page 0.0 s old" in lines
    assert "  read by HorizontalPodAutoscaler chat/llama-a100, target AverageValue 1, " in (
        "\n".join(lines)
    )
    assert lines[-1] == f"  next: {HPA.name} sets 3 at its next look, now 2"


def test_a_scaled_object_is_a_reader_of_the_count_and_switches_off_after_its_cooldown() -> None:
    keda = Reader("ScaledObject chat/llama-a100", shaped=False)
    board = explained(a_state(a_variant(minimum=0, maximum=0, reader=keda), ready=1))
    document, text = explanation(board).document, explanation(board).text
    assert document["reader"] == {
        "kind": "ScaledObject",
        "name": "chat/llama-a100",
        "target_type": "AverageValue",
        "target": 1.0,
        "shaped": False,
        "served": 0,
        "will_set": 0,
    }
    assert "  read by ScaledObject chat/llama-a100, target AverageValue 1, " in text
    assert document["next"] == (
        "ScaledObject chat/llama-a100 sets 0 after its cooldownPeriod, now 1"
    )


def test_a_reader_that_ignores_the_value_is_told_to_keep_its_count() -> None:
    # 21 of 20 is inside the tolerance of 0.1: the autoscaler stays at 20.
    state = a_state(a_variant(reader=HPA, maximum=50), ready=20)
    board = Board(60.0, Clock())
    decision = a_decision(current=20, desired=21)
    board.post(Plan(1000.0, {a_key(): decision}), Snapshot(1000.0, (state,)))
    document = explanation(board).document
    assert document["reader"]["will_set"] == 20
    assert document["next"] == f"{HPA.name} keeps 20"


def test_a_value_target_is_multiplied_by_the_ready_replicas() -> None:
    reader = replace(HPA, target_type="Value")
    state = a_state(a_variant(reader=reader), ready=2)
    board = Board(60.0, Clock())
    # 1.75 × 2 ready = 3.5, which rounds up to 4.
    decision = a_decision(current=2, desired=4, value_milli=1750)
    board.post(Plan(1000.0, {a_key(): decision}), Snapshot(1000.0, (state,)))
    assert explanation(board).document["reader"]["will_set"] == 4


def test_what_nobody_reads_is_said_so() -> None:
    document = explanation(explained(a_state())).document
    assert document["reader"] is None
    assert document["next"].endswith("is served; no autoscaler is known to read it")


def test_an_old_plan_is_explained_as_one_that_is_not_served() -> None:
    board = explained(a_state(a_variant(reader=HPA)), now_s=100.0)
    document = explanation(board).document
    assert document["decision"] is not None
    assert document["problem"] == "chat/llama-a100: the plan is 100 s old, max_age is 60 s"
    assert document["reader"]["served"] is None
    assert document["reader"]["will_set"] is None
    assert document["next"].startswith("nothing is served, so the count stays: ")


def test_an_undecided_variant_is_explained_without_a_decision() -> None:
    board = explained(a_state(spec=None))
    document, text = explanation(board).document, explanation(board).text
    assert document["decision"] is None
    assert document["variant"]["name"] == "llama-a100"
    assert "the count of Deployment llama-a100 is unknown" in document["problem"]
    assert "next: nothing is served, so the count stays" in text


def test_all_variants_are_explained_together_in_the_order_of_their_names() -> None:
    board = explained(a_state(a_variant("b")), a_state(a_variant("a")))
    every = explanation(board, None)
    assert [v["variant"]["name"] for v in every.document["variants"]] == ["a", "b"]
    assert every.text.index("chat/a  ") < every.text.index("chat/b  ")
    assert explanation(explained(), None).text == "no variants\n"


def test_a_variant_that_does_not_exist_is_not_explained() -> None:
    answer = explained(a_state()).explain("chat", "x")
    assert message(answer) == "no variant chat/x; namespace chat has: llama-a100"


def test_a_variant_in_shadow_is_served_no_count_and_says_where_it_is() -> None:
    bill = Bill(0.0, 1000.0, 3, 2, would_usd=3.5, ran_usd=2.5)
    board = a_board(replace(a_decision(), bill=bill, limited="max_replicas is 3"))
    why = "chat/llama-a100 is in shadow: its count is wva_shadow_desired_replicas on /metrics"
    for answer in (
        board.desired("chat", "llama-a100"),
        board.answer("chat", "wva_desired_replicas", parse_selector("variant_name=llama-a100")),
        board.answer("chat", "wva_desired_ratio", parse_selector("variant_name=llama-a100")),
    ):
        assert isinstance(answer, NoPlan)
        assert why in answer.message
    assert isinstance(
        board.answer("chat", "wva_current_replicas", parse_selector("variant_name=llama-a100")),
        Items,
    )
    explained = board.explain("chat", "llama-a100")
    assert isinstance(explained, Explanation)
    assert explained.document["decision"]["shadow"] == {
        "desired": 3,
        "since_s": 0.0,
        "would_usd": 3.5,
        "ran_usd": 2.5,
    }
    assert explained.document["decision"]["limited"] == "max_replicas is 3"
    assert "  limited: max_replicas is 3\n" in explained.text
    assert f"nothing is served, so the count stays: {why}" in explained.text

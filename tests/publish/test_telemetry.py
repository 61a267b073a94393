"""What Prometheus scrapes says the counts, their age, and how the adapter is."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from tests.builders import a_key, a_replica, a_state, a_variant
from tests.publish.test_board import Clock, a_board, a_decision, post
from wva_adapter.core.decision import Decision, Plan
from wva_adapter.core.memory import Bill
from wva_adapter.core.snapshot import Snapshot
from wva_adapter.publish.board import Board
from wva_adapter.publish.telemetry import Telemetry


def samples(telemetry: Telemetry, name: str) -> dict[str, float]:
    """The values of one series by variant name."""
    families = text_string_to_metric_families(telemetry.page().decode())
    return {
        sample.labels.get("variant_name", ""): sample.value
        for family in families
        for sample in family.samples
        if sample.name == name
    }


def test_each_variant_has_its_plain_count_under_its_labels() -> None:
    board = a_board(a_decision(desired=9, value_milli=8001))
    page = Telemetry(board, clock=Clock()).page().decode()
    # 8.001 is for a reader that rounds up; Prometheus gets the count.
    assert (
        'wva_desired_replicas{accelerator_type="A100",controller_instance="default",'
        'exported_namespace="chat",model_name="llama",namespace="chat",'
        'variant_name="llama-a100"} 9.0\n'
    ) in page
    assert "# HELP wva_saturation Demand over supply" in page


def test_every_served_metric_is_on_the_page() -> None:
    telemetry = Telemetry(a_board(a_decision()), clock=Clock())
    values = {
        name: samples(telemetry, f"wva_{name}")["llama-a100"]
        for name in (
            "current_replicas",
            "desired_ratio",
            "saturation",
            "shortage_replicas",
            "variant_cost",
        )
    }
    assert values == {
        "current_replicas": 2.0,
        "desired_ratio": 1.5,
        "saturation": 1.5,
        "shortage_replicas": 0.5,
        "variant_cost": 1.25,
    }


def test_an_unknown_saturation_has_no_series() -> None:
    telemetry = Telemetry(a_board(a_decision(), demand=None), clock=Clock())
    assert samples(telemetry, "wva_saturation") == {}


def test_the_last_count_of_an_undecided_variant_stays_beside_its_growing_age() -> None:
    clock = Clock()
    board = a_board(a_decision("llama-a100"), a_decision("llama-h100", desired=5))
    telemetry = Telemetry(board, clock=clock)
    post(board, a_decision(), undecided={a_key("llama-h100"): "no target"}, at_s=1015.0)
    clock.now_s = 1020.0
    # A series that vanished would read as 0 behind Prometheus.
    assert samples(telemetry, "wva_desired_replicas") == {"llama-a100": 3.0, "llama-h100": 5.0}
    assert samples(telemetry, "wva_plan_age_seconds") == {"llama-a100": 5.0, "llama-h100": 20.0}


def test_the_series_of_a_removed_variant_go_at_once() -> None:
    board = a_board(a_decision("llama-a100"), a_decision("llama-h100"))
    telemetry = Telemetry(board, clock=Clock())
    post(board, a_decision("llama-a100"))
    assert samples(telemetry, "wva_desired_replicas") == {"llama-a100": 3.0}
    assert samples(telemetry, "wva_scrape_problems") == {"llama-a100": 0.0}


def test_replicas_without_a_page_are_counted_per_variant() -> None:
    board = Board(60.0, Clock())
    state = a_state(
        a_variant(), replicas=[a_replica("r0"), a_replica("r1", problem="timed out after 2 s")]
    )
    board.post(Plan(1000.0), Snapshot(1000.0, (state,)))
    assert samples(Telemetry(board, clock=Clock()), "wva_scrape_problems") == {"llama-a100": 1.0}


def test_cycles_and_the_process_itself_are_measured() -> None:
    telemetry = Telemetry(Board(60.0, Clock()), clock=Clock())
    telemetry.observe_cycle(0.02)
    telemetry.observe_cycle(0.5)
    assert samples(telemetry, "wva_cycle_seconds_count") == {"": 2.0}
    assert samples(telemetry, "wva_cycle_seconds_sum") == {"": 0.52}
    assert samples(telemetry, "process_resident_memory_bytes")[""] > 1e6


def in_shadow(decision: Decision) -> Decision:
    bill = Bill(0.0, 1000.0, decision.desired, decision.current, 3.5, 2.5)
    return replace(decision, bill=bill)


def test_a_variant_in_shadow_has_its_count_under_another_name_only() -> None:
    board = a_board(in_shadow(a_decision("llama-a100")), a_decision("llama-h100", desired=5))
    telemetry = Telemetry(board, clock=Clock())
    assert samples(telemetry, "wva_desired_replicas") == {"llama-h100": 5.0}
    assert samples(telemetry, "wva_desired_ratio") == {"llama-h100": 2.5}
    assert samples(telemetry, "wva_shadow_desired_replicas") == {"llama-a100": 3.0}
    assert samples(telemetry, "wva_current_replicas") == {"llama-a100": 2.0, "llama-h100": 2.0}


def test_an_escape_is_counted_once_however_many_cycles_it_lasts() -> None:
    telemetry = Telemetry(a_board(a_decision()), clock=Clock())
    hidden = a_decision().to(3, rule="escape_tolerance", why="ignored")
    escaped = hidden.to(5, rule="escape_tolerance", why="ignored for 4 cycles")
    plans = [Plan(float(i), {d.key: d}) for i, d in enumerate((hidden, escaped, escaped))]
    telemetry.count_escapes(None, plans[0])
    assert samples(telemetry, "wva_tolerance_escapes_total") == {}
    telemetry.count_escapes(plans[0], plans[1])
    telemetry.count_escapes(plans[1], plans[2])
    assert samples(telemetry, "wva_tolerance_escapes_total") == {"llama-a100": 1.0}

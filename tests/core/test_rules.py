"""The rules as an operator meets them, told as stories, and what must hold in every history."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import a_key, a_replica, a_sample, a_state, a_variant
from wva_adapter.core.decision import Decision, Plan
from wva_adapter.core.feasibility import LONGEST_WAIT_S, SHORTEST_WAIT_S
from wva_adapter.core.fleet import NodeState, Reader, Taint, Variant
from wva_adapter.core.guards import Budget, Freeze, Guard, Hours, MaxChange, Pin, Scope
from wva_adapter.core.inventory import Inventory, NamespaceQuota, ResourceQuota
from wva_adapter.core.memory import Memory
from wva_adapter.core.planner import plan
from wva_adapter.core.policy import Analysis, Policy
from wva_adapter.core.snapshot import GatewayState, Phase, ReplicaState, Snapshot, VariantState

SATURATION = Policy(
    analysis="saturation", scale_down_window_s=30, peak_window_s=0, down_period_s=15
)
SLEEPY = replace(SATURATION, scale_to_zero=True)
HPA = Reader("HorizontalPodAutoscaler chat/llama-a100")


class Fleet:
    """Decides cycle by cycle and remembers."""

    def __init__(self, policy: Policy = SATURATION) -> None:
        self.policy = policy
        self.memory = Memory()

    def at(
        self,
        at_s: float,
        *states: VariantState,
        gateway: GatewayState | None = None,
        guards: Sequence[Guard] = (),
        quotas: tuple[ResourceQuota, ...] | None = None,
    ) -> dict[str, Decision]:
        snapshot = Snapshot(
            at_s,
            states,
            () if gateway is None else (gateway,),
            guards=tuple(guards),
            quotas=quotas,
        )
        decided, self.memory = plan(snapshot, self.policy, self.memory)
        return {key.name: decision for key, decision in decided.decisions.items()}


def a_gateway(at_s: float, queue: float | None = 0.0, total: float | None = 100.0) -> GatewayState:
    return GatewayState(
        namespace="chat",
        model_id="llama",
        at_s=at_s,
        queued_requests=queue,
        arrivals_total=total,
    )


def said(decision: Decision, rule: str) -> str:
    return " | ".join(step.why for step in decision.trail if step.rule == rule)


def a_pod(
    name: str, *, created: float = 0.0, why: str | None = None, since: float | None = None
) -> ReplicaState:
    return ReplicaState(
        name, Phase.STARTING, created_at_s=created, unscheduled=why, unscheduled_since_s=since
    )


def an_idle(at_s: float, name: str = "r0") -> ReplicaState:
    sample = replace(a_sample(name, at_s=at_s, usage=0.0), running_requests=0.0)
    return ReplicaState(name, Phase.READY, sample=sample)


# --- from zero and to zero ---------------------------------------------------------------------

CHEAP = a_variant("a100", cost=1.2, minimum=0)
DEAR = a_variant("h100", cost=3.9, minimum=0)


def test_requests_at_the_gateway_wake_the_cheapest_variant_and_only_that_one() -> None:
    decided = Fleet(SLEEPY).at(
        0, a_state(CHEAP, ready=0), a_state(DEAR, ready=0), gateway=a_gateway(0, queue=40)
    )
    assert {name: d.desired for name, d in decided.items()} == {"a100": 1, "h100": 0}
    assert "40 requests wait in the gateway and there is no replica: one on the cheapest" in said(
        decided["a100"], "wake_from_zero"
    )


@pytest.mark.parametrize("analysis", ["saturation", "tokens", "demand"])
def test_no_second_replica_is_woken_while_the_first_is_on_its_way(analysis: Analysis) -> None:
    fleet = Fleet(Policy(analysis=analysis, scale_to_zero=True))
    counts = []
    for at_s in range(0, 100, 5):
        spec = 1 if at_s else 0
        decided = fleet.at(
            at_s,
            a_state(CHEAP, ready=0, spec=spec),
            a_state(DEAR, ready=0),
            gateway=a_gateway(at_s, queue=40 + at_s, total=100.0 + at_s),
        )
        counts.append((decided["a100"].desired, decided["h100"].desired))
    assert set(counts) == {(1, 0)}


def test_a_variant_whose_pods_are_gated_is_not_woken_again_but_the_next_one_is() -> None:
    fleet = Fleet(SLEEPY)
    fleet.at(0, a_state(CHEAP, ready=0), a_state(DEAR, ready=0), gateway=a_gateway(0, queue=3))
    gated = a_state(CHEAP, replicas=[a_pod("p0", why="SchedulingGated")], spec=1)
    decided = fleet.at(5, gated, a_state(DEAR, ready=0), gateway=a_gateway(5, queue=3))
    assert {name: d.desired for name, d in decided.items()} == {"a100": 0, "h100": 1}
    assert "pod p0 is gated" in said(decided["a100"], "follow_demand")


def test_a_model_sleeps_once_a_counter_proves_that_nobody_asked_for_ten_minutes() -> None:
    fleet = Fleet(SLEEPY)
    for at_s in range(0, 601, 5):
        decided = fleet.at(at_s, a_state(CHEAP, replicas=[an_idle(at_s)]), gateway=a_gateway(at_s))
        if at_s < 600:
            assert decided["a100"].desired == 1
    assert decided["a100"].desired == 0
    assert said(decided["a100"], "sleep_to_zero") == "no request for 600 s, retention is 600 s"
    asleep = fleet.at(605, a_state(CHEAP, ready=0), gateway=a_gateway(605))
    assert asleep["a100"].desired == 0


def test_one_request_in_the_retention_period_keeps_the_model_awake() -> None:
    fleet = Fleet(SLEEPY)
    for at_s in range(0, 700, 5):
        total = 100.0 if at_s < 300 else 101.0
        decided = fleet.at(
            at_s,
            a_state(CHEAP, replicas=[an_idle(at_s)]),
            gateway=a_gateway(at_s, total=total),
        )
        assert decided["a100"].desired == 1
    assert "not to zero: no request for 390 s" in said(decided["a100"], "sleep_to_zero")


def asleep_after(at_s: float, replica: ReplicaState, gateway: GatewayState | None) -> Decision:
    """The decision at ``at_s``, after more than ten quiet minutes."""
    fleet = Fleet(SLEEPY)
    for earlier in range(0, 700, 5):
        fleet.at(
            earlier, a_state(CHEAP, replicas=[an_idle(earlier)], spec=1), gateway=a_gateway(earlier)
        )
    return fleet.at(at_s, a_state(CHEAP, replicas=[replica], spec=1), gateway=gateway)["a100"]


def test_a_model_never_sleeps_on_what_is_not_known() -> None:
    assert asleep_after(700, an_idle(700), a_gateway(700)).desired == 0
    running = ReplicaState("r0", sample=a_sample("r0", at_s=700, usage=0.0))
    stories = {
        "no gateway says that nothing waits": (an_idle(700), None),
        "replica r0 unseen: last page 700 s old": (an_idle(0), a_gateway(700)),
        "the gateway's queue is unknown": (an_idle(700), a_gateway(700, queue=None)),
        "2 requests wait in the gateway": (an_idle(700), a_gateway(700, queue=2)),
        "replica r0 has requests": (running, a_gateway(700)),
        "5 requests came since the last look": (an_idle(700), a_gateway(700, total=105.0)),
        "no request for 0 s": (an_idle(700), a_gateway(700, total=3.0)),
    }
    for why, (replica, gateway) in stories.items():
        decision = asleep_after(700, replica, gateway)
        assert decision.desired == 1, why
        assert why in said(decision, "sleep_to_zero")


@pytest.mark.parametrize("phase", [Phase.READY, Phase.STARTING])
def test_a_model_does_not_sleep_while_requests_are_in_flight_whatever_its_page_says(
    phase: Phase,
) -> None:
    fleet = Fleet(SLEEPY)
    for at_s in range(0, 1601, 5):
        # Its readiness may fail over the work that it has; after 900 s the answer is complete.
        busy = replace(an_idle(at_s), phase=phase, in_flight_requests=2.0 if at_s < 900 else 0.0)
        state = a_state(CHEAP, replicas=[busy], spec=1)
        decided = fleet.at(at_s, state, gateway=a_gateway(at_s))
        if at_s == 895:
            assert said(decided["a100"], "sleep_to_zero") == (
                "not to zero: 2 requests are in flight at replica r0"
            )
        assert decided["a100"].desired == (1 if at_s < 1500 else 0), at_s


def test_what_a_replica_that_terminates_still_answers_keeps_and_wakes_no_other() -> None:
    ending = ReplicaState("r0", Phase.TERMINATING, in_flight_requests=3.0)
    fleet = Fleet(SLEEPY)
    for at_s in range(0, 700, 5):
        state = a_state(CHEAP, replicas=[an_idle(at_s, "r1"), ending], spec=1)
        decided = fleet.at(at_s, state, gateway=a_gateway(at_s))
    assert decided["a100"].desired == 0
    gone = a_state(CHEAP, replicas=[ending], spec=0)
    assert fleet.at(700, gone, gateway=a_gateway(700))["a100"].desired == 0


def test_a_gateway_that_was_away_for_a_while_did_not_forget_how_many_came() -> None:
    fleet = Fleet(SLEEPY)
    for at_s in range(0, 601, 5):
        state = a_state(CHEAP, replicas=[an_idle(at_s)])
        gateway = a_gateway(at_s) if not 200 < at_s < 400 else None
        decided = fleet.at(at_s, state, gateway=gateway)
    assert decided["a100"].desired == 0  # 100 requests at 200 s, and still 100 at 400 s


def test_a_minimum_of_zero_alone_never_takes_the_last_replica() -> None:
    fleet = Fleet()
    for at_s in range(0, 1300, 5):
        decided = fleet.at(at_s, a_state(CHEAP, replicas=[an_idle(at_s)]), gateway=a_gateway(at_s))
    assert decided["a100"].desired == 1


def test_a_model_without_replicas_that_may_not_sleep_gets_one_on_the_cheapest() -> None:
    decided = Fleet().at(0, a_state(CHEAP, ready=0), a_state(DEAR, ready=0))
    assert {name: d.desired for name, d in decided.items()} == {"a100": 1, "h100": 0}
    assert said(decided["a100"], "sleep_to_zero") == "one stays: scale_to_zero is off"


def test_a_minimum_outlasts_every_rest() -> None:
    assert asleep_after(700, an_idle(700), a_gateway(700)).desired == 0
    fleet = Fleet(SLEEPY)
    awake = a_variant("a100", minimum=1)
    for at_s in range(0, 700, 5):
        decided = fleet.at(at_s, a_state(awake, replicas=[an_idle(at_s)]), gateway=a_gateway(at_s))
    assert decided["a100"].desired == 1
    assert "min_replicas is 1" in said(decided["a100"], "stay_in_bounds")


# --- pods without a place ----------------------------------------------------------------------


def full_and_starting(at_s: float, *pods: ReplicaState) -> VariantState:
    full = [a_replica(f"r{i}", at_s=at_s, usage=0.95) for i in range(2)]
    return a_state(a_variant("a100", cost=1.2), replicas=[*full, *pods])


def test_gated_pods_hand_their_need_to_the_next_variant_at_once() -> None:
    dear = a_state(a_variant("h100", cost=3.9), usage=[0.95])
    decided = Fleet().at(0, full_and_starting(0, a_pod("p0", why="SchedulingGated")), dear)
    assert decided["a100"].desired == 2  # what has a place
    assert decided["h100"].desired == 2
    assert "none can be added, pod p0 is gated; 2 of 3 have a place" in said(
        decided["a100"], "follow_demand"
    )


def test_unschedulable_pods_are_waited_for_as_long_as_others_take_to_serve() -> None:
    counts = []
    fleet = Fleet(SATURATION)
    for at_s in (100, 121):  # assumed_start is 120 s
        state = full_and_starting(at_s, a_pod("p0", why="Unschedulable", since=0.0))
        dear = a_state(a_variant("h100", cost=3.9), usage=[0.95], at_s=at_s)
        decided = fleet.at(at_s, state, dear)
        counts.append((decided["a100"].desired, decided["h100"].desired))
    assert counts == [(3, 1), (2, 2)]
    assert "pod p0 Unschedulable for 121 s, others take 120 s to serve" in said(
        decided["a100"], "follow_demand"
    )


def test_a_variant_without_place_is_tried_again_after_ever_longer_waits() -> None:
    fleet = Fleet()
    tries, spec = [], 2
    for at_s in range(0, 2000, 5):
        pods = [a_pod(f"p{i}", why="SchedulingGated", created=at_s) for i in range(spec - 2)]
        dear = a_state(a_variant("h100", cost=3.9), usage=[0.95], at_s=at_s)
        decided = fleet.at(at_s, full_and_starting(at_s, *pods), dear)
        if decided["a100"].desired > spec:
            tries.append(at_s)
        spec = decided["a100"].desired
    # tried at 0, gated at 5: 120 s (the start that is assumed), then 240, 480, 960
    assert tries == [0, 125, 370, 855, 1820]


def test_where_nothing_else_carries_the_need_pods_go_on_waiting_for_a_place() -> None:
    # Whoever makes nodes looks at pods that wait for one, and takes longer than a pod to start.
    fleet = Fleet()
    dear = a_state(a_variant("h100", cost=3.9, maximum=1), usage=[0.95])
    asked = fleet.at(0, full_and_starting(0), dear)["a100"].desired
    assert asked == 3
    for at_s in range(5, 1000, 5):
        pod = a_pod("p0", why="Unschedulable", since=0.0)
        dear = a_state(a_variant("h100", cost=3.9, maximum=1), usage=[0.95], at_s=at_s)
        decided = fleet.at(at_s, full_and_starting(at_s, pod), dear)
        assert decided["a100"].desired == 3
    assert (
        "none can be added, pod p0 Unschedulable for 995 s, others take 120 s to serve; "
        "2 of 3 have a place, 1 go on waiting for one, since nothing else can carry what is missing"
    ) in said(decided["a100"], "follow_demand")
    assert "Unschedulable for 995 s" in (decided["a100"].limited or "")
    # once another can, they are not asked for any more
    dear = a_state(a_variant("h100", cost=3.9), usage=[0.95], at_s=1000)
    decided = fleet.at(1000, full_and_starting(1000, pod), dear)
    assert (decided["a100"].desired, decided["h100"].desired) == (2, 2)


def test_a_wait_never_gets_longer_than_an_hour_and_ends_with_the_first_replica_that_serves() -> (
    None
):
    fleet = Fleet(replace(SATURATION, assumed_start_s=1000))
    fleet.at(0, full_and_starting(0, a_pod("p0", why="SchedulingGated")))
    setback = fleet.memory.variants[a_key("a100")].setback
    assert setback is not None
    assert setback.wait_s == 1000
    for at_s in (1001.0, 3002.0, 7003.0):
        fleet.at(at_s, full_and_starting(at_s))
        fleet.at(at_s, full_and_starting(at_s, a_pod("p0", why="SchedulingGated")))
    setback = fleet.memory.variants[a_key("a100")].setback
    assert setback is not None
    assert setback.wait_s == LONGEST_WAIT_S
    served = ReplicaState("p0", ready_at_s=7010.0, sample=a_sample("p0", at_s=7010, usage=0.95))
    fleet.at(7010, full_and_starting(7010, served))
    assert fleet.memory.variants[a_key("a100")].setback is None
    assert SHORTEST_WAIT_S < 1000


def test_pods_that_a_quota_refuses_are_a_setback_once_they_are_late() -> None:
    fleet = Fleet()
    for at_s in (0, 60, 121):
        short = replace(full_and_starting(at_s), spec_replicas=3, refused="exceeded quota: gpus")
        dear = a_state(a_variant("h100", cost=3.9), usage=[0.95], at_s=at_s)
        decided = fleet.at(at_s, short, dear)
    assert (decided["a100"].desired, decided["h100"].desired) == (2, 2)
    assert "1 pods refused for 121 s: exceeded quota: gpus" in said(
        decided["a100"], "follow_demand"
    )


@pytest.mark.parametrize("analysis", ["saturation", "tokens"])
def test_pods_that_a_used_up_quota_refuses_are_not_asked_for_and_a_sibling_carries_their_need(
    analysis: Analysis,
) -> None:
    gpus = ResourceQuota("chat", "gpus", "requests.nvidia.com/gpu", 2, 2)
    short = full_and_starting(0)
    known = replace(
        short,
        variant=replace(short.variant, resource="nvidia.com/gpu"),
        spec_replicas=3,
        refused="exceeded quota: gpus",
    )
    dear = a_state(a_variant("h100", cost=3.9), usage=[0.95], at_s=0)
    fleet = Fleet(Policy(analysis=analysis))

    decided = fleet.at(0, known, dear, quotas=(gpus,))

    assert decided["a100"].desired == 2
    assert decided["h100"].desired >= 2
    assert "1 pods refused for 0 s: exceeded quota: gpus" in said(decided["a100"], "follow_demand")
    # Where it has room, or will have once a pod is gone, nothing is given up for a moment.
    room, ending = replace(gpus, hard=3), ReplicaState("old", Phase.TERMINATING)
    leaving = replace(known, replicas=(*known.replicas, ending))
    for state, quota in ((known, room), (leaving, gpus)):
        decided = Fleet(Policy(analysis=analysis)).at(0, state, dear, quotas=(quota,))
        assert decided["a100"].desired == 3


@pytest.mark.parametrize("analysis", ["saturation", "tokens"])
def test_pods_that_never_start_are_not_on_their_way_for_ever(analysis: Analysis) -> None:
    fleet = Fleet(Policy(analysis=analysis))
    desired = []
    for at_s in (60, 119, 241):  # 120 s to start, fading until 240 s
        decided = fleet.at(at_s, full_and_starting(at_s, a_pod("p0")))
        desired.append(decided["a100"].desired)
    assert desired == [3, 3, 4]


def test_pods_that_are_never_made_are_not_on_their_way_for_ever() -> None:
    fleet = Fleet()
    desired = []
    for at_s in (0, 119, 241):
        state = replace(full_and_starting(at_s), spec_replicas=3)
        desired.append(fleet.at(at_s, state)["a100"].desired)
    assert desired == [3, 3, 4]


# --- guards ------------------------------------------------------------------------------------


def guarded(at_s: float, *guards: Guard, usage: float = 0.3, count: int = 3) -> Decision:
    return Fleet().at(at_s, a_state(usage=[usage] * count, at_s=at_s), guards=guards)["llama-a100"]


def test_a_pin_holds_its_count_until_it_expires() -> None:
    pin = Pin(name="launch", replicas=6, until_s=100.0)
    decision = guarded(40, pin)
    assert decision.desired == 6
    assert said(decision, "apply_guards") == "guard launch: pinned to 6 for 60 s more"
    assert guarded(100, pin).desired == 3


def test_a_pin_lowers_even_a_blind_variant_and_is_named() -> None:
    blind = a_state(replicas=[a_replica(f"r{i}", problem="HTTP 503") for i in range(4)])
    pin = Pin(name="drain", replicas=1, until_s=100.0)
    decision = Fleet().at(0, blind, guards=[pin])["llama-a100"]
    assert decision.desired == 1
    assert "guard drain: pinned to 1" in said(decision, "apply_guards")


def test_a_freeze_keeps_the_count_whatever_the_load_while_it_lasts() -> None:
    freeze = Freeze(name="release", from_s=10.0, until_s=20.0)
    assert guarded(9, freeze, usage=0.95).desired == 4
    frozen = guarded(10, freeze, usage=0.95)
    assert frozen.desired == 3
    assert said(frozen, "apply_guards") == "guard release: frozen at 3 for 10 s more"
    assert frozen.limited == "4 wanted, guard release allows 3"
    assert guarded(20, freeze, usage=0.95).desired == 4


def test_business_hours_bound_the_count_while_they_last() -> None:
    hours = Hours(name="office", from_s=0.0, until_s=50.0, min_replicas=5, max_replicas=8)
    assert guarded(0, hours).desired == 5
    assert "guard office: 5 to 8 replicas for 50 s more" in said(guarded(0, hours), "apply_guards")
    assert guarded(50, hours).desired == 3
    assert guarded(0, hours, usage=0.95, count=8).desired == 8


def test_a_pace_bounds_what_changes_within_its_window_both_ways() -> None:
    pace = MaxChange(name="slowly", replicas=1, window_s=60.0)
    fleet = Fleet()
    counts, count = [], 3
    for at_s in range(0, 125, 5):
        state = a_state(usage=[0.95] * count, at_s=at_s)
        count = fleet.at(at_s, state, guards=[pace])["llama-a100"].desired
        counts.append(count)
    # the 3 of before is more than a minute old at 65 s, the last 4 of 60 s would be at 125 s
    assert counts == [4] * 13 + [5] * 12


def test_a_budget_takes_what_would_be_added_first_and_never_the_minimum() -> None:
    cheap = a_variant("a100", cost=1.0, minimum=2)
    other = a_variant("qwen", model_id="qwen", cost=4.0, minimum=1)
    states = (a_state(cheap, usage=[0.95] * 2), a_state(other, usage=[0.3] * 2))
    wanted = Fleet().at(0, *states)
    assert (wanted["a100"].desired, wanted["qwen"].desired) == (3, 2)  # 11 $/h
    kept = Fleet().at(0, *states, guards=[Budget(name="cap", namespace="chat", usd_per_h=10)])
    assert (kept["a100"].desired, kept["qwen"].desired) == (2, 2)
    assert "guard cap: 11 $/h wanted in chat, at most 10" in said(kept["a100"], "apply_guards")
    assert kept["a100"].limited is not None
    least = Fleet().at(0, *states, guards=[Budget(name="cap", namespace="chat", usd_per_h=1)])
    assert (least["a100"].desired, least["qwen"].desired) == (2, 1)
    assert "the fewest replicas cost 6" in said(least["qwen"], "apply_guards")


def test_the_last_guard_has_the_last_word_and_bounds_have_it_over_guards() -> None:
    hours = Hours(name="office", from_s=0.0, until_s=50.0, min_replicas=5)
    freeze = Freeze(name="release", from_s=0.0, until_s=50.0)
    pin = Pin(name="launch", replicas=30, until_s=50.0)
    decision = guarded(0, pin, freeze, hours)
    assert [step.after for step in decision.trail if step.rule == "apply_guards"] == [5, 3, 30]
    assert decision.desired == 10  # max_replicas


def test_a_guard_holds_only_where_its_scope_says() -> None:
    elsewhere = Pin(name="x", scope=Scope(namespace="other"), replicas=9, until_s=50.0)
    assert guarded(0, elsewhere).desired == 3
    here = Pin(name="x", scope=Scope("chat", "llama", "llama-a100"), replicas=9, until_s=50.0)
    assert guarded(0, here).desired == 9
    assert (
        guarded(0, Pin(name="x", scope=Scope(variant="qwen"), replicas=9, until_s=50.0)).desired
        == 3
    )


def test_a_guard_with_a_negative_number_is_refused() -> None:
    with pytest.raises(
        ValueError, match="guard x: replicas -1, want a finite number of at least 0"
    ):
        Pin(name="x", replicas=-1, until_s=50.0)
    with pytest.raises(ValueError, match="guard x: usd_per_h nan, want a finite number"):
        Budget(name="x", namespace="chat", usd_per_h=math.nan)
    with pytest.raises(ValueError, match="guard x: max_replicas 1 is below min_replicas 2"):
        Hours(name="x", from_s=0.0, until_s=1.0, min_replicas=2, max_replicas=1)


# --- tolerance, limits, shadow -----------------------------------------------------------------


def twenty(at_s: float, *, maximum: int = 30, usage: float = 0.75) -> VariantState:
    variant = a_variant(maximum=maximum, reader=HPA)
    return a_state(variant, usage=[usage] * 20, at_s=at_s, status=20)


def test_a_step_up_that_the_reader_ignores_grows_after_four_cycles() -> None:
    fleet = Fleet()
    desired = [fleet.at(at_s, twenty(at_s))["llama-a100"].desired for at_s in range(0, 35, 5)]
    # 20 -> 21 and 22 lie within 10 %, 23 does not; it stays served until the HPA looks
    assert desired == [21, 21, 21, 21, 23, 23, 23]
    words = said(fleet.at(35, twenty(35))["llama-a100"], "escape_tolerance")
    assert "ignores the step from 20 to 21 for 7 cycles: 23 is the next that it sees" in words


def test_a_shortage_that_passes_is_not_made_larger() -> None:
    fleet = Fleet()
    for at_s in range(0, 20, 5):
        fleet.at(at_s, twenty(at_s))
    assert fleet.at(20, twenty(20, usage=0.3))["llama-a100"].desired <= 20
    assert fleet.at(25, twenty(25))["llama-a100"].desired == 21


def test_a_hidden_step_never_grows_beyond_the_maximum() -> None:
    fleet = Fleet()
    for at_s in range(0, 40, 5):
        decision = fleet.at(at_s, twenty(at_s, maximum=22))["llama-a100"]
    assert decision.desired == 21
    assert "max_replicas 22 is below the 23 it sees" in said(decision, "escape_tolerance")


def test_a_hidden_step_goes_to_a_smaller_variant_of_equal_cost_at_once() -> None:
    large = a_variant("a100-a", cost=1.2, maximum=30, reader=HPA)
    small = a_variant("a100-b", cost=1.2, maximum=30, reader=Reader("HPA chat/a100-b"))
    decided = Fleet().at(
        0,
        a_state(large, usage=[0.75] * 20, status=20),
        a_state(small, usage=[0.75] * 2, status=2),
    )
    assert (decided["a100-a"].desired, decided["a100-b"].desired) == (20, 3)
    assert "1 more of a100-b carry as much at no more cost" in said(
        decided["a100-a"], "escape_tolerance"
    )
    assert "1 instead of 1 of a100-a" in said(decided["a100-b"], "escape_tolerance")


def test_a_need_that_no_variant_can_carry_is_reported_as_limited() -> None:
    decided = Fleet().at(0, a_state(a_variant(maximum=2), usage=[0.95] * 2))
    limited = decided["llama-a100"].limited
    assert limited == "3 replicas needed, 2 can be carried: max_replicas is 2"
    assert Fleet().at(0, a_state(usage=[0.95] * 2))["llama-a100"].limited is None


def test_a_need_that_finds_no_place_is_reported_as_limited() -> None:
    decision = Fleet().at(0, full_and_starting(0, a_pod("p0", why="SchedulingGated")))["a100"]
    assert decision.limited == "3 replicas needed, 2 can be carried: pod p0 is gated"


def test_a_need_that_another_variant_carries_is_not_limited() -> None:
    states = (
        a_state(a_variant("a100", maximum=1), usage=[0.95]),
        a_state(a_variant("h100", cost=3.9), usage=[0.95]),
    )
    assert {d.limited for d in Fleet().at(0, *states).values()} == {None}


def test_a_variant_in_shadow_is_decided_and_told_what_it_would_have_cost() -> None:
    fleet = Fleet(replace(SATURATION, shadow=True))
    for at_s in range(0, 3601, 5):
        # two full replicas run, for which three are wanted: 1.2 $/h each
        decision = fleet.at(at_s, a_state(usage=[0.95] * 2, at_s=at_s))["llama-a100"]
    assert decision.desired == 3
    assert decision.bill is not None
    assert decision.bill.would_usd == pytest.approx(3.6)
    assert decision.bill.ran_usd == pytest.approx(2.4)
    assert "not served; in 3600 s it would have cost 3.60 $ instead of 2.40 $: 1.20 $ more" in said(
        decision, "shadow"
    )
    served = Fleet().at(0, a_state(usage=[0.95] * 2))["llama-a100"]
    assert served.bill is None


def test_of_a_time_in_which_nothing_was_decided_no_cost_is_made_up() -> None:
    fleet = Fleet(replace(SATURATION, shadow=True))
    fleet.at(0, a_state(usage=[0.95] * 2))
    decision = fleet.at(36000, a_state(usage=[0.95] * 2, at_s=36000))["llama-a100"]
    assert decision.bill is not None
    assert decision.bill.ran_usd == pytest.approx(2 * 1.2 * 60 / 3600)


# --- laws over whole histories -----------------------------------------------------------------

ANALYSES: tuple[Analysis, ...] = ("saturation", "tokens", "demand")
TIMES = st.floats(0, 5000)


def pages(name: str) -> st.SearchStrategy[ReplicaState]:
    amounts = st.none() | st.floats(0, 1e6)
    sample = st.builds(
        lambda at_s, usage, queue, running, total, awake: replace(
            a_sample(name, at_s=at_s, usage=usage, queue=queue, awake=awake),
            running_requests=running,
            generation_tokens_total=total,
            ttft_count=total,
            itl_count=total,
            itl_sum_s=total,
        ),
        at_s=TIMES,
        usage=st.none() | st.floats(0, 1),
        queue=st.none() | st.floats(0, 500),
        running=st.none() | st.floats(0, 300),
        total=amounts,
        awake=st.none() | st.booleans(),
    )
    return st.builds(
        ReplicaState,
        name=st.just(name),
        phase=st.sampled_from(Phase),
        created_at_s=st.none() | TIMES,
        ready_at_s=st.none() | TIMES,
        sample=st.none() | sample,
        problem=st.none() | st.just("timed out"),
        unscheduled=st.sampled_from([None, None, "Unschedulable", "SchedulingGated"]),
        unscheduled_since_s=st.none() | TIMES,
        node=st.sampled_from([None, "n0", "n1", "n2"]),
        deletion_cost=st.sampled_from([None, None, -3]),
        ordinal=st.sampled_from([None, None, 7]),
    )


def variants(name: str) -> st.SearchStrategy[Variant]:
    reader = st.builds(
        Reader,
        name=st.just(f"HPA {name}"),
        target_type=st.sampled_from(["AverageValue", "Value"]),
        tolerance_up=st.sampled_from([0.0, 0.1]),
    )
    return st.builds(
        lambda model, cost, low, span, who: replace(
            a_variant(
                name,
                model_id=model,
                cost=cost,
                minimum=low,
                maximum=None if span is None else low + span,
                reader=who,
            ),
            resource="nvidia.com/gpu",
        ),
        model=st.sampled_from(["llama", "qwen"]),
        # A hundredth of the smallest numbers that there are is none.
        cost=st.sampled_from([0.0, 3.0]) | st.floats(1e-3, 20),
        low=st.integers(0, 3),
        span=st.none() | st.integers(0, 20),
        who=st.none() | reader,
    )


def states(name: str) -> st.SearchStrategy[VariantState]:
    return st.integers(0, 4).flatmap(
        lambda count: st.builds(
            VariantState,
            variant=variants(name),
            spec_replicas=st.none() | st.integers(0, 25),
            status_replicas=st.none() | st.integers(0, 25),
            replicas=st.tuples(*(pages(f"{name}-{i}") for i in range(count))),
            refused=st.none() | st.just("exceeded quota"),
        )
    )


SCOPES = st.builds(Scope, variant=st.sampled_from([None, "v0", "v1"]))
GUARDS: st.SearchStrategy[Guard] = st.one_of(
    st.builds(Pin, name=st.just("pin"), scope=SCOPES, replicas=st.integers(0, 9), until_s=TIMES),
    st.builds(Freeze, name=st.just("freeze"), scope=SCOPES, from_s=TIMES, until_s=TIMES),
    st.builds(
        lambda low, span, start, end, scope: Hours(
            name="hours",
            scope=scope,
            from_s=start,
            until_s=end,
            min_replicas=low,
            max_replicas=None if low is None or span is None else low + span,
        ),
        st.none() | st.integers(0, 5),
        st.none() | st.integers(0, 5),
        TIMES,
        TIMES,
        SCOPES,
    ),
    st.builds(
        MaxChange,
        name=st.just("pace"),
        scope=SCOPES,
        replicas=st.integers(0, 4),
        window_s=st.floats(0, 900),
    ),
    st.builds(Budget, name=st.just("cap"), namespace=st.just("chat"), usd_per_h=st.floats(0, 200)),
)


def gateways(at_s: float) -> st.SearchStrategy[tuple[GatewayState, ...]]:
    one = st.builds(
        a_gateway,
        st.floats(max(0.0, at_s - 30), at_s),
        queue=st.none() | st.floats(0, 300),
        total=st.none() | st.floats(0, 1e5),
    )
    return st.just(()) | one.map(lambda gateway: (gateway,))


NODES = st.none() | st.lists(
    st.builds(
        NodeState,
        st.sampled_from(["n0", "n1"]),
        st.sampled_from(["A100", "H100", None]),
        st.none() | st.integers(0, 8),
        st.none() | st.integers(0, 9),
        ready=st.booleans(),
        cordoned=st.booleans(),
        taints=st.sampled_from([(), (Taint("gpu"),)]),
    ),
    max_size=2,
    unique_by=lambda node: node.name,
).map(tuple)
INVENTORIES = st.builds(
    Inventory,
    st.dictionaries(st.sampled_from(["A100", "H100"]), st.integers(0, 9)),
    st.lists(
        st.builds(
            NamespaceQuota,
            st.just("chat"),
            st.integers(0, 9),
            st.sampled_from([None, "A100"]),
        ),
        max_size=2,
    ).map(tuple),
    st.booleans(),
)
QUOTAS = st.none() | st.lists(
    st.builds(
        ResourceQuota,
        st.sampled_from(["chat", "chat", "code"]),
        st.sampled_from(["q", "r"]),
        st.sampled_from(["requests.nvidia.com/gpu", "pods", "count/pods"]),
        st.integers(0, 9),
        st.integers(0, 9),
    ),
    max_size=2,
).map(tuple)
PROPOSALS = st.none() | st.dictionaries(
    st.sampled_from([a_key(f"v{i}") for i in range(4)]), st.integers(0, 9)
)


@st.composite
def histories(draw: st.DrawFn) -> list[Snapshot]:
    at_s, snapshots = 1000.0, []
    for _ in range(draw(st.integers(1, 5))):
        count = draw(st.integers(1, 3))
        snapshots.append(
            Snapshot(
                at_s,
                tuple(draw(states(f"v{i}")) for i in range(count)),
                draw(gateways(at_s)),
                guards=tuple(draw(st.lists(GUARDS, max_size=2))),
                nodes=draw(NODES),
                inventory=draw(INVENTORIES),
                proposal=draw(PROPOSALS),
                quotas=draw(QUOTAS),
            )
        )
        at_s += draw(st.sampled_from([0.0, 1.0, 5.0, 5.0, 60.0, 700.0]))
    return snapshots


POLICIES = st.builds(
    Policy,
    analysis=st.sampled_from(ANALYSES),
    scale_to_zero=st.booleans(),
    scale_down_window_s=st.none() | st.just(0.0),
    shadow=st.booleans(),
)


def run(history: Sequence[Snapshot], policy: Policy) -> list[Plan]:
    memory, plans = Memory(), []
    for snapshot in history:
        decided, memory = plan(snapshot, policy, memory)
        plans.append(decided)
    return plans


@settings(max_examples=500, deadline=None)
@given(histories(), POLICIES)
def test_every_history_gives_counts_in_bounds_that_only_a_named_guard_lowers_blindly(
    history: list[Snapshot], policy: Policy
) -> None:
    for snapshot, decided in zip(history, run(history, policy), strict=True):
        for state in snapshot.variants:
            key = state.variant.key
            if state.spec_replicas is None:
                assert key in decided.undecided
                continue
            decision = decided.decisions[key]
            highest = state.variant.max_replicas
            assert state.variant.min_replicas <= decision.desired
            assert highest is None or decision.desired <= highest
            count = decision.current
            for step in decision.trail:
                assert (step.before, bool(step.why)) == (count, True)
                count = step.after
            assert count == decision.desired
            blind = any(
                r.sample is None
                or r.problem is not None
                or snapshot.at_s - r.sample.at_s > policy.stale_after_s
                for r in state.ready
            )
            if blind and decision.desired < decision.current:
                lowering = {
                    s.rule for s in decision.trail if s.after < min(s.before, decision.current)
                }
                assert "apply_guards" in lowering or decision.desired == highest


@settings(max_examples=500, deadline=None)
@given(histories(), POLICIES, st.randoms())
def test_the_order_of_what_is_handed_in_changes_nothing(
    history: list[Snapshot], policy: Policy, random: object
) -> None:
    mixed = [
        replace(
            snapshot,
            variants=tuple(
                replace(state, replicas=state.replicas[::-1]) for state in snapshot.variants[::-1]
            ),
            guards=snapshot.guards[::-1],
            nodes=snapshot.nodes and snapshot.nodes[::-1],
            quotas=snapshot.quotas and snapshot.quotas[::-1],
        )
        for snapshot in history
    ]
    for one, other in zip(run(history, policy), run(mixed, policy), strict=True):
        assert {k: (d.desired, d.value_milli) for k, d in one.decisions.items()} == {
            k: (d.desired, d.value_milli) for k, d in other.decisions.items()
        }


@settings(max_examples=500, deadline=None)
@given(histories(), POLICIES, st.sampled_from([0.01, 0.5, 1.1, 100.0]))
def test_the_unit_of_money_changes_no_count(
    history: list[Snapshot], policy: Policy, unit: float
) -> None:
    priced = [
        replace(
            snapshot,
            variants=tuple(
                replace(s, variant=replace(s.variant, cost_per_h=unit * s.variant.cost_per_h))
                for s in snapshot.variants
            ),
            guards=tuple(
                replace(g, usd_per_h=unit * g.usd_per_h) if isinstance(g, Budget) else g
                for g in snapshot.guards
            ),
        )
        for snapshot in history
    ]
    for one, other in zip(run(history, policy), run(priced, policy), strict=True):
        assert {k: d.desired for k, d in one.decisions.items()} == {
            k: d.desired for k, d in other.decisions.items()
        }


REFUSED: dict[str, Callable[[], object]] = {
    "replica r0: queued_requests nan, want a number from 0 to 1e+15": lambda: a_sample(
        queue=math.nan
    ),
    "replica r0: kv_cache_usage -0.1, want": lambda: a_sample(usage=-0.1),
    "replica r0: at_s inf, want": lambda: a_sample(at_s=math.inf),
    "replica p: created_at_s nan, want": lambda: a_pod("p", created=math.nan),
    "replica p: in_flight_requests nan, want": lambda: ReplicaState(
        "p", in_flight_requests=math.nan
    ),
    "replica p: in_flight_tokens -1.0, want": lambda: ReplicaState("p", in_flight_tokens=-1.0),
    "chat/llama-a100: spec_replicas -2, want": lambda: a_state(spec=-2),
    "gateway of chat/llama: queued_requests inf, want": lambda: a_gateway(0, queue=math.inf),
    "snapshot: at_s nan, want": lambda: Snapshot(math.nan),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_decided_on_it(message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        REFUSED[message]()

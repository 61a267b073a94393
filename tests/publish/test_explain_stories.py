"""What an operator reads who asks why a count is what it is: one story per sentence.

Numbers are those of the story; each says in its comment where they come from.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tests.builders import a_replica, a_state, a_variant
from tests.core.test_demand import Fleet
from tests.core.test_roles import PREFILL, Split
from tests.publish.test_board import Clock
from wva_adapter.core.decision import Plan
from wva_adapter.core.fleet import Reader
from wva_adapter.core.guards import Budget, Freeze, Guard, Hours, MaxChange, Pin, Scope
from wva_adapter.core.memory import Memory, Start
from wva_adapter.core.planner import plan
from wva_adapter.core.policies import Override, Policies
from wva_adapter.core.policy import Policy
from wva_adapter.core.snapshot import GatewayState, Phase, ReplicaState, Snapshot, VariantState
from wva_adapter.publish.board import Board
from wva_adapter.publish.explain import Explanation, Refusals

HPA = Reader("HorizontalPodAutoscaler chat", "AverageValue", 1.0, 0.1, 0.1, True)
VALUE_HPA = Reader("HorizontalPodAutoscaler chat", "Value", 10.0, 0.1, 0.1, True)
OURS = Policy(analysis="saturation")


@dataclass
class Story:
    """Looks at a fleet again and again, and asks in the end."""

    policies: Policies = field(default_factory=lambda: Policies(OURS))
    memory: Memory = field(default_factory=Memory)
    snapshot: Snapshot = field(default_factory=lambda: Snapshot(0.0))
    planned: Plan | None = None

    def look(
        self,
        *states: VariantState,
        at_s: float = 0.0,
        gateway: GatewayState | None = None,
        guards: tuple[Guard, ...] = (),
    ) -> Story:
        """Decide on these states."""
        gateways = () if gateway is None else (gateway,)
        self.snapshot = Snapshot(at_s, states, gateways, guards=guards)
        self.planned, self.memory = plan(self.snapshot, self.policies, self.memory)
        return self

    def explained(
        self,
        name: str = "llama-a100",
        *,
        after_s: float = 0.0,
        why_not: int | None = None,
        refused: Refusals | None = None,
    ) -> Explanation:
        """Ask so many seconds later."""
        assert self.planned is not None
        board = Board(60.0, Clock(self.snapshot.at_s + after_s))
        board.post(self.planned, self.snapshot, refused)
        found = board.explain("chat", name, why_not=why_not)
        assert isinstance(found, Explanation)
        return found

    def told(self, name: str = "llama-a100", *, after_s: float = 0.0) -> str:
        """Ask so many seconds later, and read."""
        return self.explained(name, after_s=after_s).text


class Recorded(Fleet):
    """The fleet of the demand stories, asked about in the end."""

    def again(self, **changes: Any) -> Recorded:
        """Return one that goes on from here by itself."""
        return replace(self, served=dict(self.served), **changes)

    def told(self, why_not: int | None = None) -> str:
        """Look once more, and read."""
        return self.explained(why_not).text

    def explained(self, why_not: int | None = None) -> Explanation:
        """Look once more; explain what was decided then."""
        story = Story(Policies(self.policy), self.memory)
        names = [f"r{i}" for i in range(self.ready)]
        replicas = [self._replica(name, unseen=False) for name in names]
        replicas += [
            ReplicaState(f"s{i}", Phase.STARTING, self.starting_since_s)
            for i in range(self.spec - self.ready)
        ]
        state = VariantState(self.variant, self.spec, self.spec, tuple(replicas))
        story.look(state, at_s=self.at_s)
        return story.explained(why_not=why_not)


@pytest.fixture(scope="module")
def calm() -> Recorded:
    """Two replicas that serve 8 requests per second, for five minutes."""
    fleet = Recorded(variant=a_variant(maximum=30, reader=HPA))
    fleet.cycles(8.0, 300)
    return fleet


def test_each_replica_is_told_with_the_age_of_its_page() -> None:
    replicas = [a_replica("r0", at_s=95.0, usage=0.42, queue=3), a_replica("r1", at_s=98.5)]

    told = Story().look(a_state(replicas=replicas), at_s=100.0).told()

    assert "r0  KV-cache usage 0.42, queue 3, page 5.0 s old" in told
    assert "r1  KV-cache usage 0.30, queue 0, page 1.5 s old" in told


def test_what_a_gateway_has_in_flight_is_told_by_replica_where_it_is_known() -> None:
    replicas = [
        replace(a_replica("r0", queue=3), in_flight_requests=12.0, in_flight_tokens=3400.0),
        replace(a_replica("r1", seen=False, problem="HTTP 503"), in_flight_requests=0.0),
        a_replica("r2"),
    ]

    explained = Story().look(a_state(replicas=replicas)).explained()

    assert "queue 3, page 0.0 s old, 12 requests in flight, 3,400 tokens in flight\n" in (
        explained.text
    )
    assert "r1  unseen: HTTP 503, 0 requests in flight\n" in explained.text
    assert "replica r1 unseen: HTTP 503, 0 in flight there by the gateway" in explained.text
    told = explained.document["replicas"]
    assert [r["in_flight_requests"] for r in told] == [12.0, 0.0, None]
    assert [r["in_flight_tokens"] for r in told] == [3400.0, None, None]


def test_what_a_page_does_not_say_is_told_as_unknown_and_not_as_zero() -> None:
    replicas = [a_replica("r0", queue=None)]

    assert "r0  unseen: " in Story().look(a_state(replicas=replicas)).told()


def test_a_replica_that_starts_is_told_as_starting_and_one_that_ends_as_ending() -> None:
    replicas = [
        a_replica("r0"),
        ReplicaState("r1", Phase.STARTING, 0.0),
        ReplicaState("r2", Phase.TERMINATING),
    ]

    told = Story().look(a_state(replicas=replicas, spec=2)).told()

    assert "r1  starting" in told
    assert "r2  terminating" in told


def test_a_page_that_is_too_old_is_told_as_unseen_with_its_age() -> None:
    replicas = [a_replica("r0", at_s=0.0), a_replica("r1", at_s=40.0)]

    told = Story().look(a_state(replicas=replicas), at_s=40.0).told()

    # Three scrapes of 5 s are what a page is believed for.
    assert "r0  unseen: " in told
    assert "40 s old" in told


def test_the_learned_capacity_is_told_with_its_evidence_and_what_binds_it(calm: Recorded) -> None:
    told = calm.told()

    assert "req/s per replica; learned from 118 samples, which it explains within" in told
    assert "inter-token latency of" in told
    assert "SLO 60 ms" in told


def test_starts_are_told_by_what_the_pods_began_with(calm: Recorded) -> None:
    # Three pods whose images were there served after 62 s, one that had to pull after 240 s.
    key = calm.variant.key
    starts = (*(Start(1e6, 62.0, "warm") for _ in range(3)), Start(1e6, 240.0, "cold"))
    known = replace(calm.memory.variants[key], starts=starts, wakes_s=(3.4,))
    fleet = calm.again(memory=replace(calm.memory, variants={key: known}), spec=calm.ready + 1)

    told, asked = fleet.told(), fleet.explained().document

    assert "nine of ten start: cold within 240 s (1 seen), sleeping within 3 s (1 seen)," in told
    assert "warm within 62 s (3 seen)" in told
    assert asked["capacity"]["starts"]["warm"] == {"seen": 3, "within_s": 62.0}
    assert "s0  starting\n" in told  # its pod has no node yet, so nothing says


def test_a_capacity_that_was_not_learned_yet_says_that_nothing_was_seen() -> None:
    fleet = Recorded(variant=a_variant(reader=HPA))
    fleet.cycle(4.0)

    assert "req/s per replica; nothing seen yet" in fleet.told()


def test_the_forecast_is_told_by_its_analogs_and_how_sure_they_make_it(calm: Recorded) -> None:
    told = calm.told()

    assert "8 req/s arrive; in " in told
    assert " similar moments of the last 5 min demand reached " in told
    assert "req/s within 115 s; confidence 0." in told  # 100 s that a start took, 15 s to the HPA


def test_without_an_analog_headroom_is_said_to_be_kept() -> None:
    fleet = Recorded(variant=a_variant(maximum=30, reader=HPA))
    fleet.cycles(4.0, 60)
    fleet.cycle(60.0)

    assert "no similar moment on record; confidence 0.00, so headroom is kept" in fleet.told()


def test_what_waits_is_told_apart_from_what_arrives() -> None:
    fleet = Recorded(variant=a_variant(maximum=30, reader=HPA))
    fleet.cycles(8.0, 300)
    fleet.waiting = 90.0
    fleet.cycle(8.0)

    told = fleet.told()

    assert "to be ready for and " in told
    assert "waiting to be served within 60 s" in told
    assert "r0  KV-cache usage 0.10, queue 45" in told


def test_the_alternatives_are_told_with_their_cost_and_what_they_lack(calm: Recorded) -> None:
    told = calm.told()

    assert "2 llama-a100  2.40 $/h  decided" in told
    assert "3 llama-a100  3.60 $/h  1.20 $/h more" in told
    assert "1 llama-a100  1.20 $/h  short by " in told


def test_the_alternatives_of_two_variants_name_both() -> None:
    story = Story().look(
        a_state(a_variant("cheap", cost=1.0), usage=0.95),
        a_state(a_variant("dear", cost=4.0), usage=0.95),
    )

    told = story.told("cheap")

    assert "3 cheap + 2 dear  11.00 $/h  decided" in told
    assert "3 cheap + 3 dear  15.00 $/h  4.00 $/h more" in told
    assert "2 cheap + 2 dear  10.00 $/h  short by " in told


def test_a_step_up_names_the_trigger_the_price_and_the_choice() -> None:
    told = Story().look(a_state(usage=0.95)).told()

    assert "follow_demand" in told
    assert "2 → 3" in told
    assert "+1 at 1.2 $/h each, the cheapest with room" in told


def test_a_need_that_another_variant_covers_says_so() -> None:
    story = Story().look(
        a_state(a_variant("cheap", cost=1.0), usage=0.95),
        a_state(a_variant("dear", cost=4.0), usage=0.95),
    )

    assert "another variant covers it at less cost" in story.told("dear")


def test_a_count_that_stays_says_what_it_was_weighed_against() -> None:
    assert "2 stays" in Story().look(a_state(usage=0.5)).told()


def test_a_window_says_how_long_it_is_and_what_was_needed_in_it(calm: Recorded) -> None:
    fleet = calm.again()
    fleet.cycle(40.0)
    fleet.ready = fleet.spec = 4
    fleet.cycles(1.0, 60)

    told = fleet.told()

    assert "settle_down" in told
    assert " needed within the last " in told
    assert "(scale_down_window): " in told


def test_the_fastest_way_down_is_named() -> None:
    story = Story(Policies(Policy(analysis="tokens", scale_down_window_s=0.0)))
    for at_s in (0.0, 5.0):
        state = a_state(a_variant(maximum=20), usage=0.01, ready=12, at_s=at_s)
        story.look(state, at_s=at_s)

    assert "at most 3 of 12 fewer per 15 s" in story.told()


def test_a_blind_variant_names_who_is_not_seen_and_why() -> None:
    replicas = [a_replica("r0"), a_replica("r1", problem="timed out after 5 s", seen=False)]

    told = Story().look(a_state(replicas=replicas)).told()

    assert "hold_when_blind" in told
    assert "replica r1 unseen: timed out after 5 s" in told


def test_of_many_that_are_not_seen_three_are_named_and_the_others_counted() -> None:
    replicas = [a_replica(f"r{i}", seen=False, problem="HTTP 503") for i in range(8)]

    assert "; and 5 more" in Story().look(a_state(replicas=replicas)).told()


def test_a_wake_up_says_what_waits_and_where_the_one_replica_comes() -> None:
    gateway = GatewayState(namespace="chat", model_id="llama", at_s=0.0, queued_requests=7)
    states = [
        a_state(a_variant(name, cost=cost, minimum=0), ready=0)
        for name, cost in (("cheap", 1.0), ("dear", 4.0))
    ]

    told = Story().look(*states, gateway=gateway).told("cheap")

    assert (
        "wake_from_zero  0 → 1  7 requests wait in the gateway and there is no replica: one on "
        "the cheapest that gets a place"
    ) in " ".join(told.split("\n")).replace("   ", "  ")


def test_a_rest_at_zero_says_for_how_long_nobody_asked() -> None:
    policy = replace(OURS, scale_to_zero=True, retention_s=60.0)
    story = Story(Policies(policy))
    for number in range(16):
        at_s = 5.0 * number
        sample_state = a_state(a_variant(minimum=0), ready=1, at_s=at_s)
        (replica,) = sample_state.replicas
        assert replica.sample is not None
        idle = replace(replica.sample, running_requests=0.0)
        state = replace(sample_state, replicas=(replace(replica, sample=idle),))
        gateway = GatewayState(
            namespace="chat", model_id="llama", at_s=at_s, queued_requests=0, arrivals_total=9
        )
        story.look(state, at_s=at_s, gateway=gateway)
        if at_s == 30.0:
            assert "not to zero: no request for 30 s, retention is 60 s" in story.told()

    assert "no request for 75 s, retention is 60 s" in story.told()


def test_a_rest_that_is_not_proven_says_what_is_missing() -> None:
    policy = replace(OURS, scale_to_zero=True)

    told = Story(Policies(policy)).look(a_state(a_variant(minimum=0), ready=1)).told()

    assert "not to zero: no gateway says that nothing waits" in told


GUARDS: dict[str, tuple[Guard, str]] = {
    "pin": (
        Pin(name="launch", scope=Scope(), replicas=6, until_s=90.0),
        "guard launch: pinned to 6 for 90 s more",
    ),
    "freeze": (
        Freeze(name="release", scope=Scope(), from_s=0.0, until_s=50.0),
        "guard release: frozen at 2 for 50 s more",
    ),
    "hours": (
        Hours(
            name="office", scope=Scope(), from_s=0.0, until_s=60.0, min_replicas=5, max_replicas=8
        ),
        "guard office: 5 to 8 replicas for 60 s more",
    ),
    "budget": (
        Budget(name="cap", namespace="chat", usd_per_h=2.5),
        "guard cap: 3.6 $/h wanted in chat, at most 2.5",
    ),
    "pace": (
        MaxChange(name="slowly", scope=Scope(), replicas=0, window_s=600.0),
        "guard slowly: at most 0 changed per 600 s, 2 published in the last",
    ),
}


@pytest.mark.parametrize("kind", GUARDS)
def test_a_guard_is_told_by_its_name_and_its_numbers(kind: str) -> None:
    guard, sentence = GUARDS[kind]

    told = Story().look(a_state(usage=0.95), guards=(guard,)).told()

    assert "apply_guards" in told
    assert sentence in told


def test_a_maximum_in_the_way_is_told_as_limited() -> None:
    told = Story().look(a_state(a_variant(maximum=2), usage=0.95)).told()

    assert "max_replicas is 2" in told
    assert "  limited: " in told


def test_a_minimum_that_holds_is_named() -> None:
    assert "min_replicas is 3" in Story().look(a_state(a_variant(minimum=3), ready=2)).told()


def test_pods_without_a_place_say_what_the_scheduler_says() -> None:
    gated = ReplicaState("p0", Phase.STARTING, 0.0, unscheduled="SchedulingGated")
    cheap = a_state(
        a_variant("cheap", cost=1.0), replicas=[a_replica("r0", usage=0.95), gated], spec=2
    )
    story = Story().look(cheap, a_state(a_variant("dear", cost=4.0), usage=0.95))

    assert "none can be added, " in story.told("cheap")
    assert "+1 at 4 $/h each" in story.told("dear")


def test_a_step_that_the_hpa_ignores_is_told_with_what_it_would_see() -> None:
    variant = a_variant(maximum=40, reader=HPA)

    told = Story().look(a_state(variant, usage=0.95, ready=20)).told()

    assert (
        "HorizontalPodAutoscaler chat ignores the step from 20 to 21: 23 once that lasted 4" in told
    )


def test_a_shadow_says_what_it_would_have_cost() -> None:
    shadowed = Override(source="o", changes={"shadow": True}, namespace="chat")
    story = Story(Policies(OURS, (shadowed,)))
    story.look(a_state(usage=0.95), at_s=0.0).look(a_state(usage=0.95, at_s=5.0), at_s=5.0)

    assert "not served; in 5 s it would have cost 0.01 $ instead of 0.00 $" in story.told()


READERS: dict[str, tuple[Reader | None, str]] = {
    "average": (
        HPA,
        "read by HorizontalPodAutoscaler chat, target AverageValue 1, tolerance up 0.1 down 0.1",
    ),
    "average-next": (HPA, "next: HorizontalPodAutoscaler chat sets 3 at its next look, now 2"),
    "value-next": (VALUE_HPA, "next: HorizontalPodAutoscaler chat sets 3 at its next look, now 2"),
    "nobody": (None, "next: 3 is served; no autoscaler is known to read it"),
    "paused": (
        replace(HPA, paused=True),
        "HorizontalPodAutoscaler chat is paused, so 3 is served and not followed",
    ),
}


@pytest.mark.parametrize("kind", READERS)
def test_what_the_reader_makes_of_the_value_is_told(kind: str) -> None:
    reader, sentence = READERS[kind]

    assert sentence in Story().look(a_state(a_variant(reader=reader), usage=0.95)).told()


def test_a_served_value_is_told_to_programs_as_the_hpa_will_compute_with_it() -> None:
    story = Story().look(a_state(a_variant(reader=VALUE_HPA), usage=0.95, status=2))

    reader = story.explained().document["reader"]

    # With 2 ready and a target of 10 the HPA sets ceil(2 x / 10): 3 for 10 < x <= 15, seen from 11 on.
    assert reader["target"] == 10
    assert 11 < reader["served"] < 15
    assert reader["will_set"] == 3


def test_what_is_on_its_way_is_told_with_when_it_is_expected(calm: Recorded) -> None:
    fleet = calm.again(spec=4, starting_since_s=calm.at_s)

    assert "2 on the way, expected in 100 s" in fleet.told()


def test_a_window_that_holds_says_when_it_will_let_go(calm: Recorded) -> None:
    fleet = calm.again()
    fleet.cycle(40.0)
    fleet.ready = fleet.spec = 4
    fleet.cycles(1.0, 60)

    assert "if the load stays, it may go down from " in fleet.told()


def test_a_plan_that_is_too_old_is_explained_as_one_that_moves_nothing() -> None:
    told = Story().look(a_state(a_variant(reader=HPA), usage=0.95)).told(after_s=70.0)

    assert "next: nothing is served, so the count stays: " in told
    assert "70 s old" in told


def test_another_count_is_answered_with_what_it_breaks_and_costs(calm: Recorded) -> None:
    told = calm.told(why_not=1)

    assert "why not 1?" in told
    assert "short by " in told
    assert "it costs 1.20 $/h less" in told


def test_what_was_refused_and_what_was_lost_stand_above_all() -> None:
    refused = Refusals(
        ("configmap wva/thresholds default: kvCacheTreshold: unknown key",),
        ("memory: memory.json: memory of version 0, want 1; set aside as memory.json.aside",),
    )
    found = Story().look(a_state()).explained(refused=refused)

    first, second, rest = found.text.split("\n\n", 2)
    assert first.startswith("configuration refused, the last good one holds: configmap wva/thr")
    assert second.startswith("note: memory: memory.json: memory of version 0, want 1; set aside")
    assert rest.startswith("chat/llama-a100  Deployment llama-a100, llama on A100, 1.2 $/h per")
    assert found.document["refused"] == list(refused.whole)
    assert found.document["notes"] == list(refused.notes)


def test_text_and_document_are_of_one_structure(calm: Recorded) -> None:
    story = Story(Policies(calm.policy), calm.memory)
    state = VariantState(calm.variant, 2, 2, tuple(calm._replica(f"r{i}", False) for i in (0, 1)))
    found = story.look(state, at_s=calm.at_s).explained()

    for step in found.document["decision"]["trail"]:
        assert step["why"] in found.text
    for one in found.document["allocations"]:
        assert f"{one['cost_per_h']:.2f} $/h" in found.text
        assert one["why"] in found.text
    assert found.document["next"].split("; ")[0] in found.text
    assert found.document["capacity"]["samples"] == 118


def test_a_role_is_told_with_its_unit_and_what_it_lacks() -> None:
    split = Split(variants=(PREFILL,))
    split.cycles(1.0, 120)
    story = Story(Policies(split.policy), split.memory)
    story.look(split._state(PREFILL, 1.0), at_s=split.at_s)
    told = story.explained("prefill", why_not=0).text

    assert "prefill  Deployment prefill, llama, prefill alone on A100, 2 $/h per replica" in told
    assert "prompt tokens/s to be ready for against" in told
    assert "capacity: 17," in told  # 20,000 at full use, 85 % of which keep the SLO
    assert "prompt tokens/s per replica; learned from" in told
    assert "has no variant of role decode beside its role prefill" in told
    assert "short by" in told
    document = story.explained("prefill").document
    assert (document["variant"]["role"], document["model"]["role"]) == ("prefill", "prefill")

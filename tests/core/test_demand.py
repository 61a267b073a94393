"""The default analysis as an operator meets it: requests against what replicas serve in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from tests.builders import a_key, a_variant
from wva_adapter.core.decision import Decision, Plan
from wva_adapter.core.fleet import LoadKey, Variant
from wva_adapter.core.memory import Memory, Start
from wva_adapter.core.planner import plan
from wva_adapter.core.policy import Policy
from wva_adapter.core.snapshot import (
    GatewayState,
    Phase,
    ReplicaSample,
    ReplicaState,
    Snapshot,
    VariantState,
)

PROMPT, OUTPUT = 1000.0, 200.0
CYCLE_S = 5.0


@dataclass
class Fleet:
    """One variant whose replicas share what arrives, and the memory of who decides on it.

    A token takes 20 ms however many requests there are, so that the times to learn are simple.
    """

    variant: Variant = field(default_factory=lambda: a_variant(maximum=30))
    ready: int = 2
    spec: int = 2
    starting_since_s: float | None = None
    at_s: float = 1_000_000.0
    ready_since_s: float = 999_000.0
    waiting: float = 0.0
    running: float = 8.0
    busy: int | None = None
    gateway_queue: float | None = None
    in_flight: dict[str, float] = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()
    memory: Memory = field(default_factory=Memory)
    policy: Policy = field(default_factory=Policy)
    served: dict[str, float] = field(default_factory=dict)

    def cycle(self, rate: float, *, unseen: Sequence[str] = ()) -> Plan:
        """Let 5 s pass in which ``rate`` requests per second are served, and decide."""
        self.at_s += CYCLE_S
        names = [f"r{i}" for i in range(self.ready)]
        served = names[: self.busy]
        for name in served:
            if name not in self.frozen:
                self.served[name] = self.served.get(name, 0.0) + rate * CYCLE_S / len(served)
        replicas = [
            replace(
                self._replica(name, name in unseen), in_flight_requests=self.in_flight.get(name)
            )
            for name in names
        ]
        created_s = self.at_s if self.starting_since_s is None else self.starting_since_s
        replicas += [
            ReplicaState(f"s{i}", Phase.STARTING, created_s) for i in range(self.spec - self.ready)
        ]
        state = VariantState(self.variant, self.spec, self.spec, tuple(replicas))
        gateways: tuple[GatewayState, ...] = ()
        if self.gateway_queue is not None:
            gateways = (
                GatewayState(
                    namespace=self.variant.key.namespace,
                    model_id=self.variant.model_id,
                    at_s=self.at_s,
                    queued_requests=self.gateway_queue,
                ),
            )
        decided, self.memory = plan(
            Snapshot(self.at_s, (state,), gateways), self.policy, self.memory
        )
        return decided

    def cycles(self, rate: float, seconds: float) -> Plan:
        """Decide every 5 s for so long; return the last plan."""
        decided = self.cycle(rate)
        for _ in range(int(seconds / CYCLE_S) - 1):
            decided = self.cycle(rate)
        return decided

    def _replica(self, name: str, unseen: bool) -> ReplicaState:
        began_s = self.ready_since_s
        if unseen:
            old = self.memory.replicas[self.variant.key][name].page
            return ReplicaState(
                name, Phase.READY, began_s - 100, began_s, old, problem="timed out after 2 s"
            )
        n = self.served.get(name, 0.0)
        page = ReplicaSample(
            replica=name,
            at_s=self.at_s,
            awake=True,
            kv_cache_usage=0.1 if self.busy is None or not n else 0.99,
            kv_cache_tokens=400_000,
            running_requests=self.running,
            queued_requests=self.waiting / self.ready,
            prompt_tokens_total=n * PROMPT,
            computed_prompt_tokens_total=n * PROMPT,
            generation_tokens_total=n * OUTPUT,
            ttft_sum_s=0.2 * n,
            ttft_count=n,
            itl_sum_s=n * OUTPUT * 0.020,
            itl_count=n * OUTPUT,
            prefill_sum_s=0.1 * n,
            output_tokens_sum=n * OUTPUT,
            output_tokens_count=n,
        )
        return ReplicaState(name, Phase.READY, began_s - 100, began_s, page)


def only(decided: Plan) -> Decision:
    (decision,) = decided.decisions.values()
    return decision


def said(decided: Plan) -> str:
    return " | ".join(step.why for step in only(decided).trail)


def rate_of(fleet: Fleet) -> float:
    """Return the requests per second of one replica, as the last plan had it."""
    return fleet.cycle(4.0).loads[0].capacity[fleet.variant.key]


def test_a_jump_is_ordered_for_at_once() -> None:
    fleet = Fleet()
    before = only(fleet.cycles(4.0, 300)).desired
    after = fleet.cycle(40.0)
    # 40 - 2·√(40 / 5) = 34 req/s are certain after one cycle, however short that is
    assert after.loads[0].demand == pytest.approx(34.3, abs=0.5)
    assert only(after).desired >= before + 3
    assert "to be ready for" in said(after)


def test_what_is_on_its_way_is_not_ordered_again() -> None:
    fleet = Fleet()
    fleet.cycles(4.0, 300)
    fleet.spec = only(fleet.cycle(40.0)).desired
    fleet.starting_since_s = fleet.at_s
    fleet.spec = only(fleet.cycles(40.0, 15)).desired
    ordered = fleet.spec
    # what is learned meanwhile may show that fewer suffice, never that more are needed
    assert only(fleet.cycles(40.0, 60)).desired <= ordered


def test_a_replica_long_overdue_is_no_supply_any_more() -> None:
    fleet = Fleet()
    fleet.cycles(4.0, 300)
    fleet.spec, fleet.starting_since_s = 12, fleet.at_s
    punctual = fleet.cycle(30.0).loads[0]
    fleet.cycles(30.0, 300)
    overdue = fleet.cycle(30.0).loads[0]
    # 120 s are assumed for a start: after 240 s none of the ten counts
    assert punctual.present == pytest.approx(12 * punctual.capacity[a_key()])
    assert overdue.present == pytest.approx(2 * overdue.capacity[a_key()])


def test_nothing_goes_while_requests_wait() -> None:
    fleet = Fleet(ready=8, spec=8, policy=Policy(scale_down_window_s=0))
    fleet.cycles(4.0, 300)
    fleet.waiting = 4
    held = fleet.cycle(4.0)
    assert only(held).desired == 8
    assert "4 wait, so none goes" in said(held)


def test_the_load_of_saturated_replicas_must_fit_the_rest_too() -> None:
    policy = Policy(scale_down_window_s=0, down_period_s=5)
    evenly = Fleet(ready=8, spec=8, policy=policy)
    evenly.cycles(40.0, 300)
    two_full = Fleet(ready=8, spec=8, busy=2, policy=policy)
    two_full.cycles(40.0, 300)

    seen = two_full.cycle(40.0)

    # Six replicas are idle and two have all: what stays must carry the 40 req/s of all eight.
    load = seen.loads[0]
    assert load.demand == pytest.approx(evenly.cycle(40.0).loads[0].demand, rel=0.01)
    stays = only(seen).desired
    assert stays * load.capacity[a_key()] * load.utilization.of(stays) >= 40.0
    assert stays > 2


def test_a_drop_is_followed_after_the_window_and_in_steps() -> None:
    fleet = Fleet(ready=8, spec=8)
    fleet.cycles(30.0, 300)
    assert only(fleet.cycles(2.0, 60)).desired == 8
    slow = fleet.cycles(2.0, 300)
    assert 1 <= only(slow).desired < 8


def test_a_backlog_is_ordered_for_and_leaves_no_trace_in_the_window() -> None:
    fleet = Fleet(waiting=3000.0)
    fleet.cycles(6.0, 300)
    flooded = fleet.cycle(6.0).loads[0]
    # 100 s of patience at 6 req/s: 600 to be served within 60 s beside what arrives
    assert flooded.demand is not None
    assert flooded.need == pytest.approx(flooded.demand + 600 / 60, rel=0.25)
    assert flooded.keep < 1.5 * flooded.demand


def test_requests_beyond_the_batch_that_keeps_the_slo_are_a_backlog() -> None:
    # A batch of 180 keeps the SLO; three replicas with 1500 each cannot work that off in one lead.
    fleet = Fleet(ready=3, spec=3)
    fleet.cycles(30.0, 300)
    served = fleet.cycle(30.0).loads[0]

    fleet.running = 1500.0
    crowded = fleet.cycle(30.0).loads[0]

    assert "waiting to be served" not in served.binding
    assert crowded.need > served.need
    assert "waiting to be served within 60 s" in crowded.binding
    # As with a queue: what was ordered for it may go once it is worked off.
    assert crowded.keep == pytest.approx(served.keep, rel=0.05)


def test_none_on_its_way_is_cancelled_while_batches_are_fuller_than_the_slo_allows() -> None:
    # Engines with places left let everybody in: nobody waits, and everybody is slow.
    def with_ten_on_their_way(running: float) -> Plan:
        fleet = Fleet(ready=2, spec=2)
        fleet.cycles(6.0, 600)
        fleet.spec, fleet.starting_since_s, fleet.running = 12, fleet.at_s - 60, running
        return fleet.cycle(6.0)

    assert only(with_ten_on_their_way(8.0)).desired < 12
    crowded = with_ten_on_their_way(400.0)
    assert only(crowded).desired >= 12
    assert "more than the SLO allows, so none goes" in crowded.loads[0].binding


def test_each_decision_adds_its_step_to_what_was_asked_for_before_though_nobody_looked() -> None:
    fleet = Fleet(ready=2, spec=2)
    fleet.cycles(4.0, 300)

    asked = [only(fleet.cycle(400.0)).desired for _ in range(3)]

    assert asked == [10, 18, 26]


def test_a_fleet_that_is_short_from_its_first_minute_learns_from_the_queue_that_it_has() -> None:
    fleet = Fleet(ready_since_s=1_000_000.0, waiting=40.0)

    def samples(seconds: float) -> int:
        fleet.cycles(4.0, seconds)
        fit = fleet.memory.variants[fleet.variant.key].fit
        assert fit is not None
        return fit.samples

    assert samples(60) == 0  # the replicas warm up
    assert samples(60) > 20
    # What is learned by then is better than what a queue of others says.
    enough = samples(120)
    assert enough >= 60
    assert samples(50) == enough


def test_a_higher_service_level_works_a_backlog_off_sooner() -> None:
    extra = {}
    for level in ("balanced", "premium"):
        fleet = Fleet(policy=Policy(service_level=level))
        fleet.cycles(8.0, 300)
        before = fleet.cycle(8.0).loads[0]
        fleet.gateway_queue = 2000.0
        extra[level] = fleet.cycle(8.0).loads[0].need - before.need

    assert extra["premium"] == pytest.approx(6 * extra["balanced"], rel=0.15)


def test_a_queue_at_the_gateway_counts_as_waiting() -> None:
    fleet = Fleet(gateway_queue=0.0)
    fleet.cycles(6.0, 300)
    calm = fleet.cycle(6.0).loads[0]
    fleet.gateway_queue = 3000.0
    assert fleet.cycle(6.0).loads[0].need > calm.need + 8


def test_an_unseen_replica_counts_with_its_last_rate_and_holds_the_count() -> None:
    fleet = Fleet(ready=4, spec=4, policy=Policy(scale_down_window_s=0))
    seen = fleet.cycles(12.0, 300).loads[0]
    blind = fleet.cycle(12.0, unseen=["r1", "r2", "r3"])
    assert blind.loads[0].demand == pytest.approx(seen.demand or 0.0, rel=0.05)
    assert only(blind).desired >= 4


def blind_with(
    in_flight: float | None, *, waiting: float = 0.0, running: float = 8.0, unseen: str = "r1"
) -> Plan:
    """Decide on three replicas of which one is unseen, with so much in flight at r1."""
    variant = replace(a_variant(maximum=30), max_num_seqs=256)
    fleet = Fleet(variant, 3, 3, waiting=waiting, running=running, gateway_queue=0.0)
    fleet.cycles(30.0, 300)
    if in_flight is not None:
        fleet.in_flight["r1"] = in_flight
    return fleet.cycle(30.0, unseen=[unseen])


def test_what_a_gateway_has_in_flight_at_an_unseen_replica_is_its_load() -> None:
    calm, crowded = blind_with(None), blind_with(4000.0)

    assert crowded.loads[0].need > calm.loads[0].need
    assert "waiting to be served within 60 s" in crowded.loads[0].binding
    assert only(crowded).desired > only(calm).desired
    assert "unseen, so what the gateway tells to be in flight counts: 4000 at r1" in (
        crowded.loads[0].notes
    )
    blind = "r1 unseen: timed out after 2 s, last page 5 s old, 4000 in flight there by the gateway"
    assert blind in said(crowded)
    # As with a queue: what was ordered for it may go once it is worked off.
    assert crowded.loads[0].keep == pytest.approx(calm.loads[0].keep, rel=0.05)


def test_who_waited_on_the_last_page_of_an_unseen_replica_is_not_counted_twice() -> None:
    # 500 of the 1500 waited at r1, and a batch of 173 keeps the SLO there, or is within chance of it.
    waited = blind_with(None, waiting=1500.0).loads[0]

    assert blind_with(500.0 + 100, waiting=1500.0).loads[0].need == waited.need
    assert blind_with(500.0 + 1000, waiting=1500.0).loads[0].need > waited.need


@pytest.mark.parametrize("in_flight", [0.0, 1.0, 100.0, 5000.0])
@pytest.mark.parametrize(("waiting", "running"), [(0.0, 8.0), (600.0, 8.0), (0.0, 1500.0)])
def test_what_is_in_flight_at_an_unseen_replica_never_asks_for_less(
    in_flight: float, waiting: float, running: float
) -> None:
    last = blind_with(None, waiting=waiting, running=running)
    newer = blind_with(in_flight, waiting=waiting, running=running)

    assert newer.loads[0].need >= last.loads[0].need
    assert only(newer).desired >= only(last).desired >= only(last).current


def test_a_replica_that_is_seen_speaks_for_itself() -> None:
    told = blind_with(4000.0, unseen="r2")

    assert told.loads[0] == blind_with(None, unseen="r2").loads[0]


def test_without_any_page_the_count_stays_and_says_that_nothing_is_known() -> None:
    fleet = Fleet(ready=3, spec=3, policy=Policy(scale_down_window_s=0))
    names = [f"r{i}" for i in range(3)]
    state = VariantState(
        fleet.variant,
        3,
        3,
        tuple(ReplicaState(n, Phase.READY, 0.0, 100.0, None, "HTTP 503") for n in names),
    )
    decided, _ = plan(Snapshot(1_000_000.0, (state,)), fleet.policy, Memory())
    assert only(decided).desired == 3
    assert decided.loads[0].demand is None


def test_a_stuck_replica_is_neither_supply_nor_demand() -> None:
    fleet = Fleet(ready=3, spec=3, waiting=30.0)
    fleet.cycles(6.0, 120)
    fleet.frozen = frozenset({"r2"})
    fleet.cycles(6.0, 60)
    before = fleet.cycle(6.0).loads[0]
    after = fleet.cycles(6.0, 90).loads[0]
    assert before.present == pytest.approx(3 * before.capacity[a_key()])
    assert after.present == pytest.approx(2 * after.capacity[a_key()])
    assert "stuck, so neither supply nor demand: r2" in after.notes


def test_tighter_bounds_on_latency_ask_for_no_fewer_replicas() -> None:
    counts = []
    for itl_s in (0.2, 0.06, 0.03):
        fleet = Fleet(policy=Policy(slo_itl_s=itl_s), ready=6, spec=6)
        fleet.cycles(20.0, 200)
        counts.append(only(fleet.cycle(60.0)).desired)
    assert counts == sorted(counts)


def test_the_learned_rate_names_what_binds_it() -> None:
    fleet = Fleet()
    decided = fleet.cycles(8.0, 300)
    assert any("req/s per replica" in note for note in decided.loads[0].notes)
    assert decided.loads[0].unit == "req/s"


def test_a_second_variant_starts_from_what_its_sibling_taught() -> None:
    fleet = Fleet()
    fleet.cycles(8.0, 300)
    sibling = replace(a_variant("llama-h100", cost=3.9), accelerator="H100")
    state = VariantState(fleet.variant, 2, 2)
    other = VariantState(sibling, 0, 0)
    decided, memory = plan(Snapshot(fleet.at_s + 1, (state, other)), fleet.policy, fleet.memory)
    capacity = decided.loads[0].capacity
    # an H100 has 1.6x the bandwidth and 3.2x the arithmetic of an A100, and its SLO leaves more
    assert 1.5 < capacity[sibling.key] / capacity[fleet.variant.key] < 5
    fit = memory.variants[sibling.key].fit
    assert fit is not None
    assert fit.samples == 0


def test_a_start_that_was_seen_is_what_the_next_one_is_expected_to_take() -> None:
    fleet = Fleet()
    fleet.cycles(4.0, 60)
    starts = fleet.memory.variants[fleet.variant.key].starts
    assert starts == (Start(999_000.0, 100.0), Start(999_000.0, 100.0))


@pytest.mark.parametrize("level", ["frugal", "balanced", "premium"])
def test_service_levels_are_ordered(level: str) -> None:
    order = ["frugal", "balanced", "premium"]
    needs = []
    for name in order:
        fleet = Fleet(policy=Policy(service_level=name), ready=4, spec=4)  # type: ignore[arg-type]
        fleet.cycles(10.0, 120)
        needs.append(only(fleet.cycle(30.0)).desired)
    assert needs[order.index(level)] == sorted(needs)[order.index(level)]


def test_a_start_assumed_to_take_no_time_still_gives_a_plan() -> None:
    fleet = Fleet(policy=Policy(assumed_start_s=0, hpa_sync_s=0))
    fleet.variant = a_variant("fresh", maximum=30)
    state = VariantState(fleet.variant, 1, 1)
    decided, _ = plan(Snapshot(1_000_000.0, (state,)), fleet.policy, Memory())
    assert only(decided).desired == 1


def test_all_of_the_demand_cannot_be_asked_for() -> None:
    with pytest.raises(ValueError, match="attainment 1, want below 1"):
        Policy(attainment=1)


def test_what_a_gateway_counted_in_a_short_cycle_is_not_lost() -> None:
    fleet = Fleet()

    def arrived(at_s: float, total: float, memory: Memory) -> Memory:
        gateway = GatewayState(
            namespace="chat",
            model_id=fleet.variant.model_id,
            at_s=at_s,
            queued_requests=0.0,
            arrivals_total=total,
        )
        state = VariantState(fleet.variant, 1, 1)
        return plan(Snapshot(at_s, (state,), (gateway,)), fleet.policy, memory)[1]

    memory = arrived(1000.0, 0, Memory())
    memory = arrived(1005.0, 50, memory)
    memory = arrived(1006.0, 150, memory)  # an onset brought this one forward
    memory = arrived(1010.0, 190, memory)
    # 140 of the 5 s from 1,005 s on
    assert memory.models[LoadKey("chat", "llama")].arrivals.rate_per_s == pytest.approx(28)


def test_replicas_that_cannot_be_read_for_ten_minutes_are_not_taken_for_stuck() -> None:
    fleet = Fleet(ready=3, spec=3)
    before = only(fleet.cycles(12.0, 300)).desired
    for _ in range(120):
        decided = fleet.cycle(12.0, unseen=("r0", "r1", "r2"))
        assert only(decided).desired == before
    assert "stuck" not in " ".join(decided.loads[0].notes)

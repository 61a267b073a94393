from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.builders import a_hardware
from wva_adapter.sim import files
from wva_adapter.sim.clients import Traffic
from wva_adapter.sim.cluster import Deployed
from wva_adapter.sim.contenders import contender
from wva_adapter.sim.draws import lognormal, scheduled
from wva_adapter.sim.hardware import Hardware
from wva_adapter.sim.outcome import Outcome, Slo
from wva_adapter.sim.scaler import Metrics, VariantView
from wva_adapter.sim.scenarios import Loss, Scenario, scenario
from wva_adapter.sim.world import run


class Script:
    """Sets counts at given times."""

    def __init__(self, counts: Mapping[float, int], period_s: float = 1.0) -> None:
        self._counts = counts
        self.period_s = period_s

    def act(
        self, now_s: float, fleet: Sequence[VariantView], metrics: Metrics
    ) -> Mapping[str, int]:
        return {view.name: self._counts[now_s] for view in fleet if now_s in self._counts}


def a_scenario(
    requests: Sequence[tuple[float, int, int]] = (),
    *,
    horizon_s: float = 100.0,
    hardware: Hardware | None = None,
    usd_per_h: float = 3600.0,
    start: int = 1,
    startup_s: float = 10.0,
    **given: object,
) -> Scenario:
    """Return a fleet of which, unless told otherwise, each step takes 10 ms and a second 1 $."""
    deployed = Deployed(
        name="v",
        hardware=hardware or a_hardware(),
        usd_per_h=usd_per_h,
        start_replicas=start,
        startup_s=startup_s,
    )
    columns = np.array(requests).reshape(-1, 3)
    traffic = Traffic(
        columns[:, 0].astype(float), columns[:, 1].astype(int), columns[:, 2].astype(int)
    )
    return Scenario(
        name="test",
        title="a test",
        horizon_s=horizon_s,
        fleet=(deployed,),
        **{"draw": lambda times, sizes: traffic, **given},  # type: ignore[arg-type]
    )


def play(setting: Scenario, counts: Mapping[float, int] | None = None, seed: int = 0) -> Outcome:
    return run(setting, lambda stage: Script(counts or {}), seed)


def test_a_request_that_finishes_in_time_is_in_the_slo() -> None:
    outcome = play(a_scenario([(1, 50, 4)]))
    assert (outcome.requests, outcome.in_slo) == (1, 1)
    assert outcome.ttft_s["p50"] == pytest.approx(0.01)
    assert outcome.goodput_tokens_per_s == pytest.approx(4 / 100)


@pytest.mark.parametrize(
    ("slo", "good"), [(Slo(0.01001, 0.0101), 1), (Slo(0.0099, 0.0101), 0), (Slo(0.0101, 0.0099), 0)]
)
def test_both_bounds_of_the_slo_count(slo: Slo, good: int) -> None:
    assert play(a_scenario([(1, 50, 4)], slo=slo)).in_slo == good


def test_a_client_gives_up_when_its_time_is_over() -> None:
    # 100 steps of 10 ms are needed, half a second is given.
    outcome = play(a_scenario([(1, 50, 100)], timeout_s=0.5))
    assert outcome.failures["timeout"] == 1
    assert outcome.ttft_s["p99"] == math.inf


def test_a_client_gives_up_what_the_gateway_still_holds_too() -> None:
    setting = a_scenario([(1, 50, 4)], start=0, timeout_s=5, when_saturated="queue")
    assert play(setting).failures["timeout"] == 1


def test_a_gateway_that_queues_sends_when_a_pod_is_ready() -> None:
    setting = a_scenario([(1, 50, 4)], start=0, timeout_s=50, when_saturated="queue")
    outcome = play(setting, {5.0: 1})
    assert outcome.failures["timeout"] == 0
    # Ordered at 5 s, ready 10 s later, give or take 15 %.
    assert 13.5 - 1 <= outcome.ttft_s["p50"] <= 16.5 - 1 + 0.1


def test_a_gateway_without_endpoints_fails_and_with_saturated_ones_sheds() -> None:
    assert play(a_scenario([(1, 50, 4)], start=0)).failures["no_endpoint"] == 1
    # 80 % of 1,000 tokens are taken by the first one while it runs.
    small = a_hardware(kv_cache_tokens=1000)
    crowd = [(1.0, 850, 100), (1.5, 50, 4)]
    shedding = a_scenario(crowd, hardware=small, when_saturated="shed")
    assert play(shedding).failures["shed"] == 1


def test_a_request_that_no_replica_can_hold_is_too_long() -> None:
    small = a_hardware(kv_cache_tokens=1000)
    assert play(a_scenario([(1, 2000, 4)], hardware=small)).failures["too_long"] == 1


def test_a_pod_is_billed_from_its_creation_to_its_end() -> None:
    # The first one all the time; the second from 20 s, starting and serving, to 60 s.
    outcome = play(a_scenario(), {20.0: 2, 60.0: 1})
    assert outcome.usd == pytest.approx(100 + 40)
    assert outcome.mean_replicas == pytest.approx(1.4)


def test_a_pod_that_never_became_ready_is_billed_until_it_is_removed() -> None:
    assert play(a_scenario(startup_s=50), {20.0: 2, 30.0: 1}).usd == pytest.approx(110)


def test_pods_that_are_not_ready_go_before_those_that_serve() -> None:
    # The one that serves has a request of 6 s; the one that starts goes.
    outcome = play(a_scenario([(25, 50, 600)], startup_s=20, grace_s=0), {20.0: 2, 30.0: 1})
    assert outcome.failures["killed"] == 0


def test_a_pod_that_drains_keeps_what_it_has_for_its_grace_and_no_longer() -> None:
    crowd = [(10.0, 50, 1000), (10.0, 50, 1000)]  # 10 s each, one on each pod
    assert play(a_scenario(crowd, start=2, grace_s=12), {11.0: 1}).failures["killed"] == 0
    short = play(a_scenario(crowd, start=2, grace_s=5), {11.0: 1})
    assert short.failures["killed"] == 1
    assert short.usd == pytest.approx(100 + 16)  # 11 s and the grace


def test_a_pod_that_left_late_from_the_endpoints_still_gets_requests() -> None:
    crowd = [(10.0 + 0.1 * i, 50, 300) for i in range(20)]  # 3 s each
    setting = a_scenario(crowd, start=2, grace_s=1)
    prompt = play(setting, {10.0: 1})
    late = play(replace(setting, deregistration_lag_s=1.5), {10.0: 1})
    assert late.failures["killed"] > prompt.failures["killed"]


def test_start_up_times_come_from_the_ordinal_not_from_when_a_pod_was_asked_for() -> None:
    def second_pod_ready_after(asked_s: float) -> float:
        outcome = play(a_scenario(), {asked_s: 2})
        ready = next(m.at_s for m in outcome.timeline if m.ready == (2,))
        return ready - asked_s

    assert second_pod_ready_after(20) == second_pod_ready_after(40)


def test_clients_with_a_bound_on_open_requests_wait_for_their_turn() -> None:
    crowd = [(1.0, 50, 100), (1.0, 50, 100)]  # a second each
    outcome = play(a_scenario(crowd, concurrency=1))
    # The clock of the second one starts when it is sent.
    assert outcome.ttft_s["p99"] == pytest.approx(0.01)
    assert outcome.timeline[-1].in_flight == 0


def test_what_was_never_sent_was_not_asked_for() -> None:
    crowd = [(1.0, 50, 9000)] * 3  # 90 s each
    outcome = play(a_scenario(crowd, concurrency=1, timeout_s=1000))
    assert outcome.requests == 2
    assert outcome.in_slo == 2


def test_a_node_that_is_lost_takes_its_pods_and_their_requests() -> None:
    crowd = [(10.0, 50, 3000), (10.0, 50, 3000)]
    setting = a_scenario(crowd, start=2, losses=(Loss(20, "v", 0.5, back_s=30),))
    outcome = play(setting)
    assert outcome.failures["killed"] == 1
    at = {moment.at_s: moment for moment in outcome.timeline}
    assert (at[25].spec, at[25].ready) == ((2,), (1,))
    # Room at 50 s, and 10 s to start.
    assert at[50].ready == (1,)
    assert at[65].ready == (2,)


def test_equal_arguments_give_equal_hashes_and_another_seed_another() -> None:
    setting = scenario("S1c", files)
    law = contender("inflight-16").tries[0]
    assert run(setting, law, 3).digest == run(setting, law, 3).digest
    assert run(setting, law, 3).digest != run(setting, law, 4).digest


def test_policies_of_a_seed_meet_the_same_requests() -> None:
    setting = scenario("S1b", files)
    one, other = (
        run(setting, contender(name).tries[0], 1) for name in ("inflight-16", "inflight-64")
    )
    assert one.requests == other.requests
    assert one.digest != other.digest


def test_leaps_change_no_outcome() -> None:
    setting = replace(scenario("S1b", files), horizon_s=600.0)
    law = contender("inflight-16").tries[0]
    fast, slow = (run(setting, law, 0, leap=leap) for leap in (True, False))
    assert fast.requests == slow.requests
    assert fast.in_slo == slow.in_slo
    assert fast.changes == slow.changes
    for share in ("p50", "p90"):
        assert fast.ttft_s[share] == pytest.approx(slow.ttft_s[share], abs=1e-9)


def test_twice_the_hardware_under_twice_the_load_gives_the_same_shares() -> None:
    slow = a_hardware(tokens=(0, 100), iteration_s=(0.010, 0.020))
    fast = a_hardware(tokens=(0, 100), iteration_s=(0.005, 0.010))

    def shares(hardware: Hardware, speed: float) -> Outcome:
        base = a_scenario(
            hardware=hardware,
            start=2,
            startup_s=60 / speed,
            horizon_s=600 / speed,
            timeout_s=10 / speed,
            grace_s=5 / speed,
            slo=Slo(0.5 / speed, 0.019 / speed),
        )
        rate = 8 * speed
        draw = scheduled([(0, rate), (600 / speed, rate)], lognormal(200, 100))
        law = Script({200 / speed: 4, 400 / speed: 1}, 200 / speed)
        return run(replace(base, draw=draw), lambda stage: law, 0)

    one, two = shares(slow, 1), shares(fast, 2)
    assert one.requests == two.requests
    assert one.in_slo == two.in_slo
    assert 0 < one.in_slo < one.requests
    assert one.failures == two.failures
    assert one.usd == pytest.approx(2 * two.usd)


@given(
    st.lists(st.tuples(st.floats(0, 50), st.integers(1, 3000), st.integers(1, 400)), max_size=60),
    st.dictionaries(st.integers(1, 60).map(float), st.integers(1, 6), max_size=8),
    st.sampled_from(["pass", "shed", "queue"]),
    st.sampled_from(["newest", "random", "deletion-cost"]),
    st.sampled_from(["least-load", "round-robin"]),
    st.one_of(st.none(), st.integers(1, 5)),
    st.floats(0, 5),
)
@settings(max_examples=150, deadline=None)
def test_every_request_has_one_fate_and_every_pod_second_is_billed(
    requests: list[tuple[float, int, int]],
    counts: dict[float, int],
    when_saturated: str,
    removal_order: str,
    routing: str,
    concurrency: int | None,
    grace_s: float,
) -> None:
    setting = a_scenario(
        sorted(requests),
        hardware=a_hardware(kv_cache_tokens=2500),
        timeout_s=4,
        grace_s=grace_s,
        when_saturated=when_saturated,
        removal_order=removal_order,
        routing=routing,
        concurrency=concurrency,
    )
    outcome = play(setting, counts)
    failed = sum(outcome.failures.values())
    assert outcome.requests == len(requests)
    assert outcome.in_slo <= outcome.requests - failed
    # At 1 $ for a second, the bill is the area below the count of pods.
    lowest = sum(
        n * (min(end, 100.0) - begin)
        for (begin, n, _), (end, _, _) in pairwise((*outcome.changes["v"], (100.0, 0, "")))
    )
    assert outcome.usd >= lowest - 1e-6
    assert outcome.usd <= lowest + 6 * len(counts) * (grace_s + 1e-6) + 1e-6
    assert outcome.usd == pytest.approx(3600 * outcome.replica_hours)


def test_generated_tokens_are_those_of_finished_requests() -> None:
    crowd = [(1.0 + i, 50, 10 + i) for i in range(50)]
    outcome = play(a_scenario(crowd))
    assert outcome.goodput_tokens_per_s * 100 == pytest.approx(sum(10 + i for i in range(50)))


def test_power_is_idle_without_work_and_follows_it_with() -> None:
    idle = play(a_scenario())
    assert idle.kwh == pytest.approx(100 * 100 / 3.6e6)  # 100 W for 100 s
    # 1,000 steps: one of prefill at 0.95 · 400 W, the others at 400 · (0.40 + 0.35/128) W.
    busy = play(a_scenario([(1, 50, 1000)]))
    joules = 90 * 100 + 0.01 * 380 + 9.99 * 400 * (0.40 + 0.35 / 128)
    assert busy.kwh == pytest.approx(joules / 3.6e6)


def test_a_client_tries_again_what_found_no_endpoint_and_its_time_runs_on() -> None:
    # The pod that is asked for at 5 s is ready after 8.5 to 11.5 s more.
    setting = a_scenario([(1, 50, 4)], start=0, retries=5, backoff_s=4)
    outcome = play(setting, {5.0: 1})
    assert sum(outcome.failures.values()) == 0
    assert outcome.ttft_s["p50"] > 12.5
    assert play(replace(setting, retries=1), {5.0: 1}).failures["no_endpoint"] == 1
    # It does not try again what it would not wait for.
    assert play(replace(setting, timeout_s=2), {5.0: 1}).failures["no_endpoint"] == 1


def test_prefixes_that_stick_load_replicas_less_evenly() -> None:
    crowd = [(1.0 + 0.02 * i, 50, 100) for i in range(500)]
    hardware = a_hardware(tokens=(0, 100), iteration_s=(0.010, 0.200))
    even = a_scenario(crowd, start=4, hardware=hardware)
    assert play(replace(even, sticky_share=1.0)).ttft_s["p99"] > play(even).ttft_s["p99"]


def test_lost_pages_are_the_same_for_the_same_pod_and_moment() -> None:
    setting = replace(scenario("S1b", files), lost_scrapes=0.2)
    law = contender("demand").tries[0]
    one = run(setting, law, 0)
    assert one.digest == run(setting, law, 0).digest
    assert one.digest != run(scenario("S1b", files), law, 0).digest


def test_lost_pages_cost_money_and_no_share_in_slo() -> None:
    sees, misses = scenario("S1b", files), replace(scenario("S1b", files), lost_scrapes=0.2)
    law = contender("demand").tries[0]
    seen = [run(sees, law, seed) for seed in range(3)]
    missed = [run(misses, law, seed) for seed in range(3)]
    # An unseen replica holds its variant. With one seed alone, what pages teach of the replicas'
    # speed may differ by as much.
    assert sum(o.usd for o in missed) >= sum(o.usd for o in seen)
    for one, other in zip(missed, seen, strict=True):
        # More than they would have is what the held replicas give.
        assert one.in_slo_pct >= other.in_slo_pct - 0.5


def test_who_is_refused_at_once_does_not_pile_up() -> None:
    # The one replica is lost with the request that the others wait for.
    crowd = [(1.0, 50, 3000)] * 5000
    setting = a_scenario(crowd, concurrency=1, losses=(Loss(5, "v", 1.0, back_s=50),))
    outcome = play(setting)
    assert outcome.failures["killed"] == 1
    assert outcome.failures["no_endpoint"] == 4999


def test_a_request_behind_those_that_gave_up_is_sent_at_once() -> None:
    requests = [(1.0, 50, 4), (2.0, 50, 4), (80.0, 50, 4)]
    setting = a_scenario(requests, start=0, timeout_s=5, when_saturated="queue")
    outcome = play(setting, {50.0: 1})
    assert outcome.failures["timeout"] == 2
    assert outcome.in_slo == 1


@pytest.mark.parametrize(
    ("name", "digest"), [("S1b", "fea74e2fb3c8e43c"), ("S1c", "e30237242a9a38f6")]
)
def test_a_law_without_linear_algebra_has_the_same_hash_on_every_machine(
    name: str, digest: str
) -> None:
    assert run(scenario(name, files), contender("inflight-16").tries[0], 0).digest == digest

"""Classes of requests: offline ones that fill what is left, and prompts that a cache knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.sim.builders import a_hardware, finish
from tests.sim.test_world import a_scenario, play
from wva_adapter.sim import files
from wva_adapter.sim.clients import Kind, Traffic
from wva_adapter.sim.contenders import contender
from wva_adapter.sim.replica import Replica
from wva_adapter.sim.request import Request
from wva_adapter.sim.scenarios import Restart, Scenario, scenario
from wva_adapter.sim.world import draw_traffic, run

OFFLINE = (Kind(), Kind(due_s=50.0))


def with_kinds(
    requests: Sequence[tuple[float, int, int, int]], kinds: tuple[Kind, ...], **given: Any
) -> Scenario:
    """Return a fleet whose requests are: when, prompt tokens, output tokens, kind."""
    columns = np.array(requests, float).reshape(-1, 4)
    traffic = Traffic(
        columns[:, 0],
        columns[:, 1].astype(int),
        columns[:, 2].astype(int),
        columns[:, 3].astype(int),
    )
    return a_scenario(kinds=kinds, draw=lambda times, sizes: traffic, **given)


def test_offline_requests_are_told_of_apart() -> None:
    outcome = play(with_kinds([(0, 50, 10, 1), (1, 50, 10, 0), (2, 50, 10, 1)], OFFLINE))
    assert (outcome.requests, outcome.in_slo) == (1, 1)
    assert (outcome.offline, outcome.offline_in_time) == (2, 2)


def test_as_many_offline_requests_are_in_flight_as_there_are_workers() -> None:
    # A request takes a second; 20 of them with 2 at a time take 10, from the scrape at 5 s on.
    setting = with_kinds([(0, 50, 100, 1)] * 20, (Kind(), Kind(due_s=14.5)), batch_workers=2)
    assert play(setting).offline_in_time == 18
    assert play(replace(setting, batch_workers=4)).offline_in_time == 20


def test_a_saturated_pool_gets_no_offline_requests() -> None:
    # The online one holds 83 to 98 % of the KV cache for 9 s: saturated is a pool from 80 % on.
    requests = [(0, 5000, 900, 0), *[(1, 10, 10, 1)] * 3]
    kinds = (Kind(), Kind(due_s=8.0))
    tight = play(with_kinds(requests, kinds, hardware=a_hardware(kv_cache_tokens=6000)))
    assert (tight.offline_in_time, tight.in_slo) == (0, 1)
    assert play(with_kinds(requests, kinds)).offline_in_time == 3


def test_an_offline_request_that_is_killed_is_done_again() -> None:
    setting = with_kinds([(0, 50, 2000, 1)], OFFLINE, restarts=(Restart(10.0, "v", 1.0),))
    outcome = play(setting)
    assert outcome.offline_in_time == 1
    assert sum(outcome.failures.values()) == 0


def test_what_is_not_done_when_it_is_due_is_given_up() -> None:
    outcome = play(with_kinds([(0, 50, 9000, 1)], OFFLINE))
    assert outcome.offline_in_time == 0
    assert outcome.timeline[-1].in_flight == 0


def test_batch_brings_the_online_requests_of_s6() -> None:
    batch, online = (draw_traffic(scenario(name, files), 3) for name in ("BATCH", "S6"))
    assert batch.kinds is not None
    of_s6 = batch.kinds == 0
    assert (~of_s6).sum() == 20_000
    assert (batch.arrived_s[of_s6] == online.arrived_s).all()
    assert (batch.prompt_tokens[of_s6] == online.prompt_tokens).all()


def test_a_backlog_of_two_hours_is_done_in_time_and_costs_no_online_share() -> None:
    outcome = run(scenario("BATCH", files), contender("demand", prior_error=2).tries[0], 1)
    assert outcome.offline_in_time == outcome.offline == 20_000
    assert outcome.in_slo_pct >= 100 - 0.5  # S6 alone has at most 100


def test_only_what_the_prefix_cache_lacks_is_computed() -> None:
    hardware = a_hardware(tokens=(0, 1000), iteration_s=(0.0, 1.0), kv_cache_tokens=10_000)
    replica = Replica(hardware)
    request = Request(1000, 1, cached_tokens=800)
    replica.submit(request, 0.0)
    finish(replica)
    assert request.first_token_s == pytest.approx(0.2)  # 200 tokens at 1 ms
    assert (replica.counters.prompt_tokens, replica.counters.cached_prompt_tokens) == (1000, 800)


def test_a_cached_prompt_takes_as_much_attention_as_its_place_needs() -> None:
    # The last 200 tokens of 1000 look at 800 to 1000 tokens before them: 900 on average.
    hardware = a_hardware(tokens=(0, 1), iteration_s=(0.0, 0.0), attention_s=1e-6)
    replica = Replica(hardware)
    request = Request(1000, 1, cached_tokens=800)
    replica.submit(request, 0.0)
    finish(replica)
    assert request.first_token_s == pytest.approx(200 * 900 * 1e-6)


def test_a_prompt_cannot_be_in_the_cache_as_a_whole() -> None:
    with pytest.raises(
        ValueError, match=r"5 tokens of the prompt cached, want .* fewer than its 5"
    ):
        Replica(a_hardware()).submit(Request(5, 1, cached_tokens=5), 0.0)
    with pytest.raises(ValueError, match=r"hit_share 1, want from 0 to below 1"):
        Kind(hit_share=1)
    with pytest.raises(ValueError, match=r"due_s 0, want above 0"):
        Kind(due_s=0)


def test_each_kind_has_its_share_in_the_prefix_cache() -> None:
    slow = a_hardware(tokens=(0, 100), iteration_s=(0.001, 0.101))
    kinds = (Kind(), Kind(hit_share=0.5))
    outcome = play(with_kinds([(1, 100, 1, 0), (2, 100, 1, 1)], kinds, hardware=slow))
    assert outcome.ttft_s["p50"] == pytest.approx(0.051)
    assert outcome.ttft_s["p99"] == pytest.approx(0.101)


def test_engines_that_restart_keep_their_pod_and_lose_what_they_had() -> None:
    crowd = [(10.0, 50, 3000), (10.0, 50, 3000)]  # 30 s each, one on each
    outcome = play(a_scenario(crowd, start=2, restarts=(Restart(20.0, "v", 0.5),)))
    assert outcome.failures["killed"] == 1
    at = {moment.at_s: moment for moment in outcome.timeline}
    assert (at[25].spec, at[25].existing, at[25].ready) == ((2,), (2,), (1,))
    assert at[35].ready == (2,)
    assert outcome.usd == pytest.approx(200)  # two pods for 100 s: both stay
    # Nobody forgets the work of an engine that has ended: 10 s of decoding alone.
    idle = play(a_scenario(start=2, restarts=(Restart(20.0, "v", 0.5),)))
    assert outcome.kwh - idle.kwh > (30 + 10 - 1) * 300 * 0.4 / 400 / 3.6e6


def test_a_restart_of_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="it restarts engines of variant 'w', and the fleet has v"):
        a_scenario(restarts=(Restart(1.0, "w", 1.0),))


def test_the_adapter_reads_the_counters_of_an_engine_that_has_begun_again() -> None:
    setting = replace(scenario("RESTART", files), horizon_s=2400.0)
    outcome = run(setting, contender("demand").tries[0], 0)
    # Asked for all the time, they come back: nothing is taken away while they do.
    after = [m for m in outcome.timeline if 1800 <= m.at_s < 1920]
    assert all(m.spec[0] >= after[0].spec[0] for m in after)


def apart(requests: Sequence[tuple[float, int, int]], **given: Any) -> Scenario:
    """Return a fleet of one replica that prefills (1 ms a token) and one that decodes in 10 ms."""
    prefills = a_hardware(tokens=(0, 1000), iteration_s=(0.0, 1.0))
    whole = a_scenario(requests, hardware=prefills, **given)
    first = replace(whole.fleet[0], name="p", role="prefill")
    second = replace(first, name="d", role="decode", hardware=a_hardware())
    return replace(whole, fleet=(first, second))


def test_a_request_is_prefilled_moved_and_decoded_by_another() -> None:
    outcome = play(apart([(1, 500, 11)], transfer_s=0.2))
    # 0.5 s of prefill, the transfer, and the step that makes the first token.
    assert outcome.ttft_s["p50"] == pytest.approx(0.5 + 0.2 + 0.01)
    assert outcome.in_slo == 1
    assert outcome.goodput_tokens_per_s == pytest.approx(11 / 100)


def test_a_fleet_that_only_prefills_or_mixes_roles_is_refused() -> None:
    whole = a_scenario()
    with pytest.raises(ValueError, match="roles prefill, want prefill and decode, or both alone"):
        replace(whole, fleet=(replace(whole.fleet[0], role="prefill"),))
    two = (whole.fleet[0], replace(whole.fleet[0], name="w", role="decode"))
    with pytest.raises(ValueError, match="roles both, decode, want prefill and decode"):
        replace(whole, fleet=two)


def test_what_is_on_its_way_to_a_replica_that_is_gone_has_no_endpoint() -> None:
    setting = apart([(1, 500, 11)], transfer_s=20.0)
    # It comes at 21.5 s; the one that decodes is back after 8.5 to 11.5 s.
    early = replace(setting, restarts=(Restart(5.0, "d", 1.0),))
    assert play(early).failures["no_endpoint"] == 0
    late = replace(setting, restarts=(Restart(20.0, "d", 1.0),))
    assert play(late).failures["no_endpoint"] == 1
    assert play(replace(late, retries=5, backoff_s=4.0)).failures["no_endpoint"] == 0


def test_who_gives_up_while_its_cache_is_moved_has_timed_out_once() -> None:
    outcome = play(apart([(1, 500, 11)], transfer_s=20.0, timeout_s=5.0))
    assert outcome.failures["timeout"] == 1
    assert outcome.timeline[-1].queued == 0


def test_each_part_of_a_split_fleet_is_scaled_for_itself() -> None:
    outcome = run(scenario("PD", files), contender("demand").tries[0], 0)
    most = {name: max(c.replicas for c in its) for name, its in outcome.changes.items()}
    assert most["h100-prefill"] > 1
    assert most["a100-decode"] > 1


def test_a_wrong_guess_of_what_prefill_takes_costs_no_larger_fleet() -> None:
    right, wrong = (
        run(scenario("PD", files), contender("demand", prior_error=off).tries[0], 0)
        for off in (1.0, 2.0)
    )
    assert wrong.usd == pytest.approx(right.usd, rel=0.1)
    assert wrong.in_slo_pct == pytest.approx(right.in_slo_pct, abs=2)

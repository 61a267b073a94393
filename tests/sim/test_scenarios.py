from __future__ import annotations

import numpy as np
import pytest

from wva_adapter.sim import files
from wva_adapter.sim.clients import Traffic
from wva_adapter.sim.contenders import contender
from wva_adapter.sim.foresight import Capacity, measure, peak_rates
from wva_adapter.sim.outcome import Slo
from wva_adapter.sim.scenarios import SCENARIOS, scenario
from wva_adapter.sim.workers import Job, work
from wva_adapter.sim.world import draw_traffic


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_brings_rising_arrivals_within_its_horizon(name: str) -> None:
    setting = scenario(name, files)
    assert setting.name == name
    traffic = draw_traffic(setting, 0)
    assert len(traffic.arrived_s) > 1000
    assert (np.diff(traffic.arrived_s) >= 0).all()
    assert traffic.arrived_s[-1] <= setting.horizon_s
    assert min(traffic.prompt_tokens.min(), traffic.output_tokens.min()) >= 1


@pytest.mark.parametrize(
    ("name", "mean_per_s"),
    [
        ("S1", (900 * 4 + 900 * 40) / 1800),
        ("S5", 6 * 19366 / 3501.7),
        ("S6", 22.0),
        ("S4", (2 + 3 + 5 + 6) / 4),
        ("S2", (21 * 1200 + 40 * 600 + 21 * 600) / 2400),
    ],
)
def test_a_scenario_has_the_load_that_it_is_described_with(name: str, mean_per_s: float) -> None:
    setting = scenario(name, files)
    count = len(draw_traffic(setting, 0).arrived_s)
    # Four standard deviations of a Poisson count.
    expected = mean_per_s * setting.horizon_s
    assert count == pytest.approx(expected, abs=4 * expected**0.5)


def test_an_unknown_scenario_is_refused_with_the_near_one() -> None:
    with pytest.raises(ValueError, match=r"scenario 's1C': unknown; did you mean S1c\?"):
        scenario("s1C", files)
    with pytest.raises(ValueError, match=r"scenario 'xyz': unknown; known: S1, S1b, "):
        scenario("xyz", files)


def test_an_unknown_policy_is_refused_with_the_near_one() -> None:
    with pytest.raises(
        Exception, match=r"policy 'in-flight-16': unknown; did you mean inflight-16\?"
    ):
        contender("in-flight-16")


def test_one_replica_does_what_the_reference_says_it_can() -> None:
    """8B, 1024/256 tokens, TTFT 2 s and 60 ms: A100 6.5-7.3 req/s, H100 16-20, ratio 2.3-2.8."""
    setting = scenario("S2", files)
    rates = [measure(setting, draw_traffic(setting, seed), seed).rates_per_s for seed in range(3)]
    a100, h100 = np.mean(rates, axis=0)
    assert 6.5 <= a100 <= 7.3
    assert 16 <= h100 <= 20
    assert 2.3 <= h100 / a100 <= 2.85  # the ends of the two bands allow 2.2 to 3.1


def test_the_peak_rate_at_a_moment_is_of_windows_that_are_near() -> None:
    traffic = Traffic(
        np.full(300, 500.0), np.ones(300, dtype=np.int64), np.ones(300, dtype=np.int64)
    )
    rates = peak_rates(traffic, 1000.0)
    assert rates[500] == pytest.approx(10.0)  # 300 requests within 30 s
    assert rates[441] == pytest.approx(10.0)  # they come within 60 s
    assert rates[439] == 0.0
    assert rates[530] == pytest.approx(10.0)
    assert rates[532] == 0.0


def test_the_cheapest_fleet_is_by_price_per_capacity_where_it_can_be_filled() -> None:
    fleet = scenario("S2", files).fleet
    capacity = Capacity(fleet, (7.0, 17.5))
    assert capacity.cheapest(16.0, 1.0) == (0 + fleet[0].min_replicas, 1)
    # Each has at least one. 40/s: two H100 and one A100 carry 42 for 8.20 $.
    assert capacity.cheapest(40.0, 1.0) == (1, 2)
    assert capacity.cheapest(1000.0, 1.0) == (8, 8)


def test_who_foresees_is_cheaper_than_a_fleet_for_the_peak_at_the_same_share() -> None:
    static = work(Job("S1c", "static-peak", 0)).outcome
    clairvoyant = work(Job("S1c", "clairvoyant", 0)).outcome
    assert static.in_slo_pct > 99
    assert clairvoyant.in_slo_pct > 99
    assert clairvoyant.usd < 0.8 * static.usd


def test_a_published_run_on_real_engines_comes_out_alike() -> None:
    """85.6 % in SLO with an untrained predictor, 95.8 % with a trained one, at 5.93 replicas.

    Ours measures what the predictor foretells. Seeds differ by 78 to 98 %, since the law rides on
    the edge of its SLO.
    """
    outcomes = [work(Job("SA", "slo-aware", seed)).outcome for seed in range(5)]
    assert scenario("SA", files).slo == Slo(3.0, 0.100)
    assert 85.6 - 4 <= np.mean([o.in_slo_pct for o in outcomes]) <= 95.8 + 4
    assert np.mean([o.mean_ready for o in outcomes]) == pytest.approx(5.93, abs=0.6)

"""What a replica can do, learned from its pages, against the replica itself."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from tests.core.driven import Traffic, intervals, pages, table_times, true_rate
from wva_adapter.core.capacity import Fit, Times, fresh_fit
from wva_adapter.core.interval import interval, unusable
from wva_adapter.core.priors import generic_prior, scaled_prior
from wva_adapter.core.service_rate import ServiceRate, Shape, Slo, service_rate
from wva_adapter.core.snapshot import Phase, ReplicaSample, ReplicaState
from wva_adapter.sim.files import hardware

SLO = Slo(2.0, 0.060)
CHAT = Traffic(1024, 256)
MACHINES = ("llama3-8b/a100/tp1", "llama2-70b/h100/tp4")


@cache
def truth(machine: str, traffic: Traffic) -> float:
    return true_rate(hardware(machine), traffic, SLO)


def learned(machine: str, traffic: Traffic, prior: Times, *, share: float = 0.6) -> ServiceRate:
    """Return the rate that five minutes of traffic at a share of the true one teach."""
    kind = hardware(machine)
    rate = share * truth(machine, traffic)
    seen = list(pages(kind, lambda _: traffic, rate, until_s=300, seed=3))
    fit, shape = fresh_fit(prior), Shape()
    for one in intervals(seen):
        fit, shape = fit.learn([one]), shape.learn([one])
    return service_rate(
        fit.times,
        shape,
        SLO,
        max_num_seqs=256,
        kv_cache_tokens=kind.kv_cache_tokens,
        context_tokens=fit.context_tokens,
        prior=prior,
    )


@pytest.mark.parametrize("error", [0.5, 2.0])
@pytest.mark.parametrize("machine", MACHINES)
def test_five_minutes_of_traffic_teach_the_rate(machine: str, error: float) -> None:
    prior = table_times(hardware(machine)).scaled(error)
    found = learned(machine, CHAT, prior).rate_per_s
    assert found == pytest.approx(truth(machine, CHAT), rel=0.10)


def test_more_time_for_a_token_never_lowers_the_rate() -> None:
    times = table_times(hardware(MACHINES[0]))
    rates = [
        service_rate(
            times,
            Shape(1024, 256),
            Slo(2.0, itl_s),
            max_num_seqs=256,
            kv_cache_tokens=400_000,
            context_tokens=None,
            prior=times,
        ).rate_per_s
        for itl_s in (0.02, 0.04, 0.06, 0.12, 0.5)
    ]
    assert rates == sorted(rates)


def test_a_slower_machine_serves_in_proportion_less() -> None:
    times, shape = table_times(hardware(MACHINES[0])), Shape(1024, 256)

    def rate(factor: float) -> float:
        slower = times.scaled(factor)
        slo = Slo(2.0 * factor, 0.06 * factor)
        return service_rate(
            slower,
            shape,
            slo,
            max_num_seqs=256,
            kv_cache_tokens=None,
            context_tokens=None,
            prior=slower,
        ).rate_per_s

    assert rate(3.0) == pytest.approx(rate(1.0) / 3, rel=0.01)


def test_a_wild_extrapolation_is_kept_near_what_was_believed() -> None:
    prior = table_times(hardware(MACHINES[0]))
    rates = {}
    for name, times in (("none", Times(0, 0, 0, 0)), ("all", prior.scaled(1000))):
        found = service_rate(
            times,
            Shape(1024, 256),
            SLO,
            max_num_seqs=256,
            kv_cache_tokens=None,
            context_tokens=None,
            prior=prior,
        )
        assert found.clamped
        assert "kept near what was believed at first" in found.binding
        rates[name] = found.rate_per_s
    assert rates["none"] > rates["all"] * 4 / 0.3


def a_page(at_s: float, **values: float) -> ReplicaSample:
    n = at_s
    return replace(
        ReplicaSample(
            replica="r0",
            at_s=at_s,
            kv_cache_usage=0.2,
            kv_cache_tokens=100_000,
            running_requests=8,
            queued_requests=0,
            prompt_tokens_total=1000 * n,
            generation_tokens_total=400 * n,
            ttft_sum_s=0.2 * n,
            ttft_count=n,
            itl_sum_s=8 * n,
            itl_count=400 * n,
            prefill_sum_s=0.1 * n,
            output_tokens_sum=400 * n,
            output_tokens_count=n,
        ),
        **values,  # type: ignore[arg-type]
    )


def test_an_interval_is_what_the_counters_say() -> None:
    done = interval(a_page(10), a_page(15))
    assert done is not None
    # 40 s of inter-token time in 5 s: 8 requests decoded on average, 20 ms a token
    assert (done.batch, done.itl_s) == pytest.approx((8, 0.02))
    assert (done.prompt_tokens_per_s, done.kv_tokens) == (1000, 20_000)
    assert done.prefilling == pytest.approx(0.1)


def test_a_restart_between_two_pages_tells_nothing() -> None:
    assert interval(a_page(10), replace(a_page(3), at_s=15.0)) is None
    assert interval(a_page(10), a_page(10)) is None


def test_who_waits_and_who_was_refused_arrived_too() -> None:
    before, now = a_page(10, rejections_total=0), a_page(15, queued_requests=7, rejections_total=3)
    done = interval(before, now)
    assert done is not None
    assert done.arrivals == 5 + 7 + 3


def test_nothing_is_learned_of_a_replica_in_its_first_minute() -> None:
    done = interval(a_page(10), a_page(15))
    assert done is not None
    fresh = ReplicaState("r0", Phase.READY, 0.0, 5.0)
    assert unusable(done, fresh) == "r0 was ready for 5 s only, want 60"
    assert unusable(done, ReplicaState("r0", Phase.READY, -100.0, -80.0)) is None


def test_pages_that_contradict_each_other_are_known_as_such() -> None:
    fit: Fit = fresh_fit(Times(0.01, 0.0001, 1e-8, 1e-5))
    # the same batch without any prompt now takes 20 ms a token, now 120 ms
    still = {"prompt_tokens_total": 0.0}
    before = a_page(10, **still)
    counts = (a_page(15, **still), a_page(15, **still, itl_count=4000 + 40 / 0.120))
    seen = [interval(before, now) for now in counts]
    for _ in range(100):
        fit = fit.learn([one for one in seen if one is not None])
    assert fit.contradictory
    assert (fit.relative_error or 0) > 0.5


def test_a_prior_of_an_unknown_device_is_that_of_an_a100() -> None:
    assert generic_prior("XPU-9000", 1) == generic_prior("A100", 1)
    faster = scaled_prior(generic_prior("A100", 1), "A100", "H100")
    # memory 2.039 -> 3.35 TB/s
    assert faster.c_s == pytest.approx(generic_prior("A100", 1).c_s * 2.039 / 3.35)

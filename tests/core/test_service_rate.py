from __future__ import annotations

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wva_adapter.core.capacity import Times
from wva_adapter.core.service_rate import ServiceRate, Shape, Slo, service_rate

A100 = Times(0.0125, 30e-6, 0.08e-6, 70e-6)

SMALL = st.floats(0, 1e-3)
TIMES = st.builds(Times, st.floats(0, 0.1), SMALL, st.floats(0, 1e-6), SMALL)
SHAPES = st.builds(Shape, st.floats(0, 1e4), st.floats(0, 1e4))
SLOS = st.builds(Slo, st.floats(0.05, 30), st.floats(0.005, 1))
PLACES = st.integers(1, 1024)


def rate(
    times: Times = A100,
    shape: Shape | None = None,
    slo: Slo | None = None,
    *,
    places: int | None = 256,
    kv: float | None = 400_000,
    context: float | None = None,
    prior: Times | None = None,
    weight: float = 0.0,
) -> ServiceRate:
    return service_rate(
        times,
        shape or Shape(1024, 256),
        slo or Slo(),
        max_num_seqs=places,
        kv_cache_tokens=kv,
        context_tokens=context,
        prior=prior or times,
        weight=weight,
    )


def test_without_prompts_and_growth_the_batch_is_full_at_nine_tenths() -> None:
    # 10 ms per step, 100 steps: one of 90 places completes one request per second.
    found = rate(Times(0.010, 0, 0, 0), Shape(100, 100), places=100)
    assert found.rate_per_s == pytest.approx(90)
    assert found.binding == "90 of 100 places in the batch"


def test_without_prompts_the_inter_token_latency_is_the_closed_form() -> None:
    # ITL = 0.02/(1 − λ·100·0.0001) = 0.9·60 ms at λ = (1 − 20/54)/0.01.
    found = rate(Times(0.0199, 0.0001, 0, 0), Shape(0, 100), places=10_000)
    assert found.rate_per_s == pytest.approx((1 - 20 / 54) / 0.01)
    assert found.itl_s == pytest.approx(0.054)
    assert found.binding == "inter-token latency of 54 ms at a batch of 340, SLO 60 ms"


def test_a_small_kv_cache_bounds_the_batch() -> None:
    found = rate(Times(0.010, 0, 0, 0), Shape(100, 100), kv=1500, context=150)
    assert found.rate_per_s == pytest.approx(9)  # 0.9·1500/150 requests of a second each
    assert "9 requests of 150 tokens in a KV cache of 1500" in found.binding


def test_few_places_make_requests_wait_and_the_first_token_binds() -> None:
    found = rate(Times(0.010, 0, 0, 0), Shape(100, 100), Slo(0.5, 1), places=1)
    # A step, and the wait of M/M/1 with room for four: below what nine tenths of a place allow.
    assert found.rate_per_s < 0.5
    assert found.ttft_s == pytest.approx(0.5, rel=0.01)
    assert "first-token latency" in found.binding


def test_an_slo_that_a_lone_request_breaks_leaves_a_fifth() -> None:
    found = rate(Times(0.100, 0.0001, 0, 0), Shape(0, 100), places=10**9, kv=None)
    assert found.rate_per_s == pytest.approx(0.2 / 0.01, rel=1e-5)  # it saturates at 1/(100·0.0001)
    assert "SLO 60 ms cannot be kept" in found.binding


def test_a_learned_rate_stays_within_what_the_prior_lets_hope_for() -> None:
    fast = rate(Times(1e-9, 0, 0, 0), prior=A100)
    assert fast.clamped
    assert fast.rate_per_s == rate(A100.scaled(1 / 4)).rate_per_s
    slow = rate(A100.scaled(100), prior=A100)
    assert slow.clamped
    assert slow.rate_per_s == rate(A100.scaled(1 / 0.3)).rate_per_s


def test_an_engine_slower_than_anybody_guessed_is_believed_after_some_minutes() -> None:
    # A CPU with a small model: a request adds 2.5 ms to a step, where an A100 with 8B adds 0.07.
    cpu = Times(0.016, 0.0025, 1e-6, 0.0009)
    true = rate(cpu, Shape(200, 100), places=16)
    assert true.rate_per_s == pytest.approx(1.40, abs=0.01)
    rates = [
        rate(cpu, Shape(200, 100), places=16, prior=A100, weight=weight).rate_per_s
        for weight in (0, 10, 20, 30)
    ]
    assert rates[0] > 1.4 * true.rate_per_s
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == true.rate_per_s  # 0.3² of the guess is below it


@settings(max_examples=500, deadline=None)
@given(TIMES, SHAPES, SLOS, PLACES, st.one_of(st.none(), st.floats(0, 1e6)), TIMES)
def test_any_times_give_a_positive_rate(
    times: Times, shape: Shape, slo: Slo, places: int, kv: float | None, prior: Times
) -> None:
    found = rate(times, shape, slo, places=places, kv=kv, prior=prior)
    assert 0 < found.rate_per_s < math.inf
    assert found.binding


@settings(max_examples=500, deadline=None)
@given(TIMES, SHAPES, SLOS, PLACES, st.floats(1, 10), st.sampled_from(["ttft_s", "itl_s"]))
def test_a_looser_slo_never_lowers_the_rate(
    times: Times, shape: Shape, slo: Slo, places: int, looser: float, bound: str
) -> None:
    relaxed = Slo(
        slo.ttft_s * (looser if bound == "ttft_s" else 1),
        slo.itl_s * (looser if bound == "itl_s" else 1),
    )
    tight = rate(times, shape, slo, places=places).rate_per_s
    assert rate(times, shape, relaxed, places=places).rate_per_s >= tight * (1 - 1e-3)


@settings(max_examples=500, deadline=None)
@given(TIMES, SHAPES, SLOS, PLACES, st.floats(1, 10), st.integers(0, 3))
def test_a_slower_step_never_raises_the_rate(
    times: Times, shape: Shape, slo: Slo, places: int, slower: float, which: int
) -> None:
    all_times = [times.a_s, times.b_s, times.c_s, times.d_s]
    all_times[which] *= slower
    before = rate(times, shape, slo, places=places).rate_per_s
    assert rate(Times(*all_times), shape, slo, places=places).rate_per_s <= before * (1 + 1e-3)


@settings(deadline=None)
@given(TIMES, SHAPES, SLOS, PLACES, st.floats(0.1, 10))
def test_seconds_of_another_length_change_the_rate_by_that_alone(
    times: Times, shape: Shape, slo: Slo, places: int, factor: float
) -> None:
    assume(min(1, factor) * times.a_s > 2e-6)  # below, the shortest step of all counts
    longer = rate(
        times.scaled(factor), shape, Slo(slo.ttft_s * factor, slo.itl_s * factor), places=places
    )
    expected = rate(times, shape, slo, places=places).rate_per_s / factor
    assert longer.rate_per_s == pytest.approx(expected, rel=1e-3)


def test_what_is_no_shape_or_slo_is_refused() -> None:
    with pytest.raises(ValueError, match="shape: input_tokens -1, want a finite number"):
        Shape(-1)
    with pytest.raises(ValueError, match="slo: itl_s 0, want a positive number"):
        Slo(itl_s=0)
    with pytest.raises(ValueError, match="times: a_s nan, want a finite number"):
        Times(math.nan, 0, 0, 0)

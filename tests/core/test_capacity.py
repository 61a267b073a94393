from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.core.driven import Traffic, intervals, pages, table_times, true_rate
from wva_adapter.core.capacity import Fit, Times, fresh_fit
from wva_adapter.core.interval import Interval, has_caught_up, interval, unusable
from wva_adapter.core.priors import generic_prior, scaled_prior
from wva_adapter.core.service_rate import Shape, Slo, service_rate
from wva_adapter.core.snapshot import Phase, ReplicaSample, ReplicaState
from wva_adapter.sim.files import hardware
from wva_adapter.sim.hardware import Hardware

TRUTH = Times(0.012, 40e-6, 0.08e-6, 70e-6)


def an_interval(
    times: Times = TRUTH,
    *,
    batch: float = 40,
    kv_tokens: float = 48_000,
    prompt_tokens_per_s: float = 3000,
    at_s: float = 5,
    input_tokens: float = 1000,
    started: float = 10,
) -> Interval:
    """Return an interval that these times explain without error."""
    steps_s = times.a_s + times.b_s * batch + times.c_s * kv_tokens
    itl_s = steps_s / (1 - times.d_s * prompt_tokens_per_s)
    return Interval(
        replica="r0",
        at_s=at_s,
        span_s=5,
        batch=batch,
        itl_s=itl_s,
        itl_count=5 * batch / itl_s,
        prompt_tokens_per_s=prompt_tokens_per_s,
        kv_tokens=kv_tokens,
        prefilling=0,
        started=started,
        input_tokens=started * input_tokens,
        finished=10,
        output_tokens=2560,
        arrivals=10,
        running=batch,
        steady=False,
        queued_before=0,
        queued=0,
    )


def learned(fit: Fit, seen: list[Interval]) -> tuple[Fit, Shape]:
    shape = Shape()
    for one in seen:
        fit, shape = fit.learn([one]), shape.learn([one])
    return fit, shape


def test_varied_samples_give_back_the_times_that_made_them() -> None:
    fit = fresh_fit(TRUTH.scaled(2))
    for number in range(200):
        fit = fit.learn(
            [
                an_interval(
                    batch=10 + number % 7 * 20,
                    kv_tokens=10_000 + number % 11 * 15_000,
                    prompt_tokens_per_s=number % 5 * 2000,
                )
            ]
        )
    for name in ("a_s", "b_s", "c_s", "d_s"):
        assert getattr(fit.times, name) == pytest.approx(getattr(TRUTH, name), rel=0.05)
    assert fit.relative_error == pytest.approx(0, abs=0.01)
    assert not fit.contradictory


def test_at_a_steady_load_a_wrong_prior_is_scaled_as_a_whole() -> None:
    # One point cannot tell four times apart; that the machine is twice as fast explains it best.
    fit = fresh_fit(TRUTH.scaled(2)).learn([an_interval()] * 60)
    for name in ("a_s", "b_s", "c_s", "d_s"):
        assert getattr(fit.times, name) == pytest.approx(getattr(TRUTH, name), rel=0.1)


def test_a_length_is_the_mean_of_many_requests_where_few_arrive() -> None:
    known = Shape().learn([an_interval(started=50, input_tokens=1000)])

    few = known.learn([an_interval(started=2, input_tokens=9000)])
    many = known.learn([an_interval(started=80, input_tokens=9000)])

    # Two of 200 requests that the mean comes from; with many, cycles count alike.
    assert few.input_tokens == pytest.approx(1000 + 8000 * 0.01, rel=1e-2)
    assert many.input_tokens == pytest.approx(1000 + 8000 * 0.15)


def test_lengths_that_change_are_known_within_a_minute_where_few_arrive_too() -> None:
    def a_cycle(tokens: float, requests: float = 5) -> Interval:
        return an_interval(started=requests, input_tokens=tokens)

    shape = Shape()
    for _ in range(60):
        shape = shape.learn([a_cycle(200)])
    one_long = shape.learn([a_cycle(20_000, requests=1)])
    assert one_long.input_tokens == pytest.approx(300, rel=0.02)
    for _ in range(12):
        shape = shape.learn([a_cycle(800)])
    # of 200 requests that a mean comes from, 60 alone would have moved it to 360
    assert shape.input_tokens == pytest.approx(800, rel=0.2)
    for _ in range(24):
        shape = shape.learn([a_cycle(800)])
    assert shape.input_tokens == pytest.approx(800, rel=0.08)


def test_prompts_that_were_all_cached_and_are_not_any_more_are_known_again() -> None:
    shape = Shape().learn([an_interval(started=5, input_tokens=0)])
    for _ in range(120):
        shape = shape.learn([an_interval(started=5, input_tokens=800)])
    assert shape.input_tokens == pytest.approx(800, rel=0.05)
    assert shape.newest_input_tokens == pytest.approx(800, rel=0.05)


@pytest.mark.parametrize(
    "wrong", [{"inputs": 0.0}, {"outputs": math.nan}, {"newest_input_tokens": -1.0}]
)
def test_a_shape_that_would_divide_by_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"shape: {next(iter(wrong))}"):
        Shape(**wrong)


def test_answers_that_end_first_are_short_and_move_their_mean_slowly() -> None:
    known = Shape().learn([an_interval(started=100)])

    short = known.learn([an_interval(started=100)._replace(finished=100, output_tokens=6400)])

    assert short.output_tokens == pytest.approx(256 + (64 - 256) * 0.05)


def test_seconds_of_another_length_change_the_learned_times_by_that_alone() -> None:
    seen = [an_interval(batch=b) for b in (10, 30, 80)]
    slow = [
        one._replace(
            itl_s=10 * (one.itl_s or 0),
            prompt_tokens_per_s=one.prompt_tokens_per_s / 10,
        )
        for one in seen
    ]
    prior = TRUTH.scaled(1.5)
    fast = fresh_fit(prior).learn(seen).times
    assert fresh_fit(prior.scaled(10)).learn(slow).times.a_s == pytest.approx(10 * fast.a_s)


def test_what_no_times_explain_is_contradictory() -> None:
    steady = an_interval(prompt_tokens_per_s=0)
    wild = [steady._replace(itl_s=0.001 if n % 2 else 0.5, itl_count=1000) for n in range(100)]
    assert fresh_fit(TRUTH).learn(wild).contradictory


def test_too_few_tokens_and_an_unknown_kv_cache_teach_nothing() -> None:
    fit = fresh_fit(TRUTH)
    few = an_interval()._replace(itl_count=19)
    blind = an_interval()._replace(kv_tokens=None)
    idle = an_interval()._replace(itl_s=None, batch=0.0, itl_count=0)
    assert fit.learn([few, blind, idle]).times == TRUTH
    assert fit.learn([few, blind, idle]).samples == 0


def test_prompts_of_another_length_make_it_forget_until_they_are_learned() -> None:
    fit, _ = learned(fresh_fit(TRUTH), [an_interval()] * 50)
    assert not fit.forgetting
    after = [an_interval(input_tokens=4000)] * 200
    away, _ = learned(fit, after[:20])
    assert away.forgetting
    back, _ = learned(fit, after)
    assert not back.forgetting


CASES = [
    (name, traffic)
    for name in (
        "llama3-8b/a100/tp1",
        "llama3-8b/h100/tp1",
        "llama2-70b/h100/tp4",
        "qwen3-32b/h100/tp2",
    )
    for traffic in (Traffic(512, 128), Traffic(1024, 256), Traffic(2048, 256))
]


@pytest.mark.parametrize(("name", "traffic"), CASES, ids=lambda value: str(value))
def test_after_five_minutes_the_rate_is_within_a_tenth_of_what_the_replica_was_seen_to_keep(
    name: str, traffic: Traffic
) -> None:
    chip, slo = hardware(name), Slo()
    truth = true_rate(chip, traffic, slo)
    seen = intervals(list(pages(chip, lambda _: traffic, 0.6 * truth, until_s=300, seed=1)))
    shape = Shape(traffic.prompt_tokens, traffic.output_tokens)
    for error in (2.0, 0.5):
        prior = table_times(chip).scaled(error)
        fit, _ = learned(fresh_fit(prior), seen)
        found = service_rate(
            fit.times,
            shape,
            slo,
            max_num_seqs=256,
            kv_cache_tokens=chip.kv_cache_tokens,
            context_tokens=fit.context_tokens,
            prior=prior,
        )
        assert found.rate_per_s == pytest.approx(truth, rel=0.1), (error, found)


def test_five_minutes_of_light_load_teach_an_engine_of_another_kind_than_was_guessed() -> None:
    # Like a small model on one core: against an A100 with 8B a prompt token takes ten times as
    # long, a request twenty times, and a step alone hardly longer.
    cpu = Hardware(
        name="small/cpu/tp1",
        tokens=(1, 16, 8192),
        iteration_s=(0.018, 0.042, 6.2),
        kv_read_s_per_token=2e-6,
        attention_s=0.0,
        kv_cache_tokens=65_536,
        idle_w=0.0,
        tdp_w=0.0,
        usd_per_h=0.0,
    )
    light, slo = Traffic(200, 100), Slo()
    truth = true_rate(cpu, light, slo)
    fit = fresh_fit(generic_prior("CPU", 1))
    seen = pages(cpu, lambda _: light, truth / 2, until_s=300, seed=1, max_num_seqs=16)
    fit, _ = learned(fit, intervals(list(seen)))
    found = service_rate(
        fit.times,
        Shape(light.prompt_tokens, light.output_tokens),
        slo,
        max_num_seqs=16,
        kv_cache_tokens=cpu.kv_cache_tokens,
        context_tokens=fit.context_tokens,
        prior=fit.prior,
        weight=fit.weight,
    )
    assert found.rate_per_s == pytest.approx(truth, rel=0.15)


def test_a_machine_that_is_slow_at_times_is_learned_as_it_is_on_average() -> None:
    fit = fresh_fit(TRUTH)
    for number in range(200):
        fit = fit.learn(
            [an_interval(TRUTH.scaled(1.4 if number % 2 else 0.6), prompt_tokens_per_s=0)]
        )
    mean_s = fit.times.a_s + 40 * fit.times.b_s + 48_000 * fit.times.c_s
    true_s = TRUTH.a_s + 40 * TRUTH.b_s + 48_000 * TRUTH.c_s
    # By errors relative to what was seen it would be a quarter too fast.
    assert mean_s == pytest.approx(true_s, rel=0.1)


def test_an_episode_ten_times_as_slow_counts_no_more_than_one_twice_as_slow() -> None:
    def after(slower: float) -> Fit:
        fit, _ = learned(fresh_fit(TRUTH), [an_interval()] * 100)
        fit, _ = learned(fit, [an_interval(TRUTH.scaled(slower), prompt_tokens_per_s=0)] * 5)
        return fit

    assert after(10).times.a_s < 1.05 * after(2).times.a_s


@pytest.mark.parametrize("name", ["llama3-8b/a100/tp1", "llama3-8b/h100/tp1"])
def test_five_minutes_after_prompts_became_four_times_longer_the_rate_is_within_a_fifth(
    name: str,
) -> None:
    chip, slo, long = hardware(name), Slo(), Traffic(2048, 128)
    truth = true_rate(chip, long, slo)

    def traffic(at_s: float) -> Traffic:
        return Traffic(512, 128) if at_s < 1800 else long

    prior = table_times(chip)
    fit, shape = learned(
        fresh_fit(prior), intervals(list(pages(chip, traffic, 0.6 * truth, until_s=2100, seed=1)))
    )
    found = service_rate(
        fit.times,
        shape,
        slo,
        max_num_seqs=256,
        kv_cache_tokens=chip.kv_cache_tokens,
        context_tokens=fit.context_tokens,
        prior=prior,
    )
    assert fit.forgetting
    assert found.rate_per_s == pytest.approx(truth, rel=0.2)


def a_page(at_s: float, **counters: float) -> ReplicaSample:
    known = {
        "kv_cache_usage": 0.5,
        "running_requests": 4.0,
        "queued_requests": 0.0,
        "prompt_tokens_total": 0.0,
        "generation_tokens_total": 0.0,
        "itl_sum_s": 0.0,
        "itl_count": 0.0,
        "ttft_count": 0.0,
    }
    return ReplicaSample(replica="r0", at_s=at_s, kv_cache_tokens=1000, **(known | counters))  # type: ignore[arg-type]


def test_an_interval_says_what_happened_between_two_pages() -> None:
    after = a_page(
        15, itl_sum_s=20, itl_count=1000, prompt_tokens_total=500, ttft_count=3, queued_requests=2
    )
    found = interval(a_page(10), after)
    assert found is not None
    assert (found.span_s, found.batch, found.itl_s) == (5, 4, 0.02)
    assert (found.prompt_tokens_per_s, found.kv_tokens) == (100, 500)
    assert found.arrivals == 5  # three began and two more wait


def test_nothing_is_known_across_a_restart_or_without_time_or_counters() -> None:
    assert interval(a_page(10, generation_tokens_total=7), a_page(15)) is None
    assert interval(a_page(10), a_page(10)) is None
    assert interval(a_page(10), replace(a_page(15), itl_count=None)) is None


@pytest.mark.parametrize(
    ("state", "queued", "reason"),
    [
        (ReplicaState("r0", Phase.TERMINATING), 0, "r0 is terminating"),
        (ReplicaState("r0", ready_at_s=60), 0, "r0 was ready for 40 s only, want 60"),
        (ReplicaState("r0", ready_at_s=0), 3, "r0 drains the 3 that waited when it came"),
    ],
)
def test_a_replica_that_warms_up_or_drains_teaches_nothing(
    state: ReplicaState, queued: float, reason: str
) -> None:
    seen = an_interval(at_s=105)._replace(queued_before=queued)
    assert unusable(seen, state) == reason


def test_a_queue_in_a_replica_that_had_none_is_its_own() -> None:
    state = ReplicaState("r0", ready_at_s=0)
    seen = an_interval(at_s=105)._replace(queued_before=3)
    assert unusable(seen, state, caught_up=True) is None
    assert has_caught_up(a_page(30), state)
    assert not has_caught_up(a_page(29), state)  # perhaps nobody knows of it yet
    assert not has_caught_up(replace(a_page(30), queued_requests=1), state)
    assert not has_caught_up(replace(a_page(30), queued_requests=None), state)


def test_a_replica_that_has_settled_or_of_unknown_age_teaches() -> None:
    seen = an_interval(at_s=400)._replace(queued_before=3)
    assert unusable(seen, ReplicaState("r0", ready_at_s=0)) is None
    assert unusable(seen, ReplicaState("r0")) is None


def test_a_prior_for_another_device_goes_with_its_bandwidth_and_its_arithmetic() -> None:
    there = scaled_prior(TRUTH, "A100", "H100")
    assert there.a_s / TRUTH.a_s == there.c_s / TRUTH.c_s == pytest.approx(2.039 / 3.35)
    assert there.b_s / TRUTH.b_s == there.d_s / TRUTH.d_s == pytest.approx(312 / 989)
    assert scaled_prior(TRUTH, None, "A100", from_devices=2).a_s == pytest.approx(2 * TRUTH.a_s)


def test_an_unknown_device_is_taken_for_an_a100_and_a_slice_for_its_sevenths() -> None:
    assert generic_prior("X1", 1) == generic_prior("A100", 1) == generic_prior(None, 0)
    slice_s = generic_prior("A100-MIG-1g.5gb", 1).d_s
    assert slice_s == pytest.approx(7 * generic_prior("A100", 1).d_s)

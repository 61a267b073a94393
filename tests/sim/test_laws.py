"""Laws at work on a fleet and series that each test writes down, arithmetic in comments."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from wva_adapter.core.snapshot import Phase
from wva_adapter.sim.laws import scaler
from wva_adapter.sim.policy_files import law, law_names, parse_law
from wva_adapter.sim.scaler import PodView, Scaler, VariantView
from wva_adapter.sim.series import SERIES

CONSTANTS = {"slo_ttft_s": 2.0, "slo_itl_s": 0.06, "prefill_tokens_per_s": 10_000.0}


class Store:
    """Series as functions of steps: ``{name: [(from second, value), ...]}``, sampled every 5 s."""

    def __init__(self, **series: float | Sequence[tuple[float, float | None]] | None) -> None:
        self._series = series

    def value(self, series: str, now_s: float, variant: str | None = None) -> float | None:
        if series not in SERIES:
            raise KeyError(series)
        steps = self._series.get(f"{variant}_{series}" if variant else series)
        if steps is None or isinstance(steps, float | int):
            return steps
        found: float | None = None
        for from_s, value in steps:
            if from_s <= now_s:
                found = value
        return found

    def window(
        self, series: str, now_s: float, span_s: float, variant: str | None = None
    ) -> Sequence[float]:
        times = [now_s - 5 * step for step in range(int(span_s / 5))][::-1]
        found = [self.value(series, at_s, variant) for at_s in times]
        return [value for value in found if value is not None]


def pods(ready: int, starting: int = 0) -> tuple[PodView, ...]:
    old = [PodView(f"p{i}", Phase.READY, 0.0, -900.0) for i in range(ready)]
    new = [PodView(f"n{i}", Phase.STARTING, 0.0, None) for i in range(starting)]
    return (*old, *new)


def a_view(ready: int, starting: int = 0, *, low: int = 1, high: int = 20) -> VariantView:
    return VariantView("a", ready + starting, low, high, pods(ready, starting))


def play(
    name: str,
    store: Store,
    *,
    until_s: float,
    ready: int = 2,
    low: int = 1,
    high: int = 20,
    after_s: float = 0.0,
) -> list[int]:
    """Return the counts after each look; what is ordered is ready at once."""
    return follow(scaler(law(name), {"a": CONSTANTS}), store, until_s, ready, low, high, after_s)


def follow(
    acting: Scaler,
    store: Store,
    until_s: float,
    ready: int = 2,
    low: int = 1,
    high: int = 20,
    after_s: float = 0.0,
) -> list[int]:
    counts, now_s = [], after_s + acting.period_s
    while now_s <= until_s:
        view = a_view(ready, low=low, high=high)
        ready = acting.act(now_s, [view], store).get("a", ready)
        counts.append(ready)
        now_s += acting.period_s
    return counts


def test_in_flight_is_shared_among_sixteens() -> None:
    # 120/16 = 7.5: 8; per 15 s from 2: max(2 + 4, 2 x 2) = 6, then 8
    assert play("inflight-16", Store(in_flight=120), until_s=45) == [6, 8, 8]
    # 100/16 = 6.25 asks for 7, but 100 of 6 x 16 is 1.04: inside the tolerance
    assert play("inflight-16", Store(in_flight=100), until_s=45) == [6, 6, 6]


def test_what_is_read_is_ten_seconds_old() -> None:
    step = Store(in_flight=[(0, 32.0), (21, 64.0)])
    # at 30 s it sees 20 s, at 45 s 35 s
    assert play("inflight-16", step, until_s=45) == [2, 2, 4]


def test_keda_takes_nothing_for_zero_and_drains_the_fleet() -> None:
    lost = Store(in_flight=[(0, 96.0), (16, None)])
    counts = play("inflight-16", lost, until_s=600, ready=6)
    assert counts[0] == 6
    # The last 6 was recommended at 15 s; at 315 s the window of 300 s has forgotten it.
    assert counts == [6] * 20 + [1] * 20


def test_an_hpa_of_pods_metrics_holds_when_it_reads_nothing() -> None:
    assert play("hpa-q3kv60", Store(), until_s=900, ready=6)[-1] == 6


@pytest.mark.parametrize(
    ("waiting", "kv", "count"),
    [
        (12.0, 0.3, 4),  # 12/4 = 3 each: at the target; 0.3 of 0.6 asks for 2, less than 4
        (24.0, 0.3, 8),  # 6 each: 4 x 2
        (0.0, 0.9, 6),  # 0.9 of 0.6: 4 x 1.5
    ],
)
def test_the_larger_of_queue_and_kv_wins(waiting: float, kv: float, count: int) -> None:
    store = Store(a_waiting=waiting, a_ready=4.0, a_kv_usage=kv)
    assert play("hpa-q3kv60", store, until_s=15, ready=4) == [count]


def test_throttled_waits_four_minutes_and_adds_one_a_minute() -> None:
    store = Store(a_waiting=400.0, a_ready=4.0, a_kv_usage=0.9)
    counts = play("hpa-q3kv60-throttled", store, until_s=420)
    # The initial 2 of t = 15 holds until it is 240 s old, at 255; then 3, and one more each 60 s.
    assert counts == [2] * 16 + [3] * 4 + [4] * 4 + [5] * 4


def test_each_variant_has_an_autoscaler_of_its_own_on_the_same_series() -> None:
    acting = scaler(law("inflight-16"), {})
    fleet = [
        VariantView("a", 1, 1, 8, pods(1)),
        VariantView("h", 2, 1, 8, pods(2)),
    ]
    # Both read 80 in flight: 5 each. Together they order twice what is needed.
    assert acting.act(15, fleet, Store(in_flight=80)) == {"a": 5, "h": 5}


def test_starting_pods_soften_a_pods_metric_on_the_way_up() -> None:
    acting = scaler(law("hpa-q3kv60"), {})
    store = Store(a_waiting=24.0, a_ready=4.0, a_kv_usage=0.1)
    # 6 each is twice the target, but 4 more start: (4 x 2 + 4 x 0)/8 = 1: 8 stay
    assert acting.act(15, [a_view(4, 4)], store) == {}


@pytest.mark.parametrize("name", law_names())
def test_every_law_names_its_source_and_keeps_the_bounds(name: str) -> None:
    assert len(law(name).source) > 20
    busy = dict.fromkeys([*SERIES, *(f"a_{series}" for series in SERIES)], 1e6)
    assert all(3 <= count <= 9 for count in play(name, Store(**busy), until_s=300, low=3, high=9))
    idle = dict.fromkeys(busy, 0.0)
    assert all(3 <= count <= 9 for count in play(name, Store(**idle), until_s=900, low=3, high=9))


def test_a_law_of_an_own_file_is_read_as_the_shipped_ones_are() -> None:
    text = "name: mine\nsource: my own cluster, 2026\nkeda:\n  triggers:\n"
    own = parse_law(text + "  - {name: q, query: waiting / 2, target: 4}\n", "my.yaml")
    assert follow(scaler(own, {}), Store(waiting=32), 15) == [4]  # 32/2/4


def test_the_gateways_queue_counts_one_by_one_and_waits_where_the_window_says() -> None:
    store = Store(queue=9.0, in_flight=32.0)
    # 9 held back: 9 replicas; 100 % per 15 s: 4, 8, 9
    assert play("queue-0", store, until_s=60) == [4, 8, 9, 9]
    # The initial 2 holds until it is 300 s old.
    assert play("queue-300", store, until_s=315) == [2] * 20 + [4]


def test_the_guard_does_not_order_twice_and_never_cancels() -> None:
    acting = scaler(law("guard"), {})
    busy = Store(queue=10.0, in_flight=16.0)
    # need 10, 4 there: 4 more are on their way: max(10 - 4, 8) = 8
    assert acting.act(15, [a_view(4, 4)], busy) == {}
    # none on their way: 10, but at most max(4 + 4, 2 x 4)
    assert scaler(law("guard"), {}).act(15, [a_view(4)], busy) == {"a": 8}
    # need 12/16 below the count: asked for as it is, and the window of 300 s holds
    assert scaler(law("guard"), {}).act(15, [a_view(4)], Store(queue=0.0, in_flight=12.0)) == {}


def test_a_mean_saturation_never_asks_for_more_than_two() -> None:
    # every endpoint is full: 1.25 of 0.7 is two replicas, whatever the pool; 90 in flight ask for 6
    store = Store(saturation=1.25, in_flight=90.0)
    assert play("pool-saturation", store, until_s=315, ready=6) == [6] * 21
    alone = Store(saturation=1.25, in_flight=1.0)
    assert play("pool-saturation", alone, until_s=330, ready=6)[-1] == 2


def test_token_aware_adds_a_pod_every_three_minutes() -> None:
    # 60,000 prompt tokens by 10,000/s are 6 s, by 1.5 s: 4 replicas; KV: 2 x 0.9/0.8 -> 3
    store = Store(in_flight_prompt_tokens=60_000.0, kv_usage=0.9, ready=2.0)
    assert play("token-aware", store, until_s=390) == [3] * 12 + [4] * 14


def test_slo_aware_asks_for_fewer_while_pods_warm_up() -> None:
    # P90 inter-token time 54 ms of 60: 0.9. 6 replicas, 3 ready: 6 + ceil(6 (0.45/0.55 - 1)) = 5
    store = Store(ttft_p90_1m_s=0.2, itl_p90_1m_s=0.054)
    acting = scaler(law("slo-aware"), {"a": CONSTANTS})
    view = VariantView("a", 6, 1, 20, pods(3, 3))
    looks = [acting.act(600 + 15.0 * look, [view], store) for look in range(1, 14)]
    assert looks == [{}] * 12 + [{"a": 5}]  # after the window of 180 s


def test_slo_aware_steers_by_the_worse_latency() -> None:
    # 1.6 s of 2 s: 0.8. n + ceil(n (0.8/0.55 - 1)): 4 + ceil(1.82) = 6, after 30 s of it
    store = Store(ttft_p90_1m_s=1.6, itl_p90_1m_s=0.03)
    assert play("slo-aware", store, after_s=600, until_s=645, ready=4) == [4, 4, 6]
    # 0.6 of each bound below 0.4: 4 - floor(4 (1 - 0.2/0.4)) = 2, one pod per 120 s
    calm = Store(ttft_p90_1m_s=0.4, itl_p90_1m_s=0.006)
    assert (
        play("slo-aware", calm, after_s=600, until_s=930, ready=4) == [4] * 12 + [3] * 8 + [2] * 2
    )
    # only the time to first token is known: nothing has finished
    waiting = Store(ttft_p90_1m_s=1.6)
    assert play("slo-aware", waiting, after_s=600, until_s=645, ready=4) == [4, 4, 6]
    # in the first two minutes nothing is believed
    assert play("slo-aware", store, until_s=105, ready=4) == [4] * 7


def test_dynamo_steps_by_one_and_not_while_it_scales() -> None:
    loaded = Store(a_kv_load_max=1.1)
    assert play("dynamo-throughput", loaded, until_s=20) == [3, 4, 5, 6]
    acting = scaler(law("dynamo-throughput"), {})
    assert acting.act(5, [a_view(2, 1)], loaded) == {}
    assert play("dynamo-throughput", Store(a_kv_load_max=0.7), until_s=20, ready=3) == [3] * 4
    assert play("dynamo-throughput", Store(a_kv_load_max=0.5), until_s=10, ready=3) == [2, 1]
    assert play("dynamo-latency", Store(a_kv_load_max=0.5), until_s=10, ready=3) == [4, 5]


def test_apa_doubles_at_most_and_goes_down_after_five_minutes() -> None:
    # 0.95 of 0.5 is 1.9: ceil(2 x 1.9) = 4, then 8
    assert play("apa", Store(a_kv_usage=0.95), until_s=20) == [4, 8]
    assert play("apa", Store(a_kv_usage=0.54), until_s=20) == [2, 2]  # 1.08
    # 0.1 of 0.5: ceil(8 x 0.2) = 2, but at least half: 4; and only after the 8 is 300 s old
    calm = play("apa", Store(a_kv_usage=0.1), until_s=310, ready=8)
    assert calm == [8] * 30 + [4]
    assert play("apa", Store(), until_s=310, ready=8)[-1] == 8  # nothing known, nothing done


def test_knative_panics_on_a_burst_and_does_not_go_down_within_a_minute_of_it() -> None:
    burst = Store(a_in_flight=[(0, 32.0), (100, 320.0), (140, 32.0)])
    counts = play("knative", burst, until_s=320)
    at = {2 * index: count for index, count in enumerate(counts, 1)}
    assert at[98] == 2
    assert at[106] == 20  # 320/16 in the panic window
    # By 146 s the panic window is calm; the last look above the threshold keeps it a minute more.
    assert at[160] == 20
    assert at[318] == 2


def test_an_hpa_on_cpu_sees_nothing_of_an_engine() -> None:
    # 0.05 + 0.22 of a pod's request, all busy: 27 % of 80 %
    busy = Store(a_cpu=0.27)
    assert play("hpa-cpu80", busy, until_s=330, ready=6)[-1] == 3  # ceil(6 x 27/80), 2.03


def test_an_hpa_on_gpu_busy_always_wants_more() -> None:
    assert play("hpa-gpu80", Store(a_gpu_busy=1.0), until_s=60) == [3, 4, 5, 7]  # x 1.25 each


def test_keda_goes_to_zero_after_its_cooldown_and_wakes_with_the_first() -> None:
    store = Store(in_flight=[(0, 16.0), (50, 0.0), (500, 1.0)])
    counts = play("inflight-16", store, until_s=540, low=0)
    at = {15 * index: count for index, count in enumerate(counts, 1)}
    assert at[330] == 1
    assert at[345] == 0  # at 45 s it saw the last activity, that of 35 s
    assert at[495] == 0
    assert at[510] == 1
    # An HPA's own metrics of pods cannot wake what has none.
    assert play("hpa-gpu80", Store(a_gpu_busy=1.0), until_s=60, ready=0, low=0) == [0] * 4

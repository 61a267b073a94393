"""The headroom and fragmentation tests, with the arithmetic beside them."""

from __future__ import annotations

import pytest

from tests.builders import a_replica, a_sample, a_state, a_variant
from wva_adapter.core.load import ModelLoad
from wva_adapter.core.policy import Policy
from wva_adapter.core.saturation import analyze_saturation, crosses, remember_peaks
from wva_adapter.core.snapshot import Phase, ReplicaSample, ReplicaState, VariantState

POLICY = Policy()


def analyzed(*states: VariantState, at_s: float = 0.0) -> ModelLoad:
    return analyze_saturation(states, remember_peaks(states, {}, POLICY), at_s, POLICY)


def test_little_spare_kv_cache_asks_for_one_more() -> None:
    # spare 0.80 - 0.72 = 0.08 on average, below 0.10
    load = analyzed(a_state(usage=[0.70, 0.74]))
    assert (load.shortage, load.surplus) == (1, 0)
    assert load.binding.startswith("spare KV cache 8 % < 10 % over 2 unsaturated of 2 seen")


def test_little_spare_queue_asks_for_one_more() -> None:
    # spare 5 - 3 = 2, below 3; KV cache has room
    load = analyzed(a_state(usage=0.2, queue=3))
    assert load.shortage == 1
    assert "spare queue 2.0 < 3" in load.binding


def test_enough_spare_asks_for_nothing() -> None:
    load = analyzed(a_state(usage=[0.5, 0.69]))
    # spare mean(0.30, 0.11) = 0.205; 1.19 spread over one replica does not fit
    assert (load.shortage, load.surplus) == (0, 0)
    assert "does not fit 1 of 2" in load.binding


def test_saturated_replicas_do_not_count_as_spare() -> None:
    # the one that is full by queue is left out; the other has 0.80 - 0.60 = 0.20 spare
    full = a_replica("r0", usage=0.5, queue=9)
    load = analyzed(a_state(replicas=[full, a_replica("r1", usage=0.6)]))
    assert load.shortage == 0


def test_when_all_are_saturated_one_more_is_asked_for() -> None:
    load = analyzed(a_state(usage=[0.9, 0.95]))
    assert load.shortage == 1
    assert load.binding.startswith("nothing spare: all 2 seen are saturated")


def test_replicas_on_their_way_count_as_empty_ones() -> None:
    # 0.80 - 0.75 = 0.05 alone; with one empty one mean(0.05, 0.80) = 0.425
    assert analyzed(a_state(usage=[0.75], spec=1)).shortage == 1
    assert analyzed(a_state(usage=[0.75], spec=2)).shortage == 0


def test_down_is_safe_when_the_load_of_all_fits_the_rest() -> None:
    # 0.9 spread over two: 0.45, spare 0.35; over one: 0.9, nothing spare
    load = analyzed(a_state(usage=[0.3, 0.3, 0.3]))
    assert load.surplus == 1
    assert "fits 2 of 3" in load.binding


def test_the_load_of_saturated_replicas_must_fit_the_rest_too() -> None:
    # without the full one 0.2 would fit one replica (spare 0.6); with it 0.85 + 0.2 = 1.05 does not
    load = analyzed(a_state(usage=[0.85, 0.1, 0.1]))
    assert load.surplus == 0


def test_queued_requests_keep_replicas() -> None:
    # 3 x 1 queued over two replicas is 1.5 each, spare 3.5; over one 3, spare 2 < 3
    assert analyzed(a_state(usage=[0.0] * 3, queue=1)).surplus == 1


def test_a_single_replica_never_goes() -> None:
    assert analyzed(a_state(usage=[0.0])).surplus == 0


def test_an_unseen_replica_counts_as_full_when_room_is_sought() -> None:
    unseen = ReplicaState("r9", Phase.READY, problem="timed out after 2 s")
    # (0.1 + 0.1 + 0.80) spread over one is too much
    load = analyzed(
        a_state(replicas=[a_replica("r0", usage=0.1), a_replica("r1", usage=0.1), unseen])
    )
    assert load.surplus == 0
    assert "1 of 3 ready replicas unseen" in load.binding


def test_an_unseen_replica_counts_with_its_last_page() -> None:
    gone = a_replica("r9", usage=0.1, problem="connection refused")
    load = analyzed(
        a_state(replicas=[a_replica("r0", usage=0.1), a_replica("r1", usage=0.1), gone])
    )
    assert load.surplus == 1  # 0.3 fits one replica


def test_a_replica_that_was_not_asked_yet_counts_as_on_its_way() -> None:
    # ready a moment ago: mean(0.05, 0.80) = 0.425 is enough, and what is new is not ordered twice
    new = ReplicaState("r1", Phase.READY)
    load = analyzed(a_state(replicas=[a_replica("r0", usage=0.75), new]))
    assert (load.shortage, load.surplus) == (0, 0)
    assert load.supply == 2
    failed = ReplicaState("r1", Phase.READY, problem="connection refused")
    assert analyzed(a_state(replicas=[a_replica("r0", usage=0.75), failed])).shortage == 1


def test_nothing_seen_asks_for_nothing() -> None:
    unseen = ReplicaState("r9", Phase.READY, problem="timed out after 2 s")
    load = analyzed(a_state(replicas=[unseen]))
    assert (load.demand, load.shortage, load.surplus, load.saturation) == (None, 0, 0, None)


def test_a_sleeping_engine_is_neither_supply_nor_demand() -> None:
    asleep = a_replica("r1", usage=0.0, awake=False)
    load = analyzed(a_state(replicas=[a_replica("r0", usage=0.75), asleep]))
    assert load.supply == 1
    assert load.shortage == 1  # the sleeping one's 0.80 spare does not help
    assert "1 asleep" in load.binding


def test_an_engine_that_never_served_is_seen_and_idle() -> None:
    fresh = ReplicaState(
        "r1",
        sample=ReplicaSample(
            replica="r1", at_s=0, prompt_tokens_total=0, generation_tokens_total=0, awake=True
        ),
    )
    load = analyzed(a_state(replicas=[a_replica("r0", usage=0.75), fresh]))
    # mean(0.05, 0.80) = 0.425 is enough
    assert load.shortage == 0
    assert "unseen" not in load.binding


def test_an_engine_that_served_and_lacks_its_gauges_is_unseen() -> None:
    load = analyzed(a_state(replicas=[a_replica("r0"), a_replica("r1", usage=None)]))
    assert "1 of 2 ready replicas unseen" in load.binding


def test_usage_and_queue_are_the_peaks_of_a_minute() -> None:
    peaks = remember_peaks([a_state(usage=[0.75], at_s=0)], {}, POLICY)
    for at_s in range(5, 60, 5):
        peaks = remember_peaks([a_state(usage=[0.1], at_s=at_s)], peaks, POLICY)
    state = a_state(usage=[0.1], at_s=60)
    assert analyze_saturation([state], remember_peaks([state], peaks, POLICY), 60, POLICY).shortage
    later = a_state(usage=[0.1], at_s=61)
    peaks = remember_peaks([later], peaks, POLICY)
    assert not analyze_saturation([later], peaks, 61, POLICY).shortage


def test_the_last_page_counts_however_short_the_window_is() -> None:
    policy = Policy(peak_window_s=0)
    state = a_state(usage=[0.75], at_s=0)
    peaks = remember_peaks([state], {}, policy)
    assert analyze_saturation([state], peaks, 4.0, policy).shortage == 1


def test_peaks_of_replicas_that_are_gone_are_forgotten() -> None:
    peaks = remember_peaks([a_state(usage=[0.9])], {}, POLICY)
    empty = a_state(ready=0)
    assert remember_peaks([empty], peaks, POLICY) == {empty.variant.key: {}}


def test_demand_and_supply_are_told_in_replicas() -> None:
    # 0.4 / 0.8 + 0.6 / 0.8 = 1.25 replicas at their threshold, of 2
    load = analyzed(a_state(usage=[0.4, 0.6]))
    assert load.demand == pytest.approx(1.25)
    assert load.saturation == pytest.approx(0.625)


def test_both_variants_of_a_model_share_its_load() -> None:
    h100 = a_variant("llama-h100", cost=3.9)
    load = analyzed(a_state(usage=[0.75]), a_state(h100, usage=[0.75]))
    assert load.supply == 2
    assert load.shortage == 1


def test_becoming_saturated_is_an_onset_and_staying_so_is_not() -> None:
    calm, full = a_sample(usage=0.2), a_sample(usage=0.85)
    assert crosses(calm, full, POLICY)
    assert crosses(None, full, POLICY)
    assert not crosses(full, full, POLICY)
    assert not crosses(full, calm, POLICY)
    assert crosses(calm, a_sample(queue=5), POLICY)

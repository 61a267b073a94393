"""What is never lost and never made: requests, tokens, pod seconds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.builders import a_hardware, finish
from tests.sim.test_world import Script, a_scenario
from wva_adapter.sim.clients import Fate, Kind, Traffic
from wva_adapter.sim.replica import Replica
from wva_adapter.sim.request import Request
from wva_adapter.sim.scenarios import Loss, Restart, Scenario
from wva_adapter.sim.world import _World

_REQUESTS = st.lists(
    st.tuples(st.floats(0, 60), st.integers(1, 2500), st.integers(1, 300), st.integers(0, 2)),
    max_size=60,
)
_KINDS = (Kind(), Kind(hit_share=0.7), Kind(due_s=70.0))


@st.composite
def settings_and_counts(draw: st.DrawFn) -> tuple[Scenario, dict[float, int]]:
    """Return a fleet with every trouble that there is, and the counts that are asked of it."""
    requests = sorted(draw(_REQUESTS))
    traffic = Traffic(
        np.array([r[0] for r in requests], float),
        np.array([r[1] for r in requests], int),
        np.array([r[2] for r in requests], int),
        np.array([r[3] for r in requests], int),
    )
    is_apart = draw(st.booleans())
    setting = a_scenario(
        hardware=a_hardware(kv_cache_tokens=2500, attention_s=1e-8, kv_read_s_per_token=1e-6),
        timeout_s=draw(st.sampled_from([1, 4, 90])),
        grace_s=draw(st.floats(0, 5)),
        when_saturated=draw(st.sampled_from(["pass", "shed", "queue"])),
        removal_order=draw(st.sampled_from(["newest", "random", "deletion-cost"])),
        concurrency=draw(st.one_of(st.none(), st.integers(1, 5))),
        retries=draw(st.integers(0, 3)),
        deregistration_lag_s=draw(st.sampled_from([0, 2])),
        losses=tuple(
            Loss(at_s, "v", 0.5, back_s=back_s)
            for at_s, back_s in draw(
                st.lists(st.tuples(st.floats(1, 80), st.sampled_from([0.0, 9.0])), max_size=2)
            )
        ),
        restarts=tuple(
            Restart(at_s, "v", 0.5) for at_s in draw(st.lists(st.floats(1, 80), max_size=2))
        ),
        kinds=_KINDS,
        batch_workers=draw(st.integers(0, 8)),
        start=draw(st.integers(0, 3)),
        transfer_s=draw(st.sampled_from([0.0, 0.5])),
        draw=lambda times, sizes: traffic,
    )
    if is_apart:
        first = replace(setting.fleet[0], role="prefill")
        other = replace(first, name="w", role="decode", start_replicas=draw(st.integers(0, 3)))
        setting = replace(setting, fleet=(first, other))
    counts = draw(st.dictionaries(st.integers(1, 60).map(float), st.integers(1, 6), max_size=8))
    return setting, counts


@given(settings_and_counts(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_what_came_is_finished_failed_or_present_at_every_moment(
    given: tuple[Scenario, dict[float, int]], leap: bool
) -> None:
    setting, counts = given
    looked = 0

    def look(at_s: float) -> None:
        nonlocal looked
        looked += 1
        came = int((world._traffic.arrived_s < at_s).sum())
        ended = int((world._fates.fates != Fate.PRESENT).sum())
        backlog = len(world._backlog.waiting) + len(world._backlog.sent)
        assert came == ended + world._present + backlog + len(world._held)

    world = _World(setting, lambda stage: Script(counts), 0, None, leap, look)
    outcome = world.run()

    assert looked == 20  # every 5 s of 100
    fates, kinds = world._fates.fates, world._traffic.kinds
    assert kinds is not None
    online = fates[kinds != 2]
    never_sent = int(np.isnan(world._fates.sent_s[kinds != 2]).sum())
    assert outcome.requests == len(online) - never_sent
    finished = int((online == Fate.FINISHED).sum())
    assert outcome.requests == finished + sum(outcome.failures.values())
    # The due time lies before the end, so nothing offline is left.
    assert not (fates[kinds == 2] == Fate.PRESENT).any()
    assert outcome.offline_in_time == int((fates[kinds == 2] == Fate.FINISHED).sum())
    for group in world._groups:
        for pod in (*group.pods, *group.gone):
            assert pod.in_flight == 0
            assert pod.unprefilled_tokens == 0


@given(settings_and_counts())
@settings(max_examples=100, deadline=None)
def test_the_bill_is_the_sum_of_the_lives_of_pods(
    given: tuple[Scenario, dict[float, int]],
) -> None:
    setting, counts = given
    world = _World(setting, lambda stage: Script(counts), 0, None, True, None)
    outcome = world.run()

    every = [pod for group in world._groups for pod in (*group.pods, *group.gone)]
    pods = [pod for pod in every if pod.scheduled]
    assert len({pod.name for pod in pods}) == len(pods)
    lived_s = [max(0.0, min(pod.ended_s, 100.0) - pod.created_s) for pod in pods]
    assert outcome.replica_hours * 3600 == pytest.approx(sum(lived_s))
    assert outcome.usd == pytest.approx(sum(lived_s))  # 1 $ for a second


@given(
    st.lists(
        st.tuples(
            st.floats(0, 3),
            st.integers(1, 900),
            st.integers(1, 60),
            st.floats(0, 0.9),
            st.one_of(st.none(), st.floats(0, 3)),
        ),
        min_size=1,
        max_size=40,
    ),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_an_engine_counts_each_token_once_whatever_becomes_of_its_request(
    arrivals: list[tuple[float, int, int, float, float | None]], leap: bool
) -> None:
    replica = Replica(a_hardware(kv_cache_tokens=1000), max_num_seqs=16, leap=leap)
    events: list[tuple[float, int, Request]] = []
    for at_s, prompt, output, share, patience_s in arrivals:
        request = Request(prompt, output, int(share * prompt))
        events.append((at_s, 0, request))
        if patience_s is not None:
            events.append((at_s + patience_s, 1, request))
    finished: list[Request] = []
    for at_s, what, request in sorted(events, key=lambda event: event[:2]):
        while (due_s := replica.next_event_s()) is not None and due_s <= at_s:
            finished += replica.advance(due_s).finished
        if what:
            replica.cancel(request, at_s)
        else:
            replica.submit(request, at_s)
        every = [event[2] for event in events if event[1] == 0]
        made = sum(replica.generated(r) for r in every)
        assert replica.counters.generation_tokens == made
    finished += finish(replica)

    every = [event[2] for event in events if event[1] == 0]
    counters = replica.counters
    assert counters.generation_tokens == sum(replica.generated(r) for r in every)
    assert all(replica.generated(r) == r.output_tokens for r in finished)
    started = [r for r in every if r.first_token_s is not None]
    assert counters.prompt_tokens == sum(r.prompt_tokens for r in started)
    assert counters.cached_prompt_tokens == sum(r.cached_tokens for r in started)
    assert counters.finished == len(finished)
    assert replica.kv_tokens == 0
    assert replica.present() == ()

"""Where what was learned cannot be right, more replicas come: never fewer, and never many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.test_demand import OUTPUT, Fleet, only, said
from wva_adapter.core.decision import Plan
from wva_adapter.core.snapshot import ReplicaState
from wva_adapter.core.strain import MOST, Strain


@dataclass
class Timed(Fleet):
    """A fleet whose latencies are what a test says."""

    itl_s: float = 0.020
    ttft_s: float = 0.2
    sums: dict[str, tuple[float, float, float]] = field(default_factory=dict)

    def cycle(self, rate: float, *, unseen: Sequence[str] = ()) -> Plan:
        each = rate * 5.0 / self.ready
        for i in range(self.ready):
            n, first_s, token_s = self.sums.get(f"r{i}", (0.0, 0.0, 0.0))
            self.sums[f"r{i}"] = (
                n + each,
                first_s + each * self.ttft_s,
                token_s + each * OUTPUT * self.itl_s,
            )
        return super().cycle(rate, unseen=unseen)

    def _replica(self, name: str, unseen: bool) -> ReplicaState:
        state = super()._replica(name, unseen)
        _, first_s, token_s = self.sums.get(name, (0.0, 0.0, 0.0))
        if state.sample is None or unseen:
            return state
        return replace(state, sample=replace(state.sample, ttft_sum_s=first_s, itl_sum_s=token_s))


def share(fleet: Fleet) -> float:
    return next(iter(fleet.memory.models.values())).strain.at(fleet.at_s)


def test_late_first_tokens_while_the_fleet_fits_make_replicas_count_for_less() -> None:
    fleet = Timed()
    before = only(fleet.cycles(4.0, 300)).desired
    fleet.ttft_s = 2.5  # the SLO is 2 s
    fleet.cycle(4.0)
    assert share(fleet) == 0  # one cycle proves nothing
    fleet.cycle(4.0)
    assert share(fleet) == pytest.approx(1 - 2 / 2.5)
    decided = fleet.cycle(4.0)
    words = "replicas count for 20% less, since clients waited longer than the SLO"
    assert words in said(decided)
    assert only(decided).desired >= before


def test_the_guard_never_takes_more_than_its_share_and_fades() -> None:
    fleet = Timed(ttft_s=60.0)
    fleet.cycles(4.0, 300)
    assert 0 < share(fleet) <= MOST
    fleet.ttft_s = 0.2
    fleet.cycles(4.0, 300)
    assert share(fleet) <= MOST / 2 + 1e-9  # it halves in five minutes
    fleet.cycles(4.0, 3600)
    assert share(fleet) == 0


def test_while_more_is_asked_for_anyhow_the_guard_is_silent() -> None:
    fleet = Timed(ttft_s=5.0, waiting=40.0)
    fleet.cycles(4.0, 60)
    assert share(fleet) == 0  # requests wait: a backlog is ordered for, and nobody goes


def test_latency_within_the_slo_strains_nobody() -> None:
    fleet = Timed(itl_s=0.059, ttft_s=1.9)
    fleet.cycles(4.0, 300)
    assert share(fleet) == 0


def test_an_unseen_cycle_changes_nothing_but_the_time() -> None:
    strain = Strain().after(0, 1.5, fits=True).after(5, None, fits=True).after(10, 1.5, fits=True)
    assert strain.share == pytest.approx(1 / 3) or strain.share == MOST


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.1, 100), st.none() | st.floats(0, 50), st.booleans()), max_size=40
    )
)
def test_the_share_stays_in_its_bounds_whatever_latency_does(
    history: list[tuple[float, float | None, bool]],
) -> None:
    strain, at_s = Strain(), 0.0
    for step_s, ratio, fits in history:
        before, at_s = strain, at_s + step_s
        strain = strain.after(at_s, ratio, fits=fits)
        assert 0 <= strain.share <= MOST
        if strain.share > before.share:
            assert ratio is not None
            assert ratio > 1
            assert fits


@settings(max_examples=500, deadline=None)
@given(st.floats(0.5, 40), st.floats(0.05, 20), st.integers(2, 12))
def test_late_clients_never_make_it_fewer_replicas(rate: float, ttft_s: float, cycles: int) -> None:
    """The same history, once with clients in time and once with late ones."""
    in_time, late = Timed(ttft_s=0.05), Timed(ttft_s=max(0.05, ttft_s))
    for _ in range(cycles):
        assert only(late.cycle(rate)).desired >= only(in_time.cycle(rate)).desired


def contradict(fleet: Timed, number: int) -> Plan:
    """Let a hundred times the load answer a hundred times as fast, by turns.

    As many are in the batch each time, so no four times explain it.
    """
    fleet.itl_s, rate = (0.004, 50.0) if number % 2 else (0.4, 0.5)
    return fleet.cycle(rate)


def test_where_no_times_explain_what_is_seen_tokens_decide_and_say_so() -> None:
    fleet = Timed()
    for number in range(60):
        decided = contradict(fleet, number)
    (load,) = decided.loads
    assert load.analysis == "tokens"
    assert "off what its learned times say, so tokens decide" in said(decided)
    # What was learned goes on being tested: steady answers make the times good again.
    fleet.itl_s = 0.020
    decided = fleet.cycles(4.0, 3600)
    assert decided.loads[0].analysis == "demand"


def test_the_change_of_analysis_takes_no_replica_at_once() -> None:
    fleet = Timed(ready=6, spec=6)
    fleet.cycles(4.0, 10)
    for number in range(60):
        decided = contradict(fleet, number)
        if decided.loads[0].analysis == "tokens":
            break
    assert decided.loads[0].analysis == "tokens"
    assert only(decided).desired == 6

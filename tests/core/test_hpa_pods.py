"""Metrics that each pod has: what is filled in for pods that say nothing, arithmetic by hand."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from wva_adapter.core.hpa import HpaPod, Proposal, Scale, Tolerances
from wva_adapter.core.hpa_pods import PodsAverage, UsageSample, Utilization

RUNNING = HpaPod("a"), HpaPod("b"), HpaPod("c")
PENDING = HpaPod("p", "pending", ready=False)


def of_pods(values: Mapping[str, int], *pods: HpaPod, target: int = 1000) -> int | None:
    scale = Scale(len(pods), len(pods), len(pods), pods)
    return PodsAverage("queue", values, target).propose(0, scale, Tolerances()).replicas


def test_all_pods_measured_is_their_mean_against_the_target() -> None:
    # mean 2.0 of 1: 3 x 2
    assert of_pods({"a": 2000, "b": 3000, "c": 1000}, *RUNNING) == 6
    # mean 0.5: ceil(1.5)
    assert of_pods({"a": 500, "b": 500, "c": 500}, *RUNNING) == 2
    # mean 1.1, at the tolerance
    assert of_pods({"a": 1100, "b": 1100, "c": 1100}, *RUNNING) == 3


def test_the_mean_loses_its_fraction() -> None:
    # 2 x 1100 + 1102 = 3302, / 3 = 1100.67, cut to 1100: inside the tolerance
    assert of_pods({"a": 1100, "b": 1100, "c": 1102}, *RUNNING) == 3
    assert of_pods({"a": 1100, "b": 1100, "c": 1103}, *RUNNING) == 4  # 1101: ceil(3.303)


def test_on_the_way_up_pending_pods_count_as_idle() -> None:
    # mean of a, b, c is 2 (without p: 6 replicas); with p at 0 it is 6/4 = 1.5 over 4 pods: 6
    assert of_pods({"a": 2000, "b": 2000, "c": 2000}, *RUNNING, PENDING) == 6
    # mean 1.4; with p 1.05: inside the tolerance, 4 stay (3 x 1.4 = 4.2 would have been 5)
    assert of_pods({"a": 1400, "b": 1400, "c": 1400}, *RUNNING, PENDING) == 4
    # mean 1.2; with two pending 0.72 would turn the direction: 5 stay
    second = HpaPod("q", "pending", ready=False)
    assert of_pods({"a": 1200, "b": 1200, "c": 1200}, *RUNNING, PENDING, second) == 5


def test_on_the_way_down_pending_pods_are_left_out() -> None:
    # mean 0.5 over the 3 that run: ceil(1.5) = 2 of 4
    assert of_pods({"a": 500, "b": 500, "c": 500}, *RUNNING, PENDING) == 2


def test_pods_without_a_sample_count_as_idle_up_and_as_at_the_target_down() -> None:
    # up: a and b at 3, c unknown as 0: mean 2 over 3 pods
    assert of_pods({"a": 3000, "b": 3000}, *RUNNING) == 6
    # down: a and b at 0.2, c as 1: mean 0.466 -> ceil(3 x 0.466) = 2
    assert of_pods({"a": 200, "b": 200}, *RUNNING) == 2
    # exactly at the target nothing is filled in, and nothing changes
    assert of_pods({"a": 1000, "b": 1000}, *RUNNING) == 3


def test_pods_on_their_way_out_count_for_nothing() -> None:
    leaving, failed = HpaPod("b", "terminating"), HpaPod("c", "failed")
    assert of_pods({"a": 2000, "b": 9000, "c": 9000}, HpaPod("a"), leaving, failed) == 2


def test_a_running_pod_that_is_not_ready_counts_when_it_reports() -> None:
    loading = HpaPod("c", "running", ready=False)
    assert of_pods({"a": 2000, "b": 2000, "c": 2000}, *RUNNING[:2], loading) == 6


def test_without_pods_or_samples_there_is_no_proposal() -> None:
    assert PodsAverage("queue", {}, 1000).propose(0, Scale(1, 1, 1), Tolerances()) == Proposal(
        None, "queue: the target has no pods"
    )
    assert of_pods({}, *RUNNING) is None
    assert of_pods({"p": 1000}, PENDING) is None
    failing = PodsAverage("queue", {}, 1000, problem="no metrics returned")
    assert failing.propose(0, Scale(1, 1, 1, RUNNING[:1]), Tolerances()).why == (
        "queue: no metrics returned"
    )


def of_cpu(
    samples: Mapping[str, UsageSample], *pods: HpaPod, target: int = 80, now_s: float = 1000.0
) -> int | None:
    scale = Scale(len(pods), len(pods), len(pods), pods)
    metric = Utilization("cpu", samples, request_milli=1000, target_percent=target)
    return metric.propose(now_s, scale, Tolerances()).replicas


def old(name: str, *, ready: bool = True, changed_s: float = 60.0) -> HpaPod:
    """A pod that started at 0 and became what it is at ``changed_s``."""
    return HpaPod(name, "running", ready, started_at_s=0.0, ready_changed_at_s=changed_s)


def used(**milli: int) -> dict[str, UsageSample]:
    return {name: UsageSample(value) for name, value in milli.items()}


def test_utilization_is_a_whole_percentage_of_what_is_requested() -> None:
    pods = old("a"), old("b")
    assert of_cpu(used(a=800, b=1600), *pods) == 3  # 120 % of 80 %: 2 x 1.5
    # 1759 of 2000 is 87.95 %, cut to 87: 1.0875 of the target, inside the tolerance
    assert of_cpu(used(a=1759, b=0), *pods) == 2
    assert of_cpu(used(a=1780, b=0), *pods) == 3  # 89 %: 1.1125, ceil(2.225)


def test_the_cpu_of_a_young_pod_counts_once_it_is_ready_for_a_whole_window() -> None:
    # At 100 s, started at 0: within the first 300 s.
    young = HpaPod("b", "running", True, started_at_s=0.0, ready_changed_at_s=90.0)
    fresh = {"a": UsageSample(1200), "b": UsageSample(1200, at_s=100.0, window_s=30.0)}
    # b's sample reaches back before it was ready: b is taken as idle. a alone: 1.5;
    # with b at 0: 60 %/80 % = 0.75 would turn the direction, so 2 stay
    assert of_cpu(fresh, old("a", changed_s=0), young, now_s=100.0) == 2
    later = {"a": UsageSample(1200), "b": UsageSample(1200, at_s=121.0, window_s=30.0)}
    assert of_cpu(later, old("a", changed_s=0), young, now_s=121.0) == 3  # 2 x 1.5


@pytest.mark.parametrize(
    ("changed_s", "reached"),
    [
        # unready 10 s after its start: it never was ready, and counts as idle on the way up:
        # 400 % of 3 pods is 133 %, 1.6625 of the target: ceil(4.99)
        (10.0, 5),
        # it was ready once, so what it uses counts: 200 % of 80 %, ceil(3 x 2.5)
        (200.0, 8),
    ],
)
def test_an_unready_pod_is_taken_as_idle_only_if_it_never_was_ready(
    changed_s: float, reached: int
) -> None:
    unready = old("b", ready=False, changed_s=changed_s)
    assert of_cpu(used(a=2000, b=2000, c=2000), old("a"), unready, old("c")) == reached


def test_a_pod_without_a_start_or_a_condition_is_unready() -> None:
    assert of_cpu(used(a=1000), HpaPod("a", "running", True)) is None


def test_other_resources_ask_no_pod_whether_it_is_ready() -> None:
    pod = HpaPod("a", "running", ready=False)
    metric = Utilization("memory", used(a=1600), request_milli=1000, target_percent=80, cpu=False)
    assert metric.propose(0, Scale(1, 1, 0, (pod,)), Tolerances()).replicas == 2


def test_unmeasured_pods_count_as_their_whole_request_down_whatever_the_target() -> None:
    # target 50 %: a at 10 %; b as 100 %, not as 50: (10 + 100)/2 = 55 % is above the target, which
    # would turn the direction, so 2 stay. As 50 % it would have been 30/50 of 2 pods: 2.
    assert of_cpu(used(a=100), old("a"), old("b"), target=50) == 2
    # three of four measured at 10 %: (30 + 100)/4 = 32 % of 50: 0.64 x 4 = 2.56
    assert of_cpu(used(a=100, b=100, c=100), old("a"), old("b"), old("c"), old("d"), target=50) == 3

"""ScaledObjects as KEDA's API gives them, and the variants that they name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.collect.test_manifests import Document, a_metric, an_hpa, described, the_view
from wva_adapter.core.fleet import Reader, VariantKey

URL = "https://wva-adapter.wva-system.svc/v1/desired/chat/llama-a100"
QUERY = 'wva_desired_replicas{variant_name="llama-a100",exported_namespace="chat"}'
_ANNOTATIONS = {"cost": "variant-cost"}
EXACT: Document = {"scaleUp": {"tolerance": "0"}, "scaleDown": {"tolerance": "0"}}


def over_http(metric_type: str | None = None, **metadata: str) -> Document:
    """A ``metrics-api`` trigger, as the README has it where nothing else is said."""
    told = {"url": URL, "valueLocation": "desiredReplicas", "targetValue": "1", **metadata}
    return _trigger("metrics-api", told, metric_type)


def by_query(metric_type: str | None = None, **metadata: str) -> Document:
    """A ``prometheus`` trigger, as the README has it where nothing else is said."""
    told = {"serverAddress": "https://wva", "query": QUERY, "threshold": "1", **metadata}
    return _trigger("prometheus", told, metric_type)


def _trigger(kind: str, metadata: dict[str, str], metric_type: str | None) -> Document:
    # KEDA's API server leaves an absent metricType out.
    typed = {} if metric_type is None else {"metricType": metric_type}
    return {"type": kind, "metadata": metadata, **typed}


def a_scaled_object(
    name: str = "llama-a100",
    *triggers: Document,
    behavior: Document | None = None,
    spec: Document | None = None,
    target: Document | None = None,
    **annotations: str,
) -> Document:
    """A managed one; ``cost="2.5"`` sets ``llm-d.ai/variant-cost``."""
    document = an_hpa(name, uid=f"so-{name}")
    for key, value in annotations.items():
        document["metadata"]["annotations"][f"llm-d.ai/{_ANNOTATIONS.get(key, key)}"] = value
    advanced = {"horizontalPodAutoscalerConfig": {"behavior": behavior or {}}}
    document["spec"] = {
        "scaleTargetRef": target or {"name": "llama-a100"},
        "triggers": list(triggers) or [over_http()],
        "advanced": advanced,
        **(spec or {}),
    }
    return document


def made_by_keda(name: str = "llama-a100", *, behavior: Document | None = None) -> Document:
    """The HPA that KEDA makes of a ScaledObject: with its annotations, and another metric."""
    metric = a_metric({"type": "AverageValue", "averageValue": "1"}, name="s0-metric-api-desired")
    spec = {"metrics": [metric], "behavior": behavior or {}}
    owner = {"kind": "ScaledObject", "name": name}
    return an_hpa(f"keda-hpa-{name}", target="llama-a100", owners=[owner], spec=spec)


def reader_of(*triggers: Document, **scaled: Any) -> Reader | None:
    hpas = scaled.pop("hpas", [])
    scaled_object = a_scaled_object("llama-a100", *triggers, **scaled)
    return the_view(scaled_objects=[scaled_object], hpas=hpas).variant.reader


def problem_of(*triggers: Document, **scaled: Any) -> str:
    """The one thing that is wrong; nothing is decided while it is."""
    result = described(scaled_objects=[a_scaled_object("llama-a100", *triggers, **scaled)])
    (view,) = result.views
    assert view.spec_replicas is None
    (problem,) = result.problems
    assert view.problem == problem
    return problem


def test_a_managed_scaled_object_and_its_deployment_are_a_variant() -> None:
    spec = {"minReplicaCount": 2, "maxReplicaCount": 7}
    view = the_view(scaled_objects=[a_scaled_object(spec=spec, cost="2.5")])
    assert view.variant.key == VariantKey("chat", "llama-a100")
    assert view.variant.target == "Deployment llama-a100"  # KEDA's default kind
    assert view.variant.cost_per_h == 2.5
    assert (view.variant.min_replicas, view.variant.max_replicas) == (2, 7)
    assert view.spec_replicas == 3


def test_one_without_the_annotation_is_none_of_ours() -> None:
    unmanaged = a_scaled_object()
    unmanaged["metadata"]["annotations"] = {}
    result = described(scaled_objects=[unmanaged])
    assert (result.views, result.problems) == ((), ())


@pytest.mark.parametrize(
    ("spec", "bounds"),
    [
        ({}, (0, 100)),  # absent numbers mean what KEDA means by them
        ({"minReplicaCount": 0, "maxReplicaCount": 4}, (0, 4)),
        ({"minReplicaCount": 3, "idleReplicaCount": 0}, (0, 100)),
    ],
)
def test_the_bounds_are_kedas_and_what_may_idle_may_go_to_zero(
    spec: Document, bounds: tuple[int, int]
) -> None:
    variant = the_view(scaled_objects=[a_scaled_object(spec=spec)]).variant
    assert (variant.min_replicas, variant.max_replicas) == bounds


def test_the_variant_is_called_as_the_scaled_object_says_and_scales_what_it_names() -> None:
    scaled = a_scaled_object(
        "so",
        by_query(query=QUERY.replace("llama-a100", "premium")),
        target={"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "llama"},
        variant="premium",
    )
    (view,) = described(scaled_objects=[scaled]).views
    assert view.variant.key == VariantKey("chat", "premium")
    assert view.variant.target == "StatefulSet llama"


@pytest.mark.parametrize("trigger", [over_http(), by_query()], ids=["metrics-api", "prometheus"])
def test_it_reads_the_count_itself_through_either_trigger(trigger: Document) -> None:
    assert reader_of(trigger) == Reader(
        "ScaledObject chat/llama-a100", "AverageValue", 1.0, 0.1, 0.1, shaped=False
    )


def test_the_hpa_that_keda_made_tells_the_tolerance_and_is_no_variant_of_its_own() -> None:
    wished: Document = {"scaleUp": {"tolerance": "50m"}}
    before = reader_of(behavior=wished)
    assert before is not None
    assert (before.tolerance_up, before.tolerance_down) == (0.05, 0.1)

    after = reader_of(behavior=wished, hpas=[made_by_keda(behavior=EXACT)])
    assert after is not None
    assert (after.tolerance_up, after.tolerance_down) == (0.0, 0.0)

    other = reader_of(behavior=wished, hpas=[made_by_keda("another", behavior=EXACT)])
    assert other == before


@pytest.mark.parametrize(
    "trigger",
    [
        {"type": "cpu", "metadata": {"value": "60"}},
        over_http(url="https://elsewhere/api/queue"),
        by_query(query="sum(vllm:num_requests_waiting)"),
    ],
)
def test_one_that_reads_something_else_is_no_reader(trigger: Document) -> None:
    assert reader_of(trigger) is None
    assert reader_of(trigger, over_http()) is not None


def test_what_a_formula_makes_of_the_count_is_unknown_so_it_is_no_reader() -> None:
    modifiers = {"scalingModifiers": {"formula": "a * 2", "target": "1"}}
    assert reader_of(over_http(targetValue="7"), spec={"advanced": modifiers}) is None


def test_a_target_other_than_1_is_named_and_nothing_is_decided() -> None:
    assert problem_of(over_http(targetValue="2")) == (
        "ScaledObject chat/llama-a100: trigger metrics-api: targetValue is '2', want '1': "
        "it divides the count that is read"
    )
    assert "trigger prometheus: threshold is '', want '1'" in problem_of(by_query(threshold=""))


def test_a_value_target_is_named_since_counts_would_run_away() -> None:
    assert problem_of(by_query("Value")) == (
        "ScaledObject chat/llama-a100: trigger prometheus: metricType is Value, want AverageValue"
    )


@pytest.mark.parametrize(
    "trigger", [over_http(activationTargetValue="1"), by_query(activationThreshold="1")]
)
def test_an_activation_that_takes_counts_for_idle_is_named(trigger: Document) -> None:
    problem = problem_of(trigger)
    assert "is '1', want '0': counts up to it would be taken for idle" in problem


def test_an_activation_below_1_takes_no_count_for_idle() -> None:
    assert reader_of(over_http(activationTargetValue="0.5")) is not None


@pytest.mark.parametrize(
    "trigger",
    [
        over_http(url=URL.replace("llama-a100", "llama-h100")),
        by_query(query=QUERY.replace("llama-a100", "llama-h100")),
        by_query(query="wva_desired_replicas{namespace='chat', variant_name='llama-h100'}"),
    ],
)
def test_reading_the_count_of_another_variant_is_named(trigger: Document) -> None:
    problem = problem_of(trigger)
    assert problem.endswith("reads the count of chat/llama-h100, want that of chat/llama-a100")


def test_a_wrong_reading_takes_the_count_away_even_where_it_was_right_before() -> None:
    # The last good configuration says nothing about what is read now.
    good = described(scaled_objects=[a_scaled_object()])
    assert good.views[0].spec_replicas == 3
    (view,) = described(scaled_objects=[a_scaled_object("llama-a100", by_query("Value"))]).views
    assert view.spec_replicas is None
    wrong = [a_scaled_object("llama-a100", over_http(targetValue="2"))]
    (view,) = described(scaled_objects=wrong, before=good).views
    assert view.spec_replicas is None


@pytest.mark.parametrize("bounds", [{}, {"minReplicaCount": 2, "idleReplicaCount": 0}])
def test_a_fallback_of_none_is_named_where_the_target_may_be_switched_off(
    bounds: Document,
) -> None:
    none: Document = {"fallback": {"failureThreshold": 3, "replicas": 0}}
    result = described(scaled_objects=[a_scaled_object(spec={**bounds, **none})])
    (problem,) = result.problems
    assert problem == (
        "ScaledObject chat/llama-a100: fallback.replicas is 0, want a count, or no fallback: "
        "KEDA takes the first failed request for a count of 0"
    )
    assert [view.spec_replicas for view in result.views] == [3]

    some: Document = {"fallback": {"failureThreshold": 3, "replicas": 2}}
    for harmless in ({**bounds, **some}, {"minReplicaCount": 1, **none}):
        assert described(scaled_objects=[a_scaled_object(spec=harmless)]).problems == ()


@pytest.mark.parametrize("bounds", [{}, {"minReplicaCount": 2, "idleReplicaCount": 0}])
def test_a_cooldown_too_short_for_a_late_answer_is_named_where_the_target_may_be_switched_off(
    bounds: Document,
) -> None:
    result = described(scaled_objects=[a_scaled_object(spec={**bounds, "cooldownPeriod": 59})])
    (problem,) = result.problems
    assert problem == (
        "ScaledObject chat/llama-a100: cooldownPeriod is 59, want at least 60: KEDA may take an "
        "answer that comes too late for a count of 0"
    )
    for harmless in ({**bounds, "cooldownPeriod": 60}, {"minReplicaCount": 1, "cooldownPeriod": 0}):
        assert described(scaled_objects=[a_scaled_object(spec=harmless)]).problems == ()


def test_an_hpa_and_a_scaled_object_on_one_target_are_named() -> None:
    result = described(hpas=[an_hpa()], scaled_objects=[a_scaled_object("so")])
    (view,) = result.views
    assert view.variant.min_replicas == 1  # the HPA's
    (problem,) = result.problems
    assert problem == (
        "ScaledObject chat/so: names variant chat/llama-a100, as HorizontalPodAutoscaler "
        "chat/llama-a100 does; that one counts"
    )


@pytest.mark.parametrize("managed", ["hpa", "so"])
def test_another_autoscaler_on_the_target_is_named_though_it_is_none_of_ours(managed: str) -> None:
    hpa, scaled = an_hpa(), a_scaled_object("so")
    (scaled if managed == "hpa" else hpa)["metadata"]["annotations"] = {}
    result = described(hpas=[hpa], scaled_objects=[scaled])
    names = ["HorizontalPodAutoscaler chat/llama-a100", "ScaledObject chat/so"]
    ours, other = names if managed == "hpa" else reversed(names)
    (problem,) = result.problems
    assert problem == (
        f"{ours}: Deployment llama-a100 is scaled by {other} too, want one autoscaler: "
        "each undoes what the other does"
    )
    assert [view.spec_replicas for view in result.views] == [3]


def test_two_variants_on_one_target_are_told_of_once() -> None:
    named = a_scaled_object("so", over_http(url=URL.replace("llama-a100", "b")), variant="b")
    result = described(hpas=[an_hpa()], scaled_objects=[named])
    assert len(result.views) == 2
    (problem,) = result.problems
    assert "Deployment llama-a100 is scaled by ScaledObject chat/so too" in problem


def test_the_hpa_that_keda_made_is_no_rival_of_its_scaled_object() -> None:
    result = described(hpas=[made_by_keda()], scaled_objects=[a_scaled_object()])
    assert result.problems == ()

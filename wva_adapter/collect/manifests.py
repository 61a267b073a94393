"""Which variants the objects of a cluster describe."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from wva_adapter.collect.accelerators import (
    LABEL,
    accelerator_asked_for,
    accelerator_of_nodes,
    accelerators_per_replica,
)
from wva_adapter.collect.assemble import VariantView
from wva_adapter.collect.objects import Autoscaler, Behavior, Node, Pod, Workload
from wva_adapter.collect.pods import read_replica
from wva_adapter.core.fleet import Reader, Variant, VariantKey
from wva_adapter.errors import ConfigError
from wva_adapter.kube.meta import Meta, ObjectKey

MANAGED = "llm-d.ai/managed"
MODEL_ID = "llm-d.ai/model-id"
COST = "llm-d.ai/variant-cost"
VARIANT = "llm-d.ai/variant"
SERVED_METRIC = "wva_desired_replicas"
"""The metric by which a managed HPA reads the count."""

_DEFAULT_TOLERANCE = 0.1
"""kube-controller-manager's ``--horizontal-pod-autoscaler-tolerance``."""
_SUFFIXES = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([numkMGTPE]?)|[eE]([+-]?\d+))")


@dataclass(frozen=True, slots=True)
class Objects:
    """What is known of the cluster, each kind by namespace and name (nodes have no namespace)."""

    autoscalers: Mapping[ObjectKey, Autoscaler] = field(default_factory=dict)
    deployments: Mapping[ObjectKey, Workload] = field(default_factory=dict)
    stateful_sets: Mapping[ObjectKey, Workload] = field(default_factory=dict)
    pods: Mapping[ObjectKey, Pod] = field(default_factory=dict)
    nodes: Mapping[ObjectKey, Node] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Described:
    """What the objects describe.

    Attributes:
        views: The variants, each once, in the order of their keys.
        good: Of every HPA whose configuration was ever right, the last right one, by uid.
        problems: A sentence per thing that is wrong with a configuration.
    """

    views: tuple[VariantView, ...] = ()
    good: Mapping[str, Variant] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def describe(objects: Objects, good: Mapping[str, Variant]) -> Described:
    """Return the variants that the managed HPAs of the cluster name.

    An HPA whose configuration became wrong keeps its last good one. One that never had a good
    one is a variant without a count, so that whoever asks is told why.

    Args:
        good: ``good`` of the last time.
    """
    views: dict[VariantKey, VariantView] = {}
    owners: dict[VariantKey, str] = {}
    kept: dict[str, Variant] = {}
    problems: list[str] = []
    pods_of: dict[str, list[Pod]] = {}
    for pod in objects.pods.values():
        pods_of.setdefault(pod.metadata.namespace, []).append(pod)
    for _, hpa in sorted(objects.autoscalers.items()):
        if not _is_managed(hpa.metadata):
            continue
        title, key, uid = _title(hpa), variant_key(hpa), hpa.metadata.uid
        if key in views:
            problems.append(f"{title}: names variant {key}, as {owners[key]} does; that one counts")
            continue
        target, problem = _find_target(hpa, objects)
        pods = [] if target is None else _pods_of(target, pods_of.get(key.namespace, ()))
        nodes = [
            objects.nodes[place]
            for place in {ObjectKey("", pod.spec.node_name) for pod in pods}
            if place in objects.nodes
        ]
        try:
            variant = read_variant(hpa, target, nodes)
            if variant.accelerator is None and uid in good:
                # Without pods there are no nodes to tell; they will come back on what they had.
                variant = replace(variant, accelerator=good[uid].accelerator)
            kept[uid] = variant
        except ConfigError as error:
            problems.append(str(error))
            if uid in good:
                variant = kept[uid] = good[uid]
            else:
                target, problem = None, str(error)
                model_id = hpa.metadata.annotations.get(MODEL_ID, "")
                variant = Variant(key, model_id, target=_target_title(hpa))
        owners[key] = title
        views[key] = VariantView(
            variant=variant,
            # An absent number in the API means its default, which is 1 here.
            spec_replicas=None if target is None else _or_1(target.spec.replicas),
            status_replicas=None if target is None else target.status.replicas,
            replicas=tuple(read_replica(pod) for pod in pods),
            problem=problem,
        )
    return Described(tuple(views[key] for key in sorted(views)), kept, tuple(problems))


def _is_managed(meta: Meta) -> bool:
    made_by_keda = any(owner.kind == "ScaledObject" for owner in meta.owner_references) or (
        "scaledobject.keda.sh/name" in meta.labels
    )
    return meta.annotations.get(MANAGED) == "true" and not made_by_keda


def _title(hpa: Autoscaler) -> str:
    return f"HorizontalPodAutoscaler {hpa.metadata.namespace}/{hpa.metadata.name}"


def _target_title(hpa: Autoscaler) -> str:
    return f"{hpa.spec.scale_target_ref.kind} {hpa.spec.scale_target_ref.name}"


def _or_1(count: int | None) -> int:
    return 1 if count is None else count


def _find_target(hpa: Autoscaler, objects: Objects) -> tuple[Workload | None, str | None]:
    reference = hpa.spec.scale_target_ref
    kinds = {"Deployment": objects.deployments, "StatefulSet": objects.stateful_sets}
    if reference.kind not in kinds:
        return None, f"{_title(hpa)}: scales a {reference.kind}, want {' or '.join(kinds)}"
    place = ObjectKey(hpa.metadata.namespace, reference.name)
    target = kinds[reference.kind].get(place)
    if target is None:
        return None, f"{_title(hpa)}: {reference.kind} {reference.name} does not exist"
    return target, None


def _pods_of(target: Workload, pods: Iterable[Pod]) -> list[Pod]:
    """Return the pods that the workload's selector finds, without those that ended."""
    found = [
        pod
        for pod in pods
        if pod.status.phase not in ("Succeeded", "Failed")
        and target.spec.selector.matches(pod.metadata.labels)
    ]
    return sorted(found, key=lambda pod: pod.metadata.name)


def variant_key(hpa: Autoscaler) -> VariantKey:
    """Return who the variant is: the HPA's ``llm-d.ai/variant``, else the name of its target."""
    meta = hpa.metadata
    named = meta.annotations.get(VARIANT) or meta.labels.get(VARIANT)
    return VariantKey(meta.namespace, named or hpa.spec.scale_target_ref.name)


def read_variant(hpa: Autoscaler, target: Workload | None, nodes: Iterable[Node]) -> Variant:
    """Return the variant that an HPA and its scale target describe.

    Args:
        target: The workload that it scales; ``None`` where that does not exist.
        nodes: Those on which the target's pods run.

    Raises:
        ConfigError: An annotation or a field of the HPA is missing or wrong.
    """
    title, annotations = _title(hpa), hpa.metadata.annotations
    model_id = annotations.get(MODEL_ID, "").strip()
    if not model_id:
        raise ConfigError(f"{title}: no annotation {MODEL_ID}, want the model's name")
    cost: dict[str, float] = {}
    if COST in annotations:
        cost["cost_per_h"] = _read_cost(annotations[COST], title)
    accelerator, devices = None, 1
    if target is not None:
        template = target.spec.template
        labelled = (hpa.metadata, target.metadata, template.metadata)
        names = [meta.labels[LABEL] for meta in labelled if meta.labels.get(LABEL)]
        accelerator = (
            names[0]
            if names
            else accelerator_asked_for(template.spec) or accelerator_of_nodes(nodes)
        )
        devices = accelerators_per_replica(template.spec)
    try:
        return Variant(
            key=variant_key(hpa),
            model_id=model_id,
            target=_target_title(hpa),
            accelerator=accelerator,
            accelerators_per_replica=devices,
            min_replicas=_or_1(hpa.spec.min_replicas),
            max_replicas=hpa.spec.max_replicas,
            reader=_read_reader(hpa),
            **cost,
        )
    except ValueError as error:
        raise ConfigError(f"{title}: {error}") from None


def _read_cost(text: str, title: str) -> float:
    # "1_0" and "nan" are floats to Python and no prices to anyone.
    try:
        cost = float(text) if "_" not in text else math.nan
    except ValueError:
        cost = math.nan
    if not (math.isfinite(cost) and cost >= 0):
        raise ConfigError(
            f"{title}: annotation {COST}: found {text!r}, want a number of at least 0 in $/h"
        )
    return cost


def _read_reader(hpa: Autoscaler) -> Reader | None:
    """Return the HPA as the reader of its served metric; ``None`` if it does not read that."""
    for spec in hpa.spec.metrics:
        external = spec.external
        if external is None or external.metric.name != SERVED_METRIC:
            continue
        average, value = external.target.average_value, external.target.value
        behavior = hpa.spec.behavior
        up, down = _tolerances(behavior)
        # With both set, the controller looks at the average alone.
        if average is not None:
            return Reader(_title(hpa), "AverageValue", parse_quantity(average), up, down)
        if value is not None:
            return Reader(_title(hpa), "Value", parse_quantity(value), up, down)
    return None


def _tolerances(behavior: Behavior) -> tuple[float, float]:
    up, down = behavior.scale_up.tolerance, behavior.scale_down.tolerance
    return (
        _DEFAULT_TOLERANCE if up is None else parse_quantity(up),
        _DEFAULT_TOLERANCE if down is None else parse_quantity(down),
    )


def parse_quantity(quantity: str | int) -> float:
    """Return the number that a Kubernetes quantity such as ``1``, ``1500m`` or ``2k`` stands for.

    The client library knows them too, at the price of a second's import.

    Raises:
        ValueError: It is no decimal quantity; binary ones (``Ki``) measure bytes, not counts.
    """
    match = _QUANTITY.fullmatch(str(quantity))
    if match is None:
        raise ValueError(f"found {quantity!r}, want a quantity such as 1 or 1500m")
    number, suffix, exponent = match.groups()
    return float(f"{number}e{exponent or _SUFFIXES[suffix or '']}")

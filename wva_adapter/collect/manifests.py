"""Which variants the objects of a cluster describe."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import cast, get_args

from wva_adapter.collect.accelerators import (
    LABEL,
    accelerator_asked_for,
    accelerator_of_nodes,
    accelerators_per_replica,
    device_resource,
)
from wva_adapter.collect.assemble import VariantView
from wva_adapter.collect.autoscalers import Claim, claims
from wva_adapter.collect.nodes import read_tolerations
from wva_adapter.collect.objects import (
    Autoscaler,
    Namespace,
    Node,
    Pod,
    PodSpec,
    ScaledObject,
    Workload,
)
from wva_adapter.collect.pods import read_replica
from wva_adapter.core.fleet import LoadKey, Role, Toleration, Variant, VariantKey, want_role
from wva_adapter.core.roles import missing_partner
from wva_adapter.errors import ConfigError
from wva_adapter.kube.meta import ObjectKey

MODEL_ID = "llm-d.ai/model-id"
COST = "llm-d.ai/variant-cost"
ROLE = "llm-d.ai/role"
INSTANCE = "wva.llmd.ai/controller-instance"
EXCLUDE = "wva.llmd.ai/exclude"
CONFIG_ENABLED = "wva.llmd.ai/config-enabled"
ANYBODY = "default"
"""The instance that what names none belongs to."""

_ENGINE_LIMITS = {
    name: re.compile(rf"--{name.replace('_', '[-_]')}[ =]([0-9]{{1,7}})\b")
    for name in ("max_num_seqs", "max_num_batched_tokens")
}


@dataclass(frozen=True, slots=True)
class Objects:
    """What is known of the cluster, each kind by namespace and name (nodes have no namespace)."""

    autoscalers: Mapping[ObjectKey, Autoscaler] = field(default_factory=dict)
    scaled_objects: Mapping[ObjectKey, ScaledObject] = field(default_factory=dict)
    deployments: Mapping[ObjectKey, Workload] = field(default_factory=dict)
    stateful_sets: Mapping[ObjectKey, Workload] = field(default_factory=dict)
    pods: Mapping[ObjectKey, Pod] = field(default_factory=dict)
    nodes: Mapping[ObjectKey, Node] = field(default_factory=dict)
    namespaces: Mapping[ObjectKey, Namespace] = field(default_factory=dict)

    def takes_part(self, namespace: str) -> bool:
        """Return whether variants of a namespace are looked at: not if its annotation excludes it."""
        found = self.namespaces.get(ObjectKey("", namespace))
        return found is None or found.metadata.annotations.get(EXCLUDE) != "true"


@dataclass(frozen=True, slots=True)
class Described:
    """What the objects describe.

    Attributes:
        views: The variants, each once, in the order of their keys.
        good: Of every autoscaler whose configuration was ever right, the last right one, by uid.
        problems: A sentence per thing that is wrong with a configuration.
        refused: Those of them by which a variant keeps an earlier configuration.
    """

    views: tuple[VariantView, ...] = ()
    good: Mapping[str, Variant] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    refused: Mapping[VariantKey, tuple[str, ...]] = field(default_factory=dict)


def describe(
    objects: Objects, good: Mapping[str, Variant], *, instance: str = ANYBODY
) -> Described:
    """Return the variants that the managed autoscalers of the cluster name.

    An autoscaler whose configuration became wrong keeps its last good one. One that never had a
    good one is a variant without a count, so that whoever asks is told why; and so is one that
    would make another count of what it is told.

    Args:
        good: ``good`` of the last time.
        instance: Who this adapter is among several: what is labelled for another is not looked at.
    """
    views: dict[VariantKey, VariantView] = {}
    owners: dict[VariantKey, str] = {}
    kept: dict[str, Variant] = {}
    problems: list[str] = []
    refused: dict[VariantKey, tuple[str, ...]] = {}
    pods_of: dict[str, list[Pod]] = {}
    for pod in objects.pods.values():
        pods_of.setdefault(pod.metadata.namespace, []).append(pod)
    all_claims = claims(objects.autoscalers, objects.scaled_objects)
    for claim in all_claims:
        if not claim.managed or claim.meta.labels.get(INSTANCE, ANYBODY) != instance:
            continue
        if not objects.takes_part(claim.meta.namespace):
            continue
        key, uid = claim.variant, claim.meta.uid
        if key in views:
            problems.append(
                f"{claim.title}: names variant {key}, as {owners[key]} does; that one counts"
            )
            continue
        problems += _rivalries(claim, all_claims)
        problems += [] if claim.risk is None else [claim.risk]
        target, problem = _find_target(claim, objects)
        pods = [] if target is None else _pods_of(target, pods_of.get(key.namespace, ()))
        nodes = [
            objects.nodes[place]
            for place in {ObjectKey("", pod.spec.node_name) for pod in pods}
            if place in objects.nodes
        ]
        try:
            variant = read_variant(claim, target, nodes, pods)
            if variant.accelerator is None and uid in good:
                # Without pods there are no nodes to tell; they will come back on what they had.
                variant = replace(variant, accelerator=good[uid].accelerator)
            kept[uid] = variant
        except ConfigError as error:
            problems.append(str(error))
            if uid in good:
                variant = kept[uid] = good[uid]
                refused[key] = (str(error),)
            else:
                target, problem = None, str(error)
                model_id = claim.meta.annotations.get(MODEL_ID, "")
                variant = Variant(key, model_id, target=claim.target)
        if claim.misreading is not None:
            problems.append(claim.misreading)
            target, problem = None, claim.misreading
        owners[key] = claim.title
        views[key] = VariantView(
            variant=variant,
            # An absent number in the API means its default, which is 1 here.
            spec_replicas=None if target is None else _or_1(target.spec.replicas),
            status_replicas=None if target is None else target.status.replicas,
            replicas=tuple(read_replica(pod) for pod in pods),
            problem=problem,
            refused=None if target is None else _why_refused(target),
        )
    problems += _lone_roles(view.variant for view in views.values())
    return Described(tuple(views[key] for key in sorted(views)), kept, tuple(problems), refused)


def _lone_roles(variants: Iterable[Variant]) -> list[str]:
    """Return a sentence for each model of which nobody does the other part of its requests."""
    roles: dict[tuple[str, str], set[Role]] = {}
    for variant in variants:
        key = variant.load_key
        roles.setdefault((key.namespace, key.model_id), set()).add(key.role)
    found = [
        missing_partner(LoadKey(*model, role), its)
        for model, its in sorted(roles.items())
        for role in sorted(its)
    ]
    return [problem for problem in found if problem is not None]


def _why_refused(target: Workload) -> str | None:
    """Return why pods of a workload are not made; ``None`` where they are."""
    for condition in target.status.conditions:
        if condition.type == "ReplicaFailure" and condition.status == "True":
            return condition.message or condition.reason
    return None


def _rivalries(claim: Claim, others: Iterable[Claim]) -> list[str]:
    """Return a sentence for each autoscaler that scales the claim's target too."""

    def rivals(other: Claim) -> bool:
        same_target = (other.meta.namespace, other.target) == (claim.meta.namespace, claim.target)
        # Two managed ones are told of once.
        told = other.managed and (other.variant == claim.variant or other.title < claim.title)
        return same_target and other is not claim and not told

    return [
        f"{claim.title}: {claim.target} is scaled by {other.title} too, want one autoscaler: "
        "each undoes what the other does"
        for other in others
        if rivals(other)
    ]


def _or_1(count: int | None) -> int:
    return 1 if count is None else count


def _find_target(claim: Claim, objects: Objects) -> tuple[Workload | None, str | None]:
    kinds = {"Deployment": objects.deployments, "StatefulSet": objects.stateful_sets}
    if claim.target_kind not in kinds:
        return None, f"{claim.title}: scales a {claim.target_kind}, want {' or '.join(kinds)}"
    target = kinds[claim.target_kind].get(ObjectKey(claim.meta.namespace, claim.target_name))
    if target is None:
        return None, f"{claim.title}: {claim.target} does not exist"
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


def read_variant(
    claim: Claim, target: Workload | None, nodes: Iterable[Node], pods: Iterable[Pod] = ()
) -> Variant:
    """Return the variant that an autoscaler and its scale target describe.

    Args:
        target: The workload that it scales; ``None`` where that does not exist.
        nodes: Those on which the target's pods run.
        pods: Those of the target.

    Raises:
        ConfigError: An annotation or a field of the autoscaler is missing or wrong.
    """
    annotations = claim.meta.annotations
    model_id = annotations.get(MODEL_ID, "").strip()
    if not model_id:
        raise ConfigError(f"{claim.title}: no annotation {MODEL_ID}, want the model's name")
    accelerator, devices, resource = None, 1, None
    limits: dict[str, int | None] = {}
    tolerations: tuple[Toleration, ...] = ()
    if target is not None:
        template = target.spec.template
        labelled = (claim.meta, target.metadata, template.metadata)
        names = [meta.labels[LABEL] for meta in labelled if meta.labels.get(LABEL)]
        accelerator = (
            names[0]
            if names
            else accelerator_asked_for(template.spec) or accelerator_of_nodes(nodes)
        )
        devices, resource = accelerators_per_replica(template.spec), device_resource(template.spec)
        tolerations = read_tolerations((template.spec, *(pod.spec for pod in pods)))
        limits = {name: _engine_limit(template.spec, name) for name in _ENGINE_LIMITS}
    try:
        variant = Variant(
            key=claim.variant,
            model_id=model_id,
            target=claim.target,
            accelerator=accelerator,
            accelerators_per_replica=devices,
            min_replicas=claim.min_replicas,
            max_replicas=claim.max_replicas,
            reader=claim.read_reader(),
            max_num_seqs=limits.get("max_num_seqs"),
            max_num_batched_tokens=limits.get("max_num_batched_tokens"),
            tolerations=tolerations,
            resource=resource,
            role=_read_role(claim, target),
        )
    except ValueError as error:
        raise ConfigError(f"{claim.title}: {error}") from None
    if COST not in annotations:
        return variant
    return replace(variant, cost_per_h=_read_cost(annotations[COST], claim.title))


def _read_role(claim: Claim, target: Workload | None) -> Role:
    """Return what the replicas do: as the autoscaler's annotation says, else their pods' label.

    Raises:
        ConfigError: It is no role.
    """
    found, where = claim.meta.annotations.get(ROLE), f"{claim.title}: annotation {ROLE}"
    if found is None and target is not None:
        labels = target.spec.template.metadata.labels
        found, where = labels.get(ROLE), f"{claim.title}: label {ROLE} on pods of {claim.target}"
    # llm-d's newer word for it.
    known = {role: role for role in get_args(Role)} | {"prefill-decode": "both"}
    if found is None or found in known:
        return "both" if found is None else cast(Role, known[found])
    raise ConfigError(f"{where}: found {found!r}, {want_role(found)}")


def _engine_limit(spec: PodSpec, name: str) -> int | None:
    """Return the limit that an engine is started with; ``None`` where it is left to it."""
    for container in spec.containers:
        words = " ".join((*container.command, *container.args))
        if found := _ENGINE_LIMITS[name].search(words):
            return int(found[1])
    return None


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

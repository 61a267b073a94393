"""What an autoscaler says of the variant that it scales: a HorizontalPodAutoscaler, or KEDA's ScaledObject."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from wva_adapter.collect.objects import (
    Autoscaler,
    Behavior,
    ScaledObject,
    ScaledObjectSpec,
    TargetReference,
    Trigger,
)
from wva_adapter.core.fleet import Reader, VariantKey
from wva_adapter.kube.meta import Meta, ObjectKey

MANAGED = "llm-d.ai/managed"
VARIANT = "llm-d.ai/variant"
SERVED_METRIC = "wva_desired_replicas"
"""The metric by which a managed autoscaler reads the count."""

_SCALED_OBJECT = "ScaledObject"
_OWNER_LABEL = "scaledobject.keda.sh/name"
_PAUSED = "autoscaling.keda.sh/paused"
_PAUSED_AT = "autoscaling.keda.sh/paused-replicas"
_DESIRED_PATH = "/v1/desired/"
_KEDA_MOST_REPLICAS = 100
# KEDA 2.21 takes a scaler that it closed during a request, as it does when another request of the
# ScaledObject failed, for an inactive one: only what was inactive for long is switched off.
_SHORTEST_COOLDOWN_S = 60
"""What KEDA takes for an absent ``maxReplicaCount``."""
_DEFAULT_TOLERANCE = 0.1
"""kube-controller-manager's ``--horizontal-pod-autoscaler-tolerance``."""
_SUFFIXES = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([numkMGTPE]?)|[eE]([+-]?\d+))")
_MATCHER = re.compile(r"""(\w+)\s*=\s*(?:"([^"\\]*)"|'([^'\\]*)')""")


@dataclass(frozen=True, slots=True)
class Claim:
    """What one autoscaler says of the variant that it scales.

    Attributes:
        title: What a person would call the autoscaler.
        variant: Who the variant is: its ``llm-d.ai/variant``, else the name of its target.
        min_replicas: Fewest replicas that it allows; 0 where it may switch the target off.
        read_reader: Returns who makes a count of what is served, ``None`` where this autoscaler
            reads something else; raises ``ValueError`` where its numbers make no sense.
        misreading: Why it would not arrive at the count that it reads; ``None`` if it would.
        risk: Why it would not hold while it cannot read; ``None`` if it would.
    """

    title: str
    meta: Meta
    variant: VariantKey
    target_kind: str
    target_name: str
    min_replicas: int
    max_replicas: int | None
    read_reader: Callable[[], Reader | None]
    misreading: str | None = None
    risk: str | None = None

    @property
    def managed(self) -> bool:
        """Whether its variant is ours to decide on."""
        return self.meta.annotations.get(MANAGED) == "true"

    @property
    def target(self) -> str:
        """The scale target as a person would name it."""
        return f"{self.target_kind} {self.target_name}"


def claims(
    autoscalers: Mapping[ObjectKey, Autoscaler], scaled_objects: Mapping[ObjectKey, ScaledObject]
) -> tuple[Claim, ...]:
    """Return what each autoscaler says, those of a kind in the order of their names.

    The HPA that KEDA makes of a ScaledObject says nothing of its own, whatever annotations were
    copied to it; it is how the ScaledObject reads.
    """
    made_by_keda: dict[ObjectKey, Autoscaler] = {}
    found = []
    for place, hpa in sorted(autoscalers.items()):
        owner = _scaled_object_of(hpa.metadata)
        if owner is None:
            found.append(_claim_of_hpa(hpa))
        else:
            made_by_keda[ObjectKey(place.namespace, owner)] = hpa
    for place, scaled in sorted(scaled_objects.items()):
        found.append(_claim_of_scaled_object(scaled, made_by_keda.get(place)))
    return tuple(found)


def _scaled_object_of(meta: Meta) -> str | None:
    for owner in meta.owner_references:
        if owner.kind == _SCALED_OBJECT:
            return owner.name
    return meta.labels.get(_OWNER_LABEL)


def _claim_of_hpa(hpa: Autoscaler) -> Claim:
    title = f"HorizontalPodAutoscaler {hpa.metadata.namespace}/{hpa.metadata.name}"
    minimum = hpa.spec.min_replicas
    return Claim(
        title=title,
        meta=hpa.metadata,
        variant=_variant_key(hpa.metadata, hpa.spec.scale_target_ref),
        target_kind=hpa.spec.scale_target_ref.kind,
        target_name=hpa.spec.scale_target_ref.name,
        # An absent number in the API means its default, which is 1 here.
        min_replicas=1 if minimum is None else minimum,
        max_replicas=hpa.spec.max_replicas,
        read_reader=lambda: _read_hpa(hpa, title),
    )


def _variant_key(meta: Meta, target: TargetReference) -> VariantKey:
    named = meta.annotations.get(VARIANT) or meta.labels.get(VARIANT)
    return VariantKey(meta.namespace, named or target.name)


def _read_hpa(hpa: Autoscaler, title: str) -> Reader | None:
    for spec in hpa.spec.metrics:
        external = spec.external
        if external is None or external.metric.name != SERVED_METRIC:
            continue
        average, value = external.target.average_value, external.target.value
        up, down = _tolerances(hpa.spec.behavior)
        # With both set, the controller looks at the average alone.
        if average is not None:
            return Reader(title, "AverageValue", parse_quantity(average), up, down)
        if value is not None:
            return Reader(title, "Value", parse_quantity(value), up, down)
    return None


def _claim_of_scaled_object(scaled: ScaledObject, hpa: Autoscaler | None) -> Claim:
    meta, spec = scaled.metadata, scaled.spec
    title = f"{_SCALED_OBJECT} {meta.namespace}/{meta.name}"
    variant = _variant_key(meta, spec.scale_target_ref)
    # The HPA that reads is KEDA's; until it exists, what KEDA will make it of.
    wished = spec.advanced.horizontal_pod_autoscaler_config.behavior
    behavior = wished if hpa is None else hpa.spec.behavior
    # What a formula makes of the count, nobody knows.
    triggers = (
        []
        if spec.advanced.scaling_modifiers.formula
        else [trigger for trigger in spec.triggers if _reads_us(trigger)]
    )

    def read() -> Reader | None:
        if not triggers:
            return None
        up, down = _tolerances(behavior)
        paused_at = _whole(meta.annotations.get(_PAUSED_AT, ""))
        return Reader(
            title,
            tolerance_up=up,
            tolerance_down=down,
            shaped=False,
            least_active=minimum or 0,
            paused=paused_at is not None or meta.annotations.get(_PAUSED) == "true",
            paused_replicas=paused_at,
        )

    idle, minimum, most = spec.idle_replica_count, spec.min_replica_count, spec.max_replica_count
    lowest = (minimum or 0) if idle is None else idle
    misreadings = (_misreading(trigger, variant) for trigger in triggers)
    return Claim(
        title=title,
        meta=meta,
        variant=variant,
        target_kind=spec.scale_target_ref.kind or "Deployment",
        target_name=spec.scale_target_ref.name,
        min_replicas=lowest,
        max_replicas=_KEDA_MOST_REPLICAS if most is None else most,
        read_reader=read,
        misreading=next((f"{title}: {wrong}" for wrong in misreadings if wrong), None),
        risk=_risk(title, spec) if lowest == 0 else None,
    )


def _risk(title: str, spec: ScaledObjectSpec) -> str | None:
    """Return how KEDA may switch off what is needed, where it may switch off at all."""
    if spec.fallback is not None and spec.fallback.replicas == 0:
        return (
            f"{title}: fallback.replicas is 0, want a count, or no fallback: KEDA takes the first "
            "failed request for a count of 0"
        )
    cooldown_s = spec.cooldown_period
    if cooldown_s is not None and cooldown_s < _SHORTEST_COOLDOWN_S:
        return (
            f"{title}: cooldownPeriod is {cooldown_s}, want at least {_SHORTEST_COOLDOWN_S}: KEDA "
            "may take an answer that comes too late for a count of 0"
        )
    return None


def _reads_us(trigger: Trigger) -> bool:
    match trigger.type:
        case "metrics-api":
            return _DESIRED_PATH in trigger.metadata.get("url", "")
        case "prometheus":
            return SERVED_METRIC in trigger.metadata.get("query", "")
        case _:
            return False


def _misreading(trigger: Trigger, variant: VariantKey) -> str | None:
    """Return why the trigger does not make the variant's count of what it reads."""
    over_http = trigger.type == "metrics-api"
    target = "targetValue" if over_http else "threshold"
    activation = "activationTargetValue" if over_http else "activationThreshold"
    told, who = trigger.metadata, f"trigger {trigger.type}"
    if trigger.metric_type not in ("", "AverageValue"):
        # A Value target is multiplied by the ready pods: counts would run away.
        return f"{who}: metricType is {trigger.metric_type}, want AverageValue"
    if _number(told.get(target, "")) != 1:
        return (
            f"{who}: {target} is {told.get(target, '')!r}, want '1': "
            "it divides the count that is read"
        )
    active_above = _number(told.get(activation, "0"))
    if active_above is None or active_above >= 1:
        return (
            f"{who}: {activation} is {told[activation]!r}, want '0': "
            "counts up to it would be taken for idle"
        )
    read = _read_by_url(told["url"]) if over_http else _read_by_query(told["query"])
    if read is not None and read != variant:
        return f"{who}: reads the count of {read}, want that of {variant}"
    return None


def _read_by_url(url: str) -> VariantKey | None:
    parts = urlsplit(url).path.partition(_DESIRED_PATH)[2].strip("/").split("/")
    return VariantKey(*map(unquote, parts)) if len(parts) == 2 else None


def _read_by_query(query: str) -> VariantKey | None:
    matchers = {name: double or single for name, double, single in _MATCHER.findall(query)}
    namespace = matchers.get("exported_namespace") or matchers.get("namespace")
    name = matchers.get("variant_name")
    return VariantKey(namespace, name) if namespace and name else None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _whole(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


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

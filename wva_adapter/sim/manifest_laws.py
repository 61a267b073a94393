"""Autoscalers as users have them, read as laws: a KEDA ScaledObject or a HorizontalPodAutoscaler.

Bounds and targets are the scenario's. What a manifest reads must be a series of the simulator.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from wva_adapter.documents import parse_document
from wva_adapter.errors import ConfigError
from wva_adapter.sim.behavior_files import BehaviorFile, Quantity, to_behavior
from wva_adapter.sim.evaluate import Scope
from wva_adapter.sim.expression import Expression, Known, parse
from wva_adapter.sim.laws import HpaLaw, Law, Target, Trigger
from wva_adapter.sim.queries import METRICS, translate
from wva_adapter.sim.series import SERIES

_DELAY_S = 10.0
"""Age of what Prometheus holds, as of the rivals that ship."""


class _Part(BaseModel):
    """A part of an object of Kubernetes, of which only what a law needs is read."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class _Kind(_Part):
    kind: str | None = None


class _Meta(_Part):
    name: str = "manifest"


class _Metadata(_Part):
    query: str | None = None
    threshold: Quantity | None = None


class _KedaTrigger(_Part):
    type: str
    name: str | None = None
    metricType: Literal["AverageValue", "Value", "Utilization"] = "AverageValue"
    metadata: _Metadata = Field(default_factory=_Metadata)


class _HpaConfig(_Part):
    behavior: BehaviorFile | None = None


class _Advanced(_Part):
    horizontalPodAutoscalerConfig: _HpaConfig = Field(default_factory=_HpaConfig)
    scalingModifiers: dict[str, object] = Field(default_factory=dict)


class _ScaledObjectSpec(_Part):
    triggers: Annotated[list[_KedaTrigger], Field(min_length=1)]
    cooldownPeriod: Annotated[int, Field(ge=0)] = 300
    advanced: _Advanced = Field(default_factory=_Advanced)


class _ScaledObject(_Part):
    metadata: _Meta = Field(default_factory=_Meta)
    spec: _ScaledObjectSpec


class _Target(_Part):
    averageValue: Quantity | None = None
    value: Quantity | None = None
    averageUtilization: int | None = None


class _Source(_Part):
    metric: _Meta = Field(default_factory=_Meta)
    name: str | None = None
    target: _Target


class _Metric(_Part):
    type: str
    external: _Source | None = None
    pods: _Source | None = None
    resource: _Source | None = None


class _HpaSpec(_Part):
    metrics: Annotated[list[_Metric], Field(min_length=1)]
    behavior: BehaviorFile | None = None


class _Hpa(_Part):
    metadata: _Meta = Field(default_factory=_Meta)
    spec: _HpaSpec


def manifest_law(text: str, file: str) -> Law | None:
    """Return the law of a manifest; ``None`` where the text is none of these kinds.

    Raises:
        ConfigError: It reads what the simulator does not have, named with its place, or is wrong.
    """
    kind = parse_document(text, _Kind, file).kind
    if kind == "ScaledObject":
        return _scaled_object(parse_document(text, _ScaledObject, file), file)
    if kind == "HorizontalPodAutoscaler":
        return _hpa(parse_document(text, _Hpa, file), file)
    if kind is not None:
        raise ConfigError(
            f"{file}: kind: found {kind!r}, want ScaledObject or HorizontalPodAutoscaler"
        )
    return None


def _scaled_object(document: _ScaledObject, file: str) -> Law:
    spec = document.spec
    if spec.advanced.scalingModifiers:
        raise ConfigError(f"{file}: spec.advanced.scalingModifiers: not read by the simulator")
    triggers = []
    for index, trigger in enumerate(spec.triggers):
        where = f"{file}: spec.triggers[{index}]"
        if trigger.type != "prometheus":
            raise ConfigError(f"{where}.type: found {trigger.type!r}, want prometheus")
        if trigger.metricType == "Utilization":
            raise ConfigError(
                f"{where}.metricType: found 'Utilization', want AverageValue or Value"
            )
        found = trigger.metadata
        if found.query is None or not found.threshold:
            raise ConfigError(f"{where}.metadata: want a query, and a threshold above 0")
        try:
            query = _expression(translate(found.query), "model")
        except ValueError as error:
            raise ConfigError(f"{where}.metadata.query: {error}") from None
        name = trigger.name or f"trigger {index}"
        triggers.append(Trigger(name, query, found.threshold, trigger.metricType, "zero"))
    behavior = spec.advanced.horizontalPodAutoscalerConfig.behavior
    where = f"{file}: spec.advanced.horizontalPodAutoscalerConfig.behavior"
    acts = HpaLaw(
        tuple(triggers), to_behavior(behavior, where), cooldown_s=float(spec.cooldownPeriod)
    )
    return Law(document.metadata.name, f"ScaledObject in {file}", acts, _DELAY_S)


def _hpa(document: _Hpa, file: str) -> Law:
    triggers = tuple(
        _metric(metric, f"{file}: spec.metrics[{index}]")
        for index, metric in enumerate(document.spec.metrics)
    )
    behavior = to_behavior(document.spec.behavior, f"{file}: spec.behavior")
    acts = HpaLaw(triggers, behavior)
    return Law(document.metadata.name, f"HorizontalPodAutoscaler in {file}", acts, _DELAY_S)


def _metric(metric: _Metric, where: str) -> Trigger:
    if metric.type == "Resource" and metric.resource is not None:
        name, percent = metric.resource.name, metric.resource.target.averageUtilization
        if name != "cpu" or not percent:
            raise ConfigError(f"{where}.resource: found {name!r}, want cpu with averageUtilization")
        return Trigger("cpu", _expression("cpu", "variant"), percent, "Utilization", "fails")
    source = metric.external if metric.type == "External" else metric.pods
    if metric.type not in ("External", "Pods") or source is None:
        raise ConfigError(f"{where}.type: found {metric.type!r}, want External, Pods or Resource")
    name, target = source.metric.name, source.target
    # The Prometheus adapter is often told to write a metric's colon as an underscore.
    known = {
        written: told for key, told in METRICS.items() for written in (key, key.replace(":", "_"))
    }
    if name not in known:
        raise ConfigError(
            f"{where}.metric.name: the simulator has no {name}; it has {', '.join(METRICS)}"
        )
    kind: Target = "AverageValue" if target.averageValue is not None else "Value"
    wanted = target.averageValue if target.averageValue is not None else target.value
    if not wanted:
        raise ConfigError(f"{where}.target: want an averageValue or a value, above 0")
    if metric.type == "Pods":
        return Trigger(name, _expression(known[name].mean, "variant"), wanted, "Pods", "fails")
    return Trigger(name, _expression(known[name].total, "model"), wanted, kind, "fails")


def _expression(text: str, scope: Scope) -> Expression:
    return parse(text, Known(tuple(SERIES), scope=scope))

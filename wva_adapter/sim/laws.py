"""Laws as data: what a rival reads, what it makes of it, and through whom it acts.

A law either feeds a HorizontalPodAutoscaler (``HpaLaw``: KEDA's triggers, or metrics of an HPA's
own), or sets counts itself (``StepLaw``). One law runs each variant of a fleet for itself, on the
same series of the model, as its guide does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from wva_adapter.core.hpa import External, HpaPod, Metric, Scale
from wva_adapter.core.hpa_pods import PodsAverage, UsageSample, Utilization
from wva_adapter.core.hpa_sync import SYNC_S, Behavior, Bounds, HpaState, sync
from wva_adapter.core.snapshot import Phase
from wva_adapter.sim.evaluate import Scope
from wva_adapter.sim.expression import Expression
from wva_adapter.sim.scaler import Metrics, PodView, Scaler, VariantView

Target = Literal["AverageValue", "Value", "Pods", "Utilization"]

FLEET: Mapping[str, str] = MappingProxyType(
    {
        "replicas": "the count that the variant was asked for",
        "status_replicas": "its pods that are not terminating",
        "ready_replicas": "its pods that serve",
        "min_replicas": "fewest replicas allowed",
        "max_replicas": "most replicas allowed",
        "now_s": "seconds since the start",
    }
)
"""What a law may read of its scale target, by name. Always as it is now."""

CONSTANTS: Mapping[str, str] = MappingProxyType(
    {
        "slo_ttft_s": "bound on the time to first token",
        "slo_itl_s": "bound on the inter-token time",
        "prefill_tokens_per_s": "prompt tokens per second of an idle replica with a full chunk",
    }
)
"""What whoever sets a law up tells it of the service and the variant's hardware, by name."""

_REQUEST_MILLI = 1000


@dataclass(frozen=True, slots=True)
class Trigger:
    """One metric of an autoscaler.

    Attributes:
        query: What is read.
        target: The threshold, of which ``target_type`` says how it counts: a sum shared among the
            replicas (``AverageValue``), a level (``Value``), the mean of the pods (``Pods``), or
            their mean as a percentage of what they request (``Utilization``).
        empty: What an empty answer means: KEDA takes it for zero, an HPA's own metric fails.
    """

    name: str
    query: Expression
    target: float
    target_type: Target = "AverageValue"
    empty: Literal["zero", "fails"] = "zero"


@dataclass(frozen=True, slots=True)
class HpaLaw:
    """An HPA with what it reads.

    Attributes:
        behavior: ``None`` where the autoscaler has none.
        terms: Named parts of the queries, computed in this order before each look.
        cooldown_s: After so long without any activity KEDA goes to zero, where the bounds have it,
            and back to one with the first; ``None`` leaves zero to the HPA.
    """

    triggers: tuple[Trigger, ...]
    behavior: Behavior | None = None
    terms: tuple[tuple[str, Expression], ...] = ()
    cooldown_s: float | None = None
    every_s: float = SYNC_S


@dataclass(frozen=True, slots=True)
class Remembered:
    """A number that a law keeps between its looks.

    Attributes:
        start: Its value at first.
        next: Its value from now on, computed before the count is.
    """

    name: str
    start: float
    next: Expression


@dataclass(frozen=True, slots=True)
class StepLaw:
    """A controller that sets counts itself.

    Attributes:
        replicas: The count, rounded up and brought into the variant's bounds; where it is missing
            the count stays.
        every_s: How often it looks.
        terms: Named parts, computed in this order.
        remembered: What it keeps; may use terms, and those before it.
        down_window_s: The count is the largest of so many seconds.
    """

    replicas: Expression
    every_s: float
    terms: tuple[tuple[str, Expression], ...] = ()
    remembered: tuple[Remembered, ...] = ()
    down_window_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Law:
    """A rival, as its file says.

    Attributes:
        source: Where it is published, or what set-up it stands for.
        delay_s: Age of what it reads: of the scrape, and of a rule's evaluation where there is one.
        flow_control: Whether its guide has the gateway hold requests back for saturated engines.
    """

    name: str
    source: str
    acts: HpaLaw | StepLaw
    delay_s: float = 10.0
    flow_control: bool = False


def scaler(law: Law, constants: Mapping[str, Mapping[str, float]]) -> Scaler:
    """Return the law at work, with nothing remembered.

    Args:
        law: What it does.
        constants: By variant, the numbers that ``CONSTANTS`` names.
    """
    if isinstance(law.acts, HpaLaw):
        return _HpaScaler(law.acts, law.delay_s, constants)
    return _StepScaler(law.acts, law.delay_s, constants)


class _Look:
    """What one variant's autoscaler reads in one look."""

    def __init__(
        self, now_s: float, view: VariantView, metrics: Metrics, names: dict[str, float | None]
    ) -> None:
        self._now_s = now_s
        self._variant = view.name
        self._metrics = metrics
        self.names = names

    def value(self, series: str, scope: Scope, ago_s: float) -> float | None:
        return self._metrics.value(series, self._now_s - ago_s, self._of(scope))

    def window(self, series: str, scope: Scope, span_s: float) -> Sequence[float]:
        return self._metrics.window(series, self._now_s, span_s, self._of(scope))

    def name(self, name: str) -> float | None:
        return self.names[name]

    def _of(self, scope: Scope) -> str | None:
        return self._variant if scope == "variant" else None


def _look(
    now_s: float,
    view: VariantView,
    metrics: Metrics,
    delay_s: float,
    constants: Mapping[str, float],
    terms: Sequence[tuple[str, Expression]],
    kept: Mapping[str, float],
) -> _Look:
    names: dict[str, float | None] = {
        **constants,
        **kept,
        "replicas": float(view.spec_replicas),
        "status_replicas": float(view.status_replicas),
        "ready_replicas": float(view.ready_replicas),
        "min_replicas": float(view.min_replicas),
        "max_replicas": float(view.max_replicas),
        "now_s": now_s,
    }
    look = _Look(now_s - delay_s, view, metrics, names)
    for name, expression in terms:
        names[name] = expression(look)
    return look


class _HpaScaler:
    """One HPA per variant, and where it is KEDA's, what KEDA does at zero."""

    def __init__(
        self, law: HpaLaw, delay_s: float, constants: Mapping[str, Mapping[str, float]]
    ) -> None:
        self._law = law
        self._delay_s = delay_s
        self._constants = constants
        self._states: dict[str, HpaState] = {}
        self._active_s: dict[str, float] = {}

    @property
    def period_s(self) -> float:
        return self._law.every_s

    def act(
        self, now_s: float, fleet: Sequence[VariantView], metrics: Metrics
    ) -> Mapping[str, int]:
        counts = {view.name: self._count(now_s, view, metrics) for view in fleet}
        return {
            view.name: counts[view.name]
            for view in fleet
            if counts[view.name] != view.spec_replicas
        }

    def _count(self, now_s: float, view: VariantView, metrics: Metrics) -> int:
        constants = self._constants.get(view.name, {})
        look = _look(now_s, view, metrics, self._delay_s, constants, self._law.terms, {})
        values = [trigger.query(look) for trigger in self._law.triggers]
        minimum = view.min_replicas
        if self._law.cooldown_s is not None and minimum == 0:
            if any(values):
                self._active_s[view.name] = now_s
            quiet_s = now_s - self._active_s.setdefault(view.name, now_s)
            if view.spec_replicas == 0:
                return 1 if any(values) else 0
            if quiet_s >= self._law.cooldown_s:
                return 0
            minimum = 1
        read = [
            _metric(trigger, value, view, now_s - self._delay_s)
            for trigger, value in zip(self._law.triggers, values, strict=True)
        ]
        # A fleet that begins at zero was put there by its autoscaler: else it would never wake.
        state = self._states.get(view.name, HpaState(scaled_to_zero=not view.spec_replicas))
        scale = Scale(
            view.spec_replicas,
            view.status_replicas,
            view.ready_replicas,
            tuple(_pod(pod) for pod in view.pods),
        )
        bounds = Bounds(minimum, view.max_replicas)
        synced = sync(now_s, scale, read, bounds, self._law.behavior, state)
        self._states[view.name] = synced.state
        return synced.replicas


def _metric(trigger: Trigger, value: float | None, view: VariantView, seen_s: float) -> Metric:
    """Return what the controller gets to read of a trigger."""
    target = round(trigger.target * 1000)
    if value is None and trigger.empty == "zero":
        value = 0.0
    problem = "no samples" if value is None else None
    milli = 0 if value is None else int(value * 1000)
    if trigger.target_type in ("AverageValue", "Value"):
        values = () if value is None else (milli,)
        kind: Literal["AverageValue", "Value"] = (
            "Value" if trigger.target_type == "Value" else "AverageValue"
        )
        return External(trigger.name, values, target, kind, problem)
    # The mean of the pods that served when the samples were taken, given to each of them.
    measured = [
        pod.name
        for pod in view.pods
        if pod.phase is Phase.READY and pod.ready_at_s is not None and pod.ready_at_s <= seen_s
    ]
    if trigger.target_type == "Pods":
        return PodsAverage(trigger.name, dict.fromkeys(measured, milli), target, problem)
    # What runs has CPU in use from its first second, which counts only once it serves.
    samples = {pod.name: UsageSample(0) for pod in view.pods if pod.phase is Phase.STARTING}
    samples |= dict.fromkeys(measured, UsageSample(milli))
    return Utilization(
        trigger.name, samples, _REQUEST_MILLI, round(trigger.target), problem=problem
    )


def _pod(pod: PodView) -> HpaPod:
    if pod.phase is Phase.TERMINATING:
        return HpaPod(pod.name, "terminating")
    ready = pod.phase is Phase.READY
    return HpaPod(
        pod.name,
        "running" if pod.scheduled else "pending",
        ready,
        pod.created_at_s if pod.scheduled else None,
        pod.ready_at_s if ready else pod.created_at_s,
    )


class _StepScaler:
    """One controller per variant."""

    def __init__(
        self, law: StepLaw, delay_s: float, constants: Mapping[str, Mapping[str, float]]
    ) -> None:
        self._law = law
        self._delay_s = delay_s
        self._constants = constants
        self._kept: dict[str, dict[str, float]] = {}
        self._past: dict[str, tuple[tuple[float, int], ...]] = {}

    @property
    def period_s(self) -> float:
        return self._law.every_s

    def act(
        self, now_s: float, fleet: Sequence[VariantView], metrics: Metrics
    ) -> Mapping[str, int]:
        counts: dict[str, int] = {}
        for view in fleet:
            count = self._count(now_s, view, metrics)
            if count is not None and count != view.spec_replicas:
                counts[view.name] = count
        return counts

    def _count(self, now_s: float, view: VariantView, metrics: Metrics) -> int | None:
        law = self._law
        kept = self._kept.setdefault(view.name, {r.name: r.start for r in law.remembered})
        constants = self._constants.get(view.name, {})
        look = _look(now_s, view, metrics, self._delay_s, constants, law.terms, kept)
        for remembered in law.remembered:
            value = remembered.next(look)
            if value is not None:
                kept[remembered.name] = look.names[remembered.name] = value
        wanted = law.replicas(look)
        if wanted is None:
            return None
        count = max(view.min_replicas, min(math.ceil(wanted), view.max_replicas))
        past = self._past.get(view.name, ((now_s, view.spec_replicas),))
        past = (*(p for p in past if p[0] > now_s - law.down_window_s), (now_s, count))
        self._past[view.name] = past
        return max(count for _, count in past)

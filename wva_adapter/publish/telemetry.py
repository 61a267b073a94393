"""What Prometheus may know: the counts, how old they are, and how the adapter itself is doing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from wva_adapter.core.decision import Decision, Plan
from wva_adapter.publish.board import Board
from wva_adapter.publish.metrics import (
    PLAIN,
    PLAN_AGE,
    SCRAPE_PROBLEMS,
    SHADOW,
    Published,
    shadow_count,
)

LABELS: Final = (
    "variant_name",
    "namespace",
    "exported_namespace",
    "model_name",
    "accelerator_type",
    "controller_instance",
)
_HELP: Final = {
    "wva_desired_replicas": "Replicas that the variant should have.",
    "wva_current_replicas": "Replicas that its scale target asks for.",
    "wva_desired_ratio": "Desired over current replicas; the desired count where there are none.",
    "wva_saturation": "Demand over supply of the variant's model; above 1 requests wait.",
    "wva_shortage_replicas": "Replicas of this variant that would cover its model's shortage.",
    "wva_variant_cost": "What one replica costs, in $ per hour.",
}
_CYCLE_BUCKETS_S: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class Telemetry:
    """The page of ``/metrics``.

    The counts are those of the board at the moment of the scrape: a removed variant has no series
    any more, one that could not be decided on keeps its last count beside its growing age.

    Args:
        clock: Unix time.

    Attributes:
        registry: Where other parts of the process add their own series.
    """

    def __init__(self, board: Board, *, clock: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(_Variants(board, clock))
        self._cycle_s = Histogram(
            "wva_cycle_seconds",
            "Time that one cycle took, from the views to the posted plan.",
            buckets=_CYCLE_BUCKETS_S,
            registry=self.registry,
        )
        self._escapes = Counter(
            "wva_tolerance_escapes",
            "Steps up that a reader's tolerance would have hidden, and that were made differently.",
            labelnames=("variant_name", "exported_namespace"),
            registry=self.registry,
        )

    def count_escapes(self, before: Plan | None, after: Plan) -> None:
        """Count the steps up that got past a reader's tolerance and had not in the plan before."""
        for key, decision in after.decisions.items():
            earlier = None if before is None else before.decisions.get(key)
            if _escaped(decision) and not (earlier is not None and _escaped(earlier)):
                self._escapes.labels(key.name, key.namespace).inc()

    def observe_cycle(self, duration_s: float) -> None:
        """Count one finished cycle."""
        self._cycle_s.observe(duration_s)

    def page(self) -> bytes:
        """Return the page, in Prometheus' text format 0.0.4."""
        return generate_latest(self.registry)


class _Variants(Collector):
    def __init__(self, board: Board, clock: Callable[[], float]) -> None:
        self._board = board
        self._clock = clock

    def collect(self) -> Iterable[Metric]:
        now_s, published = self._clock(), self._board.published
        for name, read in PLAIN.items():
            family = GaugeMetricFamily(name, _HELP[name], labels=LABELS)
            for one in published:
                value = read(one)
                if value is not None:
                    family.add_metric(_values(one), value / 1000)
            yield family
        age = GaugeMetricFamily(
            PLAN_AGE,
            "Age of the plan that the variant's count is from.",
            labels=LABELS,
        )
        for one in published:
            age.add_metric(_values(one), now_s - one.at_s)
        yield age
        shadow = GaugeMetricFamily(
            SHADOW,
            "Replicas that a variant in shadow would be served.",
            labels=LABELS,
        )
        for one in published:
            count = shadow_count(one)
            if count is not None:
                shadow.add_metric(_values(one), count / 1000)
        yield shadow
        yield self._problems()

    def _problems(self) -> Metric:
        family = GaugeMetricFamily(
            SCRAPE_PROBLEMS,
            "Replicas whose latest scrape brought nothing.",
            labels=("variant_name", "exported_namespace"),
        )
        for state in self._board.states:
            failing = sum(replica.problem is not None for replica in state.replicas)
            family.add_metric((state.variant.key.name, state.variant.key.namespace), failing)
        return family


def _escaped(decision: Decision) -> bool:
    return any(
        step.rule == "escape_tolerance" and step.after > step.before for step in decision.trail
    )


def _values(published: Published) -> tuple[str, ...]:
    """Return the values of ``LABELS``; an absent one is empty, which Prometheus reads as absent."""
    return tuple(published.labels.get(label, "") for label in LABELS)

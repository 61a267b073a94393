"""What is wanted: thresholds, windows and steps, as the operator set them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, get_args

from wva_adapter.core.load import Utilization
from wva_adapter.core.power import Objective

Analysis = Literal["demand", "saturation", "tokens"]
RequestClass = Literal["online", "offline"]
ServiceLevel = Literal["frugal", "balanced", "premium"]


class Level(NamedTuple):
    """What a service level stands for.

    Attributes:
        utilization: Share of their capacity that replicas are loaded with.
        attainment: Share of a lead time's demand to cover.
        spare_replicas: Headroom while the load is not familiar, in replicas.
        familiar_leads: Lead times of similar moments after which it is.
        longest_window_s: How long a need is remembered while forecasts have no evidence.
        shortest_window_s: How long where they have enough.
        drain_s: A backlog is to be worked off within so long, beside the demand.
    """

    utilization: Utilization
    attainment: float
    spare_replicas: float
    familiar_leads: float
    longest_window_s: float
    shortest_window_s: float
    drain_s: float


LEVELS: Mapping[str, Level] = {
    "frugal": Level(Utilization(), 0.95, 0.5, 2.0, 300.0, 120.0, 60.0),
    "balanced": Level(
        Utilization(slack=0.15, lowest=0.85, highest=0.96), 0.98, 0.5, 2.0, 300.0, 120.0, 60.0
    ),
    "premium": Level(
        Utilization(slack=0.15, lowest=0.85, highest=0.96), 0.995, 3.5, 9.0, 400.0, 250.0, 10.0
    ),
}
"""Settled in the simulator over all its scenarios: goodput against cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How to decide; every default works.

    Attributes:
        analysis: Which analysis turns samples into load.
        slo_ttft_s: Time to first token that requests should have.
        slo_itl_s: Inter-token latency that they should have.
        service_level: One word for what follows: ``frugal``, ``balanced`` or ``premium``.
        utilization: Share of its capacity that a replica is loaded with, above 0 and at most 1;
            ``None`` lets the service level and the number of replicas choose.
        attainment: Share of the demand of a lead time to cover, above 0 and below 1; ``None`` lets the service
            level choose.
        assumed_start_s: From a pod's creation until it is ready, before any was seen to start.
        hpa_sync_s: How often autoscalers look.
        kv_cache_threshold: KV-cache usage from which a replica counts as saturated, 0 to 1.
        queue_length_threshold: Queued requests from which a replica counts as saturated.
        kv_spare_trigger: Mean spare KV-cache usage below which one replica is added, 0 to 1.
        queue_spare_trigger: Mean spare queue length below which one replica is added.
        scale_up_threshold: Share of the token capacity, ready and on its way, above which replicas
            are added (``tokens``).
        scale_down_boundary: Share of the remaining token capacity that a scale-down may fill
            (``tokens``).
        peak_window_s: A replica's usage and queue are the peaks of this many seconds.
        stale_after_s: A page older than this says nothing about now (three scrapes).
        scale_down_window_s: Down only to the largest need of this many seconds; ``None`` lets the
            service level and the forecast choose.
        max_down_share: Largest share of a variant's replicas removed per ``down_period_s``; one
            replica may always go.
        down_period_s: The period of ``max_down_share``.
        max_up_step: Most replicas added to one variant per decision, to those that are there and
            those that were asked for and have not been ordered yet.
        change_penalty: Share of a replica's cost that a change of its variant must save, so that
            equal plans do not swap.
        scale_to_zero: Whether a model that nobody asks for may lose its last replica.
        retention_s: For how long nobody must have asked before it does.
        shadow: Whether counts are decided and not served.
        request_class: Whether requests are owed latency (``online``), or are to be done within
            ``deadline_s``, however late each begins (``offline``).
        deadline_s: Within so long offline requests are to be done; those that a gateway holds back
            at a negative priority too.
        priority: Where accelerators are scarce, models of a larger one are served first.
        objective: What the cheapest counts have least of: ``cost``, ``power``, or a sum of both
            (``weighted``).
        power_price_per_kwh: $ per kWh, where both count.

    Raises:
        ValueError: A value is out of its range, or contradicts another.
    """

    analysis: Analysis = "demand"
    slo_ttft_s: float = 2.0
    slo_itl_s: float = 0.060
    service_level: ServiceLevel = "balanced"
    utilization: float | None = None
    attainment: float | None = None
    assumed_start_s: float = 120.0
    hpa_sync_s: float = 15.0
    kv_cache_threshold: float = 0.80
    queue_length_threshold: float = 5.0
    kv_spare_trigger: float = 0.10
    queue_spare_trigger: float = 3.0
    scale_up_threshold: float = 0.85
    scale_down_boundary: float = 0.70
    peak_window_s: float = 60.0
    stale_after_s: float = 15.0
    scale_down_window_s: float | None = None
    max_down_share: float = 0.25
    down_period_s: float = 15.0
    max_up_step: int = 8
    change_penalty: float = 0.05
    scale_to_zero: bool = False
    retention_s: float = 600.0
    shadow: bool = False
    request_class: RequestClass = "online"
    deadline_s: float = 86400.0
    priority: int = 0
    objective: Objective = "cost"
    power_price_per_kwh: float = 0.15

    def __post_init__(self) -> None:
        for name, known in (
            ("analysis", Analysis),
            ("service_level", ServiceLevel),
            ("objective", Objective),
            ("request_class", RequestClass),
        ):
            found = getattr(self, name)
            if found not in get_args(known):
                raise ValueError(f"{name} {found!r}, want one of: {', '.join(get_args(known))}")
        for field in fields(self):
            value = getattr(self, field.name)
            # Written so that NaN, which compares false with everything, is refused too.
            if value is None or isinstance(value, str):
                continue
            if not 0 <= value < float("inf"):
                raise ValueError(f"{field.name} {value}, want a finite number of at least 0")
        for name in ("kv_cache_threshold", "max_down_share", "utilization", "attainment"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"{name} {share}, want above 0 and at most 1")
        if self.attainment == 1:
            raise ValueError("attainment 1, want below 1: no count covers all that may come")
        for name in ("slo_ttft_s", "slo_itl_s", "deadline_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} {getattr(self, name)}, want above 0")
        if self.request_class == "offline" and self.analysis != "demand":
            raise ValueError(
                f"class offline, want analysis demand, got analysis={self.analysis}: "
                "no other gives requests until their deadline"
            )
        if self.max_up_step < 1:
            raise ValueError(f"max_up_step {self.max_up_step}, want at least 1")
        if not self.kv_spare_trigger < self.kv_cache_threshold:
            raise ValueError(
                "want kv_spare_trigger < kv_cache_threshold, got "
                f"kv_spare_trigger={self.kv_spare_trigger}, "
                f"kv_cache_threshold={self.kv_cache_threshold}"
            )
        if not self.queue_spare_trigger < self.queue_length_threshold:
            raise ValueError(
                "want queue_spare_trigger < queue_length_threshold, got "
                f"queue_spare_trigger={self.queue_spare_trigger}, "
                f"queue_length_threshold={self.queue_length_threshold}"
            )
        if not 0 < self.scale_down_boundary < self.scale_up_threshold <= 1:
            raise ValueError(
                "want 0 < scale_down_boundary < scale_up_threshold <= 1, got "
                f"scale_down_boundary={self.scale_down_boundary}, "
                f"scale_up_threshold={self.scale_up_threshold}"
            )

    @property
    def level(self) -> Level:
        """What the service level stands for, with what was set apart from it."""
        level = LEVELS[self.service_level]
        if self.utilization is not None:
            level = level._replace(utilization=Utilization(0.0, self.utilization, self.utilization))
        if self.attainment is not None:
            level = level._replace(attainment=self.attainment)
        return level

    def window_s(self, confidence: float = 0.0) -> float:
        """Return how many seconds a need is remembered, given how sure its forecast is, 0 to 1."""
        if self.scale_down_window_s is not None:
            return self.scale_down_window_s
        level = LEVELS[self.service_level]
        return level.longest_window_s * (1 - confidence) + level.shortest_window_s * confidence

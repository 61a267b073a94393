"""What is wanted: thresholds, windows and steps, as the operator set them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

Analysis = Literal["saturation", "tokens"]
ANALYSES: tuple[str, ...] = get_args(Analysis)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How to decide; every default works.

    Attributes:
        analysis: Which analysis turns samples into load.
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
        scale_down_window_s: Down only to the largest need of this many seconds.
        max_down_share: Largest share of a variant's replicas removed per ``down_period_s``; one
            replica may always go.
        down_period_s: The period of ``max_down_share``.
        max_up_step: Most replicas added to one variant per decision.
        change_penalty: Share of a replica's cost that a change of its variant must save, so that
            equal plans do not swap.

    Raises:
        ValueError: A value is out of its range, or contradicts another.
    """

    analysis: Analysis = "saturation"
    kv_cache_threshold: float = 0.80
    queue_length_threshold: float = 5.0
    kv_spare_trigger: float = 0.10
    queue_spare_trigger: float = 3.0
    scale_up_threshold: float = 0.85
    scale_down_boundary: float = 0.70
    peak_window_s: float = 60.0
    stale_after_s: float = 15.0
    scale_down_window_s: float = 300.0
    max_down_share: float = 0.25
    down_period_s: float = 15.0
    max_up_step: int = 8
    change_penalty: float = 0.05

    def __post_init__(self) -> None:
        if self.analysis not in ANALYSES:
            raise ValueError(f"analysis {self.analysis!r}, want one of: {', '.join(ANALYSES)}")
        for field in fields(self):
            value = getattr(self, field.name)
            # Written so that NaN, which compares false with everything, is refused too.
            if field.name != "analysis" and not 0 <= value < float("inf"):
                raise ValueError(f"{field.name} {value}, want a finite number of at least 0")
        for name in ("kv_cache_threshold", "max_down_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)}, want above 0 and at most 1")
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

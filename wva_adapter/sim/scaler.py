"""What a scaling law may see, and what it answers: the seam between the fleet and its scaler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from wva_adapter.core.snapshot import Phase


@dataclass(frozen=True, slots=True)
class PodView:
    """One pod as its API object tells.

    Attributes:
        name: Unique over the run.
        created_at_s: Model seconds of its creation.
        ready_at_s: From when it is Ready; ``None`` while it is not.
        scheduled: Whether a node has room for it.
    """

    name: str
    phase: Phase
    created_at_s: float
    ready_at_s: float | None
    scheduled: bool = True


@dataclass(frozen=True, slots=True)
class VariantView:
    """One variant as its scale target tells.

    Attributes:
        spec_replicas: The count that it was asked for.
        min_replicas: Fewest replicas allowed.
        max_replicas: Most replicas allowed.
        pods: Every pod that exists, terminating ones too, oldest first.
    """

    name: str
    spec_replicas: int
    min_replicas: int
    max_replicas: int
    pods: Sequence[PodView]

    @property
    def status_replicas(self) -> int:
        """Pods that are not terminating."""
        return sum(pod.phase is not Phase.TERMINATING for pod in self.pods)

    @property
    def ready_replicas(self) -> int:
        """Pods that serve."""
        return sum(pod.phase is Phase.READY for pod in self.pods)


class Metrics(Protocol):
    """What has been scraped so far, as a monitoring system would hand it out.

    Series belong to a variant, or to the model as a whole (``variant=None``): for the model they
    are the sum (counts, tokens) or the mean over endpoints (shares) that the variant's would give.
    """

    def value(self, series: str, now_s: float, variant: str | None = None) -> float | None:
        """Return the newest sample that can be seen now; ``None`` where there is none.

        Raises:
            KeyError: No series has this name.
        """
        ...

    def window(
        self, series: str, now_s: float, span_s: float, variant: str | None = None
    ) -> Sequence[float]:
        """Return the samples of the last ``span_s`` seconds that can be seen now, oldest first.

        Raises:
            KeyError: No series has this name.
        """
        ...


class Scaler(Protocol):
    """A law that sets counts.

    Attributes:
        period_s: It is asked every so often, first at ``period_s``.
    """

    @property
    def period_s(self) -> float: ...

    def act(
        self, now_s: float, fleet: Sequence[VariantView], metrics: Metrics
    ) -> Mapping[str, int]:
        """Return the counts to set now, by variant; one that is not named stays as it is."""
        ...


@runtime_checkable
class Explains(Protocol):
    """A law that can say why it sets a count."""

    def why(self, variant: str) -> str:
        """Return what led to the count that was set last, in words."""
        ...

"""A stand-in for the HPA controller: reads the external metrics API as it does, and scales."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import quote

import httpx

from wva_adapter.core.fleet import VariantKey
from wva_adapter.core.hpa import External, Scale, usage_milli
from wva_adapter.core.hpa_sync import RECOMMENDED, SYNC_S, Behavior, Bounds, HpaState, sync

METRIC = "wva_desired_replicas"

_SUFFIX_MILLI = {"m": 1, "": 1000, "k": 1000_000, "M": 1000_000_000}


def quantity_milli(text: str) -> int:
    """Return the thousandths of a canonical Kubernetes quantity such as ``3``, ``8001m`` or ``2k``.

    Raises:
        ValueError: It is not one.
    """
    number = text.rstrip("mkM")
    suffix = text[len(number) :]
    if suffix not in _SUFFIX_MILLI:
        raise ValueError(f"{text!r} is no canonical quantity")
    return int(number) * _SUFFIX_MILLI[suffix]


@dataclass(frozen=True, slots=True)
class Scaling:
    """One HorizontalPodAutoscaler: whom it scales, and within which bounds.

    Attributes:
        replicas: Returns the target's count now.
        scale: Sets it, as a write to ``/scale`` would.
    """

    key: VariantKey
    min_replicas: int
    max_replicas: int
    replicas: Callable[[], int]
    scale: Callable[[int], None]


@dataclass(slots=True)
class Standing:
    """How one autoscaler stands, as ``kubectl get hpa`` would show it.

    Attributes:
        value_milli: The value read last; ``None`` while it is ``<unknown>``.
        problem: Why it is unknown.
        state: What the controller remembers of it.
    """

    value_milli: int | None = None
    problem: str | None = None
    state: HpaState = field(default_factory=HpaState)


class HpaController:
    """The controller's loop for ``AverageValue: 1``.

    Args:
        url: Where the adapter serves.
        context: Trusts the adapter's CA.
        scalings: The autoscalers.
        behavior: Of all of them.
        sync_s: Seconds between two looks at each of them.
        clock: Returns the seconds that windows and periods are counted in.
    """

    def __init__(
        self,
        url: str,
        context: ssl.SSLContext,
        scalings: tuple[Scaling, ...],
        *,
        behavior: Behavior = RECOMMENDED,
        sync_s: float = SYNC_S,
        clock: Callable[[], float],
    ) -> None:
        self._scalings = scalings
        self._behavior = behavior
        self._sync_s = sync_s
        self._clock = clock
        self._client = httpx.AsyncClient(
            base_url=url,
            verify=context,
            timeout=10,
            trust_env=False,
            headers={"accept": "application/json, */*"},
        )
        # What is at zero now counts as left there by the controller: else it would never wake it.
        self.standing = {
            scaling.key: Standing(state=HpaState(scaled_to_zero=scaling.replicas() == 0))
            for scaling in scalings
        }

    async def run(self) -> None:
        """Look at every autoscaler once per sync, until cancelled."""
        async with self._client:
            while True:
                for scaling in self._scalings:
                    await self._sync(scaling)
                await asyncio.sleep(self._sync_s)

    async def _sync(self, scaling: Scaling) -> None:
        standing, current = self.standing[scaling.key], scaling.replicas()
        bounds = Bounds(scaling.min_replicas, scaling.max_replicas)
        metric = External(METRIC, ())
        if bounds.minimum <= current <= bounds.maximum:
            # Outside its bounds the controller moves without reading any metric.
            try:
                metric = External(METRIC, await self._read(scaling.key))
                standing.value_milli, standing.problem = usage_milli(metric.values_milli), None
            except (httpx.HTTPError, ValueError) as error:
                problem = str(error) or type(error).__name__
                metric = External(METRIC, (), problem=problem)
                standing.value_milli, standing.problem = None, problem
        scale = Scale(current, current, current)
        count, standing.state, _ = sync(
            self._clock(), scale, (metric,), bounds, self._behavior, standing.state
        )
        if count != current:
            scaling.scale(count)

    async def _read(self, key: VariantKey) -> list[int]:
        selector = quote(f"variant_name={key.name}", safe="")
        response = await self._client.get(
            f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{key.namespace}/{METRIC}"
            f"?labelSelector={selector}"
        )
        document = json.loads(response.content)
        if response.status_code != 200:
            raise ValueError(document.get("message", f"HTTP {response.status_code}"))
        items = document["items"]
        if not items:
            raise ValueError("no metrics returned from external metrics API")
        return [quantity_milli(item["value"]) for item in items]

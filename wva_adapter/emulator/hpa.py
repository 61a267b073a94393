"""A stand-in for the HPA controller: reads the external metrics API as it does, and scales."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import quote

import httpx

from wva_adapter.core.fleet import VariantKey
from wva_adapter.core.hpa import average_value_replicas, usage_milli

METRIC = "wva_desired_replicas"
SYNC_S = 15.0
"""How often the controller looks, as shipped."""

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
    """

    value_milli: int | None = None
    problem: str | None = None
    starts: deque[tuple[float, int]] = field(default_factory=deque)


class HpaController:
    """The controller's loop for ``AverageValue: 1`` with tolerance 0 and these behaviours: up
    Max(100 %, 4 pods) per 15 s, down at once.

    Args:
        url: Where the adapter serves.
        context: Trusts the adapter's CA.
        scalings: The autoscalers.
        sync_s: Seconds of the loop between two looks at each of them.
        period_s: Seconds of the loop in which the up policies count.
    """

    def __init__(
        self,
        url: str,
        context: ssl.SSLContext,
        scalings: tuple[Scaling, ...],
        *,
        sync_s: float = SYNC_S,
        period_s: float = 15.0,
    ) -> None:
        self._scalings = scalings
        self._sync_s = sync_s
        self._period_s = period_s
        self._client = httpx.AsyncClient(
            base_url=url,
            verify=context,
            timeout=10,
            trust_env=False,
            headers={"accept": "application/json, */*"},
        )
        self.standing = {scaling.key: Standing() for scaling in scalings}

    async def run(self) -> None:
        """Look at every autoscaler once per sync, until cancelled."""
        async with self._client:
            while True:
                for scaling in self._scalings:
                    await self._sync(scaling)
                await asyncio.sleep(self._sync_s)

    async def _sync(self, scaling: Scaling) -> None:
        standing, current = self.standing[scaling.key], scaling.replicas()
        if not scaling.min_replicas <= current <= scaling.max_replicas:
            # The controller moves to the bound without reading any metric.
            scaling.scale(max(scaling.min_replicas, min(current, scaling.max_replicas)))
            return
        try:
            usage = usage_milli(await self._read(scaling.key))
        except (httpx.HTTPError, ValueError) as error:
            # No value: the count stays, and the next sync asks again.
            standing.value_milli, standing.problem = None, str(error) or type(error).__name__
            return
        standing.value_milli, standing.problem = usage, None
        proposed = average_value_replicas(current, usage, tolerance_up=0.0, tolerance_down=0.0)
        count = min(proposed, self._ceiling(standing, current))
        count = max(scaling.min_replicas, min(count, scaling.max_replicas))
        if count > current:
            standing.starts.append((asyncio.get_running_loop().time(), count - current))
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

    def _ceiling(self, standing: Standing, current: int) -> int:
        """Return the largest count that the up policies allow now."""
        now = asyncio.get_running_loop().time()
        while standing.starts and now - standing.starts[0][0] > self._period_s:
            standing.starts.popleft()
        before = current - sum(added for _, added in standing.starts)
        return max(2 * before, before + 4)

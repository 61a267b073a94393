"""Other providers' metrics through this port: asked as ourselves, passed on as they answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from wva_adapter.serve.hot import Asked
from wva_adapter.serve.list_options import ListOptions
from wva_adapter.serve.negotiation import Reply, reply_refusal
from wva_adapter.serve.upstream import Upstream, UpstreamError
from wva_adapter.serve.wire import unavailable

_OWN_PREFIX: Final = "wva_"
_KEDA_LABEL: Final = "scaledobject.keda.sh/name"
_KEDA_METRIC: Final = re.compile(r"s\d+-")


class Chain:
    """Providers behind this one, and which metric is whose.

    The request has been authenticated and authorized here as its caller's; the provider sees this
    adapter ask. What a provider answers goes back as it came, a refusal of ours excepted.

    Args:
        upstreams: In the order of the settings; they win over a former owner.
        timeout_s: How long a provider may take; less where the caller asks for less.
        is_own: Whether a metric is served here.
    """

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        *,
        timeout_s: float,
        is_own: Callable[[str], bool] = lambda metric: metric.startswith(_OWN_PREFIX),
    ) -> None:
        self._configured = tuple(upstreams)
        self._former: Upstream | None = None
        self._left: list[Upstream] = []
        self._timeout_s = timeout_s
        self._is_own = is_own

    @property
    def upstreams(self) -> tuple[Upstream, ...]:
        """All of them, the former owner last."""
        return self._configured if self._former is None else (*self._configured, self._former)

    def follow(self, former: Upstream | None) -> None:
        """Take another former owner from now on; requests to the one before may still end."""
        if self._former is not None:
            self._left.append(self._former)
        self._former = former

    async def close(self) -> None:
        """Close the connections."""
        for upstream in (*self.upstreams, *self._left):
            await upstream.close()

    def claims(self, metric: str, selector_text: str) -> bool:
        """Return whether the metric is one of theirs."""
        return self._provider_of(metric, selector_text) is not None

    def _provider_of(self, metric: str, selector_text: str) -> Upstream | None:
        upstreams = self.upstreams
        if _KEDA_LABEL in selector_text or _KEDA_METRIC.match(metric):
            keda = next((u for u in upstreams if u.keda), None)
            if keda is not None:
                return keda
        if self._is_own(metric):
            return None
        return next((u for u in upstreams if u.default), None)

    async def reply(self, asked: Asked, options: ListOptions) -> Reply:
        """Return the provider's answer, or a 503 that says which one has none and why."""
        provider = self._provider_of(asked.metric, str(options.selector))
        if provider is None:
            # It went away after it was asked for: the former owner was put back.
            return reply_refusal(asked.caller, unavailable(f"{asked.metric}: no provider any more"))
        try:
            return await provider.ask(
                asked.path,
                asked.caller,
                audit_id=asked.audit_id,
                timeout_s=min(self._timeout_s, options.timeout_s),
            )
        except UpstreamError as error:
            message = f"provider {provider.name} of metric {asked.metric}: {error}"
            return reply_refusal(asked.caller, unavailable(message))

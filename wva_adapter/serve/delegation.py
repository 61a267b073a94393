"""Who may ask is the cluster's business: its parts put together, and kept current."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from starlette.types import ASGIApp

from wva_adapter.kube.api import KubernetesApi
from wva_adapter.serve.attributes import QueryReads
from wva_adapter.serve.authentication import Authenticator
from wva_adapter.serve.authorization import ALWAYS_ALLOWED, Authorizer
from wva_adapter.serve.guard import Guard
from wva_adapter.serve.lookup import TrustLookup
from wva_adapter.serve.reviews import ClusterReviews, MembersOnly
from wva_adapter.serve.trust import Trust


@dataclass(frozen=True, slots=True)
class Memory:
    """How long an answer of the cluster holds, in seconds; 0 asks every time."""

    token_s: float = 10.0
    allowed_s: float = 10.0
    denied_s: float = 10.0


class Delegation:
    """Authentication and authorization as the cluster has them.

    Args:
        api: Who reviews tokens and access; ``None`` where there is no cluster: then everybody who
            has a certificate by a trusted authority may do everything.
        files: Reads what the operator's files say of trust.
        lookup: Whether the cluster's ConfigMap is read for what the files don't say.
        on_client_cas: Called with all authorities of clients' certificates, whenever they change.

    Raises:
        ConfigError: A file cannot be used.
    """

    def __init__(
        self,
        api: KubernetesApi | None,
        *,
        files: Callable[[], Trust],
        lookup: bool,
        on_client_cas: Callable[[bytes], None],
        memory: Memory = Memory(),
        always_allowed: Collection[str] = ALWAYS_ALLOWED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._clock = clock
        reviews = MembersOnly() if api is None else ClusterReviews(api)
        self._authenticator = Authenticator(
            reviews, Trust(), token_cache_s=memory.token_s, clock=clock
        )
        self._authorizer = Authorizer(
            reviews,
            allowed_cache_s=memory.allowed_s,
            denied_cache_s=memory.denied_s,
            always_allowed=always_allowed,
            clock=clock,
        )
        self._on_client_cas = on_client_cas
        self._lookup = TrustLookup(
            files, api=api if lookup else None, on_trust=self._believe, clock=clock
        )

    def guard(self, app: ASGIApp, *, query_reads: QueryReads | None = None) -> Guard:
        """Return the application behind its door."""
        return Guard(
            app,
            self._authenticator,
            self._authorizer,
            query_reads=query_reads,
            clock=self._clock,
        )

    def problem(self) -> str | None:
        """Return why it is not known yet whose certificates to believe."""
        return self._lookup.problem()

    async def run(self) -> None:
        """Keep trust current until cancelled.

        Raises:
            ConfigError: The first ConfigMap that was found cannot be used.
        """
        try:
            await self._lookup.run()
        finally:
            if self._api is not None:
                await self._api.close()

    def _believe(self, trust: Trust) -> None:
        # First the connection, then the request: who connects meanwhile is not believed yet.
        self._on_client_cas(trust.pem)
        self._authenticator.trust = trust

"""The whole port as it is in a cluster: TLS, guard and application, with an API server behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.collect.apiserver import eventually
from tests.serve.cluster import Certificates, ReviewingApi, an_api, trusting
from tests.serve.fixture import AT_S, KUBECTL, Fixture, an_app, own_tls
from wva_adapter.core.answer import Matcher
from wva_adapter.kube.api import KubernetesApi
from wva_adapter.serve.app import in_front
from wva_adapter.serve.attributes import QueryReads
from wva_adapter.serve.delegation import Delegation
from wva_adapter.serve.envelope import Envelope
from wva_adapter.serve.hot import MetricReads, Told
from wva_adapter.serve.identity import User
from wva_adapter.serve.server import Server
from wva_adapter.serve.trust import Trust


class Witness(Fixture):
    """The fixture's provider, which remembers the namespaces that it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def answer(self, namespace: str, metric: str, matches: Matcher) -> Told | Awaitable[Told]:
        self.asked.append((namespace, metric))
        return super().answer(namespace, metric, matches)


class Door:
    """A port, who is behind it, and clients that call it.

    Attributes:
        let_in: User, method and path of each request that got past the guard.
        provider: Knows which namespaces and metrics were asked for.
    """

    def __init__(
        self,
        folder: Path,
        certificates: Certificates,
        api: ReviewingApi,
        *,
        app: ASGIApp | None = None,
        files: Callable[[], Trust] = Trust,
        lookup: bool = True,
        clock: Callable[[], float] = time.monotonic,
        query_reads: QueryReads | None = None,
    ) -> None:
        self.api = api
        self.certificates = certificates
        self.ca_file = folder / "serving" / "ca.crt"
        tls = own_tls(folder / "serving")
        cluster = KubernetesApi(api.write_kubeconfig(folder / "kubeconfig"))
        self.delegation = Delegation(
            cluster,
            files=files,
            lookup=lookup,
            on_client_cas=tls.trust_clients,
            clock=clock,
        )
        self.provider = Witness()
        self.let_in: list[tuple[str, str, str]] = []

        def guard(inside: ASGIApp) -> ASGIApp:
            return self.delegation.guard(self._noting(inside), query_reads=query_reads)

        if app is None:
            reads = MetricReads(self.provider, clock=lambda: AT_S)
            app = in_front(an_app(), reads, guard=guard)
        else:
            app = Envelope(guard(app))
        self.server = Server(app, host="127.0.0.1", port=0, ssl_context=tls.context)

    def _noting(self, inside: ASGIApp) -> ASGIApp:
        async def note(scope: Scope, receive: Receive, send: Send) -> None:
            user: User = scope["state"]["user"]
            self.let_in.append((user.name, scope["method"], scope["path"]))
            await inside(scope, receive, send)

        return note

    @asynccontextmanager
    async def client(
        self, pair: tuple[Path, Path] | None = None
    ) -> AsyncIterator[httpx.AsyncClient]:
        """A client that shows this certificate and speaks as kubectl does."""
        async with httpx.AsyncClient(
            verify=trusting(self.ca_file, pair),
            base_url=self.server.url,
            headers=KUBECTL,
            trust_env=False,
        ) as client:
            yield client

    async def get(
        self,
        path: str,
        pair: tuple[Path, Path] | None = None,
        headers: list[tuple[str, str]] | dict[str, str] | None = None,
        *,
        method: str = "GET",
    ) -> httpx.Response:
        async with self.client(pair) as client:
            return await client.request(method, path, headers=headers)


@asynccontextmanager
async def a_door(folder: Path, certificates: Certificates, **options: Any) -> AsyncIterator[Door]:
    """A port that knows whom to believe."""
    async with an_api(**certificates.config_map) as api:
        door = Door(folder, certificates, api, **options)
        await door.server.start()
        running = asyncio.create_task(door.delegation.run())
        try:
            await eventually(lambda: door.delegation.problem() is None)
            yield door
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await door.server.stop(1)

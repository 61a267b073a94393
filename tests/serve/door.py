"""The whole port as it is in a cluster: TLS, guard and application, with an API server behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from starlette.types import ASGIApp

from tests.collect.apiserver import eventually
from tests.serve.cluster import Certificates, ReviewingApi, trusting
from tests.serve.fixture import KUBECTL, an_app, own_tls
from wva_adapter.kube.api import KubernetesApi
from wva_adapter.serve.attributes import QueryReads
from wva_adapter.serve.delegation import Delegation
from wva_adapter.serve.envelope import Envelope
from wva_adapter.serve.server import Server
from wva_adapter.serve.trust import Trust


class Door:
    """A port, who is behind it, and clients that call it."""

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
        guard = self.delegation.guard(app or an_app(), query_reads=query_reads)
        self.server = Server(Envelope(guard), host="127.0.0.1", port=0, ssl_context=tls.context)

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
async def a_door(
    folder: Path, certificates: Certificates, *, api: ReviewingApi | None = None, **options: object
) -> AsyncIterator[Door]:
    """A port that knows whom to believe, unless its API server says nothing of that."""
    given = api is not None
    if api is None:
        api = ReviewingApi()
        api.put_config_map(**certificates.config_map)
        await api.start()
    door = Door(folder, certificates, api, **options)  # type: ignore[arg-type]
    await door.server.start()
    running = asyncio.create_task(door.delegation.run())
    try:
        if not given:
            await eventually(lambda: door.delegation.problem() is None)
        yield door
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await door.server.stop(1)
        if not given:
            await api.stop()

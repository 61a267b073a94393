"""Three ports in one process, to be loaded one after the other: guarded, open, and plain FastAPI.

``python -m tests.bench.served DIR`` writes the certificates of its callers into DIR and prints the
three port numbers in one line.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import uvloop
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.types import ASGIApp

from tests.conformance.fixture import AT_S, FixtureMetrics, FixtureReviews, write_pki
from tests.serve.fixture import own_tls
from wva_adapter.publish.board import Board
from wva_adapter.serve.app import create_app, in_front
from wva_adapter.serve.authentication import Authenticator
from wva_adapter.serve.authorization import Authorizer
from wva_adapter.serve.guard import Guard
from wva_adapter.serve.hot import MetricReads
from wva_adapter.serve.request_metrics import RequestMetrics
from wva_adapter.serve.server import Server


class Value(BaseModel):
    """One value, as a plain application would declare it."""

    metricName: str
    metricLabels: dict[str, str]
    timestamp: datetime
    window: int | None = None
    value: str


class Values(BaseModel):
    """The list that the plain route returns."""

    kind: Literal["ExternalMetricValueList"] = "ExternalMetricValueList"
    apiVersion: str = "external.metrics.k8s.io/v1beta1"
    metadata: dict[str, str] = {}
    items: list[Value]


def plain_app() -> FastAPI:
    """Return what one writes first: a route, a query parameter, a model; nobody is asked who it is."""
    app = FastAPI()

    @app.get("/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{metric}")
    async def read(namespace: str, metric: str, labelSelector: str = "") -> Values:
        value = Value(
            metricName=metric,
            metricLabels={"app": labelSelector.partition("=")[2], "env": "prod"},
            timestamp=datetime.fromtimestamp(AT_S, UTC),
            window=60,
            value="3",
        )
        return Values(items=[value])

    return app


async def serve(folder: Path, stop: asyncio.Event) -> None:
    """Serve the three until ``stop`` is set."""
    trust = write_pki(folder)
    tls = own_tls(folder / "serving")
    tls.trust_clients(trust.pem)
    reviews = FixtureReviews()
    authenticator, authorizer = Authenticator(reviews, trust), Authorizer(reviews)
    reads = MetricReads(FixtureMetrics(), clock=lambda: AT_S)
    app = create_app(reads, Board(60.0, lambda: AT_S), metrics=bytes, ready={})
    metrics = RequestMetrics()
    ports: tuple[ASGIApp, ...] = (
        in_front(
            app,
            reads,
            guard=lambda inside: Guard(inside, authenticator, authorizer),
            metrics=metrics,
        ),
        in_front(app, reads, metrics=metrics),
        plain_app(),
    )
    servers = [Server(port, host="127.0.0.1", port=0, ssl_context=tls.context) for port in ports]
    for server in servers:
        await server.start()
    print(*(server.port for server in servers), flush=True)
    await stop.wait()
    for server in servers:
        await server.stop(1)


def main() -> None:
    """Run until SIGTERM."""

    async def run() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await serve(Path(sys.argv[1]), stop)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


if __name__ == "__main__":
    main()

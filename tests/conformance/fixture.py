"""The adapter's own port over metrics that a conformance probe knows.

``python -m tests.conformance.fixture --pki DIR --port N`` writes the certificates that a probe needs
into DIR, prints ``ready`` once it serves, and serves until SIGTERM or Ctrl-C. Nobody but user
``bob`` and who is anonymous is denied anything; tokens that start with ``good`` are somebody's.
"""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Awaitable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import click
import uvloop

from tests.pki import Authority
from tests.serve.fixture import own_tls
from wva_adapter.core.answer import Answer, Item, Items, Matcher, NoPlan, NotFound
from wva_adapter.errors import ConfigError
from wva_adapter.publish.board import Board
from wva_adapter.publish.telemetry import Telemetry
from wva_adapter.serve.app import create_app, in_front
from wva_adapter.serve.authentication import Authenticator
from wva_adapter.serve.authorization import Authorizer
from wva_adapter.serve.guard import Guard
from wva_adapter.serve.hot import MetricReads, Told
from wva_adapter.serve.identity import AUTHENTICATED, IdentityHeaders, User
from wva_adapter.serve.request_metrics import RequestMetrics
from wva_adapter.serve.reviews import Access, AccessSpec
from wva_adapter.serve.server import Server
from wva_adapter.serve.trust import Bundle, FrontProxy, Trust
from wva_adapter.serve.wire import Refusal, bad_request, internal_error

AT_S = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()
FRONT_PROXY = "front-proxy-client"
_SLOW_S = 90.0
_SUFFIXES = {"m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_QUANTITY = re.compile(r"q-(-?[0-9.]+)([mkMGTPE]?)")
_SERIES = (
    ({"app": "a", "env": "prod"}, 3000, 60),
    ({"app": "b", "env": "prod"}, 1500, 0),
    ({"app": "c"}, 12_000_000, None),
)


class FixtureMetrics:
    """Any metric has three series; some names stand for a trouble or a single value."""

    version = 0

    def answer(self, namespace: str, metric: str, matches: Matcher) -> Told | Awaitable[Told]:
        """Return what the probe expects of this name."""
        match metric:
            case "empty" | "nilitems":
                return Items(())
            case "nillabels" | "zerots":
                return Items((Item(metric, {}, 3000, AT_S),))
            case "notfound":
                return NotFound(
                    "the server could not find the metric notfound for "
                    "notfound.external.metrics.k8s.io"
                )
            case "boom":
                return Refusal(500, "plain go error")
            case "internal":
                return internal_error("unable to fetch metrics")
            case "timeout":
                return NoPlan("backend unavailable")
            case "badrequest":
                return bad_request("a bad request")
            case "slow":
                return _slow(metric)
            case "big":
                labels = ({"pod": f"pod-{number:04}"} for number in range(2000))
                return Items(
                    tuple(Item(metric, one, 1000 * i, AT_S) for i, one in enumerate(labels))
                )
        if (named := _QUANTITY.fullmatch(metric)) is not None:
            milli = Decimal(named[1]).scaleb(_SUFFIXES[named[2]] + 3)
            return Items((Item(metric, {}, int(milli), AT_S),))
        return Items(
            tuple(
                Item(metric, labels, milli, AT_S, window_s)
                for labels, milli, window_s in _SERIES
                if matches(labels)
            )
        )


async def _slow(metric: str) -> Answer:
    await asyncio.sleep(_SLOW_S)
    return Items((Item(metric, {}, 1000, AT_S),))


class FixtureReviews:
    """Stands in for the cluster's opinion on tokens and access."""

    async def review_token(self, token: str) -> User | None:
        """Return a user for what starts with ``good``."""
        return User(f"user-of-{token}", (AUTHENTICATED,)) if token.startswith("good") else None

    async def review_access(self, spec: AccessSpec) -> Access:
        """Return no for bob and for nobody, yes for everybody else."""
        return Access(spec.user.name not in ("bob", "system:anonymous"))


def write_pki(folder: Path) -> Trust:
    """Write the certificates of the probe's callers; return whom to believe.

    ``front-proxy`` and ``front-proxy-bad`` (another common name) are by one authority, ``alice`` by
    that of clients, ``rogue`` has the proxy's name by an authority that nobody trusts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    proxies = Authority(folder, "requestheader-ca")
    clients = Authority(folder, "client-ca")
    strangers = Authority(folder, "rogue-ca")
    for stem, authority, name in (
        ("front-proxy", proxies, FRONT_PROXY),
        ("front-proxy-bad", proxies, "someone-else"),
        ("alice", clients, "alice"),
        ("rogue", strangers, FRONT_PROXY),
    ):
        for written, suffix in zip(authority.issue(name), ("crt", "key"), strict=True):
            written.rename(folder / f"{stem}.{suffix}")

    def bundle(authority: Authority) -> Bundle:
        return Bundle.parse(authority.file.read_bytes(), str(authority.file))

    return Trust(
        front_proxy=FrontProxy(bundle(proxies), frozenset((FRONT_PROXY,)), IdentityHeaders()),
        clients=bundle(clients),
    )


async def serve(pki: Path, port: int, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set.

    Raises:
        ConfigError: The port is in use.
    """
    trust = write_pki(pki)
    tls = own_tls(pki / "serving")
    tls.trust_clients(trust.pem)
    reviews = FixtureReviews()
    authenticator, authorizer = Authenticator(reviews, trust), Authorizer(reviews)
    reads = MetricReads(FixtureMetrics(), clock=lambda: AT_S)
    board = Board(60.0, lambda: AT_S)
    telemetry = Telemetry(board, clock=lambda: AT_S)
    requests = RequestMetrics()
    telemetry.registry.register(requests)
    app = create_app(reads, board, metrics=telemetry.page, ready={"informer-sync": lambda: None})
    port_app = in_front(
        app,
        reads,
        guard=lambda inside: Guard(inside, authenticator, authorizer),
        metrics=requests,
    )
    server = Server(
        port_app, host="127.0.0.1", port=port, ssl_context=tls.context, listen_anywhere=True
    )
    await server.start()
    click.echo("ready")
    await stop.wait()
    await server.stop(1)


@click.command()
@click.option("--pki", required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--port", required=True, type=int)
def main(pki: Path, port: int) -> None:
    """Serve the fixture metrics until told to end."""

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve(pki, port, stop)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())
    except ConfigError as error:
        raise click.UsageError(str(error)) from None


if __name__ == "__main__":
    main()

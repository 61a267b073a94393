"""What other providers serve comes through this port unchanged, and only theirs fails with them."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from aiohttp import web

from tests.pki import Authority
from tests.serve.fixture import KUBECTL, NAMESPACE, Fixture
from wva_adapter.serve.chain import Chain
from wva_adapter.serve.envelope import Envelope
from wva_adapter.serve.hot import HotPath, MetricReads
from wva_adapter.serve.upstream import FileToken, Identity, Trusted, Upstream

pytestmark = pytest.mark.anyio

KEDA_QUERY = "labelSelector=scaledobject.keda.sh%2Fname%3Dqueue&timeout=3s"
PROTOBUF = b"k8s\x00\x0a\x00\xff\xfe rest of it"


class Provider:
    """A metrics server on loopback that answers as it is told, and remembers how it was asked."""

    def __init__(self, folder: Path, name: str = "other") -> None:
        self.authority = Authority(folder, f"{name}-ca")
        self._pair = self.authority.issue(
            name, hosts=["localhost", "keda-metrics-apiserver.keda.svc"]
        )
        self.asked: list[web.BaseRequest] = []
        self.answer = web.Response
        self.code = 200
        self.body = b'{"items":[]}\n'
        self.headers: dict[str, str] = {"Content-Type": "application/json"}
        self.hang_s = 0.0
        self.client_ca: Path | None = None
        self.peers: list[object] = []
        self._port = 0
        self._runner: web.ServerRunner | None = None

    @property
    def url(self) -> str:
        return f"https://localhost:{self._port}"

    async def start(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self._pair)
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_OPTIONAL
            context.load_verify_locations(self.client_ca)
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=context)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(request)
        assert request.transport is not None
        self.peers.append(request.transport.get_extra_info("peercert"))
        await asyncio.sleep(self.hang_s)
        return web.Response(body=self.body, status=self.code, headers=self.headers)

    def upstream(
        self,
        name: str = "keda",
        *,
        identity: Identity | None = None,
        trusted: Trusted | None = None,
        keda: bool = True,
        default: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> Upstream:
        return Upstream(
            name,
            self.url,
            trusted=trusted or Trusted(ca=self.authority.file.read_bytes),
            identity=identity or Identity(),
            keda=keda,
            default=default,
            clock=clock,
        )


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[Provider]:
    provider = Provider(tmp_path)
    await provider.start()
    yield provider
    await provider.stop()


@asynccontextmanager
async def chained(*upstreams: Upstream, timeout_s: float = 4.0) -> AsyncIterator[httpx.AsyncClient]:
    chain = Chain(upstreams, timeout_s=timeout_s)
    reads = MetricReads(Fixture(), clock=lambda: 0.0, elsewhere=chain)

    async def no_route(scope: object, receive: object, send: object) -> None:
        raise AssertionError("only the read path is asked here")

    transport = httpx.ASGITransport(Envelope(HotPath(no_route, reads)))
    try:
        async with httpx.AsyncClient(
            transport=transport, base_url="https://adapter", headers=KUBECTL
        ) as client:
            yield client
    finally:
        await chain.close()


def message(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert document["kind"] == "Status"
    assert document["code"] == answer.status_code == 503
    assert document["reason"] == "ServiceUnavailable"
    assert "retry-after" not in answer.headers
    return str(document["message"])


@pytest.mark.parametrize(
    ("metric", "selector", "whose"),
    [
        ("s0-prometheus", "scaledobject.keda.sh/name=queue", "keda"),
        ("s12-kafka-lag", "", "keda"),
        ("queue_length", "scaledobject.keda.sh/name=queue,a=b", "keda"),
        ("wva_desired_replicas", "variant_name=a", None),
        ("wva_no_such_metric", "", None),
        ("s-12", "", "others"),
        ("sessions", "app=a", "others"),
    ],
)
async def test_a_metric_is_keda_s_ours_or_the_default_s(
    metric: str, selector: str, whose: str | None
) -> None:
    keda = Upstream("keda", "https://localhost:1", keda=True)
    others = Upstream("others", "https://localhost:2", default=True)
    chain = Chain([others, keda], timeout_s=1)
    assert chain.claims(metric, selector) == (whose is not None)
    assert Chain([keda], timeout_s=1).claims(metric, selector) == (whose == "keda")
    # A default that is KEDA itself need not say so: what is KEDA's is not ours.
    assert Chain([others], timeout_s=1).claims(metric, selector) == (whose is not None)
    assert not Chain([], timeout_s=1).claims(metric, selector)


async def test_path_query_and_accept_reach_the_provider_as_they_came(provider: Provider) -> None:
    accept = "application/vnd.kubernetes.protobuf, */*"
    async with chained(provider.upstream()) as client:
        answer = await client.get(
            f"{NAMESPACE}/s0-a%20b?{KEDA_QUERY}",
            headers={"Accept": accept, "Audit-ID": "7d2d9f51", "X-Remote-User": "admin"},
        )
    assert answer.status_code == 200
    (asked,) = provider.asked
    assert asked.raw_path == f"{NAMESPACE}/s0-a%20b?{KEDA_QUERY}"
    assert asked.headers["Accept"] == accept
    assert asked.headers["Audit-ID"] == "7d2d9f51" == answer.headers["audit-id"]
    assert asked.headers["User-Agent"].startswith("wva-adapter/")
    # The caller's word on who it is stays here.
    assert "X-Remote-User" not in asked.headers
    assert "Authorization" not in asked.headers


@pytest.mark.parametrize("code", [200, 400, 404, 429, 500, 503])
async def test_status_type_and_bytes_come_back_as_the_provider_gave_them(
    provider: Provider, code: int
) -> None:
    provider.code, provider.body = code, PROTOBUF
    provider.headers = {
        "Content-Type": "application/vnd.kubernetes.protobuf",
        "Retry-After": "30",
        "Set-Cookie": "a=b",
    }
    async with chained(provider.upstream()) as client:
        answer = await client.get(f"{NAMESPACE}/s0-a")
    assert answer.status_code == code
    assert answer.content == PROTOBUF
    assert answer.headers["content-type"] == "application/vnd.kubernetes.protobuf"
    assert answer.headers["content-length"] == str(len(PROTOBUF))
    # For this one, a client of Kubernetes would wait ten times inside a worker that scales others.
    assert "retry-after" not in answer.headers
    assert "set-cookie" not in answer.headers


async def test_a_compressed_answer_stays_compressed(provider: Provider) -> None:
    provider.body = gzip.compress(b"{}", mtime=0)
    provider.headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    async with (
        chained(provider.upstream()) as client,
        client.stream("GET", f"{NAMESPACE}/s0-a", headers={"Accept-Encoding": "gzip"}) as answer,
    ):
        assert answer.headers["content-encoding"] == "gzip"
        assert b"".join([piece async for piece in answer.aiter_raw()]) == provider.body
    assert provider.asked[0].headers["Accept-Encoding"] == "gzip"


async def test_connections_are_kept(provider: Provider) -> None:
    async with chained(provider.upstream()) as client:
        for _ in range(5):
            assert (await client.get(f"{NAMESPACE}/s0-a")).status_code == 200
    assert len({id(asked.transport) for asked in provider.asked}) == 1


async def test_we_show_our_token_as_it_is_at_that_moment(
    provider: Provider, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    async with chained(provider.upstream(identity=Identity(FileToken(file)))) as client:
        await client.get(f"{NAMESPACE}/s0-a", headers={"Authorization": "Bearer the-caller-s"})
        file.write_text("second\n")
        await client.get(f"{NAMESPACE}/s0-a")
    assert [a.headers["Authorization"] for a in provider.asked] == ["Bearer first", "Bearer second"]


async def test_we_show_our_certificate_where_one_is_given(tmp_path: Path) -> None:
    clients = Authority(tmp_path, "clients")
    provider = Provider(tmp_path)
    provider.client_ca = clients.file
    await provider.start()
    identity = Identity(certificate=clients.issue("wva-adapter"))
    try:
        async with chained(provider.upstream(identity=identity)) as client:
            assert (await client.get(f"{NAMESPACE}/s0-a")).status_code == 200
    finally:
        await provider.stop()
    (peer,) = provider.peers
    assert (("commonName", "wva-adapter"),) in peer["subject"]  # type: ignore[index]


async def test_the_certificate_may_be_for_the_service_s_name(provider: Provider) -> None:
    ca = provider.authority.file.read_bytes
    good = provider.upstream(trusted=Trusted("keda-metrics-apiserver.keda.svc", ca))
    async with chained(good) as client:
        assert (await client.get(f"{NAMESPACE}/s0-a")).status_code == 200
    bad = provider.upstream(trusted=Trusted("another.keda.svc", ca))
    async with chained(bad) as client:
        said = message(await client.get(f"{NAMESPACE}/s0-a"))
    assert "provider keda of metric s0-a: its certificate is not the one that is trusted" in said
    assert "another.keda.svc" in said


async def test_a_certificate_by_another_authority_is_refused_unless_any_will_do(
    provider: Provider, tmp_path: Path
) -> None:
    foreign = Authority(tmp_path, "foreign-ca")
    async with chained(provider.upstream(trusted=Trusted(ca=foreign.file.read_bytes))) as client:
        said = message(await client.get(f"{NAMESPACE}/s0-a"))
    assert "provider keda of metric s0-a: its certificate is not the one that is trusted" in said
    assert provider.asked == []
    async with chained(provider.upstream(trusted=Trusted(anybody=True))) as client:
        assert (await client.get(f"{NAMESPACE}/s0-a")).status_code == 200


async def test_another_authority_in_the_file_is_believed_at_the_next_try(
    provider: Provider, tmp_path: Path
) -> None:
    file = tmp_path / "ca.crt"
    file.write_bytes(Authority(tmp_path, "foreign-ca").file.read_bytes())
    now = [0.0]
    upstream = provider.upstream(trusted=Trusted(ca=file.read_bytes), clock=lambda: now[0])
    async with chained(upstream) as client:
        assert "certificate" in message(await client.get(f"{NAMESPACE}/s0-a"))
        file.write_bytes(provider.authority.file.read_bytes())
        now[0] = 2.0
        assert (await client.get(f"{NAMESPACE}/s0-a")).status_code == 200


async def test_a_provider_that_is_down_fails_alone_and_by_name(provider: Provider) -> None:
    await provider.stop()
    async with chained(provider.upstream()) as client:
        said = message(await client.get(f"{NAMESPACE}/s0-a?{KEDA_QUERY}"))
        assert said.startswith("provider keda of metric s0-a: Cannot connect to host localhost:")
        own = await client.get(f"{NAMESPACE}/wva_anything")
    assert own.status_code == 200


async def test_who_comes_while_a_provider_is_silent_does_not_wait_for_it(
    provider: Provider,
) -> None:
    provider.hang_s = 60
    now = [0.0]
    async with chained(provider.upstream(clock=lambda: now[0]), timeout_s=0.2) as client:
        assert "no answer within 0.2 s" in message(await client.get(f"{NAMESPACE}/s0-a"))
        began = time.monotonic()
        said = [message(await client.get(f"{NAMESPACE}/s0-{n}")) for n in range(50)]
        assert time.monotonic() - began < 5  # 50 x 0.2 s, had each waited
        assert set(said) == {
            f"provider keda of metric s0-{n}: no answer within 0.2 s; asked again in at most 1 s"
            for n in range(50)
        }
        assert len(provider.asked) == 1

        # After the pause one of them tries, and the others still do not wait.
        now[0] = 1.1
        answers = await asyncio.gather(*(client.get(f"{NAMESPACE}/s0-a") for _ in range(10)))
        assert {answer.status_code for answer in answers} == {503}
        assert len(provider.asked) == 2

        provider.hang_s = 0
        now[0] = 60.0
        assert (await client.get(f"{NAMESPACE}/s0-a")).status_code == 200
        assert (await client.get(f"{NAMESPACE}/s0-a")).status_code == 200


async def test_a_caller_in_a_hurry_does_not_wait_longer_than_it_said(provider: Provider) -> None:
    provider.hang_s = 60
    async with chained(provider.upstream()) as client:
        said = message(await client.get(f"{NAMESPACE}/s0-a?timeout=100ms"))
    assert "no answer within 0.1 s" in said


@pytest.mark.parametrize("code", [401, 403])
async def test_a_provider_that_refuses_us_is_told_of_as_our_problem(
    provider: Provider, code: int
) -> None:
    provider.code, provider.body = code, b'User "system:anonymous" cannot list'
    async with chained(provider.upstream()) as client:
        for _ in range(2):  # it did answer, so it is asked again at once
            said = message(await client.get(f"{NAMESPACE}/s0-a"))
            assert f"provider keda of metric s0-a: it refuses this adapter (HTTP {code}" in said
            assert "want its service account, token or certificate to be allowed to list" in said
    assert len(provider.asked) == 2


async def test_a_redirect_is_not_followed(provider: Provider) -> None:
    provider.code, provider.headers = 302, {"Location": "https://localhost:1/"}
    async with chained(provider.upstream()) as client:
        said = message(await client.get(f"{NAMESPACE}/s0-a"))
    assert "HTTP 302, want an answer and no redirect" in said


async def test_an_answer_beyond_all_measure_is_not_taken_in(provider: Provider) -> None:
    provider.body = bytes(17 * 2**20)
    async with chained(provider.upstream()) as client:
        assert "its answer is over 16 MiB" in message(await client.get(f"{NAMESPACE}/s0-a"))


async def test_a_bad_selector_is_refused_here_before_anybody_is_asked(provider: Provider) -> None:
    async with chained(provider.upstream(default=True)) as client:
        answer = await client.get(f"{NAMESPACE}/s0-a?labelSelector=a%20b")
    assert answer.status_code == 400
    assert provider.asked == []


async def test_the_former_owner_comes_and_goes_and_a_configured_one_wins(
    provider: Provider,
) -> None:
    chain = Chain([], timeout_s=4)
    chain.follow(provider.upstream("former", default=True))
    assert chain.claims("sessions", "")
    chain.follow(None)
    assert not chain.claims("sessions", "")

    configured = Chain([provider.upstream("configured", keda=True)], timeout_s=4)
    configured.follow(provider.upstream("former", default=True))
    assert [u.name for u in configured.upstreams] == ["configured", "former"]

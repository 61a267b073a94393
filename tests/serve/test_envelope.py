"""What is counted, limited and told of every request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from starlette.types import ASGIApp

from tests.serve.fixture import AT_S, KUBECTL, NAMESPACE, VERSION, Fixture, a_status, an_app
from wva_adapter.core.answer import Matcher
from wva_adapter.serve.app import in_front
from wva_adapter.serve.envelope import Envelope
from wva_adapter.serve.hot import HotPath, MetricReads, Told
from wva_adapter.serve.request_metrics import RequestMetrics

pytestmark = pytest.mark.anyio


APP = an_app()


def a_client_of(port: ASGIApp) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app=port),
        base_url="https://adapter:6443",
        headers=KUBECTL,
    )


def reads() -> MetricReads:
    return MetricReads(Fixture(), clock=lambda: AT_S)


async def test_more_requests_at_once_than_allowed_are_told_to_come_again() -> None:
    port = Envelope(HotPath(an_app(), reads()), most_in_flight=2)
    async with a_client_of(port) as client:
        slow = [
            asyncio.create_task(client.get(f"{NAMESPACE}/slow?timeout=300ms")) for _ in range(2)
        ]
        await asyncio.sleep(0.1)
        refused = await client.get(f"{NAMESPACE}/m1")
        probe = await client.get(VERSION)
        alive = await client.get("/livez")
        await asyncio.gather(*slow)
        after = await client.get(f"{NAMESPACE}/m1")
    assert (refused.status_code, refused.json()) == (
        429,
        a_status("Too many requests, please try again later.", "TooManyRequests", 429),
    )
    assert "retry-after" not in refused.headers
    # Without these the whole API group, or the process, would be taken for dead.
    assert (probe.status_code, alive.status_code) == (200, 200)
    assert after.status_code == 200


async def test_a_read_with_a_large_body_is_refused() -> None:
    async with a_client_of(in_front(APP, reads())) as client:
        large = await client.request("GET", f"{NAMESPACE}/m1", content=b"x" * 65537)
        allowed = await client.request("GET", f"{NAMESPACE}/m1", content=b"x" * 65536)
    assert (large.status_code, large.json()) == (
        413,
        a_status("Request entity too large: limit is 65536", "RequestEntityTooLarge", 413),
    )
    assert allowed.status_code == 200


async def test_requests_are_counted_under_the_names_that_dashboards_know() -> None:
    registry = CollectorRegistry()
    requests = RequestMetrics()
    registry.register(requests)
    port = in_front(an_app(), reads(), metrics=requests)
    async with a_client_of(port) as client:
        await client.get(f"{NAMESPACE}/m1")
        await client.get(f"{NAMESPACE}/notfound")
        await client.get(f"{NAMESPACE}/notfound")
        await client.get(VERSION)
    page = generate_latest(registry).decode()
    labels = (
        'component="external-metrics",dry_run="",group="external.metrics.k8s.io",resource="*",'
        'scope="namespace",subresource="*",verb="LIST",version="v1beta1"'
    )
    lines = page.splitlines()
    counted = [line for line in lines if line.startswith("apiserver_request_total")]
    assert f'apiserver_request_total{{code="200",{labels}}} 1.0' in counted
    assert f'apiserver_request_total{{code="404",{labels}}} 2.0' in counted
    assert any(line.endswith(" 1.0") and 'verb="GET"' in line for line in counted)
    assert f"apiserver_request_duration_seconds_count{{{labels}}} 3.0" in lines
    assert 'apiserver_current_inflight_requests{request_kind="readOnly"} 0.0' in lines


async def test_methods_that_nobody_knows_make_no_series_of_their_own() -> None:
    registry = CollectorRegistry()
    requests = RequestMetrics()
    registry.register(requests)
    port = in_front(an_app(), reads(), metrics=requests)
    async with a_client_of(port) as client:
        for number in range(5):
            await client.request(f"BREW{number}", VERSION)
    page = generate_latest(registry).decode()
    assert page.count("\napiserver_request_total{") == 1
    assert 'verb="other"' in page


async def test_an_audit_line_says_who_asked_what_without_its_secrets(
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = in_front(an_app(), reads(), audit=True)
    with caplog.at_level(logging.INFO, logger="wva_adapter.audit"):
        async with a_client_of(port) as client:
            await client.get(
                f"{NAMESPACE}/m1?access_token=hunter2&labelSelector=app%3Da",
                headers={"Audit-ID": "id-9"},
            )
    (line,) = caplog.records
    assert line.audit_id == "id-9"  # type: ignore[attr-defined]
    assert line.verb == "GET"  # type: ignore[attr-defined]
    assert line.code == 200  # type: ignore[attr-defined]
    assert line.user is None  # type: ignore[attr-defined]
    uri = line.uri  # type: ignore[attr-defined]
    assert uri == f"{NAMESPACE}/m1?access_token=…&labelSelector=app%3Da"


@pytest.mark.parametrize(
    "target",
    [
        "m1",
        "m1/",
        "m1?labelSelector=app%3Da",
        "m1?labelSelector=app+in+%28a%2Cb%29",
        "m1?labelSelector=a%3Db%3Dc",
        "m1?watch",
        "m1?pretty=1",
        "m1?limit=x",
        "UPPER_case",
        "a%20b",
        "notfound",
        "timeout",
        "internal",
        "big",
        "slow?timeout=10ms",
        "nilitems",
        "",
        "a%2Fb",
        "m1/status",
    ],
)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Accept": "application/vnd.kubernetes.protobuf, */*"},
        {"Accept": "application/yaml"},
        {"Accept": "text/html"},
        {"User-Agent": "curl/8.0"},
        {"Accept-Encoding": "gzip"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_the_read_path_and_fastapi_give_the_same_bytes(
    target: str, headers: dict[str, str], method: str
) -> None:
    app, same = APP, reads()
    answers = []
    for port in (Envelope(app), Envelope(HotPath(app, same)), Envelope(HotPath(app, same))):
        async with (
            a_client_of(port) as client,
            client.stream(method, f"{NAMESPACE}/{target}", headers=headers) as answer,
        ):
            raw = b"".join([part async for part in answer.aiter_raw()])
        kept = sorted((n, v) for n, v in answer.headers.raw if n.lower() != b"audit-id")
        answers.append((answer.status_code, kept, raw))
    assert answers[0] == answers[1] == answers[2]


async def test_kept_answers_follow_the_provider_and_their_age() -> None:
    class Counting(Fixture):
        asked = 0

        def answer(self, namespace: str, metric: str, matches: Matcher) -> Told | Awaitable[Told]:
            self.asked += 1
            return super().answer(namespace, metric, matches)

    now_s = [AT_S]
    provider = Counting()
    port = HotPath(an_app(), MetricReads(provider, clock=lambda: now_s[0]))
    async with a_client_of(port) as client:
        for _ in range(3):
            assert (await client.get(f"{NAMESPACE}/m1")).status_code == 200
        assert provider.asked == 1

        provider.version += 1  # a new plan
        await client.get(f"{NAMESPACE}/m1")
        assert provider.asked == 2

        await client.get(f"{NAMESPACE}/ages")  # good for a minute
        await client.get(f"{NAMESPACE}/ages")
        assert provider.asked == 3
        now_s[0] += 60
        await client.get(f"{NAMESPACE}/ages")
        assert provider.asked == 4
        now_s[0] -= 120  # the clock was set back: how old it is, nobody knows
        await client.get(f"{NAMESPACE}/ages")
        assert provider.asked == 5

        # What is refused is asked for anew each time: it may be there the next moment.
        await client.get(f"{NAMESPACE}/timeout")
        await client.get(f"{NAMESPACE}/timeout")
        assert provider.asked == 7

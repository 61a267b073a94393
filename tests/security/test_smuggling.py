"""A request is one request, for one path, by one user, whatever it is made to look like."""

from __future__ import annotations

import pytest

from tests.security.raw import as_user, request, say, statuses
from tests.serve.cluster import CHAT_ONLY
from tests.serve.door import Door
from tests.serve.fixture import NAMESPACE, VERSION

pytestmark = pytest.mark.anyio

M1 = f"{NAMESPACE}/m1"
HIDDEN = b"GET /metrics HTTP/1.1\r\nHost: a\r\nX-Remote-User: admin\r\nX-Remote-Group: system:masters\r\n\r\n"
CHUNKED = "Transfer-Encoding: chunked"
LENGTH = f"Content-Length: {len(HIDDEN)}"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (("Content-Length: 0", LENGTH), HIDDEN),
        ((LENGTH, "Content-Length: 0"), HIDDEN),
        ((LENGTH, LENGTH), HIDDEN),
        ((f"Content-Length: 0, {len(HIDDEN)}",), HIDDEN),
        (("Content-Length: +5",), HIDDEN),
        (("Content-Length: -1",), HIDDEN),
        (("Content-Length: 0x5",), HIDDEN),
        (("Content-Length: 5 5",), HIDDEN),
        (("Content-Length: 99999999999999999999999",), HIDDEN),
        (("Content-Length:",), HIDDEN),
        (("Content-Length: 4", CHUNKED), b"0\r\n\r\n" + HIDDEN),
        ((CHUNKED, "Content-Length: 4"), b"0\r\n\r\n" + HIDDEN),
        (("Transfer-Encoding: xchunked",), b"0\r\n\r\n" + HIDDEN),
        (("Transfer-Encoding: chunked, identity",), b"0\r\n\r\n" + HIDDEN),
        ((CHUNKED, "Transfer-Encoding: identity"), b"0\r\n\r\n" + HIDDEN),
        (("Transfer-Encoding : chunked", LENGTH), b"0\r\n\r\n" + HIDDEN),
        (("Transfer-Encoding:\x0bchunked", LENGTH), b"0\r\n\r\n" + HIDDEN),
        ((" Transfer-Encoding: chunked", LENGTH), b"0\r\n\r\n" + HIDDEN),
        (("X: y\rTransfer-Encoding: chunked", LENGTH), b"0\r\n\r\n" + HIDDEN),
        (("X: y\nTransfer-Encoding: chunked", LENGTH), b"0\r\n\r\n" + HIDDEN),
        ((CHUNKED,), b"0x5\r\nabcde\r\n0\r\n\r\n" + HIDDEN),
        ((CHUNKED,), b"-1\r\n\r\n" + HIDDEN),
        ((CHUNKED,), b"FFFFFFFFFFFFFFFFF\r\nab\r\n" + HIDDEN),
        ((CHUNKED,), b"5;a=b\r\nabcde0\r\n\r\n" + HIDDEN),
        ((CHUNKED,), b"5\nabcde\n0\n\n" + HIDDEN),
        (("Expect: 100-continue", LENGTH), HIDDEN),
    ],
    ids=lambda part: str(part)[:70],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_no_second_request_hides_in_the_body_of_a_first(
    door: Door, method: str, headers: tuple[str, ...], body: bytes
) -> None:
    # Bob is denied, the hidden request would not be: nothing of it may be let in.
    raw = request(M1, *as_user("bob"), *headers, method=method, body=body)
    answer = await say(door, raw, door.certificates.proxy)
    assert all(status in (400, 403) for status in statuses(answer)), answer
    assert len(statuses(answer)) <= 1
    assert door.let_in == []


@pytest.mark.parametrize(
    "trailer",
    [
        b"X-Remote-Group: system:masters",
        b"x-remote-user: admin\r\nx-remote-group: system:masters",
        b"Authorization: Bearer good-1",
        b"X-Remote-Extra-Scopes: all",
    ],
)
async def test_nothing_in_a_trailer_is_said_by_the_proxy(door: Door, trailer: bytes) -> None:
    name = trailer.partition(b":")[0]
    body = b"1\r\nx\r\n0\r\n" + trailer + b"\r\n\r\n"
    raw = request(M1, *as_user("bob"), CHUNKED, b"Trailer: " + name, body=body)
    assert statuses(await say(door, raw, door.certificates.proxy)) == [403]
    assert door.let_in == []
    (spec,) = [spec for spec in door.api.reviewed if "user" in spec] or [{"groups": [], "user": ""}]
    assert "system:masters" not in spec["groups"]


@pytest.mark.parametrize(
    "line",
    [
        "X-Remote-Group: system\r\n :masters",
        "X: y\r\n X-Remote-Group: system:masters",
        "X: y\r\n\tX-Remote-Group: system:masters",
        "X-Remote-Group\r\n : system:masters",
        "X-Remote-Group : system:masters",
        "X-Remote-Group\t: system:masters",
        "X: y\rX-Remote-Group: system:masters",
        "X: y\x00\r\nX-Remote-Group\x00: system:masters",
        "X-Remote-Group\x0b: system:masters",
        "X-Remote-Group",
        ": system:masters",
    ],
    ids=repr,
)
async def test_a_line_that_is_no_header_names_no_group(door: Door, line: str) -> None:
    raw = request(M1, *as_user("bob"), line)
    answer = await say(door, raw, door.certificates.proxy)
    assert statuses(answer) in ([400], [403])
    assert door.let_in == []
    for spec in door.api.reviewed:
        assert "system:masters" not in spec["groups"]


@pytest.mark.parametrize(
    "path",
    [
        "//metrics", "///metrics", "/metrics/", "/metrics//", "/./metrics", "/metrics/.", "/x/../metrics",
        "/healthz/../metrics", "/healthz/%2e%2e/metrics", "/healthz%2f..%2fmetrics", "/healthz/..%2fmetrics",
        "/healthz/..;/metrics", "/healthz;/../metrics", "/healthz\\..\\metrics", "/healthz%5c..%5cmetrics",
        "/healthz%00", "/healthz%00/../metrics", "/healthz%0a", "/healthz%20", "/healthz/", "/healthz//", "//healthz",
        "/HEALTHZ", "/healthz.json", "/%68ealthz/metrics", "/healthz%3fx", "/healthz%23x", "/readyz/../explain",
        "/livez/%2e%2e/explain/chat/llama", "/%2fmetrics", "/%6detrics", "/m%65trics", "/metrics%2f", "/metrics%00",
        "/metrics;x=/healthz", "/metrics%3f/healthz", "/metrics?/healthz", "/metrics?x=/../healthz",
        "/%c0%ae%c0%ae/metrics", "/healthz/%c0%ae%c0%ae/metrics", "/%u002e%u002e/metrics", "/%25%36%64etrics",
        "https://adapter/metrics", "http://localhost/metrics", "http://evil@adapter/metrics", "https://adapter//metrics",
        "HTTP://adapter:6443/metrics?x", "file:///metrics", "https:///metrics",
        "/v1%2fdesired/chat/llama", "/v1/desired/chat%2fllama", "/v1/desired//chat/llama", "//v1/desired/chat/llama",
        "/v1/desired/../desired/chat/llama", "/explain/chat/llama/", "/explain%2fchat%2fllama", "//explain",
        f"/{M1}", f"{NAMESPACE}//m1", f"{NAMESPACE}/./m1", f"{NAMESPACE}/m1/../m1", f"{NAMESPACE}%2fm1",
        f"{VERSION}/namespaces//m1", f"{VERSION}//namespaces/default/m1", f"{VERSION}/../v1beta1/namespaces/default/m1",
        f"{VERSION}/namespaces/default/m1/healthz", f"{VERSION}/watch/namespaces/default/m1",
        f"{VERSION}/proxy/namespaces/default/m1", "/healthz/../" + M1[1:],
        "*", "metrics", "adapter:6443", "?/metrics", "#/metrics", "/metrics#/healthz", "/\u00e9", "",
    ],
)  # fmt: skip
async def test_no_spelling_of_a_path_lets_nobody_in(door: Door, path: str) -> None:
    answer = await say(door, request(path.encode()))
    assert all(status in (400, 403, 404) for status in statuses(answer)), answer
    assert [let for let in door.let_in if let[2] not in ("/healthz", "/livez", "/readyz")] == []
    # And not as a denied user through the proxy.
    door.let_in.clear()
    answer = await say(door, request(path.encode(), *as_user("bob")), door.certificates.proxy)
    assert all(status in (400, 403, 404) for status in statuses(answer)), answer
    assert [let for let in door.let_in if let[2] not in ("/healthz", "/livez", "/readyz")] == []


@pytest.mark.parametrize(
    "path",
    [
        f"{VERSION}/namespaces/chat/../default/m1",
        f"{VERSION}/namespaces/chat/%2e%2e/default/m1",
        f"{VERSION}/namespaces/chat%2f..%2fdefault/m1",
        f"{VERSION}/namespaces/chat%2fm1/../../default/m1",
        f"{VERSION}/namespaces/default/m1?namespace=chat",
        f"{VERSION}/namespaces/default/m1?fieldSelector=metadata.namespace%3Dchat",
        f"{VERSION}/namespaces/default%00chat/m1",
        f"{VERSION}/namespaces/default/m1/namespaces/chat/m1",
        f"{VERSION}/namespaces/default/namespaces/chat",
        f"{VERSION}/m1/namespaces/chat/m1",
        f"{VERSION}/namespaces//namespaces/chat/m1",
        f"{VERSION}/namespaces/CHAT/m1",
        f"{VERSION}/namespaces/chat%20/m1",
        f"{VERSION}/namespaces/%20chat/m1",
        f"{VERSION}/namespaces/chat./m1",
        f"{VERSION}/namespaces/chat;default/m1",
        f"/{VERSION}/namespaces/default/m1",
        "/v1/desired/default/llama",
        "/v1/desired/chat/../default/llama",
        "/v1/desired/chat%2f..%2fdefault/llama",
        "/explain",
        "/explain/default/llama",
        "/explain/chat/../default/llama",
        "/metrics",
        "/api/v1/query?query=wva_desired_replicas",
    ],
)
async def test_who_may_read_one_namespace_reads_no_other(door: Door, path: str) -> None:
    raw = request(path, *as_user(CHAT_ONLY))
    answer = await say(door, raw, door.certificates.proxy)
    assert all(status in (400, 403, 404) for status in statuses(answer)), answer
    assert all(namespace == "chat" for namespace, _ in door.provider.asked)
    assert not [let for let in door.let_in if "default" in let[2]]


async def test_who_may_read_one_namespace_reads_it(door: Door) -> None:
    for path in (f"{VERSION}/namespaces/chat/m1", "/v1/desired/chat/llama", "/explain/chat/llama"):
        raw = request(path, *as_user(CHAT_ONLY))
        assert statuses(await say(door, raw, door.certificates.proxy)) == [200]


@pytest.mark.parametrize(
    "method",
    ["POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PROPFIND",
     "get", "GeT", "FOO", "GET\t", "\x00GET", "PRI", "QUERY"],
)  # fmt: skip
@pytest.mark.parametrize("path", [M1, "/metrics", "/explain"])
async def test_no_method_lets_a_denied_user_in(door: Door, method: str, path: str) -> None:
    raw = request(path, *as_user("bob"), method=method)
    answer = await say(door, raw, door.certificates.proxy)
    assert all(status in (400, 403) for status in statuses(answer)), answer
    assert door.let_in == []


@pytest.mark.parametrize(
    "raw",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        request(M1, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAAA"),
        request(M1, "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: AAAA"),
        request(M1, version="HTTP/0.9"),
        request(M1, version="HTTP/3.0"),
        request(M1, version="HTTP/1.1 HTTP/1.1"),
        b"GET /metrics\r\n",
        b"\r\n\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\n\n",
        b"GET  /metrics  HTTP/1.1\r\n\r\n",
        b"\xff\xfe\x00" * 100,
    ],
    ids=lambda raw: repr(raw[:40]),
)
async def test_no_other_protocol_lets_anybody_in(door: Door, raw: bytes) -> None:
    answer = await say(door, raw)
    assert all(status in (400, 403, 505) for status in statuses(answer)), answer
    assert door.let_in == []


async def test_each_request_of_a_connection_is_asked_who_it_is(door: Door) -> None:
    good, none = request(M1, "Authorization: Bearer good-1"), request(M1)
    answer = await say(door, good + none + good + none, responses=4)
    assert statuses(answer) == [200, 403, 200, 403]
    masters, bob = request(M1, *as_user("root", "system:masters")), request(M1, *as_user("bob"))
    raw = masters + bob + masters + bob
    answer = await say(door, raw, door.certificates.proxy, responses=4)
    assert statuses(answer) == [200, 403, 200, 403]

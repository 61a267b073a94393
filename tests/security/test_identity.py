"""Nobody becomes somebody else, or anybody at all, by what it says of itself."""

from __future__ import annotations

import asyncio
import base64
import ssl
import warnings

import pytest

from tests.security.raw import as_user, request, say, statuses
from tests.serve.cluster import HPA
from tests.serve.door import Door
from tests.serve.fixture import NAMESPACE, VERSION, an_app

pytestmark = pytest.mark.anyio

M1 = f"{NAMESPACE}/m1"
OPEN = ("/healthz", "/livez", "/readyz")
DECLARED = sorted(
    path.replace("{namespace}", "chat")
    .replace("{name}", "llama")
    .replace("{metric}", "m1")
    .replace("{check}", "ping")
    for path in an_app().openapi()["paths"]
)
HIDDEN = [
    "/", "/index.html", "/openapi.json", "/docs", "/redoc", "/ui", "/ui/", "/api", "/api/v1",
    "/api/v1/query", "/api/v1/query?query=wva_desired_replicas", "/apis/", f"{VERSION}/", "/version/",
    "/openapi/v3/apis/external.metrics.k8s.io/v1beta1", "/no-such-path", "/debug/pprof/", "/metrics/slis",
    f"{M1}/", f"{M1}/x", f"{M1}?watch=true", "/explain/", "/v1/desired", "/favicon.ico",
]  # fmt: skip
GUARDED = [path for path in (*DECLARED, *HIDDEN) if path not in OPEN]
FORGED = ("X-Remote-User: admin", "X-Remote-Group: system:masters")


@pytest.mark.parametrize("path", GUARDED)
async def test_no_path_opens_without_credentials_or_for_forged_headers(
    door: Door, path: str
) -> None:
    for method in ("GET", "POST", "HEAD"):
        for headers in ((), FORGED):
            answer = await door.get(path, headers=_pairs(headers), method=method)
            assert answer.status_code == 403, (method, headers)
    assert door.let_in == []


@pytest.mark.parametrize("path", OPEN)
async def test_what_is_open_is_open_for_nobody_in_particular(door: Door, path: str) -> None:
    assert (await door.get(path, headers=_pairs(FORGED))).status_code == 200
    assert door.let_in == [("system:anonymous", "GET", path)]


@pytest.mark.parametrize(
    "headers",
    [
        FORGED,
        ("x-remote-user: admin", "x-remote-group: system:masters"),
        ("X-REMOTE-USER: admin", "X-REMOTE-GROUP: system:masters"),
        ("X_Remote_User: admin", "X_Remote_Group: system:masters"),
        ("X-Remote_User: admin", "X-Remote_Group: system:masters"),
        ("X-Remote-User: system:kube-aggregator", "X-Remote-Group: system:masters"),
        (*FORGED, "X-Remote-Extra-Scopes: all", "X-Remote-Uid: 0"),
        ("X-Forwarded-User: admin", "X-Forwarded-Groups: system:masters"),
        ("X-Forwarded-Client-Cert: Subject=\"CN=front-proxy-client\"", *FORGED),
        ("X-Client-Cert: front-proxy-client", "Ssl-Client-Verify: SUCCESS", *FORGED),
        ("X-Ssl-Client-S-Dn: CN=front-proxy-client", "X-Ssl-Client-Verify: SUCCESS", *FORGED),
        ("X-Forwarded-For: 127.0.0.1", "Forwarded: for=127.0.0.1", *FORGED),
        ("Connection: X-Remote-User", *FORGED),
        ("Impersonate-User: admin", "Impersonate-Group: system:masters"),
        ("impersonate-user: admin", "Impersonate-Extra-Scopes: all"),
        ("Remote-User: admin", "User: admin"),
        ("Cookie: token=good-1; Authorization=Bearer good-1",),
        ("Proxy-Authorization: Bearer good-1",),
        ("X-Auth-Token: good-1", "X-Api-Key: good-1"),
        ("Authorization: Basic " + base64.b64encode(b"admin:good-1").decode(),),
        ("Authorization: Bearer",),
        ("Authorization: Bearer ",),
        ("Authorization: Bearer\tgood-1",),
        ("Authorization: good-1",),
        ("Authorization: Token good-1",),
        ("Authorization: Negotiate good-1",),
        ("Authorization:  , Bearer good-1",),
        ("Authorization: Basic Og==, Bearer good-1",),
        ("Authorization: Basic Og==", "Authorization: Bearer good-1"),
        ("Authorization: ", "Authorization: Bearer good-1"),
        ("Authorization_: Bearer good-1",),
        ("Upgrade: websocket", "Connection: Upgrade",
         "Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io." +
         base64.urlsafe_b64encode(b"good-1").decode().rstrip("=")),
    ],
    ids=lambda headers: " | ".join(headers)[:60],
)  # fmt: skip
async def test_headers_alone_make_nobody_known(door: Door, headers: tuple[str, ...]) -> None:
    answer = await say(door, request(M1, *headers))
    assert statuses(answer) == [403]
    assert b"system:anonymous" in answer or b"impersonate-" in answer
    assert door.let_in == []


@pytest.mark.parametrize(
    "query",
    [
        "token=good-1",
        "access_token=good-1",
        "bearer_token=good-1",
        "Authorization=Bearer%20good-1",
        "authorization=Bearer+good-1",
        "X-Remote-User=admin&X-Remote-Group=system:masters",
        "impersonate=admin&as=admin",
        "user=admin&group=system:masters",
        "key=good-1",
    ],
)
@pytest.mark.parametrize("path", [M1, "/metrics"])
async def test_nothing_in_a_query_makes_anybody_known(door: Door, path: str, query: str) -> None:
    assert (await door.get(f"{path}?{query}")).status_code == 403
    assert door.let_in == []
    assert all("token" not in spec for spec in door.api.reviewed)


@pytest.mark.parametrize(
    "token",
    [
        "bad-1",
        "Good-1",
        "%67ood-1",
        "ba" + "d" * 5000,
        "\xff\xfe",
        "вgood-1",
        "../good-1",
        "null",
        "undefined",
        "[]",
        '{"token":"good-1"}',
        "*",
        "' OR 1=1 --",
    ],
    ids=lambda token: token[:20],
)
async def test_a_token_that_is_nobodys_lets_nobody_in(door: Door, token: str) -> None:
    header = b"Authorization: Bearer " + token.encode("utf-8", "surrogateescape")
    assert statuses(await say(door, request(M1, header))) == [401]
    assert door.let_in == []


async def test_bytes_that_are_no_text_are_no_token(door: Door) -> None:
    assert statuses(await say(door, request(M1, b"Authorization: Bearer good\xff"))) == [401]
    assert door.api.reviewed == []


async def test_a_bad_token_is_not_mended_by_a_second_one(door: Door) -> None:
    said = ("Authorization: Bearer bad-1", "Authorization: Bearer good-1")
    assert statuses(await say(door, request(M1, *said))) == [401]
    assert door.let_in == []


@pytest.mark.parametrize(
    "name",
    ["foreign", "expired_proxy", "expired_client", "server_only", "signed_by_client"],
)
@pytest.mark.parametrize("path", [M1, "/metrics", "/healthz"])
async def test_a_certificate_that_cannot_be_verified_ends_the_handshake(
    door: Door, name: str, path: str
) -> None:
    said = (*as_user("admin", "system:masters"), "Authorization: Bearer good-1")
    answer = await say(door, request(path, *said), getattr(door.certificates, name))
    assert statuses(answer) == []
    assert door.let_in == []


@pytest.mark.parametrize("name", ["wrong_name", "nameless"])
@pytest.mark.parametrize("path", [M1, "/metrics", VERSION, "/healthz"])
async def test_a_certificate_that_may_not_speak_for_others_is_refused(
    door: Door, name: str, path: str
) -> None:
    said = as_user("admin", "system:masters")
    answer = await say(door, request(path, *said), getattr(door.certificates, name))
    assert statuses(answer) == [401]
    assert door.let_in == []


@pytest.mark.parametrize("name", ["alice", "client_named_as_proxy"])
async def test_a_client_is_only_itself(door: Door, name: str) -> None:
    said = (*as_user("admin", "system:masters"), "X-Remote-Extra-A: b", "X-Remote-Uid: 0")
    pair = getattr(door.certificates, name)
    assert statuses(await say(door, request(M1, *said), pair)) == [200]
    ((user, _, _),) = door.let_in
    assert user in ("alice", "front-proxy-client")
    (spec,) = door.api.reviewed[-1:]
    assert "system:masters" not in spec["groups"]
    assert "uid" not in spec
    assert spec["extra"].keys() == {"authentication.kubernetes.io/credential-id"}


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ("X-Remote-User:",),
        ("X-Remote-User: ", "X-Remote-User: admin"),
        ("X-Remote-Group: system:masters",),
        ("X_Remote_User: admin",),
        ("X-Remote-User : admin",),
        (b"X-Remote-User: \xff\xfe",),
        ("X-Remote-Uid: 0", "X-Remote-Extra-Name: admin"),
    ],
    ids=str,
)
async def test_a_proxy_that_names_nobody_is_nobody(
    door: Door, headers: tuple[str | bytes, ...]
) -> None:
    answer = await say(door, request(M1, *headers), door.certificates.proxy)
    assert statuses(answer) in ([401], [400])
    assert door.let_in == []


@pytest.mark.parametrize(
    "more",
    [
        ("X-Remote-User: admin",),
        ("X_Remote_Group: system:masters",),
        ("X-Remote-Extra-Groups: system:masters",),
        ("X-Remote-Group: system:masters,system:authenticated",),
        ("X-Remote-Group: system:masters\u200b",),
        ("X-Remote-Group: System:Masters",),
        ("X-Remote-Group: system:master",),
        ("X-Remote-Groups: system:masters",),
        ("Authorization: Bearer good-admin",),
        ("Impersonate-User: admin",),
    ],
    ids=str,
)
async def test_a_denied_user_gains_nothing_by_saying_more(
    door: Door, more: tuple[str, ...]
) -> None:
    answer = await say(door, request(M1, *as_user("bob"), *more), door.certificates.proxy)
    assert statuses(answer) == [403]
    assert door.let_in == []


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
async def test_old_tls_is_not_spoken(door: Door, version: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context = ssl.create_default_context(cafile=str(door.ca_file))
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, version)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", door.server.port, ssl=context)


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
async def test_todays_tls_is_spoken(door: Door, version: str) -> None:
    context = ssl.create_default_context(cafile=str(door.ca_file))
    context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, version)
    _, writer = await asyncio.open_connection("127.0.0.1", door.server.port, ssl=context)
    writer.close()


@pytest.mark.parametrize(
    "raw",
    [
        request("/metrics"),
        b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10\x01\x00\x80",
        b"\x16\x03\x01\xff\xff" + b"\x00" * 100,
        b"\x00" * 4096,
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
    ids=["plain HTTP", "SSLv2", "broken hello", "zeros", "SSH"],
)
async def test_what_is_no_tls_gets_nothing(door: Door, raw: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.server.port)
    writer.write(raw)
    try:
        answer = await asyncio.wait_for(reader.read(4096), 0.5)
    except (TimeoutError, ConnectionError):
        answer = b""
    writer.close()
    assert statuses(answer) == []
    assert door.let_in == []


async def test_the_attacks_would_show_if_one_got_in(door: Door) -> None:
    answer = await say(door, request(M1, *as_user(HPA)), door.certificates.proxy)
    assert statuses(answer) == [200]
    assert door.let_in == [(HPA, "GET", M1)]
    assert door.provider.asked in ([("default", "m1")], [])  # or kept from before


def _pairs(headers: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(name, value.strip()) for name, _, value in (h.partition(":") for h in headers)]

"""Nobody gets past the door who is not known and allowed, over real TLS."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from tests.serve.cluster import HPA, Certificates
from tests.serve.door import Door, a_door
from tests.serve.fixture import NAMESPACE, VERSION, a_status
from wva_adapter.serve.identity import User
from wva_adapter.serve.trust import Trust

pytestmark = pytest.mark.anyio

M1 = f"{NAMESPACE}/m1"
UNAUTHORIZED = {
    "kind": "Status",
    "apiVersion": "v1",
    "metadata": {},
    "status": "Failure",
    "message": "Unauthorized",
    "reason": "Unauthorized",
    "code": 401,
}


def as_user(name: str, *groups: str) -> list[tuple[str, str]]:
    return [("X-Remote-User", name), *(("X-Remote-Group", group) for group in groups)]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def forbidden(user: str, *, reason: str = "") -> dict[str, object]:
    return a_status(
        f'm1.external.metrics.k8s.io is forbidden: User "{user}" cannot list resource "m1" in API '
        f'group "external.metrics.k8s.io" in the namespace "default"{reason}',
        "Forbidden",
        403,
        {"group": "external.metrics.k8s.io", "kind": "m1"},
    )


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("pki"))


@pytest.fixture
async def door(tmp_path: Path, certificates: Certificates) -> AsyncIterator[Door]:
    async with a_door(tmp_path, certificates) as door:
        yield door


async def test_the_hpa_controller_reads_through_the_front_proxy(door: Door) -> None:
    answer = await door.get(M1, door.certificates.proxy, as_user(HPA, "system:serviceaccounts"))
    assert answer.status_code == 200
    (spec,) = door.api.reviewed
    assert spec == {
        "resourceAttributes": {
            "namespace": "default",
            "verb": "list",
            "group": "external.metrics.k8s.io",
            "version": "v1beta1",
            "resource": "m1",
        },
        "user": HPA,
        "groups": ["system:serviceaccounts", "system:authenticated"],
    }


async def test_claims_and_uid_reach_the_review(door: Door) -> None:
    said = [*as_user("carol"), ("X-Remote-Extra-Scopes", "openid"), ("X-Remote-Uid", "u-19")]
    assert (await door.get(M1, door.certificates.proxy, said)).status_code == 200
    (spec,) = door.api.reviewed
    assert (spec["extra"], spec["uid"]) == ({"scopes": ["openid"]}, "u-19")


async def test_the_availability_probe_needs_no_review(door: Door) -> None:
    said = as_user("system:kube-aggregator", "system:masters")
    assert (await door.get(VERSION, door.certificates.proxy, said)).status_code == 200
    assert door.api.reviewed == []


async def test_headers_without_a_certificate_are_nobodys_word(door: Door) -> None:
    answer = await door.get(M1, None, as_user("admin", "system:masters"))
    assert answer.status_code == 403
    assert answer.json() == forbidden("system:anonymous", reason=": no rule matched")
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_client_with_an_own_certificate_speaks_for_itself_only(door: Door) -> None:
    answer = await door.get(M1, door.certificates.alice, as_user("bob", "system:masters"))
    assert answer.status_code == 200
    (spec,) = door.api.reviewed
    assert (spec["user"], spec["groups"]) == ("alice", ["staff", "system:authenticated"])
    assert spec["extra"].keys() == {"authentication.kubernetes.io/credential-id"}


async def test_a_client_named_as_the_proxy_is_not_the_proxy(door: Door) -> None:
    pair = door.certificates.client_named_as_proxy
    assert (await door.get(M1, pair, as_user("admin", "system:masters"))).status_code == 200
    assert door.api.reviewed[0]["user"] == "front-proxy-client"


@pytest.mark.parametrize("name", ["wrong_name", "proxy", "nameless"])
async def test_a_certificate_that_names_nobody_is_refused(door: Door, name: str) -> None:
    said = as_user(HPA) if name != "proxy" else []  # the proxy itself is nobody
    answer = await door.get(M1, getattr(door.certificates, name), said)
    assert (answer.status_code, answer.json()) == (401, UNAUTHORIZED)
    assert door.api.reviewed == []


async def test_an_empty_username_is_nobody(door: Door) -> None:
    answer = await door.get(M1, door.certificates.proxy, as_user(""))
    assert answer.status_code == 401


async def test_a_foreign_certificate_ends_the_handshake(door: Door) -> None:
    with pytest.raises(httpx.HTTPError, match=r"(?i)unknown ca|reset|closed|eof|disconnected"):
        await door.get(M1, door.certificates.foreign, as_user(HPA))


async def test_a_token_is_reviewed_once(door: Door) -> None:
    for _ in range(3):
        assert (await door.get(M1, headers=bearer("good-1"))).status_code == 200
    review, access = door.api.reviewed
    assert review == {"token": "good-1"}
    assert (access["user"], access["uid"]) == ("1", "u1")
    assert access["groups"] == ["readers", "system:authenticated"]


async def test_what_was_let_in_before_is_looked_at_again_when_the_review_is_over(
    tmp_path: Path, certificates: Certificates
) -> None:
    now_s = [100.0]
    async with a_door(tmp_path, certificates, clock=lambda: now_s[0]) as door:
        proxy, hpa = door.certificates.proxy, as_user(HPA)
        async with door.client(proxy) as client:
            for _ in range(3):
                assert (await client.get(M1, headers=hpa)).status_code == 200
            assert len(door.api.reviewed) == 1
            # The same words over the same connection, as somebody else.
            assert (await client.get(M1, headers=as_user("bob"))).status_code == 403
            assert len(door.api.reviewed) == 2
            now_s[0] += 10.1
            assert (await client.get(M1, headers=hpa)).status_code == 200
            assert len(door.api.reviewed) == 3
            assert (await client.get(M1, headers=hpa)).status_code == 200
            # Whoever is not believed any more is not recognised either.
            door.delegation._believe(Trust())
            assert (await client.get(M1, headers=hpa)).status_code == 403


async def test_a_bad_token_is_refused_and_reviewed_once(door: Door) -> None:
    for _ in range(3):
        answer = await door.get(M1, headers=bearer("bad-1"))
        assert (answer.status_code, answer.json()) == (401, UNAUTHORIZED)
    assert door.api.reviewed == [{"token": "bad-1"}]


async def test_the_front_proxy_comes_before_a_token(door: Door) -> None:
    said = [*as_user("carol"), ("Authorization", "Bearer bad-1")]
    assert (await door.get(M1, door.certificates.proxy, said)).status_code == 200


async def test_a_good_token_helps_a_certificate_that_names_nobody(door: Door) -> None:
    said = [*as_user("carol"), ("Authorization", "Bearer good-1")]
    assert (await door.get(M1, door.certificates.wrong_name, said)).status_code == 200


async def test_a_denied_user_is_told_in_kubernetes_words(door: Door) -> None:
    answer = await door.get(M1, door.certificates.proxy, as_user("bob"))
    assert (answer.status_code, answer.json()) == (403, forbidden("bob"))
    answer = await door.get("/metrics", door.certificates.proxy, as_user("bob"))
    assert answer.json() == a_status(
        'forbidden: User "bob" cannot get path "/metrics"', "Forbidden", 403, {}
    )


async def test_405_and_404_come_after_403(door: Door) -> None:
    for method, path in (("POST", M1), ("HEAD", M1), ("GET", "/no-such-path")):
        answer = await door.get(path, door.certificates.proxy, as_user("bob"), method=method)
        assert answer.status_code == 403, (method, path)
    answer = await door.get(M1, door.certificates.proxy, as_user("carol"), method="POST")
    assert answer.status_code == 405


async def test_health_needs_no_user_and_a_single_check_does(door: Door) -> None:
    for path in ("/healthz", "/livez", "/readyz", "/readyz?verbose"):
        assert (await door.get(path)).status_code == 200
    for path in ("/readyz/ping", "/readyz/", "/healthz/x"):
        assert (await door.get(path)).status_code == 403


@pytest.mark.parametrize("header", ["Impersonate-User", "Impersonate-Group", "Impersonate-Uid"])
async def test_nobody_acts_as_somebody_else(door: Door, header: str) -> None:
    answer = await door.get(M1, headers={**bearer("good-1"), header: "carol"})
    assert answer.status_code == 403
    assert f"found header {header.lower()}, want none" in answer.json()["message"]


async def test_refusals_carry_what_every_answer_does(door: Door) -> None:
    answer = await door.get(M1, headers={"Audit-ID": "a-1"})
    assert (answer.status_code, answer.headers["audit-id"]) == (403, "a-1")
    assert answer.headers["cache-control"] == "no-cache, private"


async def test_refusals_are_negotiated(door: Door) -> None:
    answer = await door.get(M1, headers={"Accept": "application/yaml"})
    assert answer.headers["content-type"].startswith("application/yaml")
    assert answer.text.startswith("kind: Status") or "kind: Status" in answer.text


async def test_a_review_that_fails_is_a_fault_of_ours_and_forgotten(door: Door) -> None:
    door.api.answers = [403]
    answer = await door.get(M1, door.certificates.alice)
    assert answer.status_code == 500
    assert answer.json()["kind"] == "Status"
    assert "the access review failed" in answer.json()["message"]
    assert (await door.get(M1, door.certificates.alice)).status_code == 200


async def test_a_token_that_cannot_be_reviewed_is_refused_and_forgotten(door: Door) -> None:
    door.api.answers = [403]
    assert (await door.get(M1, headers=bearer("good-1"))).status_code == 401
    assert (await door.get(M1, headers=bearer("good-1"))).status_code == 200


@pytest.mark.parametrize(
    ("path", "namespace"),
    [("/v1/desired/chat/llama", "chat"), ("/explain/chat/llama", "chat"), ("/explain", None)],
)
async def test_our_own_paths_are_lists_of_the_metric_in_its_namespace(
    door: Door, path: str, namespace: str | None
) -> None:
    assert (await door.get(path, door.certificates.alice)).status_code == 200
    wanted = door.api.reviewed[0]["resourceAttributes"]
    assert wanted.get("namespace") == namespace
    assert (wanted["verb"], wanted["group"], wanted["resource"]) == (
        "list",
        "external.metrics.k8s.io",
        "wva_desired_replicas",
    )


async def test_the_application_learns_the_user_and_no_secret(
    tmp_path: Path, certificates: Certificates
) -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    async with a_door(tmp_path, certificates, app=app) as door:
        await door.get(M1, headers=bearer("good-1"))
        await door.get(M1, certificates.proxy, [*as_user("carol"), ("X-Remote-Extra-A", "b")])
    assert [scope["state"]["user"] for scope in seen] == [
        User("1", ("readers", "system:authenticated"), uid="u1"),
        User("carol", ("system:authenticated",), (("a", ("b",)),)),
    ]
    for scope in seen:
        names = {name for name, _ in scope["headers"]}
        assert b"user-agent" in names
        assert not any(name == b"authorization" or b"remote" in name for name in names)


async def test_a_query_needs_each_metric_that_it_reads(
    tmp_path: Path, certificates: Certificates
) -> None:
    def reads(query: str) -> list[tuple[str, str]]:
        return [("chat", metric) for metric in query.split("+") if metric != "broken("]

    async with a_door(tmp_path, certificates, query_reads=reads) as door:
        path = "/api/v1/query"
        await door.get(f"{path}?query=a%2Bb", certificates.alice)
        asked = [spec["resourceAttributes"] for spec in door.api.reviewed]
        assert {(a["namespace"], a["resource"], a["verb"]) for a in asked} == {
            ("chat", "a", "list"),
            ("chat", "b", "list"),
        }
        async with door.client(certificates.alice) as client:
            door.api.reviewed.clear()
            await client.post(f"{path}?query=c", data={"query": "d"})
            asked = [spec["resourceAttributes"] for spec in door.api.reviewed]
            assert {a["resource"] for a in asked} == {"c", "d"}

            door.api.reviewed.clear()
            await client.get(path, params={"query": "broken("})
            assert door.api.reviewed[0]["nonResourceAttributes"] == {"path": path, "verb": "get"}

            files = {"query": (None, "secret")}
            assert (await client.post(path, files=files)).status_code == 415
            assert (await client.post(path, data={"query": "x" * 70_000})).status_code == 413


async def test_without_a_parser_a_query_needs_every_metric(door: Door) -> None:
    await door.get("/api/v1/query?query=up", door.certificates.alice)
    wanted = door.api.reviewed[0]["resourceAttributes"]
    assert (wanted["resource"], wanted.get("namespace")) == ("*", None)

"""A cluster for those who ask it whom to believe: an API server on loopback, and certificates."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.collect.apiserver import ApiServer
from tests.pki import Authority

CONFIG_MAPS = "/api/v1/namespaces/kube-system/configmaps"
TOKEN_REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
ACCESS_REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
HPA = "system:serviceaccount:kube-system:horizontal-pod-autoscaler"
CHAT_ONLY = "chat-only"
FORBIDDEN_USERS = ("bob", "system:anonymous")
HEADERS = {
    "requestheader-allowed-names": '["front-proxy-client"]',
    "requestheader-username-headers": '["X-Remote-User"]',
    "requestheader-group-headers": '["X-Remote-Group"]',
    "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
    "requestheader-uid-headers": '["X-Remote-Uid"]',
}


class ReviewingApi(ApiServer):
    """Accepts tokens that begin with ``good``, and denies bob and whoever is nobody.

    The user chat-only may list what is in namespace chat, and nothing else.

    Attributes:
        reviewed: Spec of each review that was asked for, in order.
        answers: What to answer reviews with before anything else; an HTTP status, or "reset".
        pause_s: How long each review takes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reviewed: list[dict[str, Any]] = []
        self.answers: list[int | str] = []
        self.pause_s = 0.0

    def put_config_map(self, **data: str) -> None:
        document = {
            "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
            "data": data,
        }
        self.put(CONFIG_MAPS, document)

    async def _write(self, request: web.Request) -> web.StreamResponse:
        if request.path not in (TOKEN_REVIEWS, ACCESS_REVIEWS):
            return await super()._write(request)
        spec = json.loads(await request.read())["spec"]
        self.reviewed.append(spec)
        await asyncio.sleep(self.pause_s)
        if self.answers:
            answer = self.answers.pop(0)
            if answer == "reset":
                assert request.transport is not None
                request.transport.abort()
            return web.json_response({"kind": "Status", "message": "out of luck"}, status=answer)  # type: ignore[arg-type]
        review = _token_review if request.path == TOKEN_REVIEWS else _access_review
        return web.json_response({"spec": spec, "status": review(spec)}, status=201)


@asynccontextmanager
async def an_api(**config_map: str) -> AsyncIterator[ReviewingApi]:
    """A running API server, with the ConfigMap of whom to believe if anything of it is given."""
    api = ReviewingApi()
    if config_map:
        api.put_config_map(**config_map)
    await api.start()
    try:
        yield api
    finally:
        await api.stop()


def _token_review(spec: dict[str, Any]) -> dict[str, Any]:
    token: str = spec["token"]
    if not token.startswith("good"):
        return {"user": {}, "error": "invalid bearer token"}
    name = token.partition("-")[2] or "token-user"
    return {"authenticated": True, "user": {"username": name, "uid": "u1", "groups": ["readers"]}}


def _access_review(spec: dict[str, Any]) -> dict[str, Any]:
    if spec["user"] == CHAT_ONLY:
        wanted = spec.get("resourceAttributes", {})
        return {"allowed": (wanted.get("verb"), wanted.get("namespace")) == ("list", "chat")}
    if spec["user"] in FORBIDDEN_USERS:
        return {"allowed": False, "reason": "" if spec["user"] == "bob" else "no rule matched"}
    return {"allowed": True}


class Certificates:
    """The authorities of a cluster, a foreign one, and certificates by each of them."""

    def __init__(self, folder: Path) -> None:
        for name in ("requestheader", "clients", "foreign"):
            (folder / name).mkdir()
        self.proxy_ca = Authority(folder / "requestheader", "front-proxy-ca")
        self.client_ca = Authority(folder / "clients", "kubernetes-ca")
        foreign = Authority(folder / "foreign", "front-proxy-ca")
        self.proxy = self.proxy_ca.issue("front-proxy-client")
        self.wrong_name = self.proxy_ca.issue("someone-else")
        self.alice = self.client_ca.issue("alice", organization="staff")
        self.client_named_as_proxy = self.client_ca.issue("front-proxy-client")
        self.nameless = self.client_ca.issue("", stem="nameless")
        self.foreign = foreign.issue("front-proxy-client")
        past = timedelta(minutes=-1)
        self.expired_proxy = self.proxy_ca.issue(
            "front-proxy-client", stem="expired", expires_in=past
        )
        self.expired_client = self.client_ca.issue("admin", stem="expired", expires_in=past)
        self.server_only = self.proxy_ca.issue(
            "front-proxy-client", stem="server-only", for_clients=False
        )
        self.signed_by_client = Authority.of(self.alice, folder / "foreign").issue(
            "front-proxy-client", stem="signed-by-client"
        )

    @property
    def config_map(self) -> dict[str, str]:
        return {
            "client-ca-file": self.client_ca.file.read_text(),
            "requestheader-client-ca-file": self.proxy_ca.file.read_text(),
            **HEADERS,
        }


def trusting(ca_file: Path, pair: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    """Return a client's TLS that trusts this authority, and shows this certificate."""
    context = ssl.create_default_context(cafile=str(ca_file))
    if pair is not None:
        context.load_cert_chain(*pair)
    return context

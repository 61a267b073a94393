"""The door of the port: who asks, and whether it may, before anything else looks at a request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wva_adapter.serve.attributes import (
    QUERY_PATH,
    QueryReads,
    attributes_of,
    attributes_of_query,
)
from wva_adapter.serve.authentication import Authenticator
from wva_adapter.serve.authorization import Authorizer, impersonation_refused
from wva_adapter.serve.discovery import VERSION_PATH
from wva_adapter.serve.identity import Headers, Peer, User
from wva_adapter.serve.negotiation import Reply, refuse
from wva_adapter.serve.repeat import Again
from wva_adapter.serve.reviews import PathAccess, ResourceAccess
from wva_adapter.serve.trust import Trust
from wva_adapter.serve.wire import Refusal

_FORM: Final = "application/x-www-form-urlencoded"
UNAUTHORIZED: Final = Refusal(401, "Unauthorized", "Unauthorized")
TOO_LARGE: Final = Refusal(413, "the query's form is larger than 64 KiB", "RequestEntityTooLarge")
TOO_SLOW: Final = Refusal(408, "the query's form did not arrive within 10 s", "Timeout")
NO_FORM: Final = Refusal(
    415, f"the query's body is no form: want content-type {_FORM}", "UnsupportedMediaType"
)
_IMPERSONATE: Final = b"impersonate-"
# An HPA asks with the same words every 15 s, and they arrive over few connections.
_OFTEN_READ: Final = f"{VERSION_PATH}/namespaces/"
_MOST_PASSED: Final = 1024
_MOST_PASSED_BYTES: Final = 2048
_MOST_FORM_BYTES: Final = 64 * 1024
_FORM_TIMEOUT_S: Final = 10.0


@dataclass(slots=True)
class Passed:
    """A request that was let through, so that the same one need not be looked at again.

    Attributes:
        until_s: Until when all that it was found by holds.
        headers: The request's, without those by which one is known.
        kept: Leads to what the application keeps with it, as long as it keeps it.
    """

    peer: Peer | None
    trust: Trust
    until_s: float
    user: User
    headers: list[tuple[bytes, bytes]]
    kept: Callable[[], object | None] | None = None

    def holds(self, scope: Scope, trust: Trust, now_s: float) -> bool:
        """Return whether a request with the same words is let through as well."""
        return _peer(scope) is self.peer and trust is self.trust and now_s < self.until_s


class Guard:
    """Lets through what is known and allowed; the application learns who it is, and not how.

    The user is in ``scope["state"]["user"]``; every header by which one is known is taken out.

    Args:
        query_reads: What a query of ``/api/v1/query`` reads.
        clock: That of the authenticator and the authorizer.
    """

    def __init__(
        self,
        app: ASGIApp,
        authenticator: Authenticator,
        authorizer: Authorizer,
        *,
        query_reads: QueryReads | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._query_reads = query_reads
        self._clock = clock
        self._passed: dict[Hashable, Passed] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        key = None
        if scope["method"] == "GET" and scope["path"].startswith(_OFTEN_READ):
            key = self._key(scope)
            passed = self._passed.get(key)
            if passed is not None and passed.holds(scope, self._authenticator.trust, self._clock()):
                scope["headers"] = passed.headers
                state = scope.setdefault("state", {})
                state["user"], state["passed"] = passed.user, passed
                await self._app(scope, receive, send)
                self._say_again(scope)
                return
        names, prefixes = self._authenticator.names, (*self._authenticator.prefixes, _IMPERSONATE)
        said: list[tuple[bytes, bytes]] = []
        rest: list[tuple[bytes, bytes]] = []
        for header in scope["headers"]:
            name = header[0]
            (said if name in names or name.startswith(prefixes) else rest).append(header)
        peer = _peer(scope)
        user = await self._authenticator.authenticate(peer, said)
        if user is None:
            await _answer(UNAUTHORIZED, scope, receive, send)
            return
        for name, _ in said:
            if name.startswith(_IMPERSONATE):
                await _answer(impersonation_refused(name), scope, receive, send)
                return
        scope["headers"] = rest
        scope.setdefault("state", {})["user"] = user
        if scope["path"] == QUERY_PATH and scope["method"] in ("GET", "HEAD", "POST"):
            refusal, receive = await self._refuse_query(user, scope, receive)
        else:
            wanted = attributes_of(scope["method"], scope["path"], scope["query_string"])
            refusal = await self._authorizer.refusal(user, wanted)
        if refusal is not None:
            await _answer(refusal, scope, receive, send)
            return
        if key is not None:
            self._remember(key, peer, said, scope, user, wanted)
        await self._app(scope, receive, send)
        self._say_again(scope)

    def _say_again(self, scope: Scope) -> None:
        """Let an answer be given again for as long as the caller would be let through again."""
        state = scope["state"]
        again: Again | None = state.pop("again", None)
        passed: Passed | None = state.get("passed")
        if again is None or passed is None:
            return
        answer, through = again, passed

        def while_it_holds() -> Reply | None:
            holds = through.holds(scope, self._authenticator.trust, self._clock())
            return answer() if holds else None

        state["again"] = while_it_holds

    @staticmethod
    def _key(scope: Scope) -> Hashable:
        headers = tuple([header for header in scope["headers"] if header[0] != b"audit-id"])
        return (id(_peer(scope)), scope["path"], scope["query_string"], headers)

    def _remember(
        self,
        key: Hashable,
        peer: Peer | None,
        said: Headers,
        scope: Scope,
        user: User,
        wanted: ResourceAccess | PathAccess,
    ) -> None:
        # A token is kept nowhere but as a hash; HPAs come through the front proxy and have none.
        if any(name == b"authorization" for name, _ in said):
            return
        until_s = min(
            self._authenticator.until_s(peer, said), self._authorizer.until_s(user, wanted)
        )
        if until_s <= self._clock():
            return
        words = (*said, *scope["headers"], (scope["path"], scope["query_string"]))
        size = sum(len(name) + len(value) for name, value in words)
        if size > _MOST_PASSED_BYTES:
            return
        if len(self._passed) >= _MOST_PASSED:
            self._passed.clear()
        named = [header for header in scope["headers"] if header[0] != b"audit-id"]
        passed = Passed(peer, self._authenticator.trust, until_s, user, named)
        self._passed[key] = scope["state"]["passed"] = passed

    async def _refuse_query(
        self, user: User, scope: Scope, receive: Receive
    ) -> tuple[Refusal | None, Receive]:
        """Return why the query may not be asked, if so, and where the application reads its form."""
        queries = parse_qs(scope["query_string"].decode("latin-1")).get("query", [])
        if scope["method"] == "POST":
            form = await _form(receive)
            if isinstance(form, Refusal):
                return form, receive
            if form and not _is_form(scope["headers"]):
                return NO_FORM, receive
            queries += parse_qs(form.decode("latin-1")).get("query", [])
            receive = _replay(form, receive)
        for wanted in attributes_of_query(queries, self._query_reads):
            refusal = await self._authorizer.refusal(user, wanted)
            if refusal is not None:
                return refusal, receive
        return None, receive


def _peer(scope: Scope) -> Peer | None:
    peer: Peer | None = scope.get("extensions", {}).get("tls", {}).get("peer")
    return peer


async def _answer(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    response = refuse(Request(scope), refusal)
    if refusal.code == 403:
        response.headers["X-Content-Type-Options"] = "nosniff"
    await response(scope, receive, send)


def _is_form(headers: Headers) -> bool:
    # Whatever is read as a query must have been looked at here.
    said = [value for name, value in headers if name == b"content-type"]
    return len(said) == 1 and said[0].partition(b";")[0].strip().lower() == _FORM.encode()


async def _form(receive: Receive) -> bytes | Refusal:
    body = bytearray()
    try:
        async with asyncio.timeout(_FORM_TIMEOUT_S):
            while True:
                message: dict[str, Any] = dict(await receive())
                body += message.get("body", b"")
                if len(body) > _MOST_FORM_BYTES:
                    return TOO_LARGE
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        return TOO_SLOW


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives the whole body once and then goes on with the other."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay

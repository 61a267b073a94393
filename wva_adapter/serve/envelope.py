"""What every answer carries, how many are made at once, and what is told of each."""

from __future__ import annotations

import logging
import os
import re
import time
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wva_adapter.serve.discovery import GROUP_PATH, VERSION_PATH
from wva_adapter.serve.negotiation import Caller, Reply, reply_refusal
from wva_adapter.serve.repeat import EXTENSION, Again
from wva_adapter.serve.request_metrics import RequestMetrics
from wva_adapter.serve.wire import TOO_MANY_REQUESTS, internal_error

log = logging.getLogger(__name__)
audit_log = logging.getLogger("wva_adapter.audit")

MOST_IN_FLIGHT: Final = 400
_NEVER_TURNED_AWAY: Final = frozenset(
    ("/healthz", "/livez", "/readyz", "/apis", "/apis/", GROUP_PATH, VERSION_PATH)
)
# What people put into a URL by mistake does not belong into a log.
_SECRET: Final = re.compile(r"(?i)([^&=]*(?:token|secret|password|key)[^&=]*)=[^&]*")
_COMMON_HEADERS: Final = ((b"cache-control", b"no-cache, private"),)


class Envelope:
    """The outermost layer: whatever happens inside, there is one answer, named and counted.

    Args:
        metrics: Where requests are counted; ``None`` counts nowhere.
        audit: Whether each request is a line of the log.
        most_in_flight: More requests at once are told to come again, but for health and the probe
            by which kube-apiserver takes the whole API group away.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: RequestMetrics | None = None,
        audit: bool = False,
        most_in_flight: int = MOST_IN_FLIGHT,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._audit = audit
        self._most_in_flight = most_in_flight
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s = time.perf_counter()
        audit_id = _header(scope, b"audit-id") or _new_audit_id()
        scope.setdefault("state", {})["audit_id"] = audit_id.decode("latin-1")
        named = ((b"audit-id", audit_id), *_COMMON_HEADERS)
        code, size = 0, 0

        async def send_with_headers(message: Message) -> None:
            nonlocal code, size
            if message["type"] == "http.response.start":
                code = message["status"]
                message["headers"] = [*message["headers"], *named]
            else:
                size += len(message.get("body", b""))
            await send(message)

        self._in_flight += 1
        if self._metrics is not None:
            self._metrics.in_flight += 1
        try:
            if self._in_flight > self._most_in_flight and scope["path"] not in _NEVER_TURNED_AWAY:
                refusal = reply_refusal(Caller.of(scope), TOO_MANY_REQUESTS)
                await refusal(scope, receive, send_with_headers)
            else:
                await self._app(scope, receive, send_with_headers)
                self._say_again(scope)
        except Exception as error:
            log_fault(scope, error)
            if code:
                raise
            await answer_fault(scope, receive, send_with_headers, error)
        finally:
            self._in_flight -= 1
            duration_s = time.perf_counter() - began_s
            if self._metrics is not None:
                self._metrics.in_flight -= 1
                self._metrics.observe(scope["method"], scope["path"], code, duration_s, size)
            if self._audit:
                _tell(scope, code, duration_s)

    def _say_again(self, scope: Scope) -> None:
        """Offer the answer to the connection, for when the same request comes again."""
        again: Again | None = scope["state"].pop("again", None)
        offer = scope.get("extensions", {}).get(EXTENSION)
        if again is None or offer is None or self._audit:
            return
        answer, path = again, scope["path"]
        written: tuple[Reply, bytes, bytes] | None = None

        def rest(audit_id: bytes | None) -> bytes | None:
            nonlocal written
            began_s = time.perf_counter()
            reply = answer()
            if reply is None:
                return None
            if written is None or written[0] is not reply:
                written = (reply, *_around_audit_id(reply))
            if self._metrics is not None:
                duration_s = time.perf_counter() - began_s
                self._metrics.observe("GET", path, reply.code, duration_s, len(reply.body))
            return written[1] + (audit_id or _new_audit_id()) + written[2]

        offer(scope, rest)


def _around_audit_id(reply: Reply) -> tuple[bytes, bytes]:
    before = b"".join(name + b": " + value + b"\r\n" for name, value in reply.headers)
    after = b"".join(b"\r\n" + name + b": " + value for name, value in _COMMON_HEADERS)
    return before + b"audit-id: ", after + b"\r\n\r\n" + reply.body


class LastResort:
    """A fault inside becomes a Status here, before FastAPI makes a page of its own of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def note_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, note_start)
        except Exception as error:
            log_fault(scope, error)
            if started:
                raise
            await answer_fault(scope, receive, send, error)


def log_fault(scope: Scope, error: Exception) -> None:
    """Write the trace of a fault of ours under the request's audit id."""
    log.error(
        "request failed",
        exc_info=error,
        extra={"path": scope["path"], "audit_id": _audit_id(scope)},
    )


async def answer_fault(scope: Scope, receive: Receive, send: Send, error: Exception) -> None:
    """Answer with a Status that says where the trace is."""
    refusal = internal_error(f"{type(error).__name__}, see the log at audit id {_audit_id(scope)}")
    await reply_refusal(Caller.of(scope), refusal)(scope, receive, send)


def _new_audit_id() -> bytes:
    """Return a random UUID; the library's own way to one takes four times as long."""
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    uuid4 = f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
    return uuid4.encode()


def _audit_id(scope: Scope) -> str:
    audit_id: str = scope.get("state", {}).get("audit_id", "")
    return audit_id


def _header(scope: Scope, name: bytes) -> bytes:
    for found, value in scope["headers"]:
        if found == name:
            return bytes(value)
    return b""


def _tell(scope: Scope, code: int, duration_s: float) -> None:
    user: Any = scope["state"].get("user")
    query = _SECRET.sub(r"\1=…", scope["query_string"].decode("latin-1"))
    client = scope.get("client")
    audit_log.info(
        "request",
        extra={
            "audit_id": _audit_id(scope),
            "user": None if user is None else user.name,
            "verb": scope["method"],
            "uri": scope["path"] + (f"?{query}" if query else ""),
            "code": code,
            "latency_s": round(duration_s, 6),
            "user_agent": _header(scope, b"user-agent").decode("latin-1"),
            "source": None if client is None else client[0],
        },
    )

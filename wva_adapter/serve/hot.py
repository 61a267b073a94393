"""The read path of the external metrics API: one metric of one namespace, as bytes.

The HPA controller asks this of every workload it scales. FastAPI declares the route; a small ASGI
layer in front of FastAPI calls the same function and skips routing, validation and serialisation,
which is most of what a request costs.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any, Final, Protocol

from fastapi import APIRouter, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from wva_adapter.core.answer import Answer, Items, Matcher, NoPlan, NotFound
from wva_adapter.serve.discovery import VERSION_PATH
from wva_adapter.serve.list_options import ListOptions, read_options
from wva_adapter.serve.negotiation import Caller, Reply, reply
from wva_adapter.serve.wire import (
    MOST_BODY_BYTES,
    TIMED_OUT,
    TOO_LARGE,
    ExternalMetricValueList,
    Refusal,
    Status,
    not_found,
    unavailable,
    value_list,
)

_PREFIX: Final = f"{VERSION_PATH}/namespaces/"
_MOST_KEPT: Final = 4096
_MOST_KEPT_BYTES: Final = 16 * 2**20
_SELECTOR_PARAMETER: Final[dict[str, Any]] = {
    "name": "labelSelector",
    "in": "query",
    "description": "Kubernetes label selector; without one, every item of the namespace answers.",
    "schema": {"type": "string"},
    "example": "variant_name=llama-a100",
}

Told = Answer | Refusal
"""What a provider says; a ``Refusal`` is its own Status, word for word."""


class Provider(Protocol):
    """Who knows the values of external metrics."""

    @property
    def version(self) -> int:
        """Changes whenever an answer may have changed other than by its age."""
        ...

    def answer(self, namespace: str, metric: str, matches: Matcher) -> Told | Awaitable[Told]:
        """Return the items that match, or why there are none."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for one metric.

    Attributes:
        path: As it came, still encoded.
        user: Who asks, for a provider behind this one; empty where nobody was authenticated.
        audit_id: The request's name in the log.
    """

    namespace: str
    metric: str
    caller: Caller
    path: str = ""
    user: str = ""
    audit_id: str = ""


class Elsewhere(Protocol):
    """Providers behind this one."""

    def claims(self, metric: str, selector_text: str) -> bool:
        """Return whether the metric is one of theirs."""
        ...

    async def reply(self, asked: Asked, options: ListOptions) -> Reply:
        """Return their answer as it came, or why there is none."""
        ...


def refusal_of(answer: NotFound | NoPlan) -> Refusal:
    """Return why there is no value, as a Status: 404 for a wrong name, 503 for an unknown value."""
    if isinstance(answer, NotFound):
        return not_found(answer.message)
    return unavailable(answer.message)


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Kept:
    """An answer with items, as bytes.

    Attributes:
        version: The provider's when it was made.
        from_s: Unix time of its making.
        until_s: Unix time from which it is too old.
    """

    version: int
    from_s: float
    until_s: float
    reply: Reply


class MetricReads:
    """The read path.

    Answers with items are kept as bytes until the provider's version changes or they are too old:
    an HPA asks the same question every 15 s, and every one of them between two plans has the same
    answer.

    Args:
        clock: Unix time, the one that the provider's ages are of.
        elsewhere: Who answers what the provider does not; ``None`` where it answers everything.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        clock: Callable[[], float],
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._provider = provider
        self._clock = clock
        self._elsewhere = elsewhere
        self._kept: dict[tuple[str, str, Caller], Kept] = {}
        self._kept_bytes = 0

    def is_fresh(self, kept: Kept) -> bool:
        """Return whether the provider would say the same now."""
        # Before its making the clock was set back, and how old an answer is nobody knows.
        return (
            kept.version == self._provider.version and kept.from_s <= self._clock() < kept.until_s
        )

    def kept(self, asked: Asked) -> Kept | None:
        """Return the answer that is kept for the same question, fresh or not."""
        return self._kept.get((asked.namespace, asked.metric, asked.caller))

    async def __call__(self, asked: Asked) -> Reply:
        """Return the answer to send."""
        kept = self.kept(asked)
        if kept is not None and self.is_fresh(kept):
            return kept.reply
        options = read_options(asked.caller.query)
        if isinstance(options, Refusal):
            return reply(asked.caller, options)
        if self._elsewhere is not None and self._elsewhere.claims(
            asked.metric, str(options.selector)
        ):
            return await self._elsewhere.reply(asked, options)
        return await self._own(asked, options)

    async def _own(self, asked: Asked, options: ListOptions) -> Reply:
        version = self._provider.version
        told = self._provider.answer(asked.namespace, asked.metric, options.selector)
        if isawaitable(told):
            try:
                async with asyncio.timeout(options.timeout_s):
                    told = await told
            except TimeoutError:
                return reply(asked.caller, TIMED_OUT)
        if isinstance(told, Refusal):
            return reply(asked.caller, told)
        if not isinstance(told, Items):
            return reply(asked.caller, refusal_of(told))
        written = reply(asked.caller, value_list(told.items))
        if written.code == 200:
            self._keep(asked, Kept(version, self._clock(), told.until_s, written))
        return written

    def _keep(self, asked: Asked, kept: Kept) -> None:
        key = (asked.namespace, asked.metric, asked.caller)
        words = (*key[:2], asked.caller.accept, asked.caller.user_agent, asked.caller.query)
        size = sum(map(len, words)) + len(kept.reply.body)
        # A reader that asks in ever new words must not fill the memory.
        if len(self._kept) >= _MOST_KEPT or self._kept_bytes + size > _MOST_KEPT_BYTES:
            self._kept.clear()
            self._kept_bytes = 0
        if size <= _MOST_KEPT_BYTES:
            self._kept[key] = kept
            self._kept_bytes += size


class HotPath:
    """The layer in front of FastAPI: reads of metrics go straight to the read path."""

    def __init__(self, app: ASGIApp, reads: MetricReads) -> None:
        self._app = app
        self._reads = reads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "GET":
            path: str = scope["path"]
            if path.startswith(_PREFIX):
                # The guard recognises a request that it let through before; with it goes its answer.
                passed = scope.get("state", {}).get("passed")
                kept = None if passed is None or passed.kept is None else passed.kept()
                if kept is not None and self._reads.is_fresh(kept):
                    await kept.reply(scope, receive, send)
                    self._say_again(scope, kept)
                    return
                if _body_bytes(scope) > MOST_BODY_BYTES:
                    await reply(Caller.of(scope), TOO_LARGE)(scope, receive, send)
                    return
                namespace, _, rest = path[len(_PREFIX) :].partition("/")
                metric = rest.removesuffix("/")
                if namespace and metric and "/" not in metric:
                    asked = _asked(scope, namespace, metric)
                    answer = await self._reads(asked)
                    kept = self._reads.kept(asked)
                    if passed is not None and kept is not None:
                        # Only weakly, so that the read path alone decides how much is kept.
                        passed.kept = weakref.ref(kept)
                    await answer(scope, receive, send)
                    if kept is not None:
                        self._say_again(scope, kept)
                    return
        await self._app(scope, receive, send)

    def _say_again(self, scope: Scope, kept: Kept) -> None:
        found = weakref.ref(kept)

        def again() -> Reply | None:
            kept = found()
            return kept.reply if kept is not None and self._reads.is_fresh(kept) else None

        scope.setdefault("state", {})["again"] = again


def _body_bytes(scope: Scope) -> int:
    """Return how long the body is said to be."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0


def external_metrics_router(reads: MetricReads) -> APIRouter:
    """Return the route of the external metrics API."""
    router = APIRouter(tags=["external metrics"])
    path = f"{_PREFIX}{{namespace}}/{{metric}}"

    async def read(request: Request, namespace: str, metric: str) -> Response:
        return (await reads(_asked(request.scope, namespace, metric))).response()

    router.add_api_route(
        path,
        read,
        summary="Values of one metric",
        response_model=ExternalMetricValueList,
        responses={code: {"model": Status} for code in (400, 404, 406, 422, 429, 503, 504)},
        openapi_extra={"parameters": [_SELECTOR_PARAMETER]},
    )
    router.add_api_route(f"{path}/", read, include_in_schema=False)
    return router


def _asked(scope: Scope, namespace: str, metric: str) -> Asked:
    state = scope.get("state", {})
    user = state.get("user")
    return Asked(
        namespace,
        metric,
        Caller.of(scope),
        path=scope.get("raw_path", b"").decode("latin-1"),
        user="" if user is None else user.name,
        audit_id=state.get("audit_id", ""),
    )

"""Every route of the HTTP port, and what every answer carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Protocol

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from wva_adapter import __version__
from wva_adapter.core.answer import Answer, Items, NoPlan, NotFound
from wva_adapter.serve.discovery import discovery_router
from wva_adapter.serve.envelope import Envelope, LastResort
from wva_adapter.serve.health import Check, health_router
from wva_adapter.serve.hot import HotPath, MetricReads, external_metrics_router, refusal_of
from wva_adapter.serve.negotiation import JSON, parse_accept, refuse, respond_json
from wva_adapter.serve.openapi import openapi_router
from wva_adapter.serve.promapi import query_router
from wva_adapter.serve.promeval import SeriesSource
from wva_adapter.serve.request_metrics import RequestMetrics
from wva_adapter.serve.wire import (
    NO_SUCH_METHOD,
    NO_SUCH_RESOURCE,
    Document,
    Refusal,
    Status,
    bad_request,
    encode,
    timestamp,
)

# The version that Prometheus reads without being asked to negotiate.
_EXPOSITION: Final = "text/plain; version=0.0.4; charset=utf-8"
# More replicas than anybody has; a longer number is a mistake.
_MOST_DIGITS: Final = 6
# Below these, programs ask and read a Status; elsewhere, a person may want to see what there is.
_STATUS_BELOW: Final = ("/apis/", "/openapi/", "/v1/", "/explain/")


class Explanation(Protocol):
    """How a running adapter came to its decisions."""

    @property
    def document(self) -> Document:
        """For programs."""
        ...

    @property
    def text(self) -> str:
        """For people, in lines."""
        ...


class Decisions(Protocol):
    """Who knows the plain counts, and why they are what they are."""

    def desired(self, namespace: str, name: str) -> Answer:
        """Return one item, the count of one variant, or why there is none."""
        ...

    def explain(
        self,
        namespace: str | None = None,
        name: str | None = None,
        *,
        why_not: int | None = None,
    ) -> Explanation | NotFound | NoPlan:
        """Return the trail of one variant, or of all where none is named.

        Args:
            why_not: A count of the one variant that is to be compared with the decided one.
        """
        ...


class Desired(BaseModel):
    """The count of one variant, where KEDA's metrics-api trigger reads it."""

    namespace: str
    name: str
    desiredReplicas: int = Field(description="The count itself, not shaped for any reader.")
    active: bool = Field(description="Whether the count is above 0.")
    timestamp: datetime = Field(description="When the plan was made.")


def create_app(
    reads: MetricReads,
    decisions: Decisions,
    *,
    metrics: Callable[[], bytes],
    ready: Mapping[str, Check],
    series: SeriesSource | None = None,
) -> FastAPI:
    """Return the application that owns every route.

    Args:
        reads: Answers the external metrics API.
        decisions: Answers ``/v1/desired`` and ``/explain``.
        metrics: Returns the page of ``/metrics``, in Prometheus' text format 0.0.4.
        ready: What must hold before ``/readyz`` says so, by name.
        series: Answers ``/api/v1/query``; without one there is no such route.
    """
    app = FastAPI(
        title="wva-adapter",
        version=__version__,
        summary="How many replicas every variant of an LLM deployment should have.",
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    for router in (
        external_metrics_router(reads),
        discovery_router(),
        openapi_router(),
        health_router(ready),
        _decisions_router(decisions),
        *(() if series is None else (query_router(series),)),
    ):
        app.include_router(router)

    @app.get("/metrics", summary="Own metrics", response_class=PlainTextResponse)
    async def own_metrics() -> Response:
        return Response(metrics(), headers={"Content-Type": _EXPOSITION})

    paths = sorted({"/openapi.json", *(path for path in app.openapi()["paths"] if "{" not in path)})
    index = encode({"paths": paths}, pretty=True)

    @app.get("/", include_in_schema=False)
    @app.get("/index.html", include_in_schema=False)
    async def contents() -> Response:
        return Response(index, media_type=JSON)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == NO_SUCH_METHOD.code:
            return refuse(request, NO_SUCH_METHOD)
        if not request.url.path.startswith(_STATUS_BELOW):
            return Response(index, error.status_code, media_type=JSON)
        return refuse(request, NO_SUCH_RESOURCE)

    async def unreadable(request: Request, error: Exception) -> Response:
        return refuse(request, bad_request(str(error)))

    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, unreadable)
    app.add_middleware(LastResort)
    return app


def in_front(
    app: FastAPI,
    reads: MetricReads,
    *,
    guard: Callable[[ASGIApp], ASGIApp] | None = None,
    metrics: RequestMetrics | None = None,
    audit: bool = False,
) -> ASGIApp:
    """Return the application with the layers that every request goes through.

    From the outside in: the envelope, the guard, the read path, FastAPI.

    Args:
        guard: Adds the layer that lets nobody in who may not; ``None`` lets everybody in.
    """
    inside = HotPath(app, reads)
    return Envelope(inside if guard is None else guard(inside), metrics=metrics, audit=audit)


def _decisions_router(decisions: Decisions) -> APIRouter:
    router = APIRouter(tags=["decisions"])
    refusals: dict[int | str, dict[str, Any]] = {code: {"model": Status} for code in (404, 503)}

    @router.get(
        "/v1/desired/{namespace}/{name}",
        summary="Count of one variant",
        response_model=Desired,
        responses=refusals,
    )
    async def desired(request: Request, namespace: str, name: str) -> Response:
        answer = decisions.desired(namespace, name)
        if not isinstance(answer, Items):
            return respond_json(request, refusal_of(answer))
        item = answer.items[0]
        count = item.value_milli // 1000
        document = {
            "namespace": namespace,
            "name": name,
            "desiredReplicas": count,
            "active": count > 0,
            "timestamp": timestamp(item.at_s),
        }
        return respond_json(request, document)

    @router.get("/explain/{namespace}/{name}", summary="Trail of one variant", responses=refusals)
    async def explain(
        request: Request,
        namespace: str,
        name: str,
        why_not: Annotated[
            str | None, Query(description="A count that was not decided: what speaks against it.")
        ] = None,
    ) -> Response:
        if why_not is None:
            return _explained(request, decisions.explain(namespace, name))
        if not (why_not.isascii() and why_not.isdecimal() and len(why_not) <= _MOST_DIGITS):
            found = f"why_not: found {why_not[:40]!r}"
            return _refused(request, bad_request(f"{found}, want a whole number of at least 0"))
        return _explained(request, decisions.explain(namespace, name, why_not=int(why_not)))

    @router.get("/explain", summary="Trails of all variants", responses=refusals)
    async def explain_all(request: Request) -> Response:
        return _explained(request, decisions.explain())

    return router


def _explained(request: Request, answer: Explanation | NotFound | NoPlan) -> Response:
    if isinstance(answer, NotFound | NoPlan):
        return _refused(request, refusal_of(answer))
    if _reads_text(request):
        return PlainTextResponse(answer.text)
    return respond_json(request, answer.document)


def _refused(request: Request, refusal: Refusal) -> Response:
    if _reads_text(request):
        return PlainTextResponse(f"{refusal.message}\n", refusal.code)
    return respond_json(request, refusal)


def _reads_text(request: Request) -> bool:
    """Return whether the caller is a person at a terminal: it asks for text, or is a bare curl."""
    wanted = parse_accept(request.headers.get("accept", ""))[0].media_type
    if wanted == "*/*":
        return request.headers.get("user-agent", "").startswith("curl")
    return wanted == "text/plain"

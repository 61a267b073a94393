"""What kubectl and kube-apiserver may read of the API group's shapes: OpenAPI v2 and v3.

Both documents are made once. Definitions bear the names that every API server gives them, so that
``kubectl explain`` finds them by kind.
"""

from __future__ import annotations

import hashlib
import time
from email.utils import formatdate
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from wva_adapter import __version__
from wva_adapter.serve.discovery import GROUP_PATH, VERSION_PATH, entity_tag
from wva_adapter.serve.negotiation import JSON, parse_accept, refuse
from wva_adapter.serve.wire import GROUP, NO_SUCH_RESOURCE, VERSION, encode

_METRICS: Final = "io.k8s.metrics.pkg.apis.external_metrics.v1beta1"
_META: Final = "io.k8s.apimachinery.pkg.apis.meta.v1"
_QUANTITY: Final = "io.k8s.apimachinery.pkg.api.resource.Quantity"
_INFO: Final = {"title": "wva-adapter", "version": __version__}
_READ_PATH: Final = f"{VERSION_PATH}/namespaces/{{namespace}}/{{resource}}"
_GROUPS: Final = {
    "apis": "/apis/",
    f"apis/{GROUP}": f"{GROUP_PATH}/",
    f"apis/{GROUP}/{VERSION}": f"{VERSION_PATH}/",
    "version": "/version/",
}
_A_YEAR_S: Final = 365 * 24 * 3600


def _of_kind(kind: str) -> list[dict[str, str]]:
    return [{"group": GROUP, "kind": kind, "version": VERSION}]


def _definitions(prefix: str) -> dict[str, Any]:
    """Return the schemas; ``prefix`` is where references find them."""

    def ref(name: str, **more: Any) -> dict[str, Any]:
        return {"$ref": f"{prefix}{name}", **more}

    text = {"type": "string"}
    described = {
        "apiVersion": {**text, "description": "Version of this object's schema."},
        "kind": {**text, "description": "What this object is."},
    }
    return {
        f"{_METRICS}.ExternalMetricValue": {
            "description": "One value of one metric.",
            "type": "object",
            "required": ["metricName", "metricLabels", "timestamp", "value"],
            "properties": {
                **described,
                "metricLabels": {
                    "description": "Labels of the value; a selector matches against them.",
                    "type": "object",
                    "additionalProperties": text,
                },
                "metricName": {**text, "description": "Name of the metric."},
                "timestamp": ref(f"{_META}.Time"),
                "value": ref(_QUANTITY),
                "window": {
                    "description": "Seconds that the value was taken over; 0 for an instant.",
                    "type": "integer",
                    "format": "int64",
                },
            },
            "x-kubernetes-group-version-kind": _of_kind("ExternalMetricValue"),
        },
        f"{_METRICS}.ExternalMetricValueList": {
            "description": "The values of one metric that a selector matches.",
            "type": "object",
            "required": ["items"],
            "properties": {
                **described,
                "items": {
                    "description": "The values; a HorizontalPodAutoscaler adds them up.",
                    "type": "array",
                    "items": ref(f"{_METRICS}.ExternalMetricValue"),
                },
                "metadata": ref(f"{_META}.ListMeta"),
            },
            "x-kubernetes-group-version-kind": _of_kind("ExternalMetricValueList"),
        },
        f"{_META}.ListMeta": {
            "description": "What a list says of itself; here, nothing.",
            "type": "object",
            "properties": {
                "continue": text,
                "remainingItemCount": {"type": "integer", "format": "int64"},
                "resourceVersion": text,
                "selfLink": text,
            },
        },
        f"{_META}.Time": {**text, "format": "date-time", "description": "RFC 3339, in seconds."},
        _QUANTITY: {**text, "description": "A number such as 3, 1500m or 12k."},
    }


def _parameters() -> list[dict[str, Any]]:
    return [
        {"name": "namespace", "in": "path", "required": True},
        {"name": "resource", "in": "path", "required": True},
        {"name": "labelSelector", "in": "query"},
    ]


def _operation(path: str, responses: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {"description": "Discovery", "responses": responses}
    if path == _READ_PATH:
        operation["description"] = "Values of one external metric"
        operation["operationId"] = "listExternalMetricsV1beta1ExternalMetricValue"
        operation["x-kubernetes-action"] = "list"
        operation["x-kubernetes-group-version-kind"] = _of_kind("ExternalMetricValue")[0]
    return operation


def document_v2() -> dict[str, Any]:
    """Return the Swagger 2.0 document of the group."""
    prefix = "#/definitions/"
    value_list = {"$ref": f"{prefix}{_METRICS}.ExternalMetricValueList"}
    paths: dict[str, Any] = {}
    for path in (*_GROUPS.values(), _READ_PATH):
        good: dict[str, Any] = {"description": "OK"}
        if path == _READ_PATH:
            good["schema"] = value_list
        operation = _operation(path, {"200": good, "401": {"description": "Unauthorized"}})
        paths[path] = {"get": {**operation, "produces": [JSON], "schemes": ["https"]}}
    paths[_READ_PATH]["parameters"] = [{**p, "type": "string"} for p in _parameters()]
    return {
        "swagger": "2.0",
        "info": _INFO,
        "paths": dict(sorted(paths.items())),
        "definitions": _definitions(prefix),
        "parameters": {},
    }


def document_v3(group: str) -> dict[str, Any]:
    """Return the OpenAPI 3.0 document of one entry of ``/openapi/v3``."""
    prefix = "#/components/schemas/"
    here = [_GROUPS[group]]
    schemas: dict[str, Any] = {}
    if _GROUPS[group] == f"{VERSION_PATH}/":
        here.append(_READ_PATH)
        schemas = _definitions(prefix)
    paths: dict[str, Any] = {}
    for path in here:
        good: dict[str, Any] = {"description": "OK"}
        if path == _READ_PATH:
            ref = {"$ref": f"{prefix}{_METRICS}.ExternalMetricValueList"}
            good["content"] = {JSON: {"schema": ref}}
        operation = _operation(path, {"200": good, "401": {"description": "Unauthorized"}})
        paths[path] = {"get": operation}
        if path == _READ_PATH:
            paths[path]["parameters"] = [
                {**parameter, "schema": {"type": "string"}} for parameter in _parameters()
            ]
    return {
        "openapi": "3.0.0",
        "info": _INFO,
        "paths": paths,
        "components": {"schemas": schemas},
    }


def openapi_router() -> APIRouter:
    """Return the routes of both documents; who wants another form than JSON gets an empty 406."""
    router = APIRouter(include_in_schema=False)
    made_at = formatdate(usegmt=True)
    v2 = encode(document_v2())
    bodies = {group: encode(document_v3(group)) for group in _GROUPS}
    hashes = {group: hashlib.sha512(body).hexdigest().upper() for group, body in bodies.items()}
    urls = {group: f"/openapi/v3/{group}?hash={hashes[group]}" for group in _GROUPS}
    root = encode({"paths": {group: {"serverRelativeURL": url} for group, url in urls.items()}})

    def sent(request: Request, body: bytes, **more: str) -> Response:
        etag = entity_tag(body)
        headers = {"ETag": etag, "Last-Modified": made_at, "Vary": "Accept", **more}
        if request.headers.get("if-none-match") == etag:
            return Response(None, 304, headers)
        return Response(body, headers={**headers, "Content-Type": JSON})

    async def whole(request: Request) -> Response:
        return sent(request, v2) if _takes_json(request) else Response(None, 406)

    @router.get("/openapi/v3")
    async def groups(request: Request) -> Response:
        return sent(request, root)

    @router.get("/openapi/v3/{group:path}")
    async def one(request: Request, group: str) -> Response:
        if group not in bodies:
            return refuse(request, NO_SUCH_RESOURCE)
        if not _takes_json(request):
            return Response(None, 406)
        asked = request.query_params.get("hash")
        if asked is None:
            return sent(request, bodies[group])
        if asked != hashes[group]:
            return Response(None, 301, {"Location": urls[group]})
        # The address changes with the content, so what is behind it may be kept.
        expires = formatdate(time.time() + _A_YEAR_S, usegmt=True)
        return sent(request, bodies[group], Expires=expires)

    router.add_api_route("/openapi/v2", whole, methods=["GET", "POST"])
    return router


def _takes_json(request: Request) -> bool:
    ranges = parse_accept(request.headers.get("accept", ""))
    return any(r.media_type in (JSON, "application/*", "*/*") for r in ranges)

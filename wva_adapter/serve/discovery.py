"""What this API server says of itself: its group, its version, its one kind of resource.

kube-apiserver reads these documents to decide whether the whole API group is available, so they
depend on nothing and name a constant placeholder instead of the metrics.
"""

from __future__ import annotations

import hashlib
import platform
from typing import Final

from fastapi import APIRouter, Request, Response

from wva_adapter import __version__
from wva_adapter.serve.negotiation import (
    negotiate,
    parse_accept,
    refuse,
    respond,
)
from wva_adapter.serve.wire import (
    GROUP,
    GROUP_VERSION,
    NO_SUCH_RESOURCE,
    VERSION,
    Document,
    Refusal,
    encode,
)

GROUP_PATH: Final = f"/apis/{GROUP}"
VERSION_PATH: Final = f"{GROUP_PATH}/{VERSION}"
_GV: Final = {"groupVersion": GROUP_VERSION, "version": VERSION}
_RESOURCE: Final = "externalmetrics"
_KIND: Final = "ExternalMetricValueList"

RESOURCE_LIST: Final[Document] = {
    "kind": "APIResourceList",
    "apiVersion": "v1",
    "groupVersion": GROUP_VERSION,
    "resources": [
        {
            "name": _RESOURCE,
            "singularName": "",
            "namespaced": True,
            "kind": _KIND,
            "verbs": ["get"],
        }
    ],
}
API_GROUP: Final[Document] = {
    "kind": "APIGroup",
    "apiVersion": "v1",
    "name": GROUP,
    "versions": [_GV],
    "preferredVersion": _GV,
}
AGGREGATED: Final[Document] = {
    "kind": "APIGroupDiscoveryList",
    "apiVersion": "apidiscovery.k8s.io/v2",
    "metadata": {},
    "items": [
        {
            "metadata": {"name": GROUP},
            "versions": [
                {
                    "version": VERSION,
                    "resources": [
                        {
                            "resource": _RESOURCE,
                            "responseKind": {"group": "", "version": "", "kind": _KIND},
                            "scope": "Namespaced",
                            "singularResource": "",
                            "verbs": ["get"],
                        }
                    ],
                    "freshness": "Current",
                }
            ],
        }
    ],
}
AGGREGATED_TYPE: Final = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
_AGGREGATED_BODY: Final = encode(AGGREGATED)
_AGGREGATED_ETAG: Final = f'"{hashlib.sha512(_AGGREGATED_BODY).hexdigest().upper()}"'

# The release of Kubernetes whose external-metrics API this server speaks.
_KUBERNETES_MINOR: Final = "37"
VERSION_INFO: Final[Document] = {
    "major": "1",
    "minor": _KUBERNETES_MINOR,
    "gitVersion": f"v1.{_KUBERNETES_MINOR}.0+wva-adapter-{__version__}",
    "gitCommit": "",
    "gitTreeState": "",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": f"n/a (CPython {platform.python_version()})",
    "compiler": platform.python_implementation(),
    "platform": f"{platform.system().lower()}/{platform.machine()}",
}


def group_list(port: int) -> Document:
    """Return the APIGroupList of a server on this port; as in Kubernetes, without apiVersion."""
    address = {"clientCIDR": "0.0.0.0/0", "serverAddress": f":{port}"}
    return {
        "kind": "APIGroupList",
        "groups": [
            {
                "name": GROUP,
                "versions": [_GV],
                "preferredVersion": _GV,
                "serverAddressByClientCIDRs": [address],
            }
        ],
    }


def wants_aggregated(accept: str) -> bool:
    """Return whether the first alternative that can be served is the aggregated document."""
    for media_range in parse_accept(accept):
        asked = media_range.parameters
        if asked.get("as") == "APIGroupDiscoveryList" and media_range.media_type.endswith("/json"):
            if asked.get("g") == "apidiscovery.k8s.io" and asked.get("v") == "v2":
                return True
        elif not isinstance(negotiate(media_range.media_type), Refusal):
            return False
    return False


def discovery_router() -> APIRouter:
    """Return the routes that kube-apiserver and kubectl discover the API by."""
    router = APIRouter(tags=["discovery"])

    @router.get("/apis", summary="API groups")
    async def groups(request: Request) -> Response:
        accept = request.headers.get("accept", "")
        if wants_aggregated(accept):
            return _aggregated(request)
        # An aggregator that asks only for an older aggregated document takes 406, and nothing else,
        # as the word to read the group's resources instead.
        server = request.scope.get("server") or ("", 443)
        return respond(request, group_list(server[1]))

    @router.get(GROUP_PATH, summary="The API group")
    async def group(request: Request) -> Response:
        return respond(request, API_GROUP)

    @router.get(VERSION_PATH, summary="Its resources: the availability probe of kube-apiserver")
    async def resources(request: Request) -> Response:
        return respond(request, RESOURCE_LIST)

    @router.get("/version", summary="Version of this server")
    async def version(request: Request) -> Response:
        return Response(encode(VERSION_INFO, pretty=True), media_type="application/json")

    # No document: kube-apiserver takes 404 here quietly as "none".
    @router.get("/openapi/v2", include_in_schema=False)
    @router.get("/openapi/v3", include_in_schema=False)
    async def no_openapi(request: Request) -> Response:
        return refuse(request, NO_SUCH_RESOURCE)

    for path, endpoint in (
        ("/apis/", groups),
        (f"{GROUP_PATH}/", group),
        (f"{VERSION_PATH}/", resources),
        ("/version/", version),
    ):
        router.add_api_route(path, endpoint, include_in_schema=False)
    return router


def _aggregated(request: Request) -> Response:
    headers = {"ETag": _AGGREGATED_ETAG, "Vary": "Accept"}
    if request.headers.get("if-none-match") == _AGGREGATED_ETAG:
        return Response(None, 304, headers)
    return Response(_AGGREGATED_BODY, headers={**headers, "Content-Type": AGGREGATED_TYPE})

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
    JSON,
    negotiate,
    parse_accept,
    respond,
)
from wva_adapter.serve.protobuf import PROTOBUF, encode_protobuf
from wva_adapter.serve.wire import (
    GROUP,
    GROUP_VERSION,
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
_AGGREGATED_PARAMETERS: Final = "g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
AGGREGATED_TYPE: Final = f"{JSON};{_AGGREGATED_PARAMETERS}"


def entity_tag(body: bytes) -> str:
    """Return a strong ETag of a body."""
    return f'"{hashlib.sha512(body).hexdigest().upper()}"'


_AGGREGATED_BODIES: Final = {
    form: (body, entity_tag(body))
    for form, body in ((JSON, encode(AGGREGATED)), (PROTOBUF, encode_protobuf(AGGREGATED)))
}

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


def aggregated_form(accept: str) -> str | None:
    """Return the media type of the aggregated document, if the caller would have it first."""
    for media_range in parse_accept(accept):
        asked = media_range.parameters
        if asked.get("as") == "APIGroupDiscoveryList":
            right = asked.get("g") == "apidiscovery.k8s.io" and asked.get("v") == "v2"
            for media_type in (JSON, PROTOBUF):
                if right and media_range.covers(media_type):
                    return media_type
        elif not isinstance(negotiate(media_range.media_type), Refusal):
            return None
    return None


def discovery_router() -> APIRouter:
    """Return the routes that kube-apiserver and kubectl discover the API by."""
    router = APIRouter(tags=["discovery"])

    @router.get("/apis", summary="API groups")
    async def groups(request: Request) -> Response:
        accept = request.headers.get("accept", "")
        form = aggregated_form(accept)
        if form is not None:
            return _aggregated(request, form)
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

    for path, endpoint in (
        ("/apis/", groups),
        (f"{GROUP_PATH}/", group),
        (f"{VERSION_PATH}/", resources),
        ("/version/", version),
    ):
        router.add_api_route(path, endpoint, include_in_schema=False)
    return router


def _aggregated(request: Request, form: str) -> Response:
    body, etag = _AGGREGATED_BODIES[form]
    headers = {"ETag": etag, "Vary": "Accept"}
    if request.headers.get("if-none-match") == etag:
        return Response(None, 304, headers)
    return Response(body, headers={**headers, "Content-Type": f"{form};{_AGGREGATED_PARAMETERS}"})

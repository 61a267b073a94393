"""What a request wants to do, in the words that access is granted by."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final
from urllib.parse import parse_qs

from wva_adapter.serve.reviews import PathAccess, ResourceAccess
from wva_adapter.serve.wire import GROUP, VERSION

DESIRED: Final = "wva_desired_replicas"
QUERY_PATH: Final = "/api/v1/query"

QueryReads = Callable[[str], Iterable[tuple[str, str]]]
"""Returns the (namespace, metric) pairs that a query reads, namespace ``""`` where it names none.

Nothing for one that cannot be parsed: it will be refused.
"""

_VERBS: Final = {
    "GET": "get",
    "HEAD": "get",
    "POST": "create",
    "PUT": "update",
    "PATCH": "patch",
    "DELETE": "delete",
}
# Without the name of one object, these are about all of a kind.
_VERBS_OF_ALL: Final = {"get": "list", "delete": "deletecollection"}
_NAMESPACE_SUBRESOURCES: Final = ("status", "finalize")
_OUR_RESOURCE: Final = re.compile(r"/(?:v1/desired|explain)/([^/]+)/[^/]+")
_OUR_RESOURCE_ALL: Final = "/explain"
_MOST_REMEMBERED_LENGTH: Final = 1000
_NAME_FIELD: Final = re.compile(r"metadata\.name==?([a-z0-9]([-a-z0-9.]*[a-z0-9])?)")


def attributes_of(method: str, path: str, query: bytes) -> ResourceAccess | PathAccess:
    """Return what a request wants to do.

    Args:
        path: Percent-decoded, as the routes see it.
        query: As it came.

    References:
        ``k8s.io/apiserver/pkg/endpoints/request`` RequestInfo.
    """
    # What is remembered must not grow by what strangers send.
    if len(path) + len(query) > _MOST_REMEMBERED_LENGTH:
        return _read(method, path, query)
    return _remembered(method, path, query)


def _read(method: str, path: str, query: bytes) -> ResourceAccess | PathAccess:
    ours = _OUR_RESOURCE.fullmatch(path)
    if ours is not None:
        return _reading(method, ours[1])
    if path == _OUR_RESOURCE_ALL:
        return _reading(method, "")
    parts = path.strip("/").split("/")
    if len(parts) < 4 or parts[0] != "apis":
        return PathAccess(method.lower(), path)
    _, group, version, *rest = parts
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 1:
        namespace = rest[1]
        if len(rest) > 2 and rest[2] not in _NAMESPACE_SUBRESOURCES:
            rest = rest[2:]
    resource, name, subresource = (*rest, "", "")[:3]
    verb = _VERBS.get(method, "")
    if not name:
        verb = _VERBS_OF_ALL.get(verb, verb)
        if verb == "list":
            watches, name = _list_options(query)
            verb = "watch" if watches else verb
    return ResourceAccess(verb, group, version, resource, namespace, name, subresource)


_remembered: Final = lru_cache(maxsize=4096)(_read)


def attributes_of_query(
    queries: Iterable[str], reads: QueryReads | None
) -> frozenset[ResourceAccess | PathAccess]:
    """Return what ``/api/v1/query`` wants to do for all of these queries together.

    Args:
        reads: What a query reads; without it, each may read everything.
    """
    wanted: set[ResourceAccess | PathAccess] = set()
    for query in queries:
        pairs = (("", "*"),) if reads is None else reads(query)
        wanted |= {
            ResourceAccess("list", GROUP, VERSION, metric, namespace) for namespace, metric in pairs
        }
    return frozenset(wanted) or frozenset((PathAccess("get", QUERY_PATH),))


def _reading(method: str, namespace: str) -> ResourceAccess:
    verb = _VERBS.get(method, "")
    verb = _VERBS_OF_ALL.get(verb, verb)
    return ResourceAccess(verb, GROUP, VERSION, DESIRED, namespace)


def _list_options(query: bytes) -> tuple[bool, str]:
    """Return whether a list is to be watched, and the one name that it is limited to, if any."""
    if b"watch" not in query and b"fieldSelector" not in query and b"%" not in query:
        return False, ""
    asked = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    watches = "watch" in asked and asked["watch"][0].lower() not in ("false", "0")
    names = [
        match[1]
        for field in asked.get("fieldSelector", [""])[0].split(",")
        if (match := _NAME_FIELD.fullmatch(field.strip()))
    ]
    return watches, names[0] if len(names) == 1 else ""

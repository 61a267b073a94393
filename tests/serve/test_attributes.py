"""A request is authorised as what it does, in Kubernetes' words."""

from __future__ import annotations

import pytest

from wva_adapter.serve import attributes
from wva_adapter.serve.attributes import attributes_of, attributes_of_query
from wva_adapter.serve.reviews import PathAccess, ResourceAccess

GROUP = "external.metrics.k8s.io"
V = f"/apis/{GROUP}/v1beta1"
N = f"{V}/namespaces/default"


def resource(verb: str, name: str = "m1", namespace: str = "default") -> ResourceAccess:
    return ResourceAccess(verb, GROUP, "v1beta1", name, namespace)


@pytest.mark.parametrize(
    ("method", "path", "query", "wanted"),
    [
        ("GET", f"{N}/m1", b"", resource("list")),
        ("GET", f"{N}/m1/", b"", resource("list")),
        ("HEAD", f"{N}/m1", b"", resource("list")),
        ("GET", f"{N}/m1", b"labelSelector=a%3Db", resource("list")),
        ("GET", f"{N}/m1", b"watch=true", resource("watch")),
        ("GET", f"{N}/m1", b"watch", resource("watch")),
        ("GET", f"{N}/m1", b"w%61tch=1", resource("watch")),
        ("GET", f"{N}/m1", b"watch=false&watch=true", resource("list")),
        ("GET", f"{N}/m1", b"watch=0", resource("list")),
        ("POST", f"{N}/m1", b"", resource("create")),
        ("PUT", f"{N}/m1", b"", resource("update")),
        ("PATCH", f"{N}/m1", b"", resource("patch")),
        ("DELETE", f"{N}/m1", b"", resource("deletecollection")),
        ("OPTIONS", f"{N}/m1", b"", resource("")),
        (
            "GET",
            f"{N}/m1",
            b"fieldSelector=metadata.name%3Dx",
            ResourceAccess("list", GROUP, "v1beta1", "m1", "default", "x"),
        ),
        (
            "GET",
            f"{N}/m1/x",
            b"",
            ResourceAccess("get", GROUP, "v1beta1", "m1", "default", "x"),
        ),
        (
            "DELETE",
            f"{N}/m1/x/status",
            b"",
            ResourceAccess("delete", GROUP, "v1beta1", "m1", "default", "x", "status"),
        ),
        ("GET", N, b"", ResourceAccess("get", GROUP, "v1beta1", "namespaces", "default", "default")),
        ("GET", f"{V}/m1", b"", resource("list", namespace="")),
        ("GET", f"/{N}/m1", b"", resource("list")),
        ("GET", V, b"", PathAccess("get", V)),
        ("GET", f"{V}/", b"", PathAccess("get", f"{V}/")),
        ("GET", "/apis", b"", PathAccess("get", "/apis")),
        ("POST", "/metrics", b"", PathAccess("post", "/metrics")),
        ("GET", "/healthz/../metrics", b"", PathAccess("get", "/healthz/../metrics")),
        ("GET", "/v1/desired/chat/llama", b"", resource("list", "wva_desired_replicas", "chat")),
        ("DELETE", "/explain/chat/llama", b"", resource("deletecollection", "wva_desired_replicas", "chat")),
        ("GET", "/explain", b"", resource("list", "wva_desired_replicas", "")),
        ("GET", "/v1/desired/chat", b"", PathAccess("get", "/v1/desired/chat")),
        ("GET", "//v1/desired/chat/llama", b"", PathAccess("get", "//v1/desired/chat/llama")),
    ],
)  # fmt: skip
def test_a_request_is_what_it_does(
    method: str, path: str, query: bytes, wanted: ResourceAccess | PathAccess
) -> None:
    assert attributes_of(method, path, query) == wanted


def test_long_requests_are_read_as_short_ones_are() -> None:
    query = b"labelSelector=" + b"a" * 5000 + b"&watch=1"
    assert attributes_of("GET", f"{N}/m1", query) == resource("watch")


def test_a_query_is_the_lists_of_all_that_it_reads() -> None:
    def reads(query: str) -> list[tuple[str, str]]:
        return [("chat", query)] if query else []

    assert attributes_of_query(["a", "b"], reads) == {
        resource("list", "a", "chat"),
        resource("list", "b", "chat"),
    }
    path = PathAccess("get", "/api/v1/query")
    assert attributes_of_query([""], reads) == {path}
    assert attributes_of_query([], reads) == {path}
    assert attributes_of_query(["a"], None) == {resource("list", "*", "")}


def test_what_strangers_send_is_not_remembered_at_length() -> None:
    before = attributes._remembered.cache_info().currsize
    attributes_of("GET", "/" + "a" * 2000, b"")
    attributes_of("GET", f"{N}/m1", b"x=" + b"a" * 2000)
    assert attributes._remembered.cache_info().currsize == before

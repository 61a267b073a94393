"""kube-apiserver and kubectl find the API as they find any other."""

from __future__ import annotations

import pytest

from tests.serve.fixture import GROUP, NF404, VERSION, a_client

pytestmark = pytest.mark.anyio

RESOURCES = (
    '{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"external.metrics.k8s.io/v1beta1",'
    '"resources":[{"name":"externalmetrics","singularName":"","namespaced":true,'
    '"kind":"ExternalMetricValueList","verbs":["get"]}]}\n'
)
API_GROUP = (
    '{"kind":"APIGroup","apiVersion":"v1","name":"external.metrics.k8s.io","versions":['
    '{"groupVersion":"external.metrics.k8s.io/v1beta1","version":"v1beta1"}],"preferredVersion":'
    '{"groupVersion":"external.metrics.k8s.io/v1beta1","version":"v1beta1"}}\n'
)
AGGREGATED = (
    '{"kind":"APIGroupDiscoveryList","apiVersion":"apidiscovery.k8s.io/v2","metadata":{},"items":'
    '[{"metadata":{"name":"external.metrics.k8s.io"},"versions":[{"version":"v1beta1","resources":'
    '[{"resource":"externalmetrics","responseKind":{"group":"","version":"","kind":'
    '"ExternalMetricValueList"},"scope":"Namespaced","singularResource":"","verbs":["get"]}],'
    '"freshness":"Current"}]}]}\n'
)
V2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
V2BETA1 = V2.replace("v=v2;", "v=v2beta1;")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (VERSION, RESOURCES),
        (f"{VERSION}/", RESOURCES),
        (GROUP, API_GROUP),
        (f"{GROUP}/", API_GROUP),
    ],
)
async def test_the_group_and_its_resources_are_constant(path: str, body: str) -> None:
    async with a_client() as client:
        answer = await client.get(path)
    assert (answer.status_code, answer.text) == (200, body)
    assert answer.headers["content-type"] == "application/json"


async def test_the_availability_probe_needs_no_accept_header() -> None:
    async with a_client() as client:
        del client.headers["accept"]
        answer = await client.get(VERSION)
    assert (answer.status_code, answer.text) == (200, RESOURCES)


@pytest.mark.parametrize("path", ["/apis", "/apis/"])
async def test_the_group_list_names_the_port_and_has_no_api_version(path: str) -> None:
    async with a_client() as client:
        answer = await client.get(path)
    assert answer.text == (
        '{"kind":"APIGroupList","groups":[{"name":"external.metrics.k8s.io","versions":['
        '{"groupVersion":"external.metrics.k8s.io/v1beta1","version":"v1beta1"}],'
        '"preferredVersion":{"groupVersion":"external.metrics.k8s.io/v1beta1",'
        '"version":"v1beta1"},"serverAddressByClientCIDRs":[{"clientCIDR":"0.0.0.0/0",'
        '"serverAddress":":6443"}]}]}\n'
    )


@pytest.mark.parametrize(
    "accept",
    [
        V2,
        f"{V2},{V2BETA1}",
        f"{V2},{V2BETA1},application/json",
        "application/json;as=APIGroupDiscoveryList;v=v2;g=apidiscovery.k8s.io",
        f"{V2};profile=nopeer",
    ],
)
async def test_newer_aggregators_get_the_resources_in_one_document(accept: str) -> None:
    async with a_client() as client:
        answer = await client.get("/apis", headers={"Accept": accept})
        again = await client.get(
            "/apis", headers={"Accept": accept, "If-None-Match": answer.headers["etag"]}
        )
    assert (answer.status_code, answer.text) == (200, AGGREGATED)
    assert answer.headers["content-type"] == V2
    assert answer.headers["vary"] == "Accept"
    assert (again.status_code, again.text) == (304, "")


async def test_older_aggregators_are_sent_to_the_plain_documents() -> None:
    async with a_client() as client:
        older = await client.get("/apis", headers={"Accept": V2BETA1})
        plain = await client.get("/apis", headers={"Accept": f"application/json,{V2}"})
        elsewhere = await client.get(VERSION, headers={"Accept": V2})
    # Only 406 makes an aggregator of 1.28 or older ask the old way.
    assert older.status_code == elsewhere.status_code == 406
    assert "only the following media types are accepted: application/json, " in older.text
    assert plain.json()["kind"] == "APIGroupList"


async def test_the_version_is_a_kubernetes_version() -> None:
    async with a_client() as client:
        answer = await client.get("/version")
        slash = await client.get("/version/")
    assert answer.text.startswith('{\n  "major": "1",\n  "minor": "')
    assert answer.text == slash.text
    assert answer.json()["goVersion"].startswith("n/a (CPython 3.")


@pytest.mark.parametrize("path", ["/openapi/v3/apis/other", f"{GROUP}/v1", "/apis/other"])
async def test_what_does_not_exist_below_the_apis_is_a_status(path: str) -> None:
    async with a_client() as client:
        answer = await client.get(path)
    assert (answer.status_code, answer.json()) == (404, NF404)

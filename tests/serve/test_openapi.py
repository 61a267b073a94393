"""kube-apiserver merges our shapes into its own, and kubectl explains them."""

from __future__ import annotations

import pytest

from tests.serve.fixture import VERSION, a_client

pytestmark = pytest.mark.anyio

VALUE = "io.k8s.metrics.pkg.apis.external_metrics.v1beta1.ExternalMetricValue"
V3 = "/openapi/v3/apis/external.metrics.k8s.io/v1beta1"


async def test_v2_defines_the_values_by_their_kind() -> None:
    async with a_client() as client:
        answer = await client.get("/openapi/v2", headers={"Accept": "application/json"})
        posted = await client.post("/openapi/v2")
    assert answer.text.startswith('{"swagger":"2.0","info":{')
    assert posted.text == answer.text
    document = answer.json()
    value = document["definitions"][VALUE]
    assert value["required"] == ["metricName", "metricLabels", "timestamp", "value"]
    assert value["x-kubernetes-group-version-kind"] == [
        {
            "group": "external.metrics.k8s.io",
            "kind": "ExternalMetricValue",
            "version": "v1beta1",
        }
    ]
    read = document["paths"][f"{VERSION}/namespaces/{{namespace}}/{{resource}}"]["get"]
    assert read["operationId"] == "listExternalMetricsV1beta1ExternalMetricValue"


def _references(node: object) -> set[str]:
    if isinstance(node, dict):
        found = {str(node["$ref"])} if "$ref" in node else set()
        return found.union(*(_references(value) for value in node.values()))
    if isinstance(node, list):
        return set().union(*(_references(value) for value in node))
    return set()


async def test_every_reference_leads_to_a_definition() -> None:
    async with a_client() as client:
        v2 = (await client.get("/openapi/v2")).json()
        v3 = (await client.get(V3)).json()
    assert _references(v2) == {f"#/definitions/{name}" for name in v2["definitions"]}
    assert _references(v3) == {
        f"#/components/schemas/{name}" for name in v3["components"]["schemas"]
    }


async def test_v3_is_found_from_its_root_and_may_be_kept_for_a_year() -> None:
    async with a_client() as client:
        root = await client.get("/openapi/v3", headers={"Accept": "text/html"})
        url = root.json()["paths"]["apis/external.metrics.k8s.io/v1beta1"]["serverRelativeURL"]
        right = await client.get(url)
        wrong = await client.get(f"{V3}?hash=OLD")
        unknown = await client.get("/openapi/v3/apis/other")
    assert url.startswith(f"{V3}?hash=")
    assert right.text.startswith('{"openapi":"3.0.0","info":{')
    assert "expires" in right.headers
    assert (wrong.status_code, wrong.headers["location"]) == (301, url)
    assert unknown.status_code == 404


@pytest.mark.parametrize("path", ["/openapi/v2", V3])
async def test_other_forms_than_json_are_an_empty_406(path: str) -> None:
    async with a_client() as client:
        answer = await client.get(path, headers={"Accept": "text/html"})
    assert (answer.status_code, answer.content) == (406, b"")
    assert "content-type" not in answer.headers


@pytest.mark.parametrize("path", ["/openapi/v2", "/openapi/v3", V3])
async def test_what_did_not_change_is_not_sent_again(path: str) -> None:
    async with a_client() as client:
        first = await client.get(path)
        again = await client.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")

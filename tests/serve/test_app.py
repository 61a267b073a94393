"""The routes beside the API group, and what every answer carries."""

from __future__ import annotations

import logging
import uuid

import pytest

from tests.serve.fixture import NAMESPACE, NF404, VERSION, a_client, a_status, an_app

pytestmark = pytest.mark.anyio


async def test_every_answer_has_an_audit_id_and_is_not_cached() -> None:
    async with a_client() as client:
        given = await client.get(VERSION, headers={"Audit-ID": "probe-audit-1"})
        made = await client.get("/nothing/here")
    assert given.headers["audit-id"] == "probe-audit-1"
    assert uuid.UUID(made.headers["audit-id"]).version == 4
    assert given.headers["cache-control"] == made.headers["cache-control"] == "no-cache, private"


async def test_a_fault_of_ours_is_a_status_and_its_trace_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with a_client() as client:
        with caplog.at_level(logging.ERROR):
            answer = await client.get(f"{NAMESPACE}/boom", headers={"Audit-ID": "id-7"})
    cause = "RuntimeError, see the log at audit id id-7"
    assert (answer.status_code, answer.json()) == (
        500,
        a_status(
            f"Internal error occurred: {cause}",
            "InternalError",
            500,
            {"causes": [{"message": cause}]},
        ),
    )
    assert answer.headers["audit-id"] == "id-7"
    assert "out of luck" in caplog.text


async def test_a_value_of_the_wrong_type_is_a_bad_request_and_not_422() -> None:
    app = an_app()

    async def typed(limit: int) -> int:
        return limit

    app.add_api_route("/v1/typed", typed)
    async with a_client(app) as client:
        answer = await client.get("/v1/typed?limit=abc")
    assert (answer.status_code, answer.json()["reason"]) == (400, "BadRequest")
    assert "limit" in answer.json()["message"]


async def test_keda_reads_the_plain_count() -> None:
    async with a_client() as client:
        answer = await client.get("/v1/desired/chat/llama")
        idle = await client.get("/v1/desired/chat/idle")
    assert answer.text == (
        '{"namespace":"chat","name":"llama","desiredReplicas":5,"active":true,'
        '"timestamp":"2025-01-02T03:04:05Z"}\n'
    )
    assert idle.json()["desiredReplicas"] == 0
    assert idle.json()["active"] is False


async def test_keda_gets_an_error_and_no_number_where_there_is_no_valid_plan() -> None:
    async with a_client() as client:
        stale = await client.get("/v1/desired/chat/stale")
        unknown = await client.get("/v1/desired/chat/nope")
    assert (stale.status_code, stale.json()) == (
        503,
        a_status("chat/stale: the plan is 61 s old, max_age is 60 s", "ServiceUnavailable", 503),
    )
    assert unknown.status_code == 404
    assert unknown.json()["message"] == "no variant chat/nope; namespace chat has: llama, stale"


@pytest.mark.parametrize(
    ("headers", "as_text"),
    [
        ({"Accept": "*/*", "User-Agent": "curl/8.0"}, True),
        ({"Accept": "text/plain"}, True),
        ({"Accept": "application/json", "User-Agent": "curl/8.0"}, False),
        ({"Accept": "*/*"}, False),
        ({"Accept": "application/json, text/plain;q=0.5"}, False),
    ],
)
async def test_people_get_the_explanation_in_lines(headers: dict[str, str], as_text: bool) -> None:
    async with a_client() as client:
        answer = await client.get("/explain/chat/llama", headers=headers)
        refused = await client.get("/explain/chat/nope", headers=headers)
        every = await client.get("/explain", headers=headers)
    assert refused.status_code == 404
    assert "no variant chat/nope" in refused.text
    if as_text:
        assert answer.text == "chat/llama  desired 5 → why\n"
        assert refused.text == "no variant chat/nope; namespace chat has: llama\n"
        assert every.text == "no variants\n"
    else:
        assert answer.json() == {"decision": {"name": "llama"}}
        assert every.json() == {"variants": []}


async def test_the_metrics_page_is_plain_prometheus_text() -> None:
    async with a_client() as client:
        answer = await client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.text == "wva_up 1\n"


async def test_the_root_and_unknown_paths_list_what_there_is() -> None:
    async with a_client() as client:
        root = await client.get("/")
        index = await client.get("/index.html")
        unknown = await client.get("/api/v1")
        docs = await client.get("/docs")
    assert root.status_code == index.status_code == 200
    assert unknown.status_code == docs.status_code == 404
    assert root.text == index.text == unknown.text == docs.text
    assert {"/apis", "/healthz", "/explain", "/metrics", "/openapi.json"} <= set(
        root.json()["paths"]
    )


async def test_unknown_paths_below_our_own_routes_are_a_status() -> None:
    async with a_client() as client:
        answer = await client.get("/v1/desired/chat")
    assert (answer.status_code, answer.json()) == (404, NF404)


async def test_openapi_describes_every_route_with_its_shape() -> None:
    async with a_client() as client:
        document = (await client.get("/openapi.json")).json()
    read = document["paths"][f"{VERSION}/namespaces/{{namespace}}/{{metric}}"]["get"]
    assert {"namespace", "metric", "labelSelector"} == {p["name"] for p in read["parameters"]}
    assert {"200", "400", "404", "503"} <= read["responses"].keys()
    shapes = document["components"]["schemas"]
    assert {"ExternalMetricValueList", "Status", "Desired"} <= shapes.keys()
    assert "desiredReplicas" in shapes["Desired"]["properties"]
    assert not any(path.endswith("/") for path in document["paths"])

"""The external metrics API answers as the HPA's client expects it."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tests.serve.fixture import MNA405, NAMESPACE, NF404, VERSION, a_client, a_status

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("selector", "apps"),
    [
        (None, ["a", "b", "c"]),
        ("", ["a", "b", "c"]),
        ("app=a", ["a"]),
        ("app!=a", ["b", "c"]),
        ("app in (a,b)", ["a", "b"]),
        ("env", ["a", "b"]),
        ("env!=prod", ["c"]),
        ("env=prod,app!=a", ["b"]),
        # Another provider's metric without a match is an empty list, as in Kubernetes.
        ("nokey=x", []),
    ],
)
async def test_the_selector_picks_the_items(selector: str | None, apps: list[str]) -> None:
    query = "" if selector is None else f"?labelSelector={quote(selector)}"
    async with a_client() as client:
        answer = await client.get(f"{NAMESPACE}/m1{query}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert [item["metricLabels"]["app"] for item in answer.json()["items"]] == apps


async def test_the_body_is_compact_and_ends_in_a_newline() -> None:
    async with a_client() as client:
        answer = await client.get(f"{NAMESPACE}/m1?labelSelector=app%3Da")
    assert answer.text == (
        '{"kind":"ExternalMetricValueList","apiVersion":"external.metrics.k8s.io/v1beta1",'
        '"metadata":{},"items":[{"metricName":"m1","metricLabels":{"app":"a","env":"prod"},'
        '"timestamp":"2025-01-02T03:04:05Z","window":60,"value":"3"}]}\n'
    )


async def test_the_aggregator_writes_a_space_as_plus() -> None:
    async with a_client() as client:
        answer = await client.get(f"{NAMESPACE}/m1?labelSelector=app+in+%28a%2Cb%29")
    assert len(answer.json()["items"]) == 2


async def test_the_first_of_a_repeated_parameter_counts() -> None:
    async with a_client() as client:
        answer = await client.get(f"{NAMESPACE}/m1?labelSelector=app%3Da&labelSelector=app%3Db")
    assert answer.json()["items"][0]["metricLabels"]["app"] == "a"


@pytest.mark.parametrize(
    ("metric", "status"),
    [
        (
            "notfound",
            a_status(
                "the server could not find the metric notfound for "
                "notfound.external.metrics.k8s.io",
                "NotFound",
                404,
            ),
        ),
        ("timeout", a_status("backend unavailable", "ServiceUnavailable", 503)),
    ],
)
async def test_no_value_is_a_status_that_says_why(metric: str, status: dict[str, object]) -> None:
    async with a_client() as client:
        answer = await client.get(f"{NAMESPACE}/{metric}")
    assert (answer.status_code, answer.json()) == (status["code"], status)
    assert list(answer.json()) == list(status)
    # A client would wait for it ten times, inside one of the HPA's few workers.
    assert "retry-after" not in answer.headers


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("labelSelector=a%3Db%3Dc", "found '=', expected: ',' or 'end of string'"),
        ("limit=abc", 'strconv.ParseInt: parsing "abc": invalid syntax'),
        ("limit=1_0", 'strconv.ParseInt: parsing "1_0": invalid syntax'),
        ("timeoutSeconds=", 'strconv.ParseInt: parsing "": invalid syntax'),
        (
            "timeout=abc",
            'invalid timeout specified in the request URL - time: invalid duration "abc"',
        ),
    ],
)
async def test_a_query_that_cannot_be_read_is_refused(query: str, message: str) -> None:
    async with a_client() as client:
        answer = await client.get(f"{NAMESPACE}/m1?{query}")
    assert (answer.status_code, answer.json()) == (400, a_status(message, "BadRequest", 400))


@pytest.mark.parametrize(
    "query",
    [
        "limit=1",
        "continue=x",
        "resourceVersion=7",
        "fieldSelector=metadata.name%3Dx",
        "unknown=1",
        "watch=false",
        "watch=0",
        "timeout=2s",
        "timeout=1m30.5s",
        "timeout=",
        "dryRun",
    ],
)
async def test_parameters_of_other_kinds_change_nothing(query: str) -> None:
    async with a_client() as client:
        answer = await client.get(f"{NAMESPACE}/m1?{query}")
    assert len(answer.json()["items"]) == 3


@pytest.mark.parametrize("query", ["watch", "watch=true", "watch=1", "watch=x"])
async def test_there_is_no_watch(query: str) -> None:
    async with a_client() as client:
        answer = await client.get(f"{NAMESPACE}/m1?{query}")
    assert answer.json() == a_status(
        'watch is not supported on resources of kind "*.external.metrics.k8s.io"',
        "MethodNotAllowed",
        405,
        {"group": "external.metrics.k8s.io", "kind": "*"},
    )


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", [f"{NAMESPACE}/m1", VERSION, "/apis"])
async def test_other_methods_are_refused_without_an_allow_header(method: str, path: str) -> None:
    async with a_client() as client:
        answer = await client.request(method, path)
        head = await client.head(path)
    assert (answer.status_code, answer.json()) == (405, MNA405)
    assert "allow" not in answer.headers
    assert head.status_code == 405


@pytest.mark.parametrize(
    "path",
    [
        f"{VERSION}/namespaces/default",
        f"{VERSION}/namespaces/default/",
        f"{VERSION}/namespaces//m1",
        f"{VERSION}/m1",
        f"{NAMESPACE}/m1/status",
        f"{NAMESPACE}/a%2Fb",
    ],
)
async def test_paths_that_name_no_metric_do_not_exist(path: str) -> None:
    async with a_client() as client:
        answer = await client.get(path)
    assert (answer.status_code, answer.json()) == (404, NF404)


@pytest.mark.parametrize(
    "path", [f"{NAMESPACE}/m1/", f"{NAMESPACE}/UPPER_case", f"{NAMESPACE}/a%20b"]
)
async def test_a_last_slash_and_odd_names_reach_the_metric(path: str) -> None:
    async with a_client() as client:
        answer = await client.get(path)
    assert answer.status_code == 200

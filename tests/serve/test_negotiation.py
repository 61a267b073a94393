"""Callers get the form that they accept, or are told which there are."""

from __future__ import annotations

import gzip
import json

import pytest
import yaml

from tests.serve.fixture import NAMESPACE, a_client
from wva_adapter.serve.negotiation import JSON, YAML, negotiate, parse_accept
from wva_adapter.serve.protobuf import PROTOBUF
from wva_adapter.serve.wire import Refusal

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/json", JSON),
        ("application/json, */*", JSON),
        ("application/yaml", YAML),
        ("application/json;q=0.1,application/yaml;q=0.9", YAML),
        # What the HPA controller sends.
        (f"{PROTOBUF}, */*", PROTOBUF),
        (PROTOBUF, PROTOBUF),
        (f"{PROTOBUF};q=0.5, application/json", JSON),
        ("application/json;sv=", JSON),
        ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", JSON),
        ("text/html,application/*,*/*;q=0.1", JSON),
        ("application/json;q=x", JSON),
    ],
)
def test_the_most_wanted_form_that_exists_is_taken(accept: str, media_type: str) -> None:
    assert negotiate(accept) == media_type


@pytest.mark.parametrize(
    ("accept", "message"),
    [
        ("text/html", "406: Not Acceptable\n\nAvailable representations: application/json, "),
        ("application/*", "406: Not Acceptable\n\nAvailable representations: application/json, "),
        (
            "application/cbor",
            "406: Not Acceptable\n\nAvailable representations: application/json, ",
        ),
        (
            "application/json;as=Table;v=v1;g=meta.k8s.io",
            "only the following media types are accepted: application/json, ",
        ),
    ],
)
def test_no_form_at_all_is_refused_with_those_that_exist(accept: str, message: str) -> None:
    refusal = negotiate(accept)
    assert isinstance(refusal, Refusal)
    assert refusal.code == 406
    assert refusal.message.startswith(message)


def test_parameters_are_read_in_any_order_and_case() -> None:
    assert parse_accept('application/json; V="v2" ;G=x;q=0.5')[0].parameters == {
        "v": "v2",
        "g": "x",
    }


async def test_a_refusal_that_nobody_can_read_is_written_for_people() -> None:
    async with a_client() as client:
        html = await client.get(f"{NAMESPACE}/m1", headers={"Accept": "text/html"})
        any_application = await client.get(f"{NAMESPACE}/m1", headers={"Accept": "application/*"})
    assert html.status_code == any_application.status_code == 406
    assert html.text.startswith('{\n  "kind": "Status"')
    assert any_application.text.startswith('{"kind":"Status"')
    assert html.json() == any_application.json()


async def test_yaml_says_the_same_as_json() -> None:
    async with a_client() as client:
        answer = await client.get(f"{NAMESPACE}/m1", headers={"Accept": "application/yaml"})
        as_json = await client.get(f"{NAMESPACE}/m1")
    assert answer.headers["content-type"] == "application/yaml"
    assert "\nitems:\n- metricLabels:\n    app: a\n" in answer.text
    assert yaml.safe_load(answer.text) == as_json.json()


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("?pretty=true", {}),
        ("?pretty=1", {}),
        ("", {"Accept": "application/json;pretty=1"}),
        ("", {"User-Agent": "curl/8.0"}),
        ("", {"User-Agent": "Mozilla/5.0 (X11)"}),
    ],
)
async def test_people_get_indented_json_without_a_last_newline(
    query: str, headers: dict[str, str]
) -> None:
    async with a_client() as client:
        answer = await client.get(f"{NAMESPACE}/m1{query}", headers=headers)
    assert answer.text.startswith('{\n  "kind": "ExternalMetricValueList",\n')
    assert answer.text.endswith("\n}")


async def test_who_says_not_pretty_gets_compact_json() -> None:
    async with a_client() as client:
        answer = await client.get(
            f"{NAMESPACE}/m1?pretty=false", headers={"User-Agent": "curl/8.0"}
        )
    assert answer.text.endswith("]}\n")


async def test_only_a_large_answer_is_compressed() -> None:
    async with a_client() as client:
        async with client.stream(
            "GET", f"{NAMESPACE}/big", headers={"Accept-Encoding": "gzip"}
        ) as big:
            raw = b"".join([part async for part in big.aiter_raw()])
        small = await client.get(f"{NAMESPACE}/m1", headers={"Accept-Encoding": "gzip"})
        plain = await client.get(f"{NAMESPACE}/big", headers={"Accept-Encoding": "identity"})
    assert big.headers["content-encoding"] == "gzip"
    assert big.headers["vary"] == "Accept-Encoding"
    assert json.loads(gzip.decompress(raw)) == plain.json()
    assert "content-encoding" not in small.headers
    assert len(plain.content) > 128 * 1024 > len(small.content)

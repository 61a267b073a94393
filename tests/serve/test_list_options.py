"""A list's parameters are read as every API server reads them."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.serve.fixture import NAMESPACE, a_client, a_status
from wva_adapter.serve.list_options import LONGEST_S, ListOptions, read_options
from wva_adapter.serve.wire import Refusal


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [
        ("", LONGEST_S),
        ("2s", 2.0),
        ("1m", LONGEST_S),
        ("1.5s", 1.5),
        (".5s", 0.5),
        ("1s500ms", 1.5),
        ("250000us", 0.25),
        ("0s", LONGEST_S),
        ("0", LONGEST_S),
        ("-3s", LONGEST_S),
        ("%2B3s", 3.0),
    ],
)
def test_a_caller_may_ask_for_less_time_and_not_for_more(timeout: str, seconds: float) -> None:
    options = read_options(f"timeout={timeout}")
    assert isinstance(options, ListOptions)
    assert options.timeout_s == pytest.approx(seconds)


@pytest.mark.parametrize("timeout", ["abc", "5", "1", "s", "1d", "1.2.3s", "9999999h", "-", "1_0s"])
def test_what_is_no_duration_is_refused(timeout: str) -> None:
    refusal = read_options(f"timeout={timeout}")
    assert isinstance(refusal, Refusal)
    assert refusal.code == 400
    assert refusal.message == (
        f'invalid timeout specified in the request URL - time: invalid duration "{timeout}"'
    )


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            "limit=99999999999999999999",
            'strconv.ParseInt: parsing "99999999999999999999": value out of range',
        ),
        (
            "limit=9223372036854775808",
            'strconv.ParseInt: parsing "9223372036854775808": value out of range',
        ),
        (
            "fieldSelector=foo%3Dx",
            '"foo" is not a known field selector: only "metadata.name", "metadata.namespace"',
        ),
        (
            "fieldSelector=metadata.name%3D%3D%3Dx",
            "invalid field selector: unescaped character in value: 61",
        ),
        (
            "fieldSelector=metadata.name%3Da%5Cb",
            r"invalid field selector: invalid escape sequence: \b",
        ),
        ("fieldSelector=x", "invalid selector: 'x'; can't understand 'x'"),
    ],
)
def test_numbers_and_fields_that_cannot_be_read_are_refused(query: str, message: str) -> None:
    refusal = read_options(query)
    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.message) == (400, message)


@pytest.mark.parametrize(
    "query",
    [
        "limit=9223372036854775807",
        "limit=-1",
        "fieldSelector=metadata.name%3Dx",
        "fieldSelector=metadata.name!%3Dx,metadata.namespace%3D%3Dy",
        "fieldSelector=metadata.name%3Da%5C,b",
        "fieldSelector=",
        "resourceVersionMatch=Exact&resourceVersion=7",
    ],
)
def test_what_can_be_read_changes_nothing(query: str) -> None:
    assert read_options(query) == ListOptions()


@pytest.mark.parametrize(
    ("query", "field", "reason", "why"),
    [
        (
            "resourceVersionMatch=Exact",
            "resourceVersionMatch",
            "FieldValueForbidden",
            "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
        ),
        (
            "resourceVersionMatch=Exact&resourceVersion=0",
            "resourceVersionMatch",
            "FieldValueForbidden",
            'Forbidden: resourceVersionMatch "exact" is forbidden for resourceVersion "0"',
        ),
        (
            "resourceVersionMatch=Newest&resourceVersion=1",
            "resourceVersionMatch",
            "FieldValueNotSupported",
            'Unsupported value: "Newest": supported values: "Exact", "NotOlderThan", ""',
        ),
        (
            "sendInitialEvents=true",
            "sendInitialEvents",
            "FieldValueForbidden",
            "Forbidden: sendInitialEvents is forbidden for list",
        ),
    ],
)
@pytest.mark.anyio
async def test_versions_that_contradict_are_named_field_by_field(
    query: str, field: str, reason: str, why: str
) -> None:
    async with a_client() as client:
        answer = await client.get(f"{NAMESPACE}/m1?{query}")
    assert answer.status_code == 422
    assert answer.json() == a_status(
        f'ListOptions.meta.k8s.io "" is invalid: {field}: {why}',
        "Invalid",
        422,
        {
            "group": "meta.k8s.io",
            "kind": "ListOptions",
            "causes": [{"reason": reason, "message": why, "field": field}],
        },
    )


@pytest.mark.anyio
async def test_an_answer_that_takes_too_long_is_given_up() -> None:
    began = time.monotonic()
    async with a_client() as client:
        answer = await client.get(f"{NAMESPACE}/slow?timeout=100ms")
    assert time.monotonic() - began < 2
    assert answer.status_code == 504
    assert answer.json() == a_status(
        "Timeout: request did not complete within the allotted timeout", "Timeout", 504, {}
    )


@pytest.mark.anyio
async def test_a_slow_answer_holds_up_nobody_else() -> None:
    async with a_client() as client:
        slow = asyncio.create_task(client.get(f"{NAMESPACE}/slow?timeout=300ms"))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        quick = await client.get(f"{NAMESPACE}/m1")
        assert time.monotonic() - began < 0.2
        assert quick.status_code == 200
        assert (await slow).status_code == 504

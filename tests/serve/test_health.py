"""Probes get short answers; people who ask for more get the checks."""

from __future__ import annotations

import pytest

from tests.serve.fixture import a_client, an_app

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("path", ["/healthz", "/livez", "/readyz"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_a_healthy_process_says_ok_to_any_method(path: str, method: str) -> None:
    async with a_client() as client:
        answer = await client.request(method, path)
        head = await client.head(path)
    assert (answer.status_code, answer.text) == (200, "ok")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert head.status_code == 200


async def test_verbose_lists_the_checks_in_order() -> None:
    async with a_client(an_app({"engine": lambda: None})) as client:
        answer = await client.get("/readyz?verbose")
    assert answer.text == "[+]ping ok\n[+]engine ok\nreadyz check passed\n"


async def test_a_failed_check_is_named_and_its_reason_kept_back() -> None:
    async with a_client(an_app({"engine": lambda: "no plan yet"})) as client:
        answer = await client.get("/readyz")
        one = await client.get("/readyz/engine")
    assert answer.status_code == 500
    assert answer.text == ("[+]ping ok\n[-]engine failed: reason withheld\nreadyz check failed\n")
    assert (one.status_code, one.text) == (500, "internal server error: no plan yet\n")


async def test_liveness_does_not_ask_the_engine() -> None:
    async with a_client(an_app({"engine": lambda: "no plan yet"})) as client:
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/healthz")).status_code == 200


async def test_an_excluded_check_cannot_fail_and_an_unknown_one_is_named() -> None:
    async with a_client(an_app({"engine": lambda: "no plan yet"})) as client:
        answer = await client.get("/readyz?verbose&exclude=engine&exclude=nope")
    assert answer.status_code == 200
    assert answer.text == (
        "[+]ping ok\n[+]engine excluded: ok\n"
        'warn: some health checks cannot be excluded: no matches for "nope"\n'
        "readyz check passed\n"
    )


async def test_one_check_has_its_own_path() -> None:
    async with a_client() as client:
        ping = await client.get("/livez/ping")
        unknown = await client.get("/livez/nope")
    assert (ping.status_code, ping.text) == (200, "ok")
    assert "x-content-type-options" not in ping.headers
    assert unknown.status_code == 404
    assert unknown.text.startswith('{\n  "paths": [')

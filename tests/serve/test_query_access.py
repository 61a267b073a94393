"""A query is let in for what it reads, however it is sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serve.cluster import CHAT_ONLY, Certificates
from tests.serve.door import Door, a_door
from wva_adapter.serve.promql import query_reads

pytestmark = pytest.mark.anyio

PATH = "/api/v1/query"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("pki"))


def reviewed(door: Door) -> set[tuple[str, str, str]]:
    """Return what the API server was asked about since the last call."""
    asked = [spec["resourceAttributes"] for spec in door.api.reviewed]
    door.api.reviewed.clear()
    return {(a["verb"], a.get("namespace", ""), a["resource"]) for a in asked}


async def test_a_query_needs_list_on_its_metric_in_its_namespace(
    tmp_path: Path, certificates: Certificates
) -> None:
    async with (
        a_door(tmp_path, certificates, query_reads=query_reads) as door,
        door.client(certificates.alice) as client,
    ):
        for query, needs in (
            ('x{variant_name="a",exported_namespace="chat"}', ("list", "chat", "x")),
            ("sum(y{namespace='chat'}) > 3", ("list", "chat", "y")),
            ("max(x)", ("list", "", "x")),
            ('{__name__=~"x|y",namespace="search"}', ("list", "search", "*")),
        ):
            await client.get(PATH, params={"query": query})
            assert reviewed(door) == {needs}


async def test_what_is_answered_is_what_was_let_in(
    tmp_path: Path, certificates: Certificates
) -> None:
    async with (
        a_door(tmp_path, certificates, query_reads=query_reads) as door,
        door.client(certificates.alice) as client,
    ):
        # Each of several needs its own right, so it does not matter which of them is answered.
        await client.post(f"{PATH}?query=a", data={"query": ["b", "c"]})
        assert reviewed(door) == {("list", "", "a"), ("list", "", "b"), ("list", "", "c")}
        # A semicolon parts no parameters, at the door as behind it.
        await client.get(f"{PATH}?query=d;query=e")
        assert [spec["nonResourceAttributes"]["path"] for spec in door.api.reviewed] == [PATH]


async def test_who_may_not_ask_is_told_as_prometheus_would_tell(
    tmp_path: Path, certificates: Certificates
) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    async with a_door(tmp_path, certificates, query_reads=query_reads) as door:
        async with door.client() as nobody:
            unknown = await nobody.get(PATH, params={"query": "x"})
            told = {"authorization": "Bearer bad"}
            wrong = await nobody.get(PATH, params={"query": "x"}, headers=told)
        async with door.client(certificates.proxy) as proxy:
            headers = {"x-remote-user": CHAT_ONLY}
            query = {"query": 'x{namespace="search"}'}
            denied = await proxy.get(PATH, params=query, headers=headers)
        async with door.client(certificates.alice) as client:
            large = await client.post(PATH, content=b"query=" + b"x" * 65536, headers=form)
            other = await client.post(PATH, json={"query": "x"})
    for answer, code, kind, message in (
        (unknown, 403, "forbidden", "anonymous"),
        (wrong, 401, "unauthorized", "Unauthorized"),
        (denied, 403, "forbidden", 'User "chat-only" cannot list resource "x"'),
        (large, 413, "bad_data", "larger than 64 KiB"),
        (other, 415, "bad_data", "want content-type application/x-www-form-urlencoded"),
    ):
        assert answer.status_code == code, answer.text
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["status"] == "error"
        assert answer.json()["errorType"] == kind
        assert message in answer.json()["error"]

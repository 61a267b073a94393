"""A request that comes again is answered as before, for as long as that is what it would get."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from tests.security.raw import as_user, request, statuses
from tests.serve.cluster import HPA, Certificates, trusting
from tests.serve.door import Door, a_door
from tests.serve.fixture import AT_S, NAMESPACE, Fixture, an_app, own_tls
from wva_adapter.serve.app import in_front
from wva_adapter.serve.hot import MetricReads
from wva_adapter.serve.repeat import Repeats
from wva_adapter.serve.request_metrics import RequestMetrics
from wva_adapter.serve.server import Server

pytestmark = pytest.mark.anyio

ONE = f"{NAMESPACE}/m1?labelSelector=app%3Da"
PROXIED = as_user(HPA, "system:serviceaccounts")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def now_s() -> list[float]:
    return [1000.0]


@pytest.fixture
async def door(
    tmp_path: Path, certificates: Certificates, now_s: list[float]
) -> AsyncIterator[Door]:
    async with a_door(tmp_path, certificates, clock=lambda: now_s[0]) as door:
        yield door


class Line:
    """One connection, over which bytes go as they are."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def say(self, *parts: bytes, answers: int = 1) -> list[bytes]:
        """Send the parts, each by itself, and return so many answers."""
        for part in parts:
            self._writer.write(part)
            await self._writer.drain()
            await asyncio.sleep(0.02)
        return [await self._answer() for _ in range(answers)]

    async def _answer(self) -> bytes:
        head = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 5)
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return head + await self._reader.readexactly(length)

    async def is_quiet(self) -> bool:
        """Whether nothing more comes."""
        try:
            return not await asyncio.wait_for(self._reader.read(1), 0.1)
        except TimeoutError:
            return True


@asynccontextmanager
async def line(door: Door, pair: tuple[Path, Path] | None) -> AsyncIterator[Line]:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", door.server.port, ssl=trusting(door.ca_file, pair)
    )
    try:
        yield Line(reader, writer)
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


def without_names(answer: bytes) -> bytes:
    return re.sub(rb"(date|audit-id): [^\r]+", rb"\1", answer)


def audit_id(answer: bytes) -> str:
    found = re.search(rb"audit-id: ([^\r]+)\r", answer)
    assert found is not None
    return found[1].decode()


async def test_the_same_words_get_the_same_bytes_under_their_own_name(
    door: Door, certificates: Certificates
) -> None:
    names = [str(uuid4()) for _ in range(3)]
    async with line(door, certificates.proxy) as there:
        answers = [
            (await there.say(request(ONE, f"Audit-Id: {name}", *PROXIED)))[0] for name in names
        ]
        nameless = [(await there.say(request(ONE, *PROXIED)))[0] for _ in range(3)]
    assert len(door.let_in) == 2  # the others were known
    assert len({without_names(answer) for answer in (*answers, *nameless)}) == 1
    assert [audit_id(answer) for answer in answers] == names
    assert len({audit_id(answer) for answer in nameless}) == 3
    assert b"HTTP/1.1 200 OK\r\ndate: " in answers[2]
    assert b'"value":"3"' in answers[2]


async def test_what_is_known_on_one_connection_is_not_on_another(
    door: Door, certificates: Certificates
) -> None:
    for pair, code in ((certificates.proxy, 200), (None, 403), (certificates.alice, 200)):
        async with line(door, pair) as there:
            for _ in range(2):
                (answer,) = await there.say(request(ONE, *PROXIED))
                assert statuses(answer) == [code]
    assert [user for user, _, _ in door.let_in] == [HPA, "alice"]


async def test_another_user_over_the_same_connection_is_another_request(
    door: Door, certificates: Certificates
) -> None:
    async with line(door, certificates.proxy) as there:
        for name, code in ((HPA, 200), ("bob", 403), (HPA, 200), ("bob", 403)):
            (answer,) = await there.say(request(ONE, *as_user(name)))
            assert statuses(answer) == [code]
    assert [user for user, _, _ in door.let_in] == [HPA]


async def test_a_new_plan_is_served_at_once(
    door: Door, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with line(door, certificates.proxy) as there:
        for _ in range(3):
            await there.say(request(ONE, *PROXIED))
        assert len(door.provider.asked) == 1
        monkeypatch.setattr(door.provider, "version", 1)
        await there.say(request(ONE, *PROXIED))
        assert len(door.provider.asked) == 2
        await there.say(request(ONE, *PROXIED))
        assert len(door.provider.asked) == 2


async def test_it_holds_no_longer_than_the_review(
    door: Door, certificates: Certificates, now_s: list[float]
) -> None:
    async with line(door, certificates.proxy) as there:
        for _ in range(3):
            await there.say(request(ONE, *PROXIED))
        assert len(door.api.reviewed) == 1
        now_s[0] += 10.1
        await there.say(request(ONE, *PROXIED))
        assert len(door.api.reviewed) == 2


async def test_it_ends_with_the_trust_that_it_was_let_in_by(
    door: Door, certificates: Certificates
) -> None:
    async with line(door, certificates.proxy) as there:
        for _ in range(2):
            await there.say(request(ONE, *PROXIED))
        changed = {**certificates.config_map, "requestheader-allowed-names": '["another"]'}
        door.api.put_config_map(**changed)
        for _ in range(100):
            (answer,) = await there.say(request(ONE, *PROXIED))
            if statuses(answer) == [401]:
                return
    raise AssertionError("still let in")


async def test_a_token_is_known_to_the_guard_alone(door: Door) -> None:
    async with line(door, None) as there:
        for _ in range(3):
            (answer,) = await there.say(request(ONE, "Authorization: Bearer good-tom"))
            assert statuses(answer) == [200]
    assert len(door.let_in) == 3


async def test_a_body_is_never_taken_for_a_request(door: Door, certificates: Certificates) -> None:
    hidden = request("/metrics", *as_user("admin"))
    for length in (f"Content-Length: {len(hidden)}", "Transfer-Encoding: chunked"):
        chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(hidden), hidden)
        body = chunked if "chunked" in length else hidden
        head = request(ONE, *PROXIED, length)
        async with line(door, certificates.proxy) as there:
            # What is answered before the body has come ends the connection.
            (answer,) = await there.say(head)
            assert b"HTTP/1.1 200" in answer
            assert await there.is_quiet()
        async with line(door, certificates.proxy) as there:
            await there.say(head + body)
            (_, *more) = await there.say(head + body, answers=1)
            assert more == []
            assert await there.is_quiet()
    assert all(path != "/metrics" for _, _, path in door.let_in)


async def test_two_in_one_packet_are_two_and_one_in_two_is_one(
    door: Door, certificates: Certificates
) -> None:
    one = request(ONE, *PROXIED)
    other = request(f"{NAMESPACE}/m1?labelSelector=app%3Db", *PROXIED)
    async with line(door, certificates.proxy) as there:
        for _ in range(3):
            first, second = await there.say(one + other, answers=2)
            assert (b'"value":"3"' in first, b'"value":"1500m"' in second) == (True, True)
            (halved,) = await there.say(one[:40], one[40:])
            assert b'"value":"3"' in halved
            assert await there.is_quiet()
    assert len(door.let_in) == 9


async def test_the_last_answer_of_a_connection_says_so(
    door: Door, certificates: Certificates
) -> None:
    async with line(door, certificates.proxy) as there:
        for _ in range(2):
            (answer,) = await there.say(request(ONE, *PROXIED))
            assert b"connection: close" not in answer
        door.server.enter_lame_duck()
        (answer,) = await there.say(request(ONE, *PROXIED))
        assert b"connection: close" in answer
    async with line(door, certificates.proxy) as there:
        (answer,) = await there.say(request(ONE, "Connection: close", *PROXIED))
        assert b"connection: close" in answer


def test_ever_new_questions_fill_no_memory() -> None:
    repeats = Repeats()
    asked = [request(f"{ONE}&n={number}") for number in range(1000)]
    for one in asked:
        assert repeats.find(one) is None
        repeats.offer(lambda _: b"known")
    assert sum(repeats.find(one) is not None for one in asked) <= 64
    assert repeats.find(asked[-1]) == b"known"
    assert repeats.find(request(f"{ONE}&n={'9' * 5000}")) is None


async def test_each_is_counted(tmp_path: Path) -> None:
    metrics = RequestMetrics()
    reads = MetricReads(Fixture(), clock=lambda: AT_S)
    tls = own_tls(tmp_path)
    port = in_front(an_app(), reads, metrics=metrics)
    server = Server(port, host="127.0.0.1", port=0, ssl_context=tls.context)
    await server.start()
    try:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", server.port, ssl=trusting(tmp_path / "ca.crt")
        )
        there = Line(reader, writer)
        for _ in range(5):
            await there.say(request(ONE))
        writer.close()
    finally:
        await server.stop(1)
    registry = CollectorRegistry()
    registry.register(metrics)
    page = generate_latest(registry).decode()
    (total,) = [line for line in page.splitlines() if line.startswith("apiserver_request_total{")]
    assert total.endswith(" 5.0")

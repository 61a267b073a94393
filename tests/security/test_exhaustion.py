"""What is too large is refused, what is too slow is not waited for, and nothing piles up."""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path

import pytest

from tests.security.raw import as_user, request, say, statuses
from tests.serve.cluster import HPA, trusting
from tests.serve.door import Door
from tests.serve.fixture import NAMESPACE
from wva_adapter.serve import guard, peer

pytestmark = pytest.mark.anyio

M1 = f"{NAMESPACE}/m1"
LARGE = 2 * peer.MOST_HEAD_BYTES


@pytest.mark.parametrize(
    "raw",
    [
        request(f"/{'a' * LARGE}"),
        request(f"{M1}?labelSelector={'a' * LARGE}"),
        request(M1, f"X: {'a' * LARGE}"),
        request(M1, f"{'X' * LARGE}: a"),
        request(M1, *(f"X-{i}: a" for i in range(LARGE // 8))),
        request(M1, *["X-Remote-Group: a"] * (LARGE // 16)),
        request(M1, f"Authorization: Bearer {'a' * LARGE}"),
        request(M1, f"Accept: {'a/b,' * (LARGE // 4)}"),
        request(M1, f"Audit-ID: {'a' * LARGE}"),
        b"G" * LARGE,
    ],
    ids=lambda raw: repr(raw[:60]),
)
async def test_an_oversized_head_is_refused(door: Door, raw: bytes) -> None:
    answer = await say(door, raw)
    assert all(status in (400, 401, 403, 431) for status in statuses(answer)), answer[:200]
    assert door.let_in == []


@pytest.mark.parametrize(
    "path",
    [
        f"{M1}?labelSelector={'a' * 60_000}",
        f"{M1}?labelSelector={'a%2C' * 15_000}",
        f"{M1}?labelSelector=a+in+({'b,' * 30_000}b)",
        f"{M1}?labelSelector={'!' * 60_000}",
        f"{M1}?labelSelector={'(' * 60_000}",
        f"{M1}?labelSelector={'a=b&labelSelector=' * 4000}",
        f"{M1}?{'&' * 60_000}",
        f"{M1}?{'x=1&' * 15_000}",
        f"{M1}?limit={'9' * 60_000}",
        f"{M1}?timeout={'9' * 60_000}s",
        f"{M1}?labelSelector={'%00' * 20_000}",
        f"{M1}?labelSelector={'%ff' * 20_000}",
        f"{M1}{'/x' * 30_000}",
        f"{NAMESPACE}/{'m' * 60_000}",
    ],
    ids=lambda path: path[-len(path) :][66:110],
)
async def test_an_oversized_question_of_somebody_known_is_answered_soon(
    door: Door, path: str
) -> None:
    began_s = asyncio.get_running_loop().time()
    answer = await say(door, request(path, *as_user(HPA)), door.certificates.proxy)
    (status,) = statuses(answer)
    assert status in (200, 400, 404)
    assert asyncio.get_running_loop().time() - began_s < 5


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize("header", ["Content-Length: 100000000", "Transfer-Encoding: chunked"])
async def test_a_body_that_nobody_wants_is_not_taken(door: Door, method: str, header: str) -> None:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", door.server.port, ssl=trusting(door.ca_file)
    )
    writer.write(request(M1, header, method=method))
    answer = await asyncio.wait_for(reader.read(65536), 2)
    assert statuses(answer) == [403]
    sent = 0
    try:
        while sent < 2**26:
            writer.write(b"10000\r\n" + b"a" * 65536 + b"\r\n")
            await asyncio.wait_for(writer.drain(), 1)
            sent += 65536
    except (ConnectionError, TimeoutError):
        pass
    assert sent < 20 * 2**20
    writer.close()
    assert door.let_in == []


async def test_an_oversized_or_slow_form_of_a_query_is_not_taken(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = "Content-Type: application/x-www-form-urlencoded"
    said = (*as_user(HPA), form)
    large = request(
        "/api/v1/query", *said, "Content-Length: 70000", method="POST", body=b"q" * 70_000
    )
    assert statuses(await say(door, large, door.certificates.proxy)) == [413]
    monkeypatch.setattr(guard, "_FORM_TIMEOUT_S", 0.2)
    slow = request("/api/v1/query", *said, "Content-Length: 10", method="POST", body=b"q")
    assert statuses(await say(door, slow, door.certificates.proxy)) == [408]
    assert door.let_in == []


@pytest.mark.parametrize(
    "said",
    [b"", b"G", b"GET /metrics HTTP/1.1\r\n", request(M1)[:-2], request(M1, "X: ")[:-4]],
    ids=repr,
)
async def test_a_slow_head_is_not_waited_for(
    door: Door, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(peer, "HEAD_TIMEOUT_S", 0.3)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", door.server.port, ssl=trusting(door.ca_file)
    )
    writer.write(said)
    ended = asyncio.create_task(reader.read())
    for _ in range(10):
        await asyncio.sleep(0.1)
        if ended.done():
            break
        if said:
            writer.write(b"a")
    assert ended.done()
    assert statuses(ended.result()) in ([], [400])
    writer.close()
    assert door.let_in == []


async def test_who_waits_takes_no_turn_from_others(door: Door) -> None:
    context = trusting(door.ca_file)
    waiting = [
        await asyncio.open_connection("127.0.0.1", door.server.port, ssl=context)
        for _ in range(200)
    ]
    for _, writer in waiting:
        writer.write(b"GET /metrics HTTP/1.1\r\nX: ")
    assert statuses(await say(door, request("/livez"))) == [200]
    for _, writer in waiting:
        writer.close()


async def test_two_users_whose_tokens_begin_alike_are_two(door: Door) -> None:
    common = "good-" + "a" * 2000
    for end in ("x", "y", ""):
        raw = request(M1, f"Authorization: Bearer {common}{end}")
        assert statuses(await say(door, raw)) == [200]
        assert door.let_in[-1][0] == f"{'a' * 2000}{end}"


async def test_a_bad_token_beside_a_good_one_stays_bad(door: Door) -> None:
    async def ask(token: str) -> int:
        (status,) = statuses(await say(door, request(M1, f"Authorization: Bearer {token}")))
        return status

    tokens = ["good-twin", "bad-twin", "good-twin2", "Good-twin", "good-twi"] * 6
    found = await asyncio.gather(*(ask(token) for token in tokens))
    assert found == [200 if token.startswith("good") else 401 for token in tokens]
    names = {user for user, _, _ in door.let_in}
    assert names == {"twin", "twin2", "twi"}


@pytest.mark.parametrize(
    "other",
    [
        ("X-Remote-User: bob",),
        ("X-Remote-User: bob", "X-Remote-Group: readers"),
        ("X-Remote-User: bob", "X-Remote-Extra-User: carol"),
        ("X-Remote-User: bob", "X-Remote-Uid: carol"),
    ],
    ids=str,
)
async def test_the_answer_to_one_user_is_no_answer_to_another(
    door: Door, other: tuple[str, ...]
) -> None:
    carol = request(M1, *as_user("carol", "readers"))
    bob = request(M1, *other)
    for _ in range(2):
        answer = await say(door, carol + bob + carol, door.certificates.proxy, responses=3)
        assert statuses(answer) == [200, 403, 200]
    assert {user for user, _, _ in door.let_in} == {"carol"}


async def test_a_user_of_one_connection_is_not_that_of_another(door: Door) -> None:
    raw = request(M1, *as_user("carol"))
    assert statuses(await say(door, raw, door.certificates.proxy)) == [200]
    assert statuses(await say(door, raw)) == [403]
    assert statuses(await say(door, raw, door.certificates.wrong_name)) == [401]
    answer = await say(door, raw, door.certificates.alice)
    assert statuses(answer) == [200]
    assert {user for user, _, _ in door.let_in} == {"carol", "alice"}


def rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def test_memory_stays_flat_under_ever_new_words(door: Door) -> None:
    number = 0

    async def attack(count: int) -> None:
        """Send requests that share nothing: paths, tokens, users, claims, selectors, agents."""
        nonlocal number
        for pair in (None, door.certificates.proxy):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", door.server.port, ssl=trusting(door.ca_file, pair)
            )
            for _ in range(count):
                number += 1
                word = f"{number:08}" * 500
                said: tuple[str, ...] = (f"Authorization: Bearer bad-{word}", f"Accept: a/{word}")
                path = f"/{word}"
                if pair is not None:
                    said = (*as_user(f"u{number}", word), f"X-Remote-Extra-{number}: {word}")
                    path = f"{M1}?x={word}"
                elif number % 2:
                    said = ()
                writer.write(request(path, *said, f"User-Agent: {word}"))
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                await reader.readexactly(length)
            writer.close()

    door.api.reviewed = _Forgetful()
    door.let_in = _Forgetful()
    door.provider.asked = _Forgetful()
    door.api.written = _Forgetful()
    try:
        await attack(1500)  # fills what is remembered up to its bounds
        gc.collect()
        before = rss_mib()
        await attack(1500)
        gc.collect()
        grown = rss_mib() - before
    finally:
        door.api.reviewed, door.let_in, door.provider.asked, door.api.written = [], [], [], []
    assert grown < 12, f"{grown:.1f} MiB more after 3000 further requests of 12 kB"


class _Forgetful(list):  # type: ignore[type-arg]
    """Takes everything and keeps nothing, so that only the port can grow."""

    def append(self, _: object) -> None:
        pass

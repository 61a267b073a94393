from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from wva_adapter.collect.assemble import ReplicaView
from wva_adapter.collect.scrape import Scraper
from wva_adapter.core.snapshot import Phase, ReplicaSample

pytestmark = pytest.mark.anyio

PAGE = (Path(__file__).parent.parent / "data" / "vllm-0.32.0-saturated.txt").read_bytes()
MIB = 2**20

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Fleet:
    """A loopback server: each replica's page is what its handler answers, by the path's name."""

    def __init__(self) -> None:
        self.handlers: dict[str, Handler] = {}
        self.requests: list[tuple[str, float]] = []
        self.headers: list[dict[str, str]] = []
        self.port = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        self.requests.append((name, asyncio.get_running_loop().time()))
        self.headers.append(dict(request.headers))
        return await self.handlers[name](request)

    def view(self, name: str, phase: Phase = Phase.READY) -> ReplicaView:
        url = f"http://127.0.0.1:{self.port}/{name}"
        return ReplicaView(uid=f"uid-{name}", name=name, url=url, phase=phase)

    def times_s(self, name: str) -> list[float]:
        return [at_s for asked, at_s in self.requests if asked == name]


@contextlib.asynccontextmanager
async def serve() -> AsyncIterator[Fleet]:
    fleet = Fleet()
    app = web.Application()
    app.router.add_get("/{name}", fleet.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fleet.port = runner.addresses[0][1]
    try:
        yield fleet
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def running(scraper: Scraper) -> AsyncIterator[Scraper]:
    task = asyncio.create_task(scraper.run())
    try:
        yield scraper
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool], within_s: float = 3.0) -> None:
    async with asyncio.timeout(within_s):
        # What is waited for happens in the scraper, which has no event for it.
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def page(body: bytes = PAGE, status: int = 200, **headers: str) -> Handler:
    async def answer(_: web.Request) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(body=body, status=status, headers=named)

    return answer


async def hang(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    raise AssertionError("the client waited for a minute")


async def first_problem(
    handler: Handler,
    *,
    phase: Phase = Phase.READY,
    timeout_s: float = 5,
    max_body_bytes: int = 4 * MIB,
) -> str | None:
    """Return what the scraper says of a replica that answers like this."""
    async with serve() as fleet:
        fleet.handlers["pod"] = handler
        scraper = Scraper(period_s=60, timeout_s=timeout_s, max_body_bytes=max_body_bytes)
        scraper.follow([fleet.view("pod", phase)])
        async with running(scraper):
            await until(lambda: "uid-pod" in scraper.scraped)
            assert scraper.scraped["uid-pod"].sample is None
            return scraper.scraped["uid-pod"].problem


async def test_a_new_replica_is_read_at_once() -> None:
    async with serve() as fleet:
        fleet.handlers["pod"] = page()
        scraper = Scraper(period_s=60, timeout_s=5, clock=lambda: 1234.5)
        async with running(scraper):
            scraper.follow([fleet.view("pod")])
            await until(lambda: "uid-pod" in scraper.scraped, within_s=1)
            scraped = scraper.scraped["uid-pod"]
    assert scraped.problem is None
    assert scraped.sample is not None
    assert scraped.sample.replica == "pod"
    assert scraped.sample.at_s == 1234.5
    assert scraped.sample.queued_requests == 32


async def test_a_replica_is_read_once_per_period_at_its_own_moment() -> None:
    async with serve() as fleet:
        names = [f"pod-{i}" for i in range(40)]
        fleet.handlers = dict.fromkeys(names, page())
        scraper = Scraper(period_s=0.5, timeout_s=5)
        scraper.follow([fleet.view(name) for name in names])
        async with running(scraper):
            await until(lambda: all(len(fleet.times_s(name)) >= 4 for name in names))
        gaps = [
            b - a
            for name in names
            for a, b in zip(*(fleet.times_s(name)[i:] for i in (1, 2)), strict=False)
        ]
        moments = [fleet.times_s(name)[2] % 0.5 for name in names]
    # The first scrape is at once, the second at the replica's moment, the others a period apart.
    assert all(gap == pytest.approx(0.5, abs=0.2) for gap in gaps)
    # 40 moments drawn over a period leave each fifth of it empty once in 7,500.
    assert {int(moment / 0.1) for moment in moments} == {0, 1, 2, 3, 4}


async def test_every_page_is_told_with_the_one_before() -> None:
    told: list[tuple[str, ReplicaSample | None, ReplicaSample]] = []
    async with serve() as fleet:
        fleet.handlers["pod"] = page()
        scraper = Scraper(
            period_s=0.1,
            timeout_s=5,
            on_page=lambda view, before, now: told.append((view.name, before, now)),
        )
        scraper.follow([fleet.view("pod")])
        async with running(scraper):
            await until(lambda: len(told) >= 2)
    assert told[0][:2] == ("pod", None)
    assert told[1][1] is told[0][2]


async def test_a_replica_that_is_gone_is_forgotten_at_once() -> None:
    async with serve() as fleet:
        release = asyncio.Event()

        async def late(_: web.Request) -> web.StreamResponse:
            await release.wait()
            return web.Response(body=PAGE)

        fleet.handlers = {"pod": page(), "late": late}
        scraper = Scraper(period_s=0.05, timeout_s=5)
        scraper.follow([fleet.view("pod"), fleet.view("late")])
        async with running(scraper):
            await until(lambda: "uid-pod" in scraper.scraped and bool(fleet.times_s("late")))
            scraper.follow([])
            assert scraper.scraped == {}
            # Neither its schedule nor a page on its way brings it back.
            asked = len(fleet.requests)
            release.set()
            await asyncio.sleep(0.2)
            assert scraper.scraped == {}
            assert len(fleet.requests) == asked


async def test_a_terminating_replica_is_not_asked_and_keeps_its_page() -> None:
    async with serve() as fleet:
        fleet.handlers["pod"] = page()
        scraper = Scraper(period_s=0.05, timeout_s=5)
        scraper.follow([fleet.view("pod")])
        async with running(scraper):
            await until(lambda: "uid-pod" in scraper.scraped)
            scraper.follow([fleet.view("pod", Phase.TERMINATING)])
            await asyncio.sleep(0.05)
            asked = len(fleet.requests)
            await asyncio.sleep(0.2)
            assert len(fleet.requests) == asked
            assert scraper.scraped["uid-pod"].sample is not None


async def test_a_replica_may_lose_its_address_at_any_moment() -> None:
    async with serve() as fleet:
        fleet.handlers = {"pod": page(), "other": page()}
        scraper = Scraper(period_s=0.002, timeout_s=5)
        lost = replace(fleet.view("pod"), url=None, problem="no port")
        async with running(scraper):
            for view in [fleet.view("pod"), lost] * 30:
                scraper.follow([view, fleet.view("other")])
                await asyncio.sleep(0.003)
            asked = len(fleet.times_s("pod"))
            await until(lambda: len(fleet.times_s("other")) > 30)
            assert len(fleet.times_s("pod")) <= asked + 1  # one request was on its way
            assert scraper.scraped["uid-pod"].sample is not None


async def test_the_last_good_page_stays_beside_the_problem() -> None:
    async with serve() as fleet:
        fleet.handlers["pod"] = page()
        now_s = [100.0]
        scraper = Scraper(period_s=0.05, timeout_s=5, clock=lambda: now_s[0])
        scraper.follow([fleet.view("pod")])
        async with running(scraper):
            await until(lambda: "uid-pod" in scraper.scraped)
            now_s[0] = 200.0
            fleet.handlers["pod"] = page(status=500)
            await until(lambda: scraper.scraped["uid-pod"].problem is not None)
            scraped = scraper.scraped["uid-pod"]
            assert scraped.problem == "HTTP 500"
            assert scraped.sample is not None
            assert scraped.sample.at_s < 200  # as old as it is
            fleet.handlers["pod"] = page()
            await until(lambda: scraper.scraped["uid-pod"].problem is None)


async def test_replicas_that_hang_do_not_starve_the_others() -> None:
    async with serve() as fleet:
        hanging = [f"hang-{i}" for i in range(40)]
        well = [f"pod-{i}" for i in range(20)]
        fleet.handlers = dict.fromkeys(hanging, hang) | dict.fromkeys(well, page())
        scraper = Scraper(period_s=1.0, timeout_s=5, max_in_flight=16)
        # The hanging ones come first, and more of them than there are places.
        scraper.follow([fleet.view(name) for name in hanging + well])
        async with running(scraper):
            # 40 + 16 places of at most 0.25 s each, 16 at once: the last one after 1 s at most.
            await until(lambda: all(f"uid-{name}" in scraper.scraped for name in well), within_s=2)
            seen = {name: len(fleet.times_s(name)) for name in well}
            await asyncio.sleep(1.2)
            assert all(len(fleet.times_s(name)) > seen[name] for name in well)
            assert not any(f"uid-{name}" in scraper.scraped for name in hanging)


async def test_a_replica_that_was_slow_is_asked_again_aside() -> None:
    async with serve() as fleet:
        fleet.handlers = {"slow": hang, "pod": page()}
        scraper = Scraper(period_s=0.3, timeout_s=0.5, max_in_flight=1)
        scraper.follow([fleet.view("slow"), fleet.view("pod")])
        async with running(scraper):
            await until(lambda: "uid-slow" in scraper.scraped)
            assert scraper.scraped["uid-slow"].problem == "timed out after 0.5 s"
            await until(lambda: len(fleet.times_s("slow")) >= 2)
            # The only place is free while the slow one hangs for the second time.
            fleet.requests.clear()
            await until(lambda: len(fleet.times_s("pod")) >= 1, within_s=0.45)
            fleet.handlers["slow"] = page()
            await until(lambda: scraper.scraped["uid-slow"].problem is None)


async def test_at_most_so_many_prompt_replicas_are_asked_at_once() -> None:
    open_now = most = 0

    async def count(_: web.Request) -> web.StreamResponse:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0.02)
        open_now -= 1
        return web.Response(body=PAGE)

    async with serve() as fleet:
        names = [f"pod-{i}" for i in range(30)]
        fleet.handlers = dict.fromkeys(names, count)
        scraper = Scraper(period_s=60, timeout_s=5, max_in_flight=4)
        scraper.follow([fleet.view(name) for name in names])
        async with running(scraper):
            await until(lambda: len(scraper.scraped) == 30)
    assert most == 4


async def test_requests_carry_nothing_that_a_replica_could_misuse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with serve() as fleet:
        fleet.handlers["pod"] = page(Set_Cookie="session=1; Path=/")
        scraper = Scraper(period_s=0.05, timeout_s=5)
        scraper.follow([fleet.view("pod")])
        async with running(scraper):
            await until(lambda: len(fleet.headers) >= 2)
    for headers in fleet.headers:
        assert headers["Accept-Encoding"] == "identity"
        assert headers["Accept"] == "text/plain"
        assert not {"Cookie", "Authorization"} & headers.keys()


async def test_a_redirect_is_not_followed() -> None:
    async with serve() as fleet:
        fleet.handlers = {"pod": page(status=302, Location="/elsewhere"), "elsewhere": page()}
        scraper = Scraper(period_s=60, timeout_s=5)
        scraper.follow([fleet.view("pod")])
        async with running(scraper):
            await until(lambda: "uid-pod" in scraper.scraped)
        assert scraper.scraped["uid-pod"].problem == "HTTP 302: redirects are not followed"
        assert not fleet.times_s("elsewhere")


async def test_an_answer_that_is_no_page_is_a_problem_in_words() -> None:
    assert await first_problem(hang, timeout_s=0.3) == "timed out after 0.3 s"
    assert await first_problem(page(status=404)) == "HTTP 404"
    assert await first_problem(page(status=503)) == "HTTP 503"
    assert await first_problem(page(b"")) == (
        "page of no known engine: it has no metrics; want vllm: (vllm)"
    )
    assert await first_problem(page(b"go_gc 1\nup 1\n")) == (
        "page of no known engine: it has go_, up; want vllm: (vllm)"
    )
    assert await first_problem(page(PAGE[:-5])) == (
        "page cut in the middle: its last line has no end"
    )
    assert await first_problem(page(Content_Encoding="gzip")) == (
        "page in gzip encoding, want it plain"
    )


async def test_a_page_that_drips_ends_at_the_timeout() -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for byte in PAGE[:200]:
                await response.write(bytes([byte]))
                await asyncio.sleep(0.02)
        return response

    assert await first_problem(drip, timeout_s=0.3) == "timed out after 0.3 s"


async def test_a_page_that_is_too_large_is_not_read() -> None:
    async def announced(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(51 * MIB // 10)})
        await response.prepare(request)
        await asyncio.sleep(60)
        return response

    sent = 0

    async def chunked(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                await response.write(b"x" * MIB)
                sent += MIB
        return response

    assert await first_problem(announced) == "page of 5.1 MiB, at most 4 MiB"
    assert await first_problem(chunked) == "page of more than 4 MiB, no more is read"
    # What lies in the buffers of both ends may be sent beyond the limit, not the whole.
    assert sent < 32 * MIB
    assert await first_problem(page(), max_body_bytes=len(PAGE) - 1) is not None


async def test_a_page_whose_end_never_came_is_no_page() -> None:
    async def breaks_off(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(PAGE))})
        await response.prepare(request)
        # Cut at a line's end, so that only the length tells.
        await response.write(PAGE[: PAGE.index(b"\n# HELP vllm:kv_cache") + 1])
        assert request.transport is not None
        request.transport.close()
        return response

    assert await first_problem(breaks_off) == ("page cut in the middle: the connection ended early")


async def test_no_server_is_a_problem_of_a_ready_replica_only() -> None:
    async with serve() as fleet:
        pass  # its port is free now
    scraper = Scraper(period_s=60, timeout_s=5)
    starting = ReplicaView("uid-new", "new", f"http://127.0.0.1:{fleet.port}/", Phase.STARTING)
    ready = ReplicaView("uid-old", "old", f"http://127.0.0.1:{fleet.port}/", Phase.READY)
    scraper.follow([starting, ready])
    async with running(scraper):
        await until(lambda: len(scraper.scraped) == 2)
    assert scraper.scraped["uid-old"].problem == "connection refused"
    assert scraper.scraped["uid-new"].problem is None
    assert await first_problem(page(status=503), phase=Phase.STARTING) is None
    assert await first_problem(page(status=404), phase=Phase.STARTING) == "HTTP 404"


async def test_something_that_does_not_speak_http_is_a_problem_in_words() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
        await writer.drain()
        writer.close()

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.close()

    async def problem_with(
        talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    ) -> str:
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        scraper = Scraper(period_s=60, timeout_s=5)
        scraper.follow([ReplicaView("uid", "pod", f"http://127.0.0.1:{port}/", Phase.READY)])
        async with server, running(scraper):
            await until(lambda: "uid" in scraper.scraped)
        return scraper.scraped["uid"].problem or ""

    assert (await problem_with(babble)).startswith("no HTTP answer: ")
    assert await problem_with(hang_up) == "connection closed without an answer"


async def test_a_replica_that_does_not_speak_tls_is_a_problem_in_words() -> None:
    async with serve() as fleet:
        scraper = Scraper(period_s=60, timeout_s=5)
        url = f"https://127.0.0.1:{fleet.port}/pod"
        scraper.follow([ReplicaView("uid", "pod", url, Phase.READY)])
        async with running(scraper):
            await until(lambda: "uid" in scraper.scraped)
        assert (scraper.scraped["uid"].problem or "").startswith("no TLS connection: ")


async def test_a_malformed_url_is_named_and_the_rest_goes_on() -> None:
    wrong = {
        "http://[::1/metrics": "is malformed: Invalid IPv6 URL",
        "http://10.0.0.1:port/metrics": "is malformed: Port could not be cast",
        "http://10.0.0.1:0/metrics": "is malformed: want http://HOST",
        "http:///metrics": "is malformed: want http://HOST",
        "file:///etc/passwd": "is malformed: want http://HOST",
        "10.0.0.1:8000/metrics": "is malformed: want http://HOST",
        "": "is malformed: want http://HOST",
        "http://user:word@127.0.0.1:9/metrics": "URL with credentials: none are sent to replicas",
    }
    async with serve() as fleet:
        fleet.handlers["pod"] = page()
        scraper = Scraper(period_s=60, timeout_s=5)
        scraper.follow(
            [
                *(ReplicaView(url, url, url, Phase.READY) for url in wrong),
                ReplicaView("none", "none", None, Phase.READY, problem="no port"),
                fleet.view("pod"),
            ]
        )
        async with running(scraper):
            await until(lambda: len(scraper.scraped) == len(wrong) + 1)
        assert scraper.scraped["uid-pod"].sample is not None
        for url, problem in wrong.items():
            assert problem in (scraper.scraped[url].problem or ""), url
        assert "none" not in scraper.scraped  # its view says what is wrong with it


async def test_an_error_of_the_listener_ends_the_run() -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("listener broke")

    async with serve() as fleet:
        fleet.handlers["pod"] = page()
        scraper = Scraper(period_s=60, timeout_s=5, on_page=fail)
        scraper.follow([fleet.view("pod")])
        with pytest.raises(ExceptionGroup) as raised:
            await scraper.run()
    assert raised.group_contains(RuntimeError, match="listener broke")


@pytest.mark.parametrize(
    ("pages", "mean"),
    [
        ([(0, 0)], None),
        ([(300, 3)], 100),  # the only page: all that finished since the engine started
        ([(300, 3), (700, 5)], 200),  # 2 more with 400 tokens
        ([(300, 3), (700, 5), (700, 5)], 200),  # nothing finished: what was known stays
        ([(300, 3), (700, 5), (40, 2)], 20),  # fewer than before: the engine was restarted
        ([(0, 0), (50, 1)], 50),
    ],
)
async def test_the_mean_prompt_is_that_of_what_finished_last(
    pages: list[tuple[int, int]], mean: float | None
) -> None:
    means: list[float | None] = []
    async with serve() as fleet:

        async def answer(_: web.Request) -> web.StreamResponse:
            tokens, requests = pages[min(len(fleet.requests), len(pages)) - 1]
            return web.Response(
                text=f"vllm:request_prompt_tokens_sum {tokens}\n"
                f"vllm:request_prompt_tokens_count {requests}\n"
            )

        fleet.handlers["pod"] = answer
        scraper = Scraper(
            period_s=0.02,
            timeout_s=5,
            on_page=lambda _, __, now: means.append(now.mean_input_tokens),
        )
        scraper.follow([fleet.view("pod")])
        async with running(scraper):
            await until(lambda: len(means) >= len(pages))
    assert means[len(pages) - 1] == mean

"""The latest page of every replica, asked for over HTTP again and again."""

from __future__ import annotations

import asyncio
import os
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from urllib.parse import urlsplit

import aiohttp

from wva_adapter.collect.assemble import ReplicaView, Scraped
from wva_adapter.collect.engines import inspect_page
from wva_adapter.core.snapshot import Phase, ReplicaSample
from wva_adapter.errors import CollectError

OnPage = Callable[[ReplicaView, ReplicaSample | None, ReplicaSample], None]
"""Told of every page: whose it is, what the page before said, and what this one says."""

_PROMPT_S = 0.25
"""A replica that takes longer to answer gives its place to the next one and is waited for aside."""

_ASIDE = 16
"""How many times ``max_in_flight`` replicas may be waited for aside."""

_MIB = 2**20


class _NotUp(CollectError):
    """Nothing answers there yet, as is normal while a replica starts."""


@dataclass(slots=True, eq=False)
class _Followed:
    """A replica in the set, as its source describes it now; ``slow`` since its latest scrape."""

    view: ReplicaView
    slow: bool = False


class Scraper:
    """Asks each replica for its page once per period, all of them spread over the period.

    Each replica has a moment in the period that follows from its uid. What one replica does
    delays no other: at most ``max_in_flight`` are asked at once, and one that does not answer
    promptly is waited for aside, where it hangs until its own timeout.

    Pods' annotations steer the requests, so they carry no credentials and no cookies, follow no
    redirect, and read no more than ``max_body_bytes``.

    All methods are for the event loop that ``run`` runs in.
    """

    def __init__(
        self,
        *,
        period_s: float,
        timeout_s: float,
        clock: Callable[[], float] = time.time,
        on_page: OnPage | None = None,
        max_in_flight: int = 16,
        max_body_bytes: int = 4 * _MIB,
    ) -> None:
        """Make a scraper that follows nothing yet.

        Args:
            period_s: Time between two scrapes of a replica.
            timeout_s: Longest time for one scrape, from the connection to the page's last byte.
            clock: Unix time in seconds.
            on_page: Called after a page was read; an error it raises ends ``run``.
            max_in_flight: Replicas that are asked at once, but for those that hang.
            max_body_bytes: Size of the largest page that is read.
        """
        self._period_s = period_s
        self._timeout_s = timeout_s
        self._clock = clock
        self._on_page = on_page
        self._max_body_bytes = max_body_bytes
        self._followed: dict[str, _Followed] = {}
        self._scraped: dict[str, Scraped] = {}
        self._changed = asyncio.Event()
        self._prompt = asyncio.Semaphore(max_in_flight)
        self._aside = asyncio.Semaphore(_ASIDE * max_in_flight)

    def follow(self, replicas: Iterable[ReplicaView]) -> None:
        """Scrape exactly these replicas from now on.

        New ones are asked at once, and those that are gone are forgotten at once, with their
        pages. Terminating ones keep their last page and are not asked any more.
        """
        views = {view.uid: view for view in replicas}
        for uid in self._followed.keys() - views.keys():
            del self._followed[uid]
            self._scraped.pop(uid, None)
        for uid, view in views.items():
            if uid in self._followed:
                self._followed[uid].view = view
            else:
                self._followed[uid] = _Followed(view)
        self._changed.set()

    @property
    def scraped(self) -> Mapping[str, Scraped]:
        """What is known of the replicas' pages, by uid; one that was not asked yet is missing."""
        return MappingProxyType(self._scraped)

    async def run(self) -> None:
        """Scrape until cancelled; the connections are closed then."""
        tasks: dict[_Followed, asyncio.Task[None]] = {}
        async with self._open_session() as session, asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                asked = [f for f in self._followed.values() if _wants_scrape(f.view)]
                for gone in tasks.keys() - set(asked):
                    tasks.pop(gone).cancel()
                for new in (f for f in asked if f not in tasks):
                    tasks[new] = group.create_task(self._repeat(session, new))
                await self._changed.wait()

    def _open_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            # A connection outlives the pause between two scrapes. How many there are is limited
            # by the places above, since a hanging one must not keep others from connecting.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2 * self._period_s),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            headers={"Accept": "text/plain", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    async def _repeat(self, session: aiohttp.ClientSession, followed: _Followed) -> None:
        loop = asyncio.get_running_loop()
        moment_s = zlib.crc32(followed.view.uid.encode()) / 2**32 * self._period_s
        while True:
            started_s = loop.time()
            await self._take_turn(session, followed)
            now_s = loop.time()
            # The first scrape comes at any time: the second one not right on top of it.
            earliest_s = max(now_s, started_s + self._period_s / 2)
            await asyncio.sleep(earliest_s - now_s + (moment_s - earliest_s) % self._period_s)

    async def _take_turn(self, session: aiohttp.ClientSession, followed: _Followed) -> None:
        """Scrape once, in a place among the prompt replicas, or aside after a slow scrape."""
        async with asyncio.TaskGroup() as group:
            async with self._aside if followed.slow else self._prompt:
                scrape = group.create_task(self._scrape(session, followed))
                _, waiting = await asyncio.wait({scrape}, timeout=_PROMPT_S)
                if followed.slow:
                    await asyncio.wait({scrape})
            followed.slow = bool(waiting)

    async def _scrape(self, session: aiohttp.ClientSession, followed: _Followed) -> None:
        view, url = followed.view, followed.view.url
        if url is None or not _wants_scrape(view):
            return  # its view changed since its turn began
        try:
            body = await self._fetch(session, url)
            page = inspect_page(body, None, at_s=self._clock(), source=url).total
        except CollectError as error:
            if self._followed.get(view.uid) is followed:
                starting = view.phase is Phase.STARTING and isinstance(error, _NotUp)
                before = self._scraped.get(view.uid, Scraped())
                problem = None if starting else error.problem
                self._scraped[view.uid] = replace(before, problem=problem)
            return
        if self._followed.get(view.uid) is followed:
            before = self._scraped.get(view.uid, Scraped())
            mean = _mean_input_tokens(before.sample, page)
            sample = replace(page, replica=view.name, mean_input_tokens=mean)
            self._scraped[view.uid] = Scraped(sample)
            if self._on_page is not None:
                self._on_page(view, before.sample, sample)

    async def _fetch(self, session: aiohttp.ClientSession, url: str) -> bytes:
        """Return the page as it came.

        Raises:
            CollectError: It did not come, or what came is not a whole page of permitted size.
        """
        _refuse_url(url)
        try:
            async with session.get(url, allow_redirects=False) as response:
                return await self._read(url, response)
        except TimeoutError:
            raise _NotUp(url, f"timed out after {self._timeout_s:g} s") from None
        except aiohttp.ClientSSLError as error:
            raise CollectError(url, f"no TLS connection: {error}") from None
        except aiohttp.ClientConnectorError as error:
            raise _NotUp(url, _explain(error.os_error)) from None
        except aiohttp.ServerDisconnectedError:
            raise _NotUp(url, "connection closed without an answer") from None
        except aiohttp.ClientPayloadError:
            raise CollectError(url, "page cut in the middle: the connection ended early") from None
        except aiohttp.ClientResponseError as error:
            raise CollectError(url, f"no HTTP answer: {error.message}") from None
        except OSError as error:
            raise _NotUp(url, _explain(error)) from None
        except aiohttp.ClientError as error:
            raise CollectError(url, str(error)) from None

    async def _read(self, url: str, response: aiohttp.ClientResponse) -> bytes:
        if response.status == 503:
            raise _NotUp(url, "HTTP 503")
        if 300 <= response.status < 400:
            raise CollectError(url, f"HTTP {response.status}: redirects are not followed")
        if response.status != 200:
            raise CollectError(url, f"HTTP {response.status}")
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding.lower() != "identity":
            raise CollectError(url, f"page in {encoding} encoding, want it plain")
        most = f"{self._max_body_bytes / _MIB:.3g} MiB"
        size = response.content_length or 0
        if size > self._max_body_bytes:
            raise CollectError(url, f"page of {size / _MIB:.1f} MiB, at most {most}")
        body = bytearray()
        async for part in response.content.iter_any():
            body += part
            if len(body) > self._max_body_bytes:
                raise CollectError(url, f"page of more than {most}, no more is read")
        return bytes(body)


def _wants_scrape(view: ReplicaView) -> bool:
    return view.url is not None and view.phase is not Phase.TERMINATING


def _refuse_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise CollectError(url, f"URL {url!r} is malformed: {error}") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise CollectError(url, f"URL {url!r} is malformed: want http://HOST[:PORT]/PATH or https")
    if parts.username is not None or parts.password is not None:
        raise CollectError(url, "URL with credentials: none are sent to replicas")


def _explain(error: OSError) -> str:
    """Return what the operating system found, without the address that asyncio adds to it."""
    if error.errno and error.errno > 0:
        return os.strerror(error.errno).lower()
    return (error.strerror or str(error)).lower()  # a name that was not found has an own numbering


def _mean_input_tokens(before: ReplicaSample | None, now: ReplicaSample) -> float | None:
    """Return the prompt tokens per request that finished since the page before.

    Without such a request it is the mean that was known before; on the first page, and after the
    engine was restarted, that of all requests since it started.
    """
    tokens, requests = now.input_tokens_sum, now.input_tokens_count
    if tokens is None or requests is None:
        return None
    if before is not None and before.input_tokens_sum is not None and before.input_tokens_count:
        new_tokens = tokens - before.input_tokens_sum
        new_requests = requests - before.input_tokens_count
        if new_requests > 0 and new_tokens >= 0:
            return new_tokens / new_requests
        if new_requests == 0 and new_tokens == 0:
            return before.mean_input_tokens
    return tokens / requests if requests else None

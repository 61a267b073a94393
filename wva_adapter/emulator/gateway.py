"""Which replica gets a request: a proxy in front of engines that picks the least loaded one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from wva_adapter.emulator.openai import error, rough_tokens
from wva_adapter.errors import ConfigError

# Hop-by-hop headers and those that the client and the server write themselves.
_NOT_PASSED_ON = frozenset(
    {"connection", "content-length", "date", "host", "keep-alive", "server", "transfer-encoding"}
)

# Less than engines keep an idle connection, so that no request meets one just being closed.
_KEEP_ALIVE_S = 15.0

_PAUSE_S = 0.1
_MOST_BODY_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Backend:
    """One replica to send requests to.

    Attributes:
        url: Where it listens, without a path.
        capacity: What it can hold, in tokens or in any unit that all backends share; positive.
    """

    url: str
    capacity: float = 1.0


class Gateway:
    """One address for many engines.

    A request goes to the backend with the fewest tokens in flight for its capacity, prompt and
    longest answer together; equal ones take turns. One that cannot be reached, or closes the
    connection before it has answered anything, is passed over for another. A backend that is no
    longer set gets nothing new, and what it is answering goes on; if it refuses what was just on
    its way, that goes to another too.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 for any free one.
        patience_s: Seconds of the event loop that a request waits for a backend before it gets 503.
        metrics_port: Port of its metrics page, 0 for any free one; ``None`` shows none.
        clock: Unix time.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        patience_s: float = 30.0,
        metrics_port: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._metrics_port = metrics_port
        self._metrics_runner: web.AppRunner | None = None
        self._started_at_s = clock()
        self._held: dict[str, list[int]] = {}
        self._let_through: dict[str, int] = {}
        self._port = port
        self._patience_s = patience_s
        self._backends: tuple[Backend, ...] = ()
        self._changed = asyncio.Event()
        self._tokens: dict[str, int] = {}
        self._turn: dict[str, int] = {}
        self._turns = 0
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None

    @property
    def url(self) -> str:
        """Where it listens; with port 0 known after ``start``."""
        return f"http://{self._host}:{self._port}"

    @property
    def metrics_url(self) -> str:
        """Where its metrics page is; with port 0 known after ``start``."""
        return f"http://{self._host}:{self._metrics_port}/metrics"

    def set_backends(self, backends: Sequence[Backend]) -> None:
        """Send requests to these from now on; there may be none for a while."""
        self._backends = tuple(backends)
        self._changed.set()

    def tokens_in_flight(self, url: str) -> int:
        """Return the tokens of the requests that this backend is answering."""
        return self._tokens.get(url, 0)

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: The address cannot be listened on.
        """
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
            auto_decompress=False,
        )
        app = web.Application(client_max_size=_MOST_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        # A client that leaves ends its request at the engine too.
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port, backlog=2048)
        try:
            await site.start()
        except OSError as found:
            await self.stop()
            raise ConfigError(f"{self.url}: cannot be listened on: {found.strerror}") from None
        self._port = self._runner.addresses[0][1]
        if self._metrics_port is None:
            return
        page = web.Application()
        page.router.add_get("/metrics", self._page)
        self._metrics_runner = web.AppRunner(page, shutdown_timeout=1)
        await self._metrics_runner.setup()
        await web.TCPSite(self._metrics_runner, self._host, self._metrics_port).start()
        self._metrics_port = self._metrics_runner.addresses[0][1]

    async def stop(self) -> None:
        """Close the port and what is in flight; may be called again."""
        for runner in (self._metrics_runner, self._runner):
            if runner is not None:
                await runner.cleanup()
        if self._session is not None:
            await self._session.close()

    async def _page(self, _: web.Request) -> web.Response:
        """Answer as an endpoint picker does: series of models that hold nothing are not there."""
        lines = [f"process_start_time_seconds {self._started_at_s}"]
        lines.append('llm_d_epp_flow_control_pool_saturation{inference_pool="pool"} 0')
        for model, sizes in self._held.items():
            labels = f'model_name="{model}",target_model_name="{model}",priority="0"'
            lines.append(f"llm_d_epp_flow_control_queue_size{{{labels}}} {len(sizes)}")
            lines.append(f"llm_d_epp_flow_control_queue_bytes{{{labels}}} {sum(sizes)}")
        for model, count in self._let_through.items():
            labels = f'model_name="{model}",target_model_name="{model}"'
            lines.append(f"llm_d_epp_request_total{{{labels}}} {count}")
        return web.Response(text="\n".join(lines) + "\n")

    async def _held_back(self, model: str, size: int, deadline_s: float) -> bool:
        """Hold a request until there may be a backend; return false if it is too late for that."""
        self._held.setdefault(model, []).append(size)
        try:
            return await self._wait(deadline_s)
        finally:
            self._held[model].remove(size)
            if not self._held[model]:
                del self._held[model]

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        tokens = _tokens_of(body)
        deadline_s = asyncio.get_running_loop().time() + self._patience_s
        passed_over: set[str] = set()
        while True:
            backend = self._least_loaded(passed_over)
            if backend is None:
                if not await self._held_back(_model_of(body), len(body), deadline_s):
                    message = f"no backend answered in {self._patience_s:g} s"
                    return web.json_response(error(message, "ServiceUnavailable", 503), status=503)
                passed_over.clear()
                continue
            self._tokens[backend.url] = self._tokens.get(backend.url, 0) + tokens
            try:
                answer = await self._ask(backend, request, body)
            finally:
                self._tokens[backend.url] -= tokens
                if not self._tokens[backend.url]:
                    del self._tokens[backend.url]
            if answer is not None:
                model = _model_of(body)
                self._let_through[model] = self._let_through.get(model, 0) + 1
                return answer
            passed_over.add(backend.url)

    def _least_loaded(self, passed_over: set[str]) -> Backend | None:
        left = [backend for backend in self._backends if backend.url not in passed_over]
        if not left:
            return None
        backend = min(
            left,
            key=lambda b: (
                self._tokens.get(b.url, 0) / b.capacity,
                self._turn.get(b.url, 0),
                b.url,
            ),
        )
        self._turns += 1
        self._turn[backend.url] = self._turns
        return backend

    async def _wait(self, deadline_s: float) -> bool:
        """Wait until there may be a backend; return false if it is too late for that."""
        left_s = deadline_s - asyncio.get_running_loop().time()
        if left_s <= 0:
            return False
        self._changed.clear()
        # Without a change, those that refused may have come up in the meantime.
        pause_s = min(left_s, _PAUSE_S if self._backends else left_s)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), pause_s)
        return True

    async def _ask(
        self, backend: Backend, request: web.Request, body: bytes
    ) -> web.StreamResponse | None:
        """Return the backend's answer, passed on; ``None`` if it gave none."""
        assert self._session is not None
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _NOT_PASSED_ON}
        try:
            answer = await self._session.request(
                request.method, backend.url + request.raw_path, data=body, headers=headers
            )
        except (aiohttp.ClientConnectionError, TimeoutError):
            return None
        async with answer:
            if answer.status >= 500 and backend.url not in {b.url for b in self._backends}:
                # It was taken out while this request was on its way, and has begun to end.
                return None
            passed = web.StreamResponse(
                status=answer.status,
                headers={
                    k: v for k, v in answer.headers.items() if k.lower() not in _NOT_PASSED_ON
                },
            )
            try:
                await passed.prepare(request)
                async for part in answer.content.iter_any():
                    await passed.write(part)
                await passed.write_eof()
            except aiohttp.ClientError:
                # Half an answer must not look like a whole one: the client's connection ends too.
                if request.transport is not None:
                    request.transport.abort()
            return passed


def _model_of(body: bytes) -> str:
    """Return the name of the model that a request asks for; empty where it names none."""
    try:
        asked = json.loads(body)
    except ValueError:
        return ""
    name = asked.get("model", "") if isinstance(asked, dict) else ""
    # What would break the page's line is no model's name.
    return name if isinstance(name, str) and not set(name) & set('"\\\n') else ""


def _tokens_of(body: bytes) -> int:
    """Return the tokens that a request asks for, prompt and longest answer together; at least 1."""
    try:
        return max(1, rough_tokens(json.loads(body)))
    except ValueError:
        return 1

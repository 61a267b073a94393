"""What a vLLM server does on its port: OpenAI's API, health, metrics, and an end in good order.

``python -m wva_adapter.emulator.engine`` runs one by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import signal
import time
from dataclasses import replace
from typing import Literal

import click
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0
from pydantic import BaseModel

from wva_adapter.documents import parse_duration_s
from wva_adapter.emulator.answer import StreamedAnswer
from wva_adapter.emulator.driver import Call, Driver
from wva_adapter.emulator.http_page import HttpAnswer
from wva_adapter.emulator.openai import (
    USUAL_ANSWER_TOKENS,
    ChatBody,
    CompletionBody,
    Writer,
    error,
)
from wva_adapter.emulator.page import BLOCK_TOKENS, MetricsPage
from wva_adapter.emulator.server import GuestServer, listen
from wva_adapter.errors import ConfigError
from wva_adapter.sim.files import hardware as named_hardware
from wva_adapter.sim.hardware import Hardware
from wva_adapter.sim.replica import Replica
from wva_adapter.sim.request import Request as ReplicaRequest

VLLM_VERSION = "0.32.0"
"""The version whose page and behaviour are emulated."""

Fault = Literal["none", "garbage", "hang"]
"""What is wrong with the metrics page: nothing, no number can be read, or it never comes."""

_UNCOUNTED_ROUTES = frozenset({"/metrics", "/health", "/version", "/emulator/fault"})


class Engine:
    """One emulated server.

    Before ``start`` its port refuses connections, as a real one does while it loads.

    Args:
        hardware: What it runs on.
        model: Name under which the model is served.
        host: Address to listen on.
        port: Port to listen on; 0 for any free one.
        speed: Model seconds per second of the event loop. Pages show model seconds.
        max_num_seqs: Most requests in the batch.
        max_model_len: Longest request in tokens; less where the KV cache holds less.
        kv_cache_tokens: KV-cache size; the hardware's own where it is ``None``.
        chunks_per_s: Most stream chunks per second of the event loop; what is due and not sent
            comes with the next chunk. The first and the last of a stream do not wait.

    Attributes:
        fault: What is wrong with the metrics page; the model is served all the same.
    """

    def __init__(
        self,
        *,
        hardware: Hardware,
        model: str,
        host: str,
        port: int,
        speed: float = 1.0,
        max_num_seqs: int = 256,
        max_model_len: int = 16384,
        kv_cache_tokens: int | None = None,
        chunks_per_s: float = 300.0,
    ) -> None:
        self.fault: Fault = "none"
        self.model = model
        self._hardware = hardware
        self._host = host
        self._port = port
        self._speed = speed
        self._max_num_seqs = max_num_seqs
        self._kv_cache_tokens = (
            hardware.kv_cache_tokens if kv_cache_tokens is None else kv_cache_tokens
        )
        self._asked_max_model_len = max_model_len
        self._chunks_per_s = chunks_per_s
        self._numbers = itertools.count(1)
        self._draining = False
        self._stopping = False
        # Answers that are being given, from submission to the last byte.
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._server: GuestServer | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where it listens; with port 0 known after ``start``."""
        return f"http://{self._host}:{self._port}"

    @property
    def replica(self) -> Replica:
        """The replica inside, as it is now; there is one after ``start``."""
        return self._driver.replica

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: The address cannot be listened on.
        """
        listening = listen(self._host, self._port)
        self._port = listening.getsockname()[1]
        # Blocks are whole, and one is never given to a request.
        usable_tokens = (self._kv_cache_tokens // BLOCK_TOKENS - 1) * BLOCK_TOKENS
        replica = Replica(
            self._hardware, max_num_seqs=self._max_num_seqs, kv_cache_tokens=usable_tokens
        )
        self._max_model_len = min(self._asked_max_model_len, replica.longest_tokens)
        self._page = MetricsPage(
            replica,
            model=self.model,
            max_model_len=self._max_model_len,
            created_s=time.time(),
        )
        replica.observer = self._page
        self._driver = Driver(
            replica, self._page, speed=self._speed, chunks_per_s=self._chunks_per_s
        )
        self._server = GuestServer(self._routes(), self._count)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listening]))
        await self._server.ready.wait()

    async def drain(self, timeout_s: float) -> bool:
        """End as with ``--shutdown-timeout``: finish what is here, refuse what comes, then close.

        Args:
            timeout_s: Seconds of the event loop after which what is left is cut.

        Returns:
            Whether everything was finished.
        """
        self._draining = True
        finished = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            finished = False
        await self.stop()
        return finished

    async def stop(self) -> None:
        """Close the port and cut what is in flight; may be called again."""
        if self._server is None or self._serving is None:
            return
        self._draining = self._stopping = True
        if self._open:
            self._server.cut_connections()
        self._driver.close()
        self._server.should_exit = True
        await self._serving
        self._server = None

    def _routes(self) -> FastAPI:
        app = FastAPI(title="Emulated vLLM", version=VLLM_VERSION)

        @app.exception_handler(RequestValidationError)
        async def refuse(_: Request, found: RequestValidationError) -> Response:
            return _refusal(str(found), "Bad Request", 400)

        @app.post("/v1/completions")
        async def complete(body: CompletionBody) -> Response:
            return self._answer(body)

        @app.post("/v1/chat/completions")
        async def chat(body: ChatBody) -> Response:
            return self._answer(body)

        @app.get("/v1/models")
        async def models() -> object:
            entry = {
                "id": self.model,
                "object": "model",
                "created": int(time.time()),
                "owned_by": "vllm",
                "root": self.model,
                "max_model_len": self._max_model_len,
            }
            return {"object": "list", "data": [entry]}

        @app.get("/health")
        async def health() -> Response:
            return Response()

        @app.get("/version")
        async def version() -> object:
            return {"version": VLLM_VERSION}

        @app.get("/metrics")
        async def metrics(request: Request) -> Response:
            return await self._scrape(request)

        @app.post("/emulator/fault")
        async def set_fault(wanted: _WantedFault) -> object:
            """Break or mend the metrics page."""
            self.fault = wanted.fault
            return {"fault": self.fault}

        return app

    def _answer(self, body: CompletionBody | ChatBody) -> Response:
        if self._draining:
            return _refusal("the server is shutting down", "InternalServerError", 500)
        if body.model != self.model:
            message = f"The model `{body.model}` does not exist."
            return _refusal(message, "NotFoundError", 404)
        try:
            prompt_tokens = body.prompt_tokens
        except ValueError as found:
            return _refusal(str(found), "BadRequestError", 400)
        room = self._max_model_len - prompt_tokens
        wanted = min(USUAL_ANSWER_TOKENS, room) if body.most_tokens is None else body.most_tokens
        if room < 1 or wanted > room:
            message = (
                f"{prompt_tokens} prompt tokens and {max(wanted, 1)} of output, "
                f"want at most {self._max_model_len} in all"
            )
            return _refusal(message, "BadRequestError", 400)
        call = Call(
            ReplicaRequest(prompt_tokens, wanted),
            reason="stop" if body.most_tokens is None else "length",
            max_tokens=room if body.most_tokens is None else wanted,
            streamed=body.stream,
        )
        self._driver.submit(call)
        self._open += 1
        self._idle.clear()
        writer = Writer(
            chat=isinstance(body, ChatBody),
            number=next(self._numbers),
            model=self.model,
            created_s=time.time(),
            prompt_tokens=prompt_tokens,
        )
        return StreamedAnswer(self._driver, call, writer, body.wants_usage, self._ended)

    async def _scrape(self, request: Request) -> Response:
        while self.fault == "hang":
            if self._stopping or await request.is_disconnected():
                return Response(status_code=503)
            await asyncio.sleep(0.05)
        self._driver.catch_up()
        body = self._page.render()
        if self.fault == "garbage":
            body = re.sub(rb" [^ \n]+\n", b" \xff?!\n", body)
        return Response(body, headers={"content-type": CONTENT_TYPE_PLAIN_1_0_0})

    def _ended(self) -> None:
        self._open -= 1
        if not self._open:
            self._idle.set()

    def _count(self, answer: HttpAnswer) -> None:
        if answer.handler not in _UNCOUNTED_ROUTES:
            model_s = answer.duration_s * self._speed
            self._page.answer(replace(answer, duration_s=model_s))


class _WantedFault(BaseModel):
    fault: Fault


def _refusal(message: str, kind: str, status: int) -> Response:
    return JSONResponse(error(message, kind, status), status_code=status)


@click.command(help="Run one emulated vLLM server; SIGTERM lets it finish what is in flight.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port to listen on.")
@click.option("--hardware", default="llama3-8b/a100/tp1", show_default=True)
@click.option("--model", default="demo", show_default=True, help="Name to serve the model under.")
@click.option("--speed", default=1.0, show_default=True, help="Model seconds per second.")
@click.option("--max-num-seqs", default=256, show_default=True, help="Most requests in a batch.")
@click.option("--max-model-len", default=16384, show_default=True, help="Longest request.")
@click.option("--kv-cache-tokens", type=int, help="KV-cache size, if not the hardware's.")
@click.option("--startup", default="0s", show_default=True, help="Time until the port answers.")
@click.option("--shutdown-timeout", default="60s", show_default=True, help="Time to finish in.")
def main(
    host: str,
    port: int,
    hardware: str,
    model: str,
    speed: float,
    max_num_seqs: int,
    max_model_len: int,
    kv_cache_tokens: int | None,
    startup: str,
    shutdown_timeout: str,
) -> None:
    async def run() -> None:
        engine = Engine(
            hardware=named_hardware(hardware),
            model=model,
            host=host,
            port=port,
            speed=speed,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            kv_cache_tokens=kv_cache_tokens,
            # Alone in its process it can afford a chunk for nearly every token.
            chunks_per_s=4000.0,
        )
        ending = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, ending.set)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ending.wait(), startup_s)
        if not ending.is_set():
            await engine.start()
            click.echo(f"serving {model} at {engine.url}", err=True)
            await ending.wait()
            await engine.drain(shutdown_timeout_s)

    try:
        startup_s = parse_duration_s(startup)
        shutdown_timeout_s = parse_duration_s(shutdown_timeout)
        asyncio.run(run())
    except (ConfigError, ValueError) as found:
        raise click.UsageError(str(found)) from None


if __name__ == "__main__":
    main()

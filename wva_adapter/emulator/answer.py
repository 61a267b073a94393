"""How an answer is given while the replica still works on it: streamed, or whole at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastapi.responses import Response
from starlette.types import Message, Receive, Scope, Send

from wva_adapter.emulator.driver import Call, Driver
from wva_adapter.emulator.openai import Writer


class StreamedAnswer(Response):
    """The answer to one call, which ends the call if the client leaves.

    Args:
        driver: Who works on the call.
        writer: Its words.
        wants_usage: A stream ends with the count of its tokens.
        on_end: Called when the last byte is given, or the answer cut.
    """

    def __init__(
        self,
        driver: Driver,
        call: Call,
        writer: Writer,
        wants_usage: bool,
        on_end: Callable[[], None],
    ) -> None:
        self._driver = driver
        self._on_end = on_end
        self._call = call
        self._writer = writer
        self._wants_usage = wants_usage
        # Response sets its headers from a body, and there is none yet.
        self.status_code = 200
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watching = asyncio.ensure_future(self._watch(receive))
        try:
            if self._call.streamed:
                await self._stream(send)
            else:
                await self._give_whole(send)
        finally:
            watching.cancel()
            self._driver.cancel(self._call)
            self._on_end()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._driver.cancel(self._call)

    async def _stream(self, send: Send) -> None:
        call, writer = self._call, self._writer
        await send(_start(b"text/event-stream; charset=utf-8", None))
        sent = 0
        body = writer.first()
        while True:
            if body:
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await call.wait()
            if call.cut:
                return
            tokens = call.tokens
            if call.ended:
                break
            body = writer.chunk(tokens - sent, None)
            sent = tokens
        body = writer.chunk(tokens - sent, call.reason)
        body += writer.end(tokens if self._wants_usage else None)
        await send({"type": "http.response.body", "body": body})

    async def _give_whole(self, send: Send) -> None:
        call = self._call
        while not call.ended:
            await call.wait()
        if call.cut:
            return
        body = self._writer.whole(call.tokens, call.reason)
        await send(_start(b"application/json", len(body)))
        await send({"type": "http.response.body", "body": body})


def _start(content_type: bytes, length: int | None) -> Message:
    headers = [(b"content-type", content_type)]
    if length is not None:
        headers.append((b"content-length", b"%d" % length))
    return {"type": "http.response.start", "status": 200, "headers": headers}

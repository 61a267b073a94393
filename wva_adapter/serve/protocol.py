"""How a connection ends when its server does: told beforehand, and never in the middle of anything."""

from __future__ import annotations

import asyncio
from typing import Any, Final
from weakref import WeakSet

from starlette.types import Scope
from uvicorn.server import ServerState

from wva_adapter.serve.peer import PeerProtocol
from wva_adapter.serve.repeat import EXTENSION, Repeats, Rest

FIRST_REQUEST_S: Final = 1.0
"""How long a connection may stay without a request once its server ends."""


class PortState(ServerState):
    """What the connections of one port share.

    Attributes:
        lame_duck: Whether the port will close soon: every answer is then the last on its
            connection, and says so.
        arriving: Connections whose TLS is not agreed on yet.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lame_duck = False
        self.arriving: WeakSet[PortProtocol] = WeakSet()


class PortProtocol(PeerProtocol):
    """HTTP/1.1 that a port can end without a request meeting a closed socket.

    A request that comes again is answered without being parsed.
    """

    def __init__(self, *args: Any, server_state: PortState, **kwargs: Any) -> None:
        super().__init__(*args, server_state=server_state, **kwargs)
        self._port = server_state
        self._repeats = Repeats()
        self._begun = 0
        server_state.arriving.add(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._port.arriving.discard(self)
        super().connection_made(transport)
        self._extensions[EXTENSION] = self._offer

    def data_received(self, data: bytes) -> None:
        if not self._is_idle():
            self._repeats.forget()
            super().data_received(data)
            return
        rest = self._repeats.find(data)
        if rest is not None:
            self._answer_again(rest)
            return
        begun = self._begun
        super().data_received(data)
        if not (self._begun == begun + 1 and self._is_whole()):
            self._repeats.forget()

    def on_message_begin(self) -> None:
        self._begun += 1
        super().on_message_begin()

    def _offer(self, scope: Scope, rest: Rest) -> None:
        if scope is self.scope:  # else another request came meanwhile
            self._repeats.offer(rest)

    def _is_idle(self) -> bool:
        """Return whether all that came was answered, and whoever asks next is to stay."""
        return (
            not self._in_head
            and not self._port.lame_duck
            and (self.cycle is None or (self.cycle.response_complete and not self.cycle.more_body))
            and not self.flow.write_paused
            and not self.transport.is_closing()
        )

    def _is_whole(self) -> bool:
        """Return whether the request that came last has no body, and is not the connection's last."""
        cycle = self.cycle
        return cycle is not None and not self._in_head and not cycle.more_body and cycle.keep_alive

    def _answer_again(self, rest: bytes) -> None:
        self._unset_keepalive_if_required()
        head = [b"HTTP/1.1 200 OK\r\n"]
        for name, value in self.server_state.default_headers:
            head += (name, b": ", value, b"\r\n")
        self.transport.write(b"".join((*head, rest)))
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self._port.lame_duck:
            self.enter_lame_duck()

    def enter_lame_duck(self) -> None:
        """Let the answer that is being made, if there is one, be the last."""
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """Close if nothing is asked, or as soon as what is asked has been answered."""
        if self.cycle is None or self._in_head:
            # Its request is under way: it connected, or began to ask, a moment ago.
            self.loop.call_later(FIRST_REQUEST_S, self._close_unless_asked)
        else:
            super().shutdown()

    def _close_unless_asked(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()

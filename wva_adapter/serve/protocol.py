"""How a connection ends when its server does: told beforehand, and never in the middle of anything."""

from __future__ import annotations

import asyncio
from typing import Any, Final
from weakref import WeakSet

from uvicorn.server import ServerState

from wva_adapter.serve.peer import PeerProtocol

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
    """HTTP/1.1 that a port can end without a request meeting a closed socket."""

    def __init__(self, *args: Any, server_state: PortState, **kwargs: Any) -> None:
        super().__init__(*args, server_state=server_state, **kwargs)
        self._port = server_state
        server_state.arriving.add(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._port.arriving.discard(self)
        super().connection_made(transport)

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

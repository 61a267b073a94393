"""A request that comes again in the same words over the same connection gets the same answer.

The HPA controller asks the same question every 15 s, through few connections of kube-apiserver's
that stay open. What such a request means was worked out before: parsing it, finding out who asks
and whether it may, and writing the answer cost twenty times as much as comparing its bytes. Each
layer says for how long its part of the answer holds; any doubt sends the request the whole way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from wva_adapter.serve.negotiation import Reply

Again = Callable[[], Reply | None]
"""Returns the answer for as long as it holds; in ``scope["state"]["again"]``, added to by each layer."""

Rest = Callable[[bytes | None], bytes | None]
"""By a request's audit id, if it said one: its answer from behind the date on, while it holds."""

EXTENSION: Final = "wva_adapter.repeat"
"""In ``scope["extensions"]``: takes the scope, and a ``Rest`` for when the same request comes again."""

_MOST_BYTES: Final = 4096
_MOST_KNOWN: Final = 64
_END: Final = b"\r\n\r\n"
# Names each request; kube-apiserver sends a new one every time.
_AUDIT_ID: Final = re.compile(rb"\r\n[Aa]udit-[Ii][Dd]: ([0-9a-f-]{36})\r\n")


class Repeats:
    """The requests of one connection that may come again."""

    def __init__(self) -> None:
        self._known: dict[bytes, Rest] = {}
        self._words: bytes | None = None

    def find(self, data: bytes) -> bytes | None:
        """Return the answer, from behind the date on, to what came while the connection was idle."""
        self._words = None
        # One whole head without a body: what is behind it would be another request's.
        if len(data) > _MOST_BYTES or not data.startswith(b"GET "):
            return None
        if data.find(_END) != len(data) - len(_END):
            return None
        named = _AUDIT_ID.search(data)
        audit_id = None if named is None else named[1]
        self._words = data if named is None else data[: named.start(1)] + data[named.end(1) :]
        rest = self._known.get(self._words)
        if rest is None:
            return None
        answer = rest(audit_id)
        if answer is None:
            del self._known[self._words]
        else:
            self._words = None
        return answer

    def forget(self) -> None:
        """Take no offer for what came last: it was not one whole request, or not the only one."""
        self._words = None

    def offer(self, rest: Rest) -> None:
        """Answer the request that came last with this when it comes again."""
        if self._words is None:
            return
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[self._words] = rest

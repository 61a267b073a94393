"""How a replica's virtual time follows the clock, and who is told of tokens when.

Nothing is done per token: the replica is asked when something is due, at most a hundred times a
second, and an open stream is handed all tokens that came since its last chunk.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque

from wva_adapter.emulator.page import FinishedReason, MetricsPage
from wva_adapter.sim.replica import Replica
from wva_adapter.sim.request import Request

_SHORTEST_TICK_S = 0.01

# A tick comes this much after what it waits for, so that rounding cannot put it just before.
_AFTER_S = 1e-6


class Call:
    """One request between the replica and its answer.

    Attributes:
        tokens: Tokens handed out so far.
        ended: Nothing more will come.
        cut: It ended before all its tokens were there.
    """

    def __init__(
        self, request: Request, *, reason: FinishedReason, max_tokens: int, streamed: bool
    ) -> None:
        self.request = request
        self.reason = reason
        self.max_tokens = max_tokens
        self.streamed = streamed
        self.tokens = 0
        self.ended = False
        self.cut = False
        self._changed = asyncio.Event()

    async def wait(self) -> None:
        """Wait until more tokens are there, or it has ended."""
        await self._changed.wait()
        self._changed.clear()

    def hand(self, tokens: int) -> None:
        """Let it have so many tokens by now."""
        if tokens > self.tokens:
            self.tokens = tokens
            self._changed.set()

    def end(self, *, cut: bool) -> None:
        """Let it end."""
        self.ended = True
        self.cut = cut
        self._changed.set()


class Driver:
    """One replica on the clock.

    Args:
        page: Told of every request that starts or finishes.
        speed: Model seconds per second of the event loop.
        chunks_per_s: Most chunks per second of the event loop, over all streams, beside the first
            and the last of each.
    """

    def __init__(
        self, replica: Replica, page: MetricsPage, *, speed: float, chunks_per_s: float
    ) -> None:
        self._replica = replica
        self._page = page
        self._speed = speed
        self._chunks_per_s = chunks_per_s
        self._loop = asyncio.get_running_loop()
        self._origin_s = self._loop.time()
        self._calls: dict[Request, Call] = {}
        # Streams by when their next chunk is due; ended ones are skipped.
        self._due: deque[tuple[float, Call]] = deque()
        self._ticked_s = -math.inf
        # uvloop's handle for a time that has passed already does not tell its time.
        self._timer: asyncio.Handle | None = None
        self._armed_s = 0.0

    @property
    def replica(self) -> Replica:
        """The replica, as it is now."""
        self.catch_up()
        return self._replica

    def submit(self, call: Call) -> None:
        """Let a request arrive now.

        Raises:
            ValueError: It could never be served.
        """
        self._replica.submit(call.request, self._now_s())
        self._calls[call.request] = call
        self._arm()

    def cancel(self, call: Call) -> None:
        """Give a request up; nothing happens to one that has ended."""
        if self._calls.pop(call.request, None) is not None:
            self._replica.cancel(call.request, self._now_s())
            call.end(cut=True)
            self._arm()

    def close(self) -> None:
        """Stop following the clock and cut every call."""
        for call in tuple(self._calls.values()):
            self.cancel(call)
        if self._timer is not None:
            self._timer.cancel()

    def _now_s(self) -> float:
        return (self._loop.time() - self._origin_s) * self._speed

    def catch_up(self) -> None:
        """Bring the replica up to now, and the calls whose requests started or finished."""
        progress = self._replica.advance(self._now_s())
        for request in progress.started:
            self._page.start(request)
            call = self._calls.get(request)
            if call is not None and call.streamed:
                call.hand(self._replica.generated(request))
                self._due.append((self._loop.time() + self._gap_s(), call))
        for request in progress.finished:
            call = self._calls.pop(request, None)
            if call is not None:
                self._page.finish(request, call.reason, call.max_tokens)
                call.hand(request.output_tokens)
                call.end(cut=False)

    def _gap_s(self) -> float:
        """Return the time from chunk to chunk of one stream."""
        return max(_SHORTEST_TICK_S, len(self._calls) / self._chunks_per_s)

    def _tick(self) -> None:
        self._timer = None
        self._ticked_s = self._loop.time()
        self.catch_up()
        gap_s = self._gap_s()
        while self._due and self._due[0][0] <= self._ticked_s:
            _, call = self._due.popleft()
            if not call.ended:
                call.hand(self._replica.generated(call.request))
                self._due.append((self._ticked_s + gap_s, call))
        self._arm()

    def _arm(self) -> None:
        """Set the timer for what comes next."""
        due_s = [self._due[0][0]] if self._due else []
        event_s = self._replica.next_event_s()
        if event_s is not None:
            due_s.append(self._origin_s + event_s / self._speed)
        if not due_s:
            return
        at_s = max(min(due_s) + _AFTER_S, self._ticked_s + _SHORTEST_TICK_S)
        if self._timer is not None:
            if self._armed_s <= at_s:
                return
            self._timer.cancel()
        self._armed_s = at_s
        self._timer = self._loop.call_at(at_s, self._tick)

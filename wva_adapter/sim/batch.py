"""Offline requests in front of the gateway: sent as far as there is room, again where they fail."""

from __future__ import annotations

import math
from collections import deque

from wva_adapter.sim.clients import Call, afresh


class Backlog:
    """What a batch processor has to get done, each by its due time.

    It has a number of workers with one request each. The fuller the pool, the fewer of them send,
    as llm-d's processor does with the pool's saturation for its budget. So offline requests are
    among those of the engines, as any other, and never wait at the gateway.

    Attributes:
        waiting: Requests that are not sent, the next one first.
        sent: Requests that are in flight, in the order in which they were sent.

    Args:
        workers: Most requests in flight.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self.waiting: deque[Call] = deque()
        self.sent: dict[Call, None] = {}

    def next(self, saturation: float) -> Call | None:
        """Return a request that may go, which counts as sent; ``None`` if none may.

        Args:
            saturation: How full the pool is; from 1 on nothing goes.
        """
        if not self.waiting or len(self.sent) >= math.ceil(self._workers * (1 - saturation)):
            return None
        call = self.waiting.popleft()
        self.sent[call] = None
        return call

    def again(self, call: Call) -> None:
        """Put a request that came to nothing back to the front, as if it were never sent."""
        self.sent.pop(call, None)
        self.waiting.appendleft(afresh(call))

    def overdue(self, at_s: float) -> tuple[list[Call], list[Call]]:
        """Return what is in flight and due, and, taken out, what waits and is due."""
        flying = [call for call in self.sent if call.due_s is not None and call.due_s <= at_s]
        late = [call for call in self.waiting if call.due_s is not None and call.due_s <= at_s]
        gone = set(late)
        self.waiting = deque(call for call in self.waiting if call not in gone)
        return flying, late

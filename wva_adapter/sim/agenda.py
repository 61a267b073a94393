"""What happens when: virtual time, and the order of what happens at one moment."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

Action = Callable[[Any, float], None]

WORK, PODS, SCRAPE, SCALE = range(4)
"""Ranks: at one moment engines come first, then pods, then what is scraped, then who reads it."""

_RANK_STEP = 1 << 56


class Agenda:
    """Actions in order of time, then rank, then the order in which they were put down.

    Attributes:
        now_s: Time of the last action taken.
    """

    __slots__ = ("_entries", "_numbers", "now_s")

    def __init__(self) -> None:
        self.now_s = 0.0
        self._entries: list[tuple[float, int, Action, Any]] = []
        self._numbers = 0

    def push(self, at_s: float, action: Action, subject: Any, rank: int = WORK) -> None:
        """Put down that ``action(subject, at_s)`` is to be taken."""
        self._numbers += 1
        heappush(self._entries, (at_s, rank * _RANK_STEP + self._numbers, action, subject))

    def step(self, until_s: float) -> bool:
        """Take the next action if it is due by then; return whether there was one."""
        entries = self._entries
        if not entries or entries[0][0] > until_s:
            return False
        at_s, _, action, subject = heappop(entries)
        self.now_s = at_s
        action(subject, at_s)
        return True

"""What is owed to requests that nobody waits for: throughput by their deadline, and no latency.

Requests that wait are put down by when they are due. All that is due by some moment is served in
time by a rate of as many per second as are left until then, and by no smaller one: the largest of
these rates is owed (the processor demand of tasks with deadlines). It stays the same while it is
served at that rate, where backlog over deadline alone would fall and never end.

References:
    S. Baruah, A. Mok, L. Rosier, "Preemptively scheduling hard-real-time sporadic tasks on one
    processor", 1990.
"""

from __future__ import annotations

from dataclasses import dataclass

from wva_adapter.core.load import figure

_PARTS = 64
"""Requests that come within so small a part of a deadline are due together."""

_LEAST_LEFT = 0.01
"""Work is to end this part of a deadline early. What is nearly due then, or late, is given as long: it
may take more replicas, but not all that there are."""


@dataclass(frozen=True, slots=True)
class Owed:
    """Offline requests that are not done.

    Attributes:
        dues: When they are due, Unix time, rising, and how many then.
        arrivals_total: What the gateway's counter of them said last; ``None`` where there is none.
    """

    dues: tuple[tuple[float, float], ...] = ()
    arrivals_total: float | None = None

    @property
    def requests(self) -> float:
        """How many there are."""
        return sum(count for _, count in self.dues)

    def after(self, at_s: float, waiting: float | None, came: float, deadline_s: float) -> Owed:
        """Return what is owed now; who came first is served first.

        Args:
            at_s: Unix time now.
            waiting: Offline requests that are not done; ``None`` where nothing tells.
            came: How many came since the last time, as far as that is known.
            deadline_s: Within so long each is to be done.
        """
        if waiting is None:
            return self
        came = max(came, waiting - self.requests)
        known = self._with(at_s + deadline_s, came, deadline_s / _PARTS) if came > 0 else self
        left, kept = waiting, []
        for due_s, count in reversed(known.dues):
            stays = min(count, left)
            if stays > 0:
                kept.append((due_s, stays))
            left -= stays
        return Owed(tuple(reversed(kept)), self.arrivals_total)

    def _with(self, due_s: float, more: float, part_s: float) -> Owed:
        if self.dues and due_s - self.dues[-1][0] < part_s:
            last_s, count = self.dues[-1]
            return Owed((*self.dues[:-1], (last_s, count + more)), self.arrivals_total)
        return Owed((*self.dues, (due_s, more)), self.arrivals_total)

    def rate_per_s(self, at_s: float, deadline_s: float, lead_s: float) -> float:
        """Return the least rate by which all is done in time.

        Args:
            at_s: Unix time now.
            deadline_s: As ``after`` takes it.
            lead_s: For so long what is ordered now serves nothing.
        """
        least_s = _LEAST_LEFT * deadline_s
        rate = count = 0.0
        for due_s, more in self.dues:
            count += more
            rate = max(rate, count / max(least_s, due_s - least_s - at_s - lead_s))
        return rate

    def words(self, at_s: float, rate_per_s: float) -> str:
        """Say what is owed."""
        last_s = self.dues[-1][0] - at_s if self.dues else 0.0
        return (
            f"{figure(rate_per_s)} req/s for {self.requests:,.0f} offline requests, the last due in "
            f"{last_s:,.0f} s"
        )

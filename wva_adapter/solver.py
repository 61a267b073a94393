"""The slow solver beside the cycle: a better plan for scarce accelerators, when it is there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from wva_adapter.core.decision import Plan
from wva_adapter.core.fleet import VariantKey
from wva_adapter.core.limits import Scarcity
from wva_adapter.core.planner import scarce
from wva_adapter.core.proposal import propose

log = logging.getLogger(__name__)


def solve(problem: Scarcity) -> Mapping[VariantKey, int]:
    """Return counts for a common problem that are no worse than those by turns."""
    return propose(problem.requests, problem.supply, change_penalty=problem.change_penalty)


class Solver:
    """Solves one plan's common problem at a time, in a thread.

    Args:
        deadline_s: A result that took longer is dropped: the fleet is another one by then.
        work: What solves a problem.
    """

    def __init__(
        self,
        deadline_s: float,
        work: Callable[[Scarcity], Mapping[VariantKey, int]] = solve,
    ) -> None:
        self._deadline_s = deadline_s
        self._work = work
        self._task: asyncio.Task[None] | None = None
        self.proposal: Mapping[VariantKey, int] | None = None

    def follow(self, plan: Plan) -> None:
        """Begin to solve what was scarce in a plan, unless an earlier one is still worked on."""
        if self._task is not None and not self._task.done():
            return
        problem = scarce(plan)
        if problem is None:
            self.proposal = None
            return
        self._task = asyncio.get_running_loop().create_task(self._solve(problem))

    async def stop(self) -> None:
        """Wait for what is being solved, which nobody reads any more."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _solve(self, problem: Scarcity) -> None:
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        try:
            found = await asyncio.to_thread(self._work, problem)
        except Exception:  # the plans by turns go on without it
            log.exception("solver failed, plans are made by turns")
            self.proposal = None
            return
        took_s = loop.time() - begun_s
        late = took_s > self._deadline_s
        self.proposal = None if late else found
        if late:
            log.warning(
                "proposal too late", extra={"took_s": took_s, "deadline_s": self._deadline_s}
            )

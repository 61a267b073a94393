"""The slow solver runs beside the cycle, one problem at a time, and in time or not at all."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping

import pytest

from tests.core.test_limits import CHOICE, ONE_LEFT, counts, decided
from wva_adapter.core.fleet import VariantKey
from wva_adapter.core.inventory import Inventory
from wva_adapter.core.limits import Scarcity
from wva_adapter.solver import Solver, solve

pytestmark = pytest.mark.anyio


async def test_what_it_finds_is_adopted_by_the_next_plan() -> None:
    solver = Solver(60)
    by_turns = decided(*CHOICE, inventory=ONE_LEFT)
    solver.follow(by_turns)
    assert solver.proposal is None  # nobody waits for it
    await solver.stop()
    assert solver.proposal is not None
    better = decided(*CHOICE, inventory=ONE_LEFT, proposal=solver.proposal)
    assert counts(better) == {"a-cheap": 1, "a-dear": 2, "b-cheap": 2}
    # Where nothing is scarce any more an old proposal is forgotten.
    solver.follow(decided(*CHOICE, inventory=Inventory()))
    assert solver.proposal is None


async def test_a_result_after_the_deadline_is_dropped() -> None:
    solver = Solver(0.0)
    solver.follow(decided(*CHOICE, inventory=ONE_LEFT))
    await solver.stop()
    assert solver.proposal is None


async def test_only_one_problem_is_worked_on_at_a_time() -> None:
    begun, go_on = [], threading.Event()

    def work(problem: Scarcity) -> Mapping[VariantKey, int]:
        begun.append(problem)
        go_on.wait(5)
        return solve(problem)

    solver, scarce = Solver(60, work), decided(*CHOICE, inventory=ONE_LEFT)
    solver.follow(scarce)
    await asyncio.sleep(0.05)
    solver.follow(scarce)
    go_on.set()
    await solver.stop()
    assert len(begun) == 1


async def test_a_solver_that_fails_leaves_the_plans_by_turns() -> None:
    def work(problem: Scarcity) -> Mapping[VariantKey, int]:
        raise ValueError("no solution")

    solver = Solver(60, work)
    solver.follow(decided(*CHOICE, inventory=ONE_LEFT))
    await solver.stop()
    assert solver.proposal is None

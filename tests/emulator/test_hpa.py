"""The stand-in for the HPA controller reads and scales as the real one does."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.serve.fixture import own_tls
from wva_adapter.core.decision import Decision, Plan
from wva_adapter.core.fleet import Variant, VariantKey
from wva_adapter.core.snapshot import Snapshot, VariantState
from wva_adapter.emulator.hpa import HpaController, Scaling, quantity_milli
from wva_adapter.publish.board import Board
from wva_adapter.serve.app import create_app
from wva_adapter.serve.hot import MetricReads
from wva_adapter.serve.server import Server

KEY = VariantKey("chat", "llama")


def a_plan(desired: int) -> tuple[Plan, Snapshot]:
    decision = Decision(
        key=KEY,
        model_id="llama",
        accelerator="A100",
        cost_per_h=1.0,
        current=1,
        ready=1,
        desired=desired,
        value_milli=1000 * desired,
    )
    return Plan(0.0, {KEY: decision}), Snapshot(0.0, (VariantState(Variant(KEY, "llama"), 1),))


class Target:
    """What is scaled."""

    def __init__(self, replicas: int) -> None:
        self.replicas = replicas
        self.history = [replicas]

    def scale(self, count: int) -> None:
        self.replicas = count
        self.history.append(count)


@asynccontextmanager
async def controlled(
    folder: Path, target: Target, board: Board, *, minimum: int = 1, maximum: int = 20
) -> AsyncIterator[HpaController]:
    app = create_app(MetricReads(board, clock=lambda: 0.0), board, metrics=lambda: b"", ready={})
    server = Server(app, host="127.0.0.1", port=0, ssl_context=own_tls(folder).context)
    await server.start()
    scaling = Scaling(KEY, minimum, maximum, replicas=lambda: target.replicas, scale=target.scale)
    context = ssl.create_default_context(cafile=folder / "ca.crt")
    controller = HpaController(
        server.url, context, (scaling,), sync_s=0.05, clock=asyncio.get_running_loop().time
    )
    running = asyncio.create_task(controller.run())
    try:
        yield controller
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await server.stop()


async def settled(target: Target, count: int) -> None:
    async with asyncio.timeout(5):
        while target.replicas != count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.anyio
async def test_it_arrives_at_the_served_count_up_and_down(tmp_path: Path) -> None:
    board, target = Board(60, lambda: 0.0), Target(1)
    board.post(*a_plan(4))
    async with controlled(tmp_path, target, board):
        await settled(target, 4)
        board.post(*a_plan(2))
        await settled(target, 2)


@pytest.mark.anyio
async def test_up_it_adds_twenty_pods_or_doubles_within_a_period(tmp_path: Path) -> None:
    board, target = Board(60, lambda: 0.0), Target(1)
    board.post(*a_plan(30))
    async with controlled(tmp_path, target, board, maximum=40):
        await settled(target, 21)  # max(1 + 20, 2 x 1)
        await asyncio.sleep(0.3)
        assert target.replicas == 21  # the period of 15 s is not over


@pytest.mark.anyio
async def test_without_a_value_it_keeps_the_count_and_shows_why(tmp_path: Path) -> None:
    board, target = Board(60, lambda: 0.0), Target(3)
    async with controlled(tmp_path, target, board) as controller:
        await asyncio.sleep(0.3)
        assert target.history == [3]
        standing = controller.standing[KEY]
        assert standing.value_milli is None
        assert "no plan yet" in str(standing.problem)


@pytest.mark.anyio
async def test_outside_its_bounds_it_moves_without_reading(tmp_path: Path) -> None:
    board, target = Board(60, lambda: 0.0), Target(9)
    async with controlled(tmp_path, target, board, maximum=5):
        await settled(target, 5)


@pytest.mark.parametrize(
    ("text", "milli"), [("0", 0), ("3", 3000), ("8001m", 8001), ("2k", 2_000_000)]
)
def test_quantities_are_read_in_thousandths(text: str, milli: int) -> None:
    assert quantity_milli(text) == milli


@pytest.mark.parametrize("text", ["", "m", "3mm", "1.5", "3Ki"])
def test_what_is_no_canonical_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"canonical quantity|invalid literal"):
        quantity_milli(text)


@pytest.mark.anyio
async def test_what_is_at_zero_when_it_starts_it_may_wake(tmp_path: Path) -> None:
    board, target = Board(60, lambda: 0.0), Target(0)
    board.post(*a_plan(2))
    async with controlled(tmp_path, target, board, minimum=0):
        await settled(target, 2)

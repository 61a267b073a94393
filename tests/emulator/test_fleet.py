"""A fleet of emulated engines that can be scaled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from wva_adapter.collect.static import read_static
from wva_adapter.core.fleet import VariantKey
from wva_adapter.core.snapshot import Phase
from wva_adapter.emulator.fleet import EmulatedVariant, Fleet
from wva_adapter.emulator.gateway import Gateway
from wva_adapter.emulator.load import Load, Workload
from wva_adapter.sim.files import hardware

pytestmark = pytest.mark.anyio

KEY = VariantKey("chat", "llama")


@asynccontextmanager
async def a_fleet(
    folder: Path, replicas: int = 1, *, startup_s: float = 0.2
) -> AsyncIterator[tuple[Fleet, Gateway]]:
    gateway = Gateway("127.0.0.1", 0)
    await gateway.start()
    variant = EmulatedVariant(
        key=KEY,
        model_id="llama",
        accelerator="A100",
        hardware=hardware("llama3-8b/a100/tp1"),
        cost_per_h=3600.0,  # a dollar a second
        min_replicas=0,
        max_replicas=4,
        startup_s=startup_s,
    )
    fleet = Fleet([variant], {"llama": gateway}, static_file=folder / "fleet.yaml")
    await fleet.start({KEY: replicas})
    try:
        yield fleet, gateway
    finally:
        await fleet.stop()
        await gateway.stop()


async def until(fleet: Fleet, **phases: int) -> None:
    async with asyncio.timeout(5):
        while any(fleet.phases(KEY)[Phase[name]] != n for name, n in phases.items()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_new_replica_starts_and_then_serves(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as (fleet, _):
        fleet.scale(KEY, 2)
        (view,) = read_static(tmp_path / "fleet.yaml")
        assert view.spec_replicas == 2
        assert [replica.phase for replica in view.replicas] == [Phase.READY, Phase.STARTING]
        await until(fleet, READY=2)
        (view,) = read_static(tmp_path / "fleet.yaml")
        assert [replica.phase for replica in view.replicas] == [Phase.READY, Phase.READY]
        async with httpx.AsyncClient() as client:
            for replica in view.replicas:
                assert (await client.get(str(replica.url))).status_code == 200


async def test_down_the_starting_ones_go_first(tmp_path: Path) -> None:
    async with a_fleet(tmp_path, startup_s=60) as (fleet, _):
        fleet.scale(KEY, 2)
        fleet.scale(KEY, 1)
        await until(fleet, READY=1, STARTING=0, TERMINATING=0)


async def test_scaling_down_under_load_loses_no_request(tmp_path: Path) -> None:
    async with a_fleet(tmp_path, 3) as (fleet, gateway):
        workload = Workload(
            schedule=[(0.0, 30.0), (2.0, 30.0)], prompt_tokens=100, output_tokens=40
        )
        load = Load(gateway.url, "llama", workload, np.random.default_rng(0))
        running = asyncio.create_task(load.run())
        await asyncio.sleep(0.7)
        fleet.scale(KEY, 1)
        result = await running
        assert result.requests > 30
        assert result.failures == {}
        await until(fleet, READY=1, TERMINATING=0)


async def test_every_replica_is_paid_for_from_creation_to_exit(tmp_path: Path) -> None:
    async with a_fleet(tmp_path, 2, startup_s=60) as (fleet, _):
        fleet.scale(KEY, 3)
        await asyncio.sleep(0.5)
        # two that serve and one that starts, a dollar a second each
        assert fleet.usd()[KEY] == pytest.approx(1.5, rel=0.3)

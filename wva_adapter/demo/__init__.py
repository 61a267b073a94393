"""``make demo``: engines, load, adapter and a stand-in for the HPA controller, on one screen.

Everything runs in this process and speaks real HTTP: clients to a gateway, the gateway to emulated
engines, the adapter to their metrics pages, the HPA controller's stand-in to the adapter over
HTTPS. Time runs ``SPEED`` times as fast as the clock on the wall, for all of them alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from wva_adapter.core.hpa_sync import SYNC_S
from wva_adapter.demo.scene import A100, H100, LOADS, QWEN, SETTINGS, SPEED, variants, workload
from wva_adapter.demo.screen import DemoSummary, Screen, show_lines, show_live
from wva_adapter.emulator.fleet import EmulatedVariant, Fleet
from wva_adapter.emulator.gateway import Gateway
from wva_adapter.emulator.hpa import HpaController, Scaling
from wva_adapter.emulator.load import Load
from wva_adapter.runtime import Adapter
from wva_adapter.settings import parse_settings


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """How long on the wall, and the seed of arrivals and lengths."""

    for_s: float = 150.0
    seed: int = 0


async def run_demo(options: DemoOptions, stop: asyncio.Event) -> DemoSummary:
    """Run it to its end, or until ``stop`` is set; nothing is left running.

    The picture goes to stderr, a live one where that is a terminal and lines where it is not.
    """
    logging.getLogger("wva_adapter").setLevel(logging.ERROR)
    async with _running(options) as (demo, work):
        console = Console(stderr=True)
        show = show_live if console.is_terminal else show_lines
        screen = asyncio.create_task(show(demo, console))
        stopping = asyncio.create_task(_wait_for(stop))
        first, _ = await asyncio.wait(
            (screen, stopping, *work), return_when=asyncio.FIRST_COMPLETED
        )
        for task in first:
            task.result()  # the load's end and the operator's are good ends; what else is raised
        for task in (screen, stopping):
            task.cancel()
        await asyncio.gather(screen, stopping, return_exceptions=True)
        demo.look()
        for line in demo.closing_words():
            console.print(line, highlight=False)
        return demo.summary


async def _wait_for(event: asyncio.Event) -> None:
    await event.wait()


@asynccontextmanager
async def _running(options: DemoOptions) -> AsyncIterator[tuple[Screen, list[asyncio.Task[None]]]]:
    """Start every part in order, and end them in the reverse order."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wva-demo-")))
        gateways = {}
        for model in LOADS:
            gateways[model] = Gateway("127.0.0.1", 0)
            await gateways[model].start()
            stack.push_async_callback(gateways[model].stop)
        fleet = Fleet(variants(), gateways, static_file=folder / "fleet.yaml", speed=SPEED)
        stack.push_async_callback(fleet.stop)
        await fleet.start({A100: 1, H100: 0, QWEN: 1})

        began_s, unix_s = time.monotonic(), time.time()
        adapter = Adapter(
            parse_settings(SETTINGS, "demo"),
            folder=folder,
            clock=lambda: unix_s + (time.monotonic() - began_s) * SPEED,
            speed=SPEED,
        )
        demo = Screen(options.for_s * SPEED, adapter, fleet)
        ending = asyncio.Event()
        serving = asyncio.create_task(adapter.run(ending))

        async def end_adapter() -> None:
            ending.set()
            await asyncio.gather(serving, return_exceptions=True)

        stack.push_async_callback(end_adapter)
        demo.controller = HpaController(
            adapter.server.url,
            ssl.create_default_context(cafile=folder / "certificates" / "ca.crt"),
            tuple(_scaling(variant, fleet) for variant in variants()),
            sync_s=SYNC_S / SPEED,
            clock=lambda: demo.now_s,
        )
        _task(stack, demo.controller.run())
        generator = np.random.default_rng(options.seed)
        demo.loads = tuple(
            Load(
                gateways[model].url,
                model,
                workload(model, options.for_s * SPEED),
                generator,
                speed=SPEED,
            )
            for model in LOADS
        )
        yield demo, [serving, _task(stack, _run_all(demo.loads))]


def _task(stack: AsyncExitStack, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
    """Return the work as a task that ends with the stack."""
    task = asyncio.create_task(work)

    async def end() -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    stack.push_async_callback(end)
    return task


async def _run_all(loads: tuple[Load, ...]) -> None:
    await asyncio.gather(*(load.run() for load in loads))


def _scaling(variant: EmulatedVariant, fleet: Fleet) -> Scaling:
    return Scaling(
        variant.key,
        variant.min_replicas,
        variant.max_replicas,
        replicas=lambda: fleet.count(variant.key),
        scale=lambda count: fleet.scale(variant.key, count),
    )

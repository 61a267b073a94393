"""Emulated engines for tests: on loopback, on free ports, gone afterwards."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from wva_adapter.emulator.engine import Engine
from wva_adapter.sim.files import hardware

MODEL = "tiny"


def an_engine(
    *,
    speed: float = 20.0,
    max_num_seqs: int = 256,
    max_model_len: int = 16384,
    kv_cache_tokens: int | None = None,
    port: int = 0,
) -> Engine:
    """Return an engine that has not started."""
    return Engine(
        hardware=hardware("llama3-8b/a100/tp1"),
        model=MODEL,
        host="127.0.0.1",
        port=port,
        speed=speed,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        kv_cache_tokens=kv_cache_tokens,
    )


@asynccontextmanager
async def running(engine: Engine) -> AsyncIterator[Engine]:
    """Start an engine, and stop it in the end."""
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    """Wait for a condition that is looked at every 10 ms."""
    for _ in range(round(within_s / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"not within {within_s} s")

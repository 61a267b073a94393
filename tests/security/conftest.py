"""One port for all attacks, and a watch over what each of them leaves behind."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.serve.cluster import Certificates
from tests.serve.door import Door, a_door


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop for all: the port outlives a single attack."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="session")
async def port(
    tmp_path_factory: pytest.TempPathFactory, certificates: Certificates
) -> AsyncIterator[Door]:
    async with a_door(tmp_path_factory.mktemp("port"), certificates) as door:
        yield door


@pytest.fixture
async def door(port: Door) -> Door:
    """The port, with nothing noted yet."""
    port.let_in.clear()
    port.provider.asked.clear()
    port.api.reviewed.clear()
    return port


@pytest.fixture(autouse=True)
async def nothing_breaks(port: Door, caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """No attack may raise where nobody catches it: not in the log, not in the event loop."""
    uncaught: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()

    def note(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # While the port is open every test of this process shares its loop, and the servers that
        # stand in for replicas elsewhere leave connections that are only now collected.
        if "aiohttp/web_protocol.py" not in repr(context.get("task")):
            uncaught.append(context)

    loop.set_exception_handler(note)
    yield
    await asyncio.sleep(0)
    loop.set_exception_handler(None)
    assert uncaught == []
    broken = [r for r in caplog.get_records("call") if r.exc_info or r.levelno >= logging.ERROR]
    assert broken == [], [record.getMessage() for record in broken]

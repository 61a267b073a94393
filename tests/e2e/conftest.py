"""One control plane, one node agent and one adapter for all stories, each in its own namespace."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.adapter import AdapterProcess
from tests.e2e.binaries import controlplane
from tests.e2e.cluster import ControlPlane, tell
from tests.e2e.stage import NODES, Stage, sample_hpas
from wva_adapter.emulator.node import NodeAgent

MakeStage = Callable[..., Awaitable[Stage]]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the stories of one cluster stay together where two processes share the work.

    Those of the common cluster are one lot, since the rights used are counted over all of them, and
    those of every other file are one each.
    """
    for item in items:
        common = "control_plane" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("common" if common else item.path.stem))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """One event loop for all stories: engines and nodes outlive a single one."""
    return "asyncio"


@pytest.fixture(scope="session")
def control_plane(request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    with a_control_plane(request) as plane:
        yield plane


@pytest.fixture(scope="module")
def plane(request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    """A control plane that the stories of one module have for themselves."""
    with a_control_plane(request) as plane:
        yield plane


@contextmanager
def a_control_plane(request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    """Start a control plane of its own; its logs stay where a test failed."""
    folder = Path(tempfile.mkdtemp(prefix="wva-e2e-"))
    plane = ControlPlane(controlplane(), folder)
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()
        if request.session.testsfailed:
            kept = Path(tempfile.mkdtemp(prefix="wva-e2e-logs-"))
            shutil.copytree(plane.logs, kept, dirs_exist_ok=True)
            tell(f"logs of the control plane and what ran beside it are kept in {kept}")
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
async def agent(control_plane: ControlPlane) -> AsyncIterator[NodeAgent]:
    # A request for each chunk of each stream would be a line.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    agent = NodeAgent(control_plane.kubeconfig, NODES)
    await agent.start()
    yield agent
    await agent.stop()


@pytest.fixture(scope="session")
async def adapter(control_plane: ControlPlane) -> AsyncIterator[AdapterProcess]:
    adapter = AdapterProcess(control_plane, control_plane.folder / "adapter")
    try:
        await adapter.install()
        await adapter.register()
        yield adapter
    finally:
        adapter.stop()
        if adapter.log.exists():
            shutil.copy(adapter.log, control_plane.logs)


@pytest.fixture
async def make_stage(
    control_plane: ControlPlane, agent: NodeAgent, adapter: AdapterProcess
) -> AsyncIterator[MakeStage]:
    """Two variants in a namespace of this name; gone after the story."""
    stages: list[Stage] = []

    async def make(namespace: str, *, maxima: Mapping[str, int]) -> Stage:
        stage = Stage(control_plane, agent, namespace)
        stages.append(stage)
        await stage.start(sample_hpas(namespace, maxima))
        return stage

    yield make
    for stage in stages:
        await stage.stop()

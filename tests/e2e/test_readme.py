"""What a new user does first: annotate the HPA that the README shows, and start the adapter."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator

import pytest

from tests.e2e.adapter import AdapterProcess
from tests.e2e.cluster import ControlPlane, tell
from tests.e2e.readme import shown
from tests.e2e.stage import CHEAP, DEAR, NODES, Stage
from wva_adapter.emulator.node import NodeAgent

pytestmark = pytest.mark.anyio

# As it starts for everybody, but that a story does not last for the minutes that a fleet is kept.
SETTINGS = {
    "scrape_period": "5s",
    "scrape_timeout": "4s",
    "cycle": "5s",
    "max_age": "60s",
    "policy": {"scale_down_window": "30s"},
}


@pytest.fixture
async def stage(plane: ControlPlane) -> AsyncIterator[Stage]:
    """The namespace chat, with an adapter that decides by demand and owns the API."""
    agent = NodeAgent(plane.kubeconfig, NODES)
    adapter = AdapterProcess(plane, plane.folder / "adapter", SETTINGS)
    await agent.start()
    stage = Stage(plane, agent, "chat")
    try:
        await adapter.install()
        await adapter.register()
        yield stage
    finally:
        await stage.stop()
        adapter.stop()
        await agent.stop()
        if adapter.log.exists():
            shutil.copy(adapter.log, plane.logs)


async def test_the_hpa_of_the_readme_follows_the_load_up_and_down(stage: Stage) -> None:
    (hpa,) = shown("HorizontalPodAutoscaler")
    model = hpa["metadata"]["annotations"]["llm-d.ai/model-id"]
    await stage.start([hpa], model=model, dear=0)
    # One carries about 2.5 req/s, and a queue orders some more.
    load = stage.load((0, 1), (30, 1), (40, 9), (240, 9))
    await stage.until(
        lambda: stage.counts()[CHEAP] >= 4, "the load has moved the count", within_s=120
    )
    await stage.until(lambda: stage.ready()[CHEAP] >= 4, "the pods serve")
    most = max(counts[CHEAP] for _, counts in stage.timeline)
    load.cancel()
    await stage.until(lambda: stage.counts()[CHEAP] == 1, "one is enough again", within_s=240)
    tell(f"the README's HPA: 1 to {most} and back; {DEAR}, which nobody scales, stays at 0")
    assert stage.counts() == {CHEAP: 1, DEAR: 0}

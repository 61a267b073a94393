"""KEDA holds the external metrics API, and scales by the counts that the adapter tells it."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from tests.e2e.adapter import NAMESPACE, ROOT, SERVICE, AdapterProcess
from tests.e2e.cluster import ControlPlane
from tests.e2e.conftest import a_control_plane
from tests.e2e.keda_process import KedaProcesses
from tests.e2e.service_proxy import ServiceProxy
from tests.e2e.stage import CHEAP, DEAR, NODES, Stage
from wva_adapter.emulator.node import NodeAgent

pytestmark = pytest.mark.anyio

SAMPLES = ROOT / "manifests" / "samples"


@dataclass(frozen=True)
class Cluster:
    """A control plane with KEDA on it, and the adapter beside both."""

    plane: ControlPlane
    agent: NodeAgent
    adapter: AdapterProcess


@pytest.fixture(scope="module")
def plane(request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    with a_control_plane(request) as plane:
        yield plane


@pytest.fixture(scope="module")
async def cluster(plane: ControlPlane) -> AsyncIterator[Cluster]:
    keda = KedaProcesses(plane, plane.folder / "keda")
    agent = NodeAgent(plane.kubeconfig, NODES)
    adapter = AdapterProcess(plane, plane.folder / "adapter")
    # KEDA runs beside the cluster, and still asks the Service by its name in it.
    proxy = ServiceProxy({f"{SERVICE}.{NAMESPACE}.svc:443": adapter.port})
    try:
        await keda.define()
        await agent.start()
        await adapter.install()
        await proxy.start()
        await keda.start(adapter.ca, {"HTTPS_PROXY": proxy.url})
        await keda.register()
        yield Cluster(plane, agent, adapter)
    finally:
        adapter.stop()
        await agent.stop()
        await proxy.stop()
        if adapter.log.exists():
            shutil.copy(adapter.log, plane.logs)


def sample(name: str) -> list[dict[str, Any]]:
    """Return the objects of a sample manifest as they stand."""
    return list(yaml.safe_load_all((SAMPLES / f"{name}.yaml").read_text()))


async def test_both_sample_scaled_objects_follow_the_load_up_and_down(cluster: Cluster) -> None:
    stage = Stage(cluster.plane, cluster.agent, "chat")
    scaled_by_http, scaled_by_query = (
        sample("scaledobject-metrics-api"),
        sample("scaledobject-prometheus"),
    )
    trigger = scaled_by_query[0]["spec"]["triggers"][0]
    trigger["type"] = "metrics-api"
    trigger["metadata"] = {
        **scaled_by_http[0]["spec"]["triggers"][0]["metadata"],
        "url": f"https://wva-adapter.wva-system.svc/v1/desired/chat/{DEAR}",
    }
    try:
        await stage.start([*sample("keda-reader"), *scaled_by_http, *scaled_by_query])
        await stage.until(
            lambda: stage.counts() == {CHEAP: 1, DEAR: 0},
            "without load the dear one is switched off",
        )
        load = stage.load((0, 1), (10, 14), (120, 14))
        await stage.until(lambda: stage.counts()[CHEAP] == 4, "the cheap one is at its maximum")
        await stage.until(lambda: stage.counts()[DEAR] == 1, "the dear one is woken")
        await stage.until(lambda: stage.counts()[DEAR] > 1, "the dear one grows too")
        load.cancel()
        await stage.until(
            lambda: stage.counts() == {CHEAP: 1, DEAR: 0}, "both are as before", within_s=150
        )
        print(json.dumps(await cluster.adapter.explain("chat", CHEAP), indent=1))
    finally:
        await stage.stop()

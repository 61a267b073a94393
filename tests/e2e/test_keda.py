"""KEDA holds the external metrics API, and scales by the counts that the adapter tells it."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from tests.e2e.adapter import API_SERVICE, NAMESPACE, ROOT, SERVICE, AdapterProcess
from tests.e2e.cluster import HPA_SYNC_S, ControlPlane, tell
from tests.e2e.keda_process import NAMESPACE as KEDA_NAMESPACE
from tests.e2e.keda_process import KedaProcesses
from tests.e2e.readme import shown
from tests.e2e.service_proxy import ServiceProxy
from tests.e2e.stage import CHEAP, DEAR, NODES, Stage, a_deployment, sample_hpas
from wva_adapter.emulator.node import NodeAgent

pytestmark = pytest.mark.anyio

METRIC = "s0-metric-api-desiredReplicas"
"""What KEDA calls what its first trigger reads."""
SAMPLES = ROOT / "manifests" / "samples"
# It decides by demand, as it does for everybody, but stories do not last for minutes.
SETTINGS = {"policy": {"scale_down_window": "30s", "down_period": "10s"}}


@dataclass(frozen=True)
class Cluster:
    """A control plane with KEDA on it, and the adapter beside both."""

    plane: ControlPlane
    agent: NodeAgent
    adapter: AdapterProcess


@pytest.fixture(scope="module")
async def cluster(plane: ControlPlane) -> AsyncIterator[Cluster]:
    keda = KedaProcesses(plane, plane.folder / "keda")
    agent = NodeAgent(plane.kubeconfig, NODES)
    adapter = AdapterProcess(plane, plane.folder / "adapter", SETTINGS)
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


@pytest.fixture
async def stage(cluster: Cluster, request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """A namespace named by the story's mark, with nothing in it yet."""
    stage = Stage(cluster.plane, cluster.agent, request.param)
    yield stage
    await stage.stop()


def in_namespace(name: str) -> pytest.MarkDecorator:
    """Mark where a story plays."""
    return pytest.mark.parametrize("stage", [name], indirect=True, ids=[name])


def sample(name: str, namespace: str = "chat") -> list[dict[str, Any]]:
    """Return the objects of a sample manifest: as they stand in chat, moved elsewhere."""
    text = (SAMPLES / f"{name}.yaml").read_text()
    return list(
        yaml.safe_load_all(
            text.replace("namespace: chat", f"namespace: {namespace}")
            .replace("/v1/desired/chat/", f"/v1/desired/{namespace}/")
            .replace('exported_namespace="chat"', f'exported_namespace="{namespace}"')
        )
    )


def over_http(variant: str, namespace: str, **spec: Any) -> dict[str, Any]:
    """Return the sample that asks over HTTP, for another variant."""
    (scaled,) = sample("scaledobject-metrics-api", namespace)
    scaled["metadata"]["name"] = scaled["spec"]["scaleTargetRef"]["name"] = variant
    (trigger,) = scaled["spec"]["triggers"]
    trigger["metadata"]["url"] = trigger["metadata"]["url"].replace(CHEAP, variant)
    scaled["spec"] |= spec
    return scaled


def an_idle_deployment(name: str, namespace: str, replicas: int) -> dict[str, Any]:
    """Return a Deployment of pods that no node agent makes an engine of."""
    deployment = a_deployment(name, namespace, NODES[0].product, replicas)
    template = deployment["spec"]["template"]
    template["metadata"].pop("annotations")
    template["spec"]["containers"][0].pop("resources")
    return deployment


async def condition(cluster: Cluster, stage: Stage, variant: str, kind: str) -> dict[str, str]:
    """Return a condition of a ScaledObject; empty where it has none of this kind."""
    found = await cluster.plane.get("scaledobject", variant, "-n", stage.namespace)
    conditions = found.get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == kind), {})


async def eventually(holds: Callable[[], Awaitable[bool]], what: str, within_s: float = 30) -> None:
    began = time.monotonic()
    while not await holds():
        assert time.monotonic() - began < within_s, f"after {within_s:g} s not true: {what}"
        await asyncio.sleep(1)
    tell(f"{what} after {time.monotonic() - began:.1f} s")


@in_namespace("chat")
async def test_the_scaled_objects_of_the_readme_follow_the_load_up_and_down_to_none(
    cluster: Cluster, stage: Stage
) -> None:
    await stage.start([*sample("keda-reader"), *shown("ScaledObject")], dear=0)
    # An A100 carries 2.5 req/s and an H100 4.5, which nobody knows at first.
    load = stage.load((0, 2), (5, 16), (240, 16))
    await stage.until(lambda: stage.counts()[DEAR] > 0, "the dear one is woken")
    await stage.until(
        lambda: stage.counts()[CHEAP] > 1 and stage.counts()[DEAR] > 1,
        "both have grown",
        within_s=150,
    )
    load.cancel()
    await stage.until(
        lambda: stage.counts() == {CHEAP: 1, DEAR: 0},
        "the cheap one is at its minimum and the dear one off",
        within_s=180,
    )


@in_namespace("shared")
async def test_keda_keeps_the_external_metrics_api_and_the_adapter_is_read_past_it(
    cluster: Cluster, stage: Stage
) -> None:
    before = await cluster.plane.get("apiservice", API_SERVICE)
    hpas = sample_hpas("shared", {CHEAP: 4, DEAR: 4})
    native = next(hpa for hpa in hpas if hpa["metadata"]["name"] == DEAR)
    await stage.start([*sample("keda-reader", "shared"), over_http(CHEAP, "shared"), native])
    reader = (await cluster.adapter.explain("shared", CHEAP))["reader"]
    assert (reader["kind"], reader["name"]) == ("ScaledObject", f"shared/{CHEAP}")
    assert (reader["served"], reader["will_set"]) == (1, 1)

    # KEDA answers its own HPA through the API, with what the adapter told it.
    metrics = f"/apis/external.metrics.k8s.io/v1beta1/namespaces/shared/{METRIC}"
    selector = f"?labelSelector=scaledobject.keda.sh%2Fname%3D{CHEAP}"
    answer = json.loads(await cluster.plane.kubectl("get", "--raw", metrics + selector))
    assert [item["value"] for item in answer["items"]] == ["1"]

    async def keda_reads() -> bool:
        active = await stage.hpa_condition(f"keda-hpa-{CHEAP}", "ScalingActive")
        return active.get("reason") == "ValidMetricFound"

    async def native_is_refused() -> bool:
        active = await stage.hpa_condition(DEAR, "ScalingActive")
        return active.get("reason") == "FailedGetExternalMetric"

    await eventually(keda_reads, "shared: KEDA's HPA reads the count")
    # KEDA knows nothing of our metrics: an HPA that names one holds its count.
    await eventually(native_is_refused, "shared: an HPA without a ScaledObject is refused")
    assert stage.counts() == {CHEAP: 1, DEAR: 1}

    after = await cluster.plane.get("apiservice", API_SERVICE)
    assert after["spec"] == before["spec"]
    assert after["spec"]["service"]["namespace"] == KEDA_NAMESPACE
    assert (await cluster.adapter.get("/readyz")).status_code == 200


@in_namespace("away")
async def test_without_the_adapter_keda_holds_or_does_what_its_fallback_says(
    cluster: Cluster, stage: Stage
) -> None:
    # Each is a model of its own, on pods that never serve: what they have is what they need.
    fallbacks = {
        "more": {"failureThreshold": 1, "replicas": 4},
        "fewer": {"failureThreshold": 1, "replicas": 1},
        "kept": {"failureThreshold": 1, "replicas": 1, "behavior": "currentReplicasIfHigher"},
        "none": {"failureThreshold": 3, "replicas": 0},
    }
    scaled = {name: over_http(name, "away", fallback=fallbacks[name]) for name in fallbacks}
    for name, scaled_object in scaled.items():
        scaled_object["metadata"]["annotations"]["llm-d.ai/model-id"] = name
    scaled["none"]["spec"] |= {"minReplicaCount": 0, "pollingInterval": 2, "cooldownPeriod": 0}
    await stage.start(
        [
            *sample("keda-reader", "away"),
            over_http(CHEAP, "away"),
            over_http(DEAR, "away"),
            *(an_idle_deployment(name, "away", replicas=2) for name in fallbacks),
            *scaled.values(),
        ],
        cheap=2,
    )

    async def all_read() -> bool:
        found = [
            await stage.hpa_condition(f"keda-hpa-{name}", "ScalingActive")
            for name in (CHEAP, DEAR, *fallbacks)
        ]
        return all(active.get("reason") == "ValidMetricFound" for active in found)

    # Until the adapter has seen them, a fallback of none has switched off and on.
    await eventually(all_read, "away: all are read")
    held = {CHEAP: 2, DEAR: 1, "more": 2, "fewer": 2, "kept": 2}
    before = stage.counts()
    assert {name: before[name] for name in held} == held
    assert before["none"] > 0

    cluster.adapter.kill()
    try:
        # Until its threshold is passed, a fallback of none takes a failure for a count of none.
        await stage.until(lambda: stage.counts()["none"] == 0, "a fallback of none switches off")
        await stage.until(lambda: stage.counts()["none"] == 1, "and on again")
        after = {**held, "more": 4, "fewer": 1, "none": 1}
        await stage.until(lambda: stage.counts() == after, "the others do as they say")
        await asyncio.sleep(2 * HPA_SYNC_S)
        assert stage.counts() == after
        # Without one, the HPA holds.
        active = await stage.hpa_condition(f"keda-hpa-{CHEAP}", "ScalingActive")
        assert (active["status"], active["reason"]) == ("False", "FailedGetExternalMetric")
    finally:
        await cluster.adapter.start()

    async def no_fallback() -> bool:
        conditions = [await condition(cluster, stage, name, "Fallback") for name in fallbacks]
        return all(found.get("status") == "False" for found in conditions)

    await eventually(no_fallback, "away: the adapter is read again")
    await eventually(all_read, "away: by all")

"""The adapter holds the external metrics API, and KEDA goes on scaling through it."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web

from tests.e2e.adapter import API_SERVICE, NAMESPACE, PROGRAM, ROOT, SERVICE, AdapterProcess
from tests.e2e.cluster import ControlPlane, KubectlError, tell
from tests.e2e.keda_process import NAMESPACE as KEDA_NAMESPACE
from tests.e2e.keda_process import KedaProcesses

pytestmark = pytest.mark.anyio

WORKER = "worker"
VALUE = (
    "/apis/external.metrics.k8s.io/v1beta1/namespaces/queues/s0-metric-api-wanted"
    f"?labelSelector=scaledobject.keda.sh%2Fname%3D{WORKER}"
)


class Queue:
    """What KEDA scales the worker by: a number over HTTP."""

    wanted = 1

    async def answer(self, _: web.BaseRequest) -> web.Response:
        return web.json_response({"wanted": self.wanted})


@dataclass(frozen=True)
class Cluster:
    """A control plane whose external metrics API is KEDA's, with the adapter beside it."""

    plane: ControlPlane
    adapter: AdapterProcess
    queue: Queue

    async def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``wva-adapter apiservice`` as the cluster's admin."""
        return await asyncio.to_thread(
            subprocess.run,
            [
                str(PROGRAM),
                "apiservice",
                *arguments,
                f"--kubeconfig={self.plane.kubeconfig}",
                f"--service={NAMESPACE}/{SERVICE}:{self.adapter.port}",
                f"--config={self.adapter.settings_file}",
            ],
            capture_output=True,
            text=True,
            check=False,
        )

    async def refused(self) -> str:
        """Return why the API is not taken over."""
        ended = await self.command("--take-over")
        assert ended.returncode == 1, ended.stdout
        return ended.stderr

    async def value(self) -> Any:
        """Return KEDA's list as kubectl gets it, without the time, which moves on."""
        answer = json.loads(await self.plane.kubectl("get", "--raw", VALUE))
        for item in answer["items"]:
            item.pop("timestamp")
        return answer

    async def scales_to(self, wanted: int) -> None:
        """Change what KEDA reads, and wait until its HPA has followed."""
        self.queue.wanted = wanted

        async def follows() -> bool:
            found = await self.plane.get("deployment", WORKER, "-n", "queues")
            return bool(found["spec"]["replicas"] == wanted)

        await eventually(follows, f"KEDA's HPA scales to {wanted}")


async def eventually(holds: Callable[[], Awaitable[bool]], what: str, within_s: float = 60) -> None:
    began = time.monotonic()
    while not await holds():
        assert time.monotonic() - began < within_s, f"after {within_s:g} s not true: {what}"
        await asyncio.sleep(0.5)
    tell(f"{what} after {time.monotonic() - began:.1f} s")


@pytest.fixture(scope="module")
async def cluster(plane: ControlPlane) -> AsyncIterator[Cluster]:
    keda = KedaProcesses(plane, plane.folder / "keda")
    # Nothing resolves a Service's name here. KEDA's authority is the one on record.
    provider = {
        "name": "keda",
        "service": f"{KEDA_NAMESPACE}/keda-metrics-apiserver:{keda.port}",
        "url": f"https://localhost:{keda.port}",
        "keda": True,
    }
    adapter = AdapterProcess(
        plane, plane.folder / "adapter", {"chain": {"timeout": "4s", "providers": [provider]}}
    )
    queue = Queue()
    runner = web.ServerRunner(web.Server(queue.answer, access_log=None))
    try:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        await keda.define()
        await adapter.install()
        await keda.start(adapter.ca, {})
        await keda.register()
        await plane.kubectl("create", "namespace", "queues")
        await plane.apply(
            *_scaled(f"http://127.0.0.1:{runner.addresses[0][1]}/"),
            _operator("--enable-cert-rotation=true"),
        )
        await plane.kubectl("delete", "service", SERVICE, "-n", NAMESPACE)
        await plane.apply(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": SERVICE, "namespace": NAMESPACE},
                "spec": {"type": "ExternalName", "externalName": "localhost"},
            }
        )
        yield Cluster(plane, adapter, queue)
    finally:
        adapter.stop()
        await runner.cleanup()
        if adapter.log.exists():
            shutil.copy(adapter.log, plane.logs)


def _operator(*arguments: str) -> dict[str, Any]:
    """Return the Deployment that says how KEDA's operator runs; it runs as a process here."""
    labels = {"app.kubernetes.io/name": "keda-operator"}
    container = {"name": "keda-operator", "image": "keda", "args": list(arguments)}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "keda-operator", "namespace": KEDA_NAMESPACE, "labels": labels},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


def _scaled(url: str) -> list[dict[str, Any]]:
    labels = {"app": WORKER}
    place = {"name": WORKER, "namespace": "queues"}
    trigger = {"url": url, "format": "json", "valueLocation": "wanted", "targetValue": "1"}
    at_once = {"scaleDown": {"stabilizationWindowSeconds": 0}}
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": place,
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [{"name": WORKER, "image": WORKER}]},
                },
            },
        },
        {
            "apiVersion": "keda.sh/v1alpha1",
            "kind": "ScaledObject",
            "metadata": place,
            "spec": {
                "scaleTargetRef": {"name": WORKER},
                "minReplicaCount": 1,
                "maxReplicaCount": 8,
                "pollingInterval": 2,
                "advanced": {"horizontalPodAutoscalerConfig": {"behavior": at_once}},
                "triggers": [{"type": "metrics-api", "metadata": trigger}],
            },
        },
    ]


async def test_keda_is_chained_through_us_and_gets_its_api_back(cluster: Cluster) -> None:
    plane = cluster.plane
    before = await plane.get("apiservice", API_SERVICE)
    await cluster.scales_to(3)

    # While the operator would rewrite caBundle, and while KEDA would not let us in, it stays.
    assert "want it to run with --enable-apiservice-patching=false" in await cluster.refused()
    await plane.apply(
        _operator("--enable-cert-rotation=true", "--enable-apiservice-patching=false")
    )
    assert "want apiservice/rbac.yaml applied" in await cluster.refused()
    untouched = await plane.get("apiservice", API_SERVICE)
    assert untouched["spec"] == before["spec"]

    await plane.kubectl("apply", "-f", str(ROOT / "apiservice" / "rbac.yaml"))
    from_keda = await cluster.value()
    assert [item["value"] for item in from_keda["items"]] == ["3"]
    taken = await cluster.command("--take-over", "--json")
    assert taken.returncode == 0, taken.stderr
    status = json.loads(taken.stdout)
    assert (status["ours"], status["available"]) == (True, True)
    assert status["former"] == f"{KEDA_NAMESPACE}/keda-metrics-apiserver:{before_port(before)}"

    # The same list, and KEDA's HPA goes on reading it, in protobuf.
    assert await cluster.value() == from_keda
    await cluster.scales_to(5)
    await cluster.scales_to(2)
    with pytest.raises(KubectlError, match="namespace queues"):
        await cluster.adapter.metric("queues")

    # Who writes another authority into the object is corrected.
    bundle = base64.b64encode(b"another's").decode()
    ours = (await plane.get("apiservice", API_SERVICE))["spec"]["caBundle"]
    await plane.kubectl(
        "patch",
        "apiservice",
        API_SERVICE,
        "--type=merge",
        f"--patch={json.dumps({'spec': {'caBundle': bundle}})}",
    )

    async def corrected() -> bool:
        return bool((await plane.get("apiservice", API_SERVICE))["spec"]["caBundle"] == ours)

    await eventually(corrected, "our authority is in the object again")

    restored = await cluster.command("--restore")
    assert restored.returncode == 0, restored.stderr
    after = await plane.get("apiservice", API_SERVICE)
    assert after["spec"] == before["spec"]
    assert after["metadata"]["labels"] == before["metadata"]["labels"]
    assert after["metadata"]["annotations"] == before["metadata"]["annotations"]
    await cluster.scales_to(4)


def before_port(service: dict[str, Any]) -> int:
    """Return the port of an APIService's owner."""
    port: int = service["spec"]["service"]["port"]
    return port

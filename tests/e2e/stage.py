"""One model on two accelerators in a namespace of its own, with clients, and what becomes of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from tests.e2e.adapter import ROOT
from tests.e2e.cluster import ControlPlane, tell
from wva_adapter.collect.objects import Pod, Workload
from wva_adapter.emulator.gateway import Gateway
from wva_adapter.emulator.load import Load, LoadResult
from wva_adapter.emulator.load import Workload as Requests
from wva_adapter.emulator.node import EmulatedNode, NodeAgent
from wva_adapter.kube.api import KubernetesApi
from wva_adapter.kube.watch import Watch

NODES = (
    EmulatedNode("a100-node", "NVIDIA-A100-SXM4-80GB", hardware="llama3-8b/a100/tp1"),
    EmulatedNode("h100-node", "NVIDIA-H100-80GB-HBM3", hardware="llama3-8b/h100/tp1"),
)
CHEAP, DEAR = "llama-a100", "llama-h100"
MODEL = "llama"
STARTUP_S = 5

# Small and slow engines, so that a few requests per second fill them. Four times as slow an
# A100 takes 50 ms per step: 8 requests of 64 tokens take 3.2 s together, which is 2.5 req/s; an
# H100 does nearly twice that. 8 requests of 128 + 32 tokens, as they are on the way, fill 77 % of
# the KV cache.
_ENGINE = {
    "emulator.wva/slowness": "4",
    "emulator.wva/startup": f"{STARTUP_S}s",
    "emulator.wva/max-num-seqs": "8",
    "emulator.wva/kv-cache-tokens": "1664",
}


class Stage:
    """A namespace with the two variants of the sample manifests.

    Attributes:
        timeline: Each change of the counts asked for: seconds since the start, counts by variant.
    """

    def __init__(self, plane: ControlPlane, agent: NodeAgent, namespace: str) -> None:
        self.namespace = namespace
        self.timeline: list[tuple[float, Mapping[str, int]]] = []
        self._model = MODEL
        self._plane = plane
        self._agent = agent
        self._began = time.monotonic()
        self.gateway = Gateway("127.0.0.1", 0)
        self._api = KubernetesApi(plane.kubeconfig, user_agent="e2e-stage")
        place = f"namespaces/{namespace}"
        self._deployments = self._watch(f"/apis/apps/v1/{place}/deployments", Workload)
        self._pods = self._watch(f"/api/v1/{place}/pods", Pod)
        self._tasks: list[asyncio.Task[Any]] = []

    def _watch(self, path: str, shape: Any) -> Watch[Any]:
        return Watch(self._api, path, shape, on_change=self._note, clock=time.monotonic)

    async def start(
        self,
        autoscalers: Sequence[Mapping[str, Any]],
        *,
        cheap: int = 1,
        dear: int = 1,
        model: str = MODEL,
    ) -> None:
        """Deploy so many replicas per variant and what scales them; return once all serve."""
        self._model = model
        await self._plane.kubectl("create", "namespace", self.namespace)
        await self.gateway.start()
        self._agent.route(self.namespace, self.gateway)
        for watch in (self._deployments, self._pods):
            self._tasks.append(asyncio.create_task(watch.run()))
            failure = await watch.listed(tries=5)
            if failure is not None:
                raise failure
        replicas = {CHEAP: cheap, DEAR: dear}
        await self._plane.apply(
            *(
                a_deployment(name, self.namespace, node.product, replicas[name], model)
                for name, node in zip(replicas, NODES, strict=True)
            )
        )
        await self._plane.apply(*autoscalers)
        await self.until(lambda: self.ready() == replicas, "both variants serve")

    async def stop(self) -> None:
        """End the clients and the gateway, and delete the namespace."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._agent.unroute(self.namespace)
        await self.gateway.stop()
        await self._api.close()
        await self._plane.kubectl("delete", "namespace", self.namespace, "--wait=false")

    def load(self, *schedule: tuple[float, float], seed: int = 1) -> asyncio.Task[LoadResult]:
        """Send requests at these rates, as ``(seconds, requests per second)``, straight between.

        Prompts of 128 and answers of 64 tokens, give or take a fifth.
        """
        requests = Requests(
            schedule=schedule,
            prompt_tokens=128,
            output_tokens=64,
            variation=0.2,
            deadline_s=60,
            most_requests=10_000,
        )
        load = Load(self.gateway.url, self._model, requests, np.random.default_rng(seed))
        task = asyncio.create_task(load.run())
        self._tasks.append(task)
        return task

    def counts(self) -> dict[str, int]:
        """Return the count that each Deployment asks for."""
        return {
            place.name: deployment.spec.replicas
            for place, deployment in sorted(self._deployments.objects.items())
        }

    def pods(self, variant: str) -> list[str]:
        """Return the names of a variant's ready pods that are to stay."""
        return sorted(
            place.name
            for place, pod in self._pods.objects.items()
            if pod.metadata.labels.get("app") == variant and _serves(pod)
        )

    def existing(self) -> int:
        """Return how many pods there are, leaving ones too."""
        return len(self._pods.objects)

    def ready(self) -> dict[str, int]:
        """Return how many pods of each variant serve."""
        return {variant: len(self.pods(variant)) for variant in (CHEAP, DEAR)}

    async def until(self, holds: Callable[[], bool], what: str, *, within_s: float = 60.0) -> None:
        """Wait until it holds, and fail with ``what`` and the timeline if it does not in time."""
        began = time.monotonic()
        while not holds():
            assert time.monotonic() - began < within_s, (
                f"after {within_s:g} s not true: {what}; ready {self.ready()}, "
                f"timeline {self.timeline}"
            )
            await asyncio.sleep(0.1)
        tell(f"{self.namespace}: {what} after {time.monotonic() - began:.1f} s")

    async def events(self, hpa: str) -> list[str]:
        """Return the messages of the events of an HPA."""
        found = await self._plane.get("events", "-n", self.namespace)
        return [
            str(event["message"])
            for event in found["items"]
            if event["involvedObject"]["kind"] == "HorizontalPodAutoscaler"
            and event["involvedObject"]["name"] == hpa
        ]

    async def hpa_condition(self, hpa: str, kind: str) -> dict[str, str]:
        """Return a condition of an HPA; empty where it has none of this kind."""
        found = await self._plane.get("hpa", hpa, "-n", self.namespace)
        conditions = found.get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == kind), {})

    def _note(self) -> None:
        counts = self.counts()
        if len(counts) == 2 and (not self.timeline or self.timeline[-1][1] != counts):
            at_s = round(time.monotonic() - self._began, 1)
            self.timeline.append((at_s, counts))
            tell(f"{self.namespace}: {at_s:6.1f} s  {CHEAP} {counts[CHEAP]}, {DEAR} {counts[DEAR]}")


def sample_hpas(namespace: str, maxima: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the sample HPAs for a namespace, with these maxima."""
    text = (ROOT / "manifests" / "samples" / "hpas.yaml").read_text()
    hpas: list[dict[str, Any]] = list(yaml.safe_load_all(text))
    for hpa in hpas:
        hpa["metadata"]["namespace"] = namespace
        hpa["spec"]["maxReplicas"] = maxima[hpa["metadata"]["name"]]
    return hpas


def _serves(pod: Pod) -> bool:
    return pod.metadata.deletion_timestamp is None and any(
        c.type == "Ready" and c.status == "True" for c in pod.status.conditions
    )


def a_deployment(
    name: str, namespace: str, product: str, replicas: int = 1, model: str = MODEL
) -> dict[str, Any]:
    """Return a Deployment of emulated engines on nodes with this accelerator."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {
                    "labels": {"app": name},
                    "annotations": {**_ENGINE, "emulator.wva/model": model},
                },
                "spec": {
                    "nodeSelector": {"nvidia.com/gpu.product": product},
                    "terminationGracePeriodSeconds": 60,
                    "containers": [
                        {
                            "name": "engine",
                            "image": "emulated-vllm",
                            "ports": [{"name": "http", "containerPort": 8000}],
                            "resources": {"limits": {"nvidia.com/gpu": "1"}},
                        }
                    ],
                },
            },
        },
    }

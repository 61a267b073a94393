"""What a kubelet does, without one: nodes that live, and pods on them that run emulated engines.

``python -m wva_adapter.emulator.node --kubeconfig FILE --node NAME=PRODUCT:COUNT`` runs it alone.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from wva_adapter.collect.objects import Pod
from wva_adapter.emulator.engine import Engine
from wva_adapter.emulator.gateway import Backend, Gateway
from wva_adapter.emulator.pod import PodLife, read_engine_spec
from wva_adapter.errors import ClusterError, ConfigError
from wva_adapter.kube.api import KubernetesApi, Refused
from wva_adapter.kube.watch import Watch
from wva_adapter.logs import log_to_stderr

log = logging.getLogger(__name__)

_HEARTBEAT_S = 10.0
_MERGE = "application/merge-patch+json"


@dataclass(frozen=True, slots=True)
class EmulatedNode:
    """A node with accelerators.

    Attributes:
        product: What feature discovery would label it with: ``NVIDIA-A100-SXM4-80GB``.
        accelerators: How many it has.
        hardware: The latency table of engines on it whose pods do not name one.
    """

    name: str
    product: str
    accelerators: int = 8
    hardware: str = "llama3-8b/a100/tp1"


class NodeAgent:
    """The agent of some nodes: keeps them ready, and leads the lives of the pods bound to them.

    A pod without the annotation ``emulator.wva/model`` is left as it is.

    Args:
        kubeconfig: Of someone who may write nodes, leases and pods.
    """

    def __init__(self, kubeconfig: Path, nodes: Sequence[EmulatedNode]) -> None:
        self._api = KubernetesApi(kubeconfig, user_agent="wva-emulator-node")
        self._nodes = {node.name: node for node in nodes}
        self._pods = Watch(
            self._api, "/api/v1/pods", Pod, on_change=self._reconcile, clock=time.monotonic
        )
        self._lives: dict[str, PodLife] = {}
        self._left_alone: set[str] = set()
        self._gateways: dict[str, Gateway] = {}
        # Each process from a place of its own: two at once would find the same address free, and
        # the later one could not listen on it.
        self._hosts = itertools.count(1 + 250 * os.getpid())
        self._tasks: list[asyncio.Task[None]] = []
        self._aborting: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Register the nodes and take over the pods that are bound to them already.

        Raises:
            ConfigError: The credentials cannot be used.
            ClusterError: The API server cannot be reached, or refuses.
        """
        await self._api.connect()
        for node in self._nodes.values():
            await self._register(node)
        self._tasks = [
            asyncio.create_task(self._pods.run(), name="pods"),
            asyncio.create_task(self._keep_alive(), name="heartbeat"),
        ]
        failure = await self._pods.listed(tries=5)
        if failure is not None:
            await self.stop()
            raise failure

    async def stop(self) -> None:
        """End every engine at once; nodes and pods stay in the cluster as they are."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        await asyncio.gather(*(life.abort() for life in self._lives.values()))
        self._lives.clear()
        await self._api.close()

    def route(self, namespace: str, gateway: Gateway) -> None:
        """Keep the gateway's backends in step with the ready engines of a namespace."""
        self._gateways[namespace] = gateway
        self._update_gateways()

    def unroute(self, namespace: str) -> None:
        """Leave the gateway of a namespace as it is."""
        self._gateways.pop(namespace, None)

    def engine(self, namespace: str, pod: str) -> Engine:
        """Return the engine of a pod.

        Raises:
            KeyError: No engine runs for a pod of this name.
        """
        for life in self._lives.values():
            meta = life.pod.metadata
            if (meta.namespace, meta.name) == (namespace, pod):
                return life.engine
        raise KeyError(f"{namespace}/{pod}")

    def _reconcile(self) -> None:
        """Begin and end lives so that they match the pods that are bound to the nodes."""
        bound = {
            pod.metadata.uid: pod
            for pod in self._pods.objects.values()
            if pod.spec.node_name in self._nodes and pod.status.phase not in ("Succeeded", "Failed")
        }
        for uid in self._lives.keys() - bound.keys():
            # Its object is gone: ended as asked, or deleted by force.
            task = asyncio.ensure_future(self._lives.pop(uid).abort())
            self._aborting.add(task)
            task.add_done_callback(self._aborting.discard)
        self._left_alone &= bound.keys()
        for uid, pod in bound.items():
            if uid not in self._lives and uid not in self._left_alone:
                self._claim(pod)
            if pod.metadata.deletion_timestamp is not None and uid in self._lives:
                grace_s = pod.metadata.deletion_grace_period_seconds
                self._lives[uid].end(30.0 if grace_s is None else float(grace_s))

    def _claim(self, pod: Pod) -> None:
        try:
            spec = read_engine_spec(pod, self._nodes[pod.spec.node_name].hardware)
        except ConfigError as error:
            log.warning("pod left alone", extra={"problem": str(error)})
            spec = None
        if spec is None:
            self._left_alone.add(pod.metadata.uid)
            return
        life = PodLife(self._api, pod, spec, self._address(spec.port), self._update_gateways)
        self._lives[pod.metadata.uid] = life
        life.begin()

    def _address(self, port: int) -> str:
        """Return a loopback address on which nobody uses the port."""
        while True:
            host = next(self._hosts)
            address = f"127.{100 + host // 62500 % 100}.{host // 250 % 250}.{1 + host % 250}"
            with socket.socket() as probe, suppress(OSError):
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, port))
                return address

    def _update_gateways(self) -> None:
        for namespace, gateway in self._gateways.items():
            gateway.set_backends(
                [
                    Backend(life.engine.url, float(life.spec.capacity_tokens))
                    for life in self._lives.values()
                    if life.ready and life.pod.metadata.namespace == namespace
                ]
            )

    async def _register(self, node: EmulatedNode) -> None:
        capacity = {
            "cpu": "64",
            "memory": "512Gi",
            "pods": "250",
            "nvidia.com/gpu": str(node.accelerators),
        }
        await self._create(
            "/api/v1/nodes",
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {
                    "name": node.name,
                    "labels": {
                        "kubernetes.io/hostname": node.name,
                        "nvidia.com/gpu.product": node.product,
                    },
                },
                "status": {"capacity": capacity, "allocatable": capacity, **_ready_condition()},
            },
        )
        await self._create(
            "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases",
            {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": node.name, "namespace": "kube-node-lease"},
                "spec": {"leaseDurationSeconds": 40, **_lease(node.name)},
            },
        )

    async def _create(self, path: str, document: dict[str, Any]) -> None:
        try:
            await self._api.send("POST", path, document)
        except Refused as error:
            if error.status != 409:  # it stayed from an earlier run
                raise

    async def _keep_alive(self) -> None:
        leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        while True:
            for name in self._nodes:
                try:
                    await self._api.send(
                        "PATCH",
                        f"{leases}/{name}",
                        {"spec": _lease(name)},
                        content_type=_MERGE,
                    )
                    await self._api.send(
                        "PATCH",
                        f"/api/v1/nodes/{name}/status",
                        {"status": _ready_condition()},
                        content_type=_MERGE,
                    )
                except ClusterError as error:
                    log.warning("heartbeat lost", extra={"node": name, "problem": str(error)})
            await asyncio.sleep(_HEARTBEAT_S)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _lease(holder: str) -> dict[str, Any]:
    return {"holderIdentity": holder, "renewTime": _now()}


def _ready_condition() -> dict[str, Any]:
    now = _now().split(".", maxsplit=1)[0] + "Z"
    return {
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "EmulatedNodeReady",
                "message": "the node agent posts ready status",
                "lastHeartbeatTime": now,
                "lastTransitionTime": now,
            }
        ]
    }


class _NodeArgument(click.ParamType[EmulatedNode]):
    name = "NAME=PRODUCT:COUNT"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> EmulatedNode:
        name, _, rest = str(value).partition("=")
        product, _, count = rest.rpartition(":")
        if not (name and product and count.isdecimal()):
            self.fail(f"found {value!r}, want NAME=PRODUCT:COUNT", param, ctx)
        return EmulatedNode(name, product, int(count))


@click.command()
@click.option("--kubeconfig", required=True, type=click.Path(path_type=Path), help="Of an admin.")
@click.option(
    "--node", "nodes", required=True, multiple=True, type=_NodeArgument(), help="A node to be."
)
def main(kubeconfig: Path, nodes: tuple[EmulatedNode, ...]) -> None:
    """Be these nodes until Ctrl-C.

    Example: python -m wva_adapter.emulator.node --kubeconfig admin.kubeconfig
    --node a100-0=NVIDIA-A100-SXM4-80GB:8
    """
    log_to_stderr()

    async def run() -> None:
        agent = NodeAgent(kubeconfig, nodes)
        await agent.start()
        try:
            await asyncio.Event().wait()
        finally:
            await agent.stop()

    with suppress(KeyboardInterrupt):
        asyncio.run(run())


if __name__ == "__main__":
    main()

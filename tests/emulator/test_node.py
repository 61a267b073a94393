"""The node agent: what the cluster is told, and which engines run."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
import pytest

from tests.collect.apiserver import PODS, ApiServer, eventually
from tests.collect.test_manifests import a_pod
from wva_adapter.collect.objects import Pod
from wva_adapter.emulator.gateway import Gateway
from wva_adapter.emulator.node import EmulatedNode, NodeAgent
from wva_adapter.emulator.pod import EngineSpec, read_engine_spec
from wva_adapter.errors import ClusterError, ConfigError

pytestmark = pytest.mark.anyio

LEASE = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


def an_engine_pod(
    name: str = "p-1", *, node: str = "n0", terminating: bool = False, **engine: Any
) -> dict[str, Any]:
    """A pod as the scheduler leaves it; ``startup="0s"`` sets ``emulator.wva/startup``."""
    known = {"model": "llama", "startup": "0s", **engine}
    return a_pod(
        name,
        node=node,
        ip=None,
        ready=False,
        phase="Pending",
        terminating=terminating,
        annotations={f"emulator.wva/{k.replace('_', '-')}": v for k, v in known.items()},
    )


def spec_of(pod: dict[str, Any]) -> EngineSpec | None:
    return read_engine_spec(msgspec.convert(pod, Pod), "llama3-8b/a100/tp1")


@pytest.fixture
async def api() -> AsyncIterator[ApiServer]:
    server = ApiServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def agent(api: ApiServer, tmp_path: Path) -> AsyncIterator[NodeAgent]:
    """The agent of one node, n0, started."""
    kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
    agent = NodeAgent(kubeconfig, [EmulatedNode("n0", "NVIDIA-A100-SXM4-80GB", 4)])
    await agent.start()
    yield agent
    await agent.stop()


@pytest.fixture
async def gateway(agent: NodeAgent) -> AsyncIterator[Gateway]:
    """The gateway of namespace chat."""
    gateway = Gateway("127.0.0.1", 0, patience_s=5)
    await gateway.start()
    agent.route("chat", gateway)
    yield gateway
    await gateway.stop()


def statuses(api: ApiServer, pod: str = "p-1") -> list[tuple[str, bool]]:
    """The phase and readiness of which the server was told, in order."""
    found = []
    for method, path, body in api.written:
        if method == "PATCH" and path.endswith(f"/pods/{pod}/status"):
            conditions = {c["type"]: c["status"] for c in body["status"]["conditions"]}
            found.append((body["status"]["phase"], conditions["Ready"] == "True"))
    return found


async def ask(gateway: Gateway, tokens: int = 4) -> int:
    """Return the status of one completion."""
    body = {"model": "llama", "prompt": "a b c", "max_tokens": tokens, "ignore_eos": True}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{gateway.url}/v1/completions", json=body) as answer,
    ):
        await answer.read()
        return answer.status


async def test_a_node_registers_with_its_accelerators_and_renews_its_lease(
    api: ApiServer, agent: NodeAgent
) -> None:
    _, _, node = next(w for w in api.written if w[:2] == ("POST", "/api/v1/nodes"))
    assert node["metadata"]["labels"]["nvidia.com/gpu.product"] == "NVIDIA-A100-SXM4-80GB"
    assert node["status"]["allocatable"]["nvidia.com/gpu"] == "4"
    assert node["status"]["conditions"][0]["status"] == "True"
    await eventually(lambda: ("PATCH", f"{LEASE}/n0") in [w[:2] for w in api.written])
    await eventually(lambda: ("PATCH", "/api/v1/nodes/n0/status") in [w[:2] for w in api.written])


async def test_a_bound_pod_becomes_an_engine_that_serves(
    api: ApiServer, agent: NodeAgent, gateway: Gateway
) -> None:
    api.put(PODS, an_engine_pod())
    await eventually(lambda: statuses(api) == [("Running", False), ("Running", True)])
    assert await ask(gateway) == 200
    assert agent.engine("chat", "p-1").url.startswith("http://127.1")


async def test_two_pods_have_two_addresses_and_one_port(api: ApiServer, agent: NodeAgent) -> None:
    api.put(PODS, an_engine_pod("p-1"))
    api.put(PODS, an_engine_pod("p-2"))
    await eventually(
        lambda: (
            (statuses(api, "p-1")[1:], statuses(api, "p-2")[1:])
            == (
                [("Running", True)],
                [("Running", True)],
            )
        )
    )
    first, second = (agent.engine("chat", name).url for name in ("p-1", "p-2"))
    assert first != second
    assert first.endswith(":8000")
    assert second.endswith(":8000")


async def test_a_pod_serves_only_after_its_startup(
    api: ApiServer, agent: NodeAgent, gateway: Gateway
) -> None:
    api.put(PODS, an_engine_pod(startup="300ms"))
    await eventually(lambda: statuses(api) == [("Running", False)])
    assert not _listens(agent.engine("chat", "p-1").url)
    await eventually(lambda: statuses(api)[-1] == ("Running", True))


async def test_other_pods_are_left_alone(api: ApiServer, agent: NodeAgent) -> None:
    api.put(PODS, an_engine_pod("elsewhere", node="n1"))
    api.put(PODS, a_pod("no-engine", annotations={}))
    api.put(PODS, an_engine_pod("odd", max_num_seqs="many"))
    api.put(PODS, an_engine_pod("p-1"))
    await eventually(lambda: len(statuses(api)) == 2)
    assert statuses(api, "elsewhere") == statuses(api, "no-engine") == statuses(api, "odd") == []


async def test_a_deleted_pod_finishes_its_requests_and_then_goes(
    api: ApiServer, agent: NodeAgent, gateway: Gateway
) -> None:
    api.put(PODS, an_engine_pod())
    await eventually(lambda: len(statuses(api)) == 2)
    # 60 steps of 12 ms each: it is in flight when the pod is told to go.
    answer = asyncio.ensure_future(ask(gateway, tokens=60))
    await asyncio.sleep(0.2)
    api.put(PODS, an_engine_pod(terminating=True))
    await eventually(lambda: statuses(api)[-1] == ("Running", False))
    assert await answer == 200
    await eventually(lambda: any(method == "DELETE" for method, _, _ in api.written))
    _, path, options = next(w for w in api.written if w[0] == "DELETE")
    assert path == "/api/v1/namespaces/chat/pods/p-1"
    assert options["gracePeriodSeconds"] == 0
    assert options["preconditions"] == {"uid": "uid-p-1"}
    await eventually(lambda: not _runs(agent, "p-1"))


async def test_a_pod_deleted_while_it_starts_never_serves(api: ApiServer, agent: NodeAgent) -> None:
    api.put(PODS, an_engine_pod(startup="60s"))
    await eventually(lambda: len(statuses(api)) == 1)
    api.put(PODS, an_engine_pod(startup="60s", terminating=True))
    await eventually(lambda: any(method == "DELETE" for method, _, _ in api.written))
    assert statuses(api) == [("Running", False)]


async def test_the_engine_of_a_pod_deleted_by_force_ends_at_once(
    api: ApiServer, agent: NodeAgent, gateway: Gateway
) -> None:
    api.put(PODS, an_engine_pod())
    await eventually(lambda: len(statuses(api)) == 2)
    url = agent.engine("chat", "p-1").url
    api.remove(PODS, "p-1")
    await eventually(lambda: not _runs(agent, "p-1"))
    await eventually(lambda: not _listens(url))


async def test_what_the_server_did_not_hear_is_told_again(api: ApiServer, agent: NodeAgent) -> None:
    status = "/api/v1/namespaces/chat/pods/p-1/status"
    api.refused[status] = 503
    api.put(PODS, an_engine_pod())
    await eventually(lambda: status in [path for _, path, _ in api.written])
    api.refused.clear()
    await eventually(lambda: statuses(api)[-1] == ("Running", True))


async def test_an_agent_that_may_not_write_nodes_does_not_start(
    api: ApiServer, tmp_path: Path
) -> None:
    api.refused["/api/v1/nodes"] = 403
    kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
    agent = NodeAgent(kubeconfig, [EmulatedNode("n0", "NVIDIA-L4")])
    with pytest.raises(ClusterError, match=r"POST /api/v1/nodes: HTTP 403"):
        await agent.start()
    await agent.stop()


def _listens(url: str) -> bool:
    parts = urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((parts.hostname or "", parts.port or 0)) == 0


def _runs(agent: NodeAgent, pod: str) -> bool:
    try:
        agent.engine("chat", pod)
    except KeyError:
        return False
    return True


def test_annotations_say_which_engine_a_pod_is() -> None:
    pod = an_engine_pod(
        hardware="llama3-8b/h100/tp1",
        startup="2m",
        slowness="0.5",
        max_num_seqs="8",
        max_model_len="4096",
        kv_cache_tokens="1664",
    )
    assert spec_of(pod) == EngineSpec(
        model="llama",
        hardware="llama3-8b/h100/tp1",
        port=8000,
        startup_s=120.0,
        slowness=0.5,
        max_num_seqs=8,
        max_model_len=4096,
        kv_cache_tokens=1664,
    )


def test_a_pod_without_annotations_of_ours_is_no_engine() -> None:
    assert spec_of(a_pod()) is None


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({"slowness": "fast"}, r"annotation emulator.wva/slowness: found 'fast'"),
        ({"slowness": "0"}, r"emulator.wva/slowness: found '0': want a positive number"),
        ({"startup": "5"}, r"annotation emulator.wva/startup: found '5': want a duration"),
        ({"hardware": "llama3-8b/a100"}, r"hardware 'llama3-8b/a100': unknown; did you mean"),
        ({"batch": "8"}, r"annotation emulator.wva/batch: unknown; known: model, hardware"),
    ],
)
def test_an_annotation_that_means_nothing_is_refused(
    annotations: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        spec_of(an_engine_pod(**annotations))

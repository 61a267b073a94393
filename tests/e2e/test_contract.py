"""What a cluster expects of an aggregated API server, seen from the cluster."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from tests.e2e.adapter import API_SERVICE, NAMESPACE, AdapterProcess, spoil_ca
from tests.e2e.cluster import ControlPlane, KubectlError, tell
from tests.e2e.conftest import MakeStage
from tests.e2e.stage import CHEAP, DEAR

pytestmark = pytest.mark.anyio

GROUP = "external.metrics.k8s.io"
HPA_CONTROLLER = "system:serviceaccount:kube-system:horizontal-pod-autoscaler"


async def test_the_hpa_controller_may_list_and_a_stranger_may_not(
    control_plane: ControlPlane, adapter: AdapterProcess
) -> None:
    # By a name that discovery knows: of any other kubectl forgets the group.
    metric = f"externalmetrics.{GROUP}"
    allowed = await control_plane.kubectl(
        "auth", "can-i", "list", metric, "-n", "default", "--as", HPA_CONTROLLER
    )
    assert allowed.strip() == "yes"
    with pytest.raises(KubectlError, match='User "stranger" cannot list resource'):
        await control_plane.kubectl(
            "get",
            "--raw",
            f"/apis/{GROUP}/v1beta1/namespaces/default/wva_desired_replicas",
            "--as=stranger",
        )


async def test_a_name_in_a_header_without_the_proxys_certificate_is_nobodys(
    adapter: AdapterProcess,
) -> None:
    forged = {"X-Remote-User": HPA_CONTROLLER, "X-Remote-Group": "system:masters"}
    path = f"/apis/{GROUP}/v1beta1/namespaces/default/wva_desired_replicas"
    for answer in (
        await adapter.get(path, headers=forged),
        await adapter.get("/metrics", headers=forged),
        await adapter.get("/explain", headers=forged),
        await adapter.get("/openapi.json", headers=forged),
    ):
        assert answer.status_code == 403
        assert 'User "system:anonymous" cannot' in answer.json()["message"]
    assert (await adapter.get(path, token="made.up.token")).status_code == 401


async def test_kubectl_finds_the_shapes_and_the_api_server_is_not_troubled_by_them(
    control_plane: ControlPlane, adapter: AdapterProcess
) -> None:
    began = time.monotonic()
    while True:
        root = json.loads(await control_plane.kubectl("get", "--raw", "/openapi/v3"))
        if (found := root["paths"].get(f"apis/{GROUP}/v1beta1")) is not None:
            break
        # The API server asks for it once a minute.
        assert time.monotonic() - began < 90, sorted(root["paths"])
        await asyncio.sleep(2)
    url = found["serverRelativeURL"]
    document = json.loads(await control_plane.kubectl("get", "--raw", url))
    names = document["components"]["schemas"]
    assert any(name.endswith("external_metrics.v1beta1.ExternalMetricValue") for name in names)
    log = (control_plane.logs / "kube-apiserver.log").read_text(errors="replace")
    troubled = [
        line for line in log.splitlines() if "Rate Limited Requeue" in line and API_SERVICE in line
    ]
    # Before the adapter listens the API server may have asked once.
    assert len(troubled) <= 1, troubled


async def test_the_ca_of_our_apiservice_is_put_right_and_nobody_else_notices(
    control_plane: ControlPlane, adapter: AdapterProcess, make_stage: MakeStage
) -> None:
    stage = await make_stage("bundle", maxima={CHEAP: 2, DEAR: 2})
    await adapter.until_served(stage.namespace, CHEAP)
    service = await control_plane.get("apiservice", API_SERVICE)
    right = service["spec"]["caBundle"]
    await spoil_ca(control_plane)
    began = time.monotonic()
    while (await control_plane.get("apiservice", API_SERVICE))["spec"]["caBundle"] != right:
        assert time.monotonic() - began < 30, adapter.tail()
        await asyncio.sleep(0.5)
    tell(f"caBundle put right after {time.monotonic() - began:.1f} s")
    await control_plane.kubectl(
        "wait", "--for=condition=Available", f"apiservice/{API_SERVICE}", "--timeout=60s"
    )
    await adapter.until_served(stage.namespace, CHEAP)


async def test_the_adapter_runs_as_it_is_installed(control_plane: ControlPlane) -> None:
    budget = await control_plane.get("poddisruptionbudget", "wva-adapter", "-n", NAMESPACE)
    assert budget["spec"]["maxUnavailable"] == 1
    policy = await control_plane.get("networkpolicy", "wva-adapter", "-n", NAMESPACE)
    assert policy["spec"]["policyTypes"] == ["Ingress"]

"""What a person sees through kubectl."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from tests.e2e.adapter import API_SERVICE, NAMESPACE, AdapterProcess
from tests.e2e.cluster import ControlPlane, KubectlError
from tests.e2e.conftest import MakeStage
from tests.e2e.stage import CHEAP, DEAR

pytestmark = pytest.mark.anyio


async def test_the_api_is_registered_and_lists_its_resources(
    control_plane: ControlPlane, adapter: AdapterProcess
) -> None:
    service = await control_plane.get("apiservice", API_SERVICE)
    (available,) = service["status"]["conditions"]
    assert (available["type"], available["status"]) == ("Available", "True")
    assert available["reason"] == "Passed"

    listed = await control_plane.kubectl(
        "api-resources", "--api-group=external.metrics.k8s.io", "--no-headers"
    )
    assert listed.split() == [
        "externalmetrics",
        "external.metrics.k8s.io/v1beta1",
        "true",
        "ExternalMetricValueList",
    ]


async def test_the_counts_of_a_namespace_are_one_compact_list(
    adapter: AdapterProcess, make_stage: MakeStage
) -> None:
    stage = await make_stage("looking", maxima={CHEAP: 2, DEAR: 2})
    await adapter.until_served(stage.namespace, CHEAP)
    text = await adapter.metric(stage.namespace)
    document = json.loads(text)
    assert text == json.dumps(document, separators=(",", ":")) + "\n"
    assert document["kind"] == "ExternalMetricValueList"
    assert document["apiVersion"] == "external.metrics.k8s.io/v1beta1"
    assert [
        (item["metricName"], item["metricLabels"]["variant_name"], item["value"])
        for item in document["items"]
    ] == [("wva_desired_replicas", CHEAP, "1"), ("wva_desired_replicas", DEAR, "1")]

    one = json.loads(await adapter.metric(stage.namespace, f"?labelSelector=variant_name%3D{DEAR}"))
    assert [item["metricLabels"]["variant_name"] for item in one["items"]] == [DEAR]

    with pytest.raises(KubectlError, match=r"\(NotFound\)|not found|llama-a100"):
        await adapter.metric(stage.namespace, "?labelSelector=variant_name%3Dnobody")


async def test_the_adapter_is_installed_with_rights_to_read_and_no_others(
    control_plane: ControlPlane, adapter: AdapterProcess
) -> None:
    account = f"system:serviceaccount:{NAMESPACE}:wva-adapter"

    async def may(verb: str, resource: str) -> bool:
        try:
            await control_plane.kubectl("auth", "can-i", verb, resource, "-A", "--as", account)
        except KubectlError:
            return False
        return True

    for resource in ("hpa", "deployments", "statefulsets", "pods", "nodes"):
        assert await may("watch", resource)
        assert not await may("patch", resource)
    assert not await may("get", "secrets")

    # Its namespace admits only restricted pods: that there is one proves its security context.
    pods = await control_plane.get("pods", "-n", NAMESPACE)
    assert len(pods["items"]) == 1


async def test_whoever_comes_past_the_api_server_is_held_to_the_same_rules(
    control_plane: ControlPlane, adapter: AdapterProcess, make_stage: MakeStage
) -> None:
    stage = await make_stage("asking", maxima={CHEAP: 2, DEAR: 2})
    await adapter.until_served(stage.namespace, CHEAP)
    path = (
        f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{stage.namespace}/wva_desired_replicas"
    )

    forged = {"X-Remote-User": "admin", "X-Remote-Group": "system:masters"}
    answer = await adapter.get(path, headers=forged)
    assert answer.status_code == 403
    assert 'User "system:anonymous" cannot list' in answer.json()["message"]
    assert (await adapter.get(path, token="no-such-token")).status_code == 401

    async def token_of(account: str, namespace: str) -> str:
        printed = await control_plane.kubectl("create", "token", account, "-n", namespace)
        return printed.strip()

    reader = await token_of("horizontal-pod-autoscaler", "kube-system")
    assert (await adapter.get(path, token=reader)).status_code == 200
    assert (await adapter.get("/metrics", token=reader)).status_code == 403

    stranger = await token_of("default", stage.namespace)
    desired = f"/v1/desired/{stage.namespace}/{CHEAP}"
    answer = await adapter.get(desired, token=stranger)
    assert answer.status_code == 403
    assert f'in the namespace "{stage.namespace}"' in answer.json()["message"]
    # A role of this namespace, bound in it, is all that KEDA's trigger needs.
    await control_plane.kubectl(
        "create",
        "rolebinding",
        "reads-counts",
        "-n",
        stage.namespace,
        "--clusterrole=wva-adapter-external-metrics-reader",
        f"--serviceaccount={stage.namespace}:default",
    )
    # A denied access is asked for anew after ten seconds.
    deadline = time.monotonic() + 15
    while (await adapter.get(desired, token=stranger)).status_code != 200:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.5)

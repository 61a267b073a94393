"""Real load, real pages, a real HPA controller: what the fleet becomes."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from tests.e2e.adapter import AdapterProcess
from tests.e2e.cluster import HPA_SYNC_S, ControlPlane, tell
from tests.e2e.conftest import MakeStage
from tests.e2e.stage import CHEAP, DEAR, STARTUP_S
from wva_adapter.emulator.node import NodeAgent

pytestmark = pytest.mark.anyio

# From a step of load to the next replica that serves: two cycles of the adapter, one sync of the
# HPA, the start of the engine, and some seconds for a busy machine.
ONE_STEP_S = 2 + HPA_SYNC_S + STARTUP_S + 10


async def test_load_grows_the_cheaper_variant_first_and_leaves_without_a_lost_request(
    make_stage: MakeStage, adapter: AdapterProcess
) -> None:
    stage = await make_stage("tides", maxima={CHEAP: 3, DEAR: 3})
    await adapter.until_served(stage.namespace, CHEAP)
    # One A100 and one H100 carry 7 req/s at most, three and one 12: 11 need at least that.
    load = stage.load((0, 1), (10, 1), (20, 11), (80, 11), (90, 1), (180, 1))
    await stage.until(
        lambda: stage.counts() == {CHEAP: 3, DEAR: 2} or stage.counts() == {CHEAP: 3, DEAR: 3},
        "the cheap variant is at its maximum and the dear one has grown",
        within_s=90,
    )
    grown = [counts for _, counts in stage.timeline]
    first_dear = next(counts for counts in grown if counts[DEAR] > 1)
    assert first_dear[CHEAP] == 3, stage.timeline

    await stage.until(
        lambda: stage.counts() == {CHEAP: 1, DEAR: 1},
        "both variants are at their minimum again",
        within_s=150,
    )
    shrunk = [counts for _, counts in stage.timeline[len(grown) :]]
    last_dear = next(counts for counts in shrunk if counts[DEAR] == 1)
    assert last_dear[CHEAP] == 3, stage.timeline  # the dearer one went first
    await stage.until(lambda: stage.existing() == 2, "the leaving pods are gone")

    result = await load
    tell(f"{stage.namespace}: {result.requests} requests, failures {dict(result.failures)}")
    assert result.requests > 500
    assert result.failures == {}


async def test_without_the_adapter_counts_hold_and_with_it_they_go_on(
    make_stage: MakeStage, adapter: AdapterProcess
) -> None:
    stage = await make_stage("outage", maxima={CHEAP: 2, DEAR: 3})
    await adapter.until_served(stage.namespace, CHEAP)
    load = stage.load((0, 8), (200, 8))
    await stage.until(
        lambda: stage.counts()[CHEAP] == 2, "the load has moved the count", within_s=60
    )

    adapter.kill()
    # What was on its way when it died may still arrive.
    await asyncio.sleep(HPA_SYNC_S + 1)
    before = stage.counts()
    changes = len(stage.timeline)
    await asyncio.sleep(60 - HPA_SYNC_S - 1)
    assert stage.counts() == before
    assert len(stage.timeline) == changes, stage.timeline
    condition = await stage.hpa_condition(CHEAP, "ScalingActive")
    assert (condition["status"], condition["reason"]) == ("False", "FailedGetExternalMetric")

    await adapter.start()
    more = stage.load((0, 8), (60, 8), seed=2)
    await stage.until(
        lambda: stage.counts()[DEAR] > before[DEAR],
        "more load grows the fleet again",
        within_s=HPA_SYNC_S + 60,
    )
    for clients in (load, more):
        clients.cancel()


async def test_a_replica_that_cannot_be_read_lowers_no_count_and_is_named(
    make_stage: MakeStage, adapter: AdapterProcess, agent: NodeAgent
) -> None:
    stage = await make_stage("blind", maxima={CHEAP: 3, DEAR: 1})
    await adapter.until_served(stage.namespace, CHEAP)
    load = stage.load((0, 10), (40, 10))
    await stage.until(
        lambda: len(stage.pods(CHEAP)) == 3, "three replicas serve", within_s=40 + ONE_STEP_S
    )
    garbage, hanging, _ = stage.pods(CHEAP)
    agent.engine(stage.namespace, garbage).fault = "garbage"
    agent.engine(stage.namespace, hanging).fault = "hang"
    load.cancel()

    # Without the two, the window of 30 s and one step later one replica would be gone.
    began = time.monotonic()
    while time.monotonic() - began < 60:
        assert stage.counts()[CHEAP] == 3, stage.timeline
        await asyncio.sleep(0.5)
    document = await adapter.explain(stage.namespace, CHEAP)
    held = [step["why"] for step in document["decision"]["trail"] if "blind" in step["rule"]]
    assert len(held) == 1
    assert garbage in held[0]
    assert hanging in held[0]
    assert "timed out" in held[0]

    for pod in (garbage, hanging):
        agent.engine(stage.namespace, pod).fault = "none"
    await stage.until(
        lambda: stage.counts()[CHEAP] < 3, "once they are read again, one goes", within_s=60
    )


async def test_a_resource_quota_bounds_what_is_asked_for_so_that_no_pod_is_refused(
    make_stage: MakeStage, adapter: AdapterProcess, control_plane: ControlPlane
) -> None:
    stage = await make_stage("quota", maxima={CHEAP: 3, DEAR: 1})
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "gpus", "namespace": stage.namespace},
        "spec": {"hard": {"requests.nvidia.com/gpu": "3"}},
    }
    await control_plane.apply(quota)
    await adapter.until_served(stage.namespace, CHEAP)
    # One A100 and one H100 carry 7 req/s at most; the quota leaves one device.
    load = stage.load((0, 12), (240, 12))
    await stage.until(lambda: stage.counts()[CHEAP] == 2, "the last device is taken", within_s=90)

    words = "ResourceQuota gpus (3 of 3 requests.nvidia.com/gpu used) of namespace quota has 0"
    began = time.monotonic()
    while words not in json.dumps(await adapter.explain(stage.namespace, CHEAP)):
        assert time.monotonic() - began < 60, "the quota was never named"
        await asyncio.sleep(1)
    assert stage.counts() == {CHEAP: 2, DEAR: 1}

    quota["spec"] = {"hard": {"requests.nvidia.com/gpu": "4"}}
    await control_plane.apply(quota)
    await stage.until(lambda: stage.counts()[CHEAP] == 3, "the larger quota is used", within_s=60)
    events = await control_plane.get("events", "-n", stage.namespace)
    assert not [e["message"] for e in events["items"] if "exceeded quota" in e["message"]]
    load.cancel()


async def test_an_hpa_for_a_variant_that_does_not_exist_is_told_what_does(
    make_stage: MakeStage, adapter: AdapterProcess, control_plane: ControlPlane
) -> None:
    stage = await make_stage("stranger", maxima={CHEAP: 2, DEAR: 2})
    await adapter.until_served(stage.namespace, CHEAP)
    hpa = await control_plane.get("hpa", CHEAP, "-n", stage.namespace)
    (metric,) = hpa["spec"]["metrics"]
    metric["external"]["metric"]["selector"]["matchLabels"] = {"variant_name": "llama-b200"}
    patch = json.dumps({"spec": {"metrics": [metric]}})
    await control_plane.kubectl("patch", "hpa", CHEAP, "-n", stage.namespace, "-p", patch)

    began = time.monotonic()
    while not (told := [m for m in await stage.events(CHEAP) if "llama-b200" in m]):
        assert time.monotonic() - began < 60, "the HPA never said anything"
        await asyncio.sleep(1)
    tell(f"{stage.namespace}: {told[0]}")
    assert "unable to get external metric stranger/wva_desired_replicas" in told[0]
    assert f"{CHEAP}, {DEAR}" in told[0]  # what there is instead
    condition = await stage.hpa_condition(CHEAP, "ScalingActive")
    assert condition["reason"] == "FailedGetExternalMetric"
    assert stage.counts()[CHEAP] == 1

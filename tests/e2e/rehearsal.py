"""Many autoscalers at once under the real HPA controller, and what it makes of scripted values.

``python -m tests.e2e.rehearsal`` records them anew into ``tests/data``.

Their targets are of a kind of its own, whose only controller is this module: so ``status.replicas``
is known at each look. Every read of a metric is a look; the next value of its script is served.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
from aiohttp import web

from tests.e2e.binaries import controlplane
from tests.e2e.cluster import ControlPlane, tell
from tests.hpa_recordings import FILE, Look, Recording, behavior_of, write
from tests.pki import Authority

SYNC_S = 4
DOWN_WINDOW_S = 14
LOOKS = 22
CASES = 240
MANAGER_FLAGS = (
    f"--horizontal-pod-autoscaler-downscale-stabilization={DOWN_WINDOW_S}s",
    "--concurrent-horizontal-pod-autoscaler-syncs=20",
    "--kube-api-qps=1000",
    "--kube-api-burst=1000",
)
MARGIN_S = 0.5
"""An age so near to a window's or a period's end says nothing: the controller's clock is its own."""

_NAMESPACE = "rehearsal"
_GROUP = "rehearsal.e2e"
_TARGETS = f"/apis/{_GROUP}/v1/namespaces/{_NAMESPACE}/targets"
_EXTERNAL = "/apis/external.metrics.k8s.io/v1beta1"
_WITHIN_S = 240.0

# Half a look away from any number of looks.
_WINDOWS_S = (0, 6, 10, 14, 22, 30)
_PERIODS_S = (6, 10, 18, 26)


@dataclass(slots=True)
class Case:
    """An autoscaler with its script, and what has happened.

    Attributes:
        lags: Whether the target's status follows only after the next look.
        script: The values of each look, one per metric; ``None`` stands for an error.
        reads: When each look read, with the status at that time.
        counts: When ``spec.replicas`` became what.
        status_set_s: When the status last was changed.
    """

    name: str
    minimum: int
    maximum: int
    start: int
    ready: int
    target_type: Literal["AverageValue", "Value"]
    targets_milli: tuple[int, ...]
    behavior: Mapping[str, Any] | None
    lags: bool
    script: Sequence[tuple[int | None, ...]]
    reads: list[tuple[float, int]] = field(default_factory=list)
    counts: list[tuple[float, int]] = field(default_factory=list)
    status: int = 0
    status_set_s: float = 0.0
    unsure_from: int | None = None


def cases(count: int, seed: int = 1) -> list[Case]:
    """Return so many different autoscalers with their scripts."""
    chance = random.Random(seed)
    return [_case(f"t{number}", chance) for number in range(count)]


def _case(name: str, chance: random.Random) -> Case:
    kind: Literal["AverageValue", "Value"] = chance.choice(
        ("AverageValue", "AverageValue", "Value")
    )
    minimum, maximum = chance.choice(((0, 12), (0, 25), (1, 20), (1, 40), (2, 30), (3, 9)))
    targets = tuple(
        chance.choice((1000, 1000, 500, 16_000, 333)) for _ in range(chance.choice((1, 1, 2)))
    )
    behavior = chance.choice((None, "up", "down", "both", "both", "both"))
    rules: dict[str, Any] | None = None if behavior is None else {}
    if rules is not None and behavior in ("up", "both"):
        rules["scaleUp"] = _direction(chance)
    if rules is not None and behavior in ("down", "both"):
        rules["scaleDown"] = _direction(chance)
    ready = chance.randint(1, 6) if kind == "Value" else 0
    start = chance.randint(max(1, minimum), maximum)
    if kind == "Value":
        start = min(start, 8)
    start = max(start, minimum)
    return Case(
        name,
        minimum,
        maximum,
        start,
        ready,
        kind,
        targets,
        rules,
        chance.random() < 0.3,
        _script(chance, kind, targets, start),
        status=start,
    )


def _direction(chance: random.Random) -> dict[str, Any]:
    rules: dict[str, Any] = {}
    if chance.random() < 0.8:
        rules["stabilizationWindowSeconds"] = chance.choice(_WINDOWS_S)
    if chance.random() < 0.6:
        rules["selectPolicy"] = chance.choice(("Max", "Min", "Min", "Disabled"))
    if chance.random() < 0.7:
        rules["policies"] = [
            {
                "type": kind,
                "value": chance.choice((1, 2, 3, 5) if kind == "Pods" else (10, 34, 50, 100, 150)),
                "periodSeconds": chance.choice(_PERIODS_S),
            }
            for kind in chance.choices(("Pods", "Percent"), k=chance.choice((1, 1, 2, 3)))
        ]
        for policy in rules["policies"]:
            # Downwards more than all is no percentage.
            policy["value"] = min(policy["value"], 100)
    if chance.random() < 0.5:
        rules["tolerance"] = chance.choice((0, 0.05, 0.25))
    return rules


def _script(
    chance: random.Random, kind: str, targets: Sequence[int], start: int
) -> list[tuple[int | None, ...]]:
    """Return a load that drifts, jumps and falls to nothing, as values per metric."""
    load, script, asleep = float(start), [], 0
    for _ in range(LOOKS + 8):
        asleep = max(asleep - 1, 0) or (7 if chance.random() < 0.08 else 0)
        load = max(
            0.0,
            chance.choice(
                (
                    load,
                    load * 1.1,
                    load * 0.9,
                    load + chance.uniform(-2, 2),
                    load * chance.uniform(0.3, 3),
                    float(chance.randint(0, 20)),
                    0.0 if chance.random() < 0.3 else load,
                )
            ),
        )
        load = 0.0 if asleep > 1 else min(load, 60.0)
        values: list[int | None] = []
        for target in targets:
            share = load if kind == "AverageValue" else load / max(start, 1)
            value = round(share * target * chance.choice((1, 1, 0.8)))
            values.append(None if chance.random() < 0.06 else value)
        script.append(tuple(values))
    return script


class Rehearsal:
    """The stage of all cases: their targets, the values, and the notes taken."""

    def __init__(self, plane: ControlPlane, played: Sequence[Case]) -> None:
        self._plane = plane
        self._cases = {case.name: case for case in played}
        self._began = time.monotonic()
        context = ssl.create_default_context(cafile=str(plane.ca_file))
        context.load_cert_chain(*plane.admin)
        self._client = httpx.AsyncClient(
            base_url=plane.url,
            verify=context,
            timeout=httpx.Timeout(30, read=None),
            limits=httpx.Limits(max_connections=20),
            trust_env=False,
        )
        self._tasks: set[asyncio.Task[None]] = set()

    async def record(self) -> list[Recording]:
        """Play all scripts and return what the controller did."""
        try:
            async with self._served() as port:
                await self._set_up(port)
                watching = asyncio.create_task(self._watch())
                await asyncio.sleep(1)
                await self._all(self._create_hpa(case) for case in self._cases.values())
                tell(f"{len(self._cases)} autoscalers at {self._now():.1f} s")
                while not all(len(case.reads) > LOOKS for case in self._cases.values()):
                    self._plane.require_alive()
                    if self._now() > _WITHIN_S or watching.done():
                        break
                    await asyncio.sleep(0.5)
                tell(f"looked {LOOKS} times at each at {self._now():.1f} s")
                watching.cancel()
                with suppress(asyncio.CancelledError):
                    await watching
        finally:
            await self._client.aclose()
        return [self._recording(case) for case in self._cases.values()]

    def _now(self) -> float:
        return time.monotonic() - self._began

    # The metrics.

    @asynccontextmanager
    async def _served(self) -> AsyncIterator[int]:
        app = web.Application()
        app.router.add_get(_EXTERNAL, self._discover)
        app.router.add_get(_EXTERNAL + "/namespaces/{namespace}/{metric}", self._answer)
        folder = self._plane.folder / "rehearsal"
        folder.mkdir()
        self._authority = Authority(folder, "rehearsal-ca")
        pair = self._authority.issue("rehearsal", hosts=[f"metrics.{_NAMESPACE}.svc"])
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*pair)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        try:
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()

    async def _discover(self, _: web.Request) -> web.Response:
        resource = {
            "name": "externalmetrics",
            "singularName": "",
            "namespaced": True,
            "kind": "ExternalMetricValueList",
            "verbs": ["get"],
        }
        return web.json_response(
            {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": "external.metrics.k8s.io/v1beta1",
                "resources": [resource],
            }
        )

    async def _answer(self, request: web.Request) -> web.Response:
        metric = request.match_info["metric"]
        name, _, index = metric.partition("-")
        case = self._cases[name]
        if index == "0":
            case.reads.append((self._now(), case.status))
            if case.unsure_from is None and self._now() - case.status_set_s < MARGIN_S:
                # It may have read the target before its status was changed.
                case.unsure_from = len(case.reads) - 1
            if case.lags and case.counts and case.counts[-1][1] != case.status:
                self._start(self._set_status(case, case.counts[-1][1]))
        look = min(len(case.reads) - 1, len(case.script) - 1)
        value = case.script[look][int(index)]
        if value is None:
            return web.json_response({"message": "scripted"}, status=404)
        item = {
            "metricName": metric,
            "metricLabels": {},
            "timestamp": "2026-01-01T00:00:00Z",
            "value": f"{value}m",
        }
        return web.json_response(
            {
                "kind": "ExternalMetricValueList",
                "apiVersion": "external.metrics.k8s.io/v1beta1",
                "metadata": {},
                "items": [item],
            }
        )

    # The targets.

    async def _set_up(self, port: int) -> None:
        await self._plane.kubectl("create", "namespace", _NAMESPACE)
        await self._plane.apply(_DEFINITION, *self._registration(port))
        wait = ("wait", "--timeout=60s")
        await self._plane.kubectl(*wait, "--for=condition=Established", f"crd/targets.{_GROUP}")
        await self._plane.kubectl(
            *wait, "--for=condition=Available", "apiservice/v1beta1.external.metrics.k8s.io"
        )
        await self._all(self._create(case) for case in self._cases.values())
        tell(f"{len(self._cases)} targets at {self._now():.1f} s")

    def _registration(self, port: int) -> tuple[Mapping[str, Any], ...]:
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "metrics", "namespace": _NAMESPACE},
            "spec": {"type": "ExternalName", "externalName": "localhost"},
        }
        bundle = base64.b64encode(self._authority.file.read_bytes()).decode()
        api = {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": "v1beta1.external.metrics.k8s.io"},
            "spec": {
                "group": "external.metrics.k8s.io",
                "version": "v1beta1",
                "service": {"name": "metrics", "namespace": _NAMESPACE, "port": port},
                "caBundle": bundle,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
            },
        }
        # So that the HPA controller may read what is not its own.
        role = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "rehearsal"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "cluster-admin",
            },
            "subjects": [
                {
                    "kind": "ServiceAccount",
                    "name": "horizontal-pod-autoscaler",
                    "namespace": "kube-system",
                }
            ],
        }
        return service, api, role

    async def _create(self, case: Case) -> None:
        target = {
            "apiVersion": f"{_GROUP}/v1",
            "kind": "Target",
            "metadata": {"name": case.name},
            "spec": {"replicas": case.start},
        }
        await self._send("POST", _TARGETS, target)
        await self._set_status(case, case.start)
        for number in range(case.ready):
            pod = f"{case.name}-{number}"
            await self._send(
                "POST",
                f"/api/v1/namespaces/{_NAMESPACE}/pods",
                {
                    "metadata": {"name": pod, "labels": {"target": case.name}},
                    # Nobody is to place it or take its token away.
                    "spec": {
                        "schedulerName": "nobody",
                        "automountServiceAccountToken": False,
                        "containers": [{"name": "one", "image": "none"}],
                    },
                },
            )
            ready = {"type": "Ready", "status": "True"}
            await self._patch_status(
                f"/api/v1/namespaces/{_NAMESPACE}/pods/{pod}",
                {"phase": "Running", "conditions": [ready]},
            )

    async def _create_hpa(self, case: Case) -> None:
        spec: dict[str, Any] = {
            "scaleTargetRef": {
                "apiVersion": f"{_GROUP}/v1",
                "kind": "Target",
                "name": case.name,
            },
            "minReplicas": case.minimum,
            "maxReplicas": case.maximum,
            "metrics": [
                {
                    "type": "External",
                    "external": {
                        "metric": {"name": f"{case.name}-{index}"},
                        "target": {
                            "type": case.target_type,
                            case.target_type[0].lower() + case.target_type[1:]: f"{target}m",
                        },
                    },
                }
                for index, target in enumerate(case.targets_milli)
            ],
        }
        if case.behavior is not None:
            spec["behavior"] = case.behavior
        await self._send(
            "POST",
            f"/apis/autoscaling/v2/namespaces/{_NAMESPACE}/horizontalpodautoscalers",
            {"metadata": {"name": case.name}, "spec": spec},
        )

    async def _watch(self) -> None:
        """Take note of every count that the controller sets, and let the status follow."""
        async with self._client.stream("GET", _TARGETS, params={"watch": "1"}) as response:
            async for line in response.aiter_lines():
                target = json.loads(line)["object"]
                case = self._cases[target["metadata"]["name"]]
                count = target["spec"]["replicas"]
                if count == (case.counts[-1][1] if case.counts else case.start):
                    continue
                case.counts.append((self._now(), count))
                if not case.lags:
                    self._start(self._set_status(case, count))

    async def _set_status(self, case: Case, replicas: int) -> None:
        await self._patch_status(
            f"{_TARGETS}/{case.name}", {"replicas": replicas, "selector": f"target={case.name}"}
        )
        case.status, case.status_set_s = replicas, self._now()

    async def _patch_status(self, path: str, status: Mapping[str, Any]) -> None:
        request = self._client.build_request(
            "PATCH",
            f"{path}/status",
            content=json.dumps({"status": status}),
            headers={"content-type": "application/merge-patch+json"},
        )
        try:
            response = await self._client.send(request)
        except httpx.ReadError:
            # The server may end an idle connection just as it is used again.
            response = await self._client.send(request)
        response.raise_for_status()

    async def _send(self, method: str, path: str, document: Mapping[str, Any]) -> None:
        response = await self._client.request(method, path, json=document)
        assert response.status_code < 300, response.text

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _all(self, works: Any) -> None:
        """Do all of them, ten at a time."""
        gate = asyncio.Semaphore(10)

        async def one(work: Any) -> None:
            async with gate:
                await work

        await asyncio.gather(*(one(work) for work in works))

    # What is told of it.

    def _recording(self, case: Case) -> Recording:
        looks: list[Look] = []
        count = case.start
        pairs = zip(case.reads, case.reads[1:], strict=False)
        for number, ((at_s, status), (next_s, _)) in enumerate(pairs):
            if number >= min(LOOKS, len(case.script)) or number == case.unsure_from:
                break
            for changed_s, replicas in case.counts:
                if at_s < changed_s < next_s:
                    count = replicas
            looks.append(Look(round(at_s, 2), status, case.script[number], count))
        recording = Recording(
            case.name,
            case.minimum,
            case.maximum,
            case.start,
            case.ready,
            case.target_type,
            case.targets_milli,
            case.behavior,
            float(DOWN_WINDOW_S),
            tuple(looks),
        )
        return _certain(recording)


def _certain(recording: Recording) -> Recording:
    """Return the recording up to the first look at which an age is too near to an edge."""
    behavior = behavior_of(recording)
    edges_s = {recording.down_window_s}
    if behavior is not None:
        for direction in (behavior.up, behavior.down):
            edges_s |= {rate.period_s for rate in direction.rates}
            edges_s |= {direction.window_s or 0.0}
    edges_s.discard(0.0)
    for number, look in enumerate(recording.looks):
        ages_s = [look.at_s - earlier.at_s for earlier in recording.looks[:number]]
        if any(abs(age_s - edge_s) < MARGIN_S for age_s in ages_s for edge_s in edges_s):
            entry = {name: getattr(recording, name) for name in Recording.__slots__}
            return Recording(**{**entry, "looks": recording.looks[:number]})
    return recording


_DEFINITION: Mapping[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": f"targets.{_GROUP}"},
    "spec": {
        "group": _GROUP,
        "names": {"kind": "Target", "plural": "targets", "singular": "target"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {"replicas": {"type": "integer"}},
                            },
                            "status": {
                                "type": "object",
                                "properties": {
                                    "replicas": {"type": "integer"},
                                    "selector": {"type": "string"},
                                },
                            },
                        },
                    }
                },
                "subresources": {
                    "status": {},
                    "scale": {
                        "specReplicasPath": ".spec.replicas",
                        "statusReplicasPath": ".status.replicas",
                        "labelSelectorPath": ".status.selector",
                    },
                },
            }
        ],
    },
}


async def _main() -> None:
    with tempfile.TemporaryDirectory(prefix="wva-rehearsal-") as folder:
        plane = ControlPlane(
            controlplane(), Path(folder), hpa_sync_s=SYNC_S, manager_flags=MANAGER_FLAGS
        )
        try:
            plane.start()
            recordings = await Rehearsal(plane, cases(CASES)).record()
        finally:
            plane.stop()
    write((recording for recording in recordings if recording.looks), FILE)
    tell(f"{len(recordings)} recordings in {FILE}")


if __name__ == "__main__":
    asyncio.run(_main())

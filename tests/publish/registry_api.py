"""An API server on loopback that keeps one APIService, and answers as who it names would."""

from __future__ import annotations

import base64
import json
from typing import Any

from aiohttp import web

from tests.collect.apiserver import HPAS, ApiServer, Document, _refusal
from wva_adapter.publish.apiservice import API_SERVICE, API_SERVICE_PATH, API_SERVICES_PATH

DEPLOYMENTS = "/apis/apps/v1/deployments"
REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
SETTINGS = "/api/v1/namespaces/wva-system/configmaps/wva-adapter"
VALUES = "/apis/external.metrics.k8s.io/v1beta1/namespaces/"
OURS, KEDAS = b"our authority", b"keda's authority"


def bundle(pem: bytes) -> str:
    return base64.b64encode(pem).decode()


def registered(
    name: str = "keda-metrics-apiserver", namespace: str = "keda", ca: bytes = KEDAS
) -> Document:
    """An APIService as Helm leaves it, with more to it than anybody needs."""
    return {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {
            "name": API_SERVICE,
            "labels": {"app.kubernetes.io/managed-by": "Helm"},
            "annotations": {"meta.helm.sh/release-name": "keda"},
            "ownerReferences": [{"kind": "Keda", "name": "keda", "uid": "u", "apiVersion": "v1"}],
            "uid": "8a2f",
        },
        "spec": {
            "group": "external.metrics.k8s.io",
            "version": "v1beta1",
            "groupPriorityMinimum": 1234,
            "versionPriority": 56,
            "service": {"name": name, "namespace": namespace, "port": 443},
            "caBundle": bundle(ca),
        },
    }


class RegistryApi(ApiServer):
    """Takes writes of the APIService as the real one does, versions included.

    Attributes:
        reached: Whether the owner is reached, by name of its Service.
        values: Which metrics have a value, by name of the owner's Service.
        allowed: Whether access reviews are granted.
        reviewed: Spec of each review.
        settings: Of the adapter, as its ConfigMap has them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reached: dict[str, bool] = {}
        self.values: dict[str, set[str]] = {}
        self.allowed = True
        self.reviewed: list[dict[str, Any]] = []
        self.settings: str | None = "cluster: {}"

    @property
    def service(self) -> Document | None:
        return self._objects.get(API_SERVICES_PATH, {}).get(API_SERVICE)

    def register(self, document: Document, manager: str = "helm") -> None:
        name = document["spec"]["service"]["name"]
        reached = self.reached.get(name, True)
        condition = {
            "type": "Available",
            "status": str(reached),
            "reason": "Passed" if reached else "FailedDiscoveryCheck",
            "message": "all checks passed" if reached else "bad certificate",
        }
        written = {"manager": manager, "fieldsV1": {"f:spec": {"f:caBundle": {}}}}
        metadata = {**document["metadata"], "managedFields": [written]}
        self.put(
            API_SERVICES_PATH,
            {**document, "metadata": metadata, "status": {"conditions": [condition]}},
        )

    def run_keda(self, *arguments: str) -> None:
        containers = [{"command": ["/keda"], "args": list(arguments)}]
        self.put(
            DEPLOYMENTS,
            {
                "metadata": {"name": "keda-operator", "namespace": "keda"},
                "spec": {"template": {"spec": {"containers": containers}}},
            },
        )

    def read_by_an_hpa(self, metric: str) -> None:
        selector = {
            "matchLabels": {"scaledobject.keda.sh/name": "queue"},
            "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}],
        }
        external = {"metric": {"name": metric, "selector": selector}}
        self.put(
            HPAS,
            {
                "metadata": {"name": f"hpa-{metric}", "namespace": "chat"},
                "spec": {"metrics": [{"type": "External", "external": external}]},
            },
        )

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path in self.refused:
            return await super()._answer(request)
        if path == API_SERVICE_PATH:
            if self.service is None:
                return _refusal(404, "not found")
            return web.json_response(self.service)
        if path == SETTINGS:
            if self.settings is None:
                return _refusal(404, "not found")
            return web.json_response({"data": {"config.yaml": self.settings}})
        if path.startswith(VALUES):
            self.asked.append((path, dict(request.query)))
            assert self.service is not None
            owner = self.service["spec"]["service"]["name"]
            if path.rpartition("/")[2] in self.values.get(owner, ()):
                return web.json_response({"items": []})
            return _refusal(503, f"{owner} does not know it")
        if path == DEPLOYMENTS and "labelSelector" in request.query:
            return web.json_response({"items": list(self._objects.get(path, {}).values())})
        return await super()._answer(request)

    async def _write(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path == REVIEWS:
            spec = json.loads(await request.read())["spec"]
            self.reviewed.append(spec)
            return web.json_response({"status": {"allowed": self.allowed}}, status=201)
        if path not in (API_SERVICES_PATH, API_SERVICE_PATH) or path in self.refused:
            return await super()._write(request)
        body = json.loads(await request.read() or b"{}")
        self.written.append((request.method, path, body))
        if request.method == "DELETE":
            self.remove(API_SERVICES_PATH, API_SERVICE)
            return web.json_response({})
        now = self.service
        version = body["metadata"].get("resourceVersion")
        if now is not None and version != now["metadata"]["resourceVersion"]:
            return _refusal(409, "the object has been modified")
        if request.method == "PATCH":
            assert now is not None
            body = {**now, "spec": {**now["spec"], **body["spec"]}}
        self.register(body, "wva-adapter")
        return web.json_response(self.service)

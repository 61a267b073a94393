"""KEDA as processes beside the control plane: its operator and its metrics server."""

from __future__ import annotations

import asyncio
import base64
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.adapter import API_SERVICE
from tests.e2e.binaries import keda
from tests.e2e.cluster import ControlPlane, free_port, tell
from tests.pki import Authority

NAMESPACE = "keda"

_OPERATOR = f"keda-operator.{NAMESPACE}.svc"
_METRICS_SERVER = "keda-metrics-apiserver"


class KedaProcesses:
    """KEDA 2.21 with the rights of an admin; it ends with the control plane.

    Args:
        folder: Where its certificates go.
    """

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self._plane = plane
        self._folder = folder
        self._port = free_port()

    @property
    def port(self) -> int:
        """Where its metrics server answers."""
        return self._port

    async def define(self) -> None:
        """Apply the definitions of its kinds."""
        await self._plane.kubectl("apply", "--server-side", "-f", str(keda().definitions))

    async def start(self, trusted: Path, environment: Mapping[str, str]) -> None:
        """Start it and return once it is ready; its kinds must be defined.

        Args:
            trusted: The file of an authority that its scalers are to trust.
            environment: Variables that the operator gets.
        """
        began = time.monotonic()
        programs = keda()
        await self._plane.kubectl("create", "namespace", NAMESPACE)
        certificates, authorities = self._folder / "certificates", self._folder / "ca"
        for folder in (certificates, authorities):
            folder.mkdir(parents=True)
        shutil.copy(trusted, authorities)
        self._authority = Authority(certificates, "ca")
        certificate, key = self._authority.issue(
            "tls", hosts=[_OPERATOR, f"{_METRICS_SERVER}.{NAMESPACE}.svc", "localhost"]
        )
        health, metrics_service = free_port(), free_port()
        self._plane.launch(
            "keda-operator",
            f"--kubeconfig={self._plane.kubeconfig}",
            f"--cert-dir={certificates}",
            f"--ca-dir={authorities}",
            "--leader-elect=false",
            f"--health-probe-bind-address=127.0.0.1:{health}",
            "--metrics-bind-address=0",
            f"--metrics-service-bind-address=127.0.0.1:{metrics_service}",
            program=programs.operator,
            environment={**_environment("keda-operator-0"), **environment},
        )
        self._plane.launch(
            _METRICS_SERVER,
            *(
                f"--{what}kubeconfig={self._plane.kubeconfig}"
                for what in ("", "lister-", "authentication-", "authorization-")
            ),
            "--bind-address=127.0.0.1",
            f"--secure-port={self._port}",
            "--port=0",
            f"--cert-dir={certificates}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            f"--client-ca-file={self._authority.file}",
            f"--metrics-service-address=localhost:{metrics_service}",
            f"--metrics-service-grpc-authority={_OPERATOR}",
            program=programs.metrics_server,
            environment=_environment("keda-metrics-apiserver-0"),
        )
        async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
            while True:
                self._plane.require_alive()
                with suppress(httpx.HTTPError):
                    if (await client.get(f"http://127.0.0.1:{health}/readyz")).status_code == 200:
                        break
                assert time.monotonic() - began < 60, self._plane.tail("keda-operator")
                await asyncio.sleep(0.1)
        tell(f"KEDA ready after {time.monotonic() - began:.1f} s")

    async def register(self) -> None:
        """Become who answers external.metrics.k8s.io, by a Service that leads to this machine."""
        await self._plane.apply(*self._registration())
        await self._plane.kubectl(
            "wait", "--for=condition=Available", f"apiservice/{API_SERVICE}", "--timeout=60s"
        )

    def _registration(self) -> list[dict[str, Any]]:
        rbac, reader = "rbac.authorization.k8s.io", "keda-external-metrics-reader"
        bundle = base64.b64encode(self._authority.file.read_bytes()).decode()
        service = {"name": _METRICS_SERVER, "namespace": NAMESPACE}
        return [
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": service,
                "spec": {"type": "ExternalName", "externalName": "localhost"},
            },
            {
                "apiVersion": "apiregistration.k8s.io/v1",
                "kind": "APIService",
                "metadata": {
                    "name": API_SERVICE,
                    "labels": {"app.kubernetes.io/part-of": "keda-operator"},
                },
                "spec": {
                    "group": "external.metrics.k8s.io",
                    "version": "v1beta1",
                    "groupPriorityMinimum": 100,
                    "versionPriority": 100,
                    "caBundle": bundle,
                    "service": {**service, "port": self._port},
                },
            },
            {
                "apiVersion": f"{rbac}/v1",
                "kind": "ClusterRole",
                "metadata": {"name": reader},
                "rules": [
                    {
                        "apiGroups": ["external.metrics.k8s.io"],
                        "resources": ["*"],
                        "verbs": ["*"],
                    }
                ],
            },
            {
                "apiVersion": f"{rbac}/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": "keda-hpa-controller-external-metrics"},
                "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": reader},
                "subjects": [
                    {
                        "kind": "ServiceAccount",
                        "name": "horizontal-pod-autoscaler",
                        "namespace": "kube-system",
                    }
                ],
            },
        ]


def _environment(pod: str) -> dict[str, str]:
    return {
        "POD_NAMESPACE": NAMESPACE,
        "KEDA_CLUSTER_OBJECT_NAMESPACE": NAMESPACE,
        "WATCH_NAMESPACE": "",
        "POD_NAME": pod,
    }

"""The adapter as a process of its own, with no more permissions than it is installed with."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import httpx
import yaml

from tests.e2e.cluster import ControlPlane, KubectlError, end_group, free_port, tell

ROOT = Path(__file__).parents[2]
NAMESPACE = "wva-system"
SERVICE = "wva-adapter"
API_SERVICE = "v1beta1.external.metrics.k8s.io"

PROGRAM = Path(sys.executable).parent / "wva-adapter"


class AdapterProcess:
    """``wva-adapter serve`` on loopback, as the service account of the manifests.

    Args:
        folder: Where its settings, certificates and log go.
        settings: Beside those that every story has.
    """

    def __init__(
        self, plane: ControlPlane, folder: Path, settings: Mapping[str, Any] | None = None
    ) -> None:
        folder.mkdir()
        self._name = "adapter"
        self._settings = settings or {}
        self._plane = plane
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    @property
    def url(self) -> str:
        return f"https://localhost:{self._port}"

    @property
    def log(self) -> Path:
        return self._folder / f"{self._name}.log"

    @property
    def port(self) -> int:
        return self._port

    @property
    def settings_file(self) -> Path:
        return self._folder / f"{self._name}.yaml"

    @property
    def ca(self) -> Path:
        """The file of the authority that signed its certificate."""
        return self._folder / "certificates" / "ca.crt"

    def beside(self, name: str, settings: Mapping[str, Any]) -> AdapterProcess:
        """Return one more process at the same port and with the same account; it has its own log."""
        other = copy.copy(self)
        other._name = name
        other._settings = {**self._settings, **settings}
        other._process = other._log = None
        other._write_settings()
        return other

    async def install(self) -> None:
        """Apply the manifests and start."""
        await self._plane.kubectl("apply", "-k", str(ROOT / "manifests" / "base"))
        token = await self._plane.kubectl(
            "create", "token", SERVICE, "-n", NAMESPACE, "--duration=3h"
        )
        self._plane.write_kubeconfig(self._folder / "kubeconfig", token=token.strip())
        self._write_settings()
        await self.start()

    async def register(self) -> None:
        """Become who answers external.metrics.k8s.io, by a Service that leads to this machine."""
        await self._plane.kubectl("apply", "-k", str(self._write_overlay()))
        began = time.monotonic()
        await self._plane.kubectl(
            "wait", "--for=condition=Available", f"apiservice/{API_SERVICE}", "--timeout=60s"
        )
        tell(f"APIService available after {time.monotonic() - began:.1f} s")

    def _write_settings(self) -> None:
        settings = {
            "listen": {"address": "127.0.0.1", "port": self._port},
            "tls": {"directory": "certificates", "names": [f"{SERVICE}.{NAMESPACE}.svc"]},
            "cluster": {"kubeconfig": "kubeconfig"},
            "memory": {"config_map": f"{NAMESPACE}/wva-adapter-memory", "period": "5s"},
            "shutdown": {"lame_duck": "0s"},
            "scrape_period": "1s",
            "scrape_timeout": "1s",
            "cycle": "1s",
            "max_age": "20s",
            "policy": {
                "analysis": "saturation",
                "peak_window": "10s",
                "scale_down_window": "30s",
                "down_period": "10s",
            },
            **self._settings,
        }
        self.settings_file.write_text(yaml.safe_dump(settings))

    def _write_overlay(self) -> Path:
        """Return a kustomization of the manifests whose Service and APIService lead to us."""
        overlay = self._folder / "overlay"
        overlay.mkdir()
        bundle = self.ca.read_bytes()
        service = {"type": "ExternalName", "externalName": "localhost"}
        document = {
            # Kustomize takes no absolute paths.
            "resources": [
                str(Path(*[".."] * len(overlay.resolve().parts[1:])) / part.relative_to("/"))
                for part in (ROOT / "manifests" / "base", ROOT / "apiservice")
            ],
            "patches": [
                {
                    "target": {"kind": "Service"},
                    "patch": yaml.safe_dump([{"op": "replace", "path": "/spec", "value": service}]),
                },
                {
                    "target": {"kind": "APIService"},
                    "patch": yaml.safe_dump(
                        [
                            {"op": "replace", "path": "/spec/service/port", "value": self._port},
                            {
                                "op": "add",
                                "path": "/spec/caBundle",
                                "value": base64.b64encode(bundle).decode(),
                            },
                        ]
                    ),
                },
            ],
        }
        (overlay / "kustomization.yaml").write_text(yaml.safe_dump(document))
        return overlay

    async def begin(self) -> None:
        """Start the process; return once it listens, which with ``reuse_port`` it does when ready."""
        already = self.log.stat().st_size if self.log.exists() else 0
        process = self._process = self._launch()
        deadline = time.monotonic() + 30
        while b'"event": "serving"' not in self.log.read_bytes()[already:]:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self._name} does not listen:\n{self.tail()}")
            await asyncio.sleep(0.05)

    async def start(self) -> None:
        """Start the process; return once it is ready."""
        began = time.monotonic()
        process = self._process = self._launch()
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"adapter ended with {process.returncode}:\n{self.tail()}")
            try:
                if (await self.get("/readyz")).status_code == 200:
                    break
            except (httpx.TransportError, FileNotFoundError):
                pass
            if time.monotonic() - began > 30:
                raise RuntimeError(f"adapter not ready after 30 s:\n{self.tail()}")
            await asyncio.sleep(0.1)
        tell(f"adapter ready after {time.monotonic() - began:.1f} s")

    def _launch(self) -> subprocess.Popen[bytes]:
        self._log = self.log.open("ab")
        return subprocess.Popen(
            [str(PROGRAM), "serve", "--config", str(self.settings_file)],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            # It is started often: most of a start is reading sources where none keeps bytecode.
            env={
                **os.environ,
                "PYTHONDONTWRITEBYTECODE": "",
                "PYTHONPYCACHEPREFIX": str(self._folder.parent / "bytecode"),
            },
            start_new_session=True,
        )

    async def end(self, *, within_s: float = 30) -> int:
        """Tell the process to end; return its status once it has."""
        assert self._process is not None
        self._process.terminate()
        status = await asyncio.to_thread(self._process.wait, within_s)
        self._close()
        return status

    def kill(self) -> None:
        """End the process as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._close()

    def stop(self) -> None:
        """End the process in order."""
        if self._process is not None:
            end_group(self._process)
        self._close()

    def _close(self) -> None:
        self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def tail(self, lines: int = 20) -> str:
        """Return the last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    async def get(
        self, path: str, *, token: str | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Ask the process itself, past the API server: with this token or, without, as the admin.

        Args:
            headers: Asks as nobody, with these.
        """
        context = ssl.create_default_context(cafile=str(self.ca))
        said = {"Accept": "application/json", **(headers or {})}
        if token is not None:
            said["Authorization"] = f"Bearer {token}"
        elif headers is None:
            context.load_cert_chain(*self._plane.admin)
        async with httpx.AsyncClient(verify=context, timeout=5, trust_env=False) as client:
            return await client.get(self.url + path, headers=said)

    async def explain(self, namespace: str, variant: str) -> Any:
        """Return what the adapter says about its decision on a variant."""
        response = await self.get(f"/explain/{namespace}/{variant}")
        assert response.status_code == 200, response.text
        return response.json()

    async def metric(self, namespace: str, query: str = "") -> str:
        """Return the desired counts as kubectl gets them from the API server.

        Raises:
            KubectlError: There are none; the message says why.
        """
        path = f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/wva_desired_replicas"
        return await self._plane.kubectl("get", "--raw", path + query)

    async def until_served(self, namespace: str, variant: str, *, within_s: float = 20) -> None:
        """Wait until the API server has a count for the variant."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                await self.metric(namespace, f"?labelSelector=variant_name%3D{variant}")
                return
            except KubectlError:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.5)


async def spoil_ca(plane: ControlPlane) -> None:
    """Have the API server trust another CA than the adapter's."""
    other = base64.b64encode(
        b"-----BEGIN CERTIFICATE-----\nbm90IG91cnM=\n-----END CERTIFICATE-----\n"
    ).decode()
    patch = json.dumps({"spec": {"caBundle": other}})
    await plane.kubectl("patch", "apiservice", API_SERVICE, "--type=merge", "-p", patch)

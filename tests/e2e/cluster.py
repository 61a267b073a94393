"""A real Kubernetes control plane on loopback: etcd, API server, controllers, scheduler, kubectl."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import httpx
import yaml

from tests.pki import Authority, service_account_keys

HPA_SYNC_S = 5
AUDITED = "system:serviceaccount:wva-system:wva-adapter"
"""Whose requests the API server keeps a record of, to be held against its rights."""
_READY_WITHIN_S = 60.0
_ENDS_WITHIN_S = 10.0


class KubectlError(Exception):
    """kubectl ended badly; the message is what it printed."""


def free_port() -> int:
    """Return a loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ControlPlane:
    """One control plane; everything that it started ends with ``stop``.

    Args:
        binary: The one program with all parts in it.
        folder: Where its certificates, data and logs go.
        hpa_sync_s: Seconds between two looks of the HPA controller.
        manager_flags: Of the controller manager, beside those that every one has.
    """

    def __init__(
        self,
        binary: Path,
        folder: Path,
        *,
        hpa_sync_s: int = HPA_SYNC_S,
        manager_flags: Sequence[str] = (),
    ) -> None:
        self._binary = binary
        self._hpa_sync_s = hpa_sync_s
        self._manager_flags = manager_flags
        self.folder = folder
        self.logs = folder / "logs"
        self.kubeconfig = folder / "admin.kubeconfig"
        self._port = free_port()
        self._parts: dict[str, subprocess.Popen[bytes]] = {}
        self._files: list[IO[bytes]] = []

    @property
    def url(self) -> str:
        """Where the API server answers."""
        return f"https://127.0.0.1:{self._port}"

    @property
    def ca_file(self) -> Path:
        """The authority of the API server's certificate."""
        return self._authority.file

    def start(self) -> None:
        """Boot it; return once the API server is ready and all parts live."""
        began = time.monotonic()
        pki = self.folder / "pki"
        for folder in (pki, self.logs):
            folder.mkdir(parents=True)
        self._authority = Authority(pki, "cluster-ca")
        front_authority = self._front_authority = Authority(pki, "front-proxy-ca")
        serving = self._authority.issue(
            "kube-apiserver", hosts=["127.0.0.1", "localhost", "kubernetes.default.svc"]
        )
        front = front_authority.issue("front-proxy-client")
        public, private = service_account_keys(pki)
        admin = self.admin = self._authority.issue("admin", organization="system:masters")
        self.write_kubeconfig(self.kubeconfig, certificate=admin)

        client, peer = free_port(), free_port()
        self.launch(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls=http://127.0.0.1:{client}",
            f"--advertise-client-urls=http://127.0.0.1:{client}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
            "--unsafe-no-fsync",
        )
        self.launch(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{client}",
            f"--secure-port={self._port}",
            "--bind-address=127.0.0.1",
            # Never dialled: it must only be no loopback address.
            "--advertise-address=192.0.2.1",
            "--endpoint-reconciler-type=none",
            f"--tls-cert-file={serving[0]}",
            f"--tls-private-key-file={serving[1]}",
            f"--client-ca-file={self._authority.file}",
            "--authorization-mode=RBAC",
            f"--service-account-key-file={public}",
            f"--service-account-signing-key-file={private}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.0.0.0/24",
            f"--requestheader-client-ca-file={front_authority.file}",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            f"--proxy-client-cert-file={front[0]}",
            f"--proxy-client-key-file={front[1]}",
            "--enable-priority-and-fairness=false",
            f"--audit-policy-file={self._write_audit_policy()}",
            f"--audit-log-path={self.logs / 'audit.log'}",
        )
        self._wait_until_ready(admin)
        manager = self.folder / "controller-manager.kubeconfig"
        self.write_kubeconfig(
            manager, certificate=self._authority.issue("system:kube-controller-manager")
        )
        self.launch(
            "kube-controller-manager",
            f"--kubeconfig={manager}",
            f"--service-account-private-key-file={private}",
            f"--root-ca-file={self._authority.file}",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            "--secure-port=0",
            "--controllers=*",
            f"--horizontal-pod-autoscaler-sync-period={self._hpa_sync_s}s",
            *self._manager_flags,
        )
        scheduler = self.folder / "scheduler.kubeconfig"
        self.write_kubeconfig(scheduler, certificate=self._authority.issue("system:kube-scheduler"))
        self.launch(
            "kube-scheduler",
            f"--kubeconfig={scheduler}",
            "--leader-elect=false",
            "--secure-port=0",
        )
        self.require_alive()
        tell(f"control plane ready after {time.monotonic() - began:.1f} s on {self.url}")

    def _write_audit_policy(self) -> Path:
        policy = {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [{"level": "Metadata", "users": [AUDITED]}, {"level": "None"}],
        }
        file = self.folder / "audit-policy.yaml"
        file.write_text(yaml.safe_dump(policy))
        return file

    def rotate_front_proxy(self) -> bytes:
        """Give the API server another authority and certificate as a proxy; return the authority.

        It reads the files again by itself.
        """
        former = self._front_authority
        folder = self.folder / f"pki-{time.monotonic_ns()}"
        folder.mkdir()
        authority = Authority(folder, "front-proxy-ca")
        pem = authority.file.read_bytes()
        for file in (authority.file, *authority.issue("front-proxy-client")):
            file.replace(former.file.with_name(file.name))
        return pem

    def launch(
        self,
        part: str,
        *flags: str,
        program: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start one part of the binary, its output into a log of its name.

        Args:
            program: A program of its own to start instead; it ends with the control plane too.
            environment: Variables that it gets beside the others.
        """
        log = (self.logs / f"{part}.log").open("ab")
        self._files.append(log)
        # A group of its own: what it starts itself can be ended with it.
        process = subprocess.Popen(
            [str(self._binary), part, *flags] if program is None else [str(program), *flags],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=self.folder,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        self._parts[part] = process
        return process

    def require_alive(self) -> None:
        """Raise if a part has ended."""
        for part, process in self._parts.items():
            if process.poll() is not None:
                raise RuntimeError(f"{part} ended with {process.returncode}:\n{self.tail(part)}")

    def tail(self, part: str, lines: int = 20) -> str:
        """Return the last lines of a part's log."""
        text = (self.logs / f"{part}.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def _wait_until_ready(self, admin: tuple[Path, Path]) -> None:
        context = ssl.create_default_context(cafile=str(self._authority.file))
        context.load_cert_chain(*admin)
        deadline = time.monotonic() + _READY_WITHIN_S
        with httpx.Client(verify=context, timeout=5, trust_env=False) as client:
            while True:
                self.require_alive()
                with suppress(httpx.HTTPError):
                    if client.get(f"{self.url}/readyz").status_code == 200:
                        return
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"kube-apiserver not ready after {_READY_WITHIN_S:g} s:\n"
                        f"{self.tail('kube-apiserver')}"
                    )
                time.sleep(0.1)

    def stop(self) -> None:
        """End everything that was started, last first, and wait for it."""
        for process in reversed(self._parts.values()):
            end_group(process)
        self._parts.clear()
        for file in self._files:
            file.close()

    def write_kubeconfig(
        self,
        file: Path,
        *,
        certificate: tuple[Path, Path] | None = None,
        token: str | None = None,
    ) -> None:
        """Write a kubeconfig for whoever has this certificate or token."""
        user: dict[str, str] = {}
        if certificate is not None:
            user |= {"client-certificate": str(certificate[0]), "client-key": str(certificate[1])}
        if token is not None:
            user["token"] = token
        ca = base64.b64encode(self._authority.file.read_bytes()).decode()
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "e2e",
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e"}}],
            "clusters": [
                {
                    "name": "e2e",
                    "cluster": {"server": self.url, "certificate-authority-data": ca},
                }
            ],
            "users": [{"name": "e2e", "user": user}],
        }
        file.touch(mode=0o600)
        file.write_text(yaml.safe_dump(document))

    async def kubectl(
        self, *arguments: str, stdin: str | None = None, timeout_s: float = 60.0
    ) -> str:
        """Return what kubectl prints as the cluster's admin.

        Raises:
            KubectlError: It ended with another status than 0.
        """
        process = await asyncio.create_subprocess_exec(
            str(self._binary),
            "kubectl",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # Its discovery cache goes where everything else goes.
            env={
                **os.environ,
                "KUBECONFIG": str(self.kubeconfig),
                "HOME": str(self.folder),
                "KUBECACHEDIR": str(self.folder / "kubectl-cache"),
            },
        )
        try:
            out, err = await asyncio.wait_for(
                process.communicate((stdin or "").encode()), timeout_s
            )
        except TimeoutError:
            process.kill()
            await process.wait()
            raise KubectlError(f"kubectl {' '.join(arguments)}: over {timeout_s:g} s") from None
        if process.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {err.decode().strip()}")
        return out.decode()

    async def get(self, *arguments: str) -> Any:
        """Return the object or list that ``kubectl get`` gives."""
        return json.loads(await self.kubectl("get", *arguments, "-o", "json"))

    async def apply(self, *documents: Mapping[str, Any]) -> None:
        """Create or change these objects."""
        await self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(documents))


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that was started with a group of its own, and what it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_ENDS_WITHIN_S)
            return


def tell(line: str) -> None:
    """Print a line of progress; ``pytest -s`` lets it through."""
    print(f"  · {line}", file=sys.stderr, flush=True)

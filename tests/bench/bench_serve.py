"""What a read of a metric costs: against the Go adapter that is the reference, and plain FastAPI.

All over TLS with a front proxy's certificate, on 8 kept connections; a cost is what the server's
process used, so that the client's own does not count.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median

from tests.bench import Row
from tests.bench.client import Asked, Question, ask, flood
from tests.e2e.binaries import controlplane, reference
from tests.e2e.cluster import ControlPlane, free_port

ROUNDS = 3
FLOOD_S = 2.0
STEADY_S = 5.0
RATE_PER_S = 500.0
NAMESPACE = "/apis/external.metrics.k8s.io/v1beta1/namespaces/default"
HPA = {
    "x-remote-user": "system:serviceaccount:kube-system:horizontal-pod-autoscaler",
    "x-remote-group": "system:serviceaccounts",
    "accept": "application/json, */*",
    "user-agent": "kube-controller-manager/v1.37.2",
}


def rows() -> list[Row]:
    """Measure in turns, so that what else the machine does meets all alike."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wva-bench-")))
        servers = {
            **stack.enter_context(_own(folder / "own")),
            "go": stack.enter_context(_reference(folder / "go")),
        }
        floods: dict[str, list[float]] = {name: [] for name in servers}
        steady: dict[str, list[float]] = {"guarded": [], "go": []}
        for _ in range(ROUNDS):
            for name, (question, pid) in servers.items():
                floods[name].append(flood(question, pid, for_s=FLOOD_S).per_core_s)
            for name, found in steady.items():
                found.append(_steady(*servers[name]).p99_s)
        rate = {name: median(found) for name, found in floods.items()}
        p99_ms = {name: 1000 * median(found) for name, found in steady.items()}
    per_core = "requests/s per busy core"
    return [
        _row("read, TLS and auth, against Go", rate["guarded"], rate["go"], per_core, 0.45),
        _row("read, TLS and auth, against FastAPI", rate["guarded"], rate["plain"], per_core, 4.5),
        _row("read with auth, against without", rate["guarded"], rate["open"], per_core, 0.7),
        {
            "name": f"read p99 at {RATE_PER_S:g} req/s, against Go",
            "value": p99_ms["guarded"],
            "unit": "ms",
            "against": p99_ms["go"],
            "ratio": p99_ms["go"] / p99_ms["guarded"],
            "target": "<= 2x the time",
            "ok": p99_ms["guarded"] <= 2 * p99_ms["go"],
        },
    ]


def _row(name: str, value: float, against: float, unit: str, target: float) -> Row:
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "against": against,
        "ratio": value / against,
        "target": f">= {target:g}x",
        "ok": value / against >= target,
    }


def _steady(question: Question, pid: int) -> Asked:
    return asyncio.run(ask(question, pid, for_s=STEADY_S, rate_per_s=RATE_PER_S))


@contextmanager
def _own(folder: Path) -> Iterator[dict[str, tuple[Question, int]]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.served", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        ports = [int(port) for port in process.stdout.readline().split()]
        context = _as_proxy(folder / "front-proxy.crt", folder / "front-proxy.key")
        path = f"{NAMESPACE}/m1?labelSelector=app%3Da"
        yield {
            name: (Question(port, context, path, HPA), process.pid)
            for name, port in zip(("guarded", "open", "plain"), ports, strict=True)
        }
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


@contextmanager
def _reference(folder: Path) -> Iterator[tuple[Question, int]]:
    binary = reference()
    plane = ControlPlane(controlplane(), folder)
    port = free_port()
    process: subprocess.Popen[bytes] | None = None
    try:
        plane.start()
        flags = [f"--secure-port={port}", "--bind-address=127.0.0.1", f"--cert-dir={folder}/cert"]
        for use in ("authentication", "authorization", "lister"):
            flags.append(f"--{use}-kubeconfig={plane.kubeconfig}")
        with (folder / "logs" / "test-adapter.log").open("wb") as log:
            process = subprocess.Popen([binary, *flags], stdout=log, stderr=log)
        pki = folder / "pki"
        context = _as_proxy(pki / "front-proxy-client.crt", pki / "front-proxy-client.key")
        path = f"{NAMESPACE}/my-external-metric?labelSelector=foo%3Dbar"
        question = Question(port, context, path, HPA)
        _until_answered(question, process.pid)
        yield question, process.pid
    finally:
        if process is not None:
            process.terminate()
            process.wait()
        plane.stop()


def _until_answered(question: Question, pid: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        # Until its caches are filled it knows nobody.
        with suppress(OSError, ValueError):
            socket.create_connection(("127.0.0.1", question.port)).close()
            flood(question, pid, for_s=0.1)
            return
        time.sleep(0.2)
    raise RuntimeError("the reference does not answer")


def _as_proxy(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl._create_unverified_context()
    context.load_cert_chain(certificate, key)
    return context

"""The fixture as a probe meets it: a program, real TLS, and callers of every kind."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

NAMESPACE = "/apis/external.metrics.k8s.io/v1beta1/namespaces/default"
HPA = "system:serviceaccount:kube-system:horizontal-pod-autoscaler"
KUBECTL = {"Accept": "application/json, */*", "User-Agent": "kubectl/v1.35.0"}


class Fixture:
    """A running fixture and its folder."""

    def __init__(self, folder: Path) -> None:
        self.pki = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        command = [sys.executable, "-m", "tests.conformance.fixture"]
        command += ["--pki", str(folder), "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def get(
        self, path: str, caller: str | None = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        context = ssl._create_unverified_context()
        if caller is not None:
            context.load_cert_chain(self.pki / f"{caller}.crt", self.pki / f"{caller}.key")
        with httpx.Client(verify=context, trust_env=False) as client:
            url = f"https://127.0.0.1:{self.port}{path}"
            return client.get(url, headers={**KUBECTL, **(headers or {})})


@pytest.fixture(scope="module")
def fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fixture]:
    running = Fixture(tmp_path_factory.mktemp("pki"))
    try:
        yield running
    finally:
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(10) == 0
        assert running.process.stdout is not None
        running.process.stdout.close()


@pytest.mark.parametrize(
    ("caller", "headers", "code"),
    [
        ("front-proxy", {"X-Remote-User": HPA}, 200),
        ("front-proxy", {"X-Remote-User": "bob"}, 403),
        ("front-proxy", {}, 401),
        ("front-proxy-bad", {"X-Remote-User": HPA}, 401),
        ("alice", {}, 200),
        # Whom a client's own certificate names, no header renames.
        ("alice", {"X-Remote-User": "bob"}, 200),
        (None, {}, 403),
        (None, {"X-Remote-User": HPA}, 403),
        (None, {"Authorization": "Bearer good-1"}, 200),
        (None, {"Authorization": "Bearer bad-1"}, 401),
        (None, {"Authorization": "Basic Zm9vOmJhcg=="}, 403),
    ],
)
def test_callers_are_who_they_prove_to_be(
    fixture: Fixture, caller: str | None, headers: dict[str, str], code: int
) -> None:
    assert fixture.get(f"{NAMESPACE}/m1", caller, headers).status_code == code


def test_a_certificate_of_a_stranger_does_not_even_connect(fixture: Fixture) -> None:
    with pytest.raises(httpx.TransportError):
        fixture.get(f"{NAMESPACE}/m1", "rogue", {"X-Remote-User": HPA})


@pytest.mark.parametrize(
    ("metric", "code", "message"),
    [
        ("boom", 500, "plain go error"),
        ("internal", 500, "Internal error occurred: unable to fetch metrics"),
        ("timeout", 503, "backend unavailable"),
        ("badrequest", 400, "a bad request"),
        ("notfound", 404, "the server could not find the metric notfound for "),
        (
            "slow?timeout=200ms",
            504,
            "Timeout: request did not complete within the allotted timeout",
        ),
    ],
)
def test_troubles_are_told_apart(fixture: Fixture, metric: str, code: int, message: str) -> None:
    began = time.monotonic()
    answer = fixture.get(f"{NAMESPACE}/{metric}", "alice")
    assert answer.status_code == code
    assert answer.json()["message"].startswith(message)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("quantity", "value"),
    [("1500m", "1500m"), ("1000", "1k"), ("1000000", "1M"), ("0", "0"), ("2k", "2k")],
)
def test_quantities_are_canonical(fixture: Fixture, quantity: str, value: str) -> None:
    answer = fixture.get(f"{NAMESPACE}/q-{quantity}", "alice")
    assert [item["value"] for item in answer.json()["items"]] == [value]

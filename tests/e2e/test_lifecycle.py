"""Processes come and go, certificates change, and whoever asks through the API server has answers."""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.adapter import API_SERVICE, NAMESPACE, SERVICE, AdapterProcess
from tests.e2e.cluster import ControlPlane, KubectlError, tell
from tests.e2e.stage import CHEAP, DEAR, Stage, sample_hpas
from tests.pki import Authority
from wva_adapter.emulator.node import NodeAgent

pytestmark = pytest.mark.anyio

VARIANTS = "turnover"
ROLE = "wva-adapter"
RATE_PER_S = 50.0
WORKERS = 5
RESTARTS = 20


class Callers:
    """Clients that ask for counts through the API server, 50 times a second altogether.

    Attributes:
        failed: When, in seconds of the monotonic clock, and what came instead of a count.
    """

    def __init__(self, plane: ControlPlane) -> None:
        self.answered: Counter[str] = Counter()
        self.failed: list[tuple[float, str]] = []
        self._context = ssl.create_default_context(cafile=str(plane.ca_file))
        self._context.load_cert_chain(*plane.admin)
        self._url = (
            f"{plane.url}/apis/external.metrics.k8s.io/v1beta1/namespaces/{VARIANTS}"
            f"/wva_desired_replicas?labelSelector=variant_name%3D{CHEAP}"
        )
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Ask until stopped."""
        await asyncio.gather(*(self._ask(number) for number in range(WORKERS)))

    def stop(self) -> None:
        self._stop.set()

    async def _ask(self, number: int) -> None:
        pause_s = WORKERS / RATE_PER_S
        due_s = time.monotonic() + pause_s * number / WORKERS
        async with httpx.AsyncClient(verify=self._context, timeout=20, trust_env=False) as client:
            while not self._stop.is_set():
                await asyncio.sleep(due_s - time.monotonic())
                due_s = max(due_s + pause_s, time.monotonic())
                try:
                    answer = await client.get(self._url)
                    answer.raise_for_status()
                    (item,) = answer.json()["items"]
                    self.answered[item["value"]] += 1
                except httpx.HTTPStatusError as error:
                    self.failed.append((time.monotonic(), error.response.text))
                except httpx.HTTPError as error:
                    self.failed.append((time.monotonic(), repr(error)))


@asynccontextmanager
async def calling(plane: ControlPlane) -> AsyncIterator[Callers]:
    """Have clients ask while the body runs; the API server has an answer when it begins."""
    callers = Callers(plane)
    running = asyncio.create_task(callers.run())
    try:
        yield callers
    finally:
        callers.stop()
        await running
    tell(f"{callers.answered.total()} reads, {len(callers.failed)} failed {callers.failed[:1]}")


@pytest.fixture(scope="module")
async def variants(
    control_plane: ControlPlane, agent: NodeAgent, adapter: AdapterProcess
) -> AsyncIterator[Stage]:
    """Two variants without load, and afterwards the adapter as it was before."""
    stage = Stage(control_plane, agent, VARIANTS)
    try:
        await stage.start(sample_hpas(VARIANTS, {CHEAP: 2, DEAR: 2}))
        await adapter.until_served(VARIANTS, CHEAP)
        yield stage
        adapter.stop()
        await adapter.start()
        await adapter.until_served(VARIANTS, CHEAP, within_s=60)
    finally:
        await stage.stop()


@asynccontextmanager
async def processes(
    adapter: AdapterProcess, *names: str, **settings: Any
) -> AsyncIterator[list[AdapterProcess]]:
    """Run processes that share the adapter's port, in its place; those in the list are ended."""
    adapter.stop()
    shared = {"listen": {"address": "127.0.0.1", "port": adapter.port, "reuse_port": True}}
    running = [adapter.beside(name, {**shared, **settings}) for name in names]
    try:
        for process in running:
            await process.begin()
        await adapter.until_served(VARIANTS, CHEAP, within_s=60)
        yield running
    finally:
        for process in running:
            process.stop()


async def the_api_service_is_passed(plane: ControlPlane, *, mark: str) -> None:
    """Have the API server look at once whether it reaches us, and see that it does."""
    # Any change of the object makes it look; else it does every 30 s.
    await plane.kubectl("annotate", "apiservice", API_SERVICE, f"e2e/looked={mark}", "--overwrite")
    await asyncio.sleep(2)
    service = await plane.get("apiservice", API_SERVICE)
    (available,) = service["status"]["conditions"]
    assert (available["status"], available["reason"]) == ("True", "Passed"), available


async def test_without_a_plan_the_api_group_stays_and_the_metric_says_why_it_has_no_value(
    control_plane: ControlPlane, adapter: AdapterProcess, variants: Stage
) -> None:
    await control_plane.kubectl("delete", "clusterrolebinding", ROLE)
    adapter.kill()
    try:
        await adapter.begin()
        assert (await adapter.get("/readyz")).status_code == 500
        await the_api_service_is_passed(control_plane, mark="no-plan")
        assert (await adapter.get("/livez")).status_code == 200
        with pytest.raises(KubectlError, match="no plan yet"):
            await adapter.metric(VARIANTS)
        before = variants.counts()
    finally:
        await control_plane.kubectl(
            "create",
            "clusterrolebinding",
            ROLE,
            f"--clusterrole={ROLE}",
            f"--serviceaccount={NAMESPACE}:{SERVICE}",
        )
    await adapter.until_served(VARIANTS, CHEAP, within_s=45)  # by itself, once it may look
    assert variants.counts() == before


async def test_twenty_rolling_restarts_lose_no_request_that_comes_through_the_api_server(
    control_plane: ControlPlane, adapter: AdapterProcess, variants: Stage
) -> None:
    quick = {"shutdown": {"lame_duck": "300ms"}}
    async with (
        processes(adapter, "adapter-0", **quick) as running,
        calling(control_plane) as callers,
    ):
        for number in range(1, RESTARTS + 1):
            following = running[0].beside(f"adapter-{number}", {})
            await following.begin()
            running.append(following)
            assert await running[0].end() == 0
            del running[0]
        await asyncio.sleep(1)
    assert callers.failed == []
    assert callers.answered.total() > RESTARTS * RATE_PER_S


async def test_of_two_replicas_one_may_be_told_to_end_or_be_killed(
    control_plane: ControlPlane, adapter: AdapterProcess, variants: Stage
) -> None:
    # The lame duck's time as it is by default.
    shipped: dict[str, Any] = {"shutdown": {}}
    async with (
        processes(adapter, "ends", "killed", "stays", **shipped) as (ends, killed, _),
        calling(control_plane) as callers,
    ):
        await asyncio.sleep(2)
        began = time.monotonic()
        assert await ends.end() == 0
        assert time.monotonic() - began >= 10
        assert callers.failed == []
        assert len(callers.answered) == 1  # replicas agree

        killed.kill()
        died = time.monotonic()
        await asyncio.sleep(5)
        await the_api_service_is_passed(control_plane, mark="one-killed")
    # What it was answering, or about to, is lost with it; nothing after that.
    assert len(callers.failed) <= WORKERS
    assert all(at_s < died + 1 for at_s, _ in callers.failed), callers.failed


def _write_pair(folder: Path, authority: Authority) -> None:
    """Change certificate, key and CA as a secret does: all at one moment."""
    cert, key = authority.issue("serving", hosts=[f"{SERVICE}.{NAMESPACE}.svc", "localhost"])
    version = folder / f"..{time.monotonic_ns()}"
    version.mkdir()
    (version / "ca.crt").write_bytes(authority.file.read_bytes())
    cert.replace(version / "tls.crt")
    key.replace(version / "tls.key")
    link = folder / "..new"
    link.symlink_to(version.name)
    link.replace(folder / "data")


async def _serves(adapter: AdapterProcess, folder: Path, *, within_s: float = 30) -> None:
    """Wait until new connections are served with the pair in the folder."""
    wanted = ssl.PEM_cert_to_DER_cert((folder / "data" / "tls.crt").read_text())
    deadline = time.monotonic() + within_s
    in_turn = 0
    # The kernel spreads connections over the processes.
    while in_turn < 10:
        pem = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", adapter.port))
        in_turn = in_turn + 1 if ssl.PEM_cert_to_DER_cert(pem) == wanted else 0
        assert time.monotonic() < deadline, "the new certificate is not served"
        await asyncio.sleep(0.05)


async def test_a_new_pair_and_a_new_ca_with_it_lose_no_request(
    control_plane: ControlPlane, adapter: AdapterProcess, variants: Stage, tmp_path: Path
) -> None:
    authorities = [Authority(tmp_path, f"operators-{number}") for number in range(3)]
    secret = tmp_path / "secret"
    secret.mkdir()
    _write_pair(secret, authorities[0])
    given = {
        "tls": {
            "cert_file": str(secret / "data" / "tls.crt"),
            "key_file": str(secret / "data" / "tls.key"),
            "ca_file": str(secret / "data" / "ca.crt"),
            "names": [f"{SERVICE}.{NAMESPACE}.svc"],
            "check_period": "1s",
        }
    }
    async with (
        processes(adapter, "given-1", "given-2", **given),
        calling(control_plane) as callers,
    ):
        for _ in range(3):
            _write_pair(secret, authorities[0])
            await _serves(adapter, secret)
        for authority in authorities[1:]:
            _write_pair(secret, authority)
            await _serves(adapter, secret)
            service = await control_plane.get("apiservice", API_SERVICE)
            bundle = base64.b64decode(service["spec"]["caBundle"])
            assert authority.file.read_bytes().strip() in bundle
            await asyncio.sleep(3)
        await the_api_service_is_passed(control_plane, mark="rotated")
    assert callers.failed == []


async def test_another_authority_of_the_front_proxy_is_followed_within_a_minute(
    control_plane: ControlPlane, adapter: AdapterProcess, variants: Stage
) -> None:
    async with (
        processes(adapter, "proxied", shutdown={"lame_duck": "300ms"}) as running,
        calling(control_plane) as callers,
    ):
        pem = control_plane.rotate_front_proxy()
        began = time.monotonic()
        while True:
            config = await control_plane.get(
                "configmap", "extension-apiserver-authentication", "-n", "kube-system"
            )
            if pem.decode().strip() in config["data"]["requestheader-client-ca-file"]:
                break
            assert time.monotonic() - began < 60, "the API server does not say the new authority"
            await asyncio.sleep(0.5)
        tell(f"the new authority is known after {time.monotonic() - began:.1f} s")
        await asyncio.sleep(3)
        # Connections that are open keep their certificate: have new ones made.
        following = running[0].beside("proxied-anew", {})
        await following.begin()
        running.append(following)
        assert await running[0].end() == 0
        await the_api_service_is_passed(control_plane, mark="proxied-anew")
        recovered = time.monotonic()
        await asyncio.sleep(3)
    assert [told for at_s, told in callers.failed if at_s > min(began + 60, recovered)] == []
    assert callers.answered.total() > 3 * RATE_PER_S

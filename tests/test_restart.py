"""An adapter that takes over from another on the same port loses no request of anybody."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.collect.apiserver import eventually

pytestmark = pytest.mark.anyio

PROGRAM = Path(sys.executable).with_name("wva-adapter")
METRIC = "/apis/external.metrics.k8s.io/v1beta1/namespaces/chat/wva_desired_replicas"
RESTARTS = 20


class Adapter:
    """A process of the adapter.

    Attributes:
        events: What it has logged.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.events: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.events.append(json.loads(line)["event"])

    async def until_it_says(self, event: str) -> None:
        await eventually(lambda: event in self.events, within_s=30)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Tell it to end; return how it did."""
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 30)

    async def close(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reading


@asynccontextmanager
async def started(folder: Path) -> AsyncIterator[Adapter]:
    adapter = await an_adapter(folder)
    try:
        yield adapter
    finally:
        await adapter.close()


async def an_adapter(folder: Path) -> Adapter:
    return Adapter(
        await asyncio.create_subprocess_exec(
            PROGRAM,
            "serve",
            "--config",
            folder / "wva.yaml",
            stderr=asyncio.subprocess.PIPE,
            # Most of a start is reading sources where none keeps bytecode.
            env={
                **os.environ,
                "PYTHONDONTWRITEBYTECODE": "",
                "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
            },
        )
    )


def write_settings(folder: Path, more: str = "") -> int:
    """Write what adapters in this folder are told; return the port that they share."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    (folder / "fleet.yaml").write_text(
        "variants: [{namespace: chat, name: llama, model_id: m, replicas: ['http://127.0.0.1:1']}]"
    )
    (folder / "wva.yaml").write_text(
        f"static_file: fleet.yaml\nlisten: {{port: {port}, reuse_port: true}}\n"
        f"tls: {{directory: certificates}}\ncycle: 100ms\nscrape_timeout: 200ms\n{more}"
    )
    return port


class Callers:
    """Clients that ask without a pause; every second one connects anew for each question."""

    def __init__(self, folder: Path, port: int, count: int = 4) -> None:
        self.answered, self.failed = 0, list[str]()
        self._ended = False
        self._url = f"https://127.0.0.1:{port}{METRIC}"
        self._context = ssl.create_default_context(cafile=folder / "certificates" / "ca.crt")
        self._tasks = [
            asyncio.create_task(self._ask(keep_alive=bool(number % 2))) for number in range(count)
        ]

    async def _ask(self, *, keep_alive: bool) -> None:
        headers = {} if keep_alive else {"connection": "close"}
        async with httpx.AsyncClient(
            verify=self._context, headers=headers, trust_env=False, timeout=10
        ) as client:
            while not self._ended:
                try:
                    answer = await client.get(self._url)
                    if answer.status_code == 200:
                        self.answered += 1
                    else:
                        self.failed.append(answer.text)
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))
                await asyncio.sleep(0.03)

    async def stop(self) -> None:
        """Let each have its answer: cancelled as it connects, it would leave a socket open."""
        self._ended = True
        await asyncio.gather(*self._tasks)


async def test_twenty_restarts_under_load_lose_no_request(tmp_path: Path) -> None:
    port = write_settings(tmp_path, "shutdown: {lame_duck: 300ms}\n")
    current = await an_adapter(tmp_path)
    try:
        await current.until_it_says("serving")
        callers = Callers(tmp_path, port)
        try:
            for _ in range(RESTARTS):
                following = await an_adapter(tmp_path)
                before, current = current, following
                await following.until_it_says("serving")
                assert await before.end() == 0
                await before.close()
        finally:
            await callers.stop()
    finally:
        await current.close()
    assert callers.failed == []
    assert callers.answered > 20 * RESTARTS


async def test_one_that_shares_the_port_listens_when_it_is_ready_and_no_sooner(
    tmp_path: Path,
) -> None:
    port = write_settings(tmp_path, "cluster: {kubeconfig: kubeconfig}\n")
    (tmp_path / "kubeconfig").write_text(
        "{apiVersion: v1, kind: Config, current-context: c, users: [{name: u, user: {}}], "
        "clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}], "
        "contexts: [{name: c, context: {cluster: c, user: u}}]}"
    )
    async with started(tmp_path) as adapter:
        await adapter.until_it_says("cluster not readable")  # so no plan, and nothing to serve
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        assert await adapter.end() == 0
        assert "serving" not in adapter.events


async def test_told_to_end_it_serves_on_while_it_is_not_ready(tmp_path: Path) -> None:
    port = write_settings(tmp_path, "shutdown: {lame_duck: 2s}\n")
    async with started(tmp_path) as adapter:
        await adapter.until_it_says("serving")
        context = ssl.create_default_context(cafile=tmp_path / "certificates" / "ca.crt")
        url = f"https://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, verify=context, trust_env=False) as client:
            assert (await client.get("/readyz")).status_code == 200
            ending = asyncio.create_task(adapter.end())
            await adapter.until_it_says("not ready any more")
            ready = await client.get("/readyz")
            assert ready.status_code == 500
            assert "[-]shutdown failed: reason withheld" in ready.text
            assert "[+]engine ok" in ready.text
            told = await client.get("/readyz/shutdown")
            assert told.text == "internal server error: the process is ending\n"
            alive, value = await client.get("/livez"), await client.get(METRIC)
            assert (alive.status_code, value.status_code) == (200, 200)
            assert value.headers["connection"] == "close"
            assert not ending.done()
        assert await ending == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_it_at_once(tmp_path: Path, number: signal.Signals) -> None:
    write_settings(tmp_path, "shutdown: {lame_duck: 60s}\n")
    async with started(tmp_path) as adapter:
        await adapter.until_it_says("serving")
        adapter.process.send_signal(signal.SIGTERM)
        await adapter.until_it_says("not ready any more")
        began_s = asyncio.get_running_loop().time()
        assert await adapter.end(number) == 1
        assert asyncio.get_running_loop().time() - began_s < 5


async def test_ctrl_c_does_not_wait_for_anybody_to_notice(tmp_path: Path) -> None:
    write_settings(tmp_path, "shutdown: {lame_duck: 60s}\n")
    async with started(tmp_path) as adapter:
        await adapter.until_it_says("serving")
        assert await adapter.end(signal.SIGINT) == 0


async def test_what_was_learned_is_there_after_the_process_was_told_to_end(tmp_path: Path) -> None:
    write_settings(tmp_path, "shutdown: {lame_duck: 0s}\nmemory: {file: memory.json, period: 1h}\n")
    async with started(tmp_path) as first:
        await first.until_it_says("serving")
        await first.until_it_says("variant decided")
        assert await first.end() == 0
    assert "no memory kept yet" in first.events
    async with started(tmp_path) as second:
        await second.until_it_says("serving")
        assert "memory restored" in second.events


async def test_a_damaged_memory_is_set_aside_and_told_by_log_and_explanation(
    tmp_path: Path,
) -> None:
    port = write_settings(tmp_path, "shutdown: {lame_duck: 0s}\nmemory: {file: memory.json}\n")
    (tmp_path / "memory.json").write_text('{"format": "wva-adap')
    async with started(tmp_path) as adapter:
        await adapter.until_it_says("serving")
        assert "memory lost" in adapter.events
        context = ssl.create_default_context(cafile=tmp_path / "certificates" / "ca.crt")
        async with httpx.AsyncClient(
            base_url=f"https://127.0.0.1:{port}", verify=context, trust_env=False
        ) as client:
            answer = await client.get("/explain", headers={"accept": "text/plain"})
            assert f"set aside as {tmp_path}/memory.json.aside; no count falls" in answer.text
            assert (
                "no memory, or a damaged one" in (await client.get("/explain")).json()["notes"][0]
            )
        assert await adapter.end() == 0
    assert json.loads((tmp_path / "memory.json").read_text())["format"] == "wva-adapter memory"

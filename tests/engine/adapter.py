"""The adapter's own process beside an engine: a static file of replicas, and what it answers."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.e2e.cluster import end_group, free_port

NAMESPACE, VARIANT = "engine", "cpu"
PROGRAM = Path(sys.executable).with_name("wva-adapter")


class Adapter:
    """``wva-adapter serve`` with one variant, whose replicas answer where they are said to.

    Attributes:
        recording: What it recorded.
    """

    def __init__(
        self, folder: Path, *, policy: Mapping[str, Any], max_replicas: int, model: str
    ) -> None:
        self._folder = folder
        self._max_replicas = max_replicas
        self._model = model
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.recording = folder / "recording.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "listen": {"port": self._port},
            "tls": {"directory": "certificates"},
            "static_file": "fleet.yaml",
            "shutdown": {"lame_duck": "0s"},
            "policy": dict(policy),
        }
        (folder / "wva.yaml").write_text(yaml.safe_dump(settings))

    def deploy(self, urls: Mapping[str, str], *, starting: int = 0) -> None:
        """Write the fleet: replicas by name, and how many more were asked for."""
        variant = {
            "namespace": NAMESPACE,
            "name": VARIANT,
            "model_id": self._model,
            "accelerator": "CPU",
            "cost_per_h": 1.0,
            "max_replicas": self._max_replicas,
            "current_replicas": len(urls) + starting,
            "replicas": [{"name": name, "url": url} for name, url in urls.items()],
        }
        written = self._folder / "fleet.partial"
        written.write_text(yaml.safe_dump({"variants": [variant]}))
        # The adapter reads it whenever it likes: never half of it.
        written.rename(self._folder / "fleet.yaml")

    async def start(self) -> None:
        """Start the process on the deployed fleet; return once it is ready."""
        process = self._process = self._launch()
        began = time.monotonic()
        while True:
            with suppress(httpx.TransportError, FileNotFoundError):
                if (await self._get("/readyz")).status_code == 200:
                    return
            if process.poll() is not None or time.monotonic() - began > 60:
                said = (self._folder / "adapter.log").read_text()[-2000:]
                raise RuntimeError(f"adapter is not ready:\n{said}")
            await asyncio.sleep(0.2)

    def _launch(self) -> subprocess.Popen[bytes]:
        with (self._folder / "adapter.log").open("wb") as log:
            return subprocess.Popen(
                [PROGRAM, "serve", "--config", "wva.yaml", "--record", self.recording],
                cwd=self._folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "NO_COLOR": "1"},
                start_new_session=True,
            )

    def stop(self) -> None:
        """End the process in order."""
        if self._process is not None:
            end_group(self._process)
            self._process = None

    async def desired(self) -> int:
        """Return the count that KEDA would be told."""
        answer = await self._get(f"/v1/desired/{NAMESPACE}/{VARIANT}")
        assert answer.status_code == 200, answer.text
        return int(answer.json()["desiredReplicas"])

    async def explain(self) -> Any:
        """Return all that it says about its decision."""
        answer = await self._get(f"/explain/{NAMESPACE}/{VARIANT}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def _get(self, path: str) -> httpx.Response:
        context = ssl.create_default_context(cafile=str(self._folder / "certificates" / "ca.crt"))
        async with httpx.AsyncClient(verify=context, timeout=10, trust_env=False) as client:
            headers = {"Accept": "application/json"}
            return await client.get(f"https://127.0.0.1:{self._port}{path}", headers=headers)

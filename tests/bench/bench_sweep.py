"""How long a read takes while 1,000 replicas with pages of a real size are scraped every 5 s."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import httpx

from tests.bench import Row
from tests.bench.client import Question, ask
from tests.e2e.cluster import free_port

REPLICAS = 1000
VARIANTS = 20
RATE_PER_S = 500.0
FOR_S = 20.0
PAGE = Path(__file__).parent.parent / "data" / "vllm-0.32.0-dp2-saturated.txt"

# The replicas answer in a process of their own: one port on a thousand addresses of loopback.
_REPLICAS = """
import asyncio, sys
page = open(sys.argv[1], "rb").read()
answer = b"HTTP/1.1 200 OK\\r\\ncontent-type: text/plain\\r\\ncontent-length: %d\\r\\n\\r\\n%s" % (
    len(page), page)
class Replica(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(answer)
async def main():
    server = await asyncio.get_running_loop().create_server(Replica, "0.0.0.0", int(sys.argv[2]))
    await server.serve_forever()
asyncio.run(main())
"""


def rows() -> list[Row]:
    """Start replicas and adapter, wait until all are read, then ask."""
    with tempfile.TemporaryDirectory(prefix="wva-bench-") as name:
        folder = Path(name)
        replica_port, port = free_port(), free_port()
        (folder / "fleet.yaml").write_text(_fleet(replica_port))
        (folder / "wva.yaml").write_text(
            f"listen: {{port: {port}}}\ntls: {{directory: certificates}}\n"
            "static_file: fleet.yaml\nscrape_period: 5s\n"
        )
        program = Path(sys.executable).parent / "wva-adapter"
        with (folder / "log").open("wb") as log:
            replicas = subprocess.Popen(
                [sys.executable, "-c", _REPLICAS, str(PAGE), str(replica_port)]
            )
            adapter = subprocess.Popen(
                [program, "serve", "--config", folder / "wva.yaml"], stderr=log, cwd=folder
            )
        try:
            found = asyncio.run(_measure(port, adapter.pid))
        finally:
            for process in (adapter, replicas):
                process.terminate()
                process.wait()
    return [
        {
            "name": f"read p99 at {RATE_PER_S:g} req/s while {REPLICAS} replicas are scraped",
            "value": 1000 * found,
            "unit": "ms",
            "against": None,
            "ratio": None,
            "target": "< 5 ms",
            "ok": found < 0.005,
        }
    ]


def _fleet(port: int) -> str:
    each = REPLICAS // VARIANTS
    lines = ["variants:"]
    for variant in range(VARIANTS):
        urls = (
            f"http://127.{1 + variant}.{replica // 250}.{1 + replica % 250}:{port}"
            for replica in range(each)
        )
        lines.append(
            f"  - {{namespace: bench, name: v{variant}, model_id: m{variant}, "
            f"replicas: [{', '.join(urls)}]}}"
        )
    return "\n".join(lines) + "\n"


async def _measure(port: int, pid: int) -> float:
    context = ssl._create_unverified_context()
    url = f"https://127.0.0.1:{port}"
    async with httpx.AsyncClient(verify=context, trust_env=False) as client:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                explained = (await client.get(f"{url}/explain?", headers={"accept": "*/*"})).json()
                states = [one for v in explained["variants"] for one in v["replicas"]]
                if len(states) == REPLICAS and all(one["age_s"] is not None for one in states):
                    break
            await asyncio.sleep(0.5)
        else:
            raise RuntimeError("not all replicas were read within 3 minutes")
    path = (
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/bench/wva_desired_replicas"
        "?labelSelector=variant_name%3Dv1"
    )
    asked = await ask(
        Question(port, context, path, {"accept": "application/json"}),
        pid,
        for_s=FOR_S,
        rate_per_s=RATE_PER_S,
    )
    return asked.p99_s

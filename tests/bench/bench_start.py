"""How long the adapter takes to listen, and what it weighs once it is ready."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median

import httpx

from tests.bench import Row
from tests.e2e.cluster import free_port

ROUNDS = 5
# What a program does that imports all that it needs at its beginning.
EAGER = (
    "import fastapi, uvicorn, kubernetes, kubernetes.client, prometheus_client, httpx, "
    "scipy.optimize, aiohttp, pydantic, yaml, rich, cryptography, numpy, msgspec"
)


def rows() -> list[Row]:
    """Start it in turns with the imports."""
    starts, imports, weights = [], [], []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", EAGER], check=True)
        imports.append(time.perf_counter() - began)
        start_s, weight = _start()
        starts.append(start_s)
        weights.append(weight)
    start_s, eager_s, weight_mb = median(starts), median(imports), median(weights) / 1000
    return [
        {
            "name": "start to listening, against importing all eagerly",
            "value": start_s,
            "unit": "s",
            "against": eager_s,
            "ratio": eager_s / start_s,
            "target": "<= 0.6x the time",
            "ok": start_s <= 0.6 * eager_s,
        },
        {
            "name": "resident memory when ready",
            "value": weight_mb,
            "unit": "MB",
            "against": None,
            "ratio": None,
            "target": "<= 90 MB",
            "ok": weight_mb <= 90,
        },
    ]


def _start() -> tuple[float, int]:
    """Return the seconds until it is ready, and its resident kB then."""
    with tempfile.TemporaryDirectory(prefix="wva-bench-") as name:
        folder, port = Path(name), free_port()
        (folder / "fleet.yaml").write_text("variants: []\n")
        (folder / "wva.yaml").write_text(
            f"listen: {{port: {port}}}\ntls: {{directory: certificates}}\n"
            "static_file: fleet.yaml\nshutdown: {lame_duck: 0s}\n"
        )
        program = Path(sys.executable).parent / "wva-adapter"
        began = time.perf_counter()
        process = subprocess.Popen(
            [program, "serve", "--config", folder / "wva.yaml"], stderr=subprocess.DEVNULL
        )
        try:
            with httpx.Client(verify=False, trust_env=False) as client:
                while True:
                    with suppress(httpx.TransportError):
                        if client.get(f"https://127.0.0.1:{port}/livez").status_code == 200:
                            break
                    time.sleep(0.01)
                took_s = time.perf_counter() - began
                while client.get(f"https://127.0.0.1:{port}/readyz").status_code != 200:
                    time.sleep(0.05)
            status = Path(f"/proc/{process.pid}/status").read_text()
            return took_s, int(status.split("VmRSS:")[1].split()[0])
        finally:
            process.terminate()
            process.wait()

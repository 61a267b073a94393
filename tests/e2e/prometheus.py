"""Debian's Prometheus on loopback, which scrapes an adapter and answers the same queries."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import yaml

from tests.e2e.cluster import end_group, free_port, tell


def prometheus() -> Path:
    """Return the program.

    Raises:
        SystemExit: It is not installed; the message says how it would be.
    """
    found = shutil.which("prometheus")
    if found is None:
        raise SystemExit(
            "make e2e: Prometheus is not installed. /api/v1/query is compared with a real one: "
            "on Debian, apt-get install --no-install-recommends prometheus"
        )
    return Path(found)


@contextmanager
def process(folder: Path, name: str, *command: str | Path) -> Iterator[None]:
    """Run a program with its log in the folder, and end it afterwards."""
    with (folder / f"{name}.log").open("wb") as log:
        started = subprocess.Popen(
            [str(part) for part in command],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield
        finally:
            end_group(started)


@asynccontextmanager
async def scraping(folder: Path, adapter: httpx.URL, ca: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of a Prometheus that keeps what the adapter says of itself, and only that."""
    settings = {
        "scrape_configs": [
            {
                "job_name": "wva",
                "scrape_interval": "1s",
                "scheme": "https",
                "honor_labels": True,
                "tls_config": {"ca_file": str(ca)},
                "static_configs": [{"targets": [adapter.netloc.decode()]}],
                # Prometheus' own names for where it found the page.
                "metric_relabel_configs": [{"action": "labeldrop", "regex": "job|instance"}],
            }
        ]
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    port = free_port()
    command: list[str | Path] = [
        prometheus(),
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with process(folder, "prometheus", *command):
        tell(f"Prometheus scrapes {adapter}")
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False
        ) as client:
            yield client

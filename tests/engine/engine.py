"""A vLLM server of our own on loopback, and how much of a core it got."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import httpx

from tests.e2e.cluster import end_group, free_port
from tests.engine import tell
from tests.engine.installation import Installation

MODEL = "llama-random"
MAX_NUM_SEQS = 16
TOKEN_BUDGET = 8192
"""Most tokens of a step, as the simulator has it."""

_READY_WITHIN_S = 400.0

_COMPUTES = "VLLM::Worker"
"""What the process that computes steps calls itself."""


class CoreTime(NamedTuple):
    """Seconds of the process that computes, since it started."""

    ran_s: float
    waited_s: float

    def waited_since(self, before: CoreTime) -> float:
        """Return for which share of the time it was ready to run it had no core.

        It yields while it polls for work, so with little load more than others took from it.
        """
        ran, waited = self.ran_s - before.ran_s, self.waited_s - before.waited_s
        return waited / (ran + waited) if ran + waited > 0 else 0.0


class Engine:
    """One server process with the processes that it starts.

    Attributes:
        url: Where it answers.
    """

    def __init__(self, installation: Installation, log: Path) -> None:
        self._installation = installation
        self._log = log
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._worker: int | None = None

    async def start(self) -> None:
        """Start it; return once it serves.

        Raises:
            RuntimeError: It ended, or does not serve in time; the message has its last lines.
        """
        began = time.monotonic()
        own, *others = sorted(os.sched_getaffinity(0))
        if others:
            os.sched_setaffinity(0, others)
        process = self._process = self._launch()
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            while True:
                if process.poll() is not None:
                    raise RuntimeError(f"engine ended with {process.returncode}:\n{self._tail()}")
                with suppress(httpx.TransportError):
                    if (await client.get(f"{self.url}/health")).status_code == 200:
                        break
                if time.monotonic() - began > _READY_WITHIN_S:
                    raise RuntimeError(f"engine does not serve:\n{self._tail()}")
                await asyncio.sleep(0.5)
        names = {pid: _name(pid) for pid in _session(process.pid)}
        self._worker = next(pid for pid, name in names.items() if name.startswith(_COMPUTES))
        if others:
            # Steps have a core of their own, and what we and the engine do beside them the others.
            _keep_to(self._worker, own)
        tell(f"engine ready after {time.monotonic() - began:.0f} s")

    def _launch(self) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            return subprocess.Popen(
                self._command(),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={
                    **os.environ,
                    "HF_HUB_OFFLINE": "1",
                    "VLLM_NO_USAGE_STATS": "1",
                    "VLLM_CPU_KVCACHE_SPACE": "1",
                    # One thread: with two, a step waits for whichever core another has taken.
                    "OMP_NUM_THREADS": "1",
                },
                start_new_session=True,
            )

    def _command(self) -> list[str]:
        return [
            str(self._installation.program),
            *("serve", str(self._installation.model), "--served-model-name", MODEL),
            *("--host", "127.0.0.1", "--port", str(self._port)),
            # bfloat16 falls back to a slow path on many CPUs.
            *("--dtype", "float32", "--enforce-eager", "--max-model-len", "8192"),
            *("--max-num-seqs", str(MAX_NUM_SEQS), "--max-num-batched-tokens", str(TOKEN_BUDGET)),
            # All our prompts begin alike, and each is to be computed.
            "--no-enable-prefix-caching",
        ]

    def core_time(self) -> CoreTime:
        """Return what the process that computes has had so far."""
        assert self._worker is not None
        return _core_time(self._worker)

    def stop(self) -> None:
        """End it and what it started, by their ids."""
        if self._process is not None:
            end_group(self._process)
            self._process = None

    def _tail(self, lines: int = 20) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])


def _session(leader: int) -> list[int]:
    """Return the processes of a session."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                after_name = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(after_name[3]) == leader:
                    found.append(int(folder.name))
    return found


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _keep_to(pid: int, core: int) -> None:
    """Let a process's threads run on one core only."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def _core_time(pid: int) -> CoreTime:
    """Return the times of a process's threads on a core, and in line for one."""
    ran = waited = 0
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                times = (thread / "schedstat").read_text().split()
                ran += int(times[0])
                waited += int(times[1])
    return CoreTime(ran / 1e9, waited / 1e9)

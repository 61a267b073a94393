"""One pod's life as a kubelet would lead it, with an emulated engine in the place of containers."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from wva_adapter.collect.objects import Pod
from wva_adapter.documents import parse_duration_s
from wva_adapter.emulator.engine import Engine
from wva_adapter.errors import ClusterError, ConfigError
from wva_adapter.kube.api import KubernetesApi, Refused
from wva_adapter.sim.files import hardware

log = logging.getLogger(__name__)

PREFIX = "emulator.wva/"
"""Of the annotations that say which engine a pod is: ``model``, ``hardware``, ``slowness``,
``startup``, ``max-num-seqs``, ``max-model-len``, ``kv-cache-tokens``."""

_DEFAULT_PORT = 8000
_RETRY_S = 0.5
_IN_FLIGHT_S = 0.3
"""How long a request may take from a gateway's choice of an engine to that engine."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """The engine that a pod asks for.

    Attributes:
        hardware: Name of a latency table, such as ``llama3-8b/a100/tp1``.
        startup_s: Seconds from the start of its container to ready.
        slowness: How many times as long as on this hardware a step takes.
        kv_cache_tokens: ``None`` means what the hardware has.
    """

    model: str
    hardware: str
    port: int
    startup_s: float = 5.0
    slowness: float = 1.0
    max_num_seqs: int = 256
    max_model_len: int = 16384
    kv_cache_tokens: int | None = None

    @property
    def capacity_tokens(self) -> int:
        """KV-cache size of the engine."""
        return self.kv_cache_tokens or hardware(self.hardware).kv_cache_tokens


def read_engine_spec(pod: Pod, default_hardware: str) -> EngineSpec | None:
    """Return the engine that a pod's annotations describe; ``None`` where it is to be none.

    Raises:
        ConfigError: An annotation cannot be read.
    """
    given = {
        name.removeprefix(PREFIX): text
        for name, text in pod.metadata.annotations.items()
        if name.startswith(PREFIX)
    }
    if "model" not in given:
        return None
    readers: Mapping[str, tuple[str, Callable[[str], Any]]] = {
        "model": ("model", str),
        "hardware": ("hardware", lambda text: hardware(text).name),
        "slowness": ("slowness", _positive),
        "startup": ("startup_s", parse_duration_s),
        "max-num-seqs": ("max_num_seqs", int),
        "max-model-len": ("max_model_len", int),
        "kv-cache-tokens": ("kv_cache_tokens", int),
    }
    values: dict[str, Any] = {"hardware": default_hardware}
    for name, text in given.items():
        if name not in readers:
            raise ConfigError(
                f"pod {pod.metadata.namespace}/{pod.metadata.name}: annotation {PREFIX}{name}: "
                f"unknown; known: {', '.join(readers)}"
            )
        key, read = readers[name]
        try:
            values[key] = read(text)
        except ValueError as error:
            raise ConfigError(
                f"pod {pod.metadata.namespace}/{pod.metadata.name}: annotation {PREFIX}{name}: "
                f"found {text!r}: {error}"
            ) from None
    ports = [port.container_port for c in pod.spec.containers for port in c.ports]
    return EngineSpec(port=ports[0] if ports else _DEFAULT_PORT, **values)


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError("want a positive number")
    return number


class PodLife:
    """A pod from its binding to a node until its object is gone.

    Args:
        address: Its own, of 127.0.0.0/8.
        on_change: Called whenever ``ready`` changed.
    """

    def __init__(
        self,
        api: KubernetesApi,
        pod: Pod,
        spec: EngineSpec,
        address: str,
        on_change: Callable[[], None],
    ) -> None:
        self.pod = pod
        self.spec = spec
        self.ready = False
        self.engine = Engine(
            hardware=hardware(spec.hardware).slowed(spec.slowness),
            model=spec.model,
            host=address,
            port=spec.port,
            max_num_seqs=spec.max_num_seqs,
            max_model_len=spec.max_model_len,
            kv_cache_tokens=spec.kv_cache_tokens,
        )
        self._api = api
        self._address = address
        self._on_change = on_change
        self._grace_s = 30.0
        self._ending = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begin it in the running loop."""
        self._task = asyncio.create_task(self._live(), name=self.pod.metadata.name)

    def end(self, grace_s: float) -> None:
        """Take it out of rotation, let requests in flight finish, then delete the object."""
        self._grace_s = grace_s
        self._ending.set()

    async def abort(self) -> None:
        """End it at once, requests in flight included; the object is left alone."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _live(self) -> None:
        try:
            await self._report(ready=False)
            try:
                await asyncio.wait_for(self._ending.wait(), self.spec.startup_s)
            except TimeoutError:
                await self.engine.start()
                await self._report(ready=True)
                self._set_ready(True)
                await self._ending.wait()
                self._set_ready(False)
                await self._report(ready=False)
                await asyncio.sleep(_IN_FLIGHT_S)
                if not await self.engine.drain(self._grace_s):
                    log.warning("requests cut", extra={"pod": self._name})
        except ConfigError as error:  # somebody else took the address
            log.warning("pod failed", extra={"pod": self._name, "problem": str(error)})
            await self._ending.wait()
        finally:
            self._set_ready(False)
            await self.engine.stop()
        await self._send(
            "DELETE",
            "",
            {
                "apiVersion": "v1",
                "kind": "DeleteOptions",
                "gracePeriodSeconds": 0,
                "preconditions": {"uid": self.pod.metadata.uid},
            },
        )

    @property
    def _name(self) -> str:
        return f"{self.pod.metadata.namespace}/{self.pod.metadata.name}"

    def _set_ready(self, ready: bool) -> None:
        if self.ready != ready:
            self.ready = ready
            self._on_change()

    async def _report(self, *, ready: bool) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        states = {"PodScheduled": True, "Initialized": True}
        states |= {"ContainersReady": ready, "Ready": ready}
        status = {
            "phase": "Running",
            "podIP": self._address,
            "podIPs": [{"ip": self._address}],
            "startTime": now,
            "conditions": [
                {"type": kind, "status": str(holds), "lastTransitionTime": now}
                for kind, holds in states.items()
            ],
            "containerStatuses": [
                {
                    "name": container.name,
                    "image": "emulated",
                    "imageID": "emulated",
                    "ready": ready,
                    "started": ready,
                    "restartCount": 0,
                    "state": {"running": {"startedAt": now}},
                }
                for container in self.pod.spec.containers
            ],
        }
        await self._send("PATCH", "/status", {"status": status})

    async def _send(self, method: str, subresource: str, body: Mapping[str, Any]) -> None:
        """Write to the pod's object until it is told or gone, however long the API is away."""
        meta = self.pod.metadata
        path = f"/api/v1/namespaces/{meta.namespace}/pods/{meta.name}{subresource}"
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        while True:
            try:
                await self._api.send(method, path, body, content_type=kind)
                return
            except Refused as error:
                # 404: it is gone. 409: another pod of this name has taken its place.
                if error.status in (404, 409):
                    return
                log.warning("pod not told", extra={"pod": self._name, "problem": str(error)})
            except ClusterError as error:
                log.warning("pod not told", extra={"pod": self._name, "problem": str(error)})
            await asyncio.sleep(_RETRY_S)

"""A fleet of emulated engines that can be scaled: what a cluster is to the adapter, without one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from wva_adapter.core.fleet import VariantKey
from wva_adapter.core.snapshot import Phase
from wva_adapter.emulator.engine import Engine
from wva_adapter.emulator.gateway import Backend, Gateway
from wva_adapter.sim.hardware import Hardware

# Many engines share one event loop: fewer, larger chunks leave it time for everything else.
_CHUNKS_PER_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedVariant:
    """One variant to emulate.

    Attributes:
        hardware: The latency table of one replica.
        kv_cache_tokens: KV-cache size; the hardware's own if ``None``.
        startup_s: Seconds from creation to ready.
    """

    key: VariantKey
    model_id: str
    accelerator: str
    hardware: Hardware
    cost_per_h: float
    min_replicas: int
    max_replicas: int
    startup_s: float
    accelerators_per_replica: int = 1
    max_num_seqs: int = 256
    kv_cache_tokens: int | None = None


class Replica:
    """One emulated replica from creation to exit."""

    def __init__(self, name: str, engine: Engine) -> None:
        self.name = name
        self.engine = engine
        self.phase = Phase.STARTING
        self.life: asyncio.Task[None] | None = None


class Fleet:
    """Emulated variants with a gateway per model, told to a static file as they change.

    Args:
        variants: What to emulate; the gateways' keys are their models.
        static_file: Where the fleet is written, for the adapter to read.
        speed: Model seconds per second of the event loop.
        drain_s: Model seconds that a removed replica gets to finish its requests.
    """

    def __init__(
        self,
        variants: Sequence[EmulatedVariant],
        gateways: Mapping[str, Gateway],
        *,
        static_file: Path,
        speed: float = 1.0,
        drain_s: float = 120.0,
    ) -> None:
        self._variants = {variant.key: variant for variant in variants}
        self._gateways = gateways
        self._static_file = static_file
        self._speed = speed
        self._drain_s = drain_s
        self._replicas: dict[VariantKey, list[Replica]] = {v.key: [] for v in variants}
        self._count = dict.fromkeys(self._variants, 0)
        self._names = {key: itertools.count() for key in self._variants}
        self._usd = dict.fromkeys(self._variants, 0.0)
        self._billed_at_s = asyncio.get_running_loop().time()

    async def start(self, counts: Mapping[VariantKey, int]) -> None:
        """Start with this many replicas per variant, ready at once."""
        for key, count in counts.items():
            self._count[key] = count
            for _ in range(count):
                replica = self._create(key)
                await replica.engine.start()
                replica.phase = Phase.READY
        self._tell()

    async def stop(self) -> None:
        """End every replica at once."""
        self._bill()
        for replicas in self._replicas.values():
            for replica in replicas:
                if replica.life is not None:
                    replica.life.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await replica.life
                await replica.engine.stop()
            replicas.clear()

    def count(self, key: VariantKey) -> int:
        """Return the count asked for."""
        return self._count[key]

    def phases(self, key: VariantKey) -> Mapping[Phase, int]:
        """Return how many replicas are in each phase."""
        phases = [replica.phase for replica in self._replicas[key]]
        return {phase: phases.count(phase) for phase in Phase}

    def usd(self) -> Mapping[VariantKey, float]:
        """Return what each variant cost so far: every replica from its creation to its exit."""
        self._bill()
        return dict(self._usd)

    def scale(self, key: VariantKey, count: int) -> None:
        """Ask for this many replicas, as a write to ``/scale`` would: this returns at once.

        On the way down those that are still starting go first, then the newest ones.
        """
        self._bill()
        self._count[key] = count
        alive = [r for r in self._replicas[key] if r.phase is not Phase.TERMINATING]
        for _ in range(len(alive), count):
            replica = self._create(key)
            replica.life = asyncio.ensure_future(self._warm_up(key, replica))
        leaving = sorted(
            enumerate(alive), key=lambda pair: (pair[1].phase is not Phase.STARTING, -pair[0])
        )
        for _, replica in leaving[: max(0, len(alive) - count)]:
            if replica.life is not None:
                replica.life.cancel()
            was_ready = replica.phase is Phase.READY
            replica.phase = Phase.TERMINATING
            replica.life = asyncio.ensure_future(self._wind_down(key, replica, was_ready))
        self._tell()

    def _create(self, key: VariantKey) -> Replica:
        variant = self._variants[key]
        engine = Engine(
            hardware=variant.hardware,
            model=variant.model_id,
            host="127.0.0.1",
            port=_free_port(),
            speed=self._speed,
            max_num_seqs=variant.max_num_seqs,
            kv_cache_tokens=variant.kv_cache_tokens,
            chunks_per_s=_CHUNKS_PER_S,
        )
        replica = Replica(f"{key.name}-{next(self._names[key])}", engine)
        self._replicas[key].append(replica)
        return replica

    async def _warm_up(self, key: VariantKey, replica: Replica) -> None:
        await asyncio.sleep(self._variants[key].startup_s / self._speed)
        await replica.engine.start()
        replica.phase = Phase.READY
        self._tell()

    async def _wind_down(self, key: VariantKey, replica: Replica, was_ready: bool) -> None:
        # The gateway has stopped sending by now: what is in flight finishes, nothing new comes.
        if was_ready:
            await replica.engine.drain(self._drain_s / self._speed)
        await replica.engine.stop()
        self._bill()
        self._replicas[key].remove(replica)

    def _bill(self) -> None:
        now_s = asyncio.get_running_loop().time()
        hours = (now_s - self._billed_at_s) * self._speed / 3600
        self._billed_at_s = now_s
        for key, replicas in self._replicas.items():
            self._usd[key] += len(replicas) * self._variants[key].cost_per_h * hours

    def _tell(self) -> None:
        """Tell the gateways and the static file who serves."""
        for model, gateway in self._gateways.items():
            gateway.set_backends(
                [
                    Backend(replica.engine.url, float(variant.hardware.kv_cache_tokens))
                    for key, variant in self._variants.items()
                    if variant.model_id == model
                    for replica in self._replicas[key]
                    if replica.phase is Phase.READY
                ]
            )
        document = {"variants": [self._described(variant) for variant in self._variants.values()]}
        partial = self._static_file.with_suffix(".partial")
        partial.write_text(yaml.safe_dump(document, sort_keys=False))
        partial.replace(self._static_file)  # a reader never sees half a file

    def _described(self, variant: EmulatedVariant) -> dict[str, object]:
        key = variant.key
        return {
            "namespace": key.namespace,
            "name": key.name,
            "model_id": variant.model_id,
            "accelerator": variant.accelerator,
            "accelerators_per_replica": variant.accelerators_per_replica,
            "cost_per_h": variant.cost_per_h,
            "min_replicas": variant.min_replicas,
            "max_replicas": variant.max_replicas,
            "current_replicas": self._count[key],
            "replicas": [
                {
                    "name": replica.name,
                    "url": replica.engine.url,
                    "ready": replica.phase is Phase.READY,
                }
                for replica in self._replicas[key]
                if replica.phase is not Phase.TERMINATING
            ],
        }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

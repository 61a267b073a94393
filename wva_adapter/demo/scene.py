"""What the demo plays: the fleet, the load, and how fast time runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wva_adapter.core.fleet import VariantKey
from wva_adapter.emulator.fleet import EmulatedVariant
from wva_adapter.emulator.load import Workload
from wva_adapter.sim.files import hardware
from wva_adapter.sim.replica import Replica
from wva_adapter.sim.request import Request

SPEED = 4.0
"""Seconds of the demo per second on the wall."""

TTFT_SLO_S = 2.0
ITL_SLO_S = 0.06
STARTUP_S = 20.0
"""What a replica takes from its creation to its first request."""

PROMPT_TOKENS, OUTPUT_TOKENS = 1000, 250
BATCH, KV_CACHE_TOKENS = 24, 36_000
"""Small engines: a handful of requests per second then shows what a cluster's worth would."""

A100, H100 = VariantKey("chat", "llama-a100"), VariantKey("chat", "llama-h100")
QWEN = VariantKey("search", "qwen-h100x2")
LLAMA_MODEL, QWEN_MODEL = "llama-3-8b", "qwen3-32b"

SETTINGS = """
listen: {port: 0}
tls: {directory: certificates}
shutdown: {lame_duck: 0s}
static_file: fleet.yaml
policy:
  scale_down_window: 60s    # the default of 5m would outlast the demo
  peak_window: 30s
"""


@dataclass(frozen=True, slots=True)
class Hill:
    """A load that rises, stays, falls, and stays low; times are shares of the demo's length.

    Attributes:
        steepest_per_s2: Requests per second by which it rises per second at most. A short demo
            gets as high as that allows, so that it shows the same fleet and not a cliff.
    """

    base_per_s: float
    peak_per_s: float
    rise: float
    top: float
    fall: float
    low: float
    steepest_per_s2: float

    def schedule(self, length_s: float) -> list[tuple[float, float]]:
        """Return the rate's points ``(t_s, rate_per_s)`` for a demo of this length."""
        allowed = self.base_per_s + self.steepest_per_s2 * (self.top - self.rise) * length_s
        peak = min(self.peak_per_s, allowed)
        shares = (0.0, self.rise, self.top, self.fall, self.low, 1.0)
        rates = (self.base_per_s, self.base_per_s, peak, peak, self.base_per_s, self.base_per_s)
        return [(share * length_s, rate) for share, rate in zip(shares, rates, strict=True)]


LOADS: Mapping[str, Hill] = {
    LLAMA_MODEL: Hill(2.0, 12.0, 0.02, 0.45, 0.52, 0.66, 0.045),
    QWEN_MODEL: Hill(0.5, 3.0, 0.2, 0.5, 0.55, 0.7, 0.02),
}


def variants() -> tuple[EmulatedVariant, ...]:
    """Return the fleet of the demo: one model on two accelerators, and another on one."""
    small = {"max_num_seqs": BATCH, "kv_cache_tokens": KV_CACHE_TOKENS}
    return (
        EmulatedVariant(
            key=A100,
            model_id=LLAMA_MODEL,
            accelerator="A100",
            hardware=hardware("llama3-8b/a100/tp1"),
            cost_per_h=1.20,
            min_replicas=1,
            max_replicas=3,
            startup_s=STARTUP_S,
            **small,
        ),
        EmulatedVariant(
            key=H100,
            model_id=LLAMA_MODEL,
            accelerator="H100",
            hardware=hardware("llama3-8b/h100/tp1"),
            cost_per_h=3.90,
            min_replicas=0,
            max_replicas=3,
            startup_s=STARTUP_S,
            **small,
        ),
        EmulatedVariant(
            key=QWEN,
            model_id=QWEN_MODEL,
            accelerator="H100",
            accelerators_per_replica=2,
            hardware=hardware("qwen3-32b/h100/tp2"),
            cost_per_h=7.80,
            min_replicas=1,
            max_replicas=3,
            startup_s=STARTUP_S,
            **small,
        ),
    )


def service_rate_per_s(variant: EmulatedVariant, requests: int = 200) -> float:
    """Return the requests per second of one replica that never runs out of them."""
    replica = Replica(
        variant.hardware,
        max_num_seqs=variant.max_num_seqs,
        kv_cache_tokens=variant.kv_cache_tokens,
    )
    for _ in range(requests):
        replica.submit(Request(PROMPT_TOKENS, OUTPUT_TOKENS), 0.0)
    while (next_s := replica.next_event_s()) is not None:
        replica.advance(next_s)
    return requests / replica.now_s


def workload(model: str, length_s: float) -> Workload:
    """Return what the clients of a model ask for in a demo of this length."""
    return Workload(
        schedule=LOADS[model].schedule(length_s),
        prompt_tokens=PROMPT_TOKENS,
        output_tokens=OUTPUT_TOKENS,
        variation=0.4,
        most_tokens=4000,
    )

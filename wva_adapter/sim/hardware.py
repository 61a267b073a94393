"""What one model on one kind of accelerator takes and holds: time per step, KV cache, power, price."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np


@dataclass(frozen=True, slots=True)
class Hardware:
    """One model on one kind of accelerator: how long a step takes and what fits.

    Attributes:
        name: ``<model>/<accelerator>/tp<count>``.
        tokens: Batch sizes in tokens for which the time of a step is known, rising.
        iteration_s: Seconds of a step of so many tokens, attention aside.
        kv_read_s_per_token: Seconds to read one cached token in a step.
        attention_s: Seconds per prefilled token and token before it.
        kv_cache_tokens: KV-cache size.
        idle_w: Power of a replica that has nothing to do.
        tdp_w: Its highest power.
        usd_per_h: Price of one replica.
    """

    name: str
    tokens: tuple[float, ...]
    iteration_s: tuple[float, ...]
    kv_read_s_per_token: float
    attention_s: float
    kv_cache_tokens: int
    idle_w: float
    tdp_w: float
    usd_per_h: float

    def step_times_s(self, most_tokens: int) -> list[float]:
        """Return the seconds of a step by its tokens, 0 to ``most_tokens``, attention aside.

        Straight between the known sizes; beyond them as long as the nearest.
        """
        return _step_times_s(self.tokens, self.iteration_s, most_tokens)

    def slowed(self, factor: float) -> Hardware:
        """Return hardware on which every step takes ``factor`` times as long.

        Raises:
            ValueError: The factor is not positive and finite.
        """
        if not 0 < factor < math.inf:
            raise ValueError(f"{factor:g} times as slow, want a positive number")
        return replace(
            self,
            iteration_s=tuple(factor * s for s in self.iteration_s),
            kv_read_s_per_token=factor * self.kv_read_s_per_token,
            attention_s=factor * self.attention_s,
        )


@lru_cache(maxsize=64)
def _step_times_s(
    tokens: tuple[float, ...], iteration_s: tuple[float, ...], most_tokens: int
) -> list[float]:
    return [float(s) for s in np.interp(range(most_tokens + 1), tokens, iteration_s)]

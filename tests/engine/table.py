"""A table of step times, fitted to what single steps of a real engine took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import nnls

from wva_adapter.sim.hardware import Hardware


@dataclass(frozen=True, slots=True)
class Step:
    """What one kind of step took.

    Attributes:
        decoding: Requests that decode in it.
        prompt_tokens: Tokens of the one prompt that is computed whole in it, 0 or more.
        kv_tokens: Cached tokens of the decoding requests.
        seconds: Its mean time.
    """

    decoding: float
    prompt_tokens: float
    kv_tokens: float
    seconds: float

    @property
    def tokens(self) -> float:
        """Tokens that it computes."""
        return self.decoding + self.prompt_tokens


def fitted(
    name: str, steps: Sequence[Step], knots: Sequence[float], *, kv_cache_tokens: int
) -> Hardware:
    """Return the hardware whose step times are closest to these, by relative squares.

    A step takes ``F[tokens] + c·kv_tokens + q·prompt²/2`` with F straight between the knots and
    rising, c and q at least 0.

    Args:
        name: ``<model>/<accelerator>/tp<count>``.
        steps: At least as many as there are unknowns, from the first knot to the last.
        knots: Sizes in tokens, rising.
        kv_cache_tokens: Size of the KV cache.

    Raises:
        ValueError: There are fewer steps than unknowns.
    """
    if len(steps) < len(knots) + 2:
        raise ValueError(f"{len(steps)} steps, want at least {len(knots) + 2}")
    sizes = np.array([step.tokens for step in steps])
    # F as the first knot's time and what each next knot adds, none below 0: it never falls.
    rises = np.column_stack(
        [
            np.interp(sizes, knots, [float(j >= i) for j in range(len(knots))])
            for i in range(len(knots))
        ]
    )
    kv = np.array([step.kv_tokens for step in steps])
    attention = np.array([step.prompt_tokens**2 / 2 for step in steps])
    seconds = np.array([step.seconds for step in steps])
    columns = np.column_stack([rises, kv, attention]) / seconds[:, None]
    # The columns differ by ten powers of ten: scaled, or small ones would be lost.
    scale = np.maximum(np.linalg.norm(columns, axis=0), 1e-12)
    found = nnls(columns / scale, np.ones(len(steps)))[0] / scale
    return Hardware(
        name=name,
        tokens=tuple(float(knot) for knot in knots),
        iteration_s=tuple(float(s) for s in np.cumsum(found[: len(knots)])),
        kv_read_s_per_token=float(found[-2]),
        attention_s=float(found[-1]),
        kv_cache_tokens=kv_cache_tokens,
        idle_w=0.0,
        tdp_w=0.0,
        usd_per_h=0.0,
    )


def step_s(hardware: Hardware, step: Step) -> float:
    """Return what a table says of a step."""
    of_tokens = float(np.interp(step.tokens, hardware.tokens, hardware.iteration_s))
    attention_s = hardware.attention_s * step.prompt_tokens**2 / 2
    return of_tokens + hardware.kv_read_s_per_token * step.kv_tokens + attention_s


def document(hardware: Hardware) -> dict[str, Any]:
    """Return a table in the form in which fleet files have it."""
    return {
        "tokens": list(hardware.tokens),
        "iteration_ms": [round(1e3 * s, 4) for s in hardware.iteration_s],
        "kv_read_us_per_token": 1e6 * hardware.kv_read_s_per_token,
        "attention_ns": 1e9 * hardware.attention_s,
        "kv_cache_tokens": hardware.kv_cache_tokens,
        "usd_per_h": hardware.usd_per_h,
    }

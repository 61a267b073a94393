"""What the simulator reads from files: the hardware that comes with the product."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from wva_adapter.errors import ConfigError
from wva_adapter.sim.hardware import Hardware


def hardware(name: str) -> Hardware:
    """Return the hardware of this name, such as ``llama3-8b/a100/tp1``.

    Raises:
        ConfigError: There is none of this name; the message says what there is.
    """
    known = _shipped()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise ConfigError(f"hardware {name!r}: unknown; {hint}")
    return known[name]


def hardware_names() -> tuple[str, ...]:
    """Return the names that ``hardware`` knows."""
    return tuple(_shipped())


@cache
def _shipped() -> Mapping[str, Hardware]:
    text = resources.files("wva_adapter.sim").joinpath("hardware.json").read_text(encoding="utf-8")
    return {name: _parse(name, entry) for name, entry in json.loads(text)["hardware"].items()}


def _parse(name: str, entry: Mapping[str, Any]) -> Hardware:
    return Hardware(
        name=name,
        tokens=tuple(entry["tokens"]),
        iteration_s=tuple(ms / 1e3 for ms in entry["iteration_ms"]),
        kv_read_s_per_token=entry["kv_read_us_per_token"] / 1e6,
        attention_s=entry["attention_ns"] / 1e9,
        kv_cache_tokens=entry["kv_cache_tokens"],
        idle_w=entry["idle_w"],
        tdp_w=entry["tdp_w"],
        usd_per_h=entry["usd_per_h"],
    )

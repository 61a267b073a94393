"""What the simulator reads from files: hardware and arrivals, the product's own and others."""

from __future__ import annotations

import csv
import difflib
import gzip
import json
import math
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from wva_adapter.errors import ConfigError
from wva_adapter.sim.clients import Traffic
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


def conversation() -> Traffic:
    """Return the hour of production arrivals that comes with the product."""
    packed = resources.files("wva_adapter.sim").joinpath(
        "traces", "azure_llm_2023_conversation.csv.gz"
    )
    return _shipped_trace(packed.read_bytes())


@lru_cache(maxsize=1)
def _shipped_trace(packed: bytes) -> Traffic:
    return parse_trace(gzip.decompress(packed).decode("ascii"), "the conversation trace")


def read_trace(file: Path) -> Traffic:
    """Return the arrivals of a CSV file, packed by gzip or not.

    Raises:
        ConfigError: It cannot be read, or a row is no arrival; the message names the row.
    """
    try:
        content = file.read_bytes()
        text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode()
    except OSError as error:
        raise ConfigError(f"trace {file}: {error.strerror or error}") from None
    except (EOFError, ValueError) as error:
        raise ConfigError(f"trace {file}: {error}") from None
    return parse_trace(text, f"trace {file}")


def parse_trace(text: str, source: str) -> Traffic:
    """Return the arrivals of CSV rows: second, prompt tokens, output tokens.

    A first row that is no number is the header.

    Args:
        text: The rows.
        source: Who, for messages.

    Raises:
        ConfigError: A row is no arrival; the message names it, counted from 1.
    """
    arrived_s: list[float] = []
    prompts: list[int] = []
    outputs: list[int] = []
    for number, row in enumerate(csv.reader(text.splitlines()), start=1):
        if not row or (number == 1 and _number(row[0]) is None):
            continue
        where = f"{source}: row {number}"
        if len(row) < 3:
            raise ConfigError(
                f"{where}: {len(row)} columns, want arrival second, prompt and output tokens"
            )
        at_s = _number(row[0])
        if at_s is None or not math.isfinite(at_s) or at_s < 0:
            raise ConfigError(
                f"{where}: arrival {row[0]!r}, want a finite number of seconds, at least 0"
            )
        if arrived_s and at_s < arrived_s[-1]:
            raise ConfigError(
                f"{where}: arrival {at_s:g} s comes after one at {arrived_s[-1]:g} s, "
                "want arrivals in order of time"
            )
        arrived_s.append(at_s)
        for tokens, what, found in ((prompts, "prompt", row[1]), (outputs, "output", row[2])):
            count = _number(found)
            if count is None or not count.is_integer() or count < 1:
                raise ConfigError(
                    f"{where}: {what} tokens {found!r}, want a whole number, at least 1"
                )
            tokens.append(int(count))
    if not arrived_s:
        raise ConfigError(f"{source}: no arrivals, want at least one row")
    return Traffic(np.array(arrived_s), np.array(prompts), np.array(outputs))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None

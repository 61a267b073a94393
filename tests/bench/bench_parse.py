"""Reading a page: the scanner against ``prometheus_client``, and the way to a sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.bench import Row
from wva_adapter.collect.engines import inspect_page, vllm
from wva_adapter.collect.exposition import scan

DATA = Path(__file__).parent.parent / "data"
NAME = "vllm-0.32.0-dp2-saturated"


ROUNDS = 30


def fastest_us(calls: Mapping[Callable[[], object], int]) -> list[float]:
    """Return the microseconds of the fastest run of each call: the one least disturbed.

    The calls take turns, each so many times per round, so that a busy moment hits all of them.
    """
    fastest = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        for call, times in calls.items():
            for _ in range(times):
                started_s = time.perf_counter()
                call()
                fastest[call] = min(fastest[call], time.perf_counter() - started_s)
    return [span_s * 1e6 for span_s in fastest.values()]


def rows() -> list[Row]:
    """Return the time to scan a page for the wanted series, and to read it to a sample."""
    body = (DATA / f"{NAME}.txt").read_bytes()
    text = body.decode()
    library_us, scan_us, read_us = fastest_us(
        {
            lambda: list(text_string_to_metric_families(text)): 1,
            lambda: scan(body, vllm.WANTED, NAME): 20,
            lambda: inspect_page(body, None, at_s=0.0, source=NAME): 20,
        }
    )
    size = f"a page of {len(body) / 1000:.0f} KB"
    return [
        Row(
            name=f"scan {size} for the wanted series, against prometheus_client",
            value=scan_us,
            unit="µs",
            against=library_us,
            ratio=library_us / scan_us,
            target=">= 50x",
            ok=library_us / scan_us >= 50,
        ),
        Row(
            name=f"read {size} to a sample, against prometheus_client alone",
            value=read_us,
            unit="µs",
            against=library_us,
            ratio=library_us / read_us,
            target=">= 25x",
            ok=library_us / read_us >= 25,
        ),
    ]

"""Memory as a document."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.builders import a_key, filled
from wva_adapter.core.arrivals import ArrivalHistory
from wva_adapter.core.fleet import LoadKey
from wva_adapter.core.forecast import forecast
from wva_adapter.core.memory import Memory, ModelMemory, Start, VariantMemory, Window
from wva_adapter.core.remembered import bounded, from_document, to_document


def arrivals(rate_per_s: float, *, seed: int = 0, cycles: int = 1440) -> ArrivalHistory:
    generator = np.random.default_rng(seed)
    history = ArrivalHistory()
    for number in range(1, cycles + 1):
        history = history.add(5.0 * number, float(generator.poisson(rate_per_s * 5)), 5.0)
    return history


def with_days(history: ArrivalHistory, rate_per_s: float, *, seed: int = 0) -> ArrivalHistory:
    """The history with eight days of minutes, each with the chance of its own count."""
    counts = np.random.default_rng(seed).poisson(rate_per_s * 60, 11_520)
    return replace(history, minutes=(counts / 60).astype("<f2").tobytes())


def remembered(history: ArrivalHistory) -> Memory:
    return Memory(
        models={LoadKey("chat", "llama"): ModelMemory(analysis="demand", arrivals=history)}
    )


def through_text(memory: Memory) -> Memory:
    return from_document(json.loads(json.dumps(to_document(memory), allow_nan=False)))


def test_a_memory_comes_back_as_it_was() -> None:
    memory = replace(
        remembered(arrivals(20.0, cycles=100).add(700.0, 3.0, 5.0)),
        variants={
            a_key(): VariantMemory(
                Window(((1.5, 4.0), (2.5, 3.0))), starts=(Start(9.0, 61.5, "cold"),), wakes_s=(2.5,)
            )
        },
    )

    assert through_text(memory) == memory


def test_a_bounded_memory_comes_back_as_it_was_and_cannot_be_bounded_further() -> None:
    memory = bounded(remembered(with_days(arrivals(20.0).add(7300.0, 90.0, 5.0), 20.0)))

    assert through_text(memory) == memory
    assert bounded(memory) == memory


@pytest.mark.parametrize("rate_per_s", [0.1, 1.0, 20.0, 200.0, 5000.0])
def test_a_restart_with_a_bounded_memory_makes_no_jump(rate_per_s: float) -> None:
    history = arrivals(rate_per_s)
    kept = bounded(remembered(history)).models[LoadKey("chat", "llama")].arrivals

    before, after = (forecast(h, 7200.0, lead_s=135.0, attainment=0.98) for h in (history, kept))

    assert after.rate_per_s == before.rate_per_s
    assert after.confidence == pytest.approx(before.confidence, rel=0.03)
    assert after.covered_per_s == pytest.approx(before.covered_per_s, rel=0.02)


@pytest.mark.parametrize("rate_per_s", [0.05, 1.0, 4.0, 20.0, 200.0, 5000.0])
def test_a_hundred_variants_take_at_most_a_megabyte(rate_per_s: float) -> None:
    """Each serves a model of its own, has the longest history, and many window entries."""
    window = Window(tuple((1.7e9 + 5.1 * k, 123.456789 - k) for k in range(60)))
    counts = Window(tuple((1.7e9 + 5.1 * k, 20.0 - k) for k in range(20)))
    one = ModelMemory("demand", window, with_days(arrivals(rate_per_s), rate_per_s))
    memory = bounded(
        Memory(
            variants={
                a_key(): VariantMemory(
                    counts, starts=(Start(1.7e9, 123.456, "warm"),) * 20, wakes_s=(3.21,) * 20
                )
            },
            models={LoadKey("chat", "llama"): one},
        )
    )

    assert 100 * len(json.dumps(to_document(memory))) <= 2**20


def test_the_largest_minutes_are_not_rounded_to_infinity() -> None:
    history = replace(arrivals(1.0), minutes=np.full(3, 65504, "<f2").tobytes())

    kept = bounded(remembered(history)).models[LoadKey("chat", "llama")].arrivals

    assert np.frombuffer(kept.minutes, "<f2").max() == 57344  # 1.75 * 2 ** 15


def of(held: Memory, **changes: object) -> dict[str, Any]:
    return {**to_document(held), **changes}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "want a document of format 'wva-adapter memory'"),
        ({"version": 1}, "want a document of format 'wva-adapter memory'"),
        (of(Memory(), version=0), "memory of version 0, want 2"),
        (of(Memory(), memory=None), "memory: found None, want an object of Memory"),
        (
            of(Memory(), memory={"prior_scale": "high"}),
            "memory: prior_scale: found 'high', want a number",
        ),
        (of(Memory(), memory={}), "memory: field 'prior_scale' is missing"),
        (
            of(Memory(), memory={"prior_scale": 1.0, "capacity": {}}),
            "memory: unknown field 'capacity', want of: models, prior_scale, replicas, variants",
        ),
        (
            of(Memory(), memory={"prior_scale": 1.0, "models": [[["chat", "llama"], {"kept": 3}]]}),
            r"memory: models\[0\]\[1\]\.kept: found 3, want an object of Window",
        ),
    ],
)
def test_what_is_no_memory_of_this_version_is_refused_by_name(
    document: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        from_document(document)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ("not base 64!", "arrivals.rates: packed numbers cannot be unpacked"),
        ("AAAA", "arrivals.rates: packed numbers cannot be unpacked"),
        (
            base64.b85encode(zlib.compress(bytes(12))).decode(),
            "arrivals.rates: packed numbers of 8 bytes each are cut",
        ),
    ],
)
def test_damaged_arrivals_are_refused_by_name(rates: str, message: str) -> None:
    document = to_document(remembered(arrivals(1.0, cycles=3)))
    document["memory"]["models"][0][1]["arrivals"]["rates"] = rates

    with pytest.raises(ValueError, match=message):
        from_document(document)


def test_series_that_do_not_belong_together_are_refused() -> None:
    document = to_document(remembered(arrivals(1.0, cycles=3)))
    del document["memory"]["models"][0][1]["arrivals"]["presents"]

    with pytest.raises(ValueError, match="arrivals: 24, 0 and 0 bytes"):
        from_document(document)


def test_every_field_of_everything_remembered_is_carried() -> None:
    full = filled(Memory)
    assert isinstance(full, Memory)
    assert filled(Memory) == full != Memory()

    assert through_text(full) == full

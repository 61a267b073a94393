from __future__ import annotations

import pytest

from tests.engine.table import Step, fitted, step_s
from wva_adapter.sim.hardware import Hardware

KNOTS = (1, 4, 16, 200, 800)
TRUE = Hardware(
    name="llama-random/cpu/tp1",
    tokens=KNOTS,
    iteration_s=(0.017, 0.028, 0.060, 0.150, 0.700),
    kv_read_s_per_token=2e-6,
    attention_s=150e-9,
    kv_cache_tokens=65_536,
    idle_w=0.0,
    tdp_w=0.0,
    usd_per_h=0.0,
)


def seen(factor: float = 1.0) -> list[Step]:
    decodes = [(n, 0.0, n * held) for n in (1, 2, 4, 8, 16) for held in (100.0, 2000.0)]
    prompts = [(0, float(p), 0.0) for p in (50, 100, 200, 400, 800)]
    kinds = [Step(*kind, 1.0) for kind in (*decodes, *prompts)]
    return [Step(k.decoding, k.prompt_tokens, k.kv_tokens, factor * step_s(TRUE, k)) for k in kinds]


def test_the_table_behind_exact_steps_is_found() -> None:
    found = fitted(TRUE.name, seen(), KNOTS, kv_cache_tokens=65_536)
    assert found.iteration_s == pytest.approx(TRUE.iteration_s, rel=1e-6)
    assert found.kv_read_s_per_token == pytest.approx(2e-6, rel=1e-6)
    assert found.attention_s == pytest.approx(150e-9, rel=1e-6)


def test_a_machine_half_as_fast_has_a_table_twice_as_long() -> None:
    found = fitted(TRUE.name, seen(2.0), KNOTS, kv_cache_tokens=65_536)
    assert found.iteration_s == pytest.approx([2 * s for s in TRUE.iteration_s], rel=1e-6)


def test_a_larger_step_never_takes_less_whatever_was_measured() -> None:
    noisy = [Step(s.decoding, s.prompt_tokens, s.kv_tokens, 0.1 / (1 + s.tokens)) for s in seen()]
    times = fitted(TRUE.name, noisy, KNOTS, kv_cache_tokens=65_536).iteration_s
    assert list(times) == sorted(times)


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="6 steps, want at least 7"):
        fitted(TRUE.name, seen()[:6], KNOTS, kv_cache_tokens=65_536)

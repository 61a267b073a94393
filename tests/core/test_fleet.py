"""Values that no fleet may have are refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import a_variant
from wva_adapter.core.fleet import Reader
from wva_adapter.core.policy import Policy


@pytest.mark.parametrize("cost", [-1.0, float("nan"), float("inf")])
def test_a_cost_must_be_a_finite_number_of_at_least_zero(cost: float) -> None:
    with pytest.raises(ValueError, match=r"chat/llama-a100: cost_per_h .*want a finite number"):
        a_variant(cost=cost)


def test_a_minimum_above_the_maximum_is_refused() -> None:
    with pytest.raises(ValueError, match="max_replicas 2 is below min_replicas 3"):
        a_variant(minimum=3, maximum=2)


@pytest.mark.parametrize("target", [0.0, -1.0, float("nan")])
def test_a_readers_target_must_be_positive(target: float) -> None:
    with pytest.raises(ValueError, match="want a positive number"):
        Reader("hpa", target=target)


def test_clamp_returns_the_nearest_count_within_bounds() -> None:
    variant = a_variant(minimum=2, maximum=4)
    assert [variant.clamp(n) for n in (0, 2, 3, 9)] == [2, 2, 3, 4]
    assert a_variant(maximum=None).clamp(99) == 99


def test_contradicting_thresholds_are_refused_with_both_values() -> None:
    with pytest.raises(ValueError, match=r"got kv_spare_trigger=0.9, kv_cache_threshold=0.8"):
        Policy(kv_spare_trigger=0.9)
    with pytest.raises(ValueError, match="queue_spare_trigger=6"):
        Policy(queue_spare_trigger=6)


@pytest.mark.parametrize("field", ["kv_cache_threshold", "scale_down_window_s", "change_penalty"])
def test_a_policy_takes_no_nan(field: str) -> None:
    changed: dict[str, Any] = {field: float("nan")}
    with pytest.raises(ValueError, match=f"{field} nan"):
        replace(Policy(), **changed)

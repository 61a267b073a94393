from __future__ import annotations

from itertools import pairwise

import pytest

from wva_adapter.errors import ConfigError
from wva_adapter.sim.files import hardware, hardware_names


def test_the_hardware_that_comes_with_the_product_is_known_by_name() -> None:
    assert "llama3-8b/a100/tp1" in hardware_names()
    a100 = hardware("llama3-8b/a100/tp1")
    assert a100.kv_cache_tokens == 403_888
    assert a100.iteration_s[0] == pytest.approx(0.01234)  # one token: 12.34 ms
    assert a100.usd_per_h == 1.8


@pytest.mark.parametrize("name", hardware_names())
def test_larger_steps_never_take_less_time(name: str) -> None:
    times = hardware(name).step_times_s(8192)
    assert len(times) == 8193
    assert all(after >= before > 0 for before, after in pairwise(times))


def test_step_times_are_straight_between_the_measured_ones() -> None:
    times = hardware("llama3-8b/a100/tp1").step_times_s(64)
    assert times[48] == pytest.approx((0.013556 + 0.013876) / 2)  # halfway from 32 to 64 tokens


def test_a_misspelt_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(
        ConfigError, match=r"'llama3-8b/a100': unknown; did you mean llama3-8b/a100/tp1\?"
    ):
        hardware("llama3-8b/a100")


def test_a_name_like_no_other_is_refused_with_all_there_are() -> None:
    with pytest.raises(
        ConfigError, match="'tpu': unknown; known: llama3-8b/a100/tp1, llama3-8b/h100"
    ):
        hardware("tpu")

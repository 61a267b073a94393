from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path

import pytest

from wva_adapter.errors import ConfigError
from wva_adapter.sim.files import (
    conversation,
    hardware,
    hardware_names,
    parse_trace,
    read_trace,
)


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


def test_the_conversation_trace_is_the_published_hour() -> None:
    trace = conversation()
    assert len(trace.arrived_s) == 19_366
    assert trace.arrived_s[0] == 0
    assert trace.arrived_s[-1] == pytest.approx(3501.72, abs=0.01)
    assert trace.prompt_tokens.mean() == pytest.approx(1154.7, abs=0.1)
    assert trace.output_tokens.mean() == pytest.approx(211.1, abs=0.1)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ("-1,5,5", r"row 1: arrival '-1', want a finite number of seconds, at least 0"),
        ("0,5,5\nnan,5,5", r"row 2: arrival 'nan', want a finite number"),
        ("0,5,5\ninf,5,5", r"row 2: arrival 'inf', want a finite number"),
        ("at,p,o\n3,5,5\n2,5,5", r"row 3: arrival 2 s comes after one at 3 s"),
        ("0,5,5\n1,0,5", r"row 2: prompt tokens '0', want a whole number, at least 1"),
        ("0,5,5\n1,5,2.5", r"row 2: output tokens '2.5', want a whole number"),
        ("0,5,5\n1,5", r"row 2: 2 columns, want arrival second"),
        ("0,5,5\nx,5,5", r"row 2: arrival 'x', want"),
        ("at,p,o\n", r"no arrivals, want at least one row"),
    ],
)
def test_a_bad_row_of_a_trace_is_refused_by_its_number(rows: str, why: str) -> None:
    with pytest.raises(ConfigError, match=r"here: " + why):
        parse_trace(rows, "here")


def test_a_trace_may_be_packed(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv.gz"
    file.write_bytes(gzip.compress(b"0,5,6\n1,7,8\n"))
    trace = read_trace(file)
    assert trace.prompt_tokens.tolist() == [5, 7]
    file.write_bytes(gzip.compress(b"0,5,6\n1,7,8\n")[:-9])
    with pytest.raises(ConfigError, match=r"trace .*trace\.csv\.gz: "):
        read_trace(file)

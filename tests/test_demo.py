"""The demo: everything at once, briefly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wva_adapter.core.fleet import VariantKey
from wva_adapter.demo.scene import A100, H100, LOADS, service_rate_per_s, variants
from wva_adapter.demo.screen import Change, DemoSummary

PROGRAM = Path(sys.executable).parent / "wva-adapter"


def test_a_short_demo_serves_all_and_writes_its_summary(tmp_path: Path) -> None:
    summary = tmp_path / "demo.json"
    ended = subprocess.run(
        [PROGRAM, "demo", "--for", "6s", "--seed", "3", "--json", summary],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    document = json.loads(summary.read_text())
    assert document["failed"] == 0
    assert document["requests"] > 25  # 24 s of the demo, 2 and 0.5 requests per second
    assert document["usd"] > 0
    assert {"in_slo_pct", "usd_all_h100", "decisions"} <= document.keys()
    assert "chat/llama-a100" in ended.stderr
    assert "an all-H100 fleet of the same capacity" in ended.stderr
    assert "\x1b" not in ended.stderr  # plain lines where there is no terminal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_cleanly_and_leaves_nothing(number: signal.Signals) -> None:
    with subprocess.Popen(
        [PROGRAM, "demo", "--for", "60s"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stderr is not None
            process.stderr.readline()
            time.sleep(1.5)
            process.send_signal(number)
            _, err = process.communicate(timeout=20)
            assert process.returncode == 0, err
            assert "requests" in err
            assert "Traceback" not in err
        finally:
            process.kill()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_an_a100_replica_is_cheaper_per_capacity_here() -> None:
    by_key = {variant.key: variant for variant in variants()}
    a100, h100 = by_key[A100], by_key[H100]
    assert (a100.cost_per_h, h100.cost_per_h) == (1.20, 3.90)
    price = {v.key: v.cost_per_h / service_rate_per_s(v) for v in (a100, h100)}
    assert price[A100] < price[H100]


def test_a_short_demo_rises_no_steeper_and_less_high() -> None:
    hill = LOADS["llama-3-8b"]
    for length_s in (60.0, 240.0, 600.0, 1200.0):
        points = hill.schedule(length_s)
        assert points[-1][0] == length_s
        (start_s, low), (top_s, high) = points[1], points[2]
        assert (high - low) / (top_s - start_s) <= hill.steepest_per_s2 + 1e-9
        assert high <= hill.peak_per_s


def test_the_summary_has_the_promised_shape() -> None:
    change = Change(12.5, VariantKey("chat", "llama"), 1, 2, "follow_demand: full")
    summary = DemoSummary(requests=4, in_slo=3, failed=1, usd=0.5, changes=[change])
    document = summary.document()
    assert document["in_slo_pct"] == 75
    assert document["decisions"] == [
        {
            "t_s": 12.5,
            "namespace": "chat",
            "name": "llama",
            "from": 1,
            "to": 2,
            "why": "follow_demand: full",
        }
    ]
    assert DemoSummary().document()["in_slo_pct"] is None

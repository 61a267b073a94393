"""A backtest of what a real Prometheus holds comes to what one of the recording does."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.cluster import free_port
from tests.e2e.prometheus import process, prometheus
from tests.sim.recorded import record
from wva_adapter.backtest import Comparison, held_against, of_recording
from wva_adapter.backtest.prometheus import PAGE_S, of_prometheus
from wva_adapter.collect.record import open_recording
from wva_adapter.core.memory import Memory
from wva_adapter.core.snapshot import ReplicaSample
from wva_adapter.sim import files
from wva_adapter.sim.hindsight import Judged
from wva_adapter.sim.scenarios import scenario

BEGIN_S = 1_750_000_005
SERIES = {
    "vllm:num_requests_running": "running_requests",
    "vllm:num_requests_waiting": "queued_requests",
    "vllm:kv_cache_usage_perc": "kv_cache_usage",
    "vllm:prompt_tokens_total": "prompt_tokens_total",
    "vllm:generation_tokens_total": "generation_tokens_total",
    "vllm:request_success_total": "successes_total",
    "vllm:time_to_first_token_seconds_sum": "ttft_sum_s",
    "vllm:time_to_first_token_seconds_count": "ttft_count",
    "vllm:inter_token_latency_seconds_sum": "itl_sum_s",
    "vllm:inter_token_latency_seconds_count": "itl_count",
    "vllm:request_prefill_time_seconds_sum": "prefill_sum_s",
    "vllm:request_prompt_tokens_sum": "input_tokens_sum",
    "vllm:request_prompt_tokens_count": "input_tokens_count",
    "vllm:request_generation_tokens_sum": "output_tokens_sum",
    "vllm:request_generation_tokens_count": "output_tokens_count",
}


def open_metrics(recording: Path) -> Iterator[str]:
    """Yield the pages of a recording as text with times, for ``promtool`` to make blocks of."""
    pages = [
        (snapshot.at_s, r.name, r.sample)
        for snapshot in (cycle.snapshot for cycle in open_recording(recording).cycles())
        for state in snapshot.variants
        for r in state.ready
        if r.sample is not None
    ]
    for series, field in SERIES.items():
        yield f"# TYPE {series} unknown\n"
        for at_s, pod, sample in sorted(pages, key=lambda page: (page[1], page[0])):
            labels = f'namespace="sim",pod="{pod}",model_name="llama"'
            yield f"{series}{{{labels}}} {_value(sample, field)} {BEGIN_S + at_s:.3f}\n"
    yield "# EOF\n"


def _value(sample: ReplicaSample, field: str) -> float:
    return float(getattr(sample, field))


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Comparison]:
    """The recording itself, and what Prometheus has of it."""
    folder = tmp_path_factory.mktemp("prometheus")
    recording = folder / "run.jsonl"
    record(scenario("S1b", files), recording, gateway=False)
    with (folder / "past.txt").open("w") as file:
        file.writelines(open_metrics(recording))
    promtool = shutil.which("promtool")
    assert promtool is not None
    blocks = [promtool, "tsdb", "create-blocks-from", "openmetrics", "past.txt", "tsdb"]
    subprocess.run(blocks, cwd=folder, check=True, capture_output=True, timeout=60)
    (folder / "prometheus.yaml").write_text("{}")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command: list[str | Path] = [
        prometheus(),
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        "--storage.tsdb.retention.time=100y",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    policies = ["demand", "demand-premium", "inflight-16"]
    with process(folder, "prometheus", *command):
        _wait(url)
        cycles = of_prometheus(
            url, from_s=BEGIN_S, to_s=BEGIN_S + 1800, on_share=lambda share: None
        )
        from_prometheus = held_against(url, cycles, Memory(), policies)
    from_recording = of_recording(recording, policies, since_s=None, on_share=lambda share: None)
    return from_recording, from_prometheus


def _wait(url: str) -> None:
    for _ in range(100):
        try:
            if httpx.get(f"{url}/-/ready", trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise AssertionError("Prometheus is not ready after 20 s")


def test_every_cycle_of_its_time_is_read(tested: tuple[Comparison, Comparison]) -> None:
    _, found = tested
    assert found.problem is None
    assert found.cycles == pytest.approx(1800 / 15, abs=2)
    assert PAGE_S / 15 < 11_000


@pytest.mark.parametrize("policy", ["recorded", "demand", "demand-premium", "inflight-16"])
def test_policies_ask_for_as_much_as_by_the_recording(
    policy: str, tested: tuple[Comparison, Comparison]
) -> None:
    by_recording, by_prometheus = (_of(policy, found) for found in tested)
    # What is decided depends on which moments were seen: every fifth second, or every fifteenth.
    # A law that keeps the largest of five minutes differs most; a step is seen some cycles later.
    off = {"recorded": 0.1, "inflight-16": 0.2}.get(policy, 0.15)
    assert by_prometheus.replica_hours == pytest.approx(by_recording.replica_hours, rel=off)
    assert by_prometheus.short_s == pytest.approx(by_recording.short_s, abs=120)


def _of(policy: str, found: Comparison) -> Judged:
    return next(judged for judged in found.found.judged if judged.policy == policy)

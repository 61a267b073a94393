"""The page against pages that were captured from a real vLLM 0.32.0."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from wva_adapter.emulator.http_page import HttpAnswer
from wva_adapter.emulator.page import MetricsPage
from wva_adapter.sim.files import hardware
from wva_adapter.sim.replica import Replica
from wva_adapter.sim.request import Request

DATA = Path(__file__).parent.parent / "data"

Series = tuple[str, str, tuple[tuple[str, str], ...]]
"""Type of the family, name, labels."""

FREE_VALUES = {"model_name", "handler", "status", "method", "version", "patchlevel", "minor"}
"""Labels whose values differ from server to server; those of cache_config_info do too."""


class Engine:
    """A replica and its page, as one server with ``--max-model-len 2048 --max-num-seqs 8``."""

    def __init__(self, *, kv_cache_tokens: int = 23 * 128) -> None:
        self.replica = Replica(
            hardware("qwen3-0.6b/h100/tp1"), max_num_seqs=8, kv_cache_tokens=kv_cache_tokens
        )
        self.page = MetricsPage(
            self.replica, model="tiny", max_model_len=2048, created_s=time.time()
        )
        self.replica.observer = self.page
        self._answer("/v1/models", "GET")

    def serve(self, requests: int, *, until_s: float, tokens: int = 400) -> None:
        """Let requests of 60 prompt tokens arrive at once, and time pass."""
        for _ in range(requests):
            self.replica.submit(Request(60, tokens), self.replica.now_s)
        progress = self.replica.advance(until_s)
        for request in progress.started:
            self.page.start(request)
        for request in progress.finished:
            self.page.finish(request, "length", request.output_tokens)
            self._answer("/v1/completions", "POST")

    def _answer(self, handler: str, method: str) -> None:
        self.page.answer(
            HttpAnswer(
                handler=handler,
                method=method,
                status=200,
                request_bytes=100,
                response_bytes=0,
                duration_s=0.2,
            )
        )

    def text(self) -> str:
        return self.page.render().decode()

    def value(self, name: str, **labels: str) -> float:
        """Return the value of the one series of this name with these labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        (found,) = (
            line
            for line in self.text().splitlines()
            if line.startswith(f"{name}{{") and all(label in line for label in wanted)
        )
        return float(found.rsplit(" ", 1)[1])


def series(text: str) -> Iterator[Series]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {
                key: "*" if key in FREE_VALUES or family.name.endswith("config_info") else value
                for key, value in sample.labels.items()
            }
            yield family.type, sample.name, tuple(sorted(labels.items()))


def captured(state: str) -> str:
    return (DATA / f"vllm-0.32.0-{state}.txt").read_text()


@pytest.fixture
def fresh() -> Engine:
    return Engine()


@pytest.fixture
def used() -> Engine:
    engine = Engine()
    engine.serve(3, until_s=0.0)
    engine.serve(40, until_s=20.0)
    return engine


@pytest.mark.parametrize("state", ["fresh", "running"])
def test_before_the_first_answer_the_page_has_the_series_of_a_real_one(
    fresh: Engine, state: str
) -> None:
    assert set(series(fresh.text())) == set(series(captured(state)))


@pytest.mark.parametrize(
    "state",
    [
        "saturated",
        "saturated-kv-full",
        "idle",
        "after-aborts",
        "idle-prefix-hits-and-errors",
        "two-served-names-running",
        "draining",
        "admission-rejections",
    ],
)
def test_after_use_the_page_has_the_series_of_a_real_one(used: Engine, state: str) -> None:
    # Both were asked for their models and for completions; labels of other answers are values.
    ours, theirs = set(series(used.text())), set(series(captured(state)))
    assert {s for s in ours ^ theirs if s[1].startswith("vllm:")} == set()
    assert ours == theirs


def test_the_order_of_families_is_that_of_a_real_page(used: Engine) -> None:
    def families(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith("# TYPE")]

    assert families(used.text()) == families(captured("saturated"))


def test_gauges_follow_the_replica() -> None:
    engine = Engine()
    engine.serve(40, until_s=0.1)
    engine.replica.advance(0.2)
    assert engine.value("vllm:num_requests_running") == 8
    assert engine.value("vllm:num_requests_waiting") == 32
    assert engine.value("vllm:num_requests_waiting_by_reason", reason="capacity") == 32
    assert engine.value("vllm:num_requests_waiting_by_reason", reason="deferred") == 0
    # 23 · 128 tokens are 184 blocks of 16. A real page has one more, which is never given away.
    config = next(line for line in engine.text().splitlines() if "cache_config_info{" in line)
    assert 'num_gpu_blocks="185"' in config
    assert 'kv_cache_size_tokens="2960"' in config
    blocks = engine.replica.kv_blocks(16)
    assert blocks >= 8 * 60 / 16
    assert engine.value("vllm:kv_cache_usage_perc") == pytest.approx(blocks / 184)


def test_usage_never_exceeds_one() -> None:
    engine = Engine(kv_cache_tokens=330)
    highest = 0.0
    engine.serve(12, until_s=0.01, tokens=100)
    for step in range(2, 300):
        engine.serve(0, until_s=step / 100)
        highest = max(highest, engine.value("vllm:kv_cache_usage_perc"))
    assert 0.9 < highest <= 1.0
    assert engine.value("vllm:num_preemptions_total") > 0
    assert engine.value("vllm:request_num_preemptions_sum") == engine.value(
        "vllm:num_preemptions_total"
    )


def test_counters_and_histograms_agree_as_on_a_real_page(used: Engine) -> None:
    # 43 requests of 60 and 400 tokens, all done.
    assert used.value("vllm:prompt_tokens_total") == 43 * 60
    assert used.value("vllm:prompt_tokens_by_source_total", source="local_compute") == 43 * 60
    assert used.value("vllm:generation_tokens_total") == 43 * 400
    assert used.value("vllm:request_success_total", finished_reason="length") == 43
    assert used.value("vllm:time_to_first_token_seconds_count") == 43
    assert used.value("vllm:inter_token_latency_seconds_count") == 43 * 399
    assert used.value("vllm:iteration_tokens_total_sum") == 43 * 460
    assert used.value("vllm:inter_token_latency_seconds_sum") == pytest.approx(
        used.value("vllm:request_decode_time_seconds_sum")
    )
    assert used.value("vllm:e2e_request_latency_seconds_sum") == pytest.approx(
        used.value("vllm:request_queue_time_seconds_sum")
        + used.value("vllm:request_prefill_time_seconds_sum")
        + used.value("vllm:request_decode_time_seconds_sum")
    )
    assert used.value("vllm:num_requests_running") == 0
    assert used.value("vllm:kv_cache_usage_perc") == 0

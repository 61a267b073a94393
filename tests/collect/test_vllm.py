from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from wva_adapter.collect.engines import Reading, detect, inspect_document, inspect_page
from wva_adapter.core.snapshot import ReplicaSample
from wva_adapter.errors import CollectError, ConfigError

DATA = Path(__file__).parent.parent / "data"


def inspect(text: str) -> Reading:
    return inspect_page(text.encode(), "vllm", at_s=100.0, source="pod-0")


def inspect_file(name: str) -> Reading:
    return inspect_page((DATA / f"{name}.txt").read_bytes(), None, at_s=100.0, source=name)


def page(name: str) -> ReplicaSample:
    return inspect_file(name).total


@dataclass(frozen=True)
class Stood:
    """What a server was doing when its page was taken."""

    running: float
    queued: float
    usage: float
    preemptions: float
    tokens: int = 3072  # 24 blocks of 128 tokens
    deferred: float | None = 0
    awake: bool | None = True
    rejections: float | None = None
    names: tuple[str, ...] = ("tiny",)


STOOD = {
    # The load generator had 40 requests open against 8 places; later memory allowed 5 only.
    "vllm-0.32.0-fresh": Stood(0, 0, 0, 0, rejections=0),
    "vllm-0.32.0-running": Stood(3, 0, 6 / 23, 0, rejections=0),
    "vllm-0.32.0-saturated": Stood(8, 32, 22 / 23, 2, rejections=0),
    "vllm-0.32.0-saturated-kv-full": Stood(5, 26, 1, 17, rejections=0),
    "vllm-0.32.0-idle": Stood(0, 0, 0, 70, rejections=0),
    "vllm-0.32.0-after-aborts": Stood(0, 0, 0, 70, rejections=0),
    "vllm-0.32.0-idle-prefix-hits-and-errors": Stood(0, 0, 0, 70, rejections=0),
    # 400 blocks; the first of two served names is the one on the page.
    "vllm-0.32.0-two-served-names-running": Stood(
        4, 0, 7 / 399, 0, 51200, rejections=0, names=("alpha",)
    ),
    "vllm-0.32.0-draining": Stood(8, 2, 184 / 399, 0, 51200, rejections=0, names=("alpha",)),
    # 64 blocks; 25 of 37 requests found the queue of 6 full.
    "vllm-0.32.0-admission-rejections": Stood(0, 0, 0, 2, 8192, rejections=25, names=("alpha",)),
    "vllm-0.32.0-asleep-level1": Stood(
        0, 0, 0, 2, 8192, awake=False, rejections=25, names=("alpha",)
    ),
    "vllm-0.32.0-asleep-level2": Stood(
        0, 0, 0, 2, 8192, awake=False, rejections=25, names=("alpha",)
    ),
    # 16384 blocks; 6 of 12 requests wait for one of two LoRA slots, none for capacity.
    "vllm-0.32.0-lora-fresh": Stood(0, 0, 0, 0, 2097152, rejections=0),
    "vllm-0.32.0-lora-running": Stood(3, 0, 5 / 16383, 0, 2097152, rejections=0),
    "vllm-0.32.0-lora-saturated-deferred": Stood(
        6, 0, 36 / 16383, 0, 2097152, deferred=6, rejections=0
    ),
    "vllm-0.32.0-lora-idle": Stood(0, 0, 0, 0, 2097152, rejections=0),
    # Two ranks: 4 + 4 run, 16 + 14 wait, usage 1.0 and 17/23 of equal caches.
    "vllm-0.32.0-dp2-saturated": Stood(8, 30, 20 / 23, 25 + 24, 6144, rejections=0),
    "vllm-0.32.0-dp2-idle": Stood(0, 0, 0, 33 + 29, 6144, rejections=0),
    "vllm-0.24.0-fresh": Stood(0, 0, 0, 0),
    "vllm-0.24.0-running": Stood(3, 0, 4 / 23, 0),
    "vllm-0.24.0-saturated": Stood(4, 22, 1, 9),
    "vllm-0.24.0-idle": Stood(0, 0, 0, 53),
    "vllm-0.20.2-fresh": Stood(0, 0, 0, 0),
    "vllm-0.20.2-running": Stood(3, 0, 6 / 23, 0),
    "vllm-0.20.2-saturated": Stood(8, 18, 20 / 23, 3),
    "vllm-0.20.2-idle": Stood(0, 0, 0, 47),
    # Reasons of waiting came after 0.12, the sleep state after 0.10.
    "vllm-0.12.0.post2-fresh": Stood(0, 0, 0, 0, deferred=None),
    "vllm-0.12.0.post2-running": Stood(3, 0, 7 / 23, 0, deferred=None),
    "vllm-0.12.0.post2-saturated": Stood(8, 22, 20 / 23, 2, deferred=None),
    "vllm-0.12.0.post2-idle": Stood(0, 0, 0, 53, deferred=None),
    # 80 blocks, and old and new names of one quantity side by side.
    "vllm-0.10.2.post2-fresh": Stood(0, 0, 0, 0, 10240, deferred=None, awake=None),
    "vllm-0.10.2.post2-running": Stood(3, 0, 6 / 79, 0, 10240, deferred=None, awake=None),
    "vllm-0.10.2.post2-saturated": Stood(8, 28, 11 / 79, 0, 10240, deferred=None, awake=None),
    "vllm-0.10.2.post2-idle": Stood(0, 0, 0, 0, 10240, deferred=None, awake=None),
    # V0: 192 blocks of 16 tokens.
    "vllm-0.8.5.post2-running": Stood(3, 0, 44 / 192, 0, deferred=None, awake=None),
    "vllm-0.8.5.post2-saturated": Stood(8, 18, 156 / 192, 2, deferred=None, awake=None),
    "vllm-0.8.5.post2-idle": Stood(0, 0, 0, 56, deferred=None, awake=None),
}
NEVER_USED = ("vllm-0.32.0-dp2-fresh", "vllm-0.8.5.post2-fresh")


@pytest.mark.parametrize("name", STOOD)
def test_a_page_tells_what_its_server_was_doing(name: str) -> None:
    stood, sample = STOOD[name], page(name)
    assert sample.running_requests == stood.running
    assert sample.queued_requests == stood.queued
    assert sample.deferred_requests == stood.deferred
    assert sample.kv_cache_usage == pytest.approx(stood.usage)
    assert sample.preemptions_total == stood.preemptions
    assert sample.kv_cache_tokens == stood.tokens
    assert sample.awake is stood.awake
    assert sample.rejections_total == stood.rejections
    assert sample.model_names == stood.names
    assert sample.at_s == 100


def test_every_captured_page_is_in_these_tests() -> None:
    assert {path.stem for path in DATA.glob("vllm-*.txt")} == {*STOOD, *NEVER_USED}


def test_ranks_are_told_apart_and_summed() -> None:
    ranks = inspect_file("vllm-0.32.0-dp2-saturated").ranks
    assert list(ranks) == [0, 1]
    assert [rank.queued_requests for rank in ranks.values()] == [16, 14]
    assert [rank.kv_cache_usage for rank in ranks.values()] == [1.0, pytest.approx(17 / 23)]
    assert [rank.kv_cache_tokens for rank in ranks.values()] == [3072, 3072]
    # Both have finished some of the 163 requests in the counters of earlier bursts.
    assert [rank.successes_total for rank in ranks.values()] == [81, 82]
    assert page("vllm-0.32.0-dp2-saturated").successes_total == 163


def test_a_data_parallel_engine_that_never_served_is_seen_and_idle() -> None:
    sample = page("vllm-0.32.0-dp2-fresh")
    assert sample.kv_cache_usage is None
    assert sample.running_requests is None
    assert sample.queued_requests is None
    assert sample.generation_tokens_total == 0
    assert sample.kv_cache_tokens == 6144
    assert sample.awake is True
    assert sample.unused


def test_a_v0_engine_that_never_served_shows_its_configuration_only() -> None:
    sample = page("vllm-0.8.5.post2-fresh")
    told = {"replica", "at_s", "kv_cache_tokens"}
    values = inspect_document(inspect_file("vllm-0.8.5.post2-fresh"))["total"]
    assert isinstance(values, dict)
    assert {name for name, value in values.items() if value is not None} <= told
    assert sample.kv_cache_tokens == 3072  # 192 blocks of 16
    assert sample.unused


def test_counters_of_finished_requests_agree_with_the_load() -> None:
    idle = page("vllm-0.32.0-idle")
    assert idle.successes_total == 43  # 3 and then 40 requests, all ended by length
    assert idle.input_tokens_count == idle.output_tokens_count == idle.ttft_count == 43
    # One gap fewer than tokens per request, since the engine gives out one token per step.
    assert idle.generation_tokens_total is not None
    assert idle.itl_count == idle.generation_tokens_total - 43

    left = page("vllm-0.32.0-after-aborts")
    assert left.successes_total == 43 + 6 + 5  # 6 more by length, 5 by stop string
    assert left.aborts_total == 0  # the 12 clients that left are counted nowhere ...
    assert left.ttft_count == 43 + 11 + 11  # ... but for the 11 that had got a token


def test_cached_prompt_tokens_are_not_computed_ones() -> None:
    sample = page("vllm-0.32.0-idle-prefix-hits-and-errors")
    assert sample.prompt_tokens_total == 7853
    assert sample.computed_prompt_tokens_total == 7853 - 512  # one prompt sent three times


def test_cache_hits_are_taken_away_where_sources_are_not_counted() -> None:
    reading = inspect(
        'vllm:prompt_tokens_total{engine="0"} 1000\n'
        'vllm:prefix_cache_hits_total{engine="0"} 300\n'
        'vllm:external_prefix_cache_hits_total{engine="0"} 200\n'
    )
    assert reading.total.computed_prompt_tokens_total == 500
    assert str(reading.origins["computed_prompt_tokens_total"]) == (
        'vllm:prompt_tokens_total{engine="0"}'
        ' - vllm:prefix_cache_hits_total{engine="0"}'
        ' - vllm:external_prefix_cache_hits_total{engine="0"}'
    )
    # 0.10.2 counts hits under two names, and none of external caches.
    older = page("vllm-0.10.2.post2-idle")
    assert older.computed_prompt_tokens_total == older.prompt_tokens_total == 6203
    # V0 counts no hits: how many of its 26669 prompt tokens were computed is unknown.
    oldest = page("vllm-0.8.5.post2-idle")
    assert (oldest.prompt_tokens_total, oldest.computed_prompt_tokens_total) == (26669, None)


def test_an_old_name_counts_only_where_the_new_one_is_missing() -> None:
    both = page("vllm-0.10.2.post2-idle")
    assert both.itl_count == 11003  # time_per_output_token_seconds_count says it a second time
    assert page("vllm-0.8.5.post2-idle").itl_count == 30467  # only the old name


def test_the_simulators_label_for_finished_reasons_is_read() -> None:
    total = inspect(
        'vllm:request_success_total{model_name="m",finish_reason="stop"} 3\n'
        'vllm:request_success_total{model_name="m",finish_reason="length"} 4\n'
        'vllm:request_success_total{model_name="m",finish_reason="abort"} 1\n'
    ).total
    assert (total.successes_total, total.aborts_total) == (7, 1)


def test_numbers_that_count_nothing_are_unknown() -> None:
    for value in ("NaN", "+Inf", "-1"):
        total = inspect(
            f"vllm:num_requests_running {value}\n"
            f"vllm:kv_cache_usage_perc {value}\n"
            f"vllm:generation_tokens_total {value}\n"
        ).total
        assert total.running_requests is None, value
        assert total.kv_cache_usage is None, value
        assert total.generation_tokens_total is None, value
        asleep = inspect(f'vllm:engine_sleep_state{{sleep_state="awake"}} {value}\n').total
        assert asleep.awake is None, value
    assert inspect("vllm:kv_cache_usage_perc 57\n").total.kv_cache_usage is None  # no share
    assert inspect("vllm:kv_cache_usage_perc 1.0000000000000002\n").total.kv_cache_usage == 1


def test_a_page_without_numbers_is_not_that_of_an_idle_engine() -> None:
    config = 'vllm:cache_config_info{num_gpu_blocks="24",block_size="128"} 1\n'
    gauges = 'vllm:num_requests_running{model_name="m"} NaN\n'
    tokens = 'vllm:generation_tokens_total{model_name="m"} NaN\n'
    assert inspect(config).total.unused
    assert not inspect(config + gauges).total.unused
    assert not inspect(config + gauges + tokens).total.unused
    assert not inspect(gauges).total.unused


def test_one_unknown_number_makes_the_sum_unknown() -> None:
    served = (
        'vllm:generation_tokens_total{engine="0"} 5\nvllm:generation_tokens_total{engine="1"} 5\n'
    )
    total = inspect(
        served
        + 'vllm:num_requests_running{engine="0"} 3\nvllm:num_requests_running{engine="1"} NaN\n'
    ).total
    assert total.running_requests is None
    # Missing, on a rank that has served: not zero either.
    assert (
        inspect(served + 'vllm:num_requests_running{engine="0"} 3\n').total.running_requests is None
    )


def test_a_rank_that_never_served_counts_as_idle_beside_one_that_did() -> None:
    total = inspect(
        'vllm:prompt_tokens_total{engine="0"} 9\nvllm:prompt_tokens_total{engine="1"} 0\n'
        'vllm:generation_tokens_total{engine="0"} 5\nvllm:generation_tokens_total{engine="1"} 0\n'
        'vllm:num_requests_running{engine="0"} 3\n'
        'vllm:kv_cache_usage_perc{engine="0"} 0.8\n'
        'vllm:cache_config_info{engine="0",num_gpu_blocks="300",block_size="10"} 1\n'
        'vllm:cache_config_info{engine="1",num_gpu_blocks="100",block_size="10"} 1\n'
    ).total
    assert total.running_requests == 3
    assert total.kv_cache_usage == pytest.approx(0.6)  # 0.8 of 3000 tokens and 0 of 1000


def test_usage_is_the_plain_mean_where_a_rank_does_not_tell_its_size() -> None:
    total = inspect(
        'vllm:kv_cache_usage_perc{engine="0"} 0.8\n'
        'vllm:kv_cache_usage_perc{engine="1"} 0.4\n'
        'vllm:cache_config_info{engine="0",num_gpu_blocks="300",block_size="10"} 1\n'
    ).total
    assert total.kv_cache_usage == pytest.approx(0.6)
    assert total.kv_cache_tokens is None


def test_a_replica_is_awake_if_any_rank_is() -> None:
    def awake(*ranks: int) -> bool | None:
        return inspect(
            "".join(
                f'vllm:engine_sleep_state{{engine="{rank}",sleep_state="awake"}} {state}\n'
                f'vllm:engine_sleep_state{{engine="{rank}",sleep_state="discard_all"}} {1 - state}\n'
                for rank, state in enumerate(ranks)
            )
        ).total.awake

    assert awake(0, 1) is True
    assert awake(0, 0) is False


def test_the_size_of_the_cache_is_what_the_engine_says() -> None:
    def tokens(labels: str) -> int | None:
        return inspect(f"vllm:cache_config_info{{{labels}}} 1\n").total.kv_cache_tokens

    blocks = 'block_size="16",num_gpu_blocks="118"'
    assert tokens(f'kv_cache_size_tokens="90000",{blocks}') == 90000
    assert tokens(f'kv_cache_size_tokens="None",{blocks}') == 1888  # 118 x 16
    assert tokens(blocks) == 1888
    assert tokens('block_size="16",num_gpu_blocks="None"') is None
    assert tokens('effective_block_size="16",num_gpu_blocks_override="118"') is None


def test_a_series_that_stands_there_twice_counts_once() -> None:
    total = inspect(
        'vllm:num_requests_running{a="1",b="2"} 3\nvllm:num_requests_running{b="2",a="1"} 3\n'
    ).total
    assert total.running_requests == 3


def test_waiting_for_capacity_is_told_from_other_waiting() -> None:
    total = inspect(
        "vllm:num_requests_waiting 9\n"
        'vllm:num_requests_waiting_by_reason{reason="capacity"} 2\n'
        'vllm:num_requests_waiting_by_reason{reason="deferred"} 7\n'
    ).total
    assert (total.queued_requests, total.deferred_requests) == (2, 7)
    total = inspect("vllm:num_requests_waiting 9\n").total
    assert (total.queued_requests, total.deferred_requests) == (9, None)


def test_the_document_says_where_each_value_is_from() -> None:
    document = inspect_document(inspect_file("vllm-0.32.0-saturated"))
    assert json.loads(json.dumps(document)) == document
    assert list(document) == ["engine", "ranks", "model_names", "total", "sources"]
    assert document["engine"] == "vllm"
    assert document["model_names"] == ["tiny"]
    total, ranks, sources = document["total"], document["ranks"], document["sources"]
    assert isinstance(total, dict)
    assert isinstance(ranks, list)
    assert isinstance(sources, dict)
    assert ranks == [{"rank": 0, **total, "rejections_total": None}]
    assert {name for name, value in total.items() if value is not None} == set(sources)
    assert sources["queued_requests"] == (
        'vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"}'
    )
    assert sources["kv_cache_tokens"] == (
        'vllm:cache_config_info{engine="0",kv_cache_size_tokens="3072"}'
    )
    assert sources["rejections_total"] == (
        'vllm:admission_rejections_total{model_name="tiny",reason="max_num_queued_reqs"}'
        ' + vllm:admission_rejections_total{model_name="tiny",reason="max_num_queued_tokens"}'
    )


def test_the_document_has_every_field_of_a_rank() -> None:
    document = inspect_document(inspect_file("vllm-0.8.5.post2-fresh"))
    ranks = document["ranks"]
    assert isinstance(ranks, list)
    every = """
        rank awake kv_cache_usage kv_cache_tokens running_requests queued_requests
        deferred_requests prompt_tokens_total computed_prompt_tokens_total
        generation_tokens_total successes_total aborts_total preemptions_total
        rejections_total ttft_sum_s ttft_count itl_sum_s itl_count prefill_sum_s input_tokens_sum
        input_tokens_count output_tokens_sum output_tokens_count
    """
    assert list(ranks[0]) == every.split()


def test_a_page_of_no_known_engine_is_refused_with_what_it_has() -> None:
    with pytest.raises(
        CollectError, match=r"no known engine: it has triton:, python_; want vllm: \(vllm\)"
    ):
        inspect_page(
            b"# HELP triton:x vllm:\ntriton:x 1\npython_info 1\n", None, at_s=0, source="pod-0"
        )
    with pytest.raises(CollectError, match="no known engine: it has no metrics"):
        inspect_page(b"<html>vllm: not found</html>\n", None, at_s=0, source="pod-0")
    with pytest.raises(CollectError, match="no series of vLLM"):
        inspect_page(b"triton:x 1\n", "vllm", at_s=0, source="pod-0")


def test_an_engine_that_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="engine 'vlm' is not known; known are vllm"):
        inspect_page(b"vllm:x 1\n", "vlm", at_s=0, source="pod-0")


def test_an_engine_is_detected_by_its_prefix_at_the_start_of_a_line() -> None:
    assert detect(b"vllm:x 1\n", "pod-0") == "vllm"
    assert detect(b"x 1\nvllm:x 1\n", "pod-0") == "vllm"


def test_a_rank_that_is_no_number_is_refused() -> None:
    with pytest.raises(CollectError, match='engine="a"}: want a rank number'):
        inspect('vllm:num_requests_running{engine="a"} 1\n')

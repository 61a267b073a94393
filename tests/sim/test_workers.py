from __future__ import annotations

import os
import signal
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from wva_adapter.errors import ConfigError
from wva_adapter.sim import workers
from wva_adapter.sim.workers import Changes, Done, Job, Progress, check, staged, work, work_all

QUICK = Changes(timeout_s=30.0)


class Told(Progress):
    def __init__(self, jobs: list[Job]) -> None:
        super().__init__(jobs)
        self.passed_s = 0.0
        self.runs: list[Done] = []

    def passed(self, model_s: float) -> None:
        self.passed_s += model_s

    def done(self, done: Done) -> None:
        self.runs.append(done)


def test_runs_come_back_in_the_order_asked_for_and_equal_in_any_number_of_processes() -> None:
    jobs = [
        Job("S1c", policy, seed) for policy in ("inflight-16", "inflight-64") for seed in (0, 1)
    ]
    alone, together = Told(jobs), Told(jobs)
    one = work_all(jobs, alone, processes=1)
    two = work_all(jobs, together, processes=2)
    assert [done.job for done in one] == [done.job for done in two] == jobs
    assert [done.outcome.digest for done in one] == [done.outcome.digest for done in two]
    assert alone.model_s == 4 * 2100
    for told in (alone, together):
        assert len(told.runs) == 4
        assert 0.9 * told.model_s <= told.passed_s <= told.model_s


def test_an_interruption_leaves_what_is_done() -> None:
    jobs = [Job("S1c", "inflight-16", seed) for seed in range(3)]

    class Interrupted(Told):
        def done(self, done: Done) -> None:
            super().done(done)
            if len(self.runs) == 2:
                raise KeyboardInterrupt

    told = Interrupted(jobs)
    assert [done.job for done in work_all(jobs, told, processes=1)] == jobs[:2]


def test_changes_reach_the_scenario() -> None:
    setting = staged(
        "S2", Changes(startup_s=7, slo_ttft_s=1, slo_itl_s=0.03, timeout_s=60, grace_s=1)
    )
    assert [deployed.startup_s for deployed in setting.fleet] == [7, 7]
    assert (setting.slo.ttft_s, setting.slo.itl_s) == (1, 0.03)
    assert (setting.timeout_s, setting.grace_s) == (60, 1)


def test_a_trace_takes_the_place_of_the_requests(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n" + "1.5,50,4\n" * 7)
    outcome = work(Job("S1b", "inflight-16", 0, Changes(trace=file))).outcome
    assert outcome.requests == 7
    assert outcome.in_slo == 7


@pytest.mark.parametrize(
    ("job", "why"),
    [
        (Job("S1d", "demand", 0), r"scenario 'S1d': unknown; did you mean S1\?"),
        (Job("S1", "inflight", 0), r"policy 'inflight': unknown; did you mean inflight-"),
        (
            Job("S1", "demand", 0, Changes(trace=Path("none.csv"))),
            "trace none.csv: No such file or directory",
        ),
    ],
)
def test_what_is_wrong_is_refused_before_the_first_run(job: Job, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        check([Job("S1", "inflight-16", 0), job])


def test_the_share_that_never_answered_is_no_number_in_a_document() -> None:
    document = work(Job("S1c", "hpa-q3kv60-throttled", 0, QUICK)).document()
    assert document["ttft_s"]["p99"] is None
    assert document["failed_pct"] > 1


def test_ctrl_c_waits_until_no_lock_of_a_run_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[bool] = []

    def interrupted(*runs: Any, **how: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        found = wait(*runs, **how)
        waited.append(True)
        return found

    monkeypatch.setattr(workers, "wait", interrupted)
    jobs = [Job("S1c", "inflight-16", seed) for seed in range(2)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert work_all(jobs, Progress([]), processes=2) == []
    finally:
        signal.signal(signal.SIGINT, before)
    assert waited == [True]

"""Recordings held against other policies, by the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.sim.recorded import record
from wva_adapter.backtest import check, held_against, of_recording
from wva_adapter.backtest.bounds import bound
from wva_adapter.backtest.page import page
from wva_adapter.cli import commands
from wva_adapter.collect.record import open_recording
from wva_adapter.core.fleet import LoadKey, VariantKey
from wva_adapter.errors import ConfigError
from wva_adapter.sim import files
from wva_adapter.sim.contenders import contender
from wva_adapter.sim.hindsight import LEARNED_OFF, RECORDED, Moment, judge
from wva_adapter.sim.scenarios import scenario
from wva_adapter.sim.world import run

KEY = VariantKey("ns", "v")
POLICIES = ("demand", "demand-premium", "inflight-16", "tokens")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter in the mild step of S1b, half an hour."""
    path = tmp_path_factory.mktemp("recorded") / "run.jsonl"
    record(scenario("S1b", files), path)
    return path


def backtest(*arguments: str | Path) -> Result:
    return CliRunner().invoke(commands, ["backtest", *map(str, arguments)])


def by_policy(result: Result) -> dict[str, dict[str, Any]]:
    return {found["policy"]: found for found in json.loads(result.stdout)["policies"]}


@pytest.fixture(scope="module")
def found(recording: Path) -> dict[str, dict[str, Any]]:
    policies = [word for name in POLICIES for word in ("--policy", name)]
    result = backtest("--from", recording, *policies, "--json")
    assert result.exit_code == 0, result.output
    return by_policy(result)


def simulated_usd(policy: str) -> float:
    return run(scenario("S1b", files), contender(policy).tries[0], 0).usd


def test_what_ran_is_told_first(found: dict[str, dict[str, Any]]) -> None:
    assert list(found) == ["recorded", *POLICIES]
    assert found["recorded"]["usd"] == pytest.approx(simulated_usd("demand"), rel=0.02)


@pytest.mark.parametrize("policy", ["demand", "demand-premium"])
def test_another_level_would_have_cost_what_it_does_cost(
    policy: str, found: dict[str, dict[str, Any]]
) -> None:
    assert found[policy]["bound"] is None
    assert found[policy]["usd"] == pytest.approx(simulated_usd(policy), rel=0.05)


def test_a_law_that_had_fewer_replicas_than_ran_is_told_to_ask_for_at_least_so_many(
    found: dict[str, dict[str, Any]],
) -> None:
    tokens = found["tokens"]
    assert tokens["bound"] == "at least"
    assert tokens["usd"] <= simulated_usd("tokens")


@pytest.mark.parametrize(
    ("policy", "fewer_s", "more_s", "sign"),
    [
        ("inflight-16", 4.0, 4.0, None),  # up to 5 % of 100 s are no matter
        ("inflight-16", 0.0, 60.0, "at most"),
        ("inflight-16", 60.0, 0.0, "at least"),
        ("inflight-16", 20.0, 20.0, "either"),
        ("demand", 20.0, 20.0, None),  # arrivals are the same with any replicas
        (RECORDED, 0.0, 0.0, None),
    ],
)
def test_which_way_counts_are_off_is_by_what_ran_beside_them(
    policy: str, fewer_s: float, more_s: float, sign: str | None
) -> None:
    moments = [a_moment(0.0, 1.0)]
    judged = judge(policy, LoadKey("ns", "m"), moments, {}, {KEY: (1,)}, {KEY: (1,)})
    assert bound(replace(judged, enough_s=100.0, fewer_s=fewer_s, more_s=more_s)) == sign


def test_fewer_than_the_load_takes_were_short_and_when_is_told(
    found: dict[str, dict[str, Any]],
) -> None:
    tokens = found["tokens"]
    assert tokens["short_s"] > 600  # 15 minutes of 16 req/s on two or three replicas of 7
    first = tokens["short"][0]
    assert 300 <= first["from_s"] <= 360  # the step comes at 300 s
    assert first["demand_per_s"] > first["carried_per_s"]
    # The premium level had its replicas before the step came.
    assert found["demand-premium"]["short"] == []


def test_nothing_is_said_of_latencies(found: dict[str, dict[str, Any]]) -> None:
    assert not {key for key in found["demand"] if "ttft" in key or "slo" in key or "itl" in key}


def a_moment(at_s: float, demand: float | None, ran: int = 2, *, waiting: bool = False) -> Moment:
    return Moment(at_s, demand, waiting, {KEY: ran}, {KEY: ran}, {KEY: 10.0}, {KEY: 3600.0})


@pytest.mark.parametrize(
    ("demand", "count", "waiting", "verdict"),
    [
        (8.0, 1, False, "enough"),  # a replica has carried 8
        (8.1, 1, False, "unknown"),  # above what was shown, below 10 · 1.15
        (10 * LEARNED_OFF, 1, False, "unknown"),
        (10 * LEARNED_OFF + 0.1, 1, False, "short"),
        (18.0, 2, False, "enough"),  # as many as ran, and nothing waited
        (18.0, 2, True, "unknown"),
        (18.0, 3, True, "enough"),  # 3 · 8
        (0.0, 0, False, "enough"),
        (0.1, 0, False, "short"),
        (None, 5, False, "unknown"),
    ],
)
def test_a_count_is_enough_short_or_nobody_knows(
    demand: float | None, count: int, waiting: bool, verdict: str
) -> None:
    moments = [a_moment(at_s, demand, waiting=waiting) for at_s in (0.0, 10.0)]
    counts = {KEY: (count, count)}
    judged = judge("p", LoadKey("ns", "m"), moments, {KEY: 8.0}, counts, counts)
    spent = {
        "enough": judged.enough_s,
        "short": judged.short_s,
        "unknown": judged.unknown_s,
    }
    assert spent == {**dict.fromkeys(spent, 0.0), verdict: 10.0}
    assert judged.usd == pytest.approx(10.0 * count)  # 1 $ for a second


def test_a_pause_in_the_recording_counts_for_nothing() -> None:
    moments = [a_moment(at_s, 1.0) for at_s in (0.0, 10.0, 1000.0, 1010.0)]
    counts = {KEY: (1, 1, 1, 1)}
    judged = judge("p", LoadKey("ns", "m"), moments, {KEY: 8.0}, counts, counts)
    assert judged.enough_s == judged.replica_hours * 3600 == 20.0


def test_only_the_end_is_used_if_asked_for(recording: Path) -> None:
    result = backtest("--from", recording, "--policy", "inflight-16", "--since", "10m", "--json")
    document = json.loads(result.stdout)
    assert document["to_s"] - document["from_s"] == pytest.approx(600, abs=5)


def test_of_a_cut_recording_the_good_lines_are_used(recording: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.jsonl"
    lines = recording.read_bytes().splitlines(keepends=True)
    cut.write_bytes(b"".join(lines[:50]) + lines[50][:-30])
    result = backtest("--from", cut, "--policy", "inflight-16")
    assert result.exit_code == 1
    assert "line 51: cut: it does not end; the 49 cycles before it were used" in result.output


def test_the_page_needs_nothing_else_and_has_every_policy(recording: Path, tmp_path: Path) -> None:
    tested = of_recording(recording, ["inflight-16"], since_s=None, on_share=lambda share: None)
    shown = page(tested)
    data = json.loads(shown.split('type="application/json">')[1].split("</script>")[0])
    (model,) = data["models"]
    assert [p["name"] for p in model["policies"]] == ["recorded", "inflight-16"]
    assert len(model["at_ms"]) == len(model["policies"][1]["counts"]["a100"])
    assert 'src="http' not in shown


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ("inflite-16", "policy 'inflite-16': unknown; did you mean inflight-16?"),
        (
            "wva-v1",
            "policy 'wva-v1': it lives in the simulator's fleet, which a recording does not have",
        ),
        ("clairvoyant", "policy 'clairvoyant': it lives in the simulator's fleet"),
    ],
)
def test_a_policy_that_cannot_be_held_against_a_recording_is_refused(policy: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why.replace("?", r"\?")):
        check([policy])


def test_a_law_on_latencies_is_refused_by_the_series_that_it_reads(recording: Path) -> None:
    result = backtest("--from", recording, "--policy", "slo-aware")
    assert isinstance(result.exception, ConfigError)
    assert (
        "policy 'slo-aware': it reads ttft_p90_1m_s, which no recording holds; those are ready, "
        "running, waiting, in_flight" in str(result.exception)
    )


def test_what_is_no_recording_or_cannot_be_written_is_refused(
    recording: Path, tmp_path: Path
) -> None:
    (tmp_path / "x").write_text('{"a": 1}\n')
    refused = backtest("--from", tmp_path / "x")
    assert "no recording, want a first line of format" in str(refused.exception)
    refused = backtest("--from", recording, "--html", "/none/x.html")
    assert "--html /none/x.html: cannot be written: No such file" in str(refused.exception)


def test_a_recording_without_variants_is_refused(recording: Path) -> None:
    opened = open_recording(recording)

    def empty() -> Iterator[Any]:
        for cycle in opened.cycles():
            yield type(cycle.snapshot)(cycle.snapshot.at_s), cycle.policies.default

    with pytest.raises(ConfigError, match="no variants in 359 cycles, want at least one"):
        held_against("run.jsonl", empty(), opened.memory, ["demand"])

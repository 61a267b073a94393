"""Recordings, played again by the command."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from tests.collect.test_record import a_recording
from wva_adapter.cli import commands


def decide(*arguments: str | Path) -> Result:
    return CliRunner().invoke(commands, ["decide", *map(str, arguments)])


def test_a_replay_of_all_says_that_every_decision_is_the_recorded_one(tmp_path: Path) -> None:
    result = decide(a_recording(tmp_path / "run.jsonl"), "--all")

    assert (result.exit_code, result.stdout) == (0, "12 of 12 cycles decided as recorded\n")


def test_a_decision_that_is_not_the_recorded_one_is_told_by_its_line(tmp_path: Path) -> None:
    path = a_recording(tmp_path / "run.jsonl")
    lines = path.read_text().splitlines()
    changed = json.loads(lines[3])
    changed["decisions"][0]["desired"] += 1
    path.write_text("\n".join([*lines[:3], json.dumps(changed), *lines[4:], ""]))

    result = decide(path, "--all", "--json")

    assert result.exit_code == 1
    assert json.loads(result.stdout)["different_lines"] == [4]


def test_one_line_is_decided_with_what_came_before_it(tmp_path: Path) -> None:
    path = a_recording(tmp_path / "run.jsonl")
    recorded = json.loads(path.read_text().splitlines()[12])["decisions"]

    result = decide(path, "--line", "13", "--json")

    found = json.loads(result.stdout)["decisions"]
    assert [d["desired"] for d in found] == [d["desired"] for d in recorded]


def test_a_line_without_a_cycle_is_refused(tmp_path: Path) -> None:
    result = decide(a_recording(tmp_path / "run.jsonl"), "--line", "8")

    assert "line 8 holds no cycle, the last before is 7" in str(result.exception)


def test_of_a_cut_recording_the_good_lines_are_used(tmp_path: Path) -> None:
    path = a_recording(tmp_path / "run.jsonl")
    path.write_bytes(path.read_bytes()[:-20])

    result = decide(path, "--all")

    assert result.exit_code == 1
    assert result.stdout == "11 of 11 cycles decided as recorded\n"
    assert "line 14: cut: it does not end; the 11 cycles before it were used" in result.stderr

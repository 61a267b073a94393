"""A settings file that changes takes effect whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from wva_adapter.errors import ConfigError
from wva_adapter.settings import SettingsFile

GOOD = "static_file: fleet.yaml\npolicy: {kv_cache_threshold: 0.7}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "wva.yaml"
    path.write_text(GOOD)
    return path


def test_a_good_change_is_taken_over(path: Path) -> None:
    file = SettingsFile(path)
    assert not file.look()
    path.write_text(GOOD + "overrides: [{model: llama, slo_ttft: 1s}]\ncycle: 2s\n")
    assert file.look()
    assert file.problem is None
    assert file.settings.to_policies().of("chat", "llama").slo_ttft_s == 1
    assert file.settings.cycle == 2
    assert not file.look()


def test_a_bad_change_leaves_all_as_it_was_and_says_why(path: Path) -> None:
    file = SettingsFile(path)
    before = file.settings
    path.write_text(GOOD.replace("0.7", "0.05") + "cycle: 1s\n")
    assert file.look()
    assert file.settings is before  # the good cycle that came with it does not count either
    assert file.problem is not None
    assert file.problem.startswith(f"{path}: policy: want kv_spare_trigger < kv_cache_threshold")
    path.write_text(GOOD)
    assert file.look()
    assert file.problem is None


def test_a_change_that_needs_a_restart_is_refused_whole_and_named(path: Path) -> None:
    file = SettingsFile(path)
    path.write_text(GOOD.replace("0.7", "0.6") + "listen: {port: 7000}\n")
    assert file.look()
    assert file.problem == (
        f"{path}: a change of listen needs a restart; without one, there can change: "
        "cycle, guards, inventory, max_age, overrides, policy"
    )
    assert file.settings.policy.kv_cache_threshold == 0.7


def test_a_file_that_is_gone_is_a_bad_change(path: Path) -> None:
    file = SettingsFile(path)
    path.unlink()
    assert file.look()
    assert file.problem == f"{path}: cannot be read: No such file or directory"
    assert file.settings.policy.kv_cache_threshold == 0.7


def test_what_the_command_line_says_wins_over_the_changed_file_too(path: Path) -> None:
    file = SettingsFile(path, {"listen": {"port": 9000}})
    path.write_text(GOOD.replace("0.7", "0.6"))
    assert file.look()
    assert file.problem is None
    assert file.settings.listen.port == 9000


def test_a_file_that_is_wrong_at_the_start_is_an_error(path: Path) -> None:
    path.write_text("polcy: {}\n")
    with pytest.raises(ConfigError, match="polcy: unknown key; did you mean policy"):
        SettingsFile(path)

from __future__ import annotations

from pathlib import Path

import pytest

from wva_adapter.errors import ConfigError
from wva_adapter.sim.fleet_files import read_fleet
from wva_adapter.sim.workers import Changes, Job, staged, work

OWN = """
hardware:
  mine/l40s/tp2:
    tokens: [1, 512, 8192]
    iteration_ms: [12, 40, 500]
    kv_cache_tokens: 100000
    usd_per_h: 2.5
variants:
  - {name: own, hardware: mine/l40s/tp2, startup: 90s, max_replicas: 4}
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "fleet.yaml"
    file.write_text(text)
    return file


def test_a_fleet_of_the_own_hardware_runs_a_scenario(tmp_path: Path) -> None:
    changes = Changes(fleet=written(tmp_path, OWN))
    (deployed,) = staged("S1b", changes).fleet
    assert (deployed.name, deployed.startup_s, deployed.usd_per_h) == ("own", 90.0, 2.5)
    assert deployed.hardware.iteration_s == (0.012, 0.040, 0.500)
    outcome = work(Job("S1b", "inflight-16", 0, changes)).outcome
    assert outcome.variants == ("own",)
    assert outcome.usd == pytest.approx(2.5 * outcome.replica_hours)


def test_a_price_and_bounds_of_known_hardware_can_be_changed(tmp_path: Path) -> None:
    text = """
variants:
  - {name: a, hardware: llama3-8b/a100/tp1, usd_per_h: 1.1, min_replicas: 2}
  - {name: h, hardware: llama3-8b/h100/tp1}
"""
    a100, h100 = read_fleet(written(tmp_path, text))
    assert (a100.usd_per_h, a100.min_replicas, a100.start_replicas) == (1.1, 2, 2)
    assert (h100.usd_per_h, h100.start_replicas) == (3.2, 1)


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (
            "hardware: mine/l40s/tp2,",
            "hardware: mine/l4/tp2,",
            (
                r"variants\[0\]\.hardware: no table for 'mine/l4/tp2'; did you mean mine/l40s/tp2\? "
                r"there are: mine/l40s/tp2, llama3-8b/a100/tp1"
            ),
        ),
        ("[12, 40, 500]", "[12, 40]", "3 tokens and 2 iteration_ms, want as many of each"),
        ("[1, 512, 8192]", "[1, 512, 512]", r"\.tokens: 512 after 512, want them to rise"),
        ("[12, 40, 500]", "[12, 40, 30]", r"\.iteration_ms: 30 after 40, want them to rise"),
        ("max_replicas: 4", "max_replicas: 4, min_replicas: 5", "min_replicas 5 is above max_repl"),
        ("usd_per_h: 2.5", "usd_per_h: .nan", r"usd_per_h: found nan, want"),
        (
            "max_replicas: 4",
            "max_replica: 4",
            r"max_replica: unknown key; did you mean max_replicas",
        ),
        (
            "max_replicas: 4}",
            "max_replicas: 4}\n  - {name: own, hardware: llama3-8b/a100/tp1}",
            r"variants\[1\]\.name: 'own' is the name of another one too",
        ),
        (
            "max_replicas: 4}",
            "max_replicas: 4}\n  - {name: b, hardware: llama3-8b/a100/tp1}",
            "hardware for llama3-8b and mine, want one model for all",
        ),
    ],
)
def test_a_wrong_fleet_is_refused_by_its_key(
    tmp_path: Path, before: str, after: str, why: str
) -> None:
    assert before in OWN
    with pytest.raises(ConfigError, match=why):
        read_fleet(written(tmp_path, OWN.replace(before, after)))


def test_a_scenario_that_loses_nodes_needs_the_variant_that_they_carry(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="NODE: it takes nodes from variant 'a100', and the fleet"
    ):
        staged("NODE", Changes(fleet=written(tmp_path, OWN)))

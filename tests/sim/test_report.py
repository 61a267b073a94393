from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from wva_adapter.sim.report import page
from wva_adapter.sim.workers import Done, Job, work


@pytest.fixture(scope="module")
def runs() -> list[Done]:
    policies = ("demand", "hpa-q3kv60-throttled")
    return [work(Job("S1c", policy, seed)) for policy in policies for seed in (0, 1)]


def data(text: str) -> dict[str, list[dict[str, object]]]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    parsed: dict[str, list[dict[str, object]]] = json.loads(found.group(1))
    return parsed


def test_the_page_loads_nothing_from_elsewhere(runs: list[Done]) -> None:
    own = re.sub(r"<script>.*?</script>", "", page(runs), count=1, flags=re.DOTALL)
    assert "http" not in own
    assert not re.search(r"<(link|img|iframe)|src=", own)


def test_the_page_has_the_means_over_seeds(runs: list[Done]) -> None:
    (scenario,) = data(page(runs))["scenarios"]
    policies = scenario["policies"]
    assert isinstance(policies, list)
    assert [(p["name"], p["ours"]) for p in policies] == [
        ("demand", True),
        ("hpa-q3kv60-throttled", False),
    ]
    assert policies[0]["usd"] == pytest.approx((runs[0].outcome.usd + runs[1].outcome.usd) / 2)


def test_counts_of_the_adapter_have_a_reason_to_hover_over(runs: list[Done]) -> None:
    (scenario,) = data(page(runs))["scenarios"]
    policies = scenario["policies"]
    assert isinstance(policies, list)
    (changes,) = policies[0]["timeline"]["changes"]
    assert len(changes) > 3
    assert all("follow_demand: " in why or "settle_down: " in why for _, _, why in changes[1:-1])


def test_a_name_cannot_end_the_element_that_the_data_stand_in(runs: list[Done]) -> None:
    evil = "</script><script>alert(1)</script>.yaml"
    run = replace(runs[0], job=replace(runs[0].job, policy=evil))
    (scenario,) = data(page([run]))["scenarios"]
    policies = scenario["policies"]
    assert isinstance(policies, list)
    assert policies[0]["name"] == evil

"""Laws' files: what ships with the product, and how a wrong file of one's own is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from wva_adapter.core.hpa_sync import DOWN, UP, Behavior, Direction, Rate
from wva_adapter.errors import ConfigError
from wva_adapter.sim.laws import HpaLaw, StepLaw
from wva_adapter.sim.policy_files import law, law_names, parse_law

RIVALS = {
    "queue-0",
    "queue-300",
    "guard",
    "pool-saturation",
    "inflight-8",
    "inflight-16",
    "inflight-24",
    "inflight-64",
    "token-aware",
    "slo-aware",
    "dynamo-throughput",
    "dynamo-latency",
    "apa",
    "knative",
    "hpa-cpu80",
    "hpa-gpu80",
    "hpa-q3kv60",
    "hpa-q3kv60-throttled",
}

HEAD = "name: mine\nsource: my own cluster\n"
KEDA = HEAD + "keda:\n  triggers:\n    - {name: q, query: waiting, target: 4}\n"


def test_every_rival_ships_under_its_name() -> None:
    assert set(law_names()) == RIVALS
    assert all(law(name).name == name for name in RIVALS)


def test_a_law_is_known_by_its_name_or_read_by_its_path(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(KEDA)
    assert law(str(own)).name == "mine"
    with pytest.raises(
        ConfigError, match=r"policy 'inflight-61': unknown; did you mean inflight-64"
    ):
        law("inflight-61")
    with pytest.raises(ConfigError, match="policy 'zzz': unknown; known: apa, dynamo-latency"):
        law("zzz")
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read: No such file"):
        law(str(tmp_path / "none.yaml"))


def test_without_a_behavior_there_is_none_and_keda_counts_nothing_as_zero() -> None:
    acts = parse_law(KEDA, "mine.yaml").acts
    assert isinstance(acts, HpaLaw)
    assert acts.behavior is None
    assert acts.cooldown_s == 300
    assert acts.triggers[0].empty == "zero"


def test_a_behavior_gets_the_defaults_that_kubernetes_fills_in() -> None:
    text = KEDA + (
        "  behavior:\n    scaleUp: {stabilizationWindowSeconds: 60, tolerance: 0.05}\n"
        "    scaleDown:\n      selectPolicy: Min\n"
        "      policies: [{type: Pods, value: 2, periodSeconds: 30}]\n"
    )
    acts = parse_law(text, "mine.yaml").acts
    assert isinstance(acts, HpaLaw)
    assert acts.behavior == Behavior(
        Direction(60.0, UP.rates, "Max", 0.05), Direction(None, (Rate("Pods", 2, 30.0),), "Min")
    )
    empty = parse_law(KEDA + "  behavior: {}\n", "mine.yaml").acts
    assert isinstance(empty, HpaLaw)
    assert empty.behavior == Behavior(UP, DOWN)


def test_a_controller_keeps_numbers_between_its_looks() -> None:
    text = HEAD + (
        "let: {busy: waiting > 3}\ncontroller:\n  every: 5s\n  replicas: replicas + streak\n"
        "  remember:\n    streak: {start: 0, next: streak + 1 if busy else 0}\n"
    )
    acts = parse_law(text, "mine.yaml").acts
    assert isinstance(acts, StepLaw)
    assert acts.every_s == 5
    assert [kept.name for kept in acts.remembered] == ["streak"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD, "mine.yaml: found none, want one of keda, hpa and controller"),
        (
            KEDA + "hpa: {metrics: [{name: q, query: waiting, target: 1, type: Pods}]}\n",
            "found keda and hpa, want one of keda, hpa and controller",
        ),
        (
            KEDA.replace("query: waiting", "query: 2 * waitin"),
            r"keda.triggers\[0\].query: position 5: unknown series 'waitin'; did you mean waiting",
        ),
        (KEDA.replace("target: 4", "target: 0"), r"keda.triggers\[0\].target: found 0, want"),
        (KEDA.replace("target: 4", "taget: 4"), r"taget: unknown key; did you mean target\?"),
        (KEDA.replace("source: my own cluster\n", ""), "mine.yaml: source: missing"),
        (KEDA.replace("name: mine", "name: My law"), "mine.yaml: name: found 'My law'"),
        (KEDA + "let: {waiting: '1'}\n", "let.waiting: waiting has a meaning already"),
        (KEDA + "let: {my-need: '1'}\n", "let.my-need: want a name of a-z, 0-9 and _"),
        (KEDA + "delay: 10\n", "mine.yaml: delay: found 10, want a duration"),
        (
            KEDA + "  behavior: {scaleUp: {policies: []}}\n",
            r"mine.yaml: keda.behavior.scaleUp.policies: found \[\], want at least one",
        ),
        (
            HEAD + "controller: {every: 0s, replicas: '1'}\n",
            "mine.yaml: controller.every: found 0, want more than 0s",
        ),
        (
            HEAD + "controller: {every: 5s, replicas: 'replicas +'}\n",
            "mine.yaml: controller.replicas: position 11: invalid syntax",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_key_and_position(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_law(text, "mine.yaml")

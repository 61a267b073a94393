"""Variants from a file."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from wva_adapter.collect.static import StaticSource, read_static
from wva_adapter.core.snapshot import Phase
from wva_adapter.errors import ConfigError

GOOD = """
variants:
  - namespace: chat
    name: llama-a100
    model_id: llama
    accelerator: A100
    cost_per_h: 1.2
    max_replicas: 4
    replicas:
      - http://127.0.0.2:8000
      - {url: "http://127.0.0.3:8000", name: second, ready: false}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.yaml"
    path.write_text(GOOD)
    return path


def refused(path: Path, entry: str) -> str:
    path.write_text(f"variants: [{entry}]")
    with pytest.raises(ConfigError) as caught:
        read_static(path)
    return str(caught.value)


def test_a_variant_has_its_price_bounds_and_replicas(file: Path) -> None:
    (view,) = read_static(file)
    assert str(view.variant.key) == "chat/llama-a100"
    assert (view.variant.cost_per_h, view.variant.max_replicas) == (1.2, 4)
    assert view.spec_replicas == 2
    first, second = view.replicas
    assert (first.name, first.url, first.phase) == (
        "127.0.0.2:8000",
        "http://127.0.0.2:8000/metrics",
        Phase.READY,
    )
    assert (second.name, second.phase) == ("second", Phase.STARTING)


def test_the_count_asked_for_can_be_said_apart_from_the_replicas(file: Path) -> None:
    file.write_text("variants: [{name: a, model_id: m, current_replicas: 3}]")
    (view,) = read_static(file)
    assert (view.spec_replicas, view.status_replicas) == (3, 0)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("htp://127.0.0.1:1", "malformed URL 'htp://127.0.0.1:1': want http://HOST:PORT"),
        ("127.0.0.1:8000", "malformed URL '127.0.0.1:8000': want http://HOST:PORT"),
        ("http://h:99999", "Port out of range"),
        ("http://h:0", "want http://HOST:PORT"),
        ("http://u:p@h:1", "want no credentials"),
        ("http://[::1", "malformed URL"),
    ],
)
def test_a_malformed_url_leaves_that_replica_unseen_and_the_rest_whole(
    file: Path, url: str, problem: str
) -> None:
    file.write_text(
        f"variants: [{{name: a, model_id: m, replicas: ['{url}', 'http://127.0.0.9:8000']}}]"
    )
    (view,) = read_static(file)
    broken, whole = view.replicas
    assert broken.url is None
    assert problem in str(broken.problem)
    assert whole.url == "http://127.0.0.9:8000/metrics"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{name: a, model_id: m, cost_per_h: -1}", "variants[0].cost_per_h: found -1, want"),
        ("{name: a, model_id: m, cost_per_h: .nan}", "cost_per_h: found nan, want"),
        ("{name: a, model_id: m, cost_per_h: .inf}", "cost_per_h: found inf, want"),
        ("{name: a, model_id: m, cost_per_h: cheap}", "found 'cheap', want a number"),
        (
            "{name: a, model_id: m, min_replicas: 3, max_replicas: 2}",
            "variants[0]: default/a: max_replicas 2 is below min_replicas 3",
        ),
        (
            "{name: a, model_id: m}, {name: a, model_id: n}",
            "variants[1]: default/a is named twice, want each variant once",
        ),
        ("{name: a, modelid: m}", "variants[0].modelid: unknown key; did you mean model_id?"),
        ("{name: a}", "variants[0].model_id: missing"),
        (
            "{name: a, model_id: m, role: decoder}",
            "'both', 'prefill' or 'decode'; did you mean decode?",
        ),
        (
            "{name: a, model_id: m, replicas: [8000]}",
            "variants[0].replicas[0]: found 8000, want keys and values",
        ),
        (
            "{name: a, model_id: m, replicas: ['http://h:1', 'http://h:1']}",
            "replica h:1 is named twice, want each once",
        ),
    ],
)
def test_a_wrong_entry_is_refused_by_name(file: Path, entry: str, message: str) -> None:
    assert message in refused(file, entry)


def test_a_changed_file_is_read_again(file: Path) -> None:
    source = StaticSource(file)
    file.write_text(GOOD.replace("max_replicas: 4", "max_replicas: 9"))
    (view,) = source.view()
    assert view.variant.max_replicas == 9


def test_a_bad_change_keeps_the_last_good_content_and_says_so_once(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = StaticSource(file)
    good = source.view()
    file.write_text(GOOD.replace("1.2", "-1"))
    with caplog.at_level(logging.WARNING):
        assert source.view() == good
        assert source.view() == good
    (record,) = caplog.records
    assert "cost_per_h: found -1" in record.__dict__["problem"]
    os.unlink(file)
    assert source.view() == good
    file.write_text(GOOD)
    assert source.view() == good


def test_a_file_that_is_wrong_at_the_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read: No such file"):
        StaticSource(tmp_path / "none.yaml")

"""The inventory as operators write it is read whole or refused by name."""

from __future__ import annotations

import pytest

from wva_adapter.core.inventory import Inventory, NamespaceQuota
from wva_adapter.core.power import DRAWS, Draw
from wva_adapter.errors import ConfigError
from wva_adapter.settings import parse_settings

SOURCE = "static_file: fleet.yaml\n"


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_settings(SOURCE + text, "wva.yaml")
    return str(caught.value)


def test_every_value_of_the_file_arrives() -> None:
    settings = parse_settings(
        SOURCE
        + "cluster: {}\n"
        + """
inventory:
  accelerators:
    - {name: H100, devices: 64}
    - {name: A100, idle_w: 60}
    - {name: TPU-V5E, devices: 16, tdp_w: 200}
  quotas:
    - {namespace: chat, devices: 8}
    - {namespace: code, accelerator: H100, devices: 4}
  fixed_nodes: true
""",
        "wva.yaml",
    )
    assert settings.inventory.to_inventory() == Inventory(
        {"H100": 64, "TPU-V5E": 16},
        (NamespaceQuota("chat", 8), NamespaceQuota("code", 4, "H100")),
        True,
        {"A100": Draw(60, DRAWS["A100"].full_w), "TPU-V5E": Draw(40, 200)},
    )


def test_nothing_said_bounds_nothing() -> None:
    assert parse_settings(SOURCE, "wva.yaml").inventory.to_inventory() == Inventory()
    assert not Inventory().bounded


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "accelerators: [{name: h100, devices: 8}]",
            "inventory.accelerators[0].name: unknown accelerator 'h100'; did you mean H100? One",
        ),
        (
            "quotas: [{namespace: chat, devices: 8, accelerator: MI300}]",
            "inventory.quotas[0].accelerator: unknown accelerator 'MI300'; did you mean MI300X?",
        ),
        (
            "accelerators: [{name: H100}, {name: H100}]",
            "inventory.accelerators[1].name: H100 is there twice",
        ),
        (
            "accelerators: [{name: H100, idle_w: 900}]",
            "inventory.accelerators[0]: want 0 <= idle_w <= tdp_w, got idle_w=900, tdp_w=700",
        ),
        ("accelerators: [{name: H100, devices: -1}]", "inventory.accelerators[0].devices"),
        ("accelerators: [{name: H100, tdp_w: .nan}]", "inventory.accelerators[0].tdp_w"),
        ("quotas: [{namespace: chat}]", "inventory.quotas[0].devices"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(text: str, message: str) -> None:
    assert message in refused(f"inventory: {{{text}}}")


def test_nodes_of_which_nobody_tells_are_refused() -> None:
    assert "inventory.fixed_nodes without cluster: nobody tells" in refused(
        "inventory: {fixed_nodes: true}"
    )
    assert "inventory.fixed_nodes with cluster.namespaces: devices of other" in refused(
        "cluster: {namespaces: [chat]}\ninventory: {fixed_nodes: true}"
    )


def test_an_unknown_objective_is_refused_and_a_near_one_named() -> None:
    assert "did you mean power" in refused("policy: {objective: powr}")

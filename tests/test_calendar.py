"""The guards as operators write them, and what holds at a moment."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from wva_adapter.core.guards import Budget, Freeze, Guard, Hours, MaxChange, Pin, Scope
from wva_adapter.errors import ConfigError
from wva_adapter.settings import parse_settings

BERLIN = ZoneInfo("Europe/Berlin")


def unix(text: str, zone: ZoneInfo = BERLIN) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


def at(text: str, guards: str) -> tuple[Guard, ...]:
    """The guards that hold at a moment in Berlin."""
    settings = parse_settings(
        f"static_file: fleet.yaml\nguards:\n  time_zone: Europe/Berlin\n{guards}", "wva.yaml"
    )
    return settings.guards.at(unix(text))


def refused(guards: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_settings(f"static_file: fleet.yaml\nguards:\n{guards}", "wva.yaml")
    return str(caught.value)


WEEKEND = "  freezes:\n  - {name: weekend, days: [fri], begins: 18:00, ends: 24:00}\n"
NIGHT = "  freezes:\n  - {name: night, begins: '22:00', ends: 06:00}\n"


def test_a_freeze_holds_from_its_first_minute_until_its_last_in_local_time() -> None:
    friday = "2026-11-27"  # a Friday
    assert at(f"{friday} 17:59:59", WEEKEND) == ()
    (freeze,) = at(f"{friday} 18:00", WEEKEND)
    assert freeze == Freeze(
        name="weekend", from_s=unix(f"{friday} 18:00"), until_s=unix("2026-11-28 00:00")
    )
    assert at("2026-11-28 00:00", WEEKEND) == ()
    assert at("2026-11-26 19:00", WEEKEND) == ()


def test_a_window_that_ends_before_it_begins_ends_on_the_next_day() -> None:
    (freeze,) = at("2026-11-25 05:59", NIGHT)
    assert freeze == Freeze(
        name="night", from_s=unix("2026-11-24 22:00"), until_s=unix("2026-11-25 06:00")
    )
    assert at("2026-11-25 06:00", NIGHT) == ()


def test_clocks_that_change_do_not_move_a_window() -> None:
    # In the night of 2026-10-25 Berlin puts its clocks back: that night has nine hours.
    (freeze,) = at("2026-10-25 01:00", NIGHT)
    assert isinstance(freeze, Freeze)
    assert freeze.until_s - freeze.from_s == 9 * 3600


def test_a_window_may_have_a_time_zone_of_its_own() -> None:
    tokyo = "  freezes:\n  - {name: x, begins: 09:00, ends: 10:00, time_zone: Asia/Tokyo}\n"
    assert len(at("2026-11-24 01:30", tokyo)) == 1  # 09:30 in Tokyo
    assert at("2026-11-24 09:30", tokyo) == ()


def test_hours_bound_only_while_they_last() -> None:
    text = (
        "  hours:\n  - {name: office, namespace: chat, days: [tue], begins: 08:00, "
        "ends: 18:00, min_replicas: 4, max_replicas: 9}\n"
    )
    (hours,) = at("2026-11-24 09:00", text)
    assert hours == Hours(
        name="office",
        scope=Scope("chat"),
        from_s=unix("2026-11-24 08:00"),
        until_s=unix("2026-11-24 18:00"),
        min_replicas=4,
        max_replicas=9,
    )
    assert at("2026-11-25 09:00", text) == ()


def test_a_pin_without_an_offset_expires_in_the_guards_time_zone() -> None:
    text = "  pins:\n  - {name: launch, model: llama, replicas: 6, until: 2026-12-24 18:00}\n"
    (pin,) = at("2026-11-24 09:00", text)
    assert pin == Pin(
        name="launch", scope=Scope(None, "llama"), replicas=6, until_s=unix("2026-12-24 18:00")
    )
    assert at("2026-12-24 18:00", text) == ()
    zulu = "  pins:\n  - {name: launch, replicas: 6, until: 2026-12-24T18:00:00Z}\n"
    (pin,) = at("2026-11-24 09:00", zulu)
    assert isinstance(pin, Pin)
    assert pin.until_s == datetime(2026, 12, 24, 18, tzinfo=UTC).timestamp()
    (pin,) = at("2026-11-24", "  pins:\n  - {name: launch, replicas: 6, until: 2026-12-24}\n")
    assert isinstance(pin, Pin)
    assert pin.until_s == unix("2026-12-24")


def test_paces_and_budgets_hold_always() -> None:
    text = (
        "  max_changes:\n  - {name: slowly, variant: a, replicas: 2, window: 10m}\n"
        "  budgets:\n  - {name: cap, namespace: chat, usd_per_h: 12.5}\n"
    )
    assert at("2026-11-24", text) == (
        MaxChange(name="slowly", scope=Scope(variant="a"), replicas=2, window_s=600.0),
        Budget(name="cap", namespace="chat", usd_per_h=12.5),
    )


REFUSALS = {
    "pins:\n  - {name: x, replicas: 3}": "guards.pins[0].until: found None, want a date and time "
    "such as 2026-12-24T18:00: a pin must end",
    "pins:\n  - {name: x, replicas: 3, until: soon}": "guards.pins[0].until: found 'soon', want a "
    "date and time",
    "pins:\n  - {name: x, replicas: -3, until: 2026-12-24}": "guards.pins[0].replicas: found -3, "
    "want greater than or equal to 0",
    "time_zone: Europe/Berln": "guards.time_zone: found 'Europe/Berln', want a time zone of the "
    "IANA database; did you mean Europe/Berlin?",
    "freezes:\n  - {name: x, begins: 25:00}": "guards.freezes[0].begins: found 1500, want a time "
    "of day from 00:00 to 24:00",
    "freezes:\n  - {name: x, days: [monday]}": "guards.freezes[0].days[0]: found 'monday', want "
    "'mon', 'tue', 'wed', 'thu', 'fri', 'sat' or 'sun'; did you mean mon?",
    "freezes:\n  - {name: x}": "guards.freezes: x leave no moment of the week free, so the counts "
    "would be frozen for ever",
    "freezes:\n  - {name: day, begins: 06:00, ends: 18:00}\n"
    "  - {name: night, begins: 17:00, ends: 06:00, variant: a}": "guards.freezes: day, night leave "
    "no moment of the week free",
    "hours:\n  - {name: x}": "guards.hours[0]: want min_replicas, max_replicas or both, found "
    "neither",
    "hours:\n  - {name: x, min_replicas: 4, max_replicas: 3}": "guards.hours[0]: max_replicas 3 is "
    "below min_replicas 4",
    "budgets:\n  - {name: x, namespace: chat, usd_per_h: -1.0}": "guards.budgets[0].usd_per_h: "
    "found -1.0, want greater than or equal to 0",
    "max_changes:\n  - {name: x, replicas: 1, window: 0s}": "guards.max_changes[0].window: found "
    "'0s', want greater than 0",
    "freeze: []": "guards.freeze: unknown key; did you mean freezes?",
}


@pytest.mark.parametrize("text", REFUSALS)
def test_what_contradicts_itself_is_refused_by_name(text: str) -> None:
    assert REFUSALS[text] in refused(f"  {text}\n")


def test_freezes_of_different_variants_do_not_add_up() -> None:
    text = (
        "  freezes:\n  - {name: day, begins: 06:00, ends: 18:00, variant: a}\n"
        "  - {name: night, begins: 18:00, ends: 06:00, variant: b}\n"
    )
    assert [guard.name for guard in at("2026-11-24 12:00", text)] == ["day"]

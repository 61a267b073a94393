"""The guards as operators write them, with dates, days and time zones, and what holds at a moment."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any, Literal, get_args
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, BeforeValidator, Field

from wva_adapter.core.guards import Budget, Freeze, Guard, Hours, MaxChange, Pin, Scope
from wva_adapter.documents import Duration, Section

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]

_DAY_MINUTES = 24 * 60
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})")
# A week of winter and one of summer, each from a Monday: clocks differ between them.
_WEEKS = (datetime(2024, 1, 8, tzinfo=UTC), datetime(2024, 7, 8, tzinfo=UTC))


def _zone(name: str) -> str:
    known = available_timezones()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]}?" if near else " such as Europe/Berlin"
        raise ValueError(f"want a time zone of the IANA database{hint}")
    return name


def _clock(value: object) -> object:
    """Return the minutes after midnight; YAML reads an unquoted 18:00 as 1080 by itself."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _DAY_MINUTES:
        return value
    match = _CLOCK.fullmatch(value) if isinstance(value, str) else None
    if match is not None:
        minutes = 60 * int(match[1]) + int(match[2])
        if int(match[2]) < 60 and minutes <= _DAY_MINUTES:
            return minutes
    raise ValueError("want a time of day from 00:00 to 24:00")


def _moment(value: object) -> object:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("want a date and time such as 2026-12-24T18:00") from None
    if isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime.combine(value, time())
    raise ValueError("want a date and time such as 2026-12-24T18:00: a pin must end")


TimeZone = Annotated[str, AfterValidator(_zone)]
Clock = Annotated[int, BeforeValidator(_clock)]
Count = Annotated[int, Field(ge=0)]
Days = Annotated[tuple[Day, ...], Field(strict=False)]


class _Scoped(Section):
    name: str = Field(description="What the trail calls it")
    namespace: str | None = Field(None, description="Only variants of this namespace")
    model: str | None = Field(None, description="Only variants of this model id")
    variant: str | None = Field(None, description="Only variants of this name")

    @property
    def scope(self) -> Scope:
        return Scope(self.namespace, self.model, self.variant)


class PinSection(_Scoped):
    """A count that is held until it expires"""

    replicas: Count = Field(description="The count")
    until: Annotated[Any, BeforeValidator(_moment)] = Field(
        None, validate_default=True, description="When it expires, a date and time"
    )


class _Weekly(_Scoped):
    days: Days = Field(get_args(Day), description="Days on which it begins")
    begins: Clock = Field(0, description="Time of day at which it begins")
    ends: Clock = Field(
        _DAY_MINUTES, description="Time of day at which it ends, or on the next day"
    )
    time_zone: TimeZone | None = Field(None, description="IANA name; default: guards.time_zone")

    def spans(self, moment: datetime, zone: str) -> Iterator[tuple[float, float]]:
        """Yield the Unix times of the window's turns from a day before to a week after a moment."""
        place = ZoneInfo(self.time_zone or zone)
        today = moment.astimezone(place).date()
        for offset in range(-1, 8):
            begin = today + timedelta(days=offset)
            if get_args(Day)[begin.weekday()] not in self.days:
                continue
            end = begin if self.ends > self.begins else begin + timedelta(days=1)
            yield _at(begin, self.begins, place), _at(end, self.ends, place)


class FreezeSection(_Weekly):
    """A weekly window in which counts stay what they are"""


class HoursSection(_Weekly):
    """A weekly window with bounds of its own"""

    min_replicas: Count | None = Field(None, description="Fewest replicas in it")
    max_replicas: Count | None = Field(None, description="Most replicas in it")


class PaceSection(_Scoped):
    """How much a count may change within a time"""

    replicas: Count = Field(description="Most replicas by which counts within the window differ")
    window: Annotated[Duration, Field(gt=0, allow_inf_nan=False)] = Field(
        description="How long the window is"
    )


class BudgetSection(Section):
    """What a namespace may cost"""

    name: str = Field(description="What the trail calls it")
    namespace: str = Field(description="The namespace")
    usd_per_h: float = Field(
        ge=0, allow_inf_nan=False, description="Most $ per hour of all its variants"
    )


class GuardsSection(Section):
    """What holds counts whatever the load says; later kinds win over earlier ones"""

    time_zone: TimeZone = Field("UTC", description="Time zone (IANA name) of times of day")
    max_changes: Annotated[tuple[PaceSection, ...], Field(strict=False)] = Field(
        (), description="How much counts may change within a time"
    )
    hours: Annotated[tuple[HoursSection, ...], Field(strict=False)] = Field(
        (), description="Bounds for some hours of the week"
    )
    budgets: Annotated[tuple[BudgetSection, ...], Field(strict=False)] = Field(
        (), description="What namespaces may cost"
    )
    freezes: Annotated[tuple[FreezeSection, ...], Field(strict=False)] = Field(
        (), description="Hours of the week in which counts stay what they are"
    )
    pins: Annotated[tuple[PinSection, ...], Field(strict=False)] = Field(
        (), description="Counts that are held until they expire"
    )

    def at(self, now_s: float) -> tuple[Guard, ...]:
        """Return the guards that hold at a Unix time, their windows as Unix times."""
        moment = datetime.fromtimestamp(now_s, UTC)
        place = ZoneInfo(self.time_zone)
        guards: list[Guard] = [
            MaxChange(name=g.name, scope=g.scope, replicas=g.replicas, window_s=g.window)
            for g in self.max_changes
        ]
        for hours in self.hours:
            for from_s, until_s in _now(hours.spans(moment, self.time_zone), now_s):
                guards.append(
                    Hours(
                        name=hours.name,
                        scope=hours.scope,
                        from_s=from_s,
                        until_s=until_s,
                        min_replicas=hours.min_replicas,
                        max_replicas=hours.max_replicas,
                    )
                )
        guards += [
            Budget(name=g.name, namespace=g.namespace, usd_per_h=g.usd_per_h) for g in self.budgets
        ]
        for freeze in self.freezes:
            for from_s, until_s in _now(freeze.spans(moment, self.time_zone), now_s):
                guards.append(
                    Freeze(name=freeze.name, scope=freeze.scope, from_s=from_s, until_s=until_s)
                )
        for pin in self.pins:
            until = pin.until if pin.until.tzinfo else pin.until.replace(tzinfo=place)
            if until.timestamp() > now_s:
                guards.append(
                    Pin(
                        name=pin.name,
                        scope=pin.scope,
                        replicas=pin.replicas,
                        until_s=until.timestamp(),
                    )
                )
        return tuple(guards)

    def problems(self) -> Iterator[str]:
        """Yield what contradicts itself, a sentence each."""
        for index, hours in enumerate(self.hours):
            low, high = hours.min_replicas, hours.max_replicas
            if low is None and high is None:
                yield f"guards.hours[{index}]: want min_replicas, max_replicas or both, found neither"
            if low is not None and high is not None and low > high:
                yield f"guards.hours[{index}]: max_replicas {high} is below min_replicas {low}"
        for freeze in self.freezes:
            together = [f for f in self.freezes if _within(freeze.scope, f.scope)]
            if all(self._never_ends(together, week) for week in _WEEKS):
                names = ", ".join(f.name for f in together)
                yield (
                    f"guards.freezes: {names} leave no moment of the week free, "
                    "so the counts would be frozen for ever"
                )
                return

    def _never_ends(self, freezes: Sequence[FreezeSection], week: datetime) -> bool:
        reached = week.timestamp()
        spans = sorted(span for f in freezes for span in f.spans(week, self.time_zone))
        for from_s, until_s in spans:
            if from_s > reached:
                return False
            reached = max(reached, until_s)
        return reached >= (week + timedelta(days=7)).timestamp()


def _at(day: date, minutes: int, place: ZoneInfo) -> float:
    day += timedelta(days=minutes // _DAY_MINUTES)
    hour, minute = divmod(minutes % _DAY_MINUTES, 60)
    return datetime.combine(day, time(hour, minute), place).timestamp()


def _now(spans: Iterable[tuple[float, float]], now_s: float) -> Iterator[tuple[float, float]]:
    return (span for span in spans if span[0] <= now_s < span[1])


def _within(inner: Scope, outer: Scope) -> bool:
    """Return whether all that one scope covers is covered by the other."""
    return all(
        there in (None, here)
        for here, there in (
            (inner.namespace, outer.namespace),
            (inner.model_id, outer.model_id),
            (inner.variant, outer.variant),
        )
    )

"""What expressions are made of once they are parsed: functions of readings, any of which may be missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

Scope = Literal["model", "variant"]


class Readings(Protocol):
    """What an expression is computed from."""

    def value(self, series: str, scope: Scope, ago_s: float) -> float | None:
        """Return a series as it was seen ``ago_s`` seconds ago; ``None`` where it was not."""
        ...

    def window(self, series: str, scope: Scope, span_s: float) -> Sequence[float]:
        """Return its samples of the last ``span_s`` seconds, oldest first."""
        ...

    def name(self, name: str) -> float | None:
        """Return what is no series: the fleet's counts, constants, what the law defines."""
        ...


Evaluate = Callable[[Readings, float], "float | None"]
"""Returns a value as it was so many seconds ago; ``None`` where something that it needs is missing."""


def applied(inner: Evaluate, function: Callable[[float], float]) -> Evaluate:
    """Return the function of a number."""

    def evaluate(readings: Readings, ago_s: float) -> float | None:
        value = inner(readings, ago_s)
        return None if value is None else float(function(value))

    return evaluate


def combined(
    left: Evaluate, right: Evaluate, function: Callable[[float, float], float]
) -> Evaluate:
    """Return the function of two numbers."""

    def evaluate(readings: Readings, ago_s: float) -> float | None:
        one, other = left(readings, ago_s), right(readings, ago_s)
        if one is None or other is None:
            return None
        try:
            result = float(function(one, other))
        except ZeroDivisionError:
            return None
        return result if math.isfinite(result) else None

    return evaluate


def joined(values: Sequence[Evaluate], both: Callable[[list[float]], bool]) -> Evaluate:
    """Return ``and`` (by ``all``) or ``or`` (by ``any``) of all of them."""

    def evaluate(readings: Readings, ago_s: float) -> float | None:
        found = [value(readings, ago_s) for value in values]
        there = [value for value in found if value is not None]
        return float(both(there)) if len(there) == len(found) else None

    return evaluate


def chosen(test: Evaluate, body: Evaluate, orelse: Evaluate) -> Evaluate:
    """Return one or the other by a test."""

    def evaluate(readings: Readings, ago_s: float) -> float | None:
        answer = test(readings, ago_s)
        if answer is None:
            return None
        return body(readings, ago_s) if answer else orelse(readings, ago_s)

    return evaluate


def extreme(values: Sequence[Evaluate], function: Callable[[list[float]], float]) -> Evaluate:
    """Return the largest or smallest of those that are there."""

    def evaluate(readings: Readings, ago_s: float) -> float | None:
        found = [value(readings, ago_s) for value in values]
        there = [value for value in found if value is not None]
        return function(there) if there else None

    return evaluate


def clamped(inner: Evaluate, low: Evaluate, high: Evaluate) -> Evaluate:
    """Return a number brought between two others."""

    def evaluate(readings: Readings, ago_s: float) -> float | None:
        value, least, most = (part(readings, ago_s) for part in (inner, low, high))
        if value is None or least is None or most is None:
            return None
        return max(least, min(value, most))

    return evaluate


def defaulted(inner: Evaluate, instead: Evaluate) -> Evaluate:
    """Return a number, or another where it is missing."""

    def evaluate(readings: Readings, ago_s: float) -> float | None:
        value = inner(readings, ago_s)
        return instead(readings, ago_s) if value is None else value

    return evaluate

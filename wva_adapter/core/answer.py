"""What a reader of a metric can be told: items, or why there are none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Matcher = Callable[[Mapping[str, str]], bool]
"""A parsed label selector: whether a set of labels satisfies it."""


@dataclass(frozen=True, slots=True)
class Item:
    """One value of one metric.

    Attributes:
        labels: The item's labels; a selector matches against them.
        value_milli: The value in thousandths.
        at_s: Unix time of the plan that it comes from.
    """

    metric: str
    labels: Mapping[str, str]
    value_milli: int
    at_s: float


@dataclass(frozen=True, slots=True)
class Items:
    """The values asked for, in the order of their labels; never empty for our own metrics."""

    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class NotFound:
    """Nothing of this name or with these labels exists; the message says what does."""

    message: str


@dataclass(frozen=True, slots=True)
class NoPlan:
    """It exists and has no valid value now; the message says why."""

    message: str


Answer = Items | NotFound | NoPlan

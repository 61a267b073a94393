"""What a reader of a metric can be told: items, or why there are none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class Requirement(Protocol):
    """One condition on one label; ``str()`` of it is how a person writes it."""

    @property
    def label(self) -> str:
        """The label that it looks at."""
        ...

    def __call__(self, labels: Mapping[str, str]) -> bool:
        """Return whether a set of labels satisfies it."""
        ...


class Matcher(Protocol):
    """A parsed label selector; ``str()`` of it is its canonical form."""

    @property
    def requirements(self) -> Sequence[Requirement]:
        """Its conditions, all of which must hold; none means that everything matches."""
        ...

    def __call__(self, labels: Mapping[str, str]) -> bool:
        """Return whether a set of labels satisfies every condition."""
        ...


@dataclass(frozen=True, slots=True)
class Item:
    """One value of one metric.

    Attributes:
        labels: The item's labels; a selector matches against them.
        value_milli: The value in thousandths.
        at_s: Unix time of the plan that it comes from.
        window_s: Whole seconds that the value was taken over, 0 for an instant; ``None`` where
            that is not said.
    """

    metric: str
    labels: Mapping[str, str]
    value_milli: int
    at_s: float
    window_s: int | None = None


@dataclass(frozen=True, slots=True)
class Items:
    """The values asked for, in the order of their labels; never empty for our own metrics.

    Attributes:
        until_s: Unix time from which they are too old to be served.
    """

    items: tuple[Item, ...]
    until_s: float = math.inf


@dataclass(frozen=True, slots=True)
class NotFound:
    """Nothing of this name or with these labels exists; the message says what does."""

    message: str


@dataclass(frozen=True, slots=True)
class NoPlan:
    """It exists and has no valid value now; the message says why."""

    message: str


Answer = Items | NotFound | NoPlan

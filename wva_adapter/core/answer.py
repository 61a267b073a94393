"""What a reader of a metric can be told: items, or why there are none."""

from __future__ import annotations

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

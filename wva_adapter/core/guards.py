"""What an operator holds counts by: pins, freezes, hours, a pace, a budget.

All times are Unix times: whoever reads calendars does so before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from wva_adapter.core.fleet import Variant, VariantKey


@dataclass(frozen=True, slots=True)
class Scope:
    """The variants that a guard is about; what is ``None`` may be anything."""

    namespace: str | None = None
    model_id: str | None = None
    variant: str | None = None

    def covers(self, key: VariantKey, model_id: str) -> bool:
        """Return whether the guard is about this variant."""
        return (
            self.namespace in (None, key.namespace)
            and self.model_id in (None, model_id)
            and self.variant in (None, key.name)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Guard:
    """What all guards have.

    Attributes:
        name: What its operator calls it.

    Raises:
        ValueError: A number is negative or not finite.
    """

    name: str

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not 0 <= value < math.inf:
                raise ValueError(
                    f"guard {self.name}: {field.name} {value}, want a finite number of at least 0"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin(_Guard):
    """The count itself, until ``until_s``."""

    scope: Scope = Scope()
    replicas: int
    until_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze(_Guard):
    """The count stays what it is, from ``from_s`` until ``until_s``."""

    scope: Scope = Scope()
    from_s: float
    until_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours(_Guard):
    """Bounds that hold from ``from_s`` until ``until_s``; ``None`` is no bound.

    Raises:
        ValueError: As all guards, or the least is above the most.
    """

    scope: Scope = Scope()
    from_s: float
    until_s: float
    min_replicas: int | None = None
    max_replicas: int | None = None

    def __post_init__(self) -> None:
        _Guard.__post_init__(self)
        low, high = self.min_replicas, self.max_replicas
        if low is not None and high is not None and low > high:
            raise ValueError(f"guard {self.name}: max_replicas {high} is below min_replicas {low}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxChange(_Guard):
    """Counts published within ``window_s`` differ by ``replicas`` at most."""

    scope: Scope = Scope()
    replicas: int
    window_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget(_Guard):
    """All variants of a namespace together cost ``usd_per_h`` at most."""

    namespace: str
    usd_per_h: float


Guard = Pin | Freeze | Hours | MaxChange | Budget


def pace_window_s(guards: Iterable[Guard]) -> float:
    """Return how long published counts have to be remembered for the guards; 0 for none."""
    return max((g.window_s for g in guards if isinstance(g, MaxChange)), default=0.0)


def budget_problems(guards: Iterable[Guard], variants: Sequence[Variant]) -> tuple[str, ...]:
    """Return a sentence for each budget that does not even pay the fewest replicas."""
    problems = []
    for guard in guards:
        if not isinstance(guard, Budget):
            continue
        least = math.fsum(
            v.cost_per_h * v.min_replicas for v in variants if v.key.namespace == guard.namespace
        )
        if exceeds(least, guard.usd_per_h):
            problems.append(
                f"guard {guard.name}: usd_per_h {guard.usd_per_h:g} for namespace "
                f"{guard.namespace}, want at least {least:g}: what its min_replicas cost"
            )
    return tuple(problems)


def exceeds(usd_per_h: float, most: float) -> bool:
    """Return whether an amount is above another, sums of floats differing by rounding."""
    return usd_per_h > most * (1 + 1e-9)

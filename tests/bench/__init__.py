"""Speed and delay, measured and printed; nothing here is asserted in ``make test``."""

from __future__ import annotations

from typing import TypedDict


class Row(TypedDict):
    """One figure.

    Attributes:
        against: What it is compared with, in the same unit; ``None`` where it stands alone.
        ratio: How many times better than ``against``; ``None`` where it stands alone.
        target: What was asked for, in words.
        ok: Whether the figure meets it.
    """

    name: str
    value: float
    unit: str
    against: float | None
    ratio: float | None
    target: str
    ok: bool

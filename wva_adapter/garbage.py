"""How often the garbage collector walks through what lives, so that readers seldom wait for it."""

from __future__ import annotations

import gc
from typing import Final

PYTHONS_OWN: Final = 700
"""New objects that bring the collector to the youngest; each hundred of such walks may bring it
to all that lives."""

_REPLICAS_PER_OBJECT: Final = 10
"""With so many replicas for each of those objects, all that lives is walked through in every second
or third cycle, however large the fleet is."""


def set_aside() -> None:
    """Let the collector pass by all that lives now: modules and routes stay until the end.

    Each walk through them made every reader of that moment wait, for nearly 50 ms.
    """
    gc.collect()
    gc.freeze()


def pace(replicas: int) -> None:
    """Have a large fleet walked through no more often per cycle than a small one.

    Each cycle replaces what is known of every replica, whose number alone brought the collector to
    all that lives up to three times in a cycle: with 50,000 replicas a third of a second each, in
    which no reader got an answer and next to nothing was found.
    """
    gc.set_threshold(max(PYTHONS_OWN, replicas // _REPLICAS_PER_OBJECT))

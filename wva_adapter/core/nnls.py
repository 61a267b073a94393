"""Least squares in which no unknown may be negative, for few unknowns, in plain floats.

A library would do it too (``scipy.optimize.nnls``, the oracle of its tests), at 60 MB of memory
and with a last bit that depends on the machine's linear algebra.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

RIDGE = 1e-9
"""Added to the diagonal of the scaled matrix: directions of which nothing is known stay near 0."""


def nonnegative(gram: Sequence[Sequence[float]], right: Sequence[float]) -> tuple[float, ...]:
    """Return the x ≥ 0 with the least xᵀ·G·x/2 − rᵀ·x.

    The best x is the free solution on the unknowns that it does not set to 0. So the free
    solution is it if nothing is negative, else the best of those on fewer unknowns that have
    nothing negative.

    Args:
        gram: G, symmetric and positive semidefinite. It is scaled by the root of its diagonal
            before ``RIDGE`` is added, so the unit of an unknown does not matter.
        right: r, as long.
    """
    size = len(right)
    scale = [1 / math.sqrt(gram[i][i]) if gram[i][i] > 0 else 0.0 for i in range(size)]
    scaled = [
        [gram[i][j] * scale[i] * scale[j] if i != j else 1.0 + RIDGE for j in range(size)]
        for i in range(size)
    ]
    wanted = [r * s for r, s in zip(right, scale, strict=True)]
    best = [0.0] * size
    gain = 0.0
    for count in range(size, 0, -1):
        for support in combinations(range(size), count):
            found = _solve(scaled, wanted, support)
            if found is None or min(found) < 0:
                continue
            # What a free solution gains over x = 0 is rᵀ·x/2.
            worth = math.fsum(x * wanted[i] for x, i in zip(found, support, strict=True))
            if worth > gain:
                best, gain = [0.0] * size, worth
                for x, i in zip(found, support, strict=True):
                    best[i] = x
                if _settled(scaled, wanted, best):
                    return tuple(x * s for x, s in zip(best, scale, strict=True))
    return tuple(x * s for x, s in zip(best, scale, strict=True))


def _settled(
    gram: Sequence[Sequence[float]], right: Sequence[float], found: Sequence[float]
) -> bool:
    """Return whether no unknown that is 0 would gain by being more (Karush, Kuhn and Tucker)."""
    return all(
        x > 0 or r <= sum(g * y for g, y in zip(line, found, strict=True))
        for x, r, line in zip(found, right, gram, strict=True)
    )


def _solve(
    gram: Sequence[Sequence[float]], right: Sequence[float], support: Sequence[int]
) -> list[float] | None:
    """Return the free solution on some of the unknowns; ``None`` where rounding left none."""
    rows: list[list[float]] = []
    half: list[float] = []
    for i in support:
        row: list[float] = []
        line = gram[i]
        for above, j in zip(rows, support, strict=False):
            value = line[j]
            for a, b in zip(row, above, strict=False):
                value -= a * b
            row.append(value / above[-1])
        rest = line[i]
        known = right[i]
        for a, h in zip(row, half, strict=True):
            rest -= a * a
            known -= a * h
        if not rest > 0:
            return None
        pivot = math.sqrt(rest)
        row.append(pivot)
        rows.append(row)
        half.append(known / pivot)
    size = len(half)
    x = [0.0] * size
    for i in range(size - 1, -1, -1):
        value = half[i]
        for j in range(i + 1, size):
            value -= rows[j][i] * x[j]
        x[i] = value / rows[i][i]
    return x

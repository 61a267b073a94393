"""Least squares in which no unknown may be negative, for few unknowns, in plain floats.

A library would do it too (``scipy.optimize.nnls``, the oracle of its tests), at 60 MB of memory
and with a last bit that depends on the machine's linear algebra.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from math import sqrt

RIDGE = 1e-9
"""Added to the diagonal of the scaled matrix: directions of which nothing is known stay near 0."""

_ONE = 1.0 + RIDGE

_ALONE = [[float(i == j) for j in range(4)] for i in range(4)]


def nonnegative(
    gram: Sequence[Sequence[float]], right: Sequence[float], likely: Sequence[int] = ()
) -> tuple[float, ...]:
    """Return the x ≥ 0 with the least xᵀ·G·x/2 − rᵀ·x.

    The best x is the free solution on the unknowns that it does not set to 0. So the free
    solution is it if nothing is negative, else the best of those on fewer unknowns that have
    nothing negative.

    Args:
        gram: G, symmetric and positive semidefinite. It is scaled by the root of its diagonal
            before ``RIDGE`` is added, so the unit of an unknown does not matter.
        right: r, as long.
        likely: The unknowns that are probably not 0, in rising order. They are looked at first,
            which is quicker if they are it, and changes nothing else.
    """
    size = len(right)
    guessed = 0 < len(likely) < size
    if guessed:
        if (best_guess := _guessed(gram, right, likely)) is not None:
            return best_guess
    elif size == 4 and (free := _solve_four(gram, right)) is not None:
        return free
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
                best, gain = _spread(found, support, size), worth
                if _settled(scaled, wanted, best):
                    return tuple(x * s for x, s in zip(best, scale, strict=True))
    return tuple(x * s for x, s in zip(best, scale, strict=True))


def _guessed(
    gram: Sequence[Sequence[float]], right: Sequence[float], likely: Sequence[int]
) -> tuple[float, ...] | None:
    """Return the solution of four that is 0 but for these; ``None`` where that is not the best."""
    size = len(right)
    if size != 4:
        return None
    # With a place of its own each unknown that is 0 leaves the others alone.
    rows = [
        [x if j in likely else 0.0 for j, x in enumerate(line)] if i in likely else _ALONE[i]
        for i, line in enumerate(gram)
    ]
    found = _solve_four(rows, [r if i in likely else 1.0 for i, r in enumerate(right)])
    if found is None:
        return None
    best = [x if i in likely else 0.0 for i, x in enumerate(found)]
    for i, line in enumerate(gram):
        # More of one that is 0 would gain something (Karush, Kuhn and Tucker).
        if i not in likely and line[i] > 0 and right[i] > sum([line[j] * best[j] for j in likely]):
            return None
    return tuple(best)


def _spread(found: Sequence[float], support: Sequence[int], size: int) -> list[float]:
    """Return all unknowns, those not in ``support`` as 0."""
    spread = [0.0] * size
    for x, i in zip(found, support, strict=True):
        spread[i] = x
    return spread


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


def _solve_four(
    gram: Sequence[Sequence[float]], right: Sequence[float]
) -> tuple[float, float, float, float] | None:
    """Return the free solution for four unknowns where it is positive; ``None`` elsewhere.

    The same operations as those of ``nonnegative``, in the same order: every variant comes here
    in every cycle, and mostly needs no more.
    """
    (g00, g01, g02, g03), (_, g11, g12, g13), (_, _, g22, g23), (_, _, _, g33) = gram
    if not (g00 > 0 and g11 > 0 and g22 > 0 and g33 > 0):
        return None
    s0, s1, s2, s3 = 1 / sqrt(g00), 1 / sqrt(g11), 1 / sqrt(g22), 1 / sqrt(g33)
    r0, r1, r2, r3 = right
    l00 = sqrt(_ONE)
    l10, l20, l30 = g01 * s1 * s0 / l00, g02 * s2 * s0 / l00, g03 * s3 * s0 / l00
    h0 = r0 * s0 / l00
    rest = _ONE - l10 * l10
    if not rest > 0:
        return None
    l11 = sqrt(rest)
    l21 = (g12 * s2 * s1 - l20 * l10) / l11
    l31 = (g13 * s3 * s1 - l30 * l10) / l11
    h1 = (r1 * s1 - l10 * h0) / l11
    rest = _ONE - l20 * l20 - l21 * l21
    if not rest > 0:
        return None
    l22 = sqrt(rest)
    l32 = (g23 * s3 * s2 - l30 * l20 - l31 * l21) / l22
    h2 = (r2 * s2 - l20 * h0 - l21 * h1) / l22
    rest = _ONE - l30 * l30 - l31 * l31 - l32 * l32
    if not rest > 0:
        return None
    l33 = sqrt(rest)
    h3 = (r3 * s3 - l30 * h0 - l31 * h1 - l32 * h2) / l33
    x3 = h3 / l33
    x2 = (h2 - l32 * x3) / l22
    x1 = (h1 - l21 * x2 - l31 * x3) / l11
    x0 = (h0 - l10 * x1 - l20 * x2 - l30 * x3) / l00
    if x0 > 0 and x1 > 0 and x2 > 0 and x3 > 0:
        return x0 * s0, x1 * s1, x2 * s2, x3 * s3
    return None

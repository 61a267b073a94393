"""Least squares without negative unknowns, against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from wva_adapter.core.nnls import nonnegative


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(4, 40))
def test_it_finds_what_scipy_finds(seed: int, unknowns: int, rows: int) -> None:
    generator = np.random.default_rng(seed)
    matrix = generator.normal(size=(rows, unknowns)) * 10.0 ** generator.integers(-3, 4, unknowns)
    target = generator.normal(size=rows)
    expected, _ = nnls(matrix, target)
    found = nonnegative((matrix.T @ matrix).tolist(), (matrix.T @ target).tolist())
    assert min(found) >= 0
    gained = float(np.sum((matrix @ found - target) ** 2))
    assert gained <= float(np.sum((matrix @ expected - target) ** 2)) * (1 + 1e-6) + 1e-9


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.sets(st.integers(0, 3)))
def test_a_wrong_guess_of_what_is_not_0_changes_nothing(
    seed: int, unknowns: int, guess: set[int]
) -> None:
    generator = np.random.default_rng(seed)
    matrix = generator.normal(size=(12, unknowns))
    gram, right = (matrix.T @ matrix).tolist(), generator.normal(size=unknowns).tolist()
    likely = sorted(i for i in guess if i < unknowns)
    assert nonnegative(gram, right, likely) == nonnegative(gram, right)


def test_directions_of_which_nothing_is_known_stay_at_zero() -> None:
    assert nonnegative(((4.0, 0.0), (0.0, 0.0)), (8.0, 0.0)) == pytest.approx((2.0, 0.0))


def test_the_unit_of_an_unknown_changes_nothing_else() -> None:
    plain = nonnegative(((2.0, 1.0), (1.0, 3.0)), (4.0, 5.0))
    scaled = nonnegative(((2.0, 1e3), (1e3, 3e6)), (4.0, 5e3))
    assert scaled == pytest.approx((plain[0], plain[1] / 1e3))

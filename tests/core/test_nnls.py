from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from wva_adapter.core.nnls import RIDGE, nonnegative


@settings(max_examples=500)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(-6, 6))
def test_it_is_what_scipy_finds(seed: int, samples: int, exponent: int) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(samples, 4)) * 10.0 ** np.array([0, exponent, -exponent, 2])
    wanted = generator.normal(size=samples)
    gram, right = rows.T @ rows, rows.T @ wanted
    scale = 1 / np.sqrt(np.diag(gram))
    ridged = gram * np.outer(scale, scale) + RIDGE * np.eye(4)
    root = np.linalg.cholesky(ridged)
    expected, _ = nnls(root.T, np.linalg.solve(root, right * scale))
    found = np.array(nonnegative(gram.tolist(), right.tolist())) / scale

    def cost(x: np.ndarray) -> float:
        return float(x @ ridged @ x / 2 - right * scale @ x)

    assert np.all(found >= 0)
    # Where the ridge alone decides, both are as good; the unknowns agree where they are known.
    assert cost(found) == pytest.approx(cost(expected), rel=1e-6, abs=1e-9)
    if samples >= 8:
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_an_unknown_that_no_sample_shows_is_zero() -> None:
    assert nonnegative([[2.0, 0.0], [0.0, 0.0]], [4.0, 0.0]) == pytest.approx((2.0, 0.0))


def test_a_solution_without_signs_is_left_alone() -> None:
    assert nonnegative([[2.0, 1.0], [1.0, 2.0]], [4.0, 5.0]) == pytest.approx((1.0, 2.0))

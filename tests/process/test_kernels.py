"""Temporal covariances: the written formulas, positive definite whatever the parameters, shrinkage of the learned one."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.process import kernels

positive = st.floats(0.01, 10.0)


def test_formulas() -> None:
    lag = np.array([[0.0, 10.0], [10.0, 0.0]])
    np.testing.assert_allclose(kernels.matern12(lag, 5.0)[0, 1], np.exp(-2), rtol=1e-6)
    np.testing.assert_allclose(kernels.matern32(lag, 10.0 * np.sqrt(3))[0, 1], 2 * np.exp(-1), rtol=1e-6)
    np.testing.assert_allclose(kernels.slow(lag, 10.0)[0, 1], 0.2 * (1 + np.sqrt(3)) * np.exp(-np.sqrt(3)) + 0.8 * np.exp(-1 / 3), rtol=1e-6)
    np.testing.assert_allclose(kernels.annual(np.array(365.25 / 2)), -1, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.tuples(positive, positive, positive, positive), st.floats(5, 200))
def test_mixture_is_a_covariance_of_unit_variance(shares: tuple[float, ...], length: float) -> None:
    c = np.asarray(kernels.mixture(np.arange(12) * 8.0, np.array(shares), length), np.float64)
    np.testing.assert_allclose(np.diag(c), 1, rtol=1e-5)
    np.testing.assert_allclose(c, c.T, atol=1e-6)
    assert np.linalg.eigvalsh(c).min() > -1e-5


def test_empirical_shrinks_from_data_to_anchor() -> None:
    rng = np.random.default_rng(0)
    anchor = np.asarray(kernels.mixture(np.arange(5) * 16.0, np.ones(4), 30.0), np.float64)
    nothing = kernels.empirical(np.zeros((8, 5)), np.zeros((8, 5)), anchor)
    np.testing.assert_allclose(nothing, anchor, rtol=1e-5)
    truth = np.diag([1.0, 2, 3, 2, 1]) / 1.8
    series = rng.multivariate_normal(np.zeros(5), truth, 20_000)
    np.testing.assert_allclose(kernels.empirical(series, np.ones_like(series), anchor), truth, atol=0.06)


def test_a_date_that_nothing_saw_hangs_on_its_neighbours() -> None:
    """Ground that greens at once and rests: between two dates that agree, one that nobody saw is no stranger."""
    days = np.array([0.0, 8, 16, 24, 32, 40])
    anchor = np.asarray(kernels.mixture(days, np.array([0.5, 0.3, 1.0, 0.01]), 20.0), np.float64)
    series = np.random.default_rng(1).normal(size=(500, 1)) * np.array([0.1, 0.1, 1.0, 1.0, 1.0, 1.0])
    seen = np.ones_like(series)
    seen[:, 4] = 0
    found = np.asarray(kernels.empirical(series, seen, anchor), np.float64)
    others = [0, 1, 2, 3, 5]
    weights = anchor[4, others] @ np.linalg.inv(anchor[np.ix_(others, others)])
    np.testing.assert_allclose(found[4, others], weights @ found[np.ix_(others, others)], rtol=1e-4, atol=1e-4)
    assert found[4, 3] / np.sqrt(found[4, 4] * found[3, 3]) > 0.9
    assert np.linalg.eigvalsh(found).min() > 0

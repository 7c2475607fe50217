"""The law of errors: a scale mixture with unit mean square, whose tail index is found again in what was drawn from it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, norm

from fusion.process.tails import HEAVIEST, SCALES, cdf, crps, learned, normal_score, quantile, scales

tails = st.floats(0.0, HEAVIEST)


@given(tails, st.integers(1, 40))
def test_the_mean_square_is_one(tail: float, count: int) -> None:
    """So that the sd is the sd, whatever the tails; and scales are those of Student's t (equation of the module)."""
    own = scales(tail, count)
    assert own.shape == (count,)
    assert np.mean(own**2) == pytest.approx(1.0)
    assert (np.diff(own) <= 0).all()
    if tail > 0.01:
        chi = chi2.ppf((np.arange(count) + 0.5) / count, 1 / tail)
        np.testing.assert_allclose(own**2 * chi, (own**2 * chi)[0], rtol=1e-6)


def test_without_a_tail_the_law_is_normal() -> None:
    z = np.linspace(-4, 4, 33)
    np.testing.assert_allclose(cdf(z, 0.0), norm.cdf(z), atol=1e-6)
    np.testing.assert_allclose(normal_score(z, 0.0), z, atol=1e-4)
    np.testing.assert_allclose(quantile([0.05, 0.5, 0.975]), norm.ppf([0.05, 0.5, 0.975]), atol=1e-4)


@given(tails, st.floats(0.005, 0.995))
def test_a_quantile_undoes_the_distribution(tail: float, p: float) -> None:
    z = float(quantile(p, tail))
    assert float(cdf(z, tail)) == pytest.approx(p, abs=5e-4)
    assert float(quantile(1 - p, tail)) == pytest.approx(-z, abs=1e-9)
    assert float(norm.cdf(normal_score(z, tail))) == pytest.approx(p, abs=5e-4)


def test_quantiles_of_a_map_of_tails() -> None:
    """The axes of the map come first; heavier tails narrow the middle and widen the ends; no number in, no number out."""
    found = quantile([0.75, 0.999], np.array([[0.0, 0.1], [0.3, HEAVIEST]]))
    assert found.shape == (2, 2, 2)
    assert (np.diff(found[..., 0].ravel()) < 0).all()
    assert (np.diff(found[..., 1].ravel()) > 0).all()
    assert np.isnan(quantile(0.9, np.nan))


@pytest.mark.parametrize("tail", [0.0, 0.2, 0.5])
def test_the_score_is_the_integral(tail: float) -> None:
    """CRPS = integral of (F(x) - [x >= y])^2 (Gneiting & Raftery 2007, JASA 102, eq. 20)."""
    x = np.linspace(-4, 4, 80_001)
    error, sd = np.array([0.0, 0.02, -0.3]), np.array([0.1, 0.05, 0.1])
    by_hand = [np.trapezoid((cdf(x / s, tail) - (x >= e)) ** 2, x) for e, s in zip(error, sd, strict=True)]
    np.testing.assert_allclose(crps(error, sd, tail), by_hand, rtol=3e-3)


@pytest.mark.parametrize("size", [1.0, 0.3])
@pytest.mark.parametrize("tail", [0.0, 0.1, 0.25, 0.45])
def test_the_tail_index_is_found_again(tail: float, size: float) -> None:
    """Whatever the common scale of what it is learned from."""
    rng = np.random.default_rng(3)
    z = size * rng.normal(size=20_000) * rng.choice(scales(tail), 20_000)
    assert learned([z], 1.0) == pytest.approx(tail, abs=0.03)
    assert learned([z, 5 * z], 0.5) == pytest.approx(tail, abs=0.03)  # each group has a scale of its own
    assert learned([rng.permutation(z)[:400]], 1.0) == pytest.approx(tail, abs=0.2)


def test_little_evidence_leaves_the_prior() -> None:
    rng = np.random.default_rng(0)
    heavy = rng.normal(size=4000) * rng.choice(scales(0.5), 4000)
    assert learned([heavy[:20]], 0.2) < 0.2 < learned([heavy], 0.2)
    assert learned([[], [0.0, 0.0], [np.nan, 1.0]], 1.0) == learned([], 1.0) == 0.0


def test_intervals_hold_what_they_say() -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(size=200_000) * rng.choice(scales(0.4), 200_000)
    for level in (0.5, 0.9, 0.95):
        assert np.mean(np.abs(z) < quantile(0.5 + level / 2, 0.4)) == pytest.approx(level, abs=0.005)
    assert np.mean(np.abs(z) < norm.ppf(0.75)) > 0.58  # what a normal interval of 50 % would hold
    assert len(scales(0.4)) == SCALES

"""Filled images against the normal distribution they are drawn from, and classes that do not follow clouds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fusion.process import gaps
from fusion.process.landscape import Cover

NOISE = 0.01


def world(pixels: int = 2000, planes: int = 15, factors: int = 3, seed: int = 0) -> tuple[Any, Any, Any]:
    """(values (N, P), mean (N,), covariance (N, N)) of planes that share a few factors."""
    rng = np.random.default_rng(seed)
    loadings, mean = 0.05 * rng.normal(size=(planes, factors)), rng.uniform(0.1, 0.4, planes)
    values = mean[:, None] + loadings @ rng.normal(size=(factors, pixels)) + NOISE * rng.normal(size=(planes, pixels))
    return values, mean, loadings @ loadings.T + NOISE**2 * np.eye(planes)


def clouds(planes: int, pixels: int, bands: int, seed: int = 1) -> NDArray[np.bool_]:
    """(N, P) what looks of so many bands see: a third of each lies under one cloud."""
    rng = np.random.default_rng(seed)
    seen = np.ones((planes // bands, pixels), bool)
    for look in seen:
        start = rng.integers(0, pixels)
        look[np.arange(start, start + pixels // 3) % pixels] = False
    return np.repeat(seen, bands, axis=0)


def test_without_gaps_factors_are_those_of_greatest_likelihood_and_nothing_is_filled() -> None:
    values, _, _ = world()
    seen = np.ones(values.shape, bool)
    mean, loadings, rest = gaps.learn(values, seen)
    np.testing.assert_allclose(mean, values.mean(1), rtol=1e-12)
    eigen, vectors = np.linalg.eigh(np.cov(values, bias=True))
    left, width = eigen[: -gaps.FACTORS].mean(), gaps.FACTORS
    wanted = (vectors[:, -width:] * (eigen[-width:] - left)) @ vectors[:, -width:].T  # Tipping & Bishop 1999, equation 15
    np.testing.assert_allclose(loadings @ loadings.T, wanted, atol=1e-10)
    assert rest == pytest.approx(left)
    np.testing.assert_array_equal(gaps.filled(values, seen, loadings, rest), values)


@pytest.mark.parametrize("pixels", [2000, 9000])
def test_gaps_are_filled_as_well_as_the_true_covariance_would(pixels: int) -> None:
    values, mean, covariance = world(pixels)
    seen = clouds(*values.shape, bands=3)
    learned, loadings, rest = gaps.learn(np.where(seen, values, np.nan), seen)
    assert np.abs(learned - mean).max() < 0.01  # of clear pixels alone it would be as wrong, but for what is seen beside
    found = learned[:, None] + gaps.filled(np.where(seen, values - learned[:, None], np.nan), seen, loadings, rest)
    np.testing.assert_allclose(found[seen], values[seen], rtol=1e-12)
    best = values.copy()
    for pattern in np.unique(seen, axis=1).T:
        mine = (seen == pattern[:, None]).all(0)
        gain = covariance[np.ix_(~pattern, pattern)] @ np.linalg.inv(covariance[np.ix_(pattern, pattern)])
        best[np.ix_(~pattern, mine)] = mean[~pattern, None] + gain @ (values[np.ix_(pattern, mine)] - mean[pattern, None])

    def error(filled: Any) -> float:
        return float(np.sqrt(np.mean((filled - values)[~seen] ** 2)))

    assert error(best) < error(found) < 1.1 * error(best)
    assert error(found) < 0.3 * error(np.broadcast_to(mean[:, None], values.shape))


def test_what_nobody_saw_is_the_mean() -> None:
    values, _, _ = world(400)
    seen = clouds(*values.shape, bands=3)
    seen[:, :5] = False
    _, loadings, rest = gaps.learn(values, seen)
    assert (gaps.filled(values, seen, loadings, rest)[:, :5] == 0).all()


@pytest.mark.parametrize("values", [np.zeros((1, 50)), np.full((4, 50), 0.3), np.random.default_rng(0).normal(size=(6, 1)), np.zeros((3, 0))])
def test_little_to_learn_from_is_no_error(values: Any) -> None:
    for there in (True, False):
        seen = np.ones(values.shape, bool)
        seen[:, :7] = there
        mean, loadings, rest = gaps.learn(values, seen)
        found = gaps.filled(values - mean[:, None], seen, loadings, rest)
        assert np.isfinite(mean).all()
        assert found.shape == values.shape
        assert np.isfinite(found).all()


def test_classes_do_not_follow_clouds() -> None:
    """How much of a cloud's place the classes tell: no more than classes of the same ground without clouds."""
    size, looks, bands = 48, 6, 3
    rng = np.random.default_rng(3)
    fields = np.kron(rng.integers(0, 9, (size // 6, size // 6)), np.ones((6, 6), int))
    course = np.cumsum(0.05 * rng.normal(size=(looks, bands, 9)), axis=0)
    stack = (course[:, :, fields] + NOISE * rng.normal(size=(looks, bands, size, size))).reshape(-1, size, size)
    rows, cols = np.mgrid[:size, :size]
    under = np.stack([(rows - a) ** 2 + (cols - b) ** 2 < 15**2 for a, b in rng.integers(0, size, (looks, 2))])
    cloudy = np.where(np.repeat(under, bands, axis=0), np.nan, stack)

    def told(images: Any) -> float:
        cover = Cover.learn(images[:, None], count=32)
        shares = cover.classes(cover.features(images), 32).reshape(32, -1).T ** 2
        place = under.reshape(looks, -1).T - under.mean((1, 2))
        left = place - shares @ np.linalg.lstsq(shares, place, rcond=None)[0]
        return float(1 - (left**2).sum() / (place**2).sum())

    assert told(cloudy) < told(stack) + 0.1

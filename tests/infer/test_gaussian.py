"""The exact engine against dense float64 conditioning, written from the equations (`oracle`)."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion.infer.gaussian import log_likelihood, posterior, prepare
from fusion.process.hierarchy import LEVELS
from tests.infer.oracle import K, T, X, Y, world


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("kind", ["plain", "blurred", "window"])
def test_mean_sd_and_draws_are_those_of_the_dense_posterior(kind: str) -> None:
    w = world(kind)
    w.simulate(1)
    mean, covariance = w.posterior()
    sd = np.sqrt(np.diag(covariance)).reshape(mean.shape)
    found = posterior(
        w.hierarchy, w.series, w.hyper, jax.random.key(0), pairs=480, tolerance=0.002, limit=200, batch=96, exact=True
    )
    assert float(found.error) <= 0.002
    assert np.abs((np.asarray(found.mean) - mean) / sd).max() < 0.03
    assert np.sqrt((((np.asarray(found.mean) - mean) / sd) ** 2).mean()) < 0.01
    ratio = np.asarray(found.sd) / sd
    assert abs(ratio.mean() - 1) < 0.02
    assert np.sqrt(((ratio - 1) ** 2).mean()) < 0.03
    hierarchy, factors = w.hierarchy, w.hierarchy.factors(w.hyper)
    draws = np.asarray(jax.lax.map(lambda d: hierarchy.field(*hierarchy.coefficients(d, factors)), found.deviations), np.float64)
    flat, root = draws.reshape(len(draws), -1), np.random.default_rng(0).normal(size=(40, T * K * Y * X))
    told = np.einsum("ij,jk,ik->i", root, covariance, root)
    got = ((flat @ root.T) ** 2).mean(0)
    assert (got / told).mean() == pytest.approx(1, abs=0.1)


# from here on: one program each for a hundred pixels, run once
@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(("off", "complete", "mean_off", "most_off"), [
    (None, True, 0.04, 0.15), ("class", True, 0.05, 0.15), (None, False, 0.04, 0.25), ("class", False, 0.05, 0.25), ("pixel", False, 0.2, 2.0),
])
def test_closed_form_sd_without_coarse_looks(off: str | None, complete: bool, mean_off: float, most_off: float) -> None:
    """off: a level of next to no variance; without pixels of their own the objects' mean weights are all that is known of places.

    complete: functions of time leave nothing out. Where they do, few pixels are off by up to a fifth: what is left out of looks is noise of other
    colours than the sensor's, so components are less apart.
    """
    w = world("fine", complete=complete)
    if off is not None:
        w.hyper = w.hyper.replace(sd=w.hyper.sd.at[LEVELS.index(off)].multiply(1e-3))
    w.simulate(2)
    mean, covariance = w.posterior()
    sd = np.sqrt(np.diag(covariance)).reshape(mean.shape)
    found = posterior(w.hierarchy, w.series, w.hyper, jax.random.key(0), samples=4000, tolerance=0.002)
    ratio = np.asarray(found.sd) / sd
    assert abs(ratio.mean() - 1) < mean_off
    assert np.abs(ratio - 1).max() < most_off


@pytest.mark.usefixtures("hasty")
def test_the_variance_of_the_scene_needs_no_draws() -> None:
    w = world("fine", complete=True)
    w.simulate(2)
    few = [n for n in LEVELS[1:] if n != "object"]  # objects alone beside the scene: what draws tell of them is apart in each
    hyper = w.hyper.replace(sd=w.hyper.sd.at[np.array([LEVELS.index(n) for n in few])].multiply(1e-3))
    prior = np.asarray(w.hierarchy.prior_variance(hyper), np.float64)
    scene = np.asarray(w.hierarchy.level_variance(hyper)["scene"], np.float64)
    found = np.stack([np.asarray(posterior(w.hierarchy, (), hyper, jax.random.key(i), samples=16).canonical_var) for i in range(6)])
    assert (scene / prior).mean() > 0.5
    off = found.mean((3, 4)) / prior.mean((2, 3)) - 1  # over the tile: draws of the scene alone would be off by sqrt(2 / 16) = .35 of its share
    assert np.sqrt((off**2).mean()) < 0.12


@pytest.mark.usefixtures("hasty")
def test_noise_is_inverted_exactly() -> None:
    w = world("plain")
    w.simulate(3)
    _, noise, y = w.system()
    per_series = [np.asarray(s.noise(w.hyper).apply(s.data)) for s in w.series]
    total = sum(float((np.asarray(s.data) * v).sum()) for s, v in zip(w.series, per_series, strict=True))
    assert total == pytest.approx(float(y @ np.linalg.solve(noise, y)), rel=1e-3)
    log_det = sum(float(s.noise(w.hyper).log_det) for s in w.series)
    assert log_det == pytest.approx(-np.linalg.slogdet(noise)[1], rel=1e-3)


@pytest.mark.usefixtures("hasty")
def test_likelihood_is_the_noise_density() -> None:
    w = world("fine")
    w.simulate(4)
    zero = {n: jnp.zeros(s) for n, s in w.hierarchy.white_shapes.items()}
    density = jax.jit(log_likelihood)
    _, noise, y = w.system()
    expected = -0.5 * (y @ np.linalg.solve(noise, y) + np.linalg.slogdet(noise)[1])
    assert float(density(zero, w.hierarchy, w.series, w.hyper)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.usefixtures("hasty")
def test_theta_has_a_slope_where_values_are_missing() -> None:
    w = world("plain")
    w.simulate(6)
    for s in w.series:
        gap = replace(s, precision=s.precision.at[0].set(0.0))
        slopes = jax.jit(jax.grad(lambda hyper, s: s.noise(hyper).log_det - (s.data * s.noise(hyper).apply(s.data)).sum()))(w.hyper, gap)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(slopes)), s.sensor


@pytest.mark.usefixtures("hasty")
def test_operator_and_preconditioner_are_symmetric() -> None:
    w = world("plain")
    w.simulate(5)
    system = prepare(w.hierarchy, w.series, w.hyper, None)
    rng = np.random.default_rng(0)
    a, b = ({n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in w.hierarchy.white_shapes.items()} for _ in range(2))
    for f in (jax.jit(lambda s, v: s(v)), jax.jit(lambda s, v: s.preconditioner.apply(v))):
        left, right = (sum(float((u[n] * v[n]).sum()) for n in u) for u, v in ((f(system, a), b), (a, f(system, b))))
        assert left == pytest.approx(right, rel=1e-3, abs=1.0)

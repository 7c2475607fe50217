"""The mixture over theta, robust weights, regions of tiles, and the default engine from observations to posterior."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from fusion.infer import Posterior, Status, engine, fit, mixture, population, summarise
from fusion.infer.mixture import aligned, mixed, robust_weights
from fusion.infer.problem import Problem
from fusion.infer.theta import Theta, antithetic
from fusion.process.hierarchy import Hyper
from tests.infer import small

pytestmark = pytest.mark.slow  # minutes of compilation on two cores

CHEAP: dict[str, Any] = {"classes": 4, "thetas": 2, "steps": 20, "samples": 8}


@pytest.fixture(scope="module")
def tile() -> Any:
    return small.tile()


@pytest.fixture(scope="module")
def fitted(tile: Any) -> Posterior:
    return fit(*tile, draws=4, seed=1, **CHEAP)


def test_the_default_engine_learns_and_mixes(tile: Any, fitted: Posterior) -> None:
    looks, _ = tile
    assert fitted.status is Status.OK, fitted.message
    assert fitted.draws.shape == (4, *fitted.mean.shape)
    for array in (fitted.mean, fitted.sd, fitted.draws, fitted.canonical_var):
        assert np.isfinite(array).all()
    assert (fitted.sd > 0).all()
    seen, _ = fitted.predict([560.0, 660.0, 860.0])
    measured = np.stack([o.data + np.asarray(o.layer.mean)[:, None, None] for o in looks])
    assert np.sqrt(np.mean((seen - measured) ** 2)) < 0.006  # noise .004, offsets .005
    assert fitted.diagnostics["thetas"] == 2
    json.dumps(fitted.diagnostics["theta"])


def test_the_default_engine_is_deterministic(tile: Any, fitted: Posterior) -> None:
    again = fit(*tile, draws=4, seed=1, **CHEAP)
    np.testing.assert_array_equal(again.mean, fitted.mean)
    np.testing.assert_array_equal(again.draws, fitted.draws)


def test_a_theta_that_cannot_be_solved_gives_way_to_the_mean(tile: Any, fitted: Posterior, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Hyper] = []

    def settle(problem: Problem, hyper: Hyper, cube: Any, **given: Any) -> Posterior:
        tried.append(hyper)
        found = engine.settle(problem, hyper, cube, **given)
        if len(tried) > 1:
            return found
        prior = problem.hierarchy.prior_sd(hyper)  # as `settle` answers where nothing is finite
        told = {**found.diagnostics, "not_finite": found.mean.size}
        return replace(found, mean=0 * found.mean, sd=np.array(prior), status=Status.NOT_CONVERGED, diagnostics=told)

    monkeypatch.setattr(mixture, "settle", settle)
    found = fit(*tile, draws=4, seed=1, **CHEAP)
    assert len(tried) == 3
    assert tried[2].to_attrs() == found.hyper.to_attrs()
    assert found.status is Status.OK
    assert found.diagnostics["thetas_replaced"] == 1
    assert fitted.diagnostics["thetas_replaced"] == 0
    assert len(found.draws) == 4
    assert np.sqrt(np.mean((found.mean - fitted.mean) ** 2)) < 0.3 * np.mean(fitted.sd)


def test_no_observation_is_the_prior(tile: Any) -> None:
    _, cube = tile
    found = fit([], cube, draws=2, **CHEAP)
    assert found.status is Status.NO_DATA
    assert np.abs(found.mean).max() < 1e-6
    assert np.isfinite(found.sd).all()
    told = summarise(found, (0, 0))
    assert told["names"] == []


def test_the_law_of_total_variance(fitted: Posterior) -> None:
    rng = np.random.default_rng(0)
    parts = [replace(fitted, mean=fitted.mean + rng.normal(size=fitted.mean.shape).astype(np.float32)) for _ in range(3)]
    size = len(fitted.hyper.names())
    theta = Theta(np.zeros(size), np.eye(size), np.zeros((3, size)), fitted.hyper.rank, fitted.hyper.sensors)
    found = mixed(parts, theta, {})
    means = np.array([p.mean for p in parts], np.float64)
    np.testing.assert_allclose(found.mean, means.mean(0), atol=1e-5)
    np.testing.assert_allclose(found.sd, np.sqrt(fitted.sd**2 + means.var(0, ddof=1)), rtol=1e-3)
    assert found.draws.shape[0] == 12


def test_antithetic_draws_have_the_mean_exactly_and_the_covariance_on_average() -> None:
    root = np.array([[1.0, 0], [0.8, 0.5]])
    draws = antithetic(np.array([1.0, -2]), root, 4000, 0)
    np.testing.assert_allclose(draws.mean(0), [1, -2], atol=1e-12)
    np.testing.assert_allclose(np.cov(draws.T), root @ root.T, atol=0.06)
    assert antithetic(np.zeros(2), root, 1, 0).tolist() == [[0, 0]]


def test_outliers_are_weighed_down_and_clean_data_are_left_alone() -> None:
    """Eight cloudy values of .6 among a few hundred: each keeps less than a tenth of its precision, the rest about all of it."""
    with small.shrunk():
        world = small.world()
        small.simulator(world)(2)
        clean = Problem(world.hierarchy, world.series, world.hyper)
        weights, share = robust_weights(clean, world.hyper)
        assert weights is None
        assert share == 0
        fine = next(s for s in world.series if s.sensor == "fine")
        spoiled = replace(fine, data=fine.data.at[1, :, 3, :2].add(jnp.where(fine.precision[1, :, 3, :2] > 0, 0.6, 0.0)))
        series = tuple(spoiled if s is fine else s for s in world.series)
        others = tuple(s for s in world.series if s is not fine)
        weights, share = robust_weights(Problem(world.hierarchy, (spoiled, *others), world.hyper), world.hyper)
    assert len(series) == 2
    assert share > 0.01
    assert weights is not None
    w = np.asarray(weights[0])
    there = np.asarray(spoiled.precision) > 0
    assert w[1, :, 3, :2][there[1, :, 3, :2]].max() < 0.1
    rest = there.copy()
    rest[1] = False
    assert 0.7 < w[rest].mean() < 1.3


def test_a_region_lends_to_tiles_that_met_other_sensors() -> None:
    """Twenty tiles agree on one parameter; a tile of other sensors gets it, and N(0, 1) for what no tile ever met."""
    rng = np.random.default_rng(0)
    names = ["length[scene]", "noise[a]"]
    told = [
        {"tile": str((0, j)), "group": "", "names": names, "mean": [0.8 + 0.1 * rng.normal(), 0.0], "sd": [0.1, 1.0]}
        for j in range(20)
    ]
    region = population(told)
    hyper = Hyper.default(1, ("b",))
    prior = json.loads(json.dumps(region.prior((5, 5))))
    mean, sd = aligned(prior, hyper)
    index = hyper.names().index("length[scene]")
    assert mean[index] == pytest.approx(0.8, abs=0.15)
    assert sd[index] < 0.5
    other = hyper.names().index("noise[b]")
    assert (mean[other], sd[other]) == (0.0, 1.0)
    quiet = aligned(prior, hyper.replace(noise=0.5))[0] - mean
    assert quiet[other] == pytest.approx(float(hyper.replace(noise=0.5).to_white()[other]))  # images that allow less noise bound it
    assert np.abs(np.delete(quiet, other)).max() == 0
    loud = {"names": ["noise[b]"], "mean": [0.7], "sd": [0.5]}
    assert aligned(loud, hyper)[0][other] == 0.7  # images that do not tell bound nothing
    rows = [r for r in region.shrinkage() if r["parameter"] == "length[scene]"]
    assert len(rows) == 20
    assert all(0 <= r["weight"] <= 1 for r in rows)
    silent = [r for r in region.shrinkage() if r["parameter"] == "noise[a]"]
    assert all(r["weight"] < 1e-6 for r in silent)

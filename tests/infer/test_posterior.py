"""The front door: statuses instead of exceptions, determinism, prediction with its uncertainty."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from fusion.cube.calendar import Calendar
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import SpectralBasis
from fusion.errors import JobError
from fusion.infer import Status, engine, fit
from fusion.infer.problem import pose
from tests.infer.oracle import K, T, World, X, Y, world

pytestmark = pytest.mark.usefixtures("hasty")  # five programs for a hundred pixels
SETTINGS: dict[str, Any] = {"engine": "gaussian", "classes": 4, "segment": 4, "spacing": 4.0, "calibrate": False, "draws": 4}


@pytest.fixture(scope="module")
def posed() -> tuple[World, Cube]:
    w = world("plain")
    w.simulate(1)
    grid = Grid(GeoBox((Y, X), Affine(30.0, 0, 500_000, 0, -30.0, 4_000_000), "EPSG:32613"))
    mixing = np.asarray(w.hierarchy.mixing, np.float64)
    basis = SpectralBasis(np.array([500.0, 1000.0, 1500.0]), np.full(K, 0.2), np.eye(K), mixing @ mixing.T, np.full(K, 1e-5))
    cube = Cube(grid, Calendar.regular("2024-01-01", "2024-02-10", 8), basis)
    assert cube.shape == (T, K, Y, X)
    for obs in w.observations:
        obs.when = cube.calendar.times[0] + np.timedelta64(round(obs.when * 24), "h")
    return w, cube


@pytest.fixture(scope="module")
def found(posed: tuple[World, Cube]) -> Any:
    return fit(posed[0].observations, posed[1], **SETTINGS)


def test_a_plain_tile_is_ok_and_deterministic(posed: tuple[World, Cube], found: Any) -> None:
    assert found.status is Status.OK, found.message
    assert set(found.chi_square) == {"fine", "coarse"}
    assert sum(v for v in found.decomposition.values()) == pytest.approx(np.ones((K, Y, X)), abs=1e-4)
    again = fit(posed[0].observations, posed[1], **SETTINGS)
    np.testing.assert_array_equal(found.mean, again.mean)
    np.testing.assert_array_equal(found.draws, again.draws)


def test_the_decomposition_is_the_mean_square_over_time_of_what_each_level_adds(posed: tuple[World, Cube]) -> None:
    w, rng = posed[0], np.random.default_rng(0)
    hierarchy, factors = w.hierarchy, w.hierarchy.factors(w.hyper)
    white = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in hierarchy.white_shapes.items()}
    left = rng.uniform(size=(T, K, Y, X))
    expected = {"unresolved": left.mean(0)}
    for name in white:
        alone = {level: value * (level == name) for level, value in white.items()}
        x = np.asarray(hierarchy.canonical(*hierarchy.coefficients(alone, factors)), np.float64)
        expected[name] = (x**2).mean(0)
    total = sum(expected.values())
    shares = engine._explained(hierarchy, w.hyper, white, jnp.asarray(left, jnp.float32))
    for name, value in expected.items():
        np.testing.assert_allclose(shares[name], value / total, rtol=2e-4, atol=1e-6)


def test_a_fit_knows_of_moments_that_nobody_saw(posed: tuple[World, Cube], found: Any) -> None:
    still = fit(posed[0].observations, posed[1], sudden=0.0, **SETTINGS)
    np.testing.assert_array_equal(found.mean, still.mean)
    assert (found.sd >= still.sd).all()
    assert (found.sd > still.sd).any()


def test_no_data_is_the_prior_exactly(posed: tuple[World, Cube]) -> None:
    for observations in ([], [_with(o, precision=np.zeros_like(o.precision)) for o in posed[0].observations]):
        got = fit(observations, posed[1], **SETTINGS)
        assert got.status is Status.NO_DATA
        assert not got.mean.any()
        assert (got.sd > 0).all()
        hierarchy = pose(observations, posed[1], **{k: v for k, v in SETTINGS.items() if k not in ("engine", "draws")}).hierarchy
        np.testing.assert_array_equal(got.sd, hierarchy.prior_sd(got.hyper))
        drawn = fit(observations, posed[1], **{**SETTINGS, "draws": 400}).draws
        np.testing.assert_array_equal(drawn[::2], -drawn[1::2])
        np.testing.assert_allclose(np.sqrt((drawn**2).mean((0, 3, 4))), np.sqrt((got.sd**2).mean((2, 3))), rtol=0.2)


def _with(obs: Any, **changes: Any) -> Any:
    return type(obs)(**{**vars(obs), **changes})


@pytest.mark.parametrize("case", ["one look", "duplicates", "flat band", "contradiction", "tiny noise", "negative", "not a number"])
def test_bad_data_end_in_a_status(posed: tuple[World, Cube], case: str) -> None:
    looks = posed[0].observations
    bad = {
        "one look": lambda: looks[:1],
        "duplicates": lambda: [*looks, *looks],
        "flat band": lambda: [_with(o, data=np.where(np.arange(len(o.data))[:, None, None] == 0, 0.0, o.data)) for o in looks],
        "contradiction": lambda: [_with(o, data=o.data + 0.2 * (o.sensor == "coarse") * (o.precision > 0)) for o in looks],
        "tiny noise": lambda: [_with(o, precision=o.precision * 1e12) for o in looks],
        "negative": lambda: [_with(o, data=-np.abs(o.data) - 0.3 * (o.precision > 0)) for o in looks],
        "not a number": lambda: [_with(o, data=np.where(np.arange(X) == 3, np.nan, o.data) if o.sensor == "fine" else o.data) for o in looks],
    }[case]()
    got = fit(bad, posed[1], **SETTINGS)
    assert isinstance(got.status, Status)
    assert got.message
    for array in (got.mean, got.sd, got.draws):
        assert np.isfinite(array).all()
    assert (got.sd > 0).all()


def test_much_data_leaves_the_prior_behind(posed: tuple[World, Cube]) -> None:
    w, cube = posed
    look = next(o for o in w.observations if o.sensor == "fine")
    bands = len(look.bands)  # every component by itself, the last one twice
    data = np.full((bands, Y, X), 0.05, np.float32)
    colour = np.eye(K)[np.minimum(np.arange(bands), K - 1)]
    layer = type(look.layer)(**{**vars(look.layer), "colour": colour, "mean": np.full(bands, 0.2), "tau": np.eye(T, dtype=np.float32)[2]})
    none = np.zeros(bands)
    clear = {"data": data, "precision": np.full(data.shape, 1e6, np.float32)}
    sure = _with(look, **clear, layer=layer, offset_sd=none, gain_sd=none, residual_var=none)
    got = fit([sure], cube, **SETTINGS)
    np.testing.assert_allclose(got.mean[2], 0.05, atol=2e-3)


def test_predict_and_expectation(posed: tuple[World, Cube], found: Any) -> None:
    mean, sd = found.predict([500.0, 1250.0])
    assert mean.shape == sd.shape == (T, 2, Y, X)
    np.testing.assert_allclose(mean[:, 0], 0.2 + found.mean[:, 0], atol=1e-5)
    np.testing.assert_allclose(sd[:, 0] ** 2, found.sd[:, 0] ** 2 + 1e-5, rtol=1e-3)
    noisy = found.predict([500.0], noise=0.1)[1]
    assert (noisy > 0.1).all()
    between = found.predict([500.0], ["2024-01-05"])[0]
    np.testing.assert_allclose(between[0], 0.5 * (mean[0, :1] + mean[1, :1]), atol=1e-5)
    square = found.expectation(lambda a: a**2, [500.0])
    assert (square.mean >= square.plug_in - 1e-6).all()  # Jensen: the draws come in antithetic pairs around the mean
    with pytest.raises(JobError, match="wavelengths"):
        found.predict([9000.0])
    with pytest.raises(JobError, match="outside"):
        found.predict([500.0], ["2030-01-01"])
    with pytest.raises(JobError, match="at least 2 draws"):
        replace(found, draws=found.draws[:0]).expectation(lambda a: a, [500.0])


def test_unknown_engine_is_refused(posed: tuple[World, Cube]) -> None:
    with pytest.raises(JobError, match="variational"):
        fit([], posed[1], engine="magic")


@pytest.mark.slow
def test_exact_sd_is_that_of_many_draws_and_the_closed_form_is_near(posed: tuple[World, Cube], found: Any) -> None:
    many = fit(posed[0].observations, posed[1], **{**SETTINGS, "draws": 400, "exact_sd": True})
    own = many.sd / np.sqrt(((many.draws - many.mean) ** 2).mean(0))
    assert own.mean() == pytest.approx(1, abs=0.03)
    assert np.sqrt(((own - 1) ** 2).mean()) < 0.1  # a standard deviation of 200 independent deviations scatters by 5 %
    near = found.sd / many.sd
    assert near.mean() == pytest.approx(1, abs=0.1)
    assert np.sqrt(((near - 1) ** 2).mean()) < 0.2

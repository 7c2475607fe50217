"""Errors of left-out looks have a shape, and draws and intervals have it too (simulated)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from scipy.ndimage import gaussian_filter

from fusion.cube.calendar import Calendar
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import SpectralBasis
from fusion.errors import JobError
from fusion.infer import Posterior, fit
from fusion.infer.tails import with_tail
from fusion.observe.footprint import footprint
from fusion.observe.layer import Layer
from fusion.observe.observation import Observation
from fusion.observe.psf import PSF
from fusion.process.tails import quantile, scales

EDGE, DATES, NOISE, FIELD = 48, 9, 0.004, 8
HIDDEN = (3, 5)


def looks_of(rare: float) -> tuple[list[Observation], Cube, np.ndarray]:
    """(looks, cube, truth (T, B, Y, X) less the mean spectrum): from date to date a share of the fields changes, by the more the fewer they are;
    where all change (1) they do so smoothly, as a normal field."""
    rng = np.random.default_rng(11)
    grid = Grid(GeoBox((EDGE, EDGE), Affine(30, 0, 500_000, 0, -30, 4_400_000), "EPSG:32613"))
    basis = SpectralBasis.of_bands([660.0, 860.0], [0.06, 0.3], 0.05**2 * np.array([[1.0, 0.3], [0.3, 2.0]]))
    cube = Cube(grid, Calendar(np.datetime64("2024-05-01", "us") + np.arange(DATES) * np.timedelta64(8 * 86_400_000_000, "us")), basis)
    if rare < 1:
        fields = (DATES, 1, EDGE // FIELD, EDGE // FIELD)
        step = np.kron(rng.normal(size=fields) * (rng.random(fields) < rare) / np.sqrt(rare), np.ones((FIELD, FIELD)))
    else:
        step = gaussian_filter(rng.normal(size=(DATES, 1, EDGE, EDGE)), (0, 0, 3, 3), mode="wrap")
        step = step / step.std()
    still = 0.03 * gaussian_filter(rng.normal(size=(EDGE, EDGE)), 2) * np.array([0.5, 2.0])[:, None, None]
    truth = 0.015 * step.cumsum(0) * np.array([-0.6, 1.0])[:, None, None] + still
    foot, looks = footprint(grid.geobox, PSF("gaussian", 26.0), grid), []
    for t, time in enumerate(cube.calendar.times):
        data = truth[t] + NOISE * rng.normal(size=truth[t].shape)
        looks.append(Observation(
            "fine", f"look-{t}", ("red", "nir"), data.astype(np.float32), np.full(data.shape, NOISE**-2, np.float32),
            Layer.of(foot, np.eye(2), basis.mean, np.eye(DATES)[t]), np.full(2, 0.002, np.float32), np.zeros(2, np.float32),
            np.zeros(2, np.float32), np.zeros(data.shape[1:], np.float32), 10.0, time, grid.geobox, PSF("gaussian", 26.0), None, simulated=True,
        ))
    return looks, cube, truth


def hidden(rare: float, engine: str = "gaussian") -> tuple[Posterior, np.ndarray]:
    """A fit without the looks of HIDDEN, and the errors there in units of its sd."""
    looks, cube, truth = looks_of(rare)
    found = fit([look for t, look in enumerate(looks) if t not in HIDDEN], cube, engine=engine, draws=16)
    times = list(HIDDEN)
    return found, (truth[times] - found.mean[times]) / found.sd[times]


@pytest.fixture(scope="module")
def steady() -> tuple[Posterior, np.ndarray]:
    """All ground changes, a little, at every date."""
    return hidden(1.0)


@pytest.fixture(scope="module")
def worked() -> tuple[Posterior, np.ndarray]:
    """One field in twenty changes, much."""
    return hidden(0.05)


def test_the_shape_of_errors_is_learned(steady: tuple[Posterior, np.ndarray], worked: tuple[Posterior, np.ndarray]) -> None:
    """Heavy tails where few fields change much; few where changes are normal."""
    assert worked[0].tail > 0.2 > steady[0].tail


def test_intervals_of_half_hold_half(worked: tuple[Posterior, np.ndarray]) -> None:
    """More nearly than those of the normal law with the same sd, which hold far more."""
    found, z = worked
    normal, ours = (np.mean(np.abs(z) < quantile(0.75, tail)) for tail in (0.0, found.tail))
    assert normal > 0.6
    assert abs(ours - 0.5) < abs(normal - 0.5)
    assert np.mean(np.abs(z) < quantile(0.975, found.tail)) > 0.9


def test_quantiles_are_those_of_the_law(worked: tuple[Posterior, np.ndarray]) -> None:
    found, _ = worked
    mean, sd = found.predict([660.0, 860.0])
    low, high = found.quantiles((0.25, 0.75), [660.0, 860.0])
    np.testing.assert_allclose(low + high, 2 * mean, atol=1e-5)
    np.testing.assert_allclose(high - mean, sd * quantile(0.75, found.tail), rtol=1e-3, atol=1e-6)
    with pytest.raises(JobError, match=r"between 0 and 1"):
        found.quantiles(50, [660.0])


def test_draws_have_the_shape_and_keep_their_second_moments(steady: tuple[Posterior, np.ndarray]) -> None:
    """Pairs stay about their middle; each is on one of the law's scales, whose mean square is 1: no covariance changes."""
    plain = replace(steady[0], draws=steady[0].draws[:9], tail=0.0)
    moved = with_tail(replace(plain, draws=plain.draws.copy()), 0.4)
    assert moved.tail == 0.4
    before, after = (p.draws[:8].reshape(4, 2, -1) for p in (plain, moved))
    np.testing.assert_allclose(after.mean(1), before.mean(1), atol=1e-5)
    ratio = np.linalg.norm(after[:, 0] - after[:, 1], axis=1) / np.linalg.norm(before[:, 0] - before[:, 1], axis=1)
    np.testing.assert_allclose(np.sort(ratio)[::-1], scales(0.4, 4), rtol=1e-3)
    np.testing.assert_array_equal(moved.draws[8], plain.draws[8])  # without a partner
    assert with_tail(plain, 0.0) is plain


@pytest.mark.slow
def test_the_default_engine_learns_it_too() -> None:
    found, z = hidden(0.05, "variational")
    assert found.tail > 0.2
    assert np.mean(np.abs(z) < quantile(0.975, found.tail)) > 0.9

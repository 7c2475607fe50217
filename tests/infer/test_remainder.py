"""What the functions of time leave out is found again: as the dense equations say, and so that few functions do about as well as all."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from scipy.ndimage import gaussian_filter, gaussian_filter1d, zoom

from fusion.cube.calendar import Calendar
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import SpectralBasis
from fusion.infer import fit, remainder
from fusion.infer.gaussian import white_noise
from fusion.infer.remainder import Remainder
from fusion.observe.footprint import footprint
from fusion.observe.layer import Layer
from fusion.observe.observation import Observation
from fusion.observe.psf import PSF
from tests.infer.oracle import T, World, X, Y, world


def solved(case: World) -> tuple[Remainder, np.ndarray]:
    """(the remainder beside a random solution of the levels, z of that solution)"""
    case.simulate(3)
    white = jax.tree.map(lambda a: 0.3 * a, white_noise(jax.random.key(1), case.hierarchy))
    z = case.hierarchy.field(*case.hierarchy.coefficients(white, case.hierarchy.factors(case.hyper)))
    return Remainder.of(case.hierarchy, case.series, case.hyper, (None,) * len(case.series), white), np.asarray(z, np.float64)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("kind", ["plain", "cloudy", "blurred"])
def test_it_is_the_dense_best_prediction_from_the_residuals(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remainder, "TOLERANCE", 1e-6)
    monkeypatch.setattr(remainder, "LIMIT", 200)
    monkeypatch.setattr(remainder, "_solved", jax.jit(remainder._solved.__wrapped__))
    case = world(kind)
    found, z = solved(case)
    case.observations = [o for o in case.observations if o.sensor == "fine"]
    design, noise, y = case.system()
    beside = np.concatenate([np.broadcast_to(case.left_out(o)[:, None, None], o.data.shape)[o.precision > 0] for o in case.observations])
    own = np.concatenate([1 / o.precision[o.precision > 0] + 1e-5 for o in case.observations])  # stated, and out of the subspace
    residual = (own + beside) * np.linalg.solve(noise, y - design @ z.reshape(-1))
    mixing, alive = np.asarray(case.hierarchy.mixing, np.float64), np.asarray(case.hierarchy.liveliness, np.float64).reshape(-1)
    covariance = case.remainder(case.hyper)
    prior = np.einsum("jk,kts,lk,pq->tjpslq", mixing, covariance, mixing, np.diag(alive**2)).reshape(z.size, z.size)
    gain = np.linalg.solve(design @ prior @ design.T + np.diag(own), design @ prior).T
    expected = (gain @ residual).reshape(z.shape)
    moved = np.einsum("jk,tkyx->tjyx", mixing, found.mean)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(moved, expected, atol=2e-3 * np.abs(expected).max())
    exact = np.diag(prior - gain @ design @ prior).reshape(z.shape)
    claimed = np.einsum("jk,tkyx->tjyx", mixing**2, found.variance)
    before = np.einsum("jk,ktt,yx->tjyx", mixing**2, covariance, alive.reshape(Y, X) ** 2)
    assert (claimed <= before * 1.0001 + 1e-9).all()
    assert exact.mean() < claimed.mean() < 0.5 * (exact + before).mean()


@pytest.mark.usefixtures("hasty")
def test_draws_have_its_variance_and_hang_together_in_time() -> None:
    case = world("plain")
    found, _ = solved(case)
    lively = [t for t in range(T) if found.covariance[0, t, t] > 1e-3 * found.covariance[0].max()]
    draws = np.stack([found.draw(case.hierarchy, jax.random.key(i)) for i in range(60)])[:, lively, 0]
    white = (draws / np.sqrt(found.variance[lively, 0])).reshape(60, len(lively), -1)
    scale = np.sqrt(np.diag(found.covariance[0])[lively])
    expected = found.covariance[0][np.ix_(lively, lively)] / scale[:, None] / scale
    np.testing.assert_allclose(np.einsum("ntp,nsp->ts", white, white) / white[:, 0].size, expected, atol=0.15)
    np.testing.assert_allclose(white.mean((0, 2)), 0, atol=0.1)
    same = case.labels.reshape(-1) == case.labels[5, 5]
    np.testing.assert_allclose(white[:, :, same], white[:, :, same][:, :, :1] * np.ones(same.sum()), rtol=1e-3)


@pytest.mark.usefixtures("hasty")
def test_without_fine_looks_all_of_it_stays_open() -> None:
    case = world("coarse")
    found, _ = solved(case)
    assert not found.mean.any()
    open_ = np.einsum("ktt,yx->tkyx", case.remainder(case.hyper), np.asarray(case.hierarchy.liveliness, np.float64) ** 2)
    np.testing.assert_allclose(found.variance, open_, atol=1e-4 * open_.max())


EDGE, NOISE, STEP = 24, 0.004, 4
LOOKS = (0, 1, 3, 5, 6, 8, 9, 11, 18, 20, 21, 23, 25, 26, 28, 29)
HIDDEN = (2, 10, 15, 24)
"""two between close looks, one next to a gap and one in its middle"""


def year() -> tuple[list[Observation], Cube, np.ndarray]:
    """(looks, cube, truth (T, B, Y, X) less the mean spectrum), simulated: fields with courses of their own, seen by coarse looks at all times."""
    rng = np.random.default_rng(7)
    grid = Grid(GeoBox((EDGE, EDGE), Affine(30, 0, 500_000, 0, -30, 4_400_000), "EPSG:32613"))
    basis = SpectralBasis.of_bands([660.0, 860.0], [0.06, 0.3], 0.05**2 * np.array([[1.0, -0.3], [-0.3, 2.0]]))
    times = np.datetime64("2011-04-01", "us") + STEP * np.arange(30) * np.timedelta64(86_400_000_000, "us")
    cube = Cube(grid, Calendar(times), basis)
    courses = gaussian_filter1d(rng.normal(size=(30, 2, 3, 3)), 3, axis=0, mode="reflect")
    fields = zoom(0.05 * courses / courses.std(), (1, 1, EDGE // 3, EDGE // 3), order=0)
    truth = fields + 0.03 * gaussian_filter(rng.normal(size=(2, EDGE, EDGE)), (0, 1, 1)) + 0.01 * rng.normal(size=(2, EDGE, EDGE))
    wide = GeoBox((EDGE // 4, EDGE // 4), Affine(120, 0, 500_000, 0, -120, 4_400_000), "EPSG:32613")
    looks = []
    for sensor, box, psf, when, sd in (
        ("fine", grid.geobox, PSF("gaussian", 26.0), LOOKS, NOISE), ("coarse", wide, PSF("gaussian", 120.0), range(30), 0.006)
    ):
        foot = footprint(box, psf, grid)
        for t in when:
            data = np.asarray(foot(jnp.asarray(truth[t], jnp.float32))) + sd * rng.normal(size=(2, *box.shape))
            looks.append(Observation(
                sensor, f"{sensor}-{t}", ("red", "nir"), data.astype(np.float32), np.full(data.shape, sd**-2, np.float32),
                Layer.of(foot, np.eye(2), basis.mean, np.eye(30)[t]), np.full(2, 0.003, np.float32), np.zeros(2, np.float32),
                np.zeros(2, np.float32), np.zeros(data.shape[1:], np.float32), 10.0, times[t], box, psf, None, simulated=True,
            ))
    return looks, cube, truth


def test_few_functions_of_a_long_calendar_follow_looks_and_gaps() -> None:
    """Looks were missed by .0097 without the remainder, and hidden dates by .0094 with knots at looks alone; the line errs by .0105 there."""
    looks, cube, truth = year()
    found = fit(looks, cube, engine="gaussian", draws=8, calibrate=False)
    for times, most in ((list(LOOKS), 0.008), (list(HIDDEN), 0.0085)):
        error = found.mean[times] - truth[times]
        assert np.sqrt(np.mean(error**2)) < most
        assert np.mean(np.abs(error) < 1.645 * found.sd[times]) > 0.85
    spread = found.draws.std(0, ddof=1)
    assert 0.9 < np.sqrt((spread**2).mean() / (found.sd**2).mean()) < 1.1
